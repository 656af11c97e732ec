"""Bones of the trunk: spine, rib cage, shoulder and pelvic girdles, the ends of arms and thighs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from diffugts.synth.field import F32, Canvas, Ellipsoid, Tube, profile


@dataclass(frozen=True, eq=False)
class Spine:
    """The line that the vertebrae follow, and the heights of the discs from below L5 upwards, mm."""

    sway: tuple[float, float]
    kyphosis: float
    levels: npt.NDArray[np.float64]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Spine:
        """A random spine."""
        pitch = np.concatenate([np.full(5, 36.0), np.linspace(29, 22, 12), np.full(4, 18.0)])
        levels = -232 + np.concatenate([[0], np.cumsum(pitch * rng.uniform(0.96, 1.04))])
        return cls((rng.normal(0, 4), rng.normal(0, 4)), rng.uniform(6, 18), levels)

    def at(self, z: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Centre (..., 2) of the vertebral bodies at height z."""
        h = np.asarray(z, dtype=np.float64)
        y = -46 + self.kyphosis * np.cos((h + 130) / 95)
        y = np.where(h < -225, y - 0.35 * np.abs(h + 225) * (h < -225), y)
        x = self.sway[0] * np.sin(h / 110 + self.sway[1])
        return np.stack([x, y], -1)

    def point(self, z: float, dx: float, dy: float) -> tuple[float, float, float]:
        """A point beside the vertebral body at height z: to the right by dx, to the front by dy."""
        x, y = self.at(z)
        return float(x + dx), float(y + dy), float(z)


