"""The refinement's third form: Bayes' rule with densities that each scan gives itself.

logit P(x) = logit P_abn − logit cut + G · [a · log p(X | lesion) / p(X | healthy) + b · log p(X − H | lesion) / …]

Lesion densities are histograms over the suspicious core, weighted by attention. In a region that the user gave, depth
under its surface takes attention's place: outlines are drawn generously, and their middle is lesion. What healthy
tissue looks like at this place is what the flow painted there: the histogram of H over the candidate; what a healthy
residual looks like is that of the candidate's rim. G is a small gaussian. Where attention gave the candidate, depth has
a say as well: the answer is the mean of both (``refine.Part.believed``), whose outline the frozen features may move
(``refine.with_odds``). Ours; nothing is trained, and no intensity is known beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffugts.residual import gaussian, strongest

BINS = 32
BLUR_BINS = 1.5
FLOOR = 0.005  # probability per bin that nothing seen takes away: few voxels prove little


@dataclass(frozen=True)
class Odds:
    """Weights of the two log ratios, chosen by ``benchmarks/tune.py``.

    Attributes:
        intensity, residual: a, b.
        smooth_vox: standard deviation of G, voxels.
        core: share of a user's region, its deepest voxels, that is taken for lesion to begin with.
        pure: where attention gave the candidate, the core of the second opinion, for which depth is the prior, as a
            share of as many voxels as the first one found; 0 asks for no second opinion.
        features: weight of what tells the lesion from its organ in the frozen features (``discriminant``); 0 does not
            ask.
        least: mean log ratio of intensities (nats) below which a core looks like the healthy tissue that was painted
            there, and is no lesion. Of the parts that attention found in a scan, the one that holds most of it is
            spared: a tumour may be as dark as muscle.
    """

    intensity: float = 1.0
    residual: float = 0.5
    smooth_vox: float = 0.8
    core: float = 0.15
    pure: float = 0.7
    features: float = 0.0
    least: float = 0.3


def depth_prior(inside: Tensor, core: float) -> tuple[Tensor, float]:
    """Depth under the surface of a part (D, H, W), 0..1, and the depth that ``core`` of its voxels reach."""
    from scipy import ndimage

    padded = np.pad(inside.cpu().numpy(), 1)  # a part's own box cuts it off at its surface
    depth = ndimage.distance_transform_edt(padded)[1:-1, 1:-1, 1:-1].astype(np.float32)
    prior = torch.from_numpy(depth / max(float(depth.max()), 1e-6)).to(inside.device)
    return prior, min(float(np.quantile(prior[inside].cpu().numpy(), 1 - core)), 0.98)


def posterior(prior: Tensor, cut: float, decoded: Tensor, signed: Tensor, inside: Tensor, odds: Odds) -> Tensor:
    """Probability of lesion in one connected part of the candidate, zero outside it.

    Args:
        prior: (D, H, W) 0..1, what is believed before looking at intensities. cut: where it becomes suspicious.
        decoded: (D, H, W) X, 0..1. signed: (D, H, W) smoothed X − H.
        inside: (D, H, W) bool, the part.
    """
    core = inside & (prior > cut)
    if not core.any():
        return torch.where(inside, prior, 0.0)
    rim = inside & ~core
    weight = prior[core]
    ratio = _intensity_ratio(prior, cut, decoded, signed, inside)
    if odds.intensity > 0 and float(ratio[core].mean()) < odds.least:
        return torch.zeros_like(prior)
    total = odds.intensity * ratio
    if rim.any():
        reach = max(float(strongest(signed.abs(), inside, 0.99)), 1e-3)
        total += odds.residual * _log_ratio(
            signed, (-reach, reach), (signed[core], weight), (signed[rim], 1 - prior[rim])
        )
    believed = torch.logit(prior, 1e-4) - torch.logit(torch.tensor(cut), 1e-4)
    return torch.where(inside, torch.sigmoid(believed + gaussian(total, odds.smooth_vox)), 0.0)


def _intensity_ratio(prior: Tensor, cut: float, decoded: Tensor, signed: Tensor, inside: Tensor) -> Tensor:
    """log p(X | lesion) − log p(X | healthy), (D, H, W)."""
    core = inside & (prior > cut)
    low, high = torch.quantile(_some(decoded[inside]), torch.tensor([0.01, 0.99], device=decoded.device)).tolist()
    painted = (decoded - signed)[inside]
    return _log_ratio(decoded, (low, high), (decoded[core], prior[core]), (painted, torch.ones_like(painted)))


Sample = tuple[Tensor, Tensor]
"""Values and their weights, (N,) each."""


def _log_ratio(values: Tensor, span: tuple[float, float], lesion: Sample, healthy: Sample) -> Tensor:
    """log p(values | lesion) − log p(values | healthy), as ``values``."""
    ratio = torch.log(_density(lesion, span)) - torch.log(_density(healthy, span))
    return ratio[_bin(values, span)]


def _density(sample: Sample, span: tuple[float, float]) -> Tensor:
    """(BINS,) a blurred histogram that sums to about 1 and is nowhere 0."""
    values, weights = sample
    counts = torch.bincount(_bin(values, span), weights.double(), BINS).float()
    places = torch.arange(BINS, device=counts.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * ((places[:, None] - places) / BLUR_BINS) ** 2)
    counts = (kernel / kernel.sum(0)) @ counts
    return counts / counts.sum().clamp_min(1e-6) + FLOOR


def _bin(values: Tensor, span: tuple[float, float]) -> Tensor:
    low, high = span
    return ((values - low) / max(high - low, 1e-6) * BINS).long().clamp(0, BINS - 1)


def _some(values: Tensor, count: int = 1_000_000) -> Tensor:
    """At most ``count`` of the values: ``torch.quantile`` takes no more than 16 million."""
    return values[:: max(1, -(-len(values) // count))]
