"""Masks as solids: their parts, depths, shells, surfaces and rounded forms. All arrays are (D, H, W)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Map = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int32]
Spacing = tuple[float, float, float]

SHELL_MM = (2.0, 7.0)  # from a part: what it lies in


def parts_of(mask: Mask, spacing: Spacing, least_ml: float) -> list[Mask]:
    """The connected parts of a mask of at least ``least_ml``, largest first."""
    labels, _ = ndimage.label(mask)
    ml = np.bincount(labels.ravel()) * float(np.prod(spacing)) / 1000
    return [labels == number for number in np.argsort(-ml) if number and ml[number] >= least_ml]


def depth_of(mask: Mask, spacing: Spacing, beyond: bool = False) -> Map:
    """Distance of each voxel of a mask from what is not in it, mm; ``beyond``: where the scan ends it goes on."""
    width = int(beyond)
    depth = ndimage.distance_transform_edt(np.pad(mask, width, mode="edge"), sampling=spacing)
    return np.asarray(depth[tuple(slice(width, width + side) for side in mask.shape)], np.float32)


def closed(mask: Mask, mm: float, spacing: Spacing) -> Mask:
    """A mask with its gaps of up to twice so many mm closed; where the scan ends it goes on."""
    return np.asarray(mask | (depth_of(depth_of(~mask, spacing) < mm, spacing, beyond=True) > mm))


def thick_parts(mask: Mask, thin: float, spacing: Spacing) -> tuple[Labels, Map]:
    """The parts of a mask that are deeper than ``thin`` mm somewhere, numbered from 1, and each voxel's depth, mm.

    Thin bridges part them; what is thin about a part belongs to it up to that far.
    """
    depth = depth_of(mask, spacing, beyond=True)
    labels, _ = ndimage.label(depth > thin)
    far, nearest = ndimage.distance_transform_edt(labels == 0, sampling=spacing, return_indices=True)
    within = mask & (far <= thin + max(spacing) / 4)
    return np.where(within, labels[tuple(nearest)], 0).astype(np.int32), depth


def each_part(parts: Labels, spacing: Spacing) -> Iterator[tuple[tuple[slice, ...], Mask]]:
    """Each numbered part in turn: a box with room for its shell, and the part in that box."""
    margin = [int(np.ceil(SHELL_MM[1] / mm)) + 1 for mm in spacing]
    for number, box in enumerate(ndimage.find_objects(parts), 1):
        around = tuple(slice(max(side.start - n, 0), side.stop + n) for side, n in zip(box, margin, strict=True))
        yield around, parts[around] == number


def shell_of(part: Mask, spacing: Spacing) -> Mask:
    """What lies ``SHELL_MM`` away from a part, in its box."""
    distance = depth_of(~part, spacing)
    return np.asarray((distance > SHELL_MM[0]) & (distance <= SHELL_MM[1]))


def millilitres(mask: Mask, spacing: Spacing) -> float:
    """The volume of a mask."""
    return float(mask.sum() * np.prod(spacing)) / 1000


def roundness(part: Mask) -> float:
    """The share that a part fills of a ball with its longest axis, in voxels: 1 for a ball."""
    places = np.argwhere(part)
    longest = np.linalg.eigvalsh(np.cov(places.T))[-1] if len(places) > 1 else 0.0
    return float(min(1.0, len(places) / max(4 / 3 * np.pi * (5 * longest) ** 1.5, 1.0)))


def surface_of(mask: Mask, ends: bool = False) -> Mask:
    """The voxels of a mask that touch what is not in it; with ``ends`` also those at the scan's end."""
    return np.asarray(mask & ~ndimage.binary_erosion(mask, border_value=int(not ends)))


def end_planes(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(N,) the values in the scan's six end planes."""
    return np.concatenate([np.take(values, (0, -1), axis).ravel() for axis in range(3)])


def opened(part: Mask, share: float) -> Mask:
    """What balls reach that roll inside a part, with ``share`` of its greatest depth for radius.

    Of the pieces that it falls into so, the one around its deepest place; nothing of nothing.
    """
    found = np.zeros_like(part)
    for box in ndimage.find_objects(part.astype(np.uint8)):
        depth = ndimage.distance_transform_edt(np.pad(part[box], 1))[1:-1, 1:-1, 1:-1]
        radius = share * depth.max()
        labels, _ = ndimage.label(depth > radius)
        centres = labels == labels.flat[depth.argmax()]
        found[box] = (ndimage.distance_transform_edt(~centres) <= radius) & part[box]
    return found


def rounded(part: Mask, share: float) -> Mask:
    """The convex outline of a part once it is opened; nothing of nothing."""
    found = np.zeros_like(part)
    for box in ndimage.find_objects(part.astype(np.uint8)):
        found[box] = convex(opened(part[box], share))
    return found


def convex(mask: Mask) -> Mask:
    """The voxels whose centres lie in the convex outline of those of a mask, which is wider by half a voxel.

    The same as scikit-image's ``convex_hull_image``, which takes five times as long to search a limb.
    """
    from scipy.spatial import ConvexHull, Delaunay

    corners = np.argwhere(surface_of(mask, ends=True))[:, None] + 0.5 * np.concatenate([np.eye(3), -np.eye(3)])
    points = corners.reshape(-1, 3)
    outline = Delaunay(points[ConvexHull(points).vertices])
    inside = outline.find_simplex(np.argwhere(np.ones_like(mask))) >= 0
    return np.asarray(mask | inside.reshape(mask.shape))