class Skeleton:
    """Random bones along a spine."""

    def __init__(self, rng: np.random.Generator, spine: Spine, arms: str) -> None:
        self.spine = spine
        self.rib = (rng.uniform(23, 27), rng.uniform(95, 140), rng.uniform(4.6, 6.2), rng.uniform(3.0, 4.2))
        self.limbs: list[tuple[Tube | Ellipsoid, float]] = []
        self.heads = [Ellipsoid((s * 92, 2, -328), (24, 24, 24)) for s in (-1, 1)]
        for s in (-1.0, 1.0):
            self.limbs += [
                (
                    Tube.along(
                        [(s * 92, 2, -328), (s * 126, -6, -352), (s * 130, -8, -380), (s * 118, 0, -500)],
                        [15, 18, 15, 14],
                    ),
                    4.5,
                ),
                (Tube.along([(s * 90, 2, -330), (s * 62, 40, -345), (s * 10, 58, -358)], [14, 9, 11]), 2.0),
                (
                    Tube.along(
                        [
                            (s * 88, -22, -322),
                            (s * 70, -45, -355),
                            (s * 56, -40, -385),
                            (s * 24, 36, -380),
                            (s * 10, 54, -365),
                        ],
                        [16, 15, 13, 7, 7],
                    ),
                    2.0,
                ),
                (
                    Tube.along(
                        [(s * 14, 74, 232), (s * 60, 58, 250), (s * 110, 20, 262), (s * 160, -5, 262)],
                        [9, 6, 6, 7],
                    ),
                    1.6,
                ),
                (Ellipsoid((s * 122, -66, 190), (36, 5, 62), turn_z(s * 0.55) @ turn_y(s * 0.15)), 1.3),
                (Tube.along([(s * 90, -88, 215), (s * 160, -35, 250)], [5, 8]), 1.6),
            ]
            if arms == "down":
                self.limbs.append(
                    (
                        Tube.along([(s * 172, -10, 238), (s * 205, -8, 60), (s * 222, 0, -60)], [21, 12, 13]),
                        4.0,
                    )
                )
            elif arms == "up":
                self.limbs.append((Tube.along([(s * 150, -8, 250), (s * 165, 20, 380)], [21, 12]), 4.0))
        self.wings = [Ellipsoid((s * 46, -2, -262), (70, 82, 92), None, 2.5, 25.0) for s in (-1, 1)]
        x, y = spine.at(-245.0)
        drop = [(x, y, -242), (x, y - 22, -275), (x, y - 34, -310), (x, y - 30, -345), (x, y - 14, -365)]
        self.sacrum = Tube.along(drop, [30, 26, 18, 11, 6], rough=1.5)
        self.ala = [Ellipsoid((s * 34 + x, y - 8, -258), (26, 18, 32), turn_z(s * 0.3)) for s in (-1, 1)]

    def paint(self, c: Canvas, trunk: F32, angle: F32) -> None:
        """Ribs, sternum, girdles and long bones; the spine comes last, over the organs."""
        self._ribs(c, trunk, angle)
        for wing in self.wings:
            box = c.box(*wing.bounds())
            if box is not None:
                s = np.float32(np.sign(wing.centre[0]))
                cut = np.maximum(
                    np.maximum(c.z[box] + 172, -320 - c.z[box]),
                    np.maximum(c.y[box] - 48, np.float32(34) - s * c.x[box]),
                )
                thick = profile(c.z[box], [-330, -290, -230, -175], [13, 8, 5, 8])
                d = wing.distance(c, box)
                c.fill(box, np.maximum(np.abs(d + 12) - 12, cut), (0.0, "muscle"))  # iliacus
                c.fill(box, np.maximum(np.abs(d) - thick, cut), (0.0, "cortical bone"), (2.0, "marrow"))
        for bone, cortex in self.limbs:
            c.paint(bone, (0.0, "cortical bone"), (cortex, "marrow"))
        for ball in self.heads:
            c.paint(
                ball,
                (-11.0, "cortical bone"),
                (-9.0, "marrow"),
                (-4.0, "cortical bone"),
                (-2.0, "cartilage"),
                (0.0, "cortical bone"),
                (1.8, "marrow"),
            )
        c.paint(self.sacrum, (0.0, "cortical bone"), (2.0, "marrow"))
        for wing in self.ala:
            c.paint(wing, (0.0, "cortical bone"), (2.0, "marrow"))

    def _ribs(self, c: Canvas, trunk: F32, angle: F32) -> None:
        """All ribs at once: bands on the trunk surface that fall towards the front and rise as cartilage."""
        box = c.box((-170, -130, -110), (170, 130, 270))
        if box is None:
            return
        pitch, fall, height, thick = self.rib
        z, a, depth = c.z[box], angle[box] * np.float32(1 / np.pi), trunk[box] + 7
        rise = np.maximum(a - np.float32(0.72), 0) * np.float32(260) * (z < 100)
        along = z + np.float32(fall) * np.float32(1.35) * np.minimum(a, np.float32(0.74)) - rise
        index = np.round((along - np.float32(250)) / np.float32(pitch))
        band = along - np.float32(250) - index * np.float32(pitch)
        number = np.clip(-index, 0, 20).astype(np.int32)
        ends = np.array([0.96] * 7 + [0.9, 0.84, 0.76, 0.5, 0.36] + [-1.0] * 9, np.float32)
        valid = np.float32(150) * (a - ends[number]) * np.float32(0.6)
        d = np.sqrt((depth / np.float32(thick)) ** 2 + (band / np.float32(height)) ** 2) - 1
        d = np.maximum(d * np.float32(thick), np.maximum(valid, (index > 0) * np.float32(9)))
        bony = np.maximum(d, (a - np.float32(0.74)) * 150)
        c.fill(box, np.maximum(d, (np.float32(0.74) - a) * 150), (0.0, "cartilage"))
        c.fill(box, bony, (0.0, "cortical bone"), (1.5, "marrow"))
        plate = np.maximum(np.maximum(np.abs(depth + 1) - 6, np.abs(c.x[box]) - 17), np.maximum(50 - z, z - 238))
        c.fill(box, np.maximum(plate, -c.y[box]), (0.0, "cortical bone"), (1.6, "marrow"))

    def paint_spine(self, c: Canvas, muscle: float, marbling: float) -> None:
        """Back muscles, vertebral bodies with discs, arches, processes and the canal."""
        z_table = np.arange(-480.0, 345.0, 5.0)
        x_table, y_table = self.spine.at(z_table).T
        box = c.box((-75, -150, -300), (75, 10, 340))
        if box is None:
            return
        z = c.z[box]
        x, y = c.x[box] - profile(z, z_table, x_table), c.y[box] - profile(z, z_table, y_table)
        m = np.float32(muscle)
        back = np.sqrt(((np.abs(x) - 32) / 29) ** 2 + ((y + 46) / (19 * m)) ** 2) - 1
        c.fill(box, np.maximum(back * 18, np.float32(-260) - z), (0.0, "muscle"))
        streak = np.maximum(back * 18 + 3, np.abs(c.noise(7.0, 14)[box]) * 8 - np.float32(0.1 + 1.2 * marbling))
        c.fill(box, np.maximum(streak, np.float32(-260) - z), (0.0, "fat"))
        level = np.interp(
            np.arange(-480, 345, 0.5), self.spine.levels, np.arange(len(self.spine.levels)), left=-1, right=30
        )
        slope = np.gradient(level, 0.5)
        u = profile(z, np.arange(-480, 345, 0.5), level)
        pitch = 1 / np.maximum(profile(z, np.arange(-480, 345, 0.5), slope), np.float32(0.02))
        t = (u - np.round(u)) * pitch  # mm from the nearest disc centre
        mid = np.float32(0.5) * pitch - np.abs(t)  # mm from the vertebral mid-height
        wide = profile(z, [-240, -60, 60, 200, 300], [25, 21, 16, 14, 12])
        deep = wide * np.float32(0.74)
        waist = 1 - np.float32(0.06) * np.clip(1 - mid / (np.float32(0.3) * pitch), 0, 1)
        body = (np.sqrt((x / (wide * waist)) ** 2 + (y / (deep * waist)) ** 2) - 1) * deep
        low = np.float32(-238) - z
        disc_half = np.float32(0.11) * pitch + 1
        c.fill(box, np.maximum(np.maximum(body, np.abs(t) - disc_half), low), (0.0, "cartilage"))
        hole = deep + 9
        ring = np.sqrt((x / 1.15) ** 2 + (y + hole) ** 2)
        arch = np.maximum(ring - 15, mid - np.float32(0.38) * pitch)
        spinous = np.maximum(
            np.maximum(np.abs(x) - 3.5, y + hole + 9),
            np.maximum(-(y + hole) - 36, np.abs(mid - 4 - np.float32(0.06) * (y + hole)) - 8),
        )
        across = np.maximum(np.maximum(np.abs(x) - 36, np.abs(y + hole - 4) - 5), mid - 6)
        bone = np.minimum(np.maximum(body, disc_half - np.abs(t)), np.minimum(arch, np.minimum(spinous, across)))
        bone = np.maximum(bone + np.float32(0.7) * c.noise(4.0, 9)[box], low)
        c.fill(box, bone, (0.0, "cortical bone"), (1.6, "marrow"))
        c.fill(box, np.maximum(ring - 9.5, low - 40), (0.0, "spinal canal"))
        c.fill(box, np.maximum(ring - 5, np.float32(-25) - z), (0.0, "spinal cord"))


def turn_z(angle: float) -> npt.NDArray[np.float64]:
    """Turn about z by an angle, radians."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def turn_y(angle: float) -> npt.NDArray[np.float64]:
    """Turn about y by an angle, radians."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])
