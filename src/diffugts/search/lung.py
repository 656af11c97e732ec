"""Where in the lungs a tumour lies: in what is dense, inside their outlines, and surely where it is a nodule.

In CT the air in a lung tells where it is, wherever the locator saw lung; a tumour may fill much of it, or lie against
its wall, so the outlines are convex, each lung's own. What is dense, round and has air on all sides is a nodule, which
attention on voxels of 4 mm often misses where it is small. The outlines also hold much of the heart, the diaphragm and
the great vessels: dents in a lung that are wider than a tumour makes, brighter where there is contrast in their blood,
or cut off at the outline, by which slivers of them are told from a tumour against the wall. Ours; nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from diffugts.intensity import IntensityMap
from diffugts.search.base import Search
from diffugts.shapes import Map, Mask, Spacing, each_part, millilitres, parts_of, roundness, shell_of, thick_parts

LEAST_ML = 40.0
SMOOTH_MM = 2.0
AIR_HU = -400.0
SAID = 0.3  # of a part of air that the locator must take for lung: outside air is none
GRAIN_VOX = 0.5  # more smoothing takes small nodules for air
DENSE_HU = -600.0
BLOOD_HU = 150.0  # smoothed by a voxel: what is brighter is blood with contrast, or bone
AERATED_HU = -500.0
THIN_MM = 2.5  # half the width of what is no vessel
LEAST_NODULE_ML = 0.5  # a centimetre wide: on voxels of 2 mm, smaller ones cannot be told from where vessels cross
ROUND = 0.4  # of a ball around a nodule that it fills
AERATED = 0.9  # of what is around it that is air
NODULE = 5.0  # nats
WAIST = 0.25  # of the air in the planes to its left and right: what lies between two lungs holds no more
WAIST_VOX = 1.5  # planes of air are smoothed by; of every second voxel
DENT_MM = 30.0  # radius of the widest dent in a lung that a tumour makes by itself
STEP = 2  # voxels: outlines are drawn on every second one


def search(image: Map, spacing: Spacing, modality: str, said: Mask) -> Search | None:
    """Where to look for a lung tumour; None where no lung is found.

    Args:
        image: (D, H, W) in 0..1. spacing: of its voxels, mm. modality: "ct" or "mr".
        said: (D, H, W) what the locator takes for lung.
    """
    parts, tissue = parts_of(said, spacing, LEAST_ML), np.ones(image.shape, np.bool_)
    hu = IntensityMap.ct().inverse(image) if modality == "ct" else None
    if hu is not None:
        air = ndimage.gaussian_filter(hu, [SMOOTH_MM / mm for mm in spacing]) < AIR_HU
        parts = [part for part in parts_of(air, spacing, LEAST_ML) if said[part].mean() > SAID] or parts
        tissue = (ndimage.gaussian_filter(hu, GRAIN_VOX) > DENSE_HU) & (ndimage.gaussian_filter(hu, 1) < BLOOD_HU)
    if not parts:
        return None
    lungs = [lung for part in parts for lung in _lungs(part[::STEP, ::STEP, ::STEP])]
    outlines = _finer(np.any([_outlined(lung) for lung in lungs], axis=0), image.shape)
    region = tissue & ndimage.binary_erosion(outlines, border_value=1)  # the wall is no lung
    if not region.any():
        return None
    if hu is None:
        return Search(region)
    near = _finer(np.any([_closed(lung, [STEP * mm for mm in spacing]) for lung in lungs], axis=0), image.shape)
    return Search(region, NODULE * nodules(region, hu, spacing), beyond=tissue & ~region, near=near)


def nodules(dense: Mask, hu: Map, spacing: Spacing) -> Map:
    """1 in what is thick, round and has air on all sides of what is dense (D, H, W), else 0."""
    parts, _ = thick_parts(dense, THIN_MM, spacing)
    found = np.zeros(dense.shape, np.float32)
    for box, part in each_part(parts, spacing):
        if millilitres(part, spacing) < LEAST_NODULE_ML or roundness(part) < ROUND:
            continue
        if (hu[box][shell_of(part, spacing)] < AERATED_HU).mean() >= AERATED:
            found[box][part] = 1
    return found


def _lungs(part: Mask) -> list[Mask]:
    """A part of air, or where airways join two lungs each of them: the outline of both would hold the heart.

    They are two where a plane from front to back holds little air, and those to its left and right hold much.
    """
    air = ndimage.gaussian_filter1d(part.sum((1, 2)).astype(np.float64), WAIST_VOX)
    left, right = np.maximum.accumulate(air), np.maximum.accumulate(air[::-1])[::-1]
    depth = np.minimum(left, right) - air
    waist = int(depth.argmax())
    if air[waist] > WAIST * min(left[waist], right[waist]):
        return [part]
    one, other = part.copy(), part.copy()
    one[waist:], other[:waist] = False, False
    return [one, other]


def _closed(lung: Mask, spacing: Sequence[float]) -> Mask:
    """What no ball of ``DENT_MM`` outside of a lung reaches: wider dents are heart and diaphragm."""
    wide = ndimage.distance_transform_edt(~lung, spacing) <= DENT_MM
    return np.asarray(wide if wide.all() else ndimage.distance_transform_edt(wide, spacing) > DENT_MM)


def _outlined(lung: Mask) -> Mask:
    """What is inside a lung's convex outline in two of the three planes at least."""
    return np.asarray(sum(_convex(lung, axis) for axis in range(3)) >= 2)


def _finer(mask: Mask, shape: tuple[int, ...]) -> Mask:
    """A mask of every ``STEP``-th voxel on all of them."""
    finer = np.kron(mask, np.ones((STEP,) * 3, np.bool_))
    return np.asarray(finer[tuple(slice(side) for side in shape)])


def _convex(part: Mask, axis: int) -> npt.NDArray[np.uint8]:
    """1 inside the convex outline of each slice across an axis."""
    from skimage.morphology import convex_hull_image

    outlined = np.zeros(part.shape, np.uint8)
    planes, drawn = np.moveaxis(part, axis, 0), np.moveaxis(outlined, axis, 0)
    for index in np.flatnonzero(planes.sum((1, 2)) > 2):
        drawn[index] = convex_hull_image(planes[index])
    return outlined
