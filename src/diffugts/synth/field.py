"""Where anatomy is drawn: world-anchored noise, implicit shapes, and the canvas that composes them.

All lengths are mm. A shape is a signed distance (negative inside) that is evaluated only inside its bounding
box; the canvas turns the distance into soft coverage, so that edges carry partial volume at any spacing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from diffugts.synth.labels import L

F32: TypeAlias = npt.NDArray[np.float32]
Box: TypeAlias = tuple[slice, slice, slice]
Vec: TypeAlias = tuple[float, float, float]
Axes: TypeAlias = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]
FAR = np.float32(1e3)


def _hash(ix: npt.NDArray[Any], iy: npt.NDArray[Any], iz: npt.NDArray[Any], seed: int) -> F32:
    """Unit-variance uniform values of lattice points: a function of the point and the seed alone."""
    u = np.uint32
    with np.errstate(over="ignore"):
        h = (
            (ix.astype(u) * u(0x8DA6B343))[:, None, None]
            ^ (iy.astype(u) * u(0xD8163841))[None, :, None]
            ^ (iz.astype(u) * u(0xCB1AB31F))[None, None, :]
        )
        h = h + u((seed * 0x9E3779B1 + 0x7F4A7C15) & 0xFFFFFFFF)
        h ^= h >> u(16)
        h *= u(0x7FEB352D)
        h ^= h >> u(15)
        h *= u(0x846CA68B)
        h ^= h >> u(16)
    unit: F32 = h.astype(np.float32) * np.float32(2.0**-32)
    out: F32 = (unit - np.float32(0.5)) * np.float32(2 * np.sqrt(3.0))
    return out


def _spline_rows(coords: npt.NDArray[np.float64], scale: float) -> tuple[F32, npt.NDArray[np.int64]]:
    """Cubic B-spline weights (n, m) of n coordinates on the m lattice points that they touch."""
    u = coords / scale
    base = np.floor(u).astype(np.int64)
    t = u - base
    first = int(base.min()) - 1
    cells = np.arange(first, int(base.max()) + 3)
    weights = np.zeros((len(u), len(cells)))
    rows = np.arange(len(u))
    spline = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    for k, w in enumerate(spline):
        weights[rows, base - 1 + k - first] = w / 6
    return weights.astype(np.float32), cells


def noise(axes: Sequence[npt.NDArray[Any]], scale: float, seed: int) -> F32:
    """Smooth noise of about unit variance at a grid of world coordinates.

    The lattice is hashed from the world position, so any two windows agree where they overlap; it is
    interpolated one axis at a time (three small matrix products).

    Args:
        axes: world coordinates along each axis, lengths D, H, W, mm.
        scale: lattice distance, mm (features are about twice this long).
        seed: which noise.

    Returns:
        (D, H, W) float32.
    """
    (wx, cx), (wy, cy), (wz, cz) = (_spline_rows(np.asarray(a, dtype=np.float64), scale) for a in axes)
    lattice = _hash(cx, cy, cz, seed)
    rows = (wx @ lattice.reshape(len(cx), -1)).reshape(len(wx), len(cy), len(cz))
    out: F32 = np.matmul(wy, rows) @ wz.T
    out *= np.float32(3.0)  # the B-spline keeps a ninth of the variance
    return out


class Shape(Protocol):
    """A solid: where it is, and how far a point is from its surface."""

    def bounds(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Lower and upper corner, anatomy mm."""

    def distance(self, canvas: Canvas, box: Box) -> F32:
        """Signed distance inside the box, mm, negative inside."""


