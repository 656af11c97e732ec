"""Where in a liver a tumour lies: in CT in what has another tone than the liver and is surrounded by it.

A liver is the largest even tissue of the abdomen, so its tone tells where it is, also in a part of a scan that shows
too little for the locator. What differs from it there may be a tumour, but vessels are thin, fat and bile are darker
still, and neighbours have little liver around them. Which of what is left is meant is attention's to say. Ours; nothing
is trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from diffugts.intensity import IntensityMap
from diffugts.search.base import Search, log_odds, sigmoid, smoothed
from diffugts.shapes import (
    Labels,
    Map,
    Mask,
    Spacing,
    closed,
    depth_of,
    each_part,
    millilitres,
    parts_of,
    rounded,
    roundness,
    shell_of,
    thick_parts,
)

SMOOTH_MM = 3.0
SOFT = (20.0, 220.0)  # HU of soft tissue, with or without contrast
TEXTURE_MM = 14.0
UNEVEN_HU = 16.0  # deviation within that width: more is no single tissue
LEAST_ML = 100.0
BRIGHT_PERCENT = 85.0
CORE_HU, NEAR_HU = 15.0, 30.0  # from the liver's tone
BRIDGE_MM = 6.0  # what hangs on by less is a neighbour
CLOSED_MM = 30.0  # gaps in the liver that are up to twice as wide are part of it
ORGAN_HU = (-10.0, 220.0)  # fat, gas and bone are no part of it
INSIDE_MM = 8.0  # under the surface, where tones are measured
LEAST_SPREAD_HU = 4.0  # no tone is more even than this
FINE_MM = 2.0
OTHER = 2.0  # usual deviations from the liver's tone
OWN = 2.5  # up to which a tone is the liver's
DARK_MM, BRIGHT_MM = 4.0, 8.0  # half the width that a part must have somewhere: vessels do not, with contrast wide ones
LEAST_PART_ML = 0.5
FLUID_HU = 20.0  # bile and cysts
AWAY_MM = 30.0  # a part counts less by exp(−distance / AWAY_MM) from what the locator takes for liver: hearts do

DEPTH_MM = 10.0  # in MR: under the liver's surface, where vessels enter and neighbours blur, tone tells nothing
GAP_MM = 10.0
LEAST_SPREAD = 0.003  # of 0..1
USUAL = 2.0  # nats of z²/2 up to which a tone is the organ's own
SURE = 4.0  # nats: most that tone says, for or against

AS_LIKELY = 0.6  # of the likeliest part: parts that are so likely count as well
LUMP = 0.5  # of a part's greatest depth: what is thinner than that is none of it
SHARPNESS = 2.0  # logits per usual deviation


@dataclass(frozen=True, eq=False)
class Liver(Search):
    """A liver, in CT with its own candidates.

    Attributes:
        odds: (D, H, W) how far inside a candidate a voxel is, in usual deviations; without candidates in nats.
        parts: (D, H, W) parts of another tone, numbered from 1. Which of them is meant is attention's to say.
        trust: what the scan says for each part, beside attention; only how parts compare counts.
    """

    odds: Map
    parts: Labels | None = None
    trust: tuple[float, ...] = ()

    def of(self, attended: Map) -> Map:
        """P_abn (D, H, W), 0 outside the region: of the parts that are meant, or with the odds."""
        if self.parts is not None:
            return self._meant(attended, self.parts)
        return np.where(self.region, sigmoid(log_odds(attended) + self.odds), 0).astype(np.float32)

    @property
    def replaces(self) -> bool:
        """The parts stand for themselves."""
        return self.parts is not None

    def beside(self, attended: Map) -> Map:
        """P_abn (D, H, W) of the parts that are meant, or with the odds."""
        return self.of(attended) if self.replaces else sigmoid(log_odds(attended) + self.odds)

    def _meant(self, attended: Map, parts: Labels) -> Map:
        """0.5 at the surface of the parts where mean attention times trust is highest, rounded; 0 outside of them."""
        worth = np.array([0.0, *self.trust])
        worth[1:] *= ndimage.mean(attended, parts, np.arange(1, len(worth)))
        meant = np.zeros(parts.shape, np.bool_)
        for number in np.flatnonzero((worth > 0) & (worth >= AS_LIKELY * worth.max())):
            meant |= rounded(parts == number, LUMP)
        p = 1 / (1 + np.exp(-SHARPNESS * np.maximum(self.odds, 0)))
        return np.where(meant & self.region, p, 0).astype(np.float32)


def search(image: Map, spacing: Spacing, modality: str, said: Mask) -> Liver | None:
    """Where to look for a liver tumour; None where no liver is found.

    Args:
        image: (D, H, W) in 0..1. spacing: of its voxels, mm. modality: "ct" or "mr".
        said: (D, H, W) what the locator takes for liver; its largest part counts.
    """
    largest = next(iter(parts_of(said, spacing, LEAST_ML)), None)
    if modality == "ct":
        return _in_ct(IntensityMap.ct().inverse(image), spacing, largest)
    return None if largest is None else _in_mr(image, spacing, largest)


def even_tissue(hu: Map, spacing: Spacing) -> tuple[Map, Mask]:
    """A CT smoothed, and where it shows even soft tissue."""
    smooth = ndimage.gaussian_filter(hu, [SMOOTH_MM / mm for mm in spacing])
    size = [max(round(TEXTURE_MM / mm), 3) for mm in spacing]
    mean = ndimage.uniform_filter(smooth, size)
    variance = ndimage.uniform_filter(smooth * smooth, size) - mean * mean
    even = (smooth > SOFT[0]) & (smooth < SOFT[1]) & (variance < UNEVEN_HU**2)
    return smooth, ndimage.binary_opening(even, iterations=2)


def _in_ct(hu: Map, spacing: Spacing, said: Mask | None) -> Liver | None:
    smooth, even = even_tissue(hu, spacing)
    liver = _tissue(smooth, even, spacing, said)
    if liver is None or millilitres(liver, spacing) < LEAST_ML:
        return None
    margin = [round(2 * CLOSED_MM / mm) for mm in spacing]
    sides = zip(ndimage.find_objects(liver.astype(np.uint8))[0], margin, strict=True)
    box = tuple(slice(max(0, side.start - n), side.stop + n) for side, n in sides)
    region, parts = np.zeros(hu.shape, np.bool_), np.zeros(hu.shape, np.int32)
    apart = np.zeros(hu.shape, np.float32)
    region[box], apart[box], parts[box], trust = _other_tones(hu[box], smooth[box], liver[box], spacing)
    if trust and said is not None and (said & liver).any():
        away = ndimage.mean(depth_of(~said, spacing), parts, np.arange(1, len(trust) + 1))
        trust = tuple(np.array(trust) * np.exp(-away / AWAY_MM))
    return Liver(region, apart, parts, trust)


def _other_tones(hu: Map, smooth: Map, liver: Mask, spacing: Spacing) -> tuple[Mask, Map, Labels, tuple[float, ...]]:
    """The liver with its gaps, how far each voxel's tone is from its own, and the parts of other tones."""
    region = closed(liver, CLOSED_MM, spacing) & (smooth > ORGAN_HU[0]) & (smooth < ORGAN_HU[1])
    region = ndimage.binary_opening(region, iterations=2)
    deep = depth_of(liver, spacing) > INSIDE_MM
    tones = smooth[deep if deep.any() else liver]
    tone = float(np.median(tones))
    spread = max(1.4826 * float(np.median(np.abs(tones - tone))), LEAST_SPREAD_HU)
    own = liver & (np.abs(smooth - tone) < OWN * spread)
    apart = (ndimage.gaussian_filter(hu, [FINE_MM / mm for mm in spacing]) - tone) / spread
    dark, darks = _parts(region & (apart < -OTHER), DARK_MM, own, hu, spacing)
    bright, brights = _parts(region & (apart > OTHER), BRIGHT_MM, own, hu, spacing)
    parts = np.where(bright > 0, bright + len(darks), dark).astype(np.int32)
    return region, (np.abs(apart) - OTHER).astype(np.float32), parts, (*darks, *brights)


