"""Anomaly-aware open-vocabulary attention: one map per prompt from frozen features and text vectors.

    F'_l = a · T_l(F) + (1 − a) · F_l                           T reads every frozen stage, on its own grid
    A_l[i] = <W_q F'_l, W_k MLP_l(t_i)> / sqrt(C_l)             logits
    A[i] = Σ_l upsample(A_l[i]);   P = sigmoid(A_abnormal − A_normal)
    g_i = MLP(features pooled under P_i);   score_i = sigmoid(MLP(g_i, highest logits))

Only this is trained; the features come from a frozen backbone and the vectors from a frozen text encoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffugts.backbone.convolutions import laid_out
from diffugts.backbone.latent_diffusion import blending_weight, windows

WIDTHS = {1: 16, 2: 32}  # of the adapters, by stride of the grid; 96 where it is coarser
TOP = 32  # voxels of the finest grid whose mean logit tells the image-level score how sure the map is


@dataclass(frozen=True)
class AttentionConfig:
    """Shape of the trained part.

    Attributes:
        channels: C_l of each feature stage, in the backbone's order.
        strides: image voxels per voxel of each stage.
        text_dim: length of a text vector.
        text_space: name of the encoder whose vectors it was trained with.
        widths: of the adapters' trunk, one per distinct stride from the finest on, and one for a grid twice as
            coarse as the coarsest; multiples of 8.
        hidden: width of the text MLPs and of the image-level head.
        mix: the constant a of the adapters (our choice: one half; the paper does not give it).
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    text_dim: int
    text_space: str
    widths: tuple[int, ...]
    hidden: int = 128
    mix: float = 0.5

    @classmethod
    def of(cls, channels: Sequence[int], strides: Sequence[int], text_dim: int, text_space: str) -> AttentionConfig:
        """Our widths for a backbone's stages."""
        grids = sorted(set(strides))
        widths = tuple(WIDTHS.get(stride, 96) for stride in (*grids, 2 * grids[-1]))
        return cls(tuple(channels), tuple(strides), text_dim, text_space, widths)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> AttentionConfig:
        """The configuration that ``dataclasses.asdict`` described, lists for tuples."""
        lists: dict[str, Any] = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
        return cls(**{**data, **lists})


@dataclass(frozen=True)
class Attention:
    """What prompt pairs light up. P pairs; in a batch each field has N patches in front.

    Attributes:
        logits: (P, d, h, w) A_abnormal − A_normal on the finest stage's grid, one per prompt pair.
        pooled: (P, hidden) g_i, the features under each map.
        score_logits: (P,) image-level logit of each pair: is the finding there at all.
    """

    logits: Tensor
    pooled: Tensor
    score_logits: Tensor

    @property
    def probability(self) -> Tensor:
        """P_abn = sigmoid(A_abnormal − A_normal), as ``logits``."""
        return torch.sigmoid(self.logits)

    @property
    def score(self) -> Tensor:
        """Image-level probability of each pair, as ``score_logits``."""
        return torch.sigmoid(self.score_logits)


def cross_attention(query: Tensor, key: Tensor) -> Tensor:
    """A_l[i] = <q, k_i> / sqrt(C): logits, never a softmax, so that no finding is an answer.

    Args:
        query: (N, C, d, h, w). key: (N, K, C).

    Returns:
        (N, K, d, h, w).
    """
    scale: float = query.shape[1] ** 0.5
    return torch.einsum("ncdhw,nkc->nkdhw", query, key) / scale


def sum_stages(maps: Sequence[Tensor]) -> Tensor:
    """A = Σ_l upsample(A_l): each (N, K, ·) trilinear to the shape of the finest map."""
    grids: dict[torch.Size, Tensor] = {}
    for stage in maps:  # first those of one grid, so that each grid is brought to the finest once
        shape = stage.shape[2:]
        grids[shape] = grids[shape] + stage.float() if shape in grids else stage.float()
    finest = max(grids, key=lambda shape: shape.numel())
    return torch.stack([_resampled(total, finest) for total in grids.values()]).sum(0)


def _resampled(feature: Tensor, grid: Sequence[int]) -> Tensor:
    """(N, C, ·) trilinear to a finer grid."""
    size = (grid[0], grid[1], grid[2])
    if tuple(feature.shape[2:]) == size:
        return feature
    return F.interpolate(feature, size=size, mode="trilinear", align_corners=False)


def finer(values: Tensor, grid: Sequence[int]) -> Tensor:
    """A map (d, h, w) of a feature grid, trilinear on a finer one such as the model grid."""
    return _resampled(values[None, None], grid)[0, 0]


class Block(nn.Module):
    """A residual block that starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(width // 8, width) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv3d(width, width, 3, padding=1) for _ in range(2))
        for parameter in self.convolutions[1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, ·) → the same."""
        h = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            h = convolution(F.silu(norm(h)))
        return x + h


