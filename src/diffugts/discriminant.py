"""What tells a lesion from the rest of its organ in one scan: Fisher's linear discriminant in the frozen features.

log p(F | lesion) − log p(F | healthy) of two normal distributions with one covariance (Fisher, 1936), fitted to the
scan's own voxels: the core of what is suspicious, and the organ away from it. The paper compares features of the scan
with those of what was painted; the organ elsewhere says what healthy looks like without a painter's errors. Ours;
nothing is trained, and no network is called.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from diffugts.aova import finer, sum_stages
from diffugts.residual import gaussian
from diffugts.shapes import Map, Mask

CORE = 0.3  # share of the suspicious voxels, the shallowest, that are left out: outlines are coarse
SHRINKAGE = 1.0  # times the identity, added to the correlations: there are hundreds of channels
MOST = 6000  # voxels of either kind that are looked at
LEAST = 20  # below which nothing can be said
SMOOTH_CELLS = 1.0  # of the finest features' grid


def discriminant(stages: Sequence[Tensor], suspicious: Mask, healthy: Mask) -> Map | None:
    """Log odds of lesion against healthy tissue by the features of each place.

    Args:
        stages: raw features F_l of the scan, (1, C_l, d_l, h_l, w_l), each over the whole model grid.
        suspicious: (D, H, W) where attention points. healthy: (D, H, W) the organ away from it.

    Returns:
        (D, H, W); None where there are too few voxels of either kind.
    """
    depth = ndimage.distance_transform_edt(suspicious)
    core = suspicious & (depth >= np.quantile(depth[suspicious], CORE)) if suspicious.any() else suspicious
    if min(core.sum(), healthy.sum()) < LEAST:
        return None
    samples = [_sampled(stages, _points(mask), suspicious.shape) for mask in (core, healthy)]
    weights, offset = _fisher(*samples)
    return _scores(stages, weights, offset, suspicious.shape)


def _points(mask: Mask) -> npt.NDArray[np.int64]:
    """(N, 3) at most ``MOST`` voxels of a mask, evenly spaced along its voxels' order."""
    points = np.argwhere(mask)
    return points[np.linspace(0, len(points) - 1, min(MOST, len(points))).astype(np.int64)]


def _sampled(stages: Sequence[Tensor], points: npt.NDArray[np.int64], shape: Sequence[int]) -> Tensor:
    """Features of all stages at voxels of the model grid, trilinear: (N, ΣC_l) float32 on the CPU."""
    places = torch.from_numpy((2 * points + 1) / np.asarray(shape) - 1).float().flip(1)  # grid_sample wants x first
    found = [
        F.grid_sample(stage.float(), places.to(stage.device)[None, None, None], "bilinear", "border", False)
        for stage in stages
    ]
    return torch.cat([values[0, :, 0, 0] for values in found]).T.cpu()


def _fisher(lesion: Tensor, healthy: Tensor) -> tuple[Tensor, float]:
    """Weights (C,) and offset of the discriminant between two samples (N, C)."""
    means = lesion.mean(0), healthy.mean(0)
    apart = lesion - means[0], healthy - means[1]
    deviation = torch.stack([x.square().mean(0) for x in apart]).mean(0).sqrt().clamp_min(1e-6)
    correlation = torch.stack([(x / deviation).T @ (x / deviation) / len(x) for x in apart]).mean(0)
    ridge = correlation + SHRINKAGE * torch.eye(len(correlation))
    weights = torch.linalg.solve(ridge, (means[0] - means[1]) / deviation) / deviation
    return weights, -float(weights @ (means[0] + means[1])) / 2


def _scores(stages: Sequence[Tensor], weights: Tensor, offset: float, shape: Sequence[int]) -> Map:
    """Weighted features, summed on the finest grid, smoothed, on the model grid (D, H, W)."""
    parts = torch.split(weights, [stage.shape[1] for stage in stages])
    scores = [
        torch.tensordot(own.to(stage.device), stage[0].float(), 1) for stage, own in zip(stages, parts, strict=True)
    ]
    total = sum_stages([score[None, None] for score in scores])[0, 0] + offset
    return np.asarray(finer(gaussian(total, SMOOTH_CELLS), shape).cpu().numpy(), np.float32)
