"""Is what the model paints in healthy, and does the residual tell tumours from healthy tissue?

    python benchmarks/healing.py --cases ../shared/cases/cases.json [--only brain lung sarcoma_t1_018 ...]

From each scan with a tumour of at most 40 ml (there must be room for it elsewhere) its largest part, grown by 6 mm as
in use, is a shape. With --pieces it is a ball of at most 20 mm around a tumour's deepest point instead, cut to the
tumour, whatever its size: harder, since the rest of the tumour stays in sight. The shape is repainted where it is, and
at places of healthy tissue in the same scan, drawn with seed 0, at least 20 mm from the tumour. Printed, for CT and MR:

- AUROC, tumours against healthy places, of the mean residual |X − H| inside the shape as refinement sees it (mean of
  four seeds), of the same over the mean gradient of X there, since tissue that varies much is hard to paint (the
  relative residual), and of the residual of the seeds' mean over their spread;
- at healthy places, the mean absolute error against the scan of: the mean of four seeds, one seed, one seed as
  delivered, with the scan's own texture (``diffugts.blend``), the mean of four such, biharmonic filling (scikit-image),
  the mean of the rim, and the autoencoder alone (nothing repainted: the least that is possible). The model repaints
  whole latent voxels and is blended in at the shape's surface; the simple fillings fill either that larger hole, or
  the shape alone ("from the shape's own rim");
- gradient energy there, as a share of the scan's, of each of them.

Errors are in HU for CT, and in thousandths of the scan's range for MR; all on the model's grid.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from diffugts.blend import textured
from diffugts.case import Case
from diffugts.healing import Sampling, heal_regions
from diffugts.inpaint import dilate
from diffugts.io import read_mask, read_volume

SEEDS = 4
RADIUS_MM, AWAY_MM, MARGIN_MM, LARGEST_ML = 20.0, 20.0, 6.0, 40.0
LEAST = 0.005  # of spread and of gradient: 10 HU


@dataclass(frozen=True)
class Place:
    """One repainted shape: the mean residual in it, that over the scan's gradient and over the seeds' spread.

    And at healthy places errors and energies by method.
    """

    tumour: bool
    residual: float
    relative: float
    over_spread: float
    errors: dict[str, float]
    energies: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[""], help="ids start with one of these")
    parser.add_argument("--model", default="compact")
    parser.add_argument("--places", type=int, default=4, help="healthy places per scan (default: %(default)s)")
    parser.add_argument("--pieces", action="store_true", help="repaint a ball inside each tumour, not the tumour")
    args = parser.parse_args()
    from diffugts.segmenter import Segmenter

    segmenter = Segmenter.from_pretrained(args.model)
    found: dict[str, list[Place]] = {}
    for case in json.loads(args.cases.read_text())["cases"]:
        if not case.get("tumor") or not any(case["id"].startswith(start) for start in args.only):
            continue
        volume = read_volume(args.cases.parent / next(iter(case["images"].values())))
        encoded = segmenter.encode(volume, modality=case["modality"].lower())
        truth = encoded.placement.forward(read_mask(args.cases.parent / case["tumor"], volume), "mask").astype(bool)
        shape = piece(truth, encoded.placement.spacing) if args.pieces else whole(truth, encoded.placement.spacing)
        if shape is None:
            continue
        for place in places(encoded, truth, shape, args.places):
            found.setdefault(case["modality"], []).append(place)
            kind = "tumour " if place.tumour else "healthy"
            print(case["id"], kind, f"residual {place.residual:.4f}, relative {place.relative:.2f}", flush=True)
    for modality, rows in found.items():
        report(modality, rows)


def piece(truth: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """(N, 3) voxels of a ball around the tumour's deepest point, cut to the tumour."""
    depth = ndimage.distance_transform_edt(truth, sampling=spacing)
    centre = np.array(np.unravel_index(depth.argmax(), depth.shape))
    voxels = np.argwhere(truth)
    return voxels[np.linalg.norm((voxels - centre) * spacing, axis=1) <= RADIUS_MM]