def _tissue(smooth: Map, even: Mask, spacing: Spacing, said: Mask | None) -> Mask | None:
    """What has the liver's tone and hangs together with it.

    The tone is looked for in the locator's liver, or around the deepest even tissue. It is nearly the brightest that is
    common there: a large tumour may fill most of it, and is darker as a rule.
    """
    depth = depth_of(even, spacing)
    deep = depth > INSIDE_MM
    if not deep.any():
        return None
    if said is not None and (deep & said).any():
        core = deep & said
    else:
        labels, _ = ndimage.label(deep)
        core = labels == labels[np.unravel_index(int(depth.argmax()), depth.shape)]
    core &= np.abs(smooth - np.percentile(smooth[core], BRIGHT_PERCENT)) < CORE_HU
    near = ndimage.binary_opening(np.abs(smooth - np.median(smooth[core])) < NEAR_HU, iterations=2)
    labels, count = ndimage.label(depth_of(near, spacing) > BRIDGE_MM)
    own = np.bincount(labels[core], minlength=count + 1)[1:]
    if not own.any():
        return None
    thick = labels == 1 + int(np.argmax(own))
    return np.asarray(near & (depth_of(~thick, spacing) <= BRIDGE_MM + max(spacing) / 4))


def _parts(other: Mask, thin: float, own: Mask, hu: Map, spacing: Spacing) -> tuple[Labels, tuple[float, ...]]:
    """Parts of what has another tone that are thick enough, and what speaks for each.

    That is half its width times the square of how much of what surrounds it is liver, times the root of its
    roundness: tumours are rounder than vessels and than fat at the hilum, and have liver on all sides.
    """
    grown, depth = thick_parts(other, thin, spacing)
    parts, trust = np.zeros(other.shape, np.int32), []
    for box, part in each_part(grown, spacing):
        if millilitres(part, spacing) < LEAST_PART_ML or np.median(hu[box][part]) < FLUID_HU:
            continue
        around = float(own[box][shell_of(part, spacing)].mean())
        trust.append(float(depth[box][part].max()) * around**2 * math.sqrt(roundness(part)))
        parts[box][part] = len(trust)
    return parts, tuple(trust)


def _in_mr(image: Map, spacing: Spacing, said: Mask) -> Liver | None:
    """What is deep in a liver in MR, and how far its tone is from the liver's; None where nothing is deep.

    The liver's tone is the median, as wide as the median deviation says.
    """
    whole = closed(said, GAP_MM, spacing)
    deep = depth_of(whole, spacing) > DEPTH_MM
    if not deep.any():
        return None
    tone = smoothed(image, whole, [SMOOTH_MM / mm for mm in spacing])
    middle = np.median(tone[deep])
    spread = max(1.4826 * float(np.median(np.abs(tone[deep] - middle))), LEAST_SPREAD)
    odds = np.where(deep, np.clip(0.5 * ((tone - middle) / spread) ** 2 - USUAL, -SURE, SURE), -SURE)
    return Liver(deep, ndimage.grey_opening(odds, size=(3, 3, 3)).astype(np.float32))  # vessels are thin
