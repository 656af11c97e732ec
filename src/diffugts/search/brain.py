"""Where in a brain a tumour lies: in MR in what has another tone than the brain, and than its other side.

Brighter or darker depends on the sequence, and attention tells: it leans towards one. To that adds how far attention
itself is above its usual here. How much of the brain is tumour the scan tells as well: the outline is drawn where it
hardly depends on the level at which it is drawn (maximally stable extremal regions, Matas et al. 2002). Ours; nothing
is trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from diffugts.search.base import Search, agreed, by_distance, log_odds, main_part, standardised
from diffugts.shapes import Map, Mask, Spacing, closed, depth_of, millilitres

BODY = 0.05
DEEP_MM = 20.0  # under the surface of a head lies brain
TISSUE = 0.5  # of the usual tone there: what is darker is fluid, bone or air
BRIDGE_MM = 6.0  # what hangs on by less is skin or an eye
GAP_MM = 16.0  # half the width of what is dark in a brain: ventricles, and many a tumour
LEAST_ML = 100.0
TONE_VOX = 1.0
NEAR_MM = 4.0  # no brain is its own mirror image: the most alike tone so near the mirrored place counts
COARSE_MM = 6.0  # voxels on which the plane between both sides is looked for
SHIFT_MM, TILT = 36.0, 0.3  # farthest from the middle of the scan; largest slope of the plane
HIGHEST = 0.03  # share of the brain where attention is highest: whose tone says which way tumours deviate
ATTENTION = (0.7, 1.0, 1.4)  # its weights beside what the scan says: what most of them give counts
LEVELS = np.arange(0.25, 0.76, 0.025)  # from the median of a brain to its highest
REACH = 2  # levels below and above one over which the change of a part is measured


@dataclass(frozen=True, eq=False)
class Brain(Search):
    """A brain in MR.

    Attributes:
        odds: (D, H, W) by how many usual deviations it is brighter, than its median and than its other side.
    """

    odds: Map

    hint = ", where its tone is not that of its other side"

    def of(self, attended: Map) -> Map:
        """P_abn (D, H, W) by the distance from the outline of the main part, 0.5 there."""
        seen = standardised(log_odds(attended), self.region, np.inf)
        highest = self.region & (seen >= np.quantile(seen[self.region], 1 - HIGHEST))
        lean = np.tanh(2 * self.odds[highest].mean())
        return by_distance(agreed([self._stable(weight * seen + lean * self.odds) for weight in ATTENTION]))

    @property
    def replaces(self) -> bool:
        """Something always differs most."""
        return True

    def beside(self, attended: Map) -> Map:
        """The same."""
        return self.of(attended)

    def _stable(self, total: Map) -> Mask:
        """The main part at the level, between median and highest, where its volume changes least."""
        middle, highest = np.median(total[self.region]), total[self.region].max()
        height = np.where(self.region, (total - middle) / max(highest - middle, 1e-6), -np.inf)
        parts = [main_part(height - level) for level in LEVELS]
        volumes = np.array([1 + part.sum() for part in parts])
        change = np.log(volumes[: -2 * REACH] / volumes[2 * REACH :])
        return parts[REACH + int(change.argmin())]


def search(image: Map, spacing: Spacing, modality: str) -> Brain | None:
    """Where to look for a brain tumour; None in CT, and where no brain is found.

    Args:
        image: (D, H, W) in 0..1, RAS axes. spacing: of its voxels, mm. modality: "ct" or "mr".
    """
    if modality == "ct":
        return None
    brain = _brain(image, spacing)
    if brain is None or millilitres(brain, spacing) < LEAST_ML:
        return None
    tone = np.where(brain, standardised(ndimage.gaussian_filter(image, TONE_VOX), brain), 0).astype(np.float32)
    return Brain(brain, tone + unlike_other_side(tone, brain, spacing))


def _brain(image: Map, spacing: Spacing) -> Mask | None:
    """The largest thing in a head that hangs together by more than bridges, with its dark places; also if stripped."""
    body = ndimage.binary_fill_holes(ndimage.binary_opening(image > BODY))
    deep = depth_of(body, spacing, beyond=True) > DEEP_MM
    if not deep.any():
        return None
    tissue = body & (ndimage.gaussian_filter(image, 0.7) > TISSUE * np.median(image[deep]))
    labels, count = ndimage.label(depth_of(tissue, spacing, beyond=True) > BRIDGE_MM)
    if not count:
        return None
    thick = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    whole = closed(depth_of(~thick, spacing) <= BRIDGE_MM, GAP_MM, spacing)
    return np.asarray(body & ndimage.binary_fill_holes(whole))


def unlike_other_side(tone: Map, brain: Mask, spacing: Spacing) -> Map:
    """By how much each voxel is above all that is near its mirrored place, or below all of it (negative).

    Args:
        tone, brain: (D, H, W), RAS axes; 0 outside of the brain is neither. spacing: mm.
    """
    places = _mirrored(tone.shape, spacing, _middle_plane(tone, brain, spacing))
    size = [2 * round(NEAR_MM / mm) + 1 for mm in spacing]
    highest, lowest = (
        ndimage.map_coordinates(extreme(tone, size), places, order=1, mode="nearest")
        for extreme in (ndimage.maximum_filter, ndimage.minimum_filter)
    )
    return np.asarray(np.maximum(tone - highest, 0) - np.maximum(lowest - tone, 0), np.float32)


Plane = tuple[float, float, float]
"""Shift to the right of the scan's middle, mm, and slopes towards the front and towards the top."""


