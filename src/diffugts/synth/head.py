"""The head: scalp, skull, folded cortex, white matter, ventricles, deep grey, hind brain, face and neck.

Anatomy frame, mm: the origin is the centre of the cerebrum, x to the patient's right, y to the front, z up.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from diffugts.synth.field import F32, Canvas, Ellipsoid, Shape, Tube, join, rotation


class Head:
    """One random head. The sulci are zero sets of smooth noise down to a depth below the surface."""

    extent = (np.array([-98.0, -118.0, -150.0]), np.array([98.0, 125.0, 100.0]))

    def __init__(self, rng: np.random.Generator) -> None:
        self.size = np.array([66.0, 82.0, 58.0]) * rng.uniform(0.95, 1.06, 3)
        self.atrophy = float(rng.beta(1.5, 3))
        self.gap = 2.5 + 4.5 * self.atrophy  # CSF between brain and skull
        self.skull = float(rng.uniform(5, 9))
        self.scalp = float(rng.uniform(4, 9))
        self.ribbon = float(rng.uniform(2.6, 4.2))
        self.sulcus = float(0.5 + 1.3 * self.atrophy)
        self.fold = float(rng.uniform(5.5, 8.0))
        self.depth = float(rng.uniform(12, 20))
        s = 0.75 + 0.9 * self.atrophy + rng.uniform(0, 0.25)
        self.ventricles = [
            Tube.along(
                [(h * 8, 34, 6), (h * 10, 20, 16), (h * 10, -5, 20), (h * 15, -26, 16), (h * 22, -44, 2)],
                np.array([3.5, 5.5, 5.0, 6.0, 3.0]) * s,
            )
            for h in (-1, 1)
        ]
        self.ventricles += [
            Tube.along([(h * 22, -34, 6), (h * 32, -20, -14), (h * 30, 0, -22)], np.array([4.5, 3.0, 2.0]) * s)
            for h in (-1, 1)
        ]
        self.third = Ellipsoid((0, -2, -2), (2.2 * s, 13, 11))
        self.fourth = Ellipsoid((0, -40, -42), (6 * s, 5 * s, 11))
        self.deep = []
        for h in (-1, 1):
            self.deep += [
                Ellipsoid((h * 10, -8, 4), (8.5, 14, 9), None, 0.8, 7.0),
                Ellipsoid((h * 24, 8, 2), (7, 18, 12), None, 0.8, 7.0),
                Ellipsoid((h * 14, 24, 8), (5.5, 10, 8.5), None, 0.5, 7.0),
            ]
        self.insula = [Ellipsoid((h * 46, 8, -8), (14, 30, 4.5), None, 2.5, 8.0) for h in (-1, 1)]
        self.cerebellum = [Ellipsoid((h * 23, -54, -50), (34, 31, 27), None, 1.5, 8.0) for h in (-1, 1)]
        self.stem = Tube.along(
            [(0, -12, -14), (0, -20, -32), (0, -24, -48), (0, -32, -75), (0, -36, -150)], [11, 13, 14, 9, 6]
        )
        self.temporal = [Ellipsoid((h * 46, 4, -34), (20, 36, 18), None, 1.5, 16.0) for h in (-1, 1)]
        self.eyes = [Ellipsoid((h * 32, 82, -36), (12, 12.5, 12)) for h in (-1, 1)]
        self.lenses = [Ellipsoid((h * 32, 91, -36), (4.5, 2.4, 4.5)) for h in (-1, 1)]
        self.orbits = [Tube.along([(h * 32, 86, -36), (h * 16, 42, -34)], [18, 6]) for h in (-1, 1)]
        self.muscles = [
            Tube.along([(h * (32 + dx), 80, -36 + dz), (h * 17, 46, -34)], 1.9)
            for h in (-1, 1)
            for dx, dz in ((10, 0), (-10, 0), (0, 9), (0, -9), (0, 0))
        ]
        air = rng.uniform(0.6, 1.2, 6)
        self.sinuses = [
            Ellipsoid((h * 26, 70, -66), (13 * air[0], 15 * air[1], 15 * air[2]), None, 1.5, 8.0) for h in (-1, 1)
        ]
        self.sinuses += [
            Ellipsoid((0, 40, -44), (11 * air[3], 10 * air[3], 9), None, 1.5, 6.0),
            Ellipsoid((0, 66, -40), (9, 20, 11), None, 2.5, 4.0),
            Ellipsoid((0, 92, -8), (16 * air[4], 5 * air[4], 12 * air[4]), None, 1.5, 6.0),
        ]
        self.mastoids = [Ellipsoid((h * 58, -28, -58), (11, 14, 14), None, 4.0, 4.0) for h in (-1, 1)]
        self.nose = Ellipsoid((0, 72, -66), (13, 32, 16), None, 4.0, 4.0)
        self.throat = Tube.along([(0, 40, -66), (0, 20, -90), (0, 12, -150)], [9, 8, 10])
        self.jaw = [Tube.along([(h * 48, 12, -62), (h * 46, 20, -105), (h * 8, 82, -118)], [6, 8, 8]) for h in (-1, 1)]
        self.jaw.append(Tube.along([(-40, 52, -88), (-16, 84, -88), (16, 84, -88), (40, 52, -88)], [6, 7, 7, 6]))
        self.neck = [Tube.along([(0, -38, -75), (0, -30, -170)], [15, 15])]
        self.neck_muscles = [Tube.along([(h * 26, -55, -75), (h * 30, -52, -160)], [24, 26]) for h in (-1, 1)]
        self.masseters = [Ellipsoid((h * 56, 22, -82), (9, 18, 32)) for h in (-1, 1)]
        self.temporalis = [Ellipsoid((h * 72, 28, -22), (7, 30, 36)) for h in (-1, 1)]
        self.parotids = [Ellipsoid((h * 58, -4, -84), (12, 15, 22), None, 2.0, 6.0) for h in (-1, 1)]
        self.tongue = Ellipsoid((0, 44, -100), (24, 32, 17), rotation(rng, 8), 1.5, 10.0)
        self.vessels = [
            Tube.along([(h * 28, -8, -150), (h * 26, -6, -70), (h * 14, 8, -46), (h * 10, 14, -30)], [4, 3.5, 2.8, 2])
            for h in (-1, 1)
        ]
        self.sinus = Tube.along(
            [(0, 70, 44), (0, 40, 60), (0, 0, 66), (0, -40, 56), (0, -78, 18), (0, -84, -18)],
            rng.uniform(2, 4),
        )
        self.jugular = [
            Tube.along([(h * 4, -84, -20), (h * 46, -58, -34), (h * 48, -22, -56), (h * 34, -14, -150)], [4, 4, 4, 6])
            for h in (-1, 1)
        ]
        g = self.size
        lobes = ((0.5, 0.5, 0.3), (0.55, 0, 0.4), (0.5, -0.5, 0.3), (0.62, 0.1, -0.5), (0.3, 0.2, 0.5))
        points: dict[str, list[tuple[float, float, float]]] = {
            "brain": [(h * x * g[0], y * g[1], z * g[2]) for h in (-1, 1) for x, y, z in lobes] + [(20, -52, -48)],
            "bone": [(0, -0.2 * g[1], g[2] + 8), (g[0] + 7, 0, 15), (-g[0] - 7, 0, 15)],
            "soft tissue": [(26, -55, -110), (-26, -55, -110), (0, 44, -100)],
        }
        self.anchors: dict[str, list[npt.NDArray[np.float64]]] = {
            name: [np.array(p, dtype=np.float64) for p in spots] for name, spots in points.items()
        }

    # ---- painting -------------------------------------------------------------------------------

    def paint(self, c: Canvas) -> None:
        """Draw the healthy head, outside in."""
        brain = self._hull(c)
        vault = brain - np.float32(self.gap)
        self._outside(c, vault)
        bone = vault - np.float32(self.skull) + np.float32(0.8) * c.noise(16.0, 2)
        low = np.float32(-58) - c.z
        shell = np.maximum(bone, low)
        c.fill(c.everything, shell, (0.0, "cortical bone"), (1.8, "marrow"))
        c.fill(c.everything, np.maximum(np.abs(vault - 0.7) - np.float32(1.0), low), (0.0, "cortical bone"))
        self._face(c, vault)
        c.fill(c.everything, vault, (0.0, "dura"), (0.8, "csf"))
        falx = np.maximum(np.abs(c.x + c.noise(30.0, 1)) - np.float32(0.7), np.maximum(vault, 12 - c.z))
        c.fill(c.everything, falx, (0.0, "dura"))
        c.paint(self.sinus, (0.0, "vein"))
        c.paint(self.stem, (-2.5, "csf"))
        self._hind(c)
        self._cerebrum(c, brain)
        c.paint(self.stem, (0.0, "brain stem"))
        for nucleus in self.deep:
            c.paint(nucleus, (0.0, "deep grey"))
        cavities: tuple[Shape, ...] = (*self.ventricles, self.third, self.fourth)
        for cavity in cavities:
            c.paint(cavity, (0.0, "ventricle"))

    def _hull(self, c: Canvas) -> F32:
        """Distance to the smooth envelope of cerebrum, temporal lobes and cerebellum."""
        a, b, h = (np.float32(v) for v in self.size)
        narrow = 1 + np.float32(0.12) * np.clip(c.y / b, 0, 1)  # the brow is narrower than the back
        below = 1 + np.float32(0.55) * (c.z < 0)
        q = np.sqrt((c.x * narrow / a) ** 2 + (c.y / b) ** 2 + (c.z * below / h) ** 2)
        d = (q - 1) * np.float32(0.85 * self.size.min())
        for shape in (*self.temporal, *self.cerebellum):
            box = c.box(*shape.bounds(), margin=18)
            if box is not None:
                d[box] = join(d[box], shape.distance(c, box), 8.0)
        out: F32 = d + c.noise(16.0, 3) * np.float32(0.8)
        return out

    def _outside(self, c: Canvas, vault: F32) -> None:
        """Scalp, face and neck."""
        skin = vault - np.float32(self.skull + self.scalp)
        face = Ellipsoid((0, 34, -72), (66, 62, 62))
        neck = Tube.along([(0, -18, -70), (0, -14, -200)], [60, 58])
        outline: tuple[Shape, ...] = (face, neck)
        for shape in outline:
            box = c.box(*shape.bounds(), margin=40)
            if box is not None:
                skin[box] = join(skin[box], shape.distance(c, box), 22.0)
        nose = Ellipsoid((0, 98, -62), (13, 16, 20))
        box = c.box(*nose.bounds(), margin=14)
        if box is not None:
            skin[box] = join(skin[box], nose.distance(c, box), 10.0)
        c.fill(c.everything, skin, (0.0, "scalp"), (1.8, "fat"))
        deep = np.maximum(skin + 6 + 2 * c.noise(7.0, 2), c.z + 40)
        flesh = np.maximum(deep, np.float32(3.0) - np.abs(c.noise(7.0, 4)) * 5)
        c.fill(c.everything, np.minimum(flesh, np.maximum(skin + 11, c.z + 50)), (0.0, "muscle"))
        c.fill(c.everything, np.maximum(np.abs(c.noise(7.0, 5) * 7) - np.float32(0.8), deep + 4), (0.0, "fat"))

    def _face(self, c: Canvas, vault: F32) -> None:
        muscles: tuple[Shape, ...] = (*self.neck_muscles, *self.masseters, *self.temporalis)
        for muscle in muscles:
            c.paint(muscle, (-1.0, "fat"), (0.0, "muscle"), within=-(vault - np.float32(self.skull + 1)))
        base = np.maximum(np.abs(vault - 3) - np.float32(3.2) + 2 * c.noise(4.0, 5), np.maximum(c.z + 6, -84 - c.z))
        c.fill(c.everything, base, (0.0, "cortical bone"), (2.0, "marrow"))
        outside = -(vault - 2)
        for shape in self.mastoids:
            c.paint(shape, (-4.0, "cortical bone"), (0.0, "marrow"), within=outside)
            box = c.box(*shape.bounds())
            if box is not None:
                cells = np.maximum(shape.distance(c, box), np.maximum(outside[box], -c.noise(2.2, 6)[box]))
                c.fill(box, cells, (0.0, "sinus"))
        c.paint(
            Ellipsoid((0, 66, -62), (40, 32, 34), None, 4.0, 7.0),
            (0.0, "cortical bone"),
            (1.6, "mucosa"),
            within=outside,
        )
        for orbit in self.orbits:
            c.paint(orbit, (-2.5, "cortical bone"), (0.0, "fat"), within=outside)
        for strand in self.muscles:
            c.paint(strand, (0.0, "muscle"), within=outside)
        for eye, lens in zip(self.eyes, self.lenses, strict=True):
            c.paint(eye, (0.0, "muscle"), (1.4, "eye"))
            c.paint(lens, (0.0, "lens"))
        c.paint(self.nose, (0.0, "mucosa"))
        box = c.box(*self.nose.bounds())
        if box is not None:
            duct = np.maximum(self.nose.distance(c, box) + 3, np.abs(c.noise(4.0, 7)[box]) * 5 - 2.5)
            c.fill(box, duct, (0.0, "sinus"))
        for cave in self.sinuses:
            c.paint(cave, (-2.0, "cortical bone"), (-0.8, "mucosa"), (0.8, "sinus"), within=outside)
        c.paint(self.tongue, (0.0, "muscle"))
        for gland in self.parotids:
            c.paint(gland, (0.0, "gland"))
        for bone in (*self.jaw, *self.neck):
            c.paint(bone, (0.0, "cortical bone"), (2.2, "marrow"))
        c.paint(
            Tube.along([(0, -52, -75), (0, -46, -170)], [13, 13]),
            (0.0, "cortical bone"),
            (3.0, "spinal canal"),
        )
        c.paint(self.throat, (-3.0, "mucosa"), (0.0, "airway"))
        for vessel in self.vessels:
            c.paint(vessel, (0.0, "artery"), within=outside)
        for vessel in self.jugular:
            c.paint(vessel, (0.0, "vein"))

    def _cerebrum(self, c: Canvas, brain: F32) -> None:
        """Folded cortex: sulci are thin sheets of CSF, `depth` deep below the envelope, lined with grey."""
        low, high, key = self.fold * 0.62, self.fold * 1.3, 21
        pattern = c.noise(low, key) + np.float32(0.7) * c.noise(high, key + 1)
        sheet = np.abs(pattern) * np.float32(0.62 * self.fold)  # about the distance to the nearest sulcus, mm
        floor = -brain - np.float32(self.depth) * (np.float32(0.8) + np.float32(0.2) * c.noise(16.0, 3))
        sulcus = np.maximum(sheet, floor)
        split = np.maximum(np.abs(c.x + c.noise(30.0, 1)) - np.float32(0.4), -(c.z - 10 + np.float32(0.002) * c.y**2))
        hind = np.maximum(c.z + 30 + np.float32(0.15) * (c.y + 20), c.y + 22)  # below and behind the tentorium
        pia = np.maximum(np.maximum(brain, np.float32(0.6) - split), np.float32(1) - hind)
        tissue = np.maximum(pia, np.float32(self.sulcus) - sulcus)
        c.fill(c.everything, tissue, (0.0, "grey matter"))
        core = np.maximum(tissue, np.float32(self.ribbon + self.sulcus) - sulcus)
        c.fill(c.everything, np.maximum(core, pia + np.float32(self.ribbon)), (0.0, "white matter"))
        for island in self.insula:
            c.paint(island, (0.0, "grey matter"), (3.4, "csf"), within=pia)

    def _hind(self, c: Canvas) -> None:
        for half in self.cerebellum:
            box = c.box(*half.bounds())
            if box is None:
                continue
            d = half.distance(c, box)
            r = np.sqrt((c.y[box] + 40) ** 2 + (c.z[box] + 42) ** 2 + np.float32(0.2) * c.x[box] ** 2)
            leaves = np.sin(r * np.float32(1.35) + 2 * c.noise(7.0, 25)[box])
            c.fill(box, d, (0.0, "cerebellar grey"))
            c.fill(box, np.maximum(d, (np.float32(0.82) - leaves) * 3), (0.0, "csf"))
            c.fill(box, np.maximum(d + 4, (np.float32(0.4) + leaves) * np.float32(2)), (0.0, "cerebellar white"))
            c.fill(box, d + 12, (0.0, "cerebellar white"))
