"""From the file's grid to the model's and back, as one recorded chain of steps.

The chain is crop, reorient to RAS, resample, pad. Every step knows its way back, so what the model
finds returns to the very voxels it came from. All of it works on voxel indices: obliqueness stays in
the affine, and nothing is rotated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from itertools import permutations
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .volume import Volume

Array = npt.NDArray[Any]
Shape = tuple[int, int, int]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""((start, stop), ...) in voxels, one pair per axis of the file."""

Forward = Literal["image", "mask", "max"]
Inverse = Literal["linear", "nearest"]


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie: (I, J, K) shape and (4, 4) affine, voxel index (centre) to RAS+ mm."""

    shape: Shape
    affine: npt.NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along each axis."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    def moved(self, shape: Shape, matrix: npt.NDArray[np.float64], origin: npt.ArrayLike) -> Grid:
        """The grid whose index x lies at index `matrix @ x + origin` of this one."""
        step = np.eye(4)
        step[:3, :3], step[:3, 3] = matrix, origin
        return Grid(shape, self.affine @ step)


class Step(Protocol):
    """One link of the chain: it maps a grid, and arrays on it in both directions."""

    def grid(self, grid: Grid) -> Grid:
        """The grid after the step."""

    def forward(self, array: Array, kind: Forward) -> Array:
        """An array on the grid after the step."""

    def inverse(self, array: Array, kind: Inverse, fill: float) -> Array:
        """An array on the grid before the step."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for a manifest."""


@dataclass(frozen=True)
class Crop:
    """Keep a box; on the way back the rest is filled."""

    shape: Shape
    box: Box

    @property
    def _slices(self) -> tuple[slice, ...]:
        return tuple(slice(*ends) for ends in self.box)

    def grid(self, grid: Grid) -> Grid:
        (a, b), (c, d), (e, f) = self.box
        return grid.moved((b - a, d - c, f - e), np.eye(3), [a, c, e])

    def forward(self, array: Array, kind: Forward) -> Array:
        return array[self._slices]

    def inverse(self, array: Array, kind: Inverse, fill: float) -> Array:
        whole = np.full(self.shape, fill, dtype=array.dtype, order="F")
        whole[self._slices] = array
        return whole

    def to_dict(self) -> dict[str, Any]:
        return {"step": "crop", "box": [list(ends) for ends in self.box]}


