"""Planted tumours: irregular solids with texture, core and rim, drawn over the anatomy of an organ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from diffugts.synth.field import F32, Axes, Box, Canvas, Vec, noise, rotation
from diffugts.synth.labels import ORGANS, L, values
from diffugts.synth.palette import Palette


@dataclass(frozen=True)
class Lesion:
    """One planted tumour, in world mm.

    `radius_mm` is the radius of the sphere of about its volume; `kind` says how it grows (solid, ground
    glass, part-solid, lytic, sclerotic, fatty, glioma). The other fields fix its shape, so that every window
    shows the same.
    """

    organ: str
    kind: str
    centre_mm: Vec
    radius_mm: float
    stretch: Vec
    turn: tuple[Vec, Vec, Vec]
    rough: float
    lobes: tuple[tuple[float, float, float, float], ...]
    spikes: tuple[Vec, ...]
    softness_mm: float
    core: float
    rim: float
    oedema: float
    push: float
    calcified: bool
    seed: int

    @property
    def reach_mm(self) -> float:
        """Radius of a ball that holds all of it."""
        lobes = max((np.linalg.norm(v[:3]) + v[3] for v in self.lobes), default=1.0)
        size = self.radius_mm * max(max(self.stretch), float(lobes) * max(self.stretch)) * (1 + 0.5 * self.rough)
        return float(size * (1.9 if self.spikes else 1.25) + self.softness_mm + 2 * self.oedema * self.radius_mm + 2)


@dataclass(frozen=True)
class _Growth:
    """How tumours of an organ look: radius range (mm), kinds, tissues they may replace, habits."""

    radius: tuple[float, float]
    kinds: tuple[str, ...]
    into: tuple[str, ...]
    surface: float = 0.0  # how often they sit at the edge of the organ
    spiculated: float = 0.0
    push: float = 0.0


_FATTY = ("visceral fat", "vein", "lymph node")
_GUT = ("gas", "stool", "bowel fluid", "bowel wall", "colon wall", "stomach wall", "visceral fat")
_GROWTH: dict[str, _Growth] = {
    "lung": _Growth(
        (3.5, 45),
        ("solid", "solid", "solid", "part-solid", "ground glass"),
        ("lung", "lung vessel", "airway wall", "airway"),
        0.45,
        0.4,
    ),
    "liver": _Growth((4, 36), ("solid",), ("liver", "liver vessel"), 0.25),
    "kidney": _Growth((6, 40), ("solid",), (*ORGANS["kidney"], *_FATTY), 0.8),
    "spleen": _Growth((5, 25), ("solid",), ("spleen",), 0.2),
    "pancreas": _Growth((6, 24), ("solid",), ("pancreas", "visceral fat", "bowel wall", "bowel fluid"), 0.2, 0.15),
    "colon": _Growth((8, 28), ("solid",), _GUT, 0.0, 0.1),
    "stomach": _Growth((8, 28), ("solid",), _GUT),
    "adrenal": _Growth((7, 30), ("solid",), ("adrenal", "visceral fat", "vein", "muscle", "kidney cortex", "spleen")),
    "bladder": _Growth((5, 24), ("solid",), ("bladder", "muscle", "visceral fat"), 1.0),
    "breast": _Growth((5, 25), ("solid",), ("breast", "fat"), 0.0, 0.5),
    "bone": _Growth((5, 30), ("lytic", "lytic", "sclerotic"), ("cortical bone", "marrow", "cartilage", "muscle")),
    "soft tissue": _Growth(
        (12, 70), ("solid", "solid", "solid", "fatty"), ("muscle", "fat", "fascia", "vein"), 0.3, 0.0, 0.5
    ),
    "brain": _Growth((9, 34), ("glioma",), (*ORGANS["brain"], "csf"), 0.0, 0.0, 0.5),
}
PLANTABLE = tuple(_GROWTH)


def draw_lesion(rng: np.random.Generator, organ: str, centre: Vec) -> Lesion:
    """A random tumour of an organ at a world position."""
    g = _GROWTH[organ]
    low, high = np.log(g.radius)
    radius = float(np.exp(low + (high - low) * rng.random() ** 0.6))  # tumours that people ask about are rarely tiny
    stretch = np.exp(rng.normal(0, 0.18, 3))
    stretch /= stretch.prod() ** (1 / 3)
    m = rotation(rng, 180)
    style = rng.random()
    lobes = []
    if style < 0.45:
        for _ in range(int(rng.integers(2, 6))):
            v = rng.normal(size=3)
            v *= rng.uniform(0.45, 0.8) / np.linalg.norm(v)
            lobes.append((float(v[0]), float(v[1]), float(v[2]), float(rng.uniform(0.35, 0.65))))
    spikes = []
    if rng.random() < g.spiculated:
        for _ in range(int(rng.integers(6, 16))):
            v = rng.normal(size=3)
            spikes.append(tuple(float(a) for a in v / np.linalg.norm(v)))
    kind = str(rng.choice(g.kinds))
    big = min(radius / 25, 1.0)
    glioma = organ == "brain"
    return Lesion(
        organ=organ,
        kind=kind,
        centre_mm=(float(centre[0]), float(centre[1]), float(centre[2])),
        radius_mm=radius,
        stretch=(float(stretch[0]), float(stretch[1]), float(stretch[2])),
        turn=tuple(tuple(float(v) for v in row) for row in m),  # type: ignore[arg-type]
        rough=float(rng.uniform(0.15, 1.0)) * (1.3 if glioma else 1.0),
        lobes=tuple(lobes),
        spikes=tuple(spikes),  # type: ignore[arg-type]
        softness_mm=float(rng.choice([0.5, 1.5, 3.5], p=[0.5, 0.35, 0.15])) + (2.0 if kind == "ground glass" else 0.0),
        core=float(rng.uniform(0.35, 0.75)) if rng.random() < (0.7 if glioma else 0.15 + 0.45 * big) else 0.0,
        rim=float(rng.uniform(0.12, 0.3)) if rng.random() < (0.7 if glioma else 0.25) else 0.0,
        oedema=float(rng.uniform(0.25, 0.9)) if glioma and rng.random() < 0.85 else 0.0,
        push=float(rng.uniform(0.05, 0.25)) if rng.random() < g.push else 0.0,
        calcified=bool(rng.random() < 0.1),
        seed=int(rng.integers(2**31)),
    )


def place(
    rng: np.random.Generator, organ: str, labels: npt.NDArray[np.uint8], axes: Axes, taken: tuple[Lesion, ...]
) -> Lesion | None:
    """A tumour in a coarse label window, away from those already there; None where the organ has no voxel."""
    g = _GROWTH[organ]
    organ_mask = np.isin(labels, values(ORGANS[organ]))
    if not organ_mask.any():
        return None
    depth = ndimage.distance_transform_edt(np.pad(organ_mask, 1))[1:-1, 1:-1, 1:-1][organ_mask]
    spots = np.argwhere(organ_mask)
    limit = np.quantile(depth, 0.5)
    wanted = depth <= max(limit, 1.0) if rng.random() < g.surface else depth >= limit
    spots = spots[wanted]
    lesion = None
    for _ in range(8):
        at = spots[int(rng.integers(len(spots)))]
        centre = tuple(float(a[i]) for a, i in zip(axes, at, strict=True))
        lesion = draw_lesion(rng, organ, centre)  # type: ignore[arg-type]
        gaps = (
            np.linalg.norm(np.subtract(centre, t.centre_mm)) - 1.1 * (lesion.radius_mm + t.radius_mm) for t in taken
        )
        if all(gap > 0 for gap in gaps):
            return lesion
    return None


def _offsets(lesion: Lesion, axes: Axes, box: Box) -> list[F32]:
    """Coordinates in the lesion's own frame, in units of its radii."""
    p = [(a[s] - c).astype(np.float32) for a, s, c in zip(axes, box, lesion.centre_mm, strict=True)]
    grid = (p[0][:, None, None], p[1][None, :, None], p[2][None, None, :])
    out = []
    for row, s in zip(lesion.turn, lesion.stretch, strict=True):
        v = np.float32(row[0]) * grid[0] + np.float32(row[1]) * grid[1] + np.float32(row[2]) * grid[2]
        out.append(v * np.float32(1 / (s * lesion.radius_mm)))
    return out


