"""Training of the attention head on frozen features: which prompt lights up what.

    L = Dice(P, y) + focal(P, y) + Dice(1 − P, 1 − y) + BCE(score, y_image) + contrastive(g, t)

Every patch is asked a few prompts: the organ of its tumour, any tumour, and organs whose tumour is not there.
The last two kinds of answer, an empty map and "not here", are what zero-shot prompts need most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffugts.aova import Attention, AttentionConfig, AttentionHead
from diffugts.backbone.latent_diffusion import LatentDiffusion
from diffugts.errors import InputError
from diffugts.prompts import parse
from diffugts.text import TextEncoder
from diffugts.training.bank import TUMOUR, UNKNOWN, Bank, Item, Patch, scanned
from diffugts.training.features import FeatureCache, features
from diffugts.training.foreign import with_foreign
from diffugts.training.loop import ALONE, Alter, Batch, RunOptions, train
from diffugts.training.workers import Workers

GENERIC = ("tumor", "lesion", "mass", "abnormality")
FINDINGS = ("tumor", "metastasis", "cancer", "lesion", "sarcoma")
ELSEWHERE = (
    "lung", "liver", "kidney", "spleen", "pancreas", "colon", "stomach", "adrenal gland", "bladder", "breast",
    "bone", "soft tissue", "brain",
)  # fmt: skip
FAR_FROM = {"torso": ("brain",), "head and neck": ("liver", "kidney", "colon", "bladder")}
NOT_THERE = {  # organs that a graft of unknown organ, by the anatomy of its scan, surely does not lie in
    "torso": {"brain", "lung"},
    "head and neck": {
        "lung",
        "liver",
        "kidney",
        "spleen",
        "pancreas",
        "colon",
        "stomach",
        "adrenal",
        "bladder",
        "breast",
    },
}
HOME = {"brain": "head", "soft tissue": "limb", "lung": "torso"}  # the anatomy whose scans show it
ALL_BUT_ONE_ORGAN = ("head", "limb")
HOME_WEIGHT = {"head": 6.0, "limb": 3.0, "torso": 2.0}  # of healthy scans of an excluded organ
PROMPT_OF = {"adrenal": "adrenal gland"}  # organs of synthetic patients whose prompt has another name
CONTRASTIVE_TEMPERATURE = 0.07
USUAL_SIZE = 1000  # of a lesion, in voxels of the attention's grid: what an absent lesion's errors are divided by
SLOW = (".text.", ".keys.", ".queries.")  # factors of one product: at the full rate every map swings with each step
UNTRUSTED = 0.3  # weight of tissue in a scan whose patient may have tumours that nobody outlined
NEWLY_READ = ("queries", "adapters.read")  # without these a further stage says nothing
SAME_PROMPT = 0.98  # cosine above which two drawn vectors come from one prompt


@dataclass(frozen=True)
class Question:
    """A prompt asked of a patch and which of its lesions it means, as flag values."""

    prompt: str
    lesions: tuple[int, ...]


def questions(patch: Patch, rng: np.random.Generator, count: int = 4, excluded: Sequence[str] = ()) -> list[Question]:
    """``count`` prompts for one patch: any tumour, its organs' tumours, and last an organ that has none there.

    Most prompts mean what is there. With as many that do not, their losses cancel on a tumour's voxels until the
    text is understood, and nothing is learnt for a long time.

    Args:
        excluded: organs that are never named, since the head must not have seen them.
    """
    organs = [PROMPT_OF.get(organ, organ) for organ in patch.item.lesions]
    flags = tuple(TUMOUR + i for i in range(len(organs)))
    generic = [Question(str(prompt), flags) for prompt in rng.permutation(GENERIC)]
    own, absent = [], [organ for organ in ELSEWHERE if organ not in organs and organ not in excluded]
    if "" in organs:  # planted in a real scan, organ not known: only what lies elsewhere is surely absent
        absent = [organ for organ in FAR_FROM.get(patch.item.anatomy, ()) if organ not in excluded]
    else:
        for organ in dict.fromkeys(organs):
            here = tuple(flag for flag, name in zip(flags, organs, strict=True) if name == organ)
            own.append(Question(f"{organ} {rng.choice(FINDINGS)}", here))
    away = [Question(f"{organ} {rng.choice(FINDINGS)}", ()) for organ in rng.permutation(absent)[:1]]
    return [*(generic[:1] + own + generic[1:])[: count - len(away)], *away]


def admitted(item: Item, excluded: Sequence[str] = (), foreign: bool = False) -> Item | None:
    """What of an item may train a head that must never see tumours of the excluded organs; None for nothing.

    Nor does it learn from scans in which such an organ is all that is there and healthy: with the tumours left out, it
    would only learn that this organ never has one. With foreign patches it learns what does not belong there, so
    these scans count (more, as do all healthy ones that show such an organ), and so do scans whose patients' own
    tumours are not, or must not be, supervised.
    """
    if "" in item.lesions and not set(excluded) <= NOT_THERE.get(item.anatomy, set()):
        return None
    hidden = bool(set(item.lesions) & set(excluded))
    at_home = item.anatomy in {HOME.get(organ) for organ in excluded}
    if hidden or not item.labelled:
        if not (foreign and item.as_scanned):
            return None
        item = replace(item, lesions=(), labelled=False, trusted=item.trusted and item.labelled)
    if item.lesions or not at_home:
        return item
    if foreign:
        return replace(item, weight=HOME_WEIGHT[item.anatomy] * item.weight)
    return None if item.anatomy in ALL_BUT_ONE_ORGAN else item


def alteration(bank: Bank, foreign: float, options: RunOptions) -> Alter:
    """Foreign patches in ``foreign`` of the patches without a lesion, and in all of those without labels.

    Lesions that the item does not name are unknown. Last, all is blurred and gets noise as a whole.
    """

    def alter(patch: Patch, rng: np.random.Generator) -> Patch:
        hidden = patch.unnamed
        patch = replace(patch, flags=np.where(hidden, UNKNOWN, patch.flags).astype(np.uint8))
        if not (patch.flags >= TUMOUR).any() and not (patch.item.labelled and rng.random() >= foreign):
            patch = with_foreign(
                patch, lambda: bank.sample(rng, options.size, widest=options.widest), rng, own=not hidden.any()
            )
        return scanned(patch, rng)

    return alter


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
    model: LatentDiffusion, encoder: TextEncoder, bank: Bank, options: RunOptions, out: Path,
    excluded: Sequence[str] = (), start: AttentionHead | None = None, cache: FeatureCache | None = None,
    workers: Workers = ALONE, foreign: float = 0.0,
) -> AttentionHead:  # fmt: skip
    """Train adapters, projections, text MLPs and the image-level score on a frozen model.

    Args:
        bank: of items that ``admitted`` with the same ``excluded``.
        excluded: organs that are never named.
        start: a head to go on from, for instance one that saw fewer organs or reads fewer stages.
        cache: where the features of ``options.distinct`` patches are kept, so that each is computed once.
        workers: the processes that share each batch.
        foreign: share of the patches without a lesion that get a foreign patch, see ``training.foreign``; above 0,
            ``admitted`` is to know of it.

    Returns:
        The head with averaged weights.
    """
    torch.manual_seed(options.seed)
    model.frozen()
    config = AttentionConfig.of(model.feature_channels, model.feature_strides, encoder.dim, encoder.name)
    head = AttentionHead(config) if start is None else continued(start, config)
    vectors = PromptVectors(encoder)
    if start is None and not (out / "state.pt").exists():
        _fit_statistics(head, model, bank, options)
        _fit_text_statistics(head, vectors, excluded)

    head.to(model.device)

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, float]]:
        rngs = [np.random.default_rng(seed) for seed in batch.seeds]
        put = [questions(patch, rng, excluded=excluded) for patch, rng in zip(batch.patches, rngs, strict=True)]
        pairs = [[vectors.draw(q.prompt, rng) for q in asked] for asked, rng in zip(put, rngs, strict=True)]
        abnormal, normal = (
            torch.stack([torch.stack([p[side] for p in row]) for row in pairs]).to(model.device) for side in (0, 1)
        )
        stages = cache.features(model, batch) if cache else features(model, batch.image, batch.patches)
        attention = head(stages, abnormal, normal)
        target = torch.stack([_targets(flags[0], asked) for flags, asked in zip(batch.flags, put, strict=True)])
        loss, figures = attention_loss(attention, target, voxel_weights(batch), workers)
        there = target.flatten(2).any(2)
        pooled, asked, found = (workers.gather(x) for x in (attention.pooled.float(), abnormal, there.float()))
        contrast = contrastive(pooled, asked, found, head)
        return loss + 0.1 * contrast, {**figures, "contrastive": contrast.item()}

    train(
        {"head": head},
        loss_of,
        bank,
        options,
        out,
        SLOW,
        workers,
        alteration(bank, foreign, options),
    )
    return head


def continued(start: AttentionHead, config: AttentionConfig) -> AttentionHead:
    """A head that may read further stages, after those that ``start`` reads, and answers as it does at first.

    Raises:
        InputError: a head of other stages or texts.
    """
    known = len(start.config.channels)
    if replace(config, channels=config.channels[:known], strides=config.strides[:known]) != start.config:
        raise InputError("the head to go on from reads stages that this model lacks; start from another or none")
    head = AttentionHead(config)
    old, new = start.state_dict(), head.state_dict()
    for key, value in new.items():
        if key in old and old[key].shape == value.shape:
            value.copy_(old[key])
        elif key.startswith(tuple(f"{part}.{i}." for part in NEWLY_READ for i in range(known, len(config.channels)))):
            value.zero_()
    seen, pooled = sum(config.channels[:known]), sum(config.channels)
    weight, before = new["pool.0.weight"], old["pool.0.weight"]  # reads all stages and the text, side by side
    weight.zero_()[:, :seen] = before[:, :seen]
    weight[:, pooled:] = before[:, seen:]
    head.load_state_dict(new)
    return head


def blended(head: AttentionHead, start: AttentionHead, share: float) -> AttentionHead:
    """The mean of a head's weights and of those that it went on from, which weigh ``share``; both on the CPU.

    After Wortsman et al., "Model soups", 2022.
    """
    before = continued(start, head.config).state_dict()
    mean = AttentionHead(head.config)
    mean.load_state_dict({key: value.lerp(before[key], share) for key, value in head.state_dict().items()})
    return mean


def _fit_statistics(head: AttentionHead, model: LatentDiffusion, bank: Bank, options: RunOptions) -> None:
    """Mean and deviation of each feature channel over random patches, kept as fixed buffers."""
    rng = np.random.default_rng(options.seed)
    sums: list[list[Tensor]] = [[] for _ in head.config.channels]
    for _ in range(24):
        patch = bank.sample(rng, options.size)
        image = torch.from_numpy(patch.image)[None, None].to(model.device)
        for index, stage in enumerate(features(model, image, [patch])):
            sums[index].append(stage[0].float().flatten(1)[:, ::7])
    for index, found in enumerate(sums):
        values = torch.cat(found, dim=1)
        head.get_buffer(f"mean_{index}").copy_(values.mean(1))
        head.get_buffer(f"deviation_{index}").copy_(values.std(1).clamp_min(1e-4))


def _fit_text_statistics(head: AttentionHead, vectors: PromptVectors, excluded: Sequence[str]) -> None:
    """Mean and deviation of the vectors of many prompts: what all short medical phrases share tells nothing."""
    organs = [organ for organ in ELSEWHERE if organ not in excluded]
    prompts = [*GENERIC, *(f"{organ} {finding}" for organ in organs for finding in FINDINGS)]
    rng = np.random.default_rng(0)
    found = torch.stack([vector for prompt in prompts for vector in vectors.draw(prompt, rng)])
    head.get_buffer("text_mean").copy_(found.mean(0))
    head.get_buffer("text_deviation").copy_((found - found.mean(0)).std())


def _targets(flags: Tensor, asked: Sequence[Question]) -> Tensor:
    """(P, S, S, S) 1 where a question's lesions are."""
    lesions = [torch.tensor(q.lesions, dtype=flags.dtype, device=flags.device) for q in asked]
    return torch.stack([torch.isin(flags, values) for values in lesions]).float()


