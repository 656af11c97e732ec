"""How good an answer is, on the scan's own grid; every convention is stated here and in results.md.

Masks are (I, J, K) bool, values (I, J, K) float32. Surfaces come from MONAI (`monai.metrics`), as its boundary
elements for surface Dice and as border voxels for HD95.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from diffugts.lesions import bounding_box

Mask = npt.NDArray[np.bool_]
Map = npt.NDArray[np.float32]
Box = tuple[slice, ...]

TOLERANCE_MM = 2.0
"""Of the normalised surface Dice."""

SIZES = ("lt2ml", "2to20ml", "gt20ml")
"""Size classes of lesions: under 2 ml, 2 to 20 ml, over 20 ml."""

MIN_LESION_ML = 0.1
"""Connected parts smaller than this are counted on neither side."""

OVERLAP = 0.1
"""The share of a lesion that makes it found, and of a detection that makes it true."""

BINS = 10
"""Of the reliability curve, equally wide."""

AROUND_MM = 20.0
"""Calibration is measured in the tumour's bounding box grown by this: far away, every method is right."""

KEPT_BITS = 22
"""Of a float's 32 when voxels are ranked: values closer than a few parts in 10 000 count as equal."""

SLAB = 2**22
"""Voxels that are ranked at a time, so that a scan of 500³ voxels needs no copy of itself."""

CONVENTIONS = (
    "No tumour in the scan and none in the mask: Dice 1, surface Dice 1, HD95 0. One of the two empty: Dice 0, "
    "surface Dice 0, HD95 the scan's diagonal.",
    "Scans without a tumour have no AUROC, AUPRC or calibration error; categories of such scans alone are left out of "
    "the macro average, except for the false-positive volume, which only they have.",
    f"Lesions and detections are 26-connected parts of at least {MIN_LESION_ML:g} ml. A lesion is found when the mask "
    f"covers {OVERLAP:.0%} of it; a detection is false when less than {OVERLAP:.0%} of it is tumour. Sensitivity is "
    "pooled over a category's lesions; false positives are per scan.",
    "AUROC and AUPRC rank every voxel of the scan by the method's own map; a map that is zero outside a candidate "
    "ranks all of the outside as equal. Thresholding methods are ranked by intensity.",
    f"Calibration (expected calibration error, {BINS} bins) is measured in the tumour's bounding box grown by "
    f"{AROUND_MM:g} mm, for methods that give a probability.",
    "Seconds are a method's own: reading and encoding are shared and not in them, and an inpainting that several "
    "methods share counts for the first of them.",
    "Intervals are 95 % percentile bootstraps over patients; a patient's scans are drawn together.",
)


