"""Thigh, calf or upper arm: skin, fat, muscle compartments with fat planes and vessels, bone with marrow.

Anatomy frame, mm: the bone runs along z through the origin of each limb, y to the front. With `pair` the
other side is the mirror image at the opposite x.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from diffugts.synth.field import F32, Canvas, Ellipsoid, Tube, profile, rotation, smooth_path

_RADIUS = {"thigh": (62, 92), "calf": (40, 58), "arm": (34, 52)}
_LENGTH = 230.0


class Limb:
    """One random limb, or a pair of them."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.part = str(rng.choice(["thigh", "calf", "arm"], p=[0.6, 0.25, 0.15]))
        self.pair = self.part != "arm" and bool(rng.random() < 0.45)
        self.radius = rng.uniform(*_RADIUS[self.part])
        self.fat = float(np.clip(3 + rng.gamma(1.8, 8.0), 3, 42)) * (1.0 if self.part == "thigh" else 0.6)
        self.taper = rng.uniform(0.85, 1.12, 5)
        self.flat = rng.uniform(0.85, 1.15)
        self.hip = self.part == "thigh" and bool(rng.random() < 0.5)  # buttock and hip at the upper end
        self.offset = self.radius + self.fat + rng.uniform(2, 22) if self.pair else 0.0
        self.planes = rng.uniform(0.4, 2.6)
        self.marrow_red = float(rng.uniform(0, 1))
        size = 30 if self.part == "thigh" else 22 if self.part == "calf" else 20
        r = size * rng.uniform(0.42, 0.55)
        z = np.linspace(-_LENGTH, _LENGTH, 9)
        bow = rng.normal(0, 3, (9, 2)).cumsum(0) * 0.5
        middle = self.radius * rng.normal(0, 0.08, 2)
        flare = 1 + 0.5 * np.abs(np.linspace(-1, 1, 9)) ** 4
        self.bones: list[tuple[Tube | Ellipsoid, float]] = [
            (Tube.along(np.column_stack([middle + bow, z]), r * flare), rng.uniform(0.28, 0.5) * r)
        ]
        if self.part == "calf":
            self.bones[0] = (Tube.along(np.column_stack([middle + bow + (-8, 14), z]), r * flare), 0.4 * r)
            fibula = np.column_stack([middle + bow + (26, -6), z])
            self.bones.append((Tube.along(fibula, rng.uniform(5, 7.5)), 2.6))
        if self.hip:
            top = [(6, 0, 130), (14, -4, 165), (-28, 0, 195)]
            self.bones.append((Tube.along(top, [r, 1.5 * r, 1.15 * r]), 3.0))
            self.bones.append((Ellipsoid((-32, 2, 197), (23, 23, 23)), 2.0))
            self.bones.append((Tube.along([(-34, -34, 170), (-40, -30, 215), (-10, -6, 262)], [14, 13, 9]), 2.2))
        bundle = self.radius * np.array([-0.45, -0.12 if self.part == "thigh" else -0.3])
        self.vessels = []
        for k, name in enumerate(("artery", "vein", "vein", "artery", "vein")):
            at = (bundle if k < 2 else rng.normal(0, 0.45 * self.radius, 2)) + rng.normal(0, 5, 2)
            path = np.column_stack([np.tile(at, (6, 1)) + rng.normal(0, 4, (6, 2)), np.linspace(-_LENGTH, _LENGTH, 6)])
            width = rng.uniform(2.8, 5.0) if k < 2 else rng.uniform(1.2, 2.4)
            self.vessels.append((Tube.along(smooth_path(path, rng, 0, 14), width), name))
        saphena = [
            ((self.radius + 0.4 * self.fat) * np.cos(a), (self.radius + 0.4 * self.fat) * np.sin(a))
            for a in rng.uniform(0, 2 * np.pi, 3)
        ]
        self.skin_veins = [
            Tube.along(smooth_path([(*s, -_LENGTH), (*s, 0), (*s, _LENGTH)], rng, 4, 8), rng.uniform(1.0, 2.2))
            for s in saphena
        ]
        count = {"thigh": 12, "calf": 9, "arm": 6}[self.part]
        ring = rng.uniform(0.25, 0.92, count)
        angles = np.linspace(0, 2 * np.pi, count, endpoint=False) + rng.normal(0, 0.25, count)
        self.bellies = np.column_stack([ring * np.cos(angles), ring * np.sin(angles)]) * self.radius
        self.drift = rng.normal(0, 0.06, (count, 2))
        self.weight = rng.uniform(-0.12, 0.12, count) * self.radius
        reach = self.radius * 1.35 + self.fat + 12 + self.offset
        self.extent = (
            np.array([-reach, -reach + self.offset, -_LENGTH]),
            np.array([reach, reach - self.offset, _LENGTH]),
        )
        sides = (-1.0, 1.0) if self.pair else (1.0,)
        spots = [(s * self.offset + x, y, float(h)) for s in sides for x, y in self.bellies for h in (-90, 0, 90)]
        centres = {
            "soft tissue": spots,
            "bone": [(s * (self.offset + middle[0]), middle[1], float(h)) for s in sides for h in (-80, 0, 80)],
        }
        self.anchors: dict[str, list[npt.NDArray[np.float64]]] = {
            name: [np.array(p, dtype=np.float64) for p in points] for name, points in centres.items()
        }
        self.patella = Ellipsoid((0, 0.8 * self.radius, -_LENGTH + 8), (20, 9, 22), rotation(rng, 5))

    def paint(self, c: Canvas) -> None:
        """Draw the limb, or both of a pair."""
        for side in (-1.0, 1.0) if self.pair else (1.0,):
            self._one(c, side)

    def _one(self, c: Canvas, side: float) -> None:
        x = np.float32(side) * c.x - np.float32(self.offset)
        radius = profile(c.z, np.linspace(-_LENGTH, _LENGTH, 5), self.radius * self.taper)
        if self.hip:
            radius = radius * profile(c.z, [-260, 60, 200, 260], [1, 1, 1.3, 1.25])
        rho = np.sqrt(x**2 + (c.y * np.float32(self.flat)) ** 2)
        muscle = rho - radius + np.float32(0.03 * self.radius) * c.noise(30.0, 3)
        behind = np.float32(0.5) - np.float32(0.5) * c.y / np.maximum(rho, 1)
        fat = np.float32(self.fat) * (np.float32(0.7) + np.float32(0.5) * behind + np.float32(0.12) * c.noise(30.0, 4))
        if self.hip:
            fat = fat * profile(c.z, [-260, 60, 200, 260], [1, 1, 1.9, 1.8])
        skin = muscle - np.maximum(fat, np.float32(2.5))
        c.fill(c.everything, skin, (0.0, "skin"), (1.8, "fat"))
        septa = np.maximum(np.abs(c.noise(7.0, 6)) * 9 - np.float32(0.6), np.maximum(skin + 2, 2 - muscle))
        c.fill(c.everything, septa, (0.0, "fascia"))
        c.fill(c.everything, muscle, (-0.8, "fascia"), (0.5, "muscle"))
        c.fill(c.everything, self._clefts(c, x, muscle), (0.0, "fat"))
        parts: list[tuple[Tube | Ellipsoid, tuple[tuple[float, str], ...]]] = []
        parts += [(v, ((-2.0, "fat"), (0.0, name))) for v, name in self.vessels]
        parts += [(v, ((0.0, "vein"),)) for v in self.skin_veins]
        parts += [(b, ((-1.2, "fat"), (0.0, "cortical bone"), (float(w), "marrow"))) for b, w in self.bones]
        if self.part == "thigh" and not self.hip:
            parts.append((self.patella, ((0.0, "cortical bone"), (2.0, "marrow"))))
        for shape, layers in parts:
            c.paint(_moved(shape, side, self.offset), *layers)

    def _clefts(self, c: Canvas, x: F32, muscle: F32) -> F32:
        """Fat between neighbouring muscle bellies: where two bellies are equally near."""
        first = np.full(c.x.shape, 1e3, np.float32)
        second = first.copy()
        wave = 3 * c.noise(16.0, 7)
        for k, ((bx, by), (dx, dy)) in enumerate(zip(self.bellies, self.drift, strict=True)):
            px = x - np.float32(bx) - np.float32(dx) * c.z
            py = c.y - np.float32(by) - np.float32(dy) * c.z
            d = np.sqrt(px * px + py * py) + np.float32(self.weight[k])
            if k % 2:
                d = d + wave
            np.minimum(second, np.maximum(first, d), out=second)
            np.minimum(first, d, out=first)
        width = np.float32(self.planes) * (np.float32(0.7) + np.float32(0.6) * c.noise(16.0, 8))
        gap: F32 = np.maximum(np.float32(0.5) * (second - first) - width, muscle + 1)
        return gap


def _moved(shape: Tube | Ellipsoid, side: float, offset: float) -> Tube | Ellipsoid:
    """The shape of one limb in the frame of the patient: shifted by `offset`, mirrored for side -1."""
    flip, shift = np.array([side, 1.0, 1.0]), np.array([offset, 0.0, 0.0])
    if isinstance(shape, Tube):
        return replace(shape, ends=(shape.ends + shift) * flip)
    x, y, z = (np.array(shape.centre) + shift) * flip
    return replace(shape, centre=(float(x), float(y), float(z)))
