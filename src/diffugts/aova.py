"""Anomaly-aware open-vocabulary attention: one map per prompt from frozen features and text vectors.

    F'_l = a · T_l + (1 − a) · F_l                              T_l sees F_l and every coarser stage
    A_l[i] = <W_q F'_l, W_k MLP_l(t_i)> / sqrt(C_l)             logits
    A[i] = Σ_l upsample(A_l[i]);   P = sigmoid(A_abnormal − A_normal)
    g_i = MLP(features pooled under P_i);   score_i = sigmoid(MLP(g_i))

Only this is trained; the features come from a frozen backbone and the vectors from a frozen text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class AttentionConfig:
    """Shape of the trained part.

    Attributes:
        channels: C_l of each feature stage, in the backbone's order.
        text_dim: length of a text vector.
        text_space: name of the encoder whose vectors it was trained with.
        hidden: width of the text MLPs and of the image-level head.
        width: hidden width of the adapters.
        mix: the constant a of the adapters (our choice: one half; the paper does not give it).
    """

    channels: tuple[int, ...]
    text_dim: int
    text_space: str
    hidden: int = 128
    width: int = 96
    mix: float = 0.5


@dataclass(frozen=True)
class Attention:
    """What a prompt pair lights up.

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
        """P_abn = sigmoid(A_abnormal − A_normal), (P, d, h, w)."""
        return torch.sigmoid(self.logits)

    @property
    def score(self) -> Tensor:
        """Image-level probability of each pair, (P,)."""
        return torch.sigmoid(self.score_logits)


def cross_attention(query: Tensor, key: Tensor) -> Tensor:
    """A_l[i] = <q, k_i> / sqrt(C): logits, never a softmax, so that no finding is an answer.

    Args:
        query: (C, d, h, w). key: (K, C).

    Returns:
        (K, d, h, w).
    """
    scale: float = query.shape[0] ** 0.5
    return torch.einsum("cdhw,kc->kdhw", query, key) / scale


def sum_stages(maps: Sequence[Tensor]) -> Tensor:
    """A = Σ_l upsample(A_l): each (K, ·) trilinear to the shape of the finest map."""
    finest = max((m.shape[1:] for m in maps), key=lambda shape: shape.numel())
    total = torch.zeros((len(maps[0]), *finest), device=maps[0].device)
    for stage in maps:
        total = total + _resampled(stage.float(), finest)
    return total


class Adapter(nn.Module):
    """T_l: two linear layers on channels, the first of which sees its own stage and every coarser one.

    The paper's adapter sees its own stage only. Summed over stages, such maps cannot say "dense, and inside the
    lung"; this one can. A linear layer and interpolation commute, so each stage goes through its part of the layer
    on its own grid, and the sum is brought from grid to grid, coarse to fine.
    """

    def __init__(self, channels: Sequence[int], outside: int, width: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(count, width, bias=index == 0) for index, count in enumerate(channels))
        self.second = nn.Linear(width, outside)

    def forward(self, stages: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
        """Normalised stages (·, C_l) → (*grid, C_outside)."""
        size, hidden = (grid[0], grid[1], grid[2]), None
        seen = [pair for pair in zip(self.first, stages, strict=True) if pair[1].shape[0] <= size[0]]
        for layer, stage in sorted(seen, key=lambda pair: pair[1].shape[0]):
            part = layer(stage).movedim(-1, 0)
            hidden = part if hidden is None else _resampled(hidden, part.shape[1:]) + part
        if hidden is None:
            raise ValueError(f"no stage is as coarse as the grid {size}")
        adapted: Tensor = self.second(F.silu(_resampled(hidden, size)).movedim(0, -1))
        return adapted


def _resampled(feature: Tensor, grid: Sequence[int]) -> Tensor:
    """(C, ·) trilinear to a finer grid."""
    size = (grid[0], grid[1], grid[2])
    if tuple(feature.shape[1:]) == size:
        return feature
    return F.interpolate(feature[None], size=size, mode="trilinear", align_corners=False)[0]


class AttentionHead(nn.Module):
    """Adapters, projections, text MLPs and the image-level score."""

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        for index, count in enumerate(config.channels):  # fixed statistics of the raw activations
            self.register_buffer(f"mean_{index}", torch.zeros(count))
            self.register_buffer(f"deviation_{index}", torch.ones(count))
        self.adapters = nn.ModuleList(Adapter(config.channels, count, config.width) for count in config.channels)
        self.queries = nn.ModuleList(nn.Linear(count, count) for count in config.channels)
        self.text = nn.ModuleList(_mlp(config.text_dim, config.hidden, count) for count in config.channels)
        self.keys = nn.ModuleList(nn.Linear(count, count, bias=False) for count in config.channels)
        self.pool = _mlp(sum(config.channels) + config.text_dim, config.hidden, config.hidden)
        self.align = nn.Linear(config.text_dim, config.hidden, bias=False)  # for the contrastive loss alone
        self.judge = _mlp(config.hidden, config.hidden, 1)
        self.offset = nn.Parameter(torch.tensor(-2.0))  # most voxels are healthy: start there

    def normalise(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Stages (C_l, ·) as channels-last (·, C_l), with the statistics seen in training removed."""
        return [
            (stage.movedim(0, -1).float() - self.get_buffer(f"mean_{i}")) / self.get_buffer(f"deviation_{i}")
            for i, stage in enumerate(stages)
        ]

    def adapt(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """F'_l = a · T_l + (1 − a) · F_l on normalised stages, (·, C_l) each."""
        a, normal = self.config.mix, self.normalise(stages)
        return [
            a * adapter(normal, f.shape[:3]) + (1 - a) * f for adapter, f in zip(self.adapters, normal, strict=True)
        ]

    def forward(self, stages: Sequence[Tensor], abnormal: Tensor, normal: Tensor) -> Attention:
        """Attend to prompt pairs.

        Args:
            stages: raw features F_l of one scan, (C_l, d_l, h_l, w_l).
            abnormal: (P, T) unit text vectors. normal: (P, T).
        """
        adapted, vectors, pairs = self.adapt(stages), torch.cat([abnormal, normal]), len(abnormal)
        maps = []
        for feature, query, text, key in zip(adapted, self.queries, self.text, self.keys, strict=True):
            maps.append(cross_attention(query(feature).movedim(-1, 0), key(text(vectors))))
        both = sum_stages(maps)
        logits = both[:pairs] - both[pairs:] + self.offset
        pooled = self.pool(torch.cat([_pool_under(adapted, torch.sigmoid(logits)), abnormal], dim=1))
        return Attention(logits, pooled, self.judge(pooled)[:, 0])


def _pool_under(features: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Mean of each stage's features (·, C_l) under the maps (P, d, h, w), side by side: (P, ΣC_l)."""
    pooled = []
    for feature in features:
        depth, height, width, _ = feature.shape
        w = F.adaptive_avg_pool3d(weight[None], (depth, height, width))[0].flatten(1)
        pooled.append((w @ feature.flatten(0, 2)) / w.sum(1, keepdim=True).clamp_min(1e-6))
    return torch.cat(pooled, dim=1)


def _mlp(inside: int, hidden: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inside, hidden), nn.SiLU(), nn.Linear(hidden, outside))
