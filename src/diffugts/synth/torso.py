"""The trunk from neck to thighs: wall, skeleton, chest, abdomen and pelvis as implicit shapes.

Anatomy frame, mm, before the patient's own scaling and warp: x to the patient's right, y to the front, z up;
z = 0 lies near T12, the lung apex near +250, the hips near -330. Sizes are those of a typical adult.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from diffugts.synth.abdomen import Abdomen
from diffugts.synth.chest import Chest
from diffugts.synth.field import F32, Canvas, Ellipsoid, Tube, join, profile
from diffugts.synth.skeleton import Skeleton, Spine

_Z = np.array([-480, -400, -330, -260, -200, -120, -40, 40, 120, 200, 240, 270, 300, 340], dtype=np.float64)
_WIDTH = np.array([150, 160, 162, 148, 134, 132, 140, 146, 145, 132, 112, 84, 62, 58], dtype=np.float64)
_DEPTH = np.array([85, 88, 94, 96, 92, 94, 102, 106, 102, 92, 80, 68, 58, 56], dtype=np.float64)
_WALL = np.array([60, 60, 48, 28, 14, 12, 13, 15, 14, 14, 16, 20, 26, 28], dtype=np.float64)


class Torso:
    """One random trunk. All draws are made on construction; painting is a pure function of the canvas."""

    extent = (np.array([-270.0, -185.0, -420.0]), np.array([270.0, 185.0, 320.0]))

    def __init__(self, rng: np.random.Generator) -> None:
        self.female = bool(rng.random() < 0.5)
        self.width = _WIDTH * rng.uniform(0.94, 1.06) + rng.normal(0, 3, len(_Z))
        self.depth = _DEPTH * rng.uniform(0.92, 1.1) + rng.normal(0, 3, len(_Z))
        self.wall = _WALL * (0.55 + 0.4 * rng.uniform(0.6, 1.4))
        self.belly = rng.uniform(-14, 22)
        self.square = rng.uniform(0.15, 0.55)
        self.fat = float(np.clip(rng.gamma(2.2, 9.0), 4, 60))
        self.fat_shape = rng.uniform(0.5, 1.5, 4)
        self.muscle = rng.uniform(0.6, 1.4)
        self.arms = str(rng.choice(["up", "down", "none"], p=[0.45, 0.15, 0.4]))
        self.tabled = bool(rng.random() < 0.7)
        self.domes = (rng.uniform(5, 35), rng.uniform(-10, 25), rng.uniform(60, 95))
        self.marbling = rng.uniform(0.0, 1.0)
        spine = Spine.draw(rng)
        self.skeleton = Skeleton(rng, spine, self.arms)
        self.chest = Chest(rng, spine)
        self.abdomen = Abdomen(rng, spine, self.muscle, self.female)
        self.anchors = self._anchors(spine)

    def _anchors(self, spine: Spine) -> dict[str, list[npt.NDArray[np.float64]]]:
        """Organ -> rough centres, anatomy mm, one per place worth looking at."""
        inside = self.abdomen
        points: dict[str, list[tuple[float, float, float]]] = {
            "lung": [
                (82, -5, 110),
                (-85, -5, 110),
                (78, -15, 170),
                (-78, -15, 170),
                (80, -40, 60),
                (-85, -40, 60),
            ],
            "liver": [(75, 0, -25), (60, 10, -40), (10, 45, -15)],
            "kidney": [k.centre for k, _, _ in inside.kidneys],
            "spleen": [inside.spleen.centre],
            "pancreas": [tuple(p) for p in inside.pancreas.ends[[2, 6, 10], 0]],
            "colon": [tuple(p) for p in inside.colon_path[[4, 12, 22, 34, 50, 62, 74, 84]]],
            "stomach": [tuple(p) for p in inside.stomach.ends[[3, 7, 10], 0]],
            "adrenal": [tuple(a.ends.mean((0, 1))) for a in inside.adrenals],
            "bladder": [inside.bladder.centre],
            "bone": [spine.point(float(z), 0, 0) for z in (spine.levels[[1, 3, 6, 10]] + 12)]
            + [(92.0, 2.0, -328.0), (-92.0, 2.0, -328.0), (100.0, -40.0, -230.0), (-100.0, -40.0, -230.0)],
            "soft tissue": [
                (85, -70, -300),
                (-85, -70, -300),
                (90, 10, -395),
                (-90, 10, -395),
                (38, -95, -60),
                (-60, 85, 190),
                (60, 85, 190),
                (-40, -95, 90),
                (110, -60, 180),
            ],
        }
        if self.female:
            points["breast"] = [(80, 118, 120), (-80, 118, 120)]
        return {name: [np.array(c, dtype=np.float64) for c in spots] for name, spots in points.items()}

    def paint(self, c: Canvas) -> None:
        """Draw the healthy trunk, outside in."""
        trunk, angle = self._trunk(c)
        self._wall(c, trunk, angle)
        inner = trunk + profile(c.z, _Z, self.wall)
        c.fill(c.everything, inner, (0.0, "visceral fat"))
        dome = self._diaphragm(c)
        self.skeleton.paint(c, trunk, angle)
        self.chest.paint(c, inner, dome)
        self.abdomen.paint(c, inner, dome, [self.chest.aorta, *self.chest.arteries], self.chest.veins)
        self.skeleton.paint_spine(c, self.muscle, self.marbling)

    def _trunk(self, c: Canvas) -> tuple[F32, F32]:
        """Distance to the outer surface of ribs and abdominal muscle, and the angle from the back (0..pi)."""
        w, d = profile(c.z, _Z, self.width), profile(c.z, _Z, self.depth)
        y = c.y - profile(c.z, _Z, self.belly * np.exp(-(((_Z + 120) / 90) ** 2)) * 0.5)
        u, v = (c.x / w) ** 2, (y / d) ** 2
        k = np.float32(1 - self.square) * np.sqrt(u + v) + np.float32(self.square) * np.sqrt(np.sqrt(u * u + v * v))
        k = np.maximum(k, np.float32(0.02))
        rho = np.sqrt(c.x * c.x + y * y)
        trunk = rho - rho / k
        trunk = np.maximum(trunk, -(c.z + 372))
        angle = np.arctan2(np.abs(c.x), -y)
        return trunk, angle

    def _wall(self, c: Canvas, trunk: F32, angle: F32) -> None:
        """Skin, subcutaneous fat and muscle outside the rib cage; shoulders, arms, thighs, breasts."""
        f = self.fat_shape
        front, back = (
            np.float32(0.5) - np.float32(0.5) * np.cos(angle),
            np.float32(0.5) + np.float32(0.5) * np.cos(angle),
        )
        side = 1 - np.abs(front - back)
        low = profile(c.z, [-420, -330, -200, -60, 60, 330], [1.0, 1.5, 1.3, 1.0, 0.55, 0.4])
        fat = (
            np.float32(self.fat)
            * low
            * np.float32(0.85)
            * (np.float32(f[0]) * front + np.float32(f[1]) * back + np.float32(0.6 * f[2]) * side + np.float32(0.15))
        )
        fat = np.maximum(fat + c.noise(30.0, 3) * np.float32(0.05 * self.fat), np.float32(2.0))
        m = self.muscle
        pect = profile(c.z, [60, 120, 190, 240, 290], [0, 10, 20, 16, 2]) * front * np.abs(np.sin(angle))
        lats = profile(c.z, [-40, 60, 150, 230, 300], [2, 5, 20, 34, 20]) * (back * 0.75 + side * 0.45)
        glut = profile(c.z, [-420, -340, -250, -200, -160], [34, 38, 26, 10, 3]) * back
        layer = np.float32(m) * (pect * np.float32(1.2) + lats + glut) + 2 * c.noise(16.0, 2)
        muscle = trunk - np.maximum(layer, 0)
        skin = muscle - fat
        for tube in self._outer_limbs():
            box = c.box(*tube.bounds(), margin=self.fat + 12)
            if box is not None:
                d = tube.distance(c, box)
                muscle[box] = join(muscle[box], d, 8.0)
                skin[box] = join(skin[box], d - np.float32(min(0.7 * self.fat, 30) + 3), 12.0)
        if self.female:
            for s in (-1, 1):
                size = 34 + self.fat
                b = Ellipsoid(
                    (s * 78, 88 + 0.6 * self.fat, 118),
                    (size * 1.15, size * 0.75, size * 1.1),
                    None,
                    1.0,
                    30.0,
                )
                box = c.box(*b.bounds())
                if box is not None:
                    skin[box] = join(skin[box], b.distance(c, box), 18.0)
        c.fill(c.everything, skin, (0.0, "skin"), (2.0, "fat"))
        if self.female:
            for s in (-1, 1):
                c.paint(
                    Ellipsoid((s * 80, 98 + 0.6 * self.fat, 116), (24, 16, 24), None, 9.0, 7.0, 4),
                    (0.0, "breast"),
                    within=skin + 6,
                )
        c.fill(
            c.everything,
            muscle + np.float32(1.5) * c.noise(7.0, 3) * (c.noise(16.0, 5) > 0.8),
            (0.0, "muscle"),
        )
        self._marble(c, muscle, trunk)
        if self.tabled and c.mean[0] < -500:
            y = -(self.depth.max() + self.fat * 1.5 + 24) + 0.0006 * c.x**2
            c.fill(
                c.everything,
                np.maximum(np.abs(c.y - y) - np.float32(3.0), np.maximum(skin * -1, np.abs(c.x) - 230)),
                (0.0, "table"),
            )

    def _outer_limbs(self) -> list[Tube]:
        tubes = []
        for s in (-1, 1):
            tubes.append(Tube.along([(s * 84, 0, -300), (s * 84, 4, -400), (s * 80, 4, -520)], [78, 80, 74]))
            tubes.append(Tube.along([(s * 60, -14, 262), (s * 150, -14, 240)], [34, 44]))
            if self.arms == "down":
                tubes.append(Tube.along([(s * 165, -10, 232), (s * 206, -8, 70), (s * 222, 0, -80)], [46, 42, 34]))
            elif self.arms == "up":
                tubes.append(Tube.along([(s * 150, -8, 245), (s * 165, 20, 400)], [50, 44]))
        return tubes

    def _marble(self, c: Canvas, muscle: F32, trunk: F32) -> None:
        """Fat planes between and along the muscles outside the ribs."""
        thin = np.float32(0.3 + 1.3 * self.marbling) + np.float32(0.5) * c.noise(16.0, 5)
        sheet = np.abs(np.float32(0.5) * (muscle + trunk) + np.float32(2.5) * c.noise(16.0, 7))  # between two layers
        sheet = np.maximum(sheet - thin, np.maximum(muscle + 3, np.maximum(-trunk - 6, muscle - trunk + 9)))
        cleft = np.abs(c.noise(30.0, 8) + np.float32(0.25) * c.noise(16.0, 7)) * np.float32(24)  # between neighbours
        cleft = np.maximum(cleft - thin, np.maximum(muscle + 2, muscle - trunk + 14))
        d = np.minimum(sheet, cleft)
        c.fill(c.everything, d, (0.0, "fat"))

    def _diaphragm(self, c: Canvas) -> F32:
        """Height above the diaphragm, mm."""
        right, left, reach = self.domes
        fall = np.float32(1 / reach**2)
        y2 = (c.y - 8) ** 2 * fall
        a = np.float32(right) + 18 - np.float32(60) * ((c.x - 72) ** 2 * fall + y2)
        b = np.float32(left) + 18 - np.float32(60) * ((c.x + 76) ** 2 * fall + y2)
        height: F32 = (c.z - np.maximum(np.maximum(a, b), np.float32(-75))) * np.float32(0.75)
        return height
