"""Lungs with vessels and airways, heart and great vessels, mediastinum."""

from __future__ import annotations

import numpy as np

from diffugts.synth.field import F32, Canvas, Ellipsoid, Tube, grow_tree, profile, rotation, smooth_path, tree
from diffugts.synth.skeleton import Spine


class Chest:
    """Random contents of the chest, and the large vessels of the whole trunk."""

    def __init__(self, rng: np.random.Generator, spine: Spine) -> None:
        s = rng.uniform(0.85, 1.18)
        self.heart = Ellipsoid((-22, 22, 78), (62 * s, 50 * s, 58 * s), rotation(rng, 18), 2.0, 18.0)
        turn = rotation(rng, 15)
        self.chambers = [
            Ellipsoid((-48, 12, 66), (24 * s, 22 * s, 33 * s), turn, 2.0, 8.0, 1),
            Ellipsoid((-18, 42, 68), (32 * s, 17 * s, 34 * s), turn, 3.0, 8.0, 2),
            Ellipsoid((24, 24, 82), (22 * s, 24 * s, 30 * s), turn, 2.0, 10.0, 1),
            Ellipsoid((-6, -14, 104), (34 * s, 17 * s, 24 * s), turn, 2.0, 10.0, 2),
        ]
        r = rng.uniform(10, 15)
        descending = [spine.point(z, -24, 22) for z in (150, 100, 50, 0)]
        lower = [spine.point(z, -12, 27) for z in (-50, -110, -170, -192)]
        arch = [(-4, 24, 112), (12, 30, 150), (8, 12, 182), (-10, -12, 190), (-22, -34, 172)]
        path = smooth_path(np.array(arch + descending + lower), rng, 1.5, 40)
        self.aorta = Tube.along(path, np.linspace(r + 3, r - 3, 40))
        fork = path[-1]
        iliac = [
            [fork, (s * 35, -5, -240), (s * 62, 20, -300), (s * 78, 52, -350), (s * 82, 50, -440)] for s in (-1, 1)
        ]
        self.arteries = [
            Tube.along(smooth_path(np.array(p, dtype=float), rng, 2, 12), np.linspace(6, 4, 12)) for p in iliac
        ]
        up = [[(x, 5 - abs(x) / 4, 188), (x * 1.8, -2, 230), (x * 2.2, 0, 330)] for x in (16, -6, -18)]
        self.arteries += [Tube.along(smooth_path(np.array(p), rng, 2, 8), rng.uniform(3.5, 5.5)) for p in up]
        cava = [(30, 18, 200), (30, 16, 150), (28, 12, 100), (26, -8, 40), spine.point(-20, 24, 26)]
        cava += [spine.point(z, 18, 26) for z in (-90, -160, -200)]
        p = smooth_path(np.array(cava), rng, 1.5, 30)
        self.veins = [Tube.along(p, rng.uniform(9, 12.5) * np.linspace(0.85, 1.0, 30))]
        for s in (-1, 1):
            q = [p[-1], (s * 32, -12, -245), (s * 55, 8, -300), (s * 72, 42, -350), (s * 72, 40, -440)]
            self.veins.append(Tube.along(smooth_path(np.array(q, dtype=float), rng, 2, 12), np.linspace(8, 6, 12)))
            q = [(30, 18, 200), (s * 40 + 10, 22, 222), (s * 60, 10, 270), (s * 62, 5, 330)]
            self.veins.append(Tube.along(smooth_path(np.array(q, dtype=float), rng, 2, 10), rng.uniform(5, 7.5)))
        self.pulmonary = Tube.along([(-22, 40, 108), (-20, 24, 138), (-30, 2, 142)], [15, 14, 11])
        self.pulmonary_right = Tube.along([(-20, 20, 138), (15, 0, 132), (40, -4, 124)], [11, 11, 9])
        carina = (3.0, -22.0, float(rng.uniform(138, 156)))
        top = [(0, -2, 340), (0, -6, 280), (2, -16, 200), carina]
        self.trachea = Tube.along(smooth_path(np.array(top), rng, 1.0, 12), rng.uniform(7, 10))
        bronchi, vessels = [], []
        for s in (-1, 1):
            hilum = (s * 38.0, -8.0, carina[2] - 28)
            bronchi.append(([np.array([carina, hilum])], [(6.5, 5.0)]))
            for d in ((s * 0.7, 0.2, 0.9), (s * 1.0, 0.6, -0.2), (s * 0.6, -0.5, -1.0), (s * 0.9, -0.6, 0.3)):
                bronchi.append(grow_tree(rng, hilum, d, 26, 3.4, 3))
            for _ in range(9):
                aim = (s * rng.uniform(0.2, 1), rng.normal(0, 0.7), rng.normal(-0.15, 0.9))
                root = (hilum[0], hilum[1] + rng.normal(0, 6), hilum[2] + rng.normal(0, 10))
                vessels.append(grow_tree(rng, root, aim, 34, rng.uniform(3.0, 5.5), 5, 0.5))
        self.bronchi, self.lung_vessels = tree(bronchi), tree(vessels)
        gullet = [
            (0, -14, 330),
            (0, -24, 240),
            (-2, -30, 180),
            spine.point(100, -8, 24),
            spine.point(40, -14, 30),
        ]
        self.gullet = Tube.along(smooth_path(np.array(gullet + [(-30, -5, 12)]), rng, 1.5, 16), rng.uniform(5, 8.5))
        self.gullet_gas = rng.uniform(2, 7)
        self.hilar = [
            Ellipsoid(tuple(rng.normal(c, (6, 6, 12))), tuple(rng.uniform(2.5, 5.5, 3)), rotation(rng, 40))
            for c in rng.permutation([(35, -8, 125), (-38, -8, 125), (8, -5, 165), (-6, 0, 170), (5, -26, 128)])
        ]
        self.thyroid = [Ellipsoid((s * 18, 2, 318), (9, 10, 22)) for s in (-1, 1)]

    def paint(self, c: Canvas, inner: F32, dome: F32) -> None:
        """Draw the chest into a cavity: distances to its wall and, upwards, to the diaphragm."""
        box = c.box((-150, -120, -90), (150, 120, 300))
        if box is None:
            return
        apex = (c.z - np.float32(262) + np.float32(0.0035) * (np.abs(c.x) - 52) ** 2)[box]
        middle = np.float32(24) - np.abs(c.x[box]) + profile(c.z[box], [-80, 60, 150, 200, 260], [0, 10, 4, 4, 4])
        middle = middle + 5 * c.noise(16.0, 2)[box] - np.float32(0.0016) * (c.y[box] - 10) ** 2
        lung = np.maximum(np.maximum(inner[box] + 2, -dome[box]), np.maximum(apex, middle * np.float32(0.9)))
        c.fill(box, lung, (0.0, "lung"))
        sag = np.float32(0.3) * c.y[box] + np.float32(0.1) * c.z[box]  # the lung is denser where it hangs
        if c.mean[0] < -500:
            haze = np.maximum(c.noise(4.0, 9)[box] - np.float32(1.25), 0) * 230 - sag
            c.image[box] += np.where(lung < -2, haze, 0).astype(np.float32)
        whole = np.full(c.x.shape, 1e3, np.float32)
        whole[box] = lung
        c.paint(self.lung_vessels, (0.0, "lung vessel"), within=whole)
        c.paint(self.heart, (-6.0, "visceral fat"))
        c.paint(self.bronchi, (-1.2, "airway wall"), (0.4, "airway"))
        c.paint(self.heart, (0.0, "myocardium"))
        for chamber in self.chambers:
            c.paint(chamber, (0.0, "blood pool"))
        c.paint(self.pulmonary, (0.0, "blood pool"))
        c.paint(self.pulmonary_right, (0.0, "blood pool"))
        for node in self.hilar:
            c.paint(node, (0.0, "lymph node"))
        c.paint(self.gullet, (0.0, "oesophagus"), (self.gullet_gas, "gas"))
        c.paint(self.trachea, (-1.5, "airway wall"), (0.0, "airway"))
        for lobe in self.thyroid:
            c.paint(lobe, (0.0, "thyroid"))
