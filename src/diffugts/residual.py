"""Residuals between a scan and its pseudo-healthy self, and the mask that they give.

pixel = |X − H|,  X = D(z/s) and H = D(z0/s): both decoded, so that the autoencoder's own error cancels
feature = latent difference |z − z0|, averaged over channels
R = b1 · norm(pixel) + b2 · norm(feature) + b3 · P_abn,  thresholded inside the candidate only: the plain form
P = sigmoid(head(pixel, feature, A, X, Bayes)) inside the candidate: the learned form
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Fusion:
    """How residuals become a mask; all choices ours, compared by ``benchmarks/tune.py``.

    Attributes:
        pixel, feature, attention: weights b1, b2, b3.
        smooth_vox: standard deviation of the gaussian that the pixel residual is smoothed with, voxels.
        contrast: a candidate whose strongest pixel residual is below this (0..1; 0.01 is 20 HU) is no lesion.
        floor: the Otsu threshold never goes below this R, so that noise is not split in two.
        softness: how far from the threshold, in R, the probability falls from 0.73 to 0.27 on either side.
    """

    pixel: float = 1.0
    feature: float = 0.5
    attention: float = 0.5
    smooth_vox: float = 1.0
    contrast: float = 0.01
    floor: float = 0.15
    softness: float = 0.08

    def __post_init__(self) -> None:
        if self.pixel + self.feature <= 0:
            raise ValueError(
                f"pixel + feature must be above 0, not {self.pixel + self.feature}: inside a user's region attention "
                "has no say, and they are all there is"
            )


def signed_residual(x: Tensor, healthy: Tensor, smooth_vox: float = 0.0) -> Tensor:
    """X − H of decoded images (D, H, W), smoothed, so that texture cancels; in single precision always."""
    with torch.autocast(x.device.type, enabled=False):
        return gaussian(x.float() - healthy.float(), smooth_vox)


def pixel_residual(x: Tensor, healthy: Tensor, smooth_vox: float = 0.0) -> Tensor:
    """|X − H|, smoothed before the absolute value."""
    return signed_residual(x, healthy, smooth_vox).abs()


def feature_residual(z: Tensor, z0: Tensor, shape: torch.Size) -> Tensor:
    """Mean over channels of |z − z0| (1, C, d, h, w), trilinear to the image's ``shape`` (D, H, W)."""
    difference = (z - z0).abs().mean(1, keepdim=True)
    return F.interpolate(difference, size=tuple(shape), mode="trilinear", align_corners=False)[0, 0]


def strongest(residual: Tensor, inside: Tensor, quantile: float = 0.98) -> Tensor:
    """The ``quantile`` of a residual inside the candidate: its scale, robust to a few voxels. Scalar."""
    values = residual[inside]
    rank = max(int(quantile * len(values)), 1)
    return values.kthvalue(rank).values if len(values) else residual.new_zeros(())


def normalised(residual: Tensor, inside: Tensor) -> Tensor:
    """Divide by the strongest residual inside the candidate, clip to 0..1."""
    return (residual / strongest(residual, inside).clamp_min(1e-6)).clamp(0, 1)


def fuse(pixel: Tensor, feature: Tensor, attention: Tensor, inside: Tensor, fusion: Fusion) -> Tensor:
    """R in 0..1, (D, H, W), zero outside the candidate."""
    total = fusion.pixel + fusion.feature + fusion.attention
    r = fusion.pixel * normalised(pixel, inside) + fusion.feature * normalised(feature, inside)
    return torch.where(inside, (r + fusion.attention * attention) / total, torch.zeros_like(r))


def otsu(values: Tensor, bins: int = 256) -> float:
    """Otsu's threshold (1979) of values in 0..1: the cut that separates two classes best."""
    histogram = torch.histc(values.float(), bins, 0, 1).double()
    centres = (torch.arange(bins, dtype=torch.float64) + 0.5) / bins
    low, moment = histogram.cumsum(0), (histogram * centres).cumsum(0)
    high = low[-1] - low
    between = low * high * (moment / low.clamp_min(1e-12) - (moment[-1] - moment) / high.clamp_min(1e-12)) ** 2
    best = torch.nonzero(between >= between.max() * (1 - 1e-9))[:, 0]  # a plateau: take its middle
    return float(centres[int(best.double().mean())] + 0.5 / bins)


def probability_of(r: Tensor, threshold: float, softness: float) -> Tensor:
    """A logistic of the distance to the threshold: 0.5 there, zero where R is zero."""
    return torch.sigmoid((r - threshold) / softness) * (r > 0)


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing of (D, H, W), separable, edges replicated."""
    if sigma <= 0:
        return x
    reach = max(int(3 * sigma + 0.5), 1)
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=x.device) / sigma) ** 2)
    line = line / line.sum()
    y = x[None, None]
    for axis in range(3):
        pad = [0, 0, 0, 0, 0, 0]
        pad[4 - 2 * axis] = pad[5 - 2 * axis] = reach
        y = F.conv3d(F.pad(y, pad, mode="replicate"), line.reshape([1, 1] + [-1 if a == axis else 1 for a in range(3)]))
    return y[0, 0]


class ResidualHead(nn.Module):
    """Residual learning: a few small convolutions over residuals, attention and scan, at the model's resolution.

    They correct what Bayes' rule makes of the same evidence (``likelihood``), and start by changing nothing. The paper
    learns its residual's fusion too, and does not give the network; this one is ours.
    """

    INPUTS = 10

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.width = width
        reach = [1, 2, 4, 2]
        sizes = [self.INPUTS, *[width] * len(reach)]
        layers: list[nn.Module] = []
        for before, after, step in zip(sizes, sizes[1:], reach, strict=False):
            layers += [nn.Conv3d(before, after, 3, padding=step, dilation=step), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv3d(width, 1, 1))
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    @staticmethod
    def inputs(
        signed: Tensor, feature: Tensor, attended: Tensor | None, decoded: Tensor, inside: Tensor, believed: Tensor
    ) -> Tensor:
        """What the head looks at, (1, 10, D, H, W); what Bayes' rule says comes first.

        Args:
            signed: (D, H, W) smoothed X − H. feature: (D, H, W) latent residual.
            attended: (D, H, W) P_abn, or None where the candidate came from the user and attention has no say.
            decoded: (D, H, W) X, 0..1. inside: (D, H, W) bool, the candidate.
            believed: (D, H, W) probability by Bayes' rule.
        """
        known = signed.new_full((), 0.0 if attended is None else 1.0)
        logit = torch.zeros_like(signed) if attended is None else torch.logit(attended, 1e-4) / 4
        pixel, weight = signed.abs(), believed * inside + 1e-4
        tone = (decoded * weight).sum() / weight.sum()
        maps = [
            torch.logit(believed, 1e-4) / 4,
            5 * signed,
            3 * signed.sign() * pixel.sqrt(),
            normalised(pixel, inside),
            normalised(feature, inside),
            logit,
            known.expand_as(signed),
            2 * decoded - 1,
            ((decoded - tone) / decoded[inside].std(correction=0).clamp_min(0.01)).clamp(
                -3, 3
            ),  # as unlike the lesion as it is
            inside.float(),
        ]
        return torch.stack(maps)[None]

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, 10, D, H, W) → logits (N, D, H, W)."""
        logits: Tensor = self.layers(inputs)[:, 0] + 4 * inputs[:, 0]
        return logits