@dataclass(eq=False)
class Canvas:
    """A window on a patient while it is being drawn.

    `x, y, z` are the anatomy coordinates of each voxel (world coordinates scaled and smoothly displaced),
    which shapes are written in; textures use world coordinates. `mean`, `fine` and `coarse` hold, per label,
    the intensity and the amplitude of its two textures.
    """

    axes: Axes
    scale: npt.NDArray[np.float64]
    x: F32
    y: F32
    z: F32
    slack: float
    edge: float
    seed: int
    mean: F32
    fine: F32
    coarse: F32
    image: F32 = field(init=False)
    labels: npt.NDArray[np.uint8] = field(init=False)
    _noise: dict[tuple[float, int], F32] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.image = np.full(self.x.shape, self.mean[0], dtype=np.float32)
        self.labels = np.zeros(self.x.shape, dtype=np.uint8)

    def noise(self, scale: float, key: int = 0) -> F32:
        """Shared world noise of this patient, computed once per window."""
        if (scale, key) not in self._noise:
            self._noise[scale, key] = noise(self.axes, scale, self.seed * 131 + key * 7919 + int(scale * 10))
        return self._noise[scale, key]

    @property
    def everything(self) -> Box:
        """The whole window."""
        return slice(None), slice(None), slice(None)

    def box(self, lo: npt.ArrayLike, hi: npt.ArrayLike, margin: float = 0.0) -> Box | None:
        """Voxels that can hold anatomy coordinates in [lo, hi], or None when the window has none of them."""
        low, high = np.asarray(lo, dtype=np.float64), np.asarray(hi, dtype=np.float64)
        middle = 0.5 * (low + high)
        slack = self.slack
        offset = np.zeros(3)
        half = 0.5 * float((high - low).max())
        if 3 + 0.35 * half < slack:  # small shapes: follow the local displacement instead of allowing for any
            slack = 3 + 0.35 * half
            for _ in range(2):
                at = tuple(
                    int(np.clip(np.searchsorted(a, (m - o) * s), 0, len(a) - 1))
                    for a, m, o, s in zip(self.axes, middle, offset, self.scale, strict=True)
                )
                here = np.array([a[i] for a, i in zip(self.axes, at, strict=True)]) / self.scale
                offset = np.array([self.x[at], self.y[at], self.z[at]]) - here
        pad = slack + margin + 1.5 * self.edge
        slices = []
        for k in range(3):
            first = int(np.searchsorted(self.axes[k], (low[k] - offset[k] - pad) * self.scale[k]))
            last = int(np.searchsorted(self.axes[k], (high[k] - offset[k] + pad) * self.scale[k]))
            if last <= first:
                return None
            slices.append(slice(first, last))
        return slices[0], slices[1], slices[2]

    def paint(self, shape: Shape, *layers: tuple[float, str], within: F32 | None = None) -> None:
        """Draw a shape as nested layers, each (depth below the surface mm, tissue), outermost first.

        `within` is a distance over the whole window that the shape is clipped to.
        """
        box = self.box(*shape.bounds(), margin=max(0.0, -layers[0][0]))
        if box is None:
            return
        d = shape.distance(self, box)
        if within is not None:
            d = np.maximum(d, within[box])
        self.fill(box, d, *layers)

    def fill(self, box: Box, distance: F32, *layers: tuple[float, str]) -> None:
        """Draw a distance that was evaluated on a box, as nested layers."""
        if distance.size == 0 or float(distance.min()) > 0.5 * self.edge:
            return
        for depth, name in layers:
            label = L[name]
            cover = np.clip(np.float32(0.5 - depth / self.edge) - distance * np.float32(1 / self.edge), 0, 1)
            self.image[box] += cover * (self.tissue(label, box) - self.image[box])
            self.labels[box][cover > 0.5] = label

    def tissue(self, label: int, box: Box) -> F32 | np.float32:
        """Intensity of a tissue with its textures on a box."""
        value: F32 | np.float32 = self.mean[label]
        if self.fine[label]:
            value = value + self.fine[label] * self.noise(2.2)[box]
        if self.coarse[label]:
            value = value + self.coarse[label] * self.noise(7.0)[box]
        return value


