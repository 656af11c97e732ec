"""Procedural patients: drawn once from a seed, then rendered at any place, spacing and modality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from diffugts.errors import InputError
from diffugts.synth.acquire import acquire_ct, acquire_mr, draw_scanner, margin_mm
from diffugts.synth.field import F32, Axes, Canvas, noise
from diffugts.synth.labels import ORGANS, values
from diffugts.synth.lesion import PLANTABLE, Lesion, place, plant, push_aside
from diffugts.synth.palette import Palette, ct_palette, mr_palette

MODALITIES = ("ct", "mr")
_WARPS = {
    "torso": ((75.0, 5.0), (28.0, 1.3)),
    "limb": ((75.0, 4.0), (28.0, 1.5)),
    "head": ((60.0, 2.2), (25.0, 0.8)),
}
"""Lattice distance and amplitude (mm) of the smooth displacements that make each patient's shape his own."""


class Anatomy(Protocol):
    """What a kind of patient provides: its box, where its organs are, and how it is drawn."""

    extent: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
    anchors: dict[str, list[npt.NDArray[np.float64]]]

    def paint(self, c: Canvas) -> None:
        """Draw the healthy anatomy."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One rendered window, RAS voxel axes.

    Attributes:
        image: (D, H, W) float32, HU for CT, arbitrary non-negative units for MR.
        labels: (D, H, W) uint8 healthy tissue, names in `synth.LABELS`.
        lesion: (D, H, W) uint8, 0 or 1 + index of the planted lesion.
        spacing: voxel size, mm.
        origin: world position of the centre of voxel (0, 0, 0), mm.
        contrast: contrast phase (CT) or sequence (MR).
    """

    image: F32
    labels: npt.NDArray[np.uint8]
    lesion: npt.NDArray[np.uint8]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    contrast: str


@dataclass(frozen=True, eq=False)
class Patient:
    """One procedural patient; make it with `sample_patient`. World frame: RAS, mm."""

    seed: int
    kind: str
    anatomy: Anatomy
    scale: npt.NDArray[np.float64]
    stripped: bool
    lesions: tuple[Lesion, ...]
    extent: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
    centres: dict[str, npt.NDArray[np.float64]]

    def render(
        self,
        shape: tuple[int, int, int] = (96, 96, 96),
        spacing: tuple[float, float, float] = (2.0, 2.0, 2.0),
        origin: tuple[float, float, float] | None = None,
        modality: str = "ct",
        seed: int = 0,
        lesions: bool = True,
        contrast: str | None = None,
    ) -> Sample:
        """Image a window of the patient.

        Args:
            shape: voxels (D, H, W) along x left to right, y posterior to anterior, z inferior to superior.
            spacing: voxel size, mm.
            origin: world position of the centre of voxel (0, 0, 0), mm; None centres the
                window on the patient.
            modality: "ct" or "mr".
            seed: contrast, scanner and its noise. Anatomy does not depend on it.
            lesions: False renders the very same scan without the planted lesions.
            contrast: a phase ("none", "arterial", "portal", "late") or a sequence ("t1", "t1c", "t2",
                "flair", "stir", "random"); None draws one.

        Raises:
            InputError: an unknown modality or contrast, an empty shape, a spacing that is not positive.
        """
        if modality not in MODALITIES:
            raise InputError(f"unknown modality {modality!r}: choose one of {', '.join(MODALITIES)}")
        if min(shape) < 1 or min(spacing) <= 0:
            raise InputError(f"cannot render shape {shape} at spacing {spacing} mm: both must be positive")
        rng = np.random.default_rng([self.seed, seed, MODALITIES.index(modality)])
        palette = ct_palette(rng, contrast) if modality == "ct" else mr_palette(rng, contrast)
        scanner = draw_scanner(rng, modality)
        tones, grain = rng.spawn(2)
        if origin is None:
            middle = 0.5 * (self.extent[0] + self.extent[1])
            start = middle - 0.5 * (np.array(shape) - 1) * np.array(spacing)
            origin = (float(start[0]), float(start[1]), float(start[2]))
        pad = [int(np.ceil(margin_mm(scanner) / s)) for s in spacing]
        x, y, z = (
            o + s * np.arange(-p, n + p, dtype=np.float64)
            for o, s, n, p in zip(origin, spacing, shape, pad, strict=True)
        )
        axes = (x, y, z)
        chosen = self.lesions if lesions else ()
        canvas = draw(self.anatomy, self.kind, self.seed, self.scale, axes, palette, chosen)
        truth = np.zeros(canvas.labels.shape, dtype=np.uint8)
        for i, (lesion, tone) in enumerate(zip(self.lesions, tones.spawn(len(self.lesions)), strict=True)):
            if lesions:
                plant(lesion, i + 1, axes, canvas.image, canvas.labels, truth, palette, tone)
        crop = tuple(slice(p, p + n) for p, n in zip(pad, shape, strict=True))
        acquire = acquire_ct if modality == "ct" else acquire_mr
        image = acquire(canvas.image, axes, spacing, scanner, grain)[crop]
        labels = canvas.labels[crop]
        if self.stripped and modality == "mr":
            image = np.where(inside_skull(labels), image, np.float32(0))
        return Sample(
            np.ascontiguousarray(image, dtype=np.float32), np.ascontiguousarray(labels),
            np.ascontiguousarray(truth[crop]), spacing, origin, palette.name,
        )  # fmt: skip