def distance(lesion: Lesion, axes: Axes, box: Box) -> F32:
    """Signed distance (approximate, mm) to the surface of the tumour proper, without oedema."""
    q = _offsets(lesion, axes, box)
    r = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2)
    d = r - np.float32(0.8 if lesion.lobes else 1.0)
    for x, y, z, size in lesion.lobes:
        ball = np.sqrt((q[0] - np.float32(x)) ** 2 + (q[1] - np.float32(y)) ** 2 + (q[2] - np.float32(z)) ** 2)
        d = np.minimum(d, ball - np.float32(size))
    if lesion.spikes:
        inverse = 1 / np.maximum(r, np.float32(0.2))
        spike = np.zeros_like(r)
        for x, y, z in lesion.spikes:
            along = (q[0] * np.float32(x) + q[1] * np.float32(y) + q[2] * np.float32(z)) * inverse
            np.maximum(spike, np.clip((along - np.float32(0.93)) * np.float32(14), 0, 1), out=spike)
        d = d - np.float32(0.55) * spike * np.clip(np.float32(1.7) - r, 0, 1)
    here = (axes[0][box[0]], axes[1][box[1]], axes[2][box[2]])
    for part, weight in ((0.7, 0.16), (0.35, 0.08), (0.16, 0.04)):
        scale = part * lesion.radius_mm
        if scale > 0.8:
            d = d + np.float32(weight * lesion.rough) * noise(here, scale, lesion.seed + int(100 * part))
    out: F32 = d * np.float32(lesion.radius_mm)
    return out