def _middle_plane(tone: Map, brain: Mask, spacing: Spacing) -> Plane:
    """The plane across which a brain resembles itself most: the highest correlation of both sides."""
    from scipy.optimize import minimize

    ratio = [mm / COARSE_MM for mm in spacing]
    small = ndimage.zoom(tone, ratio, order=1)
    inside = ndimage.zoom(brain.astype(np.float32), ratio, order=1)
    i, j, k = (mm * side / n for mm, side, n in zip(spacing, tone.shape, small.shape, strict=True))
    coarse = i, j, k

    def unlike(plane: npt.NDArray[np.float64]) -> float:
        places = _mirrored(small.shape, coarse, (plane[0], plane[1], plane[2]))
        both = np.minimum(inside, ndimage.map_coordinates(inside, places, order=1)) > 0.5
        if both.sum() < 0.5 * (inside > 0.5).sum():
            return 1.0
        one, other = small[both], ndimage.map_coordinates(small, places, order=1, mode="nearest")[both]
        if not one.std() * other.std() > 0:  # of one tone, as phantoms are
            return 1.0
        return -float(np.corrcoef(one, other)[0, 1])

    shifts = np.arange(-SHIFT_MM, SHIFT_MM + 1, COARSE_MM / 2)
    start = shifts[int(np.argmin([unlike(np.array([shift, 0, 0])) for shift in shifts]))]
    bounds = [(start - COARSE_MM, start + COARSE_MM), (-TILT, TILT), (-TILT, TILT)]
    found = minimize(unlike, np.array([start, 0, 0]), method="Powell", bounds=bounds, options={"maxiter": 4})
    return float(found.x[0]), float(found.x[1]), float(found.x[2])


def _mirrored(shape: tuple[int, ...], spacing: Spacing, plane: Plane) -> Map:
    """(3, D, H, W) where the mirror image of each voxel across a plane lies, in voxels."""
    shift, *slopes = plane
    size, middle = (np.reshape(values, (3, 1, 1, 1)) for values in (spacing, (np.array(shape) - 1) / 2))
    normal = np.reshape([1.0, *slopes], (3, 1, 1, 1)) / math.hypot(1.0, *slopes)
    voxels = np.indices(shape)
    apart = ((voxels - middle) * size * normal).sum(0) - shift * normal[0]
    return np.asarray(voxels - 2 * apart * normal / size, np.float32)
