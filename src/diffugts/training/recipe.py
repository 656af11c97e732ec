"""From a recipe to a bank: which scans, label maps and synthetic patients a model is trained on.

A recipe is JSON: ``{"scans": [...], "labelmaps": [...], "synthetic": [...]}``. Paths are patterns relative to a data
folder; patterns that match nothing are skipped with a warning, so the package's own synthetic patients are
enough to rerun it. Every item is made from its own seed, so that a build can stop and go on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffugts.training.bank import INDEX, KNOWN, TUMOUR, UNKNOWN, Item, write_item

log = logging.getLogger(__name__)

PORTION = 8  # items of one scan that a process makes in one go

Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]
Made = tuple[Item, npt.NDArray[np.float32], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Job:
    """One item to make, by name; making it gives its description, image and flags.

    Attributes:
        scan: what it is made from, where several are made from one.
    """

    name: str
    make: Callable[[], Made]
    scan: str = ""


def jobs(recipe: dict[str, Any], data: Path, spacing: float) -> Iterator[Job]:
    """All items of a recipe, sources taking turns so that an unfinished bank is already mixed."""
    sources = [_scan_jobs(source, data, spacing) for source in recipe.get("scans", [])]
    sources += [_labelmap_jobs(source, data, spacing) for source in recipe.get("labelmaps", [])]
    sources += [_synthetic_jobs(source, spacing) for source in recipe.get("synthetic", [])]
    while sources:
        for source in list(sources):
            job = next(source, None)
            if job is None:
                sources.remove(source)
            else:
                yield job


def build(
    recipe_path: Path, data: Path, root: Path, spacing: float, part: int = 0, parts: int = 1, processes: int = 1
) -> int:
    """Build (or go on building) a bank; with ``parts`` runs each makes every ``parts``-th item.

    Args:
        processes: how many of this run work side by side; the order of items in the index is then theirs.

    Returns:
        How many items this call added.
    """
    root.mkdir(parents=True, exist_ok=True)
    index = root / INDEX
    index.touch()
    done = {json.loads(line)["name"] for line in index.read_text(encoding="utf-8").splitlines()}
    recipe = json.loads(recipe_path.read_text(encoding="utf-8"))
    todo = [
        job
        for number, job in enumerate(jobs(recipe, data, spacing))
        if number % parts == part and job.name not in done
    ]  # fmt: skip
    if processes == 1:
        return _write(root, todo)
    global _PORTIONS
    _PORTIONS = _portions(todo)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:  # jobs hold what does not pickle
        return sum(pool.map(partial(_write_portion, root), range(len(_PORTIONS))))


_PORTIONS: list[list[Job]] = []  # what the processes of one build choose from


def _portions(todo: Iterable[Job]) -> list[list[Job]]:
    """Jobs in portions for one process each: those of one scan together, since it is read once, and all scans soon."""
    by_scan: dict[str, list[Job]] = {}
    for job in todo:
        by_scan.setdefault(job.scan or job.name, []).append(job)
    portions = [
        (start, of_one[start : start + PORTION])
        for of_one in by_scan.values()
        for start in range(0, len(of_one), PORTION)
    ]
    return [portion for _, portion in sorted(portions, key=lambda found: found[0])]


def _write_portion(root: Path, number: int) -> int:
    return _write(root, _PORTIONS[number])


def _write(root: Path, todo: Sequence[Job]) -> int:
    for job in todo:
        write_item(root, *job.make())
    return len(todo)


def _seed(name: str) -> int:
    """A seed that depends on the item's name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def _matches(data: Path, source: dict[str, Any], key: str) -> list[Path]:
    paths = sorted(path for pattern in source[key] for path in data.glob(pattern))
    if not paths:
        log.warning("no file matches %s; this source is skipped", source[key])
    return paths


