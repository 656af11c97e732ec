"""From a candidate to a mask: repaint it under several seeds, compare, threshold.

Everything here lies on the model grid, (D, H, W) numpy float32 or bool; zero outside the candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from diffugts.backbone.latent_diffusion import Conditions, LatentDiffusion
from diffugts.heads import Settings
from diffugts.healing import Sampling, heal_regions
from diffugts.residual import Fusion, feature_residual, fuse, otsu, pixel_residual, probability_of, strongest

Map = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Evidence:
    """What the inpainting showed.

    Attributes:
        mask: the candidate M, bool.
        healthy: H of the first seed, 0..1.
        pixel: pixel residual of each seed. feature: latent residual of each seed.
    """

    mask: npt.NDArray[np.bool_]
    healthy: Map
    pixel: tuple[Map, ...]
    feature: tuple[Map, ...]

    def feather(self) -> Map:
        """Weight for pasting H into the scan: 1 in the candidate's depth, falling to 0 at its rim."""
        from scipy import ndimage

        soft = ndimage.uniform_filter(self.mask.astype(np.float32), 3)
        weight: Map = np.where(self.mask, np.clip(2 * soft - 1, 0, 1), 0).astype(np.float32)
        return weight


@dataclass(frozen=True)
class Refined:
    """The answer on the model grid: probability, fused residual R, and the spread of the probability over seeds."""

    probability: Map
    residual: Map
    spread: Map


def heal_candidate(
    model: LatentDiffusion, latent: torch.Tensor, candidate: npt.NDArray[np.bool_], conditions: Conditions,
    seeds: Sequence[int], sampling: Sampling, progress: Callable[[float], None] | None = None, smooth_vox: float = 1.0,
) -> Evidence:  # fmt: skip
    """Repaint a candidate once per seed; an empty one costs no diffusion."""
    healthy, pixels, features = np.zeros(candidate.shape, np.float32), [], []
    for number, seed in enumerate(seeds):
        pixel, feature = np.zeros_like(healthy), np.zeros_like(healthy)
        report = progress and partial(_overall, progress, number, len(seeds))
        mask = torch.from_numpy(candidate).to(latent.device)
        for region in heal_regions(model, latent, mask, conditions, seed, sampling, report):
            x, h = region.decoded, region.healthy
            pixel[region.box] = pixel_residual(x, h, smooth_vox).cpu().numpy()
            feature[region.box] = feature_residual(region.latent, region.healthy_latent, x.shape).cpu().numpy()
            if number == 0:
                healthy[region.box] = h.cpu().numpy()
        pixels.append(pixel)
        features.append(feature)
    return Evidence(candidate, healthy, tuple(pixels), tuple(features))


def _overall(progress: Callable[[float], None], done: int, count: int, part: float) -> None:
    """Tell of a fraction of one of ``count`` seeds as a fraction of them all."""
    progress((done + part) / count)


def refine(evidence: Evidence, attended: Map, settings: Settings, trusted: bool = False) -> Refined:
    """Fuse residuals (and attention) inside each connected part of the candidate and threshold them there.

    Args:
        attended: P_abn. trusted: the candidate came from the user; attention has no say then.
    """
    from scipy import ndimage

    fusion = settings.fusion
    if trusted:
        fusion = Fusion(**{**fusion.__dict__, "attention": 0.0})
    probabilities, residuals = [], []
    labels, _ = ndimage.label(evidence.mask)
    boxes = ndimage.find_objects(labels)
    for pixel, feature in zip(evidence.pixel, evidence.feature, strict=True):
        probability, residual = np.zeros_like(pixel), np.zeros_like(pixel)
        for number, box in enumerate(boxes, start=1):
            inside = torch.from_numpy(labels[box] == number)
            here, deep, lit = (torch.from_numpy(a[box]) for a in (pixel, feature, attended))
            r, p = _one_part(here, deep, lit, inside, fusion)
            residual[box] += r.numpy()
            probability[box] += p.numpy()
        probabilities.append(probability)
        residuals.append(residual)
    mean: Map = np.mean(probabilities, axis=0, dtype=np.float32)
    return Refined(mean, np.mean(residuals, axis=0, dtype=np.float32), np.std(probabilities, axis=0, dtype=np.float32))


def _one_part(
    pixel: torch.Tensor, feature: torch.Tensor, attended: torch.Tensor, inside: torch.Tensor, fusion: Fusion
) -> tuple[torch.Tensor, torch.Tensor]:
    """(R, probability) of one connected part of the candidate."""
    r = fuse(pixel, feature, attended, inside, fusion)
    if float(strongest(pixel, inside)) < fusion.contrast:
        return r, torch.zeros_like(r)
    threshold = max(otsu(r[inside]), fusion.floor)
    return r, probability_of(r, threshold, fusion.softness)
