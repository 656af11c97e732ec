"""Planted tumours in real scans: real texture around a lesion whose truth is known.

Real scans come without organ labels. Intensity alone tells lung, fat, muscle-like soft tissue and brain apart, and the
liver is the deepest even tissue on the patient's right; that is enough to know where a lesion may grow.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from diffugts.search.liver import even_tissue
from diffugts.synth.field import F32
from diffugts.synth.labels import L
from diffugts.synth.lesion import Lesion, place, plant
from diffugts.synth.palette import Palette, ct_palette, mr_palette

SEQUENCES = {"mr-t1": "t1", "mr-flair": "flair", "mr-t2": "t2"}
LUNG_VOXELS = 15_000
"""Fewer voxels of lung-like density than this, 120 ml at 2 mm, are gas."""
LIVER_ML = 100.0
"""Less even tissue than this on the right is a muscle rather than a liver."""


def graft(
    image: F32, known: npt.NDArray[np.bool_], spacing: tuple[float, float, float], modality: str, anatomy: str,
    rng: np.random.Generator, labels: npt.NDArray[np.uint8] | None = None,
) -> tuple[F32, npt.NDArray[np.bool_], str]:  # fmt: skip
    """Plant one tumour into a real scan.

    Args:
        image: (D, H, W) float32, HU for CT, any non-negative unit for MR; RAS axes.
        known: (D, H, W) bool, where a lesion may be planted: tissue that is defined and not a tumour already.
        spacing: mm. modality: "ct" or an "mr…" code. anatomy: "head" plants into the brain on MR.
        rng: of the lesion and its tones. labels: the scan's ``real_tissues``, where they are known already.

    Returns:
        The scan with the lesion, the lesion's truth, and its organ: "lung", "liver", "brain", "soft tissue" on limbs,
        and "" where the soft tissue may be any organ. Truth is empty when nothing could be planted.
    """
    labels = real_tissues(image, spacing, modality, anatomy) if labels is None else labels
    if modality == "ct":
        scale = 1.0
        organ = _ct_organ(labels, rng)
        palette = _ct_palette(image, labels, rng)
    else:
        organ = "brain" if anatomy == "head" else "soft tissue"
        palette = mr_palette(rng, SEQUENCES.get(modality))
        scale = _mr_scale(image, labels, palette, organ)
    truth = np.zeros(image.shape, np.uint8)
    axes = tuple(s * np.arange(n, dtype=np.float64) for s, n in zip(spacing, image.shape, strict=True))
    lesion = _placed(rng, organ, np.where(known, labels, 0), axes)
    planted = image * np.float32(scale)
    if lesion is not None:
        grain = _grain(planted, labels, rng)
        plant(lesion, 1, axes, planted, labels, truth, palette, rng)  # type: ignore[arg-type]
        planted += np.where(truth > 0, grain, np.float32(0))  # a lesion without the scanner's noise would stand out
    named = organ if organ != "soft tissue" or anatomy == "limb" else ""
    return planted / np.float32(scale), truth > 0, named


def real_tissues(image: F32, spacing: tuple[float, float, float], modality: str, anatomy: str) -> npt.NDArray[np.uint8]:
    """What intensity tells of a scan's tissues, as labels of ``synth.LABELS``; arguments as of ``graft``."""
    if modality != "ct":
        return mr_tissues(image, "brain" if anatomy == "head" else "soft tissue")
    labels = ct_tissues(image)
    if anatomy == "torso":
        labels[find_liver(image, spacing)] = L["liver"]
    return labels