def _scan_jobs(source: dict[str, Any], data: Path, spacing: float) -> Iterator[Job]:
    for path in _matches(data, source, "images"):
        name = "scan_" + "_".join(path.relative_to(data).parts).removesuffix(".nii.gz")
        organs = (source["organ"],) if "organ" in source else ()  # the flagged tumour is all there is, and known
        item = Item(
            name, source["modality"], source["anatomy"], source["source"], (spacing,) * 3, organs,
            trusted=source.get("trusted", True), labelled=bool(organs), weight=source.get("weight", 1.0),
        )  # fmt: skip
        yield Job(name, partial(_made, item, _scan, *_key(path, item, source, spacing)), name)
        for number in range(source.get("grafts", 0)):
            graft_name = f"graft_{name.removeprefix('scan_')}_{number:02d}"
            yield Job(graft_name, partial(_graft, graft_name, path, item, source, spacing), name)


def _key(path: Path, item: Item, source: dict[str, Any], spacing: float) -> tuple[Any, ...]:
    """What a prepared scan depends on, hashable."""
    return path, item.modality, item.anatomy, spacing, source.get("fill"), tuple(source.get("tumour", ()))


@lru_cache(maxsize=8)  # a scan's grafts follow each other, while sources take turns
def _scan(
    path: Path, modality: str, anatomy: str, spacing: float, fill: float | None, tumour: tuple[str, ...]
) -> Arrays:
    from diffugts.intensity import IntensityMap
    from diffugts.io import read_volume
    from diffugts.spatial import place

    volume = read_volume(path)
    array, placement = place(volume, spacing=spacing, multiple=1)
    scale = IntensityMap.ct() if modality == "ct" else IntensityMap.mr(volume.array)
    flags = np.full(array.shape, KNOWN, np.uint8)
    if fill is not None:  # outside the scanned region: neither air nor tissue
        from scipy import ndimage

        known = ndimage.binary_opening(ndimage.binary_closing(volume.array != fill, iterations=2))
        flags[~placement.forward(known, kind="mask")] = UNKNOWN
    if tumour:
        old, new = tumour
        mask = read_volume(path.with_name(path.name.replace(old, new))).array > 0
        flags[placement.forward(mask, kind="max") & (flags > 0)] = TUMOUR
    return scale.forward(array), flags


@lru_cache(maxsize=8)
def _tissues(*key: Any) -> npt.NDArray[np.uint8]:
    """Tissue labels of a prepared scan."""
    from diffugts.synth.graft import real_tissues

    _, modality, anatomy, spacing, *_ = key
    array, _ = _scan(*key)
    return real_tissues(array * 2000 - 1000 if modality == "ct" else array, (spacing,) * 3, modality, anatomy)


def _graft(name: str, path: Path, scan: Item, source: dict[str, Any], spacing: float) -> Made:
    """The scan with a tumour planted in it; real tumours and what is unknown are not supervised."""
    from diffugts.intensity import IntensityMap
    from diffugts.synth.graft import graft

    key = _key(path, scan, source, spacing)
    array, flags = _scan(*key)
    image = array * 2000 - 1000 if scan.modality == "ct" else array
    rng = np.random.default_rng(_seed(name))
    planted, lesion, organ = graft(
        image, flags == KNOWN, (spacing,) * 3, scan.modality, scan.anatomy, rng, _tissues(*key)
    )
    flags = np.where(flags == KNOWN, KNOWN, UNKNOWN).astype(np.uint8)
    flags[lesion] = TUMOUR
    item = replace(
        scan, name=name, lesions=(organ,) if lesion.any() else (), labelled=True, trusted=False,
        weight=source.get("graft_weight", source.get("weight", 1.0)) / source["grafts"],
    )  # fmt: skip
    if scan.modality == "ct":
        scaled: npt.NDArray[np.floating[Any]] = (planted + 1000) / 2000
    else:  # a bright lesion takes part in the percentiles that scale a scan
        scaled = IntensityMap.mr(planted).forward(planted)
    return item, np.clip(scaled, 0, 1).astype(np.float32), flags


def _made(item: Item, make: Callable[..., Arrays], *arguments: Any) -> Made:
    return (item, *make(*arguments))


def _labelmap_jobs(source: dict[str, Any], data: Path, spacing: float) -> Iterator[Job]:
    for number in range(source["count"]):
        for path in _matches(data, source, "labels"):
            name = f"labelmap_{path.name.removesuffix('.nii.gz')}_{number:03d}"
            lesions = 1 if np.random.default_rng(_seed(name)).random() < source.get("lesions", 0.5) else 0
            item = Item(
                name, "mr", source["anatomy"], source["source"], (spacing,) * 3, ("brain",) * lesions,
                labelled=True, weight=source.get("weight", 1.0),
            )  # fmt: skip
            yield Job(name, partial(_made, item, _labelmap, path, item, spacing))