@dataclass(frozen=True)
class Ranking:
    """How many other and how many tumour voxels there are at each distinct value, ascending; (B,) int64 each."""

    others: npt.NDArray[np.int64]
    tumour: npt.NDArray[np.int64]

    @classmethod
    def of(cls, values: Map, truth: Mask) -> Ranking:
        """Count by value, slab by slab. Non-negative floats order like their bits, so a bin is a prefix of these."""
        size = 1 << (KEPT_BITS - 1)  # the sign bit is never set
        total, tumour = np.zeros(size, np.int64), np.zeros(size, np.int64)
        step = max(SLAB // max(values[0].size, 1), 1)
        for start in range(0, len(values), step):
            slab, inside = values[start : start + step], truth[start : start + step]
            bits = np.maximum(np.ascontiguousarray(slab, np.float32), 0) + np.float32(0)  # no −0.0
            keys = bits.view(np.uint32) >> (32 - KEPT_BITS)
            total += np.bincount(keys.ravel(), minlength=size)
            if inside.any():
                tumour += np.bincount(keys[inside], minlength=size)
        seen = total > 0
        return cls((total - tumour)[seen], tumour[seen])

    def auroc(self) -> float | None:
        """The probability that a tumour voxel ranks above another one, ties counting half; None without either."""
        n, m = int(self.tumour.sum()), int(self.others.sum())
        if not n or not m:
            return None
        below = np.cumsum(self.others) - self.others
        return float((self.tumour * (below + 0.5 * self.others)).sum() / n / m)

    def auprc(self) -> float | None:
        """Average precision: Σ (R_n − R_{n−1}) · P_n from the highest value down; None without tumour."""
        if not self.tumour.any():
            return None
        hits, misses = np.cumsum(self.tumour[::-1]), np.cumsum(self.others[::-1])
        gain = self.tumour[::-1] / hits[-1]
        return float((gain * hits / np.maximum(hits + misses, 1)).sum())


def measure(
    mask: Mask, truth: Mask, spacing: Sequence[float], values: Map | None = None, calibrated: bool = False
) -> dict[str, Any]:
    """All metrics of one answer.

    Args:
        mask: the answer. truth: all False where the scan holds no tumour. spacing: mm along each axis.
        values: what the method ranks voxels by, at least 0; None where it has nothing of the kind.
        calibrated: whether ``values`` is a probability.

    Returns:
        Plain JSON values; None where a metric is not defined.
    """
    voxel_ml = float(np.prod(spacing)) / 1000
    ranking = Ranking.of(values, truth) if values is not None and truth.any() else None
    curve = reliability(values, truth, spacing) if values is not None and calibrated and truth.any() else None
    box = _around(mask | truth)
    here, there = mask[box], truth[box]
    overlap, hd95 = surface_distances(here, there, spacing, diagonal(mask.shape, spacing))
    return {
        "dice": dice(here, there),
        "nsd_2mm": overlap,
        "hd95_mm": hd95,
        "auroc": ranking and ranking.auroc(),
        "auprc": ranking and ranking.auprc(),
        "ece": curve and expected_calibration_error(curve),
        "mask_ml": int(mask.sum()) * voxel_ml,
        "tumour_ml": int(truth.sum()) * voxel_ml,
        "false_ml": None if truth.any() else int(mask.sum()) * voxel_ml,
        "lesions": lesion_counts(here, there, voxel_ml),
        "reliability": curve,
    }


def dice(a: Mask, b: Mask) -> float:
    """2 |a ∩ b| / (|a| + |b|); 1 where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Of the whole scan, mm: the HD95 of an answer that is empty where the truth is not, or the reverse."""
    return float(np.linalg.norm(np.asarray(shape) * np.asarray(spacing)))


def surface_distances(mask: Mask, truth: Mask, spacing: Sequence[float], worst: float) -> tuple[float, float]:
    """Normalised surface Dice at 2 mm and HD95 in mm.

    Both empty: (1, 0). One empty: (0, ``worst``). A mask's faces at the border of the array count as surface.
    """
    if not mask.any() or not truth.any():
        return (1.0, 0.0) if mask.any() == truth.any() else (0.0, worst)
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    mm = [float(side) for side in spacing]
    pair = [torch.from_numpy(np.pad(side, 1))[None, None] for side in (mask, truth)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI calls its own helper in a way that it deprecates
        overlap = compute_surface_dice(*pair, [TOLERANCE_MM], include_background=True, spacing=mm, use_subvoxels=True)
        distance = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=mm)
    return float(overlap), float(distance)


def lesion_counts(mask: Mask, truth: Mask, voxel_ml: float) -> dict[str, dict[str, int]]:
    """Lesions, those of them that were found, and false detections, by size: ``{"all" | "found" | "false": …}``."""
    counts = {what: dict.fromkeys(SIZES, 0) for what in ("all", "found", "false")}
    for ml, share in _parts(truth, mask, voxel_ml):
        counts["all"][size_class(ml)] += 1
        counts["found"][size_class(ml)] += share >= OVERLAP
    for ml, share in _parts(mask, truth, voxel_ml):
        counts["false"][size_class(ml)] += share < OVERLAP
    return counts


def size_class(ml: float) -> str:
    """The name of a volume's size class; 2 and 20 ml themselves are in the middle one."""
    return SIZES[0] if ml < 2 else SIZES[2] if ml > 20 else SIZES[1]


def _parts(mask: Mask, other: Mask, voxel_ml: float) -> list[tuple[float, float]]:
    """(volume in ml, share of it inside ``other``) of each connected part that is large enough."""
    from scipy import ndimage

    labels, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    shared = np.bincount(labels[other], minlength=count + 1)[1:]
    found = [(int(n) * voxel_ml, int(k) / int(n)) for n, k in zip(sizes, shared, strict=True)]
    return [part for part in found if part[0] >= MIN_LESION_ML]


def reliability(probability: Map, truth: Mask, spacing: Sequence[float]) -> dict[str, list[float]]:
    """Voxels, mean probability and share of tumour by probability bin, around the tumour: (BINS,) lists."""
    box = _around(truth, [int(np.ceil(AROUND_MM / mm)) for mm in spacing])
    p, y = probability[box].ravel(), truth[box].ravel()
    index = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(index, minlength=BINS)
    some = np.maximum(count, 1)
    confidence = np.bincount(index, weights=p, minlength=BINS) / some
    share = np.bincount(index, weights=y, minlength=BINS) / some
    return {"voxels": count.tolist(), "probability": confidence.tolist(), "tumour": share.tolist()}


def expected_calibration_error(curve: dict[str, list[float]]) -> float:
    """Σ over bins of |mean probability − share of tumour|, weighted by voxels."""
    voxels, confidence, share = (np.asarray(curve[key], float) for key in ("voxels", "probability", "tumour"))
    return float((voxels * np.abs(confidence - share)).sum() / max(voxels.sum(), 1))


def _around(mask: Mask, margin: Sequence[int] = (0, 0, 0)) -> Box:
    """The bounding box of a mask with a margin in voxels; one voxel where the mask is empty."""
    box = bounding_box(mask) or (slice(0, 1),) * mask.ndim
    return tuple(slice(max(side.start - m, 0), side.stop + m) for side, m in zip(box, margin, strict=True))