class Adapters(nn.Module):
    """T: a small U-shaped network that reads each frozen stage on its grid and answers every stage.

    The paper's adapter is two linear layers on one stage's channels. Such maps cannot say "dense, and inside the
    lung" nor "a round thing brighter than its surroundings"; in our trials they ranked voxels well and never
    became sure (docs/tried.md).
    """

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.grids = sorted(set(config.strides))
        self.strides, widths = config.strides, config.widths
        self.read = nn.ModuleList(
            nn.Conv3d(count, widths[self.grids.index(stride)], 1)
            for count, stride in zip(config.channels, config.strides, strict=True)
        )
        steps = range(len(widths) - 1)
        self.down = nn.ModuleList(nn.Conv3d(widths[i], widths[i + 1], 3, stride=2, padding=1) for i in steps)
        self.up = nn.ModuleList(nn.Conv3d(widths[i + 1], widths[i], 1) for i in steps)
        depth = [2 if stride == 4 else 1 for stride in (*self.grids, 0)]  # most of the work where it is cheap and fine
        self.inward = nn.ModuleList(
            nn.Sequential(*(Block(w) for _ in range(n))) for w, n in zip(widths, depth, strict=True)
        )
        self.outward = nn.ModuleList(
            nn.Sequential(*(Block(w) for _ in range(n))) for w, n in zip(widths[:-1], depth[:-1], strict=True)
        )
        self.write = nn.ModuleList(
            nn.Conv3d(widths[self.grids.index(stride)], count, 1)
            for count, stride in zip(config.channels, config.strides, strict=True)
        )

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Normalised stages (N, C_l, ·) → T_l (N, C_l, ·)."""
        kept: list[Tensor] = []
        for level, blocks in enumerate(self.inward):
            h = self.down[level - 1](kept[-1]) if level else None
            if level < len(self.grids):
                for read, stage, stride in zip(self.read, stages, self.strides, strict=True):
                    if stride == self.grids[level]:
                        h = read(stage) if h is None else h + read(stage)
            kept.append(blocks(h))
        h = kept.pop()
        answers: dict[int, Tensor] = {}
        for level in reversed(range(len(kept))):
            h = self.outward[level](kept[level] + _resampled(self.up[level](h), kept[level].shape[2:]))
            answers[self.grids[level]] = h
        return [write(F.silu(answers[stride])) for write, stride in zip(self.write, self.strides, strict=True)]


class AttentionHead(nn.Module):
    """Adapters, projections, text MLPs and the image-level score."""

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        for index, count in enumerate(config.channels):  # fixed statistics of the raw activations
            self.register_buffer(f"mean_{index}", torch.zeros(count))
            self.register_buffer(f"deviation_{index}", torch.ones(count))
        self.register_buffer("text_mean", torch.zeros(config.text_dim))  # and of the vectors of many prompts
        self.register_buffer("text_deviation", torch.tensor(config.text_dim**-0.5))
        self.adapters = Adapters(config)
        self.queries = nn.ModuleList(nn.Conv3d(count, count, 1) for count in config.channels)
        self.text = nn.ModuleList(_mlp(config.text_dim, config.hidden, count) for count in config.channels)
        self.keys = nn.ModuleList(nn.Linear(count, count, bias=False) for count in config.channels)
        for key in self.keys:  # a usual start leaves all logits, and so all gradients, near zero for hundreds of steps
            nn.init.normal_(key.get_parameter("weight"), std=0.2)
        self.pool = _mlp(sum(config.channels) + config.text_dim, config.hidden, config.hidden)
        self.align = nn.Linear(config.text_dim, config.hidden, bias=False)  # for the contrastive loss alone
        self.judge = _mlp(config.hidden + 1, config.hidden, 1)
        self.offset = nn.Parameter(torch.tensor(-3.0))  # most voxels are healthy: start there
        laid_out(self)

    def normalise(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Stages (N, C_l, ·) with the statistics seen in training removed."""
        normal = []
        for index, stage in enumerate(stages):
            scale = 1 / self.get_buffer(f"deviation_{index}")
            shift = -self.get_buffer(f"mean_{index}") * scale
            x = stage.contiguous(memory_format=torch.channels_last_3d)
            normal.append(torch.addcmul(_column(shift).to(x.dtype), x, _column(scale).to(x.dtype)))
        return normal

    def adapt(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """F'_l = a · T_l + (1 − a) · F_l on normalised stages, (N, C_l, ·) each."""
        a, normal = self.config.mix, self.normalise(stages)
        return [a * answer + (1 - a) * f for answer, f in zip(self.adapters(normal), normal, strict=True)]

    def forward(self, stages: Sequence[Tensor], abnormal: Tensor, normal: Tensor) -> Attention:
        """Attend to prompt pairs in patches.

        Args:
            stages: raw features F_l, (N, C_l, d_l, h_l, w_l).
            abnormal: (N, P, T) unit text vectors. normal: (N, P, T).
        """
        adapted, pairs = self.adapt(stages), abnormal.shape[1]
        mean, deviation = self.get_buffer("text_mean"), self.get_buffer("text_deviation")
        vectors = (torch.cat([abnormal, normal], dim=1) - mean) / deviation
        maps = []
        for feature, query, text, key in zip(adapted, self.queries, self.text, self.keys, strict=True):
            maps.append(cross_attention(query(feature), key(text(vectors))))
        both = sum_stages(maps)
        logits = both[:, :pairs] - both[:, pairs:] + self.offset
        pooled = self.pool(torch.cat([_pool_under(adapted, torch.sigmoid(logits)), vectors[:, :pairs]], dim=2))
        flat = logits.flatten(2)
        top = flat.topk(min(TOP, flat.shape[2]), dim=2).values.mean(2, keepdim=True)
        return Attention(logits, pooled, self.judge(torch.cat([pooled, top], dim=2))[..., 0].float())


def attend(
    head: AttentionHead, stages: Sequence[Tensor], abnormal: Tensor, normal: Tensor, window: int, overlap: int
) -> Attention:
    """Attend to prompt pairs in one scan, window by window as in training; the highest window's score counts.

    Args:
        stages: raw features F_l of the scan, (1, C_l, d_l, h_l, w_l).
        abnormal: (P, T) unit text vectors. normal: (P, T).
        window: most of a window's side. overlap: what neighbours share at least; both in image voxels and multiples of
            every stride.
    """
    strides = head.config.strides
    finest = min(strides)
    first = stages[strides.index(finest)]
    shape = tuple(side * finest for side in first.shape[2:])
    total = first.new_zeros((1, len(abnormal), *first.shape[2:]))
    weight = first.new_zeros((1, 1, *first.shape[2:]))
    found = []
    for box in windows(shape, window, overlap, max(strides)):
        crops = [stage[_box(box, stride)] for stage, stride in zip(stages, strides, strict=True)]
        part: Attention = head(crops, abnormal[None], normal[None])
        bump = blending_weight(part.logits.shape[2:], total.device)
        total[_box(box, finest)] += part.logits * bump
        weight[_box(box, finest)] += bump
        found.append((part.pooled[0], part.score_logits[0]))
    pooled, scores = (torch.stack(values) for values in zip(*found, strict=True))
    best = scores.argmax(0)
    pairs = torch.arange(len(abnormal), device=best.device)
    return Attention((total / weight)[0], pooled[best, pairs], scores[best, pairs])


def mean_of_looks(
    fine: Attention, wide: Sequence[Attention], ratios: Sequence[Sequence[float]], coarse: float = 0.0
) -> Attention:
    """The mean of what one scan's attention says on small and on larger voxels, on the small ones' grid.

    All grids start at the same corner of the scan. Ours; larger voxels bring the context that a big lesion needs.

    Args:
        ratios: of each wide look (3,), small voxel over large voxel, per axis.
        coarse: each look weighs as its voxels' side to this power.
    """
    if not wide:
        return fine
    size = fine.logits.shape[1:]
    seen = [_seen_at(look.logits, size, ratio) for look, ratio in zip(wide, ratios, strict=True)]
    pooled, scores = ([getattr(look, name) for look in (fine, *wide)] for name in ("pooled", "score_logits"))
    sides = torch.tensor([1.0, *(math.prod(ratio) ** (-1 / 3) for ratio in ratios)], device=fine.logits.device)
    weights = sides**coarse / (sides**coarse).sum()
    fields = ([fine.logits, *seen], pooled, scores)
    return Attention(*(torch.tensordot(weights, torch.stack(values), 1) for values in fields))


def _seen_at(logits: Tensor, size: Sequence[int], ratios: Sequence[float]) -> Tensor:
    """Logits (P, ·) of a grid of larger voxels on one of smaller ones, from the same corner."""
    places = [
        (2 * torch.arange(n, device=logits.device) + 1) * ratio / side - 1
        for n, side, ratio in zip(size, logits.shape[1:], ratios, strict=True)
    ]
    grid = torch.stack(torch.meshgrid(*places, indexing="ij")[::-1], -1)  # grid_sample wants x, the last axis, first
    return F.grid_sample(logits[None], grid[None], padding_mode="border", align_corners=False)[0]


def _box(box: Sequence[slice], stride: int) -> tuple[Any, ...]:
    return (..., *(slice(side.start // stride, side.stop // stride) for side in box))


def _column(values: Tensor) -> Tensor:
    return values.reshape(1, -1, 1, 1, 1)


def _pool_under(features: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Mean of each stage's features (N, C_l, ·) under the maps (N, P, d, h, w), side by side: (N, P, ΣC_l)."""
    pooled = []
    for feature in features:
        depth, height, width = feature.shape[2:]
        w = F.adaptive_avg_pool3d(weight, (depth, height, width)).flatten(2)
        total = torch.einsum("npv,ncv->npc", w, feature.flatten(2).to(w.dtype))
        pooled.append(total / w.sum(2, keepdim=True).clamp_min(1e-6))
    return torch.cat(pooled, dim=2)


def _mlp(inside: int, hidden: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inside, hidden), nn.SiLU(), nn.Linear(hidden, outside))