def _labelmap(path: Path, item: Item, spacing: float) -> Arrays:
    from diffugts.intensity import IntensityMap
    from diffugts.io import read_volume
    from diffugts.spatial import place
    from diffugts.synth.labelmap import render_labelmap

    labels, placement = place(read_volume(path), spacing=None, multiple=1)
    sample = render_labelmap(
        labels.astype(np.int32), placement.spacing, "mr", np.random.default_rng(_seed(item.name)),
        lesions=len(item.lesions), out_spacing=(spacing,) * 3,
    )  # fmt: skip
    image = IntensityMap.mr(sample.image).forward(sample.image)
    return image, _flags(sample.lesion, image)


def _flags(lesion: npt.NDArray[np.uint8], image: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """0 and 1 + index of the lesion to known healthy and the flags' TUMOUR + index.

    A lesion that the rendering took away with the skull is nobody's to find: unknown.
    """
    flags = np.where(lesion > 0, lesion + (TUMOUR - 1), KNOWN).astype(np.uint8)
    for index in np.unique(lesion[lesion > 0]):
        if np.median(image[lesion == index]) < 0.03:
            flags[lesion == index] = UNKNOWN
    return flags


def _worth(flags: npt.NDArray[np.uint8], spacing: tuple[float, float, float]) -> float:
    """Sampling weight of an item by its largest lesion: one of a few voxels of the attention's grid teaches little."""
    sizes = np.bincount(flags.ravel(), minlength=TUMOUR + 1)[TUMOUR:] * float(np.prod(spacing)) / 1000
    largest = float(sizes.max())
    if largest == 0:
        return 0.5
    return 0.1 if largest < 2 else 0.3 if largest < 6 else 0.6 if largest < 12 else 1.3


def _synthetic_jobs(source: dict[str, Any], spacing: float) -> Iterator[Job]:
    for number in range(source["count"]):
        what = [source["kind"], *([source["organ"]] if "organ" in source else []), source["modality"]]
        name = f"synthetic_{'_'.join(what).replace(' ', '_')}_{source.get('seed', 0) + number:05d}"
        rng = np.random.default_rng(_seed(name))
        lesions = int(rng.integers(1, 3)) if rng.random() < source.get("lesions", 0.5) else 0
        yield Job(name, partial(_synthetic, name, source, lesions, spacing * rng.uniform(0.9, 1.1)))


def _synthetic(name: str, source: dict[str, Any], lesions: int, spacing: float) -> Made:
    """A window of a synthetic patient, near its first tumour where it has one."""
    from diffugts.intensity import IntensityMap
    from diffugts.synth import sample_patient

    patient = sample_patient(_seed(name), kind=source["kind"], lesions=lesions, organ=source.get("organ"))
    rng = np.random.default_rng(_seed(name) + 1)
    low, high = (np.asarray(corner, float) for corner in patient.extent)
    size = np.minimum(np.ceil((high - low) / spacing), source.get("window", 96)).astype(int)
    centre = low + (high - low) * rng.uniform(0.3, 0.7, 3)
    if patient.lesions:
        centre = np.asarray(patient.lesions[0].centre_mm) + rng.uniform(-0.3, 0.3, 3) * size * spacing
    origin = np.clip(centre - size * spacing / 2, low, np.maximum(high - size * spacing, low))
    sample = patient.render(tuple(size), (spacing,) * 3, tuple(origin), modality=source["modality"], seed=_seed(name))
    scale = IntensityMap.ct() if source["modality"] == "ct" else IntensityMap.mr(sample.image)
    item = Item(
        name, source["modality"], source["kind"], "synthetic", (spacing,) * 3,
        tuple(lesion.organ for lesion in patient.lesions), labelled=True, weight=source.get("weight", 1.0),
    )  # fmt: skip
    image = scale.forward(sample.image)
    flags = _flags(sample.lesion, image)
    return replace(item, weight=item.weight * _worth(flags, item.spacing)), image, flags
