"""Where in muscle a mass lies: where it is even and deep.

Muscle is streaked with fat and thin beside bone and skin; a mass in it is even and thick. To that adds where attention
is highest in this scan. Ours; nothing is trained, and how even and how thick is measured against the scan's own muscle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from diffugts.intensity import three_classes
from diffugts.search.base import Search, agreed, by_distance, log_odds, main_part, smoothed, standardised
from diffugts.shapes import Map, Mask, Spacing, depth_of, end_planes, millilitres, rounded, surface_of

MUSCLE_CT = (0.47, 0.57)  # of 0..1: -60 to 140 HU
BODY_MR = 0.05
SKIN_MM = 15.0  # so near the surface lies fat
LEAST_BRIGHT = 0.05  # share of that fat which is among the brightest, where fat is bright at all
SMOOTH_VOX = 1.0
TEXTURE_MM = 4.0
GRAIN = {"ct": 0.005, "mr": 0.02}  # deviation that is noise; of 0..1 in CT, of the tone in MR
DEEPEST_MM = 20.0
LEAST_ML = 50.0
ATTENTION = (0.5, 0.75, 1.0)  # of a deviation of attention, beside a whole one of what the scan says: most decide
LUMP_VOX = 2.0  # smoothing of both together
SHARES = (0.16, 0.14, 0.12, 0.1, 0.09, 0.08, 0.07)  # of the muscle that one mass may fill: the most that is whole
LUMP = 0.6  # of a mass's greatest depth: what is thinner than that leaked into its neighbours
WHOLE = 0.01  # of its surface: a lump that the scan's end cuts by less is whole
RIM_VOX = 4.0  # what is highest is grown by so much: smoothing and depth eat its rim


@dataclass(frozen=True, eq=False)
class Muscle(Search):
    """Muscle. Neither attention nor the scan can be sure in themselves: what counts is where both are highest in it.

    Attributes:
        odds: (D, H, W) by how many usual deviations it is more even and deeper.
    """

    odds: Map

    hint = ", where it is deep and even"

    def of(self, attended: Map) -> Map:
        """P_abn (D, H, W) by the distance from the surface of a lump, 0.5 there."""
        seen = standardised(log_odds(attended), self.region)
        return by_distance(agreed([self._lump(weight * seen + self.odds) for weight in ATTENTION]))

    def _lump(self, total: Map) -> Mask:
        """The main part of what is highest, with its rim and rounded: a mass is a lump, and what leaks from it is not.

        How much counts as highest depends on the scan: as much as leaves that lump whole.
        """
        total = smoothed(total, self.region, LUMP_VOX)
        for share in SHARES:
            excess = np.where(self.region, total - np.quantile(total[self.region], 1 - share), -np.inf)
            main = main_part(excess)
            if not main.any():
                return main
            grown = self.region & (ndimage.distance_transform_edt(~main) <= RIM_VOX)
            lump = self.region & rounded(grown, LUMP)
            if end_planes(lump).sum() < WHOLE * surface_of(lump, ends=True).sum():
                break
        return lump


def search(image: Map, spacing: Spacing, modality: str) -> Muscle | None:
    """Where to look for a soft-tissue mass; None where muscle cannot be told.

    Args:
        image: (D, H, W) in 0..1. spacing: of its voxels, mm. modality: "ct" or "mr".
    """
    muscle = _muscle(ndimage.gaussian_filter(image, SMOOTH_VOX), spacing, modality)
    if muscle is None or millilitres(muscle, spacing) < LEAST_ML:
        return None
    cues = np.minimum(depth_of(muscle, spacing), DEEPEST_MM), evenness(image, spacing, modality)
    return Muscle(muscle, standardised(cues[0], muscle) + standardised(cues[1], muscle))


def evenness(image: Map, spacing: Spacing, modality: str) -> Map:
    """−log of the deviation around each voxel, (D, H, W); in MR of that deviation over the tone."""
    sigma = [TEXTURE_MM / mm for mm in spacing]
    mean = ndimage.gaussian_filter(image, sigma)
    variance = np.clip(ndimage.gaussian_filter(image * image, sigma) - mean * mean, 0, None)
    scale = 1.0 if modality == "ct" else np.maximum(mean, BODY_MR)
    return np.asarray(-np.log(np.sqrt(variance) / scale + GRAIN[modality]), np.float32)


def _muscle(tone: Map, spacing: Spacing, modality: str) -> Mask | None:
    """What is as bright as muscle, opened; None in MR whose fat is not its brightest tissue."""
    low, high = MUSCLE_CT
    if modality == "mr":
        cuts = three_classes(tone)  # air, muscle, fat
        if cuts is None:
            return None
        low, high = cuts
        body = ndimage.binary_closing(tone > BODY_MR, iterations=2)
        depth = depth_of(body, spacing, beyond=True)
        skin = (depth > 0) & (depth < SKIN_MM)
        if not skin.any() or (tone[skin] > high).mean() < LEAST_BRIGHT:
            return None
    return np.asarray(ndimage.binary_opening((tone > low) & (tone < high)))
