"""From a candidate to a mask: repaint it under several seeds, compare, judge.

Everything here lies on the model grid, (D, H, W) numpy float32 or bool; zero outside the candidate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from diffugts.backbone.conditions import Conditions
from diffugts.backbone.latent_diffusion import LatentDiffusion
from diffugts.heads import Settings
from diffugts.healing import Sampling, heal_regions
from diffugts.likelihood import Odds, depth_prior, posterior
from diffugts.residual import (
    Fusion,
    ResidualHead,
    feature_residual,
    fuse,
    otsu,
    probability_of,
    signed_residual,
    strongest,
)
from diffugts.shapes import opened

Map = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Evidence:
    """What the inpainting showed.

    Attributes:
        mask: the candidate M, bool.
        decoded: X, 0..1. healthy: H of the first seed without a seam, 0..1.
        signed: smoothed X − H of each seed. feature: latent residual of each seed.
        fall: by how much attention's logit is lower on H than on X; None where nobody asked.
        telling: log odds by what tells the lesion from its organ, see ``discriminant``; None where nobody asked.
    """

    mask: npt.NDArray[np.bool_]
    decoded: Map
    healthy: Map
    signed: tuple[Map, ...]
    feature: tuple[Map, ...]
    fall: Map | None = None
    telling: Map | None = None

    @property
    def pixel(self) -> tuple[Map, ...]:
        """Pixel residual |X − H| of each seed."""
        return tuple(np.abs(signed) for signed in self.signed)

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
    look: Callable[[torch.Tensor], torch.Tensor] | None = None, trusted: bool = False,
) -> Evidence:  # fmt: skip
    """Repaint a candidate once per seed; an empty one costs no diffusion.

    Args:
        look: attention's logits on an image (D, H, W) in 0..1, to ask it again about what the first seed painted.
        trusted: the candidate came from the user, so that what lies around it is healthy: residuals are then against an
            H without a seam there. Attention's candidate may cut through a tumour, which the seam would carry into H.
    """
    fall = None if look is None else np.zeros(candidate.shape, np.float32)
    decoded, healthy = np.zeros(candidate.shape, np.float32), np.zeros(candidate.shape, np.float32)
    differences, features = [], []
    for number, seed in enumerate(seeds):
        signed, feature = np.zeros_like(healthy), np.zeros_like(healthy)
        report = progress and partial(_overall, progress, number, len(seeds))
        mask = torch.from_numpy(candidate).to(latent.device)
        for region in heal_regions(model, latent, mask, conditions, seed, sampling, report):
            x, h = region.decoded, region.healthy if trusted else region.painted
            signed[region.box] = signed_residual(x, h, smooth_vox).cpu().numpy()
            feature[region.box] = feature_residual(region.latent, region.healthy_latent, x.shape).cpu().numpy()
            if number == 0:
                decoded[region.box], healthy[region.box] = x.cpu().numpy(), region.healthy.cpu().numpy()
                if look is not None and fall is not None:
                    fall[region.box] = (look(x) - look(h)).cpu().numpy()
        differences.append(signed)
        features.append(feature)
    return Evidence(candidate, decoded, healthy, tuple(differences), tuple(features), fall)


def convincing(
    evidence: Evidence, suspicious: npt.NDArray[np.bool_], settings: Settings, spacing: tuple[float, float, float]
) -> Evidence:
    """The evidence without the parts of the candidate about which attention did not change its mind.

    Where the finding was painted away and attention still sees it, it sees what is around: an organ, not a lesion.
    Large parts stay: of those the flow often paints some back (docs/tried.md). Ours.

    Args:
        suspicious: (D, H, W) what attention pointed at. spacing: of the model grid, mm.
    """
    from scipy import ndimage

    if evidence.fall is None or not evidence.mask.any():
        return evidence
    labels, count = ndimage.label(evidence.mask)
    parts, core = np.arange(1, count + 1), np.where(suspicious, labels, 0)
    fall = np.nan_to_num(ndimage.mean(evidence.fall, core, parts))
    sizes = np.bincount(core.ravel(), minlength=count + 1)[1:] * float(np.prod(spacing)) / 1000
    kept = (fall >= settings.fall) | (sizes > settings.fall_ml)
    return replace(evidence, mask=np.isin(labels, parts[kept]))


def _overall(progress: Callable[[float], None], done: int, count: int, part: float) -> None:
    """Tell of a fraction of one of ``count`` seeds as a fraction of them all."""
    progress((done + part) / count)


def refine(
    evidence: Evidence, attended: Map, settings: Settings, trusted: bool = False, head: ResidualHead | None = None
) -> Refined:
    """Refine each connected part of the candidate from its residuals (and attention), in the form that is set.

    Args:
        attended: P_abn. trusted: the candidate came from the user; attention has no say then.
        head: for the learned form; None makes that the plain form.
    """
    from scipy import ndimage

    fusion, form, cut = settings.fusion, settings.form, settings.cut(attended)
    if trusted:
        fusion, form = replace(fusion, attention=0.0), settings.region_form
    probabilities, residuals = [], []
    labels, _ = ndimage.label(evidence.mask)
    boxes = ndimage.find_objects(labels)
    for signed, feature in zip(evidence.signed, evidence.feature, strict=True):
        probability, residual = np.zeros_like(signed), np.zeros_like(signed)
        parts = []
        for number, box in enumerate(boxes, start=1):
            here, deep, lit, seen = (torch.from_numpy(a[box]) for a in (signed, feature, attended, evidence.decoded))
            parts.append(Part(here, deep, lit, seen, torch.from_numpy(labels[box] == number)))
        spared = _main(parts, cut) if form == "likelihood" and not trusted else None
        for part, box in zip(parts, boxes, strict=True):
            r, p = part.fused(fusion)
            if form == "likelihood":
                odds = replace(settings.odds, least=-math.inf) if part is spared else settings.odds
                p = part.believed(cut, odds, trusted)
                if evidence.telling is not None and not trusted:
                    p = with_odds(p, odds.features * torch.from_numpy(evidence.telling[box]), part.inside)
            elif form == "learned" and head is not None:
                p = part.learned(head, cut, settings.odds, trusted)
            if settings.opened and not trusted:
                p = without_leaks(p, settings.opened)
            residual[box] += r.numpy()
            probability[box] += p.numpy()
        probabilities.append(probability)
        residuals.append(residual)
    mean: Map = np.mean(probabilities, axis=0, dtype=np.float32)
    return Refined(mean, np.mean(residuals, axis=0, dtype=np.float32), np.std(probabilities, axis=0, dtype=np.float32))


def with_odds(probability: torch.Tensor, odds: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Probability (D, H, W) with further odds, of which as many voxels of a part pass 0.5 as before.

    What features say moves the outline. It makes a lesion neither larger, since they learnt from its core alone, nor
    surer, since attention saw the same features.
    """
    before = torch.logit(probability[inside], 1e-4)
    after = before + odds[inside]
    count = int((before > 0).sum())
    if count in (0, len(before)):
        return probability
    level = after.sort(descending=True).values[count - 1 : count + 1].mean()
    surer = after.std(correction=0) / before.std(correction=0).clamp_min(1e-6)
    redrawn = probability.clone()
    redrawn[inside] = torch.sigmoid((after - level) / surer.clamp_min(1))
    return redrawn


