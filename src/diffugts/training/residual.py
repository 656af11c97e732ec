"""Training of residual heads: tumours and foreign masses, repainted by the frozen model, and healthy tissue alike.

    python -m diffugts.training.residual --model compact --bank runs/fit/bank -o runs/residual --processes 16

First a set of examples is made and kept on disk (repainting is the slow part), then a head is trained on it, and for
every held-out head of the model one on what shows no marked tumour of its organs. They are written to DIR/heads, laid
out as the model's folder is.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from diffugts.aova import AttentionHead
from diffugts.backbone.latent_diffusion import LatentDiffusion
from diffugts.backbone.weights import load_backbone, model_folder, save_tensors
from diffugts.errors import InputError
from diffugts.heads import RESIDUAL, Settings, held_out_heads, load_heads
from diffugts.healing import Sampling
from diffugts.inpaint import dilate
from diffugts.likelihood import Odds
from diffugts.machine import find_device
from diffugts.refine import Part, heal_candidate
from diffugts.residual import ResidualHead
from diffugts.synth.field import noise
from diffugts.text import default_encoder
from diffugts.training.bank import TUMOUR, Bank, Patch, augment
from diffugts.training.features import conditions_of
from diffugts.training.fit import NOT_THERE, PromptVectors, admitted, alteration, questions, soft_dice
from diffugts.training.loop import RunOptions, fast_precision, log_row

Mask = npt.NDArray[np.bool_]
Map = npt.NDArray[np.float32]

PATCH, WIDEST = 64, 1.75  # side of what an example is made of, voxels, and how much larger those may be
VOXEL = (2.0, 2.0, 2.0)  # mm, whatever a patch shows
FOREIGN = 0.6  # share of the patches without a tumour that get a foreign patch
SOURCES = {"user": 0.3, "lump": 0.25, "attention": 0.45}  # who points at the candidates
BATCH, RATE = 8, 2e-3


@dataclass(frozen=True)
class Example:
    """One repainted region.

    Attributes:
        inputs: (10, D, H, W) of the head. inside: (D, H, W) bool, where the truth is known in it.
        target: (D, H, W) bool.
        organs: of the tumours in it, "" for one of an unknown organ. anatomy: of its scan.
        foreign: what is to be found was pasted, and is no tumour.
    """

    inputs: Tensor
    inside: Tensor
    target: Tensor
    organs: tuple[str, ...]
    anatomy: str
    foreign: bool

    def without(self, excluded: Sequence[str]) -> bool:
        """Whether it shows no marked tumour of these organs."""
        if self.foreign or not self.organs:
            return True
        unknown = "" in self.organs and not set(excluded) <= NOT_THERE.get(self.anatomy, set())
        return not (unknown or set(self.organs) & set(excluded))


@dataclass(frozen=True)
class Maker:
    """What examples are made with: the frozen model, heads that point at candidates, patches, and their pieces."""

    model: LatentDiffusion
    heads: tuple[AttentionHead, ...]
    vectors: PromptVectors
    bank: Bank
    donors: Bank  # names no lesion, so that none is pasted

    @classmethod
    def load(cls, model: str, bank: Path, device: torch.device) -> Maker:
        """All of a model's heads, and all of a bank."""
        folder = model_folder(model)
        heads = [load_heads(path)[0] for path in (folder, *sorted(set(held_out_heads(folder).values())))]
        return cls(
            load_backbone(folder).to(device), tuple(head.to(device) for head in heads),
            PromptVectors(default_encoder()), Bank(bank, partial(admitted, foreign=True)),
            Bank(bank, lambda item: replace(item, lesions=())),
        )  # fmt: skip

    @torch.no_grad()
    def example(self, rng: np.random.Generator) -> Example | None:
        """One example; None where nothing is pointed at."""
        drawn = augment(self.bank.sample(rng, PATCH, on_tumour=0.8, widest=WIDEST), rng)
        patch = alteration(self.donors, FOREIGN, RunOptions(1, size=PATCH, widest=WIDEST))(drawn, rng)
        conditions, image = conditions_of(patch), torch.from_numpy(patch.image)[None, None]
        encoding = self.model.encode_patches(image.to(self.model.device), [conditions])
        question = questions(patch, rng)[int(rng.integers(2))]
        truth = np.isin(patch.flags, question.lesions)
        source = str(rng.choice(list(SOURCES), p=list(SOURCES.values())))
        trusted, settings = source == "user", Settings(margin_mm=float(rng.uniform(4, 8)))
        if source == "attention":
            settings = replace(settings, threshold=float(rng.uniform(0.1, 0.6)), relative=float(rng.uniform(0, 0.8)))
            attended = self._attended(encoding.stages, question.prompt, rng)
        else:
            attended = _lump(truth, patch, rng)
        pointed = _rough_region(truth, patch, rng) if trusted else settings.candidate(attended, 1.0, VOXEL)
        candidate = _largest(pointed)
        if not candidate.any():
            return None
        seeds = [int(rng.integers(2**31))]
        evidence = heal_candidate(
            self.model, encoding.latent, candidate, conditions, seeds, Sampling(), trusted=trusted
        )  # fmt: skip
        box = ndimage.find_objects(candidate.astype(np.uint8))[0]
        maps = (evidence.signed[0], evidence.feature[0], attended, evidence.decoded, candidate)
        part = Part(*(torch.from_numpy(a[box]) for a in maps))
        known = part.inside & torch.from_numpy(patch.flags[box] > 0)
        shown = [name for i, name in enumerate(patch.item.lesions) if (patch.flags == TUMOUR + i).any()]
        return Example(
            part.inputs(settings.cut(attended), Odds(), trusted)[0], known, torch.from_numpy(truth[box]), tuple(shown),
            patch.item.anatomy, len(patch.item.lesions) > len(drawn.item.lesions),
        )  # fmt: skip

    def _attended(self, stages: Sequence[Tensor], prompt: str, rng: np.random.Generator) -> Map:
        """P_abn of one of the heads, (S, S, S): most did not see some organ's tumours, as in zero-shot use."""
        head = self.heads[int(rng.integers(len(self.heads)))]
        abnormal, normal = (vector[None, None].to(self.model.device) for vector in self.vectors.draw(prompt, rng))
        low = head(stages, abnormal, normal).probability.float()
        fine = F.interpolate(low, size=(PATCH,) * 3, mode="trilinear", align_corners=False)[0, 0]
        return np.asarray(fine.cpu().numpy(), np.float32)