def voxel_weights(batch: Batch) -> Tensor:
    """(N, 1, S, S, S) how much each voxel is believed: a patient's own, unlabelled tumours count as healthy here."""
    trust = torch.tensor(
        [1.0 if patch.item.trusted else UNTRUSTED for patch in batch.patches], device=batch.flags.device
    )
    healthy = trust.view(-1, 1, 1, 1, 1).expand(batch.flags.shape)
    return torch.where(batch.flags >= TUMOUR, 1.0, torch.where(batch.flags > UNKNOWN, healthy, 0.0))


def attention_loss(
    attention: Attention, target: Tensor, weight: Tensor, workers: Workers = ALONE
) -> tuple[Tensor, dict[str, float]]:
    """Voxel losses on the attention's own grid and the image-level loss.

    Args:
        attention: of N patches, P prompts each.
        target: (N, P, S, S, S) 0 or 1. weight: (N, 1, S, S, S) of each voxel, 0 where nothing is known.
        workers: whose lesions are counted together.
    """
    logits = attention.logits.float()
    depth, height, width = logits.shape[2:]
    y, w = (F.adaptive_avg_pool3d(mask, (depth, height, width)) for mask in (target, weight))
    p, w = torch.sigmoid(logits), w.expand_as(y)
    present = y.flatten(2).amax(2) > 0.5
    count = workers.mean(present.sum().float()).clamp_min(1 / workers.count)
    dice = ((soft_dice(p, y, w) + soft_dice(1 - p, 1 - y, w)) * present).sum() / count
    # Per lesion rather than per voxel: a lesion is a hundredth of its patch, and a mean over all of it is all but zero.
    focal = ((w * focal_loss(logits, y, gamma=1.0)).flatten(2).sum(2) / ((w * y).flatten(2).sum(2) + USUAL_SIZE)).mean()
    score = F.binary_cross_entropy_with_logits(attention.score_logits, present.float())
    found = ((p > 0.5) & (y > 0.5)).sum() * 2 / ((p > 0.5).sum() + (y > 0.5).sum()).clamp_min(1)
    return dice + focal + 0.3 * score, {
        "dice": dice.item(), "focal": focal.item(), "score": score.item(), "hard_dice": found.item(),
    }  # fmt: skip


