"""Where in muscle a mass lies: where it is even and deep.

Muscle is streaked with fat and thin beside bone and skin; a mass in it is even and thick. To that adds where attention
is highest in this scan. Ours; nothing is trained, and how even and how thick is measured against the scan's own muscle.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from diffugts.intensity import three_classes
from diffugts.search.base import Search, standardised
from diffugts.shapes import Map, Mask, Spacing, depth_of, millilitres

MUSCLE_CT = (0.47, 0.57)  # of 0..1: -60 to 140 HU
BODY_MR = 0.05
SKIN_MM = 15.0  # so near the surface lies fat
LEAST_BRIGHT = 0.05  # share of that fat which is among the brightest, where fat is bright at all
SMOOTH_VOX = 1.0
TEXTURE_MM = 4.0
GRAIN = {"ct": 0.005, "mr": 0.02}  # deviation that is noise; of 0..1 in CT, of the tone in MR
DEEPEST_MM = 20.0
LEAST_ML = 50.0


def search(image: Map, spacing: Spacing, modality: str) -> Search | None:
    """Where to look for a soft-tissue mass; None where muscle cannot be told.

    Args:
        image: (D, H, W) in 0..1. spacing: of its voxels, mm. modality: "ct" or "mr".
    """
    muscle = _muscle(ndimage.gaussian_filter(image, SMOOTH_VOX), spacing, modality)
    if muscle is None or millilitres(muscle, spacing) < LEAST_ML:
        return None
    cues = np.minimum(depth_of(muscle, spacing), DEEPEST_MM), evenness(image, spacing, modality)
    return Search(muscle, standardised(cues[0], muscle) + standardised(cues[1], muscle), relative=True)


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