def whole(truth: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray | None:
    """(N, 3) voxels of the tumour's largest part, grown; None where the tumour is too large."""
    if truth.sum() * np.prod(spacing) / 1000 > LARGEST_ML:
        return None
    labels, _ = ndimage.label(truth)
    return np.argwhere(dilate(labels == 1 + np.bincount(labels.ravel())[1:].argmax(), spacing, MARGIN_MM))


def places(case: Case, truth: np.ndarray, shape: np.ndarray, count: int) -> Iterator[Place]:
    """The tumour and the same shape (N, 3) at healthy places."""
    image = case.intensity.forward(case.placement.forward(case.volume.array))
    spacing = case.placement.spacing
    centre = shape.mean(0).astype(int)
    offsets = shape - centre
    yield measure(case, image, marked(image.shape, shape), True)
    level = 0.35 if case.modality == "ct" else 0.15  # −300 HU; a sixth of the range
    away = ndimage.distance_transform_edt(~truth, sampling=spacing) > AWAY_MM
    tissue = ndimage.binary_opening(image > level) & away
    if case.modality == "ct" and lungs(image, truth):
        tissue = ndimage.binary_erosion((image > 0.02) & (image < 0.3), iterations=3) & away
    spots = np.argwhere(tissue)
    rng, done = np.random.default_rng(0), 0
    for _ in range(200):
        spot = spots[int(rng.integers(len(spots)))] if len(spots) else centre
        there = spot + offsets
        if ((there < 0) | (there >= image.shape)).any() or tissue[tuple(there.T)].mean() < 0.9:
            continue
        yield measure(case, image, marked(image.shape, there), False)
        done += 1
        if done == count:
            return


def lungs(image: np.ndarray, truth: np.ndarray) -> bool:
    """Whether what surrounds the tumour is lung."""
    rim = ndimage.binary_dilation(truth, iterations=6) & ~ndimage.binary_dilation(truth, iterations=2)
    return bool(np.median(image[rim]) < 0.25) and bool((image < 0.02).any())


def marked(shape: tuple[int, ...], voxels: np.ndarray) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(voxels.T)] = True
    return mask


def measure(case: Case, image: np.ndarray, mask: np.ndarray, tumour: bool) -> Place:
    """Repaint one shape under four seeds and compare."""
    import torch

    painted, seen, delivered, decoded, box = [], [], [], None, None
    for seed in range(SEEDS):
        (region,) = heal_regions(
            case.segmenter.backbone, case.encoding.latent, torch.from_numpy(mask), case.conditions, seed, Sampling()
        )
        painted.append(region.healthy.numpy())
        seen.append(region.painted.numpy())
        decoded, box = region.decoded.numpy(), region.box
        whole = image.copy()
        whole[box] = painted[-1]
        delivered.append(textured(image, whole, mask, case.placement.spacing, seed)[box])
    scan, inside = image[box], mask[box]
    residual = float(np.mean([np.abs(ndimage.gaussian_filter(decoded - h, 1.0))[inside].mean() for h in seen]))
    relative = residual / (float(np.sqrt(gradient(decoded))[inside].mean()) + LEAST)
    over_spread = np.abs(ndimage.gaussian_filter(decoded - np.mean(seen, axis=0), 1.0))[inside].mean()
    over_spread = float(over_spread / (np.std(seen, axis=0)[inside].mean() + LEAST))
    if tumour:
        return Place(True, residual, relative, over_spread, {}, {})
    mean = np.mean(painted, axis=0)
    hole = region.mask.numpy()
    answers = {
        "mean of seeds": mean,
        "one seed": painted[0],
        "one seed, with texture": delivered[0],
        "mean of seeds, with texture": np.mean(delivered, axis=0),
        "biharmonic": biharmonic(scan, hole),
        "rim mean": rim_mean(scan, hole),
        "biharmonic, from the shape's own rim": biharmonic(scan, inside),
        "rim mean, from the shape's own rim": rim_mean(scan, inside),
        "autoencoder alone": decoded,
    }
    errors = {name: float(np.abs(answer - scan)[inside].mean()) for name, answer in answers.items()}
    energy = {name: float(gradient(answer)[inside].mean()) for name, answer in {**answers, "scan": scan}.items()}
    shares = {name: value / energy["scan"] for name, value in energy.items()}
    return Place(False, residual, relative, over_spread, errors, shares)


def biharmonic(scan: np.ndarray, hole: np.ndarray) -> np.ndarray:
    from skimage.restoration import inpaint_biharmonic

    around = tuple(slice(max(s.start - 6, 0), s.stop + 6) for s in ndimage.find_objects(hole.astype(int))[0])
    filled = scan.copy()
    filled[around] = inpaint_biharmonic(scan[around], hole[around], split_into_regions=False)
    return filled


def rim_mean(scan: np.ndarray, hole: np.ndarray) -> np.ndarray:
    rim = ndimage.binary_dilation(hole, iterations=2) & ~hole
    return np.where(hole, scan[rim].mean(), scan)


def gradient(image: np.ndarray) -> np.ndarray:
    return np.sum([g**2 for g in np.gradient(image)], axis=0)


def report(modality: str, rows: list[Place]) -> None:
    from diffugts.bench.metrics import Ranking

    healthy = [row for row in rows if not row.tumour]
    tumours = np.array([row.tumour for row in rows])
    mean, relative, over = (
        Ranking.of(np.array([getattr(row, name) for row in rows]), tumours).auroc()
        for name in ("residual", "relative", "over_spread")
    )
    unit = 2000 if modality == "CT" else 1000
    print(f"{modality}: {len(rows) - len(healthy)} tumours, {len(healthy)} healthy places")
    print(f"  AUROC of the mean residual {mean:.3f}, relative {relative:.3f}, over the seeds' spread {over:.3f}")
    for name in healthy[0].errors:
        error = unit * np.mean([row.errors[name] for row in healthy])
        energy = np.median([row.energies[name] for row in healthy])
        print(f"  {name:36s} error {error:6.1f}   gradient energy {energy:.2f} of the scan's (median)")


if __name__ == "__main__":
    main()
