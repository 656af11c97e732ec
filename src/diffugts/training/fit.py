"""Training of the attention head on frozen features: which prompt lights up what.

    L = Dice(P, y) + focal(P, y) + Dice(1 − P, 1 − y) + BCE(score, y_image) + contrastive(g, t)

Every patch is asked a few prompts: the organ of its tumour, any tumour, and organs whose tumour is not there.
The last two kinds of answer, an empty map and "not here", are what zero-shot prompts need most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffugts.aova import Attention, AttentionConfig, AttentionHead
from diffugts.backbone.latent_diffusion import Conditions, LatentDiffusion
from diffugts.prompts import parse
from diffugts.text import TextEncoder
from diffugts.training.bank import TUMOUR, UNKNOWN, Bank, Patch
from diffugts.training.loop import Batch, RunOptions, train

GENERIC = ("tumor", "lesion", "mass", "abnormality")
FINDINGS = ("tumor", "metastasis", "cancer", "lesion", "sarcoma")
ELSEWHERE = (
    "lung", "liver", "kidney", "spleen", "pancreas", "colon", "stomach", "adrenal gland", "bladder", "breast",
    "bone", "soft tissue", "brain", "prostate", "thyroid", "ovary", "head and neck",
)  # fmt: skip
PROMPT_OF = {"adrenal": "adrenal gland"}  # organs of synthetic patients whose prompt has another name
CONTRASTIVE_TEMPERATURE = 0.07
SAME_PROMPT = 0.98  # cosine above which two drawn vectors come from one prompt


@dataclass(frozen=True)
class Question:
    """A prompt asked of a patch and which of its lesions it means, as flag values."""

    prompt: str
    lesions: tuple[int, ...]


def questions(patch: Patch, rng: np.random.Generator, count: int = 4) -> list[Question]:
    """Prompts for one patch: its organs' tumours, any tumour, and organs that have none there."""
    organs = [PROMPT_OF.get(organ, organ) for organ in patch.item.lesions]
    if "" in organs:  # planted in a real scan, organ not known: it is a tumour, and that is all one can ask
        return [Question(str(prompt), (TUMOUR,)) for prompt in rng.choice(GENERIC, 2, replace=False)]
    flags = tuple(TUMOUR + i for i in range(len(organs)))
    asked = [Question(str(rng.choice(GENERIC)), flags)]
    for organ in dict.fromkeys(organs):
        here = tuple(flag for flag, name in zip(flags, organs, strict=True) if name == organ)
        asked.append(Question(f"{organ} {rng.choice(FINDINGS)}", here))
    absent = [organ for organ in ELSEWHERE if organ not in organs]
    for organ in rng.choice(absent, max(count - len(asked), 1), replace=False):
        asked.append(Question(f"{organ} {rng.choice(FINDINGS)}", ()))
    return asked[:count]