def push_aside(lesion: Lesion, canvas: Canvas) -> None:
    """Mass effect: let the anatomy around the tumour come from nearer its centre."""
    if not lesion.push:
        return
    box = ball_box(lesion, canvas.axes, 2.4 * lesion.radius_mm * max(lesion.stretch))
    if box is None:
        return
    q = _offsets(lesion, canvas.axes, box)
    r = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2)
    amount = np.float32(lesion.push) * np.clip(np.minimum(r, np.float32(2.3) - r) / np.float32(1.2), 0, 1)
    amount = amount / np.maximum(r, np.float32(0.1))
    for k, (coords, s) in enumerate(zip((canvas.x, canvas.y, canvas.z), canvas.scale, strict=True)):
        line = (canvas.axes[k][box[k]] - lesion.centre_mm[k]).astype(np.float32) / np.float32(s)
        coords[box] -= amount * line.reshape([-1 if i == k else 1 for i in range(3)])


def ball_box(lesion: Lesion, axes: Axes, reach: float) -> Box | None:
    """Voxels within `reach` of the lesion's centre along each axis, or None outside the window."""
    slices = []
    for a, c in zip(axes, lesion.centre_mm, strict=True):
        first, last = int(np.searchsorted(a, c - reach)), int(np.searchsorted(a, c + reach))
        if last <= first:
            return None
        slices.append(slice(first, last))
    return slices[0], slices[1], slices[2]


