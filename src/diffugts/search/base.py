"""A region where a prompt is searched for, and what the scan itself says there besides attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from diffugts.shapes import Labels, Map, Mask, end_planes, rounded, surface_of

LEAST_P = 1e-4
FARTHEST = 3.0  # usual deviations from the median: more says no more
SMOOTH_VOX = 2.0
SHARPNESS = 2.0  # logits per usual deviation
ATTENTION = (0.25, 0.5, 0.75)  # of a deviation of attention, beside a whole one of what the scan says: most decide
SHARES = (0.16, 0.14, 0.12, 0.1, 0.09, 0.08, 0.07)  # of a region that one tumour may fill: the most that is whole
CUT = 15.0  # a part counts less by exp(−CUT × share of its surface that is the scan's end)
LUMP = 0.6  # of a mass's greatest depth: what is thinner than that leaked into its neighbours
LUMP_OF_PARTS = 0.5  # the same of parts
WHOLE = 0.01  # of its surface: a lump that the scan's end cuts by less is whole
RIM_VOX = 4.0  # what is highest is grown by so much: smoothing and depth eat its rim
SOFT_VOX = 1.0  # from its surface on, P changes by a logit in so much
AS_LIKELY = 0.7  # of the likeliest part: parts that are so likely count as well
RUNS_ON = 5.0  # a part that runs on beyond the region counts less by exp(−RUNS_ON × share of its surface there)
NEAR = 0.2  # of a part: the least that lies in the organ itself
FREE = 0.1  # of its surface: a part that runs on by less counts though it is not the main one


@dataclass(frozen=True, eq=False)
class Search:
    """Where an organ's tumours are looked for.

    Attributes:
        region: (D, H, W).
        odds: (D, H, W) what the scan says there, in nats, or if ``relative`` in usual deviations; None: nothing.
        relative: neither attention nor odds can be sure in themselves: what counts is where both are highest in this
            scan.
        parts: (D, H, W) the scan's own candidates, numbered from 1; ``odds`` then say how far inside one a voxel is, in
            usual deviations. Which of them is meant is attention's to say.
        trust: what the scan says for each part, beside attention; only how parts compare counts.
        beyond: (D, H, W) what looks like a tumour outside the region. Of the parts of an answer that run on into it
            only the main one counts: what the region cuts off from an organ's neighbours is none.
        near: (D, H, W) where the organ itself is. Parts of an answer that hardly lie there do not count.
    """

    region: Mask
    odds: Map | None = None
    relative: bool = False
    parts: Labels | None = None
    trust: tuple[float, ...] = ()
    beyond: Mask | None = None
    near: Mask | None = None

    def beside(self, attended: Map) -> Map:
        """P_abn (D, H, W) of a head that knows such tumours: with what the scan itself says, within no region.

        Only what cannot be a tumour is 0. The scan's own candidates stand for themselves, see ``of``.
        """
        if self.odds is None or self.relative:
            return attended
        if self.parts is not None:
            return self.of(attended)
        found = _sigmoid(log_odds(attended) + self.odds)
        if self.near is not None:
            found = _without_far(found, self.near)
        return found if self.beyond is None else np.where(self.region | self.beyond, found, 0).astype(np.float32)

    def of(self, attended: Map) -> Map:
        """P_abn (D, H, W) with the odds in the region; 0 outside, or below 0.5 if ``relative``."""
        if self.odds is None:
            return np.where(self.region, attended, 0).astype(np.float32)
        if self.parts is not None:
            return self._meant(attended, self.parts, self.odds)
        logits = log_odds(attended)
        if self.relative:
            seen = standardised(logits, self.region)
            return _by_distance(_agreed([self._lump(weight * seen + self.odds) for weight in ATTENTION]))
        found = np.where(self.region, _sigmoid(logits + self.odds), 0).astype(np.float32)
        if self.near is not None:
            found = _without_far(found, self.near)
        return found if self.beyond is None else _without_cuttings(found, self.beyond)

    def _meant(self, attended: Map, parts: Labels, inside: Map) -> Map:
        """0.5 at the surface of the parts where mean attention times trust is highest, rounded; 0 outside of them."""
        worth = np.array([0.0, *self.trust])
        worth[1:] *= ndimage.mean(attended, parts, np.arange(1, len(worth)))
        meant = np.zeros(parts.shape, np.bool_)
        for number in np.flatnonzero((worth > 0) & (worth >= AS_LIKELY * worth.max())):
            meant |= rounded(parts == number, LUMP_OF_PARTS)
        p = 1 / (1 + np.exp(-SHARPNESS * np.maximum(inside, 0)))
        return np.where(meant & self.region, p, 0).astype(np.float32)

    def _lump(self, total: Map) -> Mask:
        """The main part of what is highest, with its rim and rounded: a mass is a lump, and what leaks from it is not.

        How much counts as highest depends on the scan: as much as leaves that lump whole.
        """
        total = smoothed(total, self.region, SMOOTH_VOX)
        for share in SHARES:
            excess = np.where(self.region, total - np.quantile(total[self.region], 1 - share), -np.inf)
            labels, worth = _weighed(excess)
            if not len(worth):
                return np.zeros(total.shape, np.bool_)
            main = labels == 1 + int(np.argmax(worth))
            grown = self.region & (ndimage.distance_transform_edt(~main) <= RIM_VOX)
            lump = self.region & rounded(grown, LUMP)
            if end_planes(lump).sum() < WHOLE * surface_of(lump, ends=True).sum():
                break
        return lump


def _agreed(lumps: Sequence[Mask]) -> Mask:
    """The largest part of what most of the lumps hold; where they hold nothing in common, the middle one."""
    votes = np.sum(lumps, axis=0)
    labels, count = ndimage.label(2 * votes > len(lumps))
    if not count:
        return lumps[len(lumps) // 2]
    return np.asarray(labels == 1 + np.bincount(labels.ravel())[1:].argmax())


def _by_distance(mask: Mask) -> Map:
    """P by the distance from the surface of a mask, above 0.5 inside; 0 everywhere if it is empty."""
    if not mask.any():
        return np.zeros(mask.shape, np.float32)
    depth = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    return np.asarray(1 / (1 + np.exp(-depth / SOFT_VOX)), np.float32)


def _weighed(excess: Map) -> tuple[Labels, npt.NDArray[np.float64]]:
    """The parts of what is above 0, and what each is worth: less where much of its surface is the scan's end.

    Muscles, vessels and bones run on beyond a scan, tumours that are looked for mostly end within it.
    """
    labels, count = ndimage.label(excess > 0)
    sums = ndimage.sum(np.maximum(excess, 0), labels, np.arange(1, count + 1))
    surface = np.bincount(labels[surface_of(labels > 0)], minlength=count + 1)[1:]
    cut = np.bincount(end_planes(labels), minlength=count + 1)[1:] / np.maximum(surface, 1)
    return labels, np.asarray(sums * np.exp(-CUT * cut))


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


def _sigmoid(logits: Map) -> Map:
    return np.asarray(1 / (1 + np.exp(-logits)), np.float32)


def log_odds(p: Map) -> Map:
    """log p / (1 − p), of probabilities kept off 0 and 1."""
    p = np.clip(p, LEAST_P, 1 - LEAST_P)
    return np.asarray(np.log(p / (1 - p)), np.float32)


def standardised(values: Map, region: Mask) -> Map:
    """How many usual deviations (1.48 median deviations) from the region's median, at most ``FARTHEST``."""
    inside = values[region]
    middle = np.median(inside)
    usual = max(1.4826 * float(np.median(np.abs(inside - middle))), 1e-6)
    found: Map = np.clip((values - middle) / usual, -FARTHEST, FARTHEST).astype(np.float32)
    return found


def smoothed(values: Map, region: Mask, sigma: float | Sequence[float]) -> Map:
    """Gaussian smoothing that looks at the region alone."""
    weight = ndimage.gaussian_filter(region.astype(np.float32), sigma)
    total = ndimage.gaussian_filter(np.where(region, values, 0).astype(np.float32), sigma)
    return np.asarray(np.divide(total, weight, out=np.zeros_like(total), where=weight > 1e-3), np.float32)