def make_examples(
    model: str, bank: Path, out: Path, count: int, seed: int = 0, part: int = 0, parts: int = 1,
    device: str = "auto", minutes: float = 0.0,
) -> int:  # fmt: skip
    """Make examples number ``part``, ``part`` + ``parts``, … up to ``count``, each from its own seed.

    Files that an earlier call made are kept.

    Returns:
        How many there are of this part's numbers (some seeds give none).
    """
    out.mkdir(parents=True, exist_ok=True)
    maker = Maker.load(model, bank, find_device(device))
    precision, began = fast_precision(), time.monotonic()
    for number in range(part, count, parts):
        if minutes and time.monotonic() - began > 60 * minutes:
            break
        path = out / f"{number:06d}.pt"
        empty = path.with_suffix(".none")
        if path.exists() or empty.exists():
            continue
        with torch.autocast(maker.model.device.type, precision or torch.bfloat16, enabled=precision is not None):
            example = maker.example(np.random.default_rng((seed, 77, number)))
        if example is None:
            empty.touch()
            continue
        temporary = path.with_suffix(".tmp")
        torch.save({**vars(example), "inputs": example.inputs.half()}, temporary)
        temporary.replace(path)
    return sum((out / f"{number:06d}.pt").exists() for number in range(part, count, parts))