def plant(
    lesion: Lesion,
    index: int,
    axes: Axes,
    image: F32,
    labels: npt.NDArray[np.uint8],
    truth: npt.NDArray[np.uint8],
    palette: Palette,
    rng: np.random.Generator,
) -> None:
    """Draw a tumour into an ideal image, in place, and mark it in `truth` with `index`.

    `labels` is the healthy anatomy: the tumour replaces only tissues that its kind invades.
    """
    tone = _tones(lesion, palette, rng)
    box = ball_box(lesion, axes, lesion.reach_mm)
    if box is None:
        return
    spacing = [float(a[1] - a[0]) if len(a) > 1 else 1.0 for a in axes]
    edge = max(float(np.mean(spacing)), lesion.softness_mm)
    d = distance(lesion, axes, box)
    here = (axes[0][box[0]], axes[1][box[1]], axes[2][box[2]])
    into = np.isin(labels[box], values(_GROWTH[lesion.organ].into)).astype(np.float32)
    gate = ndimage.gaussian_filter(into, [0.9 / s for s in spacing], mode="nearest", truncate=2.5)
    gate = np.clip(gate * np.float32(1.5) - np.float32(0.25), 0, 1)
    cover = np.clip(np.float32(0.5) - d / np.float32(edge), 0, 1) * gate
    whole = cover
    if lesion.oedema:
        spread = np.float32(lesion.oedema * lesion.radius_mm)
        reach = d - spread * (np.float32(0.9) + np.float32(0.5) * noise(here, 0.5 * lesion.radius_mm, lesion.seed + 1))
        white = np.isin(labels[box], (L["white matter"], L["cerebellar white"], L["deep grey"], L["brain stem"]))
        path = ndimage.gaussian_filter(white.astype(np.float32), [2.0 / s for s in spacing], mode="nearest")
        halo = np.clip(np.float32(0.5) - reach / np.float32(edge + 2), 0, 1) * np.clip(path * 1.6 - 0.3, 0, 1)
        image[box] += halo * (np.float32(tone.oedema) + tone.texture * noise(here, 5.0, lesion.seed + 2) - image[box])
        whole = np.maximum(cover, halo)
    image[box] += cover * (_inside(lesion, tone, d, here, image[box]) - image[box])
    truth[box][whole > 0.5] = index


@dataclass(frozen=True)
class _Tones:
    solid: float
    core: float
    rim: float
    oedema: float
    calcium: float
    texture: np.float32
    seethrough: float


def _inside(lesion: Lesion, tone: _Tones, d: F32, here: Axes, under: F32) -> F32:
    """Intensity within the tumour: solid part with texture, rim, core, calcium."""
    r = lesion.radius_mm
    slow = noise(here, max(0.45 * r, 2.0), lesion.seed + 3)
    value: F32 = np.float32(tone.solid) + tone.texture * (
        slow + np.float32(0.6) * noise(here, max(0.15 * r, 1.5), lesion.seed + 4)
    )
    depth = -d * np.float32(1 / r)
    if lesion.core:
        inner = np.clip((depth - np.float32(1 - lesion.core) - np.float32(0.15) * slow) * np.float32(8), 0, 1)
        value = value + inner * (np.float32(tone.core) - value)
    if lesion.rim:
        band = np.clip(1 - np.abs(depth - np.float32(lesion.rim)) / np.float32(lesion.rim), 0, 1)
        value = value + band * (np.float32(tone.rim) - value)
    if lesion.kind == "fatty":
        value = np.where(slow > 0.5, value + np.float32(2) * (np.float32(tone.rim) - value) / 3, value)
    if lesion.kind == "part-solid":
        solid = np.clip((depth - np.float32(0.45)) * 6, 0, 1)
        value = value + solid * (np.float32(tone.rim) - value)
    if lesion.calcified:
        spots = np.clip((noise(here, max(0.12 * r, 1.6), lesion.seed + 5) - np.float32(1.6)) * 2, 0, 1)
        value = value + spots * (np.float32(tone.calcium) - value)
    if tone.seethrough:
        value = value + np.float32(tone.seethrough) * np.maximum(under - value, 0)
    return value


def _away(rng: np.random.Generator, low: float, high: float, gap: float) -> float:
    """Uniform draw that keeps at least `gap` from zero."""
    v = float(rng.uniform(low, high))
    if abs(v) < gap:
        v = gap if (high >= gap and (v >= 0 or low > -gap)) else -gap
    return v


def _tones(lesion: Lesion, palette: Palette, rng: np.random.Generator) -> _Tones:
    return _tones_ct(lesion, palette, rng) if palette.modality == "ct" else _tones_mr(lesion, palette, rng)


