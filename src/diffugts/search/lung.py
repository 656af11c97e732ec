"""Where in the lungs a tumour lies: in what is dense, inside their outlines, and surely where it is a nodule.

In CT the air in a lung tells where it is, wherever the locator saw lung; a tumour may fill much of it, or lie against
its wall, so the outlines are convex. What is dense, round and has air on all sides is a nodule, which attention on
voxels of 4 mm often misses where it is small. The outlines also cut slivers off the heart and the great vessels, which
are told from a tumour against the wall by how much of their surface lies at that cut. Ours; nothing is trained.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from diffugts.intensity import IntensityMap
from diffugts.search.base import Search
from diffugts.shapes import Map, Mask, Spacing, each_part, millilitres, parts_of, shell_of, thick_parts

LEAST_ML = 40.0
SMOOTH_MM = 2.0
AIR_HU = -400.0
SAID = 0.3  # of a part of air that the locator must take for lung: outside air is none
GRAIN_VOX = 0.5  # more smoothing takes small nodules for air
DENSE_HU = -600.0
AERATED_HU = -500.0
THIN_MM = 2.5  # half the width of what is no vessel
LEAST_NODULE_ML = 0.25
ROUND = 0.4  # of a ball around a nodule that it fills
AERATED = 0.9  # of what is around it that is air
NODULE = 5.0  # nats
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
        tissue = ndimage.gaussian_filter(hu, GRAIN_VOX) > DENSE_HU
    if not parts:
        return None
    outlines = np.any([_outlined(part) for part in parts], axis=0)
    region = tissue & ndimage.binary_erosion(outlines, border_value=1)  # the wall is no lung
    if not region.any():
        return None
    if hu is None:
        return Search(region)
    return Search(region, NODULE * nodules(region, hu, spacing), beyond=tissue & ~region)


def nodules(dense: Mask, hu: Map, spacing: Spacing) -> Map:
    """1 in what is thick, round and has air on all sides of what is dense (D, H, W), else 0."""
    parts, _ = thick_parts(dense, THIN_MM, spacing)
    found = np.zeros(dense.shape, np.float32)
    for box, part in each_part(parts, spacing):
        if millilitres(part, spacing) < LEAST_NODULE_ML or _filled(part) < ROUND:
            continue
        if (hu[box][shell_of(part, spacing)] < AERATED_HU).mean() >= AERATED:
            found[box][part] = 1
    return found


def _filled(part: Mask) -> float:
    """The share that a part fills of a ball with its longest axis: 1 for a ball."""
    longest = np.linalg.eigvalsh(np.cov(np.argwhere(part).T))[-1]
    return float(part.sum() / (4 / 3 * np.pi * (5 * longest) ** 1.5))


def _outlined(part: Mask) -> Mask:
    """What is inside a part's convex outline in two of the three planes at least."""
    small = part[::STEP, ::STEP, ::STEP]
    inside = sum(_convex(small, axis) for axis in range(3)) >= 2
    finer = np.kron(inside, np.ones((STEP,) * 3, np.bool_))
    return np.asarray(finer[tuple(slice(side) for side in part.shape)])


def _convex(part: Mask, axis: int) -> npt.NDArray[np.uint8]:
    """1 inside the convex outline of each slice across an axis."""
    from skimage.morphology import convex_hull_image

    outlined = np.zeros(part.shape, np.uint8)
    planes, drawn = np.moveaxis(part, axis, 0), np.moveaxis(outlined, axis, 0)
    for index in np.flatnonzero(planes.sum((1, 2)) > 2):
        drawn[index] = convex_hull_image(planes[index])
    return outlined