def train_residual_head(
    paths: Sequence[Path], excluded: Sequence[str], steps: int, curve: Path, seed: int = 0, device: str = "auto",
    minutes: float = 0.0,
) -> ResidualHead:  # fmt: skip
    """Train on the examples that show no tumour of the excluded organs.

    Args:
        curve: CSV of the loss. minutes: end after so many at most, with a learning rate that falls in time.

    Raises:
        InputError: no example is left.
    """
    torch.manual_seed(seed)
    where = find_device(device)
    residual = ResidualHead().to(where)
    optimiser = torch.optim.AdamW(residual.parameters(), RATE, weight_decay=1e-4)
    precision, began, losses = fast_precision(), time.monotonic(), []
    for step, batch in enumerate(_batches(paths, excluded, steps, seed), start=1):
        spent = (time.monotonic() - began) / (60 * minutes) if minutes else 0.0
        progress = min(max(step / steps, spent), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, step / 50) * (0.5 + 0.5 * float(np.cos(np.pi * progress)))
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(where.type, precision or torch.bfloat16, enabled=precision is not None):
            loss = torch.stack([_loss(residual, example, where) for example in batch]).mean()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without annotations
        nn.utils.clip_grad_norm_(residual.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        if step % 50 == 0 or progress >= 1:
            log_row(curve, {"step": step, "loss": float(np.mean(losses[-50:]))})
        if progress >= 1:
            break
    return residual.cpu().eval().requires_grad_(False)


def _batches(paths: Sequence[Path], excluded: Sequence[str], steps: int, seed: int) -> Iterator[list[Example]]:
    """Random examples, each step's read while the one before is used."""
    rng = np.random.default_rng(seed)

    def draw(seed: int) -> list[Example]:
        mine, found = np.random.default_rng(seed), []
        for _ in range(50 * BATCH):
            data = torch.load(paths[int(mine.integers(len(paths)))], weights_only=True)
            example = Example(**data)
            if example.without(excluded):
                found.append(example)
            if len(found) == BATCH:
                return found
        raise InputError(f"next to none of {len(paths)} examples is without {', '.join(excluded) or 'anything'}")

    with ThreadPoolExecutor(2) as pool:
        ahead = [pool.submit(draw, int(rng.integers(2**31))) for _ in range(3)]
        for _ in range(steps):
            batch = ahead.pop(0).result()
            ahead.append(pool.submit(draw, int(rng.integers(2**31))))
            yield batch


def _loss(residual: ResidualHead, example: Example, device: torch.device) -> Tensor:
    inputs, y, w = (x[None].float().to(device) for x in (example.inputs, example.target, example.inside))
    logits = residual(inputs).float()
    ce = (w * F.binary_cross_entropy_with_logits(logits, y, reduction="none")).sum() / w.sum().clamp_min(1)
    if not example.target.any():
        return ce
    dice: Tensor = soft_dice(torch.sigmoid(logits)[None], y[None], w[None])[0, 0]
    return ce + dice


def _lump(truth: Mask, patch: Patch, rng: np.random.Generator) -> Map:
    """P as a search gives it: by the distance from the surface of what is roughly the tumour, or some ball."""
    target = _largest(truth) if truth.any() else _ball(patch, rng)
    radius = float(max((target.sum() * 0.75 / np.pi) ** (1 / 3), 1.0))
    depth = ndimage.distance_transform_edt(target) - ndimage.distance_transform_edt(~target)
    depth = ndimage.shift(depth, rng.normal(0, 0.25 * radius, 3), order=1, mode="nearest")
    grid = [np.arange(side, dtype=np.float64) for side in target.shape]
    depth = depth + rng.uniform(0, 0.5) * radius * noise(grid, max(0.8 * radius, 2.0), int(rng.integers(2**31)))
    depth = depth + rng.uniform(-0.4, 0.4) * radius
    return np.asarray(1 / (1 + np.exp(-np.clip(depth, -8, 8))), np.float32)


def _rough_region(truth: Mask, patch: Patch, rng: np.random.Generator) -> Mask:
    """The tumour as someone might outline it in haste, or a ball of healthy tissue where there is none."""
    if truth.any():
        return dilate(_largest(truth), VOXEL, float(rng.uniform(2, 16)))
    return _ball(patch, rng)


def _ball(patch: Patch, rng: np.random.Generator) -> Mask:
    centre = np.array(patch.flags.shape) * rng.uniform(0.25, 0.75, 3)
    distance = np.linalg.norm(np.indices(patch.flags.shape) - centre[:, None, None, None], axis=0)
    healthy = (patch.flags > 0) & (patch.flags < TUMOUR) & (patch.image > 0.05)
    tissue: Mask = (distance < rng.uniform(4, 12)) & healthy
    return tissue


def _largest(mask: Mask) -> Mask:
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    largest: Mask = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return largest


def main(argv: Sequence[str] | None = None) -> None:
    """Make examples, train the heads, save each beside the attention head that it goes with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="compact", help="model name or folder, with its heads")
    parser.add_argument("--bank", type=Path, required=True, help="folder that `diffugts fit` filled")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="examples, curves, heads")
    parser.add_argument("--examples", type=int, default=20000, metavar="N", help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=0.0, metavar="M", help="make them for so long at most")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="that make them: %(default)s")
    parser.add_argument("--steps", type=int, default=6000, metavar="N", help="of each head: %(default)s")
    parser.add_argument("--train-minutes", type=float, default=0.0, metavar="M", help="train for so long at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    folder, examples = model_folder(args.model), args.output / "examples"
    made = partial(
        make_examples, args.model, args.bank, examples, args.examples, args.seed, parts=args.processes,
        device=args.device, minutes=args.minutes,
    )  # fmt: skip
    _side_by_side([partial(made, part=part) for part in range(args.processes)], args.processes)
    paths = sorted(examples.glob("*.pt"))
    sys.stdout.write(f"{len(paths)} examples\n")
    wanted = {Path(): (), **{path.relative_to(folder): _left_out(path) for path in held_out_heads(folder).values()}}
    trained = partial(_train_and_save, paths, args.output, args.steps, args.seed, args.device, args.train_minutes)
    _side_by_side([partial(trained, place, excluded) for place, excluded in wanted.items()], args.processes)


def _left_out(path: Path) -> tuple[str, ...]:
    return tuple(organ.replace("-", " ") for organ in path.name.split("+"))


def _train_and_save(
    paths: Sequence[Path], out: Path, steps: int, seed: int, device: str, minutes: float, place: Path,
    excluded: Sequence[str],
) -> None:  # fmt: skip
    target = out / "heads" / place
    target.mkdir(parents=True, exist_ok=True)
    residual = train_residual_head(paths, excluded, steps, target / "curve.csv", seed, device, minutes)
    save_tensors(target / RESIDUAL, residual.state_dict())


def _side_by_side(tasks: Sequence[Callable[[], object]], processes: int) -> None:
    """Run tasks in so many processes of their own, which share the cores; one after another in this one for 1."""
    if processes == 1:
        for task in tasks:
            task()
        return
    threads = max(1, (os.cpu_count() or 1) // processes)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, torch.set_num_threads, (threads,)) as pool:
        for running in [pool.submit(task) for task in tasks]:
            running.result()


if __name__ == "__main__":
    main()
