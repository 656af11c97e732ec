"""What every training run shares: batches, precision, schedule, moving average, checkpoints, curves.

Everything random about a patch (crop, augmentation, noise, questions) comes from its own draw, so that a resumed run,
and a run of several processes, sees the same patches.
"""

from __future__ import annotations

import csv
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from diffugts.errors import InputError
from diffugts.training.bank import Bank, Patch, augment
from diffugts.training.workers import Workers

ALONE = Workers()
REMEMBERED = 64  # batches that may come again, of a run with ``repeats``


@dataclass(frozen=True)
class RunOptions:
    """How long and how to train.

    Attributes:
        steps: optimiser steps in all; a resumed run goes on to this number.
        batch: patches per step.
        size: patch side in voxels.
        learning_rate: peak, after ``warmup`` steps, falling to a twentieth along a cosine.
        ema: decay of the moving average of the weights.
        seed: of patches, augmentation and noise.
        save_every: steps between checkpoints.
        on_tumour: share of patches aimed at a tumour where the volume has one.
        widest: half of the patches show up to this many times as much along each axis, on larger voxels.
        distinct: how many different patches there are, drawn again and again, so that what a frozen model makes of
            them can be kept; 0 for ever new ones.
        minutes: the run ends after so many at the latest, and its learning rate falls in time; 0 for no limit.
        loaders: processes that draw patches beside this one, which draws them itself where there are none.
        repeats: how often each batch is used: again among later ones, mirrored, with other questions and noise. Where
            a graphics card is faster than the processor draws; a resumed run then does not repeat to the bit.
    """

    steps: int
    batch: int = 4
    size: int = 64
    learning_rate: float = 5e-4
    warmup: int = 100
    ema: float = 0.998
    seed: int = 0
    save_every: int = 50
    on_tumour: float = 0.0
    widest: float = 1.0
    distinct: int = 0
    minutes: float = 0.0
    loaders: int = 0
    repeats: int = 1


@dataclass(frozen=True)
class Batch:
    """image (N, 1, S, S, S) float32 0..1, flags (N, 1, S, S, S) uint8, the patches behind them, and their draws.

    Attributes:
        draws: (N,) number of each patch; two patches of one run with the same number are the same.
        seeds: (N,) seed of whatever else is random about each patch in this step.
    """

    image: Tensor
    flags: Tensor
    patches: tuple[Patch, ...]
    draws: tuple[int, ...]
    seeds: tuple[int, ...]

    def generators(self) -> list[torch.Generator]:
        """A generator for each patch, on the CPU."""
        return [torch.Generator().manual_seed(seed) for seed in self.seeds]

    def randn(self, shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        """(N, *shape) of normal noise on the images' device, each patch's from its own generator."""
        noise = torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])
        return noise.to(self.image.device)


Alter = Callable[[Patch, np.random.Generator], Patch]
"""What is done to each patch after its augmentation."""


class _Share(IterableDataset[Batch]):
    """One process's share of every batch from ``first_step`` on; loaders take turns, so their order never changes."""

    def __init__(self, bank: Bank, options: RunOptions, first_step: int, workers: Workers, alter: Alter | None) -> None:
        super().__init__()
        self.bank, self.options, self.first_step, self.workers, self.alter = bank, options, first_step, workers, alter

    def __iter__(self) -> Iterator[Batch]:
        loader = get_worker_info()
        start, every = (0, 1) if loader is None else (loader.id, loader.num_workers)
        for step in range(self.first_step + start, self.options.steps, every):
            if loader is not None:
                self.bank.refresh()  # a builder may be at work; the run's own process refreshes at its checkpoints
            yield self._batch(step)

    def _batch(self, step: int) -> Batch:
        options = self.options
        share = options.batch // self.workers.count
        draws, seeds = [], []
        for place in range(self.workers.rank * share, (self.workers.rank + 1) * share):
            rng = np.random.default_rng((options.seed, step, place))
            seeds.append(int(rng.integers(2**31)))
            draws.append(int(rng.integers(options.distinct)) if options.distinct else step * options.batch + place)
        patches = [_drawn(self.bank, options, draw, self.alter) for draw in draws]
        image = torch.from_numpy(np.stack([patch.image for patch in patches]))[:, None]
        flags = torch.from_numpy(np.stack([patch.flags for patch in patches]))[:, None]
        return Batch(image, flags, tuple(patches), tuple(draws), tuple(seeds))