def soft_dice(p: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """1 − soft Dice of each map under weights, (N, P, ·) each: (N, P)."""
    overlap, both = ((w * x).flatten(2).sum(2) for x in (p * y, p + y))
    return 1 - (2 * overlap + 1) / (both + 1)


def focal_loss(logits: Tensor, y: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal loss (Lin et al., 2017) per voxel, without class weights, so that probabilities stay calibrated."""
    ce = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
    p = torch.sigmoid(logits)
    return ce * (p - y).abs().pow(gamma)


def contrastive(pooled: Tensor, abnormal: Tensor, there: Tensor, head: AttentionHead) -> Tensor:
    """Symmetric contrastive loss between the pooled features of lesions that are there and their prompts.

    Pairs with the same prompt are not each other's negatives. Zero when fewer than two lesions are in the batch.

    Args:
        pooled: (N, P, hidden). abnormal: (N, P, T) text vectors. there: (N, P) above 0 where the lesion is there.
    """
    g, vectors = F.normalize(pooled[there > 0].float(), dim=1), abnormal[there > 0]
    if len(g) < 2:
        return g.new_zeros(())
    similarity = g @ F.normalize(head.align(vectors).float(), dim=1).T / CONTRASTIVE_TEMPERATURE
    same = (vectors @ vectors.T > SAME_PROMPT).float()
    wanted = same / same.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(similarity, wanted) + F.cross_entropy(similarity.T, wanted))