class PromptVectors:
    """Vectors of a prompt's two ensembles.

    A random part of each phrase list at a time, so that no phrase is learnt by heart.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    def draw(self, prompt: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """(abnormal (T,), normal (T,)) of unit length."""
        if prompt not in self._known:
            parsed = parse(prompt)
            abnormal, normal = (torch.from_numpy(self.encoder.encode(p)) for p in (parsed.abnormal, parsed.normal))
            self._known[prompt] = (abnormal, normal)
        return tuple(_some(vectors, rng) for vectors in self._known[prompt])  # type: ignore[return-value]


def _some(vectors: Tensor, rng: np.random.Generator) -> Tensor:
    keep = rng.random(len(vectors)) < 0.7
    chosen = vectors[torch.from_numpy(keep)] if keep.any() else vectors
    return F.normalize(chosen.mean(0), dim=0)


def train_heads(
    model: LatentDiffusion, encoder: TextEncoder, bank: Bank, options: RunOptions, out: Path
) -> AttentionHead:
    """Train adapters, projections, text MLPs and the image-level score on a frozen model.

    Returns:
        The head with averaged weights.
    """
    torch.manual_seed(options.seed)
    model.frozen()
    head = AttentionHead(AttentionConfig(model.feature_channels, encoder.dim, encoder.name))
    vectors = PromptVectors(encoder)
    if not (out / "state.pt").exists():
        _fit_statistics(head, model, bank, options)

    def loss_of(batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        terms, asked = [], []
        for image, flags, patch in zip(batch.image, batch.flags, batch.patches, strict=True):
            stages = features(model, image[None], _conditions(patch, rng))
            put = questions(patch, rng)
            pairs = [vectors.draw(question.prompt, rng) for question in put]
            abnormal, normal = (torch.stack(side) for side in zip(*pairs, strict=True))
            with torch.autocast("cpu", enabled=False):
                attention = head(stages, abnormal, normal)
            target = torch.stack([_target(flags[0], question) for question in put])
            terms.append(_patch_loss(attention, target, flags[0] > UNKNOWN))
            asked.append((attention, abnormal, target.flatten(1).any(1)))
        loss = torch.stack([term["total"] for term in terms]).mean()
        contrast = contrastive(asked, head)
        figures = {key: torch.stack([term[key] for term in terms]).mean().item() for key in terms[0]}
        return loss + 0.1 * contrast, {**figures, "contrastive": contrast.item()}

    train({"head": head}, loss_of, bank, options, out)
    return head


def features(model: LatentDiffusion, image: Tensor, conditions: Conditions) -> list[Tensor]:
    """Frozen stage features of one patch (1, 1, S, S, S), (C_l, ·) float32 each."""
    with torch.no_grad():
        encoding = model.encode(image, conditions)
    return [stage[0].float().clone() for stage in encoding.stages]


def _conditions(patch: Patch, rng: np.random.Generator) -> Conditions:
    """As at inference: CT or MR, the sequence unknown."""
    return Conditions(patch.item.spacing, patch.item.modality.split("-")[0])


def _fit_statistics(head: AttentionHead, model: LatentDiffusion, bank: Bank, options: RunOptions) -> None:
    """Mean and deviation of each feature channel over random patches, kept as fixed buffers."""
    rng = np.random.default_rng(options.seed)
    sums: list[list[Tensor]] = [[] for _ in head.config.channels]
    for _ in range(24):
        patch = bank.sample(rng, options.size)
        image = torch.from_numpy(patch.image)[None, None]
        for index, stage in enumerate(features(model, image, _conditions(patch, rng))):
            sums[index].append(stage.flatten(1)[:, ::7])
    for index, found in enumerate(sums):
        values = torch.cat(found, dim=1)
        head.get_buffer(f"mean_{index}").copy_(values.mean(1))
        head.get_buffer(f"deviation_{index}").copy_(values.std(1).clamp_min(1e-4))


def _target(flags: Tensor, question: Question) -> Tensor:
    return torch.isin(flags, torch.tensor(question.lesions, dtype=flags.dtype)).float()


def _patch_loss(attention: Attention, target: Tensor, known: Tensor) -> dict[str, Tensor]:
    """Voxel losses on the attention's own grid and the image-level loss; one value each.

    Args:
        target: (P, S, S, S) 0 or 1. known: (S, S, S) bool, what may be supervised.
    """
    logits = attention.logits
    _, depth, height, width = logits.shape
    y = F.adaptive_avg_pool3d(target[None], (depth, height, width))[0]
    w = F.adaptive_avg_pool3d(known[None].float(), (depth, height, width))[0]
    p = torch.sigmoid(logits)
    present = y.flatten(1).amax(1) > 0.5
    dice = soft_dice(p, y, w) + soft_dice(1 - p, 1 - y, w)
    focal = (w * focal_loss(logits, y, gamma=1.0)).mean((1, 2, 3))
    score = F.binary_cross_entropy_with_logits(attention.score_logits, present.float())
    total = (dice * present).sum() / present.sum().clamp_min(1) + 10 * focal.mean() + 0.3 * score
    return {
        "total": total,
        "dice": (dice * present).sum() / present.sum().clamp_min(1),
        "focal": focal.mean(),
        "score": score,
    }


def soft_dice(p: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """1 − soft Dice of each map (P, ·) under weights (·): (P,)."""
    overlap = (w * p * y).sum((1, 2, 3))
    return 1 - (2 * overlap + 1) / ((w * p).sum((1, 2, 3)) + (w * y).sum((1, 2, 3)) + 1)


def focal_loss(logits: Tensor, y: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal loss (Lin et al., 2017) per voxel, without class weights, so that probabilities stay calibrated."""
    ce = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
    p = torch.sigmoid(logits)
    return ce * (p - y).abs().pow(gamma)


def contrastive(asked: Sequence[tuple[Attention, Tensor, Tensor]], head: AttentionHead) -> Tensor:
    """Symmetric contrastive loss between the pooled features of lesions that are there and their prompts.

    Pairs with the same prompt are not each other's negatives. Zero when fewer than two lesions are in the batch.

    Args:
        asked: per patch its attention, its abnormal vectors (P, T), and which prompts are there (P,) bool.
    """
    g = F.normalize(torch.cat([attention.pooled[there] for attention, _, there in asked]), dim=1)
    vectors = torch.cat([abnormal[there] for _, abnormal, there in asked])
    if len(g) < 2:
        return g.new_zeros(())
    similarity = g @ F.normalize(head.align(vectors), dim=1).T / CONTRASTIVE_TEMPERATURE
    same = (vectors @ vectors.T > SAME_PROMPT).float()
    wanted = same / same.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(similarity, wanted) + F.cross_entropy(similarity.T, wanted))
