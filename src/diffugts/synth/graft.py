"""Planted tumours in real scans: real texture around a lesion whose truth is known.

Real scans without organ labels only tell lung, fat, muscle-like soft tissue and brain apart, by intensity; that is
enough to know where a lesion may grow.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from diffugts.synth.field import F32
from diffugts.synth.labels import L
from diffugts.synth.lesion import Lesion, place, plant
from diffugts.synth.palette import Palette, ct_palette, mr_palette

SEQUENCES = {"mr-t1": "t1", "mr-flair": "flair", "mr-t2": "t2"}


def graft(
    image: F32, known: npt.NDArray[np.bool_], spacing: tuple[float, float, float], modality: str, anatomy: str,
    rng: np.random.Generator,
) -> tuple[F32, npt.NDArray[np.bool_], str]:  # fmt: skip
    """Plant one tumour into a real scan.

    Args:
        image: (D, H, W) float32, HU for CT, any non-negative unit for MR; RAS axes.
        known: (D, H, W) bool, where a lesion may be planted: tissue that is defined and not a tumour already.
        spacing: mm. modality: "ct" or an "mr…" code. anatomy: "head" plants into the brain on MR.
        rng: of the lesion and its tones.

    Returns:
        The scan with the lesion, the lesion's truth, and its organ: "lung", "brain", "soft tissue" on limbs, and
        "" where the soft tissue may be any organ. Truth is empty when nothing could be planted.
    """
    if modality == "ct":
        labels, palette, scale = ct_tissues(image), ct_palette(rng), 1.0
        lungs = float((labels == L["lung"]).mean())
        organ = "lung" if lungs > 0.02 and rng.random() < 0.6 else "soft tissue"
    else:
        organ = "brain" if anatomy == "head" else "soft tissue"
        labels = mr_tissues(image, organ)
        palette = mr_palette(rng, SEQUENCES.get(modality))
        scale = _mr_scale(image, labels, palette, organ)
    truth = np.zeros(image.shape, np.uint8)
    axes = tuple(s * np.arange(n, dtype=np.float64) for s, n in zip(spacing, image.shape, strict=True))
    lesion = _placed(rng, organ, np.where(known, labels, 0), axes)
    planted = image * np.float32(scale)
    if lesion is not None:
        plant(lesion, 1, axes, planted, labels, truth, palette, rng)  # type: ignore[arg-type]
    named = organ if organ != "soft tissue" or anatomy == "limb" else ""
    return planted / np.float32(scale), truth > 0, named


def ct_tissues(hu: F32) -> npt.NDArray[np.uint8]:
    """Lung, fat, muscle-like and bone labels of a CT by its HU."""
    smooth = ndimage.gaussian_filter(hu, 0.7)
    body = ndimage.binary_fill_holes(ndimage.binary_opening(smooth > -300))
    body = np.stack([ndimage.binary_fill_holes(body[..., k]) for k in range(body.shape[2])], axis=2)
    labels = np.zeros(hu.shape, np.uint8)
    for name, low, high in (
        ("lung", -1100, -450),
        ("fat", -250, -25),
        ("muscle", -25, 200),
        ("cortical bone", 200, 4000),
    ):
        labels[body & (smooth > low) & (smooth <= high)] = L[name]
    return labels


def mr_tissues(image: F32, organ: str) -> npt.NDArray[np.uint8]:
    """One foreground label of an MR scan, away from its rim, so that a lesion keeps off skin and skull."""
    level = np.percentile(image[image > 0], 35) if (image > 0).any() else 1.0
    body = ndimage.binary_opening(ndimage.gaussian_filter(image, 1.0) > 0.6 * level, iterations=2)
    depth = ndimage.distance_transform_edt(ndimage.binary_fill_holes(body))
    inside = depth > (6 if organ == "brain" else 3)
    return np.where(inside, L["white matter" if organ == "brain" else "muscle"], 0).astype(np.uint8)


def _mr_scale(image: F32, labels: npt.NDArray[np.uint8], palette: Palette, organ: str) -> float:
    """Factor that brings the scan's tissue to the palette's tone, so that planted tones fit it."""
    tissue = image[labels > 0]
    tone = float(palette.mean[L["white matter" if organ == "brain" else "muscle"]])
    return max(tone, 0.05) / max(float(np.median(tissue)), 1e-3) if tissue.size else 1.0


def _placed(
    rng: np.random.Generator,
    organ: str,
    labels: npt.NDArray[np.uint8],
    axes: tuple[npt.NDArray[np.float64], ...],
) -> Lesion | None:
    return place(rng, organ, labels.astype(np.uint8), axes, ())  # type: ignore[arg-type]