def profile(values: F32, knots: npt.ArrayLike, heights: npt.ArrayLike) -> F32:
    """Piecewise linear function of a coordinate by table look-up (half-mm steps: much faster than interp)."""
    at, height = np.asarray(knots, dtype=np.float64), np.asarray(heights, dtype=np.float64)
    table = np.interp(np.arange(at[0], at[-1] + 0.5, 0.5), at, height).astype(np.float32)
    index = ((values - np.float32(at[0])) * np.float32(2)).astype(np.int32)
    out: F32 = table[np.clip(index, 0, len(table) - 1)]
    return out


def join(a: F32, b: F32, soft: float) -> F32:
    """Smooth union of two distances over about `soft` mm."""
    h = np.clip(np.float32(0.5) + np.float32(0.5 / soft) * (b - a), 0, 1)
    out: F32 = b + h * (a - b) - np.float32(soft) * h * (1 - h)
    return out


def rotation(rng: np.random.Generator, degrees: float) -> npt.NDArray[np.float64]:
    """Random rotation matrix of at most about `degrees` per axis."""
    out = np.eye(3)
    for k, angle in enumerate(np.deg2rad(rng.uniform(-degrees, degrees, 3))):
        c, s = np.cos(angle), np.sin(angle)
        i, j = [a for a in range(3) if a != k]
        turn = np.eye(3)
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
        out = out @ turn
    return out


@dataclass(frozen=True, eq=False)
class Ellipsoid:
    """Ellipsoid, optionally turned (rows of `turn` are its axes) and rough (noise amplitude mm, scale mm)."""

    centre: Vec
    radii: Vec
    turn: npt.NDArray[np.float64] | None = None
    rough: float = 0.0
    grain: float = 12.0
    key: int = 0

    def bounds(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        radii = np.array(self.radii)
        if self.turn is not None:
            radii = np.sqrt((self.turn**2).T @ radii**2)
        reach = radii + 2 * self.rough
        return np.array(self.centre) - reach, np.array(self.centre) + reach

    def distance(self, canvas: Canvas, box: Box) -> F32:
        p = [a[box] - np.float32(c) for a, c in zip((canvas.x, canvas.y, canvas.z), self.centre, strict=True)]
        if self.turn is not None:
            m = self.turn.astype(np.float32)
            p = [m[k, 0] * p[0] + m[k, 1] * p[1] + m[k, 2] * p[2] for k in range(3)]
        q = [a * np.float32(1 / r) for a, r in zip(p, self.radii, strict=True)]
        k0 = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2)
        g = [a * np.float32(1 / r) for a, r in zip(q, self.radii, strict=True)]
        k1 = np.sqrt(g[0] ** 2 + g[1] ** 2 + g[2] ** 2) + np.float32(1e-6)
        d: F32 = k0 * (k0 - 1) / k1
        if self.rough:
            d = d + np.float32(self.rough) * canvas.noise(self.grain, self.key)[box]
        return d


