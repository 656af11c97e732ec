"""Which boxes of the latent the UNet is run on to repaint a mask: few voxels, and none larger than memory allows.

Boxes are in latent voxels. Each holds a part of the mask with context around it. Boxes that overlap form a cluster:
they are sampled together, their velocities blended, so that no seam lies between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

Box = tuple[slice, slice, slice]
Mask = npt.NDArray[np.bool_]

BLOCK = 8
"""The mask is first laid out in cubes of this side, whose boxes are then joined."""


@dataclass(frozen=True)
class Cover:
    """How boxes are laid.

    Attributes:
        context: voxels kept around the mask for the network to look at.
        multiple: sides are multiples of this (the UNet halves them) unless the volume itself is smaller.
        limit: the most voxels of one box; 0 for no limit. No box is smaller than a cube with its context, though.
    """

    context: int = 6
    multiple: int = 4
    limit: int = 0


def clusters(mask: Mask, cover: Cover) -> list[list[Box]]:
    """Groups of overlapping boxes that cover the mask (d, h, w); none for an empty mask.

    Two boxes are joined wherever that takes no more voxels than both, those that save most first. The boxes, and
    their order, depend on the mask alone.
    """
    parts = np.array([[(p.start, p.stop) for p in box] for box in _blocks(mask)]).reshape(-1, 3, 2)
    shape = np.array(mask.shape)
    parts = _joined(parts, shape, cover)
    boxes = [_box(part) for part in parts]
    groups = _grouped([grown(box, mask.shape, cover.context, cover.multiple) for box in boxes])
    return [_simplest(group, mask.shape, cover) for group in groups]


def _blocks(mask: Mask) -> list[Box]:
    """Tight boxes around what of the mask lies in each cube of a lattice."""
    found = []
    for corner in product(*(range(0, side, BLOCK) for side in mask.shape)):
        cube = [slice(start, start + BLOCK) for start in corner]
        box = tight(mask[cube[0], cube[1], cube[2]], cube)
        if box is not None:
            found.append(box)
    return found


def _sizes(parts: npt.NDArray[np.int64], shape: npt.NDArray[np.int64], cover: Cover) -> npt.NDArray[np.int64]:
    """Voxels that boxes (..., 3, 2) of start and stop have once they are grown."""
    length = np.minimum(parts[..., 1] + cover.context, shape) - np.maximum(parts[..., 0] - cover.context, 0)
    rounded = np.minimum(-(-length // cover.multiple) * cover.multiple, shape)
    sizes: npt.NDArray[np.int64] = rounded.prod(-1)
    return sizes


def _joined(parts: npt.NDArray[np.int64], shape: npt.NDArray[np.int64], cover: Cover) -> npt.NDArray[np.int64]:
    sizes = _sizes(parts, shape, cover)

    def saved(index: Any) -> npt.NDArray[np.int64]:
        """What joining a box, or each of them, with every box would save; -1 where it must not be."""
        one = parts[index][..., None, :, :]
        both = np.stack([np.minimum(one[..., 0], parts[..., 0]), np.maximum(one[..., 1], parts[..., 1])], axis=-1)
        size = _sizes(both, shape, cover)
        gain = sizes[index][..., None] + sizes - size
        allowed = (size <= cover.limit) if cover.limit else True
        result: npt.NDArray[np.int64] = np.where(allowed & (sizes > 0), gain, -1)
        return result

    gains = saved(np.arange(len(parts)))
    np.fill_diagonal(gains, -1)
    while gains.size and gains.max() >= 0:
        i, j = np.unravel_index(gains.argmax(), gains.shape)
        parts[i] = np.stack(
            [np.minimum(parts[i, :, 0], parts[j, :, 0]), np.maximum(parts[i, :, 1], parts[j, :, 1])], -1
        )
        sizes[i], sizes[j] = _sizes(parts[i], shape, cover), 0
        gains[j, :] = gains[:, j] = -1
        gains[i, :] = gains[:, i] = saved(int(i))
        gains[i, i] = -1
    return parts[sizes > 0]


def _simplest(group: list[Box], shape: Sequence[int], cover: Cover) -> list[Box]:
    """One box for a whole group where that has no more voxels than all of them."""
    one = grown(union(group), shape, 0, cover.multiple)
    fits = not cover.limit or volume(one) <= cover.limit
    return [one] if fits and volume(one) <= sum(volume(box) for box in group) else group


def _box(part: npt.NDArray[np.int64]) -> Box:
    a, b, c = (slice(int(start), int(stop)) for start, stop in part)
    return a, b, c


def tight(mask: Mask, origin: Sequence[slice] | None = None) -> Box | None:
    """The smallest box around a mask; None around nothing.

    Args:
        origin: where the mask itself lies in a larger volume.
    """
    sides = []
    for axis in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if not filled.size:
            return None
        start = 0 if origin is None else int(origin[axis].start)
        sides.append(slice(start + int(filled[0]), start + int(filled[-1]) + 1))
    return sides[0], sides[1], sides[2]


def grown(box: Sequence[slice], shape: Sequence[int], context: int, multiple: int = 1) -> Box:
    """The box with context on each side, within the volume, its sides rounded up to a multiple where they fit."""
    sides = []
    for part, side in zip(box, shape, strict=True):
        start, stop = max(part.start - context, 0), min(part.stop + context, side)
        length = min(-(-(stop - start) // multiple) * multiple, side)
        start = max(min(start, side - length), 0)
        sides.append(slice(start, start + length))
    return sides[0], sides[1], sides[2]


def at(box: Box) -> tuple[Any, ...]:
    """The index of a box in the last three axes of a tensor."""
    return (..., *box)


def volume(box: Box) -> int:
    """Voxels of a box."""
    (a, b, c) = (part.stop - part.start for part in box)
    return int(a * b * c)


def union(boxes: Sequence[Box]) -> Box:
    """The smallest box around boxes."""
    sides = [slice(min(p.start for p in axis), max(p.stop for p in axis)) for axis in zip(*boxes, strict=True)]
    return sides[0], sides[1], sides[2]


def within(box: Box, outer: Box) -> Box:
    """A box in the coordinates of one that holds it."""
    sides = [slice(p.start - o.start, p.stop - o.start) for p, o in zip(box, outer, strict=True)]
    return sides[0], sides[1], sides[2]


def _grouped(boxes: list[Box]) -> list[list[Box]]:
    groups: list[list[Box]] = []
    for box in sorted(boxes, key=lambda b: tuple(part.start for part in b)):
        touching = [group for group in groups if any(_overlap(box, other) for other in group)]
        groups = [group for group in groups if group not in touching]
        groups.append([*(b for group in touching for b in group), box])
    return groups


def _overlap(a: Box, b: Box) -> bool:
    return all(x.start < y.stop and y.start < x.stop for x, y in zip(a, b, strict=True))