def ct_tissues(hu: F32) -> npt.NDArray[np.uint8]:
    """Lung, fat, muscle-like and bone labels of a CT by its HU."""
    smooth = ndimage.gaussian_filter(hu, 0.7)
    body = ndimage.binary_fill_holes(ndimage.binary_opening(smooth > -300))
    body = np.stack([ndimage.binary_fill_holes(body[..., k]) for k in range(body.shape[2])], axis=2)
    labels = np.zeros(hu.shape, np.uint8)
    for name, low, high in (
        ("lung", -960, -450),
        ("fat", -250, -25),
        ("muscle", -25, 200),
        ("cortical bone", 200, 4000),
    ):
        labels[body & (smooth > low) & (smooth <= high)] = L[name]
    parts, _ = ndimage.label(labels == L["lung"])
    labels[(np.bincount(parts.ravel()) < LUNG_VOXELS)[parts] & (parts > 0)] = 0  # gas in the bowel
    return labels


def find_liver(hu: F32, spacing: tuple[float, float, float]) -> npt.NDArray[np.bool_]:
    """The liver of a torso CT, roughly: what lies around the deepest point of even soft tissue on the right.

    Empty where that is no larger than a muscle. Checked by eye on nine scans, with and without
    contrast: one liver took the heart along.
    """
    smooth, even = even_tissue(hu, spacing)
    depth = ndimage.distance_transform_edt(even, sampling=spacing)
    right = depth[hu.shape[0] // 2 :]
    deepest = float(right.max(initial=0.0))
    found = np.zeros(hu.shape, np.bool_)
    if deepest == 0:
        return found
    top = np.unravel_index(right.argmax(), right.shape)
    shrunk = max(0.35 * deepest, 10.0)
    parts, _ = ndimage.label(depth > shrunk)
    core = parts == parts[hu.shape[0] // 2 + int(top[0]), int(top[1]), int(top[2])]
    if not depth[core].max(initial=0.0) > shrunk:
        return found
    near = ndimage.binary_opening(np.abs(smooth - np.median(hu[core])) < 35) | core
    grown = ndimage.binary_dilation(core, iterations=int(shrunk / max(spacing)) + 1, mask=near)
    return grown if grown.sum() * float(np.prod(spacing)) / 1000 > LIVER_ML else found


def _ct_organ(labels: npt.NDArray[np.uint8], rng: np.random.Generator) -> str:
    """Which of the tissues that are there the lesion grows in."""
    draw = rng.random()
    if (labels == L["liver"]).any() and draw < 0.4:
        return "liver"
    return "lung" if (labels == L["lung"]).mean() > 0.02 and draw < 0.75 else "soft tissue"


def _ct_palette(image: F32, labels: npt.NDArray[np.uint8], rng: np.random.Generator) -> Palette:
    """Tones of a contrast phase that the scan may have, with its own liver and muscle in place of usual ones."""
    tones = {name: float(np.median(image[labels == L[name]])) for name in ("muscle", "liver") if L[name] in labels}
    bright = tones.get("liver", tones.get("muscle", 60.0) + 20) > 80
    phases = ("portal", "late", "arterial") if bright else ("none", "none", "arterial")
    palette = ct_palette(rng, str(rng.choice(phases)))
    mean = palette.mean.copy()
    for name, tone in tones.items():
        mean[L[name]] = tone
    return replace(palette, mean=mean)


def _grain(image: F32, labels: npt.NDArray[np.uint8], rng: np.random.Generator) -> F32:
    """Noise like the scan's own, (D, H, W): about as strong as what is left of its tissue once smoothed."""
    rest = np.abs(image - ndimage.gaussian_filter(image, 1.0))
    counts = np.bincount(labels.ravel(), minlength=2)
    deep = ndimage.binary_erosion(labels == 1 + int(counts[1:].argmax()), iterations=2)  # edges are no noise
    wanted = rng.uniform(0.6, 1.4) * float(np.median(rest[deep])) if deep.any() else 0.0
    noise = ndimage.gaussian_filter(rng.normal(size=image.shape).astype(np.float32), 0.5)
    left = float((noise - ndimage.gaussian_filter(noise, 1.0)).std())
    result: F32 = noise * np.float32(wanted / max(left, 1e-6))
    return result


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
