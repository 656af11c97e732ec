"""Where in the lungs a tumour lies: in what is dense, inside their outlines, and surely where it is a nodule.

In CT the air in a lung tells where it is, wherever the locator saw lung; a tumour may fill much of it, or lie against
its wall, so the outlines are convex, each lung's own. What is dense, round and has air on all sides is a nodule, which
attention on voxels of 4 mm often misses where it is small. The outlines also hold much of the heart, the diaphragm and
the great vessels: dents in a lung that are wider than a tumour makes, brighter where there is contrast in their blood,
or cut off at the outline, by which slivers of them are told from a tumour against the wall. Ours; nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from diffugts.intensity import IntensityMap
from diffugts.search.base import Search, log_odds, sigmoid
from diffugts.shapes import (
    Map,
    Mask,
    Spacing,
    each_part,
    millilitres,
    parts_of,
    roundness,
    shell_of,
    surface_of,
    thick_parts,
)

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
AS_LIKELY = 0.7  # of the likeliest: what is so likely counts
RUNS_ON = 5.0  # a part that runs on beyond the region counts less by exp(−RUNS_ON × share of its surface there)
NEAR = 0.2  # of a part: the least that lies in the lungs themselves
FREE = 0.1  # of its surface: a part that runs on by less counts though it is not the main one


@dataclass(frozen=True, eq=False)
class Lungs(Search):
    """What is dense in the outlines of lungs in CT.

    Attributes:
        odds: (D, H, W) in nats, for nodules.
        beyond: (D, H, W) what is dense outside the region. Of the parts of an answer that run on into it only the main
            one counts: what the outlines cut off from their neighbours is none.
        near: (D, H, W) where the lungs themselves are. Parts of an answer that hardly lie there do not count.
    """

    odds: Map
    beyond: Mask | None = None
    near: Mask | None = None

    def of(self, attended: Map) -> Map:
        """P_abn (D, H, W) with the odds, 0 outside the region and in what is cut off from elsewhere."""
        found = self._near(np.where(self.region, sigmoid(log_odds(attended) + self.odds), 0).astype(np.float32))
        return found if self.beyond is None else _without_cuttings(found, self.beyond)

    def beside(self, attended: Map) -> Map:
        """P_abn (D, H, W) with the odds; only what cannot be a tumour is 0."""
        found = self._near(sigmoid(log_odds(attended) + self.odds))
        return found if self.beyond is None else np.where(self.region | self.beyond, found, 0).astype(np.float32)

    def _near(self, found: Map) -> Map:
        return found if self.near is None else _without_far(found, self.near)


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
        return Search(region)  # MR shows no air
    near = _finer(np.any([_closed(lung, [STEP * mm for mm in spacing]) for lung in lungs], axis=0), image.shape)
    return Lungs(region, NODULE * nodules(region, hu, spacing), tissue & ~region, near)


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


def _without_cuttings(p: Map, beyond: Mask) -> Map:
    """P (D, H, W), 0 in the parts of what is likeliest that run on into ``beyond``, but for the main part."""
    labels, count = ndimage.label(p > AS_LIKELY * p.max())
    numbers = np.arange(1, count + 1)
    surface = surface_of(labels > 0)
    there = ndimage.sum(surface & ndimage.binary_dilation(beyond), labels, numbers)
    cut = there / np.maximum(ndimage.sum(surface, labels, numbers), 1)
    worth = ndimage.sum(p, labels, numbers) * np.exp(-RUNS_ON * cut)
    dropped = np.zeros(count + 1, np.bool_)
    dropped[1:] = (cut >= FREE) & (worth < worth.max(initial=0))
    return np.where(dropped[labels], 0, p).astype(np.float32)


def _without_far(p: Map, near: Mask) -> Map:
    """P (D, H, W), 0 in the parts of what is likeliest of which hardly anything lies in ``near``."""
    while p.max(initial=0) > 0.5:
        labels, count = ndimage.label(p > AS_LIKELY * p.max())
        far = np.append(False, ndimage.mean(near, labels, np.arange(1, count + 1)) < NEAR)
        if not far.any():
            break
        p = np.where(far[labels], 0, p).astype(np.float32)  # what is likeliest now may be elsewhere
    return p