@dataclass(frozen=True)
class Reorient:
    """Permute and flip axes to the closest RAS+ order; no voxel changes."""

    shape: Shape
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @classmethod
    def to_ras(cls, grid: Grid) -> Reorient:
        """The step that takes a grid to the closest RAS+ order."""
        axes, signs = closest_ras(grid.affine)
        return cls(grid.shape, axes, (signs[0] < 0, signs[1] < 0, signs[2] < 0))

    @property
    def _flip(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)

    def grid(self, grid: Grid) -> Grid:
        i, j, k = (grid.shape[axis] for axis in self.axes)
        matrix, origin = np.zeros((3, 3)), np.zeros(3)
        for new, (old, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            matrix[old, new] = -1 if flip else 1
            origin[old] = grid.shape[old] - 1 if flip else 0
        return grid.moved((i, j, k), matrix, origin)

    def forward(self, array: Array, kind: Forward) -> Array:
        turned: Array = array.transpose(self.axes)[self._flip]
        return turned

    def inverse(self, array: Array, kind: Inverse, fill: float) -> Array:
        turned: Array = array[self._flip].transpose(np.argsort(self.axes))
        return turned

    def to_dict(self) -> dict[str, Any]:
        return {"step": "reorient", "axes": list(self.axes), "flips": list(self.flips)}


@dataclass(frozen=True)
class Resample:
    """Other voxel counts over exactly the same field of view, from edge to edge."""

    before: Shape
    after: Shape

    def grid(self, grid: Grid) -> Grid:
        ratio = np.array(self.before) / np.array(self.after)
        return grid.moved(self.after, np.diag(ratio), (ratio - 1) / 2)

    def forward(self, array: Array, kind: Forward) -> Array:
        if kind == "image":
            return _resize(array, self.after, _triangle)
        part = _resize(array != 0, self.after, _area)
        return part >= 0.5 - 1e-6 if kind == "mask" else part > 0

    def inverse(self, array: Array, kind: Inverse, fill: float) -> Array:
        if kind == "linear":
            # column order puts the planes that _resize works on along the file's usual slice axis
            return _resize(np.asfortranarray(array), self.before, _triangle)
        index = [(2 * np.arange(n) + 1) * m // (2 * n) for n, m in zip(self.before, self.after, strict=True)]
        return np.asarray(array.T[np.ix_(*reversed(index))].T)  # transposed, for column order as in "linear"

    def to_dict(self) -> dict[str, Any]:
        return {"step": "resample", "before": list(self.before), "after": list(self.after)}


@dataclass(frozen=True)
class Pad:
    """Repeat the last voxel at the end of each axis; on the way back the repeats go."""

    shape: Shape
    after: Shape

    def grid(self, grid: Grid) -> Grid:
        return Grid(self.after, grid.affine)

    def forward(self, array: Array, kind: Forward) -> Array:
        return np.pad(array, [(0, m - n) for n, m in zip(self.shape, self.after, strict=True)], mode="edge")

    def inverse(self, array: Array, kind: Inverse, fill: float) -> Array:
        i, j, k = self.shape
        return array[:i, :j, :k]

    def to_dict(self) -> dict[str, Any]:
        return {"step": "pad", "after": list(self.after)}


@dataclass(frozen=True, eq=False)
class Placement:
    """How a scan was brought onto the model's grid, and the way back.

    Attributes:
        source: the scan's grid, in the file's axis order.
        grid: the model's grid, RAS+ axis order.
        steps: in the order they were taken.
    """

    source: Grid
    grid: Grid
    steps: tuple[Step, ...]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """True voxel size of the model grid in mm."""
        return self.grid.spacing

    @property
    def scanned(self) -> tuple[slice, ...]:
        """Where on the model grid the scan lies; the rest is padding."""
        last = self.steps[-1] if self.steps else None
        return tuple(slice(side) for side in (last.shape if isinstance(last, Pad) else self.grid.shape))

    def forward(self, array: Array, kind: Forward = "image") -> Array:
        """An (I, J, K) array of the scan's grid on the model grid.

        Args:
            kind: "image": float32, anti-aliased; "mask": bool, where at least half of a model voxel is
                covered; "max": bool, where any of it is, so that small lesions survive.
        """
        _same_shape(array, self.source)
        if kind not in ("image", "mask", "max"):
            raise InputError(f"kind is {kind!r}; give 'image', 'mask' or 'max'.")
        array = reduce(lambda a, step: step.forward(a, kind), self.steps, array)
        return np.ascontiguousarray(array, dtype=np.float32 if kind == "image" else np.bool_)

    def inverse(self, array: Array, kind: Inverse = "linear", fill: float = 0.0) -> Array:
        """A (D, H, W) array of the model grid on the scan's grid, in the file's axis order.

        Args:
            kind: "linear": float32; "nearest": the array's own dtype, no new values (labels).
            fill: the value of voxels outside the crop.
        """
        _same_shape(array, self.grid)
        if kind not in ("linear", "nearest"):
            raise InputError(f"kind is {kind!r}; give 'linear' or 'nearest'.")
        if kind == "linear":
            array = array.astype(np.float32, copy=False)
        result = reduce(lambda a, step: step.inverse(a, kind, fill), reversed(self.steps), array)
        return result.copy(order="K") if np.shares_memory(result, array) else result

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for a manifest: both grids and the steps between them."""
        return {
            "source_shape": list(self.source.shape),
            "model_shape": list(self.grid.shape),
            "model_spacing_mm": list(self.spacing),
            "model_affine": self.grid.affine.tolist(),
            "steps": [step.to_dict() for step in self.steps],
        }


def place(
    volume: Volume, spacing: float | None = 2.0, multiple: int = 16, crop: Box | None = None
) -> tuple[npt.NDArray[np.float32], Placement]:
    """Bring a scan onto the model grid.

    Args:
        volume: the scan, any orientation.
        spacing: wanted voxel size in mm, along all axes. The field of view is kept exactly, so the true
            size is extent / round(extent / spacing), near to it; `Placement.spacing` tells. None: as it is.
        multiple: sides of the model grid are padded up to multiples of this.
        crop: the part of the scan to take, ((start, stop), ...) in voxels of the file.

    Returns:
        (D, H, W) float32 array in the scan's own unit, RAS axis order; and its placement.

    Raises:
        InputError: a crop outside the scan, a spacing or multiple that is not positive.
    """
    if (spacing is not None and not spacing > 0) or multiple < 1:
        raise InputError(f"spacing {spacing} and multiple {multiple} must be greater than 0.")
    source = Grid(volume.shape, volume.affine)
    steps: list[Step] = []
    grid = source

    def take(step: Step) -> None:
        nonlocal grid
        steps.append(step)
        grid = step.grid(grid)

    if crop is not None:
        take(Crop(source.shape, _checked(crop, source.shape)))
    take(Reorient.to_ras(grid))
    if spacing is not None:
        i, j, k = (max(1, round(n * mm / spacing)) for n, mm in zip(grid.shape, grid.spacing, strict=True))
        if (i, j, k) != grid.shape:
            take(Resample(grid.shape, (i, j, k)))
    i, j, k = (-(-n // multiple) * multiple for n in grid.shape)
    if (i, j, k) != grid.shape:
        take(Pad(grid.shape, (i, j, k)))
    placement = Placement(source, grid, tuple(steps))
    return placement.forward(volume.array), placement


def body_box(volume: Volume, threshold: float, margin_mm: float = 10.0, step_mm: float = 4.0) -> Box:
    """The box of what lies above a threshold, with a margin: the patient without the room.

    Connected parts under a fifth of the largest (table, noise) do not count; the second leg does. Looked for on
    voxels about `step_mm` apart, so the box is coarse by as much; the margin covers that.

    Args:
        threshold: in the scan's unit, for instance -500 HU.

    Returns:
        ((start, stop), ...) in voxels of the file; the whole scan where nothing is above the threshold.
    """
    from scipy import ndimage

    steps = [max(1, int(step_mm // mm)) for mm in volume.spacing]
    coarse = volume.array[tuple(slice(None, None, step) for step in steps)] > threshold
    labels, count = ndimage.label(coarse)
    if not count:
        i, j, k = volume.shape
        return (0, i), (0, j), (0, k)
    sizes = np.bincount(labels.ravel())[1:]
    parts = [part for part, size in zip(ndimage.find_objects(labels), sizes, strict=True) if size >= sizes.max() / 5]

    def ends(axis: int) -> tuple[int, int]:
        margin = int(np.ceil(margin_mm / volume.spacing[axis])) + steps[axis] - 1
        first = min(part[axis].start for part in parts) * steps[axis]
        last = (max(part[axis].stop for part in parts) - 1) * steps[axis] + 1
        return max(0, first - margin), min(volume.shape[axis], last + margin)

    return ends(0), ends(1), ends(2)


def closest_ras(affine: npt.NDArray[np.float64]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """For world axes R, A, S: the voxel axis that runs closest to each, and whether it runs along or against.

    Every pairing of axes is scored by the sum of its direction cosines, so no voxel axis is taken twice,
    however oblique the scan.
    """
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    axes = max(permutations(range(3)), key=lambda p: sum(abs(cosines[world, p[world]]) for world in range(3)))
    signs = [1 if cosines[world, axes[world]] >= 0 else -1 for world in range(3)]
    return (axes[0], axes[1], axes[2]), (signs[0], signs[1], signs[2])


def _checked(box: Box, shape: Shape) -> Box:
    """The box as plain integers; InputError where it is empty or leaves the scan."""
    (a, b), (c, d), (e, f) = box
    if not all(0 <= start < stop <= n for (start, stop), n in zip(box, shape, strict=True)):
        raise InputError(f"the crop {box} does not lie inside the scan {shape}.")
    return (int(a), int(b)), (int(c), int(d)), (int(e), int(f))


def _same_shape(array: Array, grid: Grid) -> None:
    if array.shape != grid.shape:
        raise InputError(f"the array is {array.shape}, but its grid is {grid.shape}.")


def _triangle(inputs: int, outputs: int) -> Any:
    """(outputs, inputs) sparse weights: linear interpolation, widened to the voxel ratio when shrinking."""
    ratio = inputs / outputs
    centre = (np.arange(outputs) + 0.5) * ratio - 0.5
    width = max(1.0, ratio)
    index = np.floor(centre - width).astype(int)[:, None] + np.arange(int(np.ceil(2 * width)) + 2)
    return _sparse(index, np.maximum(0, 1 - np.abs(index - centre[:, None]) / width), inputs)


def _area(inputs: int, outputs: int) -> Any:
    """(outputs, inputs) sparse weights: the part of each output voxel that each input voxel covers."""
    edges = np.arange(outputs + 1) * inputs / outputs
    index = np.floor(edges[:-1]).astype(int)[:, None] + np.arange(int(np.ceil(inputs / outputs)) + 1)
    cover = np.minimum(index + 1, edges[1:, None]) - np.maximum(index, edges[:-1, None])
    return _sparse(index, np.where(cover > 1e-9, cover, 0), inputs)


def _sparse(index: npt.NDArray[np.int64], weight: npt.NDArray[np.float64], inputs: int) -> Any:
    """Rows of weights that sum to 1; what falls over an edge counts for the edge voxel."""
    from scipy.sparse import csr_matrix

    rows = np.broadcast_to(np.arange(len(index))[:, None], index.shape)
    weight = weight / weight.sum(axis=1, keepdims=True)
    keep = weight > 0
    entries = (rows[keep], np.clip(index[keep], 0, inputs - 1))
    return csr_matrix((weight[keep].astype(np.float32), entries), shape=(len(index), inputs))


def _resize(array: Array, shape: Shape, kernel: Callable[[int, int], Any]) -> npt.NDArray[np.float32]:
    """Separable resampling to `shape`, float32, without ever holding the whole input as floats.

    The array is walked in planes across its slowest memory axis. Planes come first when they shrink more
    than the slowest axis does, so that what lies between the two passes is as small as it can be.
    """
    order = sorted(range(3), key=lambda axis: -abs(array.strides[axis]))
    view = array.transpose(order)
    target = [shape[axis] for axis in order]
    passes = [_along_first, _in_planes]
    if target[0] / view.shape[0] > target[1] * target[2] / (view.shape[1] * view.shape[2]):
        passes.reverse()
    for step in passes:
        view = step(view, target, kernel)
    result: npt.NDArray[np.float32] = view.transpose(np.argsort(order)).astype(np.float32, copy=False)
    return result


def _along_first(view: Array, target: list[int], kernel: Callable[[int, int], Any]) -> Array:
    """(n, p, q) -> (target[0], p, q), a few rows at a time."""
    n, p, q = view.shape
    if n == target[0]:
        return view
    weights = kernel(n, target[0])
    result = np.empty((target[0], p, q), dtype=np.float32)
    rows = max(1, 2**22 // (n * q))
    for start in range(0, p, rows):
        part = np.ascontiguousarray(view[:, start : start + rows], dtype=np.float32)
        result[:, start : start + rows] = (weights @ part.reshape(n, -1)).reshape(target[0], -1, q)
    return result


def _in_planes(view: Array, target: list[int], kernel: Callable[[int, int], Any]) -> Array:
    """(n, p, q) -> (n, target[1], target[2]), plane by plane."""
    n, p, q = view.shape
    down, right = kernel(p, target[1]), kernel(q, target[2])
    result = np.empty((n, target[1], target[2]), dtype=np.float32)
    for plane, out in zip(view, result, strict=True):
        part = down @ np.ascontiguousarray(plane, dtype=np.float32)
        out[:] = (right @ np.ascontiguousarray(part.T)).T
    return result