def without_leaks(probability: torch.Tensor, share: float) -> torch.Tensor:
    """Probability (D, H, W) halved where what passes 0.5 only hangs on by a bridge, see ``shapes.opened``."""
    from scipy import ndimage

    labels, _ = ndimage.label((probability > 0.5).numpy())
    kept = np.zeros(labels.shape, np.bool_)
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        kept[box] |= opened(labels[box] == number, share)
    return torch.where(torch.from_numpy((labels > 0) & ~kept), probability / 2, probability)


def _main(parts: Sequence[Part], cut: float) -> Part | None:
    """The part that holds most of what attention found."""
    return max(parts, key=lambda part: float(part.attended[part.inside & (part.attended > cut)].sum()), default=None)


@dataclass(frozen=True, eq=False)
class Part:
    """One connected part of the candidate, in its box: (D, H, W) tensors."""

    signed: torch.Tensor
    feature: torch.Tensor
    attended: torch.Tensor
    decoded: torch.Tensor
    inside: torch.Tensor

    def fused(self, fusion: Fusion) -> tuple[torch.Tensor, torch.Tensor]:
        """(R, probability) by fixed weights and Otsu."""
        pixel = self.signed.abs()
        r = fuse(pixel, self.feature, self.attended, self.inside, fusion)
        if float(strongest(pixel, self.inside)) < fusion.contrast:
            return r, torch.zeros_like(r)
        threshold = max(otsu(r[self.inside]), fusion.floor)
        return r, probability_of(r, threshold, fusion.softness)

    def believed(self, cut: float, odds: Odds, trusted: bool) -> torch.Tensor:
        """Probability by Bayes' rule: in a user's region depth is the prior, else the mean of two opinions.

        Attention's comes first. The second has depth for its prior, since a tumour is often a candidate's middle, and
        as its core the deepest voxels, fewer than the first one found: purer than what attention points at.
        """
        if trusted:
            return self._by_depth(odds, odds.core)
        first = posterior(self.attended, cut, self.decoded, self.signed, self.inside, odds)
        core = odds.pure * float((first > 0.5)[self.inside].float().mean())
        return first if core == 0 else (first + self._by_depth(replace(odds, least=-math.inf), core)) / 2

    def _by_depth(self, odds: Odds, core: float) -> torch.Tensor:
        """The same with depth for the prior, and the deepest ``core`` of the part taken for lesion to begin with."""
        return posterior(*depth_prior(self.inside, core), self.decoded, self.signed, self.inside, odds)

    def inputs(self, cut: float, odds: Odds, trusted: bool) -> torch.Tensor:
        """What the residual head looks at, (1, 10, D, H, W); nothing is dropped before it is asked."""
        attended = None if trusted else self.attended
        believed = self.believed(cut, replace(odds, least=-math.inf), trusted)
        return ResidualHead.inputs(self.signed, self.feature, attended, self.decoded, self.inside, believed)

    @torch.inference_mode()
    def learned(self, head: ResidualHead, cut: float, odds: Odds, trusted: bool) -> torch.Tensor:
        """Probability by the residual head, zero outside the candidate."""
        logits = head(self.inputs(cut, odds, trusted))[0]
        return torch.where(self.inside, torch.sigmoid(logits), torch.zeros_like(logits))
