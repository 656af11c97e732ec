"""Several processes train what one would, and a cache of features changes nothing but the time."""

from __future__ import annotations

import csv
import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from diffugts.errors import InputError
from diffugts.text import CachedEncoder
from diffugts.training import loop
from diffugts.training.bank import KNOWN, TUMOUR, Bank, Item, write_item
from diffugts.training.features import FeatureCache, features
from diffugts.training.fit import train_heads
from diffugts.training.loop import RunOptions, batches
from diffugts.training.pretrain import train_autoencoder, train_flow
from diffugts.training.workers import Workers
from tiny import tiny_config, tiny_model

OPTIONS = RunOptions(steps=2, batch=4, size=32, save_every=2, warmup=1, on_tumour=1.0)


@pytest.fixture(scope="module")
def bank_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three volumes, two with a tumour and one partly unknown, so that patches weigh differently."""
    folder, rng = tmp_path_factory.mktemp("bank"), np.random.default_rng(0)
    for number, organ in enumerate(("liver", "kidney", "")):
        image = rng.random((40, 40, 40), dtype=np.float32)
        flags = np.full(image.shape, KNOWN, np.uint8)
        flags[: 8 * number] = 0
        if organ:
            flags[20:30, 10:30, 10:25] = TUMOUR
        item = Item(f"i{number}", "ct", "torso", "test", (2.0,) * 3, (organ,) if organ else (), labelled=True)
        write_item(folder, item, image, flags)
    return folder


def train_all(bank_folder: Path, out: Path, workers: Workers) -> None:
    loop.fast_precision = lambda: None  # type: ignore[assignment]  # float32, so that rounding is small
    torch.set_num_threads(1)
    bank = Bank(bank_folder)
    model = train_autoencoder(tiny_config(), bank, OPTIONS, out / "autoencoder", workers=workers)
    model = train_flow(model, bank, OPTIONS, out / "flow", workers)
    train_heads(model, CachedEncoder(), bank, OPTIONS, out / "heads", workers=workers)


def worker(rank: int, count: int, port: int, bank_folder: Path, out: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    train_all(bank_folder, out, Workers.join())
    torch.distributed.destroy_process_group()


def curve(path: Path) -> dict[str, float]:
    with open(path / "curve.csv", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    return {key: float(value) for key, value in row.items() if key != "seconds"}


def test_two_processes_train_what_one_does(bank_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "fast_precision", loop.fast_precision)  # train_all changes it
    threads = torch.get_num_threads()
    train_all(bank_folder, tmp_path / "one", Workers())
    torch.set_num_threads(threads)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (2, port, bank_folder, tmp_path / "two"), nprocs=2)
    for part in ("autoencoder", "flow", "heads"):
        one, two = (curve(tmp_path / run / part) for run in ("one", "two"))
        assert one == pytest.approx(two, rel=2e-4, abs=1e-6), part
        states = [torch.load(tmp_path / run / part / "state.pt", weights_only=True) for run in ("one", "two")]
        for name, value in states[0]["average"].items():
            assert torch.allclose(value.float(), states[1]["average"][name].float(), atol=1e-4), (part, name)


def test_a_batch_must_be_shared_evenly(bank_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a batch of 4 cannot be shared by 3"):
        train_flow(tiny_model(), Bank(bank_folder), OPTIONS, tmp_path, Workers(0, 3))


def test_a_cache_spares_the_backbone_and_refuses_other_features(
    bank_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    real = features
    monkeypatch.setattr(
        "diffugts.training.features.features", lambda *given: passes.append(len(given[2])) or real(*given)
    )
    model, bank = tiny_model(), Bank(bank_folder)
    options = RunOptions(**{**OPTIONS.__dict__, "steps": 3, "distinct": 5})
    cache = FeatureCache(tmp_path / "cache", {"model": "tiny", "seed": 0})
    first = train_heads(model, CachedEncoder(), bank, options, tmp_path / "a", cache=cache)
    made = sum(passes)
    assert 0 < made <= 5
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == made
    again = train_heads(
        model, CachedEncoder(), bank, options, tmp_path / "b", cache=FeatureCache(tmp_path / "cache", cache_key())
    )
    assert sum(passes) == made
    for one, two in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(InputError, match="another model or other patches"):
        FeatureCache(tmp_path / "cache", {"model": "tiny", "seed": 1})


def test_a_cache_makes_the_features_of_another_patch_of_that_number_anew(bank_folder: Path, tmp_path: Path) -> None:
    model, cache = tiny_model(), FeatureCache(tmp_path / "cache", {})
    (batch,) = batches(Bank(bank_folder), RunOptions(1, 2, 32, distinct=9), 0, Workers(), torch.device("cpu"))
    first = cache.features(model, batch)
    patches = tuple(replace(patch, image=1 - patch.image) for patch in batch.patches)
    changed = replace(batch, image=1 - batch.image, patches=patches)
    for given, want in ((changed, features(model, changed.image, patches)), (batch, first)):
        for stage, expected in zip(cache.features(model, given), want, strict=True):
            torch.testing.assert_close(stage, expected, atol=0.02, rtol=0.02)  # kept in bfloat16
    assert not torch.allclose(first[0], features(model, changed.image, patches)[0], atol=0.1)


def drawn(bank_folder: Path, options: RunOptions, first: int = 0) -> list[loop.Batch]:
    return list(batches(Bank(bank_folder), options, first, Workers(), torch.device("cpu")))


def test_loaders_draw_the_same_batches_in_the_same_order(bank_folder: Path) -> None:
    alone, beside = (drawn(bank_folder, RunOptions(5, 2, 32, seed=3, loaders=count), 1) for count in (0, 2))
    assert len(alone) == len(beside) == 4
    for one, other in zip(alone, beside, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.flags, other.flags)
        assert (one.draws, one.seeds) == (other.draws, other.seeds)
        for mine, theirs in zip(one.patches, other.patches, strict=True):
            assert mine.item == theirs.item
            assert np.array_equal(mine.image, theirs.image)


def test_repeats_are_mirrored_under_other_seeds(bank_folder: Path) -> None:
    fresh = drawn(bank_folder, RunOptions(6, 2, 32))
    found = drawn(bank_folder, RunOptions(6, 2, 32, repeats=2))
    assert len(found) == 2 * 6 - 1  # before the second one there is none to repeat
    by_draws = {batch.draws: batch for batch in fresh}
    again = [batch for batch in found if batch.seeds != by_draws[batch.draws].seeds]
    assert len(again) == 5
    for batch in again:
        before = by_draws[batch.draws]
        assert batch.image.sum() == pytest.approx(float(before.image.sum()))
        mirrors = [
            axes
            for axes in ([], [2], [3], [4], [2, 3], [2, 4], [3, 4], [2, 3, 4])
            if torch.equal(before.image.flip(axes), batch.image)
        ]
        assert mirrors
        assert torch.equal(before.flags.flip(mirrors[0]), batch.flags)


def test_a_run_ends_in_time_at_its_lowest_rate(bank_folder: Path, tmp_path: Path) -> None:
    options = RunOptions(**{**OPTIONS.__dict__, "steps": 10**6, "minutes": 1e-9})
    model = tiny_model()
    model.unet.requires_grad_(True)
    train_flow(model, Bank(bank_folder), options, tmp_path)
    assert int(curve(tmp_path)["step"]) == 1
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert saved["step"] == 1
    assert saved["optimiser"]["param_groups"][0]["lr"] == pytest.approx(0.05 * options.learning_rate)


def cache_key() -> dict[str, object]:
    return {"seed": 0, "model": "tiny"}
