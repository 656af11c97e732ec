"""Liver, gallbladder, spleen, stomach, bowel, pancreas, kidneys, adrenals, bladder."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from diffugts.synth.field import F32, Canvas, Ellipsoid, Tube, grow_tree, join, rotation, smooth_path, tree
from diffugts.synth.skeleton import Spine, turn_y, turn_z


class Abdomen:
    """Random contents of abdomen and pelvis."""

    def __init__(self, rng: np.random.Generator, spine: Spine, muscle: float, female: bool) -> None:
        g = rng.uniform(0.86, 1.16, 3)
        self.liver = [
            Ellipsoid((72, 0, -28), (80 * g[0], 88, 82 * g[1]), rotation(rng, 10), 2.5, 22.0),
            Ellipsoid((5, 48, -12), (82 * g[2], 38, 40 * g[1]), rotation(rng, 14), 2.0, 22.0, 1),
        ]
        roots = [((30.0, 18.0, -45.0), d) for d in ((1, 0.2, 0.3), (0.8, -0.7, 0.1), (-0.6, 0.9, 0.4), (1, 0, -0.5))]
        top = [((26.0, -10.0, 14.0), d) for d in ((1, 0.1, -0.5), (0.5, 0.9, -0.6), (-0.4, 1, -0.5), (0.8, -0.5, -0.8))]
        self.liver_vessels = tree([grow_tree(rng, r, d, 32, rng.uniform(3.5, 5.5), 4) for r, d in roots + top])
        self.portal = Tube.along(smooth_path([(2, 20, -78), (14, 20, -62), (30, 18, -45)], rng, 2, 6), 6.5)
        self.splenic = Tube.along(smooth_path([(2, 20, -72), (-40, 12, -50), (-85, -25, -30)], rng, 3, 10), 4.2)
        self.mesenteric = [
            Tube.along(
                smooth_path([(x, 18, -70), (x, 30, -120), (x + 14, 32, -200)], rng, 4, 8),
                np.linspace(5, 3, 8),
            )
            for x in (3.0, -9.0)
        ]
        self.gallbladder = Ellipsoid((52, 52, -82), tuple(rng.uniform((8, 10, 14), (17, 22, 32))), rotation(rng, 30))
        self.has_gallbladder = bool(rng.random() < 0.85)
        self.spleen = Ellipsoid((-94, -42, -34), tuple(rng.uniform((24, 40, 42), (36, 58, 64))), rotation(rng, 20), 2.5)
        way = [(-45, -8, 8), (-72, 5, -20), (-70, 38, -60), (-25, 62, -90), (22, 48, -84)]
        size = rng.uniform(0.6, 1.15)
        self.stomach = Tube.along(
            smooth_path(way, rng, 5, 14),
            size * np.interp(np.linspace(0, 4, 14), range(5), [28, 40, 34, 26, 14]),
            rough=2.0,
        )
        self.stomach_gas = rng.uniform(15, 75)
        self.stomach_food = bool(rng.random() < 0.4)
        way = [(22, 48, -84), (48, 18, -80), (50, 8, -125), (15, 6, -142), (-20, 8, -132), (-36, 25, -112)]
        self.duodenum = Tube.along(smooth_path(way, rng, 3, 16), rng.uniform(9, 13), rough=1.0)
        way = [(30, 10, -108), (32, 14, -80), (8, 28, -66), (-25, 26, -54), (-58, 2, -42), (-84, -22, -32)]
        fat = rng.uniform(0.7, 1.2)
        self.pancreas = Tube.along(
            smooth_path(way, rng, 3, 16),
            fat * np.interp(np.linspace(0, 5, 16), range(6), [10, 17, 9, 11, 11, 9]),
            rough=1.8,
            grain=5.0,
        )
        self.kidneys = []
        for s in (-1, 1):
            c = (s * rng.uniform(56, 68), rng.uniform(-52, -38), rng.uniform(-92, -62) - (8 if s > 0 else 0))
            lean = np.deg2rad(rng.uniform(8, 22)) * s
            face = np.deg2rad(rng.uniform(15, 50)) * s
            turn = turn_y(-lean) @ turn_z(face)
            radii = tuple(rng.uniform((23, 26, 47), (31, 34, 62)))
            medial = np.array([-s * 0.95 * radii[0], 0.0, 0.0]) @ turn  # towards the hilum
            self.kidneys.append((Ellipsoid(c, radii, turn, 1.5, 12.0), tuple(np.array(c) + medial), s))
        self.adrenals = []
        for k, _, s in self.kidneys:
            apex = np.array(k.centre) + (-s * 22, 16, k.radii[2] * 0.85)
            limbs = [np.array([apex, apex + rng.normal((s * a, -18, -10), 2)]) for a in (3, 13)]
            self.adrenals.append(Tube(np.stack(limbs), np.full((2, 2), rng.uniform(1.8, 3.4))))
        fill = rng.uniform(0.5, 1.25)
        self.bladder = Ellipsoid((0, 38, -322), (42 * fill, 34 * fill, 36 * fill), rotation(rng, 10), 1.5, 20.0)
        self.pelvic = (
            Ellipsoid((0, 2, -318), (30, 20, 32), rotation(rng, 20), 3.0)
            if female
            else (Ellipsoid((0, 22, -362), (24, 18, 18), rotation(rng, 10), 2.0))
        )
        self.psoas = [
            Tube.along(
                [
                    spine.point(-60, s * 26, 4),
                    spine.point(-140, s * 42, 6),
                    (s * 62, -15, -220),
                    (s * 72, 22, -290),
                    (s * 88, 15, -350),
                ],
                np.array([6, 19, 26, 22, 14]) * muscle,
            )
            for s in (-1, 1)
        ]
        self._bowel(rng)

    def _bowel(self, rng: np.random.Generator) -> None:
        sag = rng.uniform(-150, -100)
        way = [
            (92, 25, -245),
            (104, 2, -185),
            (104, -8, -125),
            (82, 25, -98),
            (40, 68, sag + 12),
            (-10, 74, sag),
            (-62, 60, -85),
            (-104, 5, -52),
            (-116, -18, -110),
            (-112, -5, -185),
            (-92, 25, -235),
            (-45, 30, -258),
            (-15, 10, -240),
            (12, 5, -268),
            (2, -38, -300),
            (0, -48, -345),
            (0, -40, -385),
        ]
        n = 90
        path = smooth_path(way, rng, 5, n)
        calibre = np.interp(np.linspace(0, 16, n), [0, 4, 8, 12, 16], rng.uniform(14, 27, 5))
        haustra = 1 + 0.12 * np.sin(np.arange(n) * 2 * np.pi / 3.7 + rng.uniform(0, 6))
        self.colon = Tube.along(path, calibre * haustra, rough=1.8, grain=6.0)
        self.colon_path = path
        kinds = rng.choice(["gas", "stool", "bowel fluid"], size=12, p=[0.42, 0.43, 0.15])
        self.colon_fill = [str(kinds[i * 12 // n]) for i in range(n - 1)]
        self.colon_wall = rng.uniform(1.8, 3.6)
        loops: list[npt.NDArray[np.float64]] = [np.array([-36.0, 25, -112])]
        low, high = np.array([-92.0, -2, -300]), np.array([86.0, 78, -105])
        heading = rng.normal(size=3)
        for _ in range(190):  # a walk that keeps away from itself, so that loops pack side by side
            heading = heading / np.linalg.norm(heading)
            options = loops[-1] + 17 * (heading * 0.7 + rng.normal(0, 0.8, (10, 3)))
            options = np.clip(options, low, high)
            past = np.array(loops[:-1][-70:]) if len(loops) > 1 else np.full((1, 3), 1e3)
            room = np.linalg.norm(options[:, None] - past[None], axis=2).min(1)
            step = options[int(np.argmax(np.minimum(room, 27) + rng.normal(0, 2, 10)))]
            heading = step - loops[-1] + rng.normal(0, 3, 3)
            loops.append(step)
        count = int(rng.integers(90, 191))
        self.loops = Tube.along(
            np.array(loops[:count]),
            rng.uniform(8.5, 13.5) * rng.uniform(0.8, 1.15, count),
            rough=1.2,
            grain=6.0,
        )
        self.loop_fill = [
            str(k) for k in rng.choice(["bowel wall", "bowel fluid", "gas"], size=count - 1, p=[0.45, 0.45, 0.1])
        ]

    def paint(self, c: Canvas, inner: F32, dome: F32, arteries: list[Tube], veins: list[Tube]) -> None:
        """Draw the abdomen into a cavity, and the large vessels of the trunk over it."""
        cavity = np.maximum(inner + 3, dome + 4)
        for muscle in self.psoas:
            c.paint(muscle, (0.0, "muscle"))
        c.paint(self.loops, (0.0, "bowel wall"), within=inner + 4)
        self._contents(c, self.loops, self.loop_fill, 2.6, inner + 6)
        c.paint(self.duodenum, (0.0, "bowel wall"), (2.5, "bowel fluid"))
        c.paint(self.colon, (0.0, "colon wall"), within=inner + 3)
        self._contents(c, self.colon, self.colon_fill, self.colon_wall, inner + 5)
        c.paint(self.pancreas, (0.0, "pancreas"))
        c.paint(self.spleen, (0.0, "spleen"), within=cavity)
        self._liver(c, cavity)
        c.paint(
            self.stomach,
            (0.0, "stomach wall"),
            (4.0, "stool" if self.stomach_food else "bowel fluid"),
            within=cavity + 1,
        )
        box = c.box(*self.stomach.bounds())
        if box is not None:
            gas = np.maximum(
                self.stomach.distance(c, box) + 4,
                np.maximum(cavity[box] + 4, np.float32(self.stomach_gas) - c.y[box]),
            )
            c.fill(box, gas, (0.0, "gas"))
        for kidney, hilum, _ in self.kidneys:
            self._kidney(c, kidney, hilum)
        for gland in self.adrenals:
            c.paint(gland, (0.0, "adrenal"))
        for vessel in arteries:
            c.paint(vessel, (0.0, "artery"))
        for vessel in (*veins, self.portal, self.splenic, *self.mesenteric):
            c.paint(vessel, (0.0, "vein"))
        c.paint(self.pelvic, (0.0, "pelvic organ"))
        c.paint(self.bladder, (-3.0, "muscle"), (0.0, "bladder"))

    def _contents(self, c: Canvas, tube: Tube, fills: list[str], wall: float, within: F32) -> None:
        """What fills a bowel, by runs of segments; gas floats up, the rest of its run is fluid."""
        start = 0
        for i in range(1, len(fills) + 1):
            if i < len(fills) and fills[i] == fills[start]:
                continue
            part = Tube(
                tube.ends[start:i],
                np.maximum(tube.radii[start:i] - wall, 2.0),
                tube.rough,
                tube.grain,
                tube.key,
            )
            if fills[start] == "gas":
                box = c.box(*part.bounds())
                if box is not None:
                    d = np.maximum(part.distance(c, box), within[box])
                    c.fill(box, d, (0.0, "bowel fluid"))
                    level = np.float32(part.ends[..., 1].mean() - 8)
                    c.fill(box, np.maximum(d, level - c.y[box]), (0.0, "gas"))
            else:
                c.paint(part, (0.0, fills[start]), within=within)
            start = i

    def _liver(self, c: Canvas, cavity: F32) -> None:
        lows, highs = zip(*(s.bounds() for s in self.liver), strict=True)
        box = c.box(np.min(lows, 0), np.max(highs, 0))
        if box is None:
            return
        d = join(self.liver[0].distance(c, box), self.liver[1].distance(c, box), 25.0)
        under = (np.float32(-62) - c.z[box] + np.float32(0.5) * (95 - c.x[box])) * np.float32(0.7)
        d = np.maximum(np.maximum(d, cavity[box]), under - np.float32(22))
        c.fill(box, d, (0.0, "liver"))
        whole = np.full(c.x.shape, 1e3, np.float32)
        whole[box] = d + 3
        c.paint(self.liver_vessels, (0.0, "liver vessel"), within=whole)
        if self.has_gallbladder:
            c.paint(self.gallbladder, (-1.5, "bowel wall"), (0.0, "gallbladder"))

    def _kidney(self, c: Canvas, kidney: Ellipsoid, hilum: tuple[float, ...]) -> None:
        box = c.box(*kidney.bounds())
        if box is None:
            return
        h = [a[box] - np.float32(v) for a, v in zip((c.x, c.y, c.z), hilum, strict=True)]
        notch = np.sqrt(h[0] ** 2 + h[1] ** 2 + np.float32(0.3) * h[2] ** 2) - np.float32(13)
        d = kidney.distance(c, box)
        body = np.maximum(d, -notch)
        c.fill(box, body, (0.0, "kidney cortex"))
        pyramids = np.maximum(
            np.maximum(d + 7, np.float32(5) - notch),
            np.float32(4) * (np.abs(c.noise(7.0, 11)[box]) - np.float32(0.95)),
        )
        c.fill(box, pyramids, (0.0, "kidney medulla"))
        sinus = np.maximum(np.maximum(d + 9, notch - 7), np.float32(-0.3) * c.noise(5.0, 12)[box])
        c.fill(box, sinus, (0.0, "visceral fat"))
        c.fill(
            box,
            np.maximum(
                np.maximum(d + 9, notch - 9),
                np.float32(3) * (np.abs(c.noise(5.0, 12)[box]) - np.float32(0.5)),
            ),
            (0.0, "renal pelvis"),
        )