def batches(
    bank: Bank, options: RunOptions, first_step: int, workers: Workers, device: torch.device, alter: Alter | None = None
) -> Iterator[Batch]:
    """This process's share of the batches from ``first_step`` on."""
    share = _Share(bank, options, first_step, workers, alter)
    found = _from_loaders(share) if options.loaders else _one_ahead(iter(share))
    earlier: deque[Batch] = deque(maxlen=REMEMBERED)
    rng = np.random.default_rng((options.seed, 2, first_step, workers.rank))
    for batch in found:
        here = replace(
            batch, image=batch.image.to(device, non_blocking=True), flags=batch.flags.to(device, non_blocking=True)
        )
        yield here
        for _ in range(options.repeats - 1):
            if earlier:
                yield _mirrored(earlier[rng.integers(len(earlier))], rng)
        if options.repeats > 1:
            earlier.append(here)


def _mirrored(batch: Batch, rng: np.random.Generator) -> Batch:
    """The batch seen in a mirror or two, under other seeds."""
    axes = [axis for axis in (2, 3, 4) if rng.random() < 0.5]
    seeds = tuple(int(seed) for seed in rng.integers(2**31, size=len(batch.seeds)))
    return replace(batch, image=batch.image.flip(axes), flags=batch.flags.flip(axes), seeds=seeds)


def _one_ahead(found: Iterator[Batch]) -> Iterator[Batch]:
    """The same, each drawn in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(next, found, None)
        while (batch := ahead.result()) is not None:
            ahead = pool.submit(next, found, None)
            yield batch


def _from_loaders(share: _Share) -> Iterator[Batch]:
    """The same, drawn by ``options.loaders`` processes; patches are views of their batch, and know of no home."""
    count = share.options.loaders
    loader: DataLoader[Any] = DataLoader(share, None, num_workers=count, prefetch_factor=4, collate_fn=_packed)
    for image, flags, items, draws, seeds in loader:
        patches = tuple(Patch(image[i, 0].numpy(), flags[i, 0].numpy(), item) for i, item in enumerate(items))
        yield Batch(image, flags, patches, draws, seeds)


def _packed(batch: Any) -> tuple[Any, ...]:
    """What of a batch travels between processes: tensors in shared memory, and little else."""
    return batch.image, batch.flags, tuple(patch.item for patch in batch.patches), batch.draws, batch.seeds


def _drawn(bank: Bank, options: RunOptions, draw: int, alter: Alter | None) -> Patch:
    rng = np.random.default_rng((options.seed, 1, draw))
    patch = augment(bank.sample(rng, options.size, options.on_tumour, options.widest), rng)
    return alter(patch, rng) if alter else patch


def fast_precision() -> torch.dtype | None:
    """bfloat16 where the processor multiplies it natively, else None (float32): emulation is unusably slow."""
    if torch.cuda.is_available():
        return torch.bfloat16
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else None


def train(
    modules: dict[str, nn.Module],
    loss_of: Callable[[Batch], tuple[Tensor, dict[str, float]]],
    bank: Bank,
    options: RunOptions,
    out: Path,
    slow: Sequence[str] = (),
    workers: Workers = ALONE,
    alter: Alter | None = None,
) -> None:
    """Run (or go on with) a training run; ``modules`` end with their averaged weights.

    Args:
        modules: what is trained, by name; ``out/state.pt`` keeps them, their average and the optimiser.
        loss_of: loss and figures to log of one batch: means over its patches, so that the mean over workers is that
            of the whole batch.
        out: folder of ``state.pt`` and ``curve.csv``.
        slow: parameters with one of these in their name learn at a tenth of the rate.
        workers: the processes that share each batch.
        alter: what is done to each patch before it is used.

    Raises:
        InputError: a batch that the workers cannot share evenly.
    """
    if options.batch % workers.count:
        raise InputError(f"a batch of {options.batch} cannot be shared by {workers.count} processes; give a multiple")
    out.mkdir(parents=True, exist_ok=True)
    trained = nn.ModuleDict(modules)
    parameters = [p for p in trained.parameters() if p.requires_grad]
    groups = _groups(trained, slow)
    optimiser = torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=1e-4, betas=(0.9, 0.98))
    average = {key: value.detach().clone() for key, value in trained.state_dict().items()}
    step = _resume(out / "state.pt", trained, optimiser, average)
    began, precision, device = time.monotonic(), fast_precision(), parameters[0].device
    since: list[dict[str, float]] = []
    torch.backends.cudnn.benchmark = device.type == "cuda"  # every batch has the same shape
    for batch in batches(bank, options, step, workers, device, alter):
        progress = _progress(step, time.monotonic() - began, options)
        if options.minutes:  # all processes end at the same step
            progress = float(workers.mean(torch.tensor(progress, device=device)))
        for group in optimiser.param_groups:
            group["lr"] = _rate(step, progress, options) * group.get("factor", 1.0)
        with torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None):
            loss, figures = loss_of(batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without annotations
        workers.average_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        if torch.isfinite(norm):
            optimiser.step()
        step += 1
        _follow(average, trained, min(options.ema, (1 + step) / (10 + step)))
        since.append({"loss": loss.item(), **figures})
        last = step == options.steps or progress >= 1
        if step % 20 == 0 or last:
            rows = torch.tensor([list(row.values()) for row in since], device=device)
            means = dict(zip(since[0], workers.mean(rows.mean(0)).tolist(), strict=True))
            if workers.rank == 0:
                log_row(out / "curve.csv", {"step": step, "seconds": time.monotonic() - began, **means})
            since.clear()
        if step % options.save_every == 0 or last:
            if workers.rank == 0:
                _save(out / "state.pt", trained, optimiser, average, step)
            workers.wait()  # so that all see the same bank from here on
            bank.refresh()
        if last:
            break
    trained.load_state_dict(average)


def _groups(trained: nn.Module, slow: Sequence[str]) -> list[dict[str, Any]]:
    """The optimiser's groups: what learns at the full rate and, where there is any, what at a tenth of it."""
    named = [(name, p) for name, p in trained.named_parameters() if p.requires_grad]
    careful = [p for name, p in named if any(part in name for part in slow)]
    quick = [p for name, p in named if not any(part in name for part in slow)]
    groups: list[dict[str, Any]] = [{"params": quick, "factor": 1.0}]
    return [*groups, {"params": careful, "factor": 0.1}] if careful else groups