def draw(
    anatomy: Anatomy,
    kind: str,
    seed: int,
    scale: npt.NDArray[np.float64],
    axes: Axes,
    palette: Palette,
    lesions: tuple[Lesion, ...] = (),
) -> Canvas:
    """Healthy anatomy on a grid; lesions only push it aside here."""
    warp = []
    for k in range(3):
        line = (axes[k] / scale[k]).astype(np.float32).reshape([-1 if i == k else 1 for i in range(3)])
        bend = sum(np.float32(a) * noise(axes, s, seed * 17 + 5 * k + i) for i, (s, a) in enumerate(_WARPS[kind]))
        warp.append(np.asarray(line + bend, dtype=np.float32))
    slack = 3.2 * sum(a for _, a in _WARPS[kind])
    slack += max((le.push * le.radius_mm * max(le.stretch) for le in lesions), default=0.0)
    edge = float(np.mean([(a[1] - a[0]) / s if len(a) > 1 else 1.0 for a, s in zip(axes, scale, strict=True)]))
    canvas = Canvas(
        axes, scale, warp[0], warp[1], warp[2], slack, edge, seed, palette.mean, palette.fine, palette.coarse
    )
    for lesion in lesions:
        push_aside(lesion, canvas)
    anatomy.paint(canvas)
    return canvas


def inside_skull(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Where a skull-stripped image keeps its signal: brain and the fluid around and in it."""
    inside: npt.NDArray[np.bool_] = np.isin(labels, values((*ORGANS["brain"], "csf", "ventricle")))
    return inside


def _anatomies() -> dict[str, type]:
    from diffugts.synth.head import Head
    from diffugts.synth.limb import Limb
    from diffugts.synth.torso import Torso

    return {"torso": Torso, "limb": Limb, "head": Head}


KINDS = ("torso", "limb", "head")
_SPREAD = {"torso": 0.07, "limb": 0.12, "head": 0.05}


def sample_patient(seed: int, kind: str = "torso", lesions: int = 0, organ: str | None = None) -> Patient:
    """Draw a patient.

    Args:
        seed: which patient; the same seed gives the same anatomy and lesions, bit for bit.
        kind: "torso", "limb" or "head".
        lesions: how many tumours to plant (as many as fit without overlap).
        organ: where to plant them; None draws an organ for each.

    Raises:
        InputError: an unknown kind, or an organ that this kind of patient does not have.
    """
    kinds = _anatomies()
    if kind not in kinds:
        raise InputError(f"unknown kind of patient {kind!r}: choose one of {', '.join(KINDS)}")
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    body_rng, size_rng, lesion_rng = rng.spawn(3)
    anatomy: Anatomy = kinds[kind](body_rng)
    scale = np.exp(size_rng.normal(0, 0.6 * _SPREAD[kind])) * np.exp(size_rng.normal(0, 0.5 * _SPREAD[kind], 3))
    stripped = kind == "head" and bool(size_rng.random() < 0.5)
    warp_seed = int(size_rng.integers(2**31))
    organs = [name for name in anatomy.anchors if name in PLANTABLE]
    if organ is not None and organ not in organs:
        raise InputError(f"cannot plant a tumour in {organ!r} of a {kind}: choose one of {', '.join(organs)}")
    planted: tuple[Lesion, ...] = ()
    for _ in range(lesions):
        for _ in range(4):
            where = organ or organs[int(lesion_rng.integers(len(organs)))]
            found = _plan(anatomy, kind, warp_seed, scale, where, planted, lesion_rng)
            if found is not None:
                planted += (found,)
                break
    centres = {n: spots[int(size_rng.integers(len(spots)))] * scale for n, spots in anatomy.anchors.items()}
    extent = (anatomy.extent[0] * scale, anatomy.extent[1] * scale)
    return Patient(warp_seed, kind, anatomy, scale, stripped, planted, extent, centres)


def _plan(
    anatomy: Anatomy,
    kind: str,
    seed: int,
    scale: npt.NDArray[np.float64],
    organ: str,
    taken: tuple[Lesion, ...],
    rng: np.random.Generator,
) -> Lesion | None:
    """Find a place for a tumour on a coarse drawing around one of the organ's anchors."""
    spots = anatomy.anchors[organ]
    spot = spots[int(rng.integers(len(spots)))] * scale
    step = 3.0 if organ in ("adrenal", "colon", "stomach", "pancreas", "bladder") else 4.5
    x, y, z = (s + step * (np.arange(26) - 12.5) for s in spot)
    canvas = draw(anatomy, kind, seed, scale, (x, y, z), ct_palette(np.random.default_rng(0), "none"))
    return place(rng, organ, canvas.labels, (x, y, z), taken)
