"""Real whole-head label maps as anatomy: random contrast, warp, flip, skull strip, planted brain tumours."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from diffugts.errors import InputError
from diffugts.synth.acquire import acquire_ct, acquire_mr, draw_scanner
from diffugts.synth.field import Axes, noise
from diffugts.synth.labels import L
from diffugts.synth.lesion import Lesion, place, plant
from diffugts.synth.palette import ct_palette, mr_palette
from diffugts.synth.patient import MODALITIES, Sample, inside_skull

_TISSUES: dict[str, tuple[int, ...]] = {
    "white matter": (2, 25, 41, 57, 77, 78, 79, 85, 251, 252, 253, 254, 255),
    "grey matter": (3, 42),
    "ventricle": (4, 5, 14, 15, 31, 43, 44, 63, 72),
    "cerebellar white": (7, 46),
    "cerebellar grey": (8, 47),
    "deep grey": (10, 11, 12, 13, 17, 18, 26, 28, 49, 50, 51, 52, 53, 54, 58, 60, 80, 136, 137, 163, 164),
    "brain stem": (16,),
    "csf": (24, 257),
    "artery": (30, 62, 502),
    "eye": (506,),
    "muscle": (507, 508),
    "mucosa": (509,),
    "scalp": (511,),
    "spinal cord": (512, 530),
    "vein": (514,),
    "cortical bone": (515,),
    "marrow": (516,),
}
"""Tissue -> FreeSurfer values, and the 5xx values of whole-head atlases."""
_MIXED = 507  # "other tissue": muscle and fat together


def tissues(labels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """FreeSurfer-like values to this package's labels; unknown values become background."""
    table = np.zeros(1024, dtype=np.uint8)
    for name, numbers in _TISSUES.items():
        table[list(numbers)] = L[name]
    out: npt.NDArray[np.uint8] = table[np.clip(np.asarray(labels).astype(np.int64), 0, 1023)]
    return out


def render_labelmap(
    labels: npt.NDArray[Any],
    spacing: tuple[float, float, float],
    modality: str = "mr",
    rng: np.random.Generator | int = 0,
    lesions: int = 0,
    *,
    out_spacing: tuple[float, float, float] = (2.0, 2.0, 2.0),
    contrast: str | None = None,
    strip: bool | None = None,
    deform: bool = True,
) -> Sample:
    """Image a whole-head label map.

    The generator is split before use, so two equal generators give the same head, contrast and noise with and
    without `lesions`: the healthy twin of a sample.

    Args:
        labels: (D, H, W) integers, FreeSurfer-like values, RAS voxel axes.
        spacing: its voxel size, mm.
        modality: "mr" or "ct".
        rng: generator, or a seed for one.
        lesions: tumours to plant in the brain.
        out_spacing: voxel size of the sample, mm.
        contrast: phase or sequence, as in `Patient.render`; None draws one.
        strip: blank everything but brain and fluid; None draws it for MR.
        deform: random flip from left to right and smooth elastic warp.

    Returns:
        Sample whose field of view is that of the label map; origin 0.

    Raises:
        InputError: labels that are not 3D, an unknown modality or contrast.
    """
    if labels.ndim != 3:
        raise InputError(f"a label map has 3 axes, this one has shape {labels.shape}: give one volume")
    if modality not in MODALITIES:
        raise InputError(f"unknown modality {modality!r}: choose one of {', '.join(MODALITIES)}")
    rng = np.random.default_rng(rng) if isinstance(rng, int) else rng
    look, bend, grow, tones, grain = rng.spawn(5)
    palette = ct_palette(look, contrast) if modality == "ct" else mr_palette(look, contrast)
    scanner = draw_scanner(look, modality)
    stripped = bool(look.random() < 0.5) and modality == "mr" if strip is None else strip

    tissue = tissues(labels)
    axes_in = tuple(s * np.arange(n) for s, n in zip(spacing, labels.shape, strict=True))
    tissue[(np.asarray(labels) == _MIXED) & (noise(axes_in, 6.0, int(bend.integers(2**31))) > -0.2)] = L["fat"]
    ideal = palette.mean[tissue]
    ideal = ndimage.gaussian_filter(
        ideal, [0.3 * o / s for o, s in zip(out_spacing, spacing, strict=True)], truncate=2.5
    )

    x, y, z = (
        o * np.arange(max(int(n * s / o), 1), dtype=np.float64)
        for n, s, o in zip(labels.shape, spacing, out_spacing, strict=True)
    )
    axes = (x, y, z)
    at = _coordinates(axes, spacing, labels.shape, bend, deform)
    image = ndimage.map_coordinates(ideal, at, order=1, mode="constant", cval=float(palette.mean[0]))
    drawn: npt.NDArray[np.uint8] = ndimage.map_coordinates(tissue, at, order=0, mode="constant", cval=0)
    texture = int(bend.integers(2**31))
    image += palette.fine[drawn] * noise(axes, 2.2, texture) + palette.coarse[drawn] * noise(axes, 7.0, texture + 1)

    truth = np.zeros(drawn.shape, dtype=np.uint8)
    planted: tuple[Lesion, ...] = ()
    for draw in tones.spawn(lesions):
        lesion = place(grow, "brain", drawn, axes, planted)
        if lesion is not None:
            planted += (lesion,)
            plant(lesion, len(planted), axes, image, drawn, truth, palette, draw)
    scan = acquire_ct if modality == "ct" else acquire_mr
    image = scan(image, axes, out_spacing, scanner, grain)
    if stripped:
        image = np.where(inside_skull(drawn), image, np.float32(-1000 if modality == "ct" else 0))
    return Sample(image.astype(np.float32), drawn, truth, out_spacing, (0.0, 0.0, 0.0), palette.name)


def _coordinates(
    axes: Axes,
    spacing: tuple[float, float, float],
    shape: tuple[int, ...],
    rng: np.random.Generator,
    deform: bool,
) -> npt.NDArray[np.float32]:
    """(3, D, H, W) voxel of the label map that each voxel of the sample shows."""
    seed = int(rng.integers(2**31))
    flip, grow = bool(rng.random() < 0.5), np.exp(rng.normal(0, 0.05, 3))
    out = []
    for k, (a, s, n) in enumerate(zip(axes, spacing, shape, strict=True)):
        line = (a / s).astype(np.float32)
        if deform:
            middle = 0.5 * (n - 1)
            line = ((line - middle) * np.float32(grow[k]) + middle).astype(np.float32)
            line = np.float32(n - 1) - line if flip and k == 0 else line
        full = np.broadcast_to(line.reshape([-1 if i == k else 1 for i in range(3)]), [len(b) for b in axes])
        if deform:
            full = full + (np.float32(3) * noise(axes, 45.0, seed + k) + noise(axes, 18.0, seed + 3 + k)) / np.float32(
                s
            )
        out.append(full)
    return np.stack(out)