@dataclass(frozen=True, eq=False)
class Tube:
    """Round cones along segments: (n, 2, 3) end points and (n, 2) radii, mm. Vessels, bowel, ribs, trees."""

    ends: npt.NDArray[np.float64]
    radii: npt.NDArray[np.float64]
    rough: float = 0.0
    grain: float = 12.0
    key: int = 0

    @classmethod
    def along(cls, points: npt.ArrayLike, radii: npt.ArrayLike, **rest: Any) -> Tube:
        """Tube along a polyline with a radius per point (or one for all)."""
        p = np.asarray(points, dtype=np.float64)
        r = np.broadcast_to(np.asarray(radii, dtype=np.float64), (len(p),))
        return cls(np.stack([p[:-1], p[1:]], 1), np.stack([r[:-1], r[1:]], 1), **rest)

    def bounds(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        reach = self.radii[..., None] + 2 * self.rough
        return (self.ends - reach).min((0, 1)), (self.ends + reach).max((0, 1))

    def distance(self, canvas: Canvas, box: Box) -> F32:
        out = np.full(canvas.x[box].shape, FAR, dtype=np.float32)
        start = [s.start or 0 for s in box]
        for (a, b), (ra, rb) in zip(self.ends, self.radii, strict=True):
            reach = max(ra, rb) + 2 * self.rough
            part = canvas.box(np.minimum(a, b) - reach, np.maximum(a, b) + reach, margin=2.0)
            if part is None:
                continue
            x, y, z = (
                slice(max(part[k].start - start[k], 0), max(min(part[k].stop - start[k], out.shape[k]), 0))
                for k in range(3)
            )
            target = out[x, y, z]
            if target.size:
                full = tuple(slice(s.start + o, s.stop + o) for s, o in zip((x, y, z), start, strict=True))
                np.minimum(target, _cone(canvas, (full[0], full[1], full[2]), a, b, ra, rb), out=target)
        if self.rough:
            out += np.float32(self.rough) * canvas.noise(self.grain, self.key)[box]
        return out


def _cone(
    canvas: Canvas, box: Box, a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], ra: float, rb: float
) -> F32:
    """Distance to one round cone (a capsule whose radius runs from ra to rb)."""
    axis = (b - a).astype(np.float32)
    px, py, pz = (c[box] - np.float32(v) for c, v in zip((canvas.x, canvas.y, canvas.z), a, strict=True))
    length2 = np.float32(max(float(axis @ axis), 1e-6))
    h = np.clip((px * axis[0] + py * axis[1] + pz * axis[2]) / length2, 0, 1)
    px -= h * axis[0]
    py -= h * axis[1]
    pz -= h * axis[2]
    d: F32 = np.sqrt(px * px + py * py + pz * pz) - (np.float32(ra) + h * np.float32(rb - ra))
    return d


def smooth_path(points: npt.ArrayLike, rng: np.random.Generator, jitter: float, n: int) -> npt.NDArray[np.float64]:
    """Catmull-Rom curve of n points through jittered way points."""
    p = np.asarray(points, dtype=np.float64)
    p = p + rng.normal(0, jitter, p.shape)
    full = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    t = np.linspace(0, len(p) - 1 - 1e-9, n)
    i = t.astype(int)
    f = (t - i)[:, None]
    a, b, c, d = full[i], full[i + 1], full[i + 2], full[i + 3]
    out: npt.NDArray[np.float64] = 0.5 * (
        2 * b + (c - a) * f + (2 * a - 5 * b + 4 * c - d) * f**2 + (3 * b - a - 3 * c + d) * f**3
    )
    return out


def grow_tree(
    rng: np.random.Generator,
    root: Vec,
    direction: Vec,
    length: float,
    radius: float,
    depth: int,
    spread: float = 0.6,
) -> tuple[list[npt.NDArray[np.float64]], list[tuple[float, float]]]:
    """Branching vessel: segments (2, 3) and their radii, halving in area at each fork."""
    ends: list[npt.NDArray[np.float64]] = []
    radii: list[tuple[float, float]] = []
    stack = [(np.array(root, dtype=np.float64), np.array(direction, dtype=np.float64), length, radius, depth)]
    while stack:
        a, d, size, r, left = stack.pop()
        d = d / np.linalg.norm(d)
        b = a + d * size * rng.uniform(0.8, 1.2)
        ends.append(np.stack([a, b]))
        radii.append((r, r * 0.85))
        if left > 1:
            side = np.cross(d, rng.normal(size=3))
            side /= np.linalg.norm(side) + 1e-9
            for sign in (-1.0, 1.0):
                turn = d + sign * side * spread * rng.uniform(0.6, 1.4) + rng.normal(0, 0.15, 3)
                stack.append((b, turn, size * rng.uniform(0.7, 0.95), r * rng.uniform(0.66, 0.78), left - 1))
    return ends, radii


def tree(parts: list[tuple[list[npt.NDArray[np.float64]], list[tuple[float, float]]]], **rest: Any) -> Tube:
    """One tube from several grown trees."""
    ends = [e for p in parts for e in p[0]]
    radii = [r for p in parts for r in p[1]]
    return Tube(np.stack(ends), np.array(radii), **rest)
