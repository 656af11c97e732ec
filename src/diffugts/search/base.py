"""A region where a prompt is searched for, and what the scan itself says there besides attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import ndimage

from diffugts.shapes import Map, Mask, end_planes, surface_of

LEAST_P = 1e-4
FARTHEST = 3.0  # usual deviations from the median: more says no more
CUT = 15.0  # a part counts less by exp(−CUT × share of its surface that is the scan's end)
SOFT_VOX = 1.0  # from a surface on, P changes by a logit in so much


@dataclass(frozen=True, eq=False)
class Search:
    """Where an organ's tumours are looked for. Each organ's home has its own kind, with what the scan says there.

    Attributes:
        region: (D, H, W).
        hint: where in the organ, as users are told.
    """

    region: Mask

    hint: ClassVar[str] = ""

    def of(self, attended: Map) -> Map:
        """P_abn (D, H, W) of a head that never saw such tumours; 0 outside the region, or at least not above 0.5."""
        return np.where(self.region, attended, 0).astype(np.float32)

    @property
    def replaces(self) -> bool:
        """Whether ``beside`` gives the scan's own answer for attention's, which then has to agree."""
        return False

    def beside(self, attended: Map) -> Map:
        """P_abn (D, H, W) of a head that knows such tumours: with what the scan itself says, within no region."""
        return attended


def by_distance(mask: Mask) -> Map:
    """P by the distance from the surface of a mask, above 0.5 inside; 0 everywhere if it is empty."""
    if not mask.any():
        return np.zeros(mask.shape, np.float32)
    depth = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    return np.asarray(1 / (1 + np.exp(-depth / SOFT_VOX)), np.float32)


def agreed(answers: Sequence[Mask]) -> Mask:
    """The largest part of what most of them hold; where they hold nothing in common, the middle one."""
    labels, count = ndimage.label(2 * np.sum(answers, axis=0) > len(answers))
    if not count:
        return answers[len(answers) // 2]
    return np.asarray(labels == 1 + np.bincount(labels.ravel())[1:].argmax())


def main_part(excess: Map) -> Mask:
    """The part of what is above 0 that is worth most: less where much of its surface is the scan's end.

    Muscles, vessels and bones run on beyond a scan, tumours that are looked for mostly end within it.
    """
    labels, count = ndimage.label(excess > 0)
    if not count:
        return np.zeros(excess.shape, np.bool_)
    sums = ndimage.sum(np.maximum(excess, 0), labels, np.arange(1, count + 1))
    surface = np.bincount(labels[surface_of(labels > 0)], minlength=count + 1)[1:]
    cut = np.bincount(end_planes(labels), minlength=count + 1)[1:] / np.maximum(surface, 1)
    return np.asarray(labels == 1 + int(np.argmax(sums * np.exp(-CUT * cut))))


def sigmoid(logits: Map) -> Map:
    """Probabilities of logits."""
    return np.asarray(1 / (1 + np.exp(-logits)), np.float32)


def log_odds(p: Map) -> Map:
    """log p / (1 − p), of probabilities kept off 0 and 1."""
    p = np.clip(p, LEAST_P, 1 - LEAST_P)
    return np.asarray(np.log(p / (1 - p)), np.float32)


def standardised(values: Map, region: Mask, farthest: float = FARTHEST) -> Map:
    """How many usual deviations (1.48 median deviations) from the region's median, at most ``farthest``."""
    inside = values[region]
    middle = np.median(inside)
    usual = max(1.4826 * float(np.median(np.abs(inside - middle))), 1e-6)
    found: Map = np.clip((values - middle) / usual, -farthest, farthest).astype(np.float32)
    return found


def smoothed(values: Map, region: Mask, sigma: float | Sequence[float]) -> Map:
    """Gaussian smoothing that looks at the region alone."""
    weight = ndimage.gaussian_filter(region.astype(np.float32), sigma)
    total = ndimage.gaussian_filter(np.where(region, values, 0).astype(np.float32), sigma)
    return np.asarray(np.divide(total, weight, out=np.zeros_like(total), where=weight > 1e-3), np.float32)