def _tones_ct(lesion: Lesion, palette: Palette, rng: np.random.Generator) -> _Tones:
    phase = palette.name
    host = float(palette.mean[L[ORGANS[lesion.organ][0]]])
    enhanced = phase != "none"
    soft = float(rng.uniform(30, 55) if not enhanced else rng.uniform(50, 110))
    organ = lesion.organ
    if organ in ("liver", "spleen", "pancreas"):
        span = {"none": (-32, -8), "arterial": (-50, 60), "portal": (-78, -14), "late": (-60, -10)}[phase]
        if organ != "liver" and phase == "arterial":
            span = (-60, -15)
        solid = host + _away(rng, *span, gap=12 if enhanced else 8)
    elif organ == "kidney":
        solid = float(
            rng.uniform(*{"none": (24, 52), "arterial": (50, 140), "portal": (50, 125), "late": (45, 105)}[phase])
        )
        if enhanced:
            solid = min(solid, host - 20)
    elif lesion.kind in ("ground glass", "part-solid"):
        solid = float(rng.uniform(-720, -400))
    elif organ == "bone":
        solid = float(rng.uniform(450, 1100)) if lesion.kind == "sclerotic" else float(rng.uniform(20, 90))
    elif organ == "soft tissue":
        muscle = float(palette.mean[L["muscle"]])
        solid = muscle + _away(rng, -48, 22, gap=5)
        if lesion.kind == "fatty":
            solid = float(rng.uniform(-60, 20))
    elif organ == "brain":
        solid = host + _away(rng, -8, 40 if enhanced else 12, gap=3)
    elif organ == "adrenal":
        solid = float(rng.uniform(5, 45)) if not enhanced else float(rng.uniform(35, 105))
    else:
        solid = soft
    fluid = float(rng.uniform(5, 28))
    rim = {"fatty": -95.0, "part-solid": float(rng.uniform(-50, 50))}.get(
        lesion.kind, solid + float(rng.uniform(15, 60) if enhanced else rng.uniform(3, 10))
    )
    core = fluid if organ != "lung" else float(rng.choice([fluid, -900.0], p=[0.75, 0.25]))
    texture = np.float32(rng.uniform(2, 12) if organ != "bone" else rng.uniform(5, 60))
    if lesion.kind in ("ground glass", "part-solid"):
        texture = np.float32(rng.uniform(20, 60))
    if lesion.kind == "sclerotic":
        core = solid
    return _Tones(
        solid,
        core,
        rim,
        float(palette.mean[L["white matter"]]) - float(rng.uniform(5, 11)),
        float(rng.uniform(150, 700)),
        texture,
        0.5 if lesion.kind == "ground glass" else 0.0,
    )


def _tones_mr(lesion: Lesion, palette: Palette, rng: np.random.Generator) -> _Tones:
    organ, sequence = lesion.organ, palette.name
    name = {"soft tissue": "muscle", "lung": "pancreas", "bone": "marrow", "brain": "white matter"}.get(
        organ, ORGANS[organ][0]
    )
    host = max(float(palette.mean[L[name]]), 0.08)
    fluid = float(palette.mean[L["bladder"]])
    span = {
        "t1": (0.5, 0.92), "t1c": (0.6, 1.9), "t2": (1.35, 2.8), "flair": (1.35, 2.3), "stir": (1.4, 3.0),
        "random": (0.3, 2.6),
    }[sequence]  # fmt: skip
    if organ == "soft tissue" and sequence == "t1":
        span = (0.75, 1.35)
    factor = float(np.exp(rng.uniform(*np.log(span))))
    if abs(factor - 1) < 0.14:
        factor = 0.85 if factor < 1 else 1.16
    solid = float(min(host * factor, 1.35))
    rim = solid * float(rng.uniform(1.2, 2.0) if sequence in ("t1c", "random") else rng.uniform(0.85, 1.2))
    core = {"t1": 0.6 * solid, "t1c": 0.55 * solid}.get(sequence, fluid * float(rng.uniform(0.7, 1.1)))
    if lesion.kind == "fatty":
        rim = float(palette.mean[L["fat"]])
    swell = {"t1": (0.7, 0.92), "t1c": (0.7, 0.92), "t2": (1.3, 2.0), "flair": (1.3, 2.0), "stir": (1.3, 2.0),
             "random": (0.6, 1.7)}[sequence]  # fmt: skip
    white = float(palette.mean[L["white matter"]])
    oedema = white * _away(rng, swell[0] - 1, swell[1] - 1, gap=0.1) + white
    return _Tones(solid, core, min(rim, 1.5), min(oedema, 1.4), 0.05, np.float32(solid * rng.uniform(0.02, 0.16)), 0.0)