def _progress(step: int, seconds: float, options: RunOptions) -> float:
    """Share of the run that is over, in steps or in time."""
    return min(1.0, max(step / options.steps, seconds / (60 * options.minutes) if options.minutes else 0.0))


def _rate(step: int, progress: float, options: RunOptions) -> float:
    warm = min(1.0, (step + 1) / options.warmup)
    fall = 0.5 * (1 + math.cos(math.pi * progress))
    return options.learning_rate * warm * (0.05 + 0.95 * fall)


@torch.no_grad()
def _follow(average: dict[str, Tensor], trained: nn.Module, decay: float) -> None:
    for key, value in trained.state_dict().items():
        if value.is_floating_point():
            average[key].lerp_(value.to(average[key]), 1 - decay)
        else:
            average[key].copy_(value)


def _save(
    path: Path, trained: nn.Module, optimiser: torch.optim.Optimizer, average: dict[str, Tensor], step: int
) -> None:
    temporary = path.with_suffix(".tmp")
    state = {
        "model": trained.state_dict(),
        "optimiser": optimiser.state_dict(),
        "average": average,
        "step": step,
    }
    torch.save(state, temporary)
    os.replace(temporary, path)


def _resume(path: Path, trained: nn.Module, optimiser: torch.optim.Optimizer, average: dict[str, Tensor]) -> int:
    if not path.exists():
        return 0
    state: dict[str, Any] = torch.load(path, weights_only=True)
    trained.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    for key, value in state["average"].items():
        average[key].copy_(value)
    return int(state["step"])


def averaged_state(path: Path) -> dict[str, dict[str, Tensor]]:
    """The moving average kept in a run's ``state.pt``, per module name."""
    average: dict[str, Tensor] = torch.load(path, weights_only=True)["average"]
    modules: dict[str, dict[str, Tensor]] = {}
    for key, value in average.items():
        name, rest = key.split(".", 1)
        modules.setdefault(name, {})[rest] = value
    return modules


def log_row(path: Path, row: dict[str, float]) -> None:
    """Add a row to a curve (CSV), under a header where the file is new."""
    new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow({key: f"{value:.6g}" for key, value in row.items()})
