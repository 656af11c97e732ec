"""Training of the residual head: planted tumours, repainted by the frozen model, and healthy tissue repainted alike.

First a set of examples is made and kept on disk (repainting is the slow part), then the head is trained on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from diffugts.aova import AttentionHead
from diffugts.backbone.latent_diffusion import LatentDiffusion
from diffugts.errors import InputError
from diffugts.heads import Settings
from diffugts.healing import Sampling
from diffugts.inpaint import dilate
from diffugts.refine import Part, heal_candidate
from diffugts.residual import ResidualHead
from diffugts.text import TextEncoder
from diffugts.training.bank import TUMOUR, Bank, Patch, augment
from diffugts.training.features import conditions_of
from diffugts.training.fit import PromptVectors, questions, soft_dice
from diffugts.training.loop import fast_precision

Mask = npt.NDArray[np.bool_]

PATCH = 64  # side of what an example is made of, voxels


@dataclass(frozen=True)
class Example:
    """One repainted region: (8, D, H, W) inputs of the head, (D, H, W) the region and the truth in it."""

    inputs: Tensor
    inside: Tensor
    target: Tensor


def train_residual_head(
    model: LatentDiffusion, head: AttentionHead, encoder: TextEncoder, bank: Bank, out: Path,
    count: int = 400, steps: int = 1500, seed: int = 0,
) -> ResidualHead:  # fmt: skip
    """Make ``count`` examples (going on where an earlier call stopped) and train on them.

    Args:
        model, head: frozen. bank: of the items that trained ``head``. out: folder of the examples.
    """
    paths = make_examples(model, head, encoder, bank, out, count, seed)
    examples = [Example(**torch.load(path, weights_only=True)) for path in paths]
    torch.manual_seed(seed)
    residual = ResidualHead()
    optimiser = torch.optim.AdamW(residual.parameters(), 3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    rng, precision = np.random.default_rng(seed), fast_precision()
    for _ in range(steps):
        chosen = rng.choice(len(examples), 4)
        with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
            loss = torch.stack([_loss(residual, examples[i]) for i in chosen]).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without annotations
        nn.utils.clip_grad_norm_(residual.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return residual.eval().requires_grad_(False)


def _loss(residual: ResidualHead, example: Example) -> Tensor:
    logits = residual(example.inputs[None].float()).float()
    y, w = example.target[None].float(), example.inside[None].float()
    ce = (w * F.binary_cross_entropy_with_logits(logits, y, reduction="none")).sum() / w.sum().clamp_min(1)
    if not example.target.any():
        return ce
    dice: Tensor = soft_dice(torch.sigmoid(logits)[None], y[None], w[None])[0, 0]
    return ce + dice


def make_examples(
    model: LatentDiffusion, head: AttentionHead, encoder: TextEncoder, bank: Bank, out: Path, count: int, seed: int
) -> list[Path]:
    """Examples as files, each from its own seed; those that an earlier call made are kept.

    Raises:
        InputError: the bank gives next to none.
    """
    out.mkdir(parents=True, exist_ok=True)
    vectors, number = PromptVectors(encoder), 0
    paths: list[Path] = []
    precision = fast_precision()
    while len(paths) < count:
        if number >= 20 * count:
            raise InputError(f"{number} patches of {bank.root} gave {len(paths)} regions to repaint; add volumes to it")
        path = out / f"{number:05d}.pt"
        empty = path.with_suffix(".none")
        if not path.exists() and not empty.exists():
            rng = np.random.default_rng((seed, 77, number))
            patch = augment(bank.sample(rng, PATCH, on_tumour=0.85), rng)
            with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
                example = make_example(model, head, vectors, patch, rng)
            if example is None:
                empty.touch()
            else:
                torch.save({"inputs": example.inputs.half(), "inside": example.inside, "target": example.target}, path)
        if path.exists():
            paths.append(path)
        number += 1
    return paths


@torch.no_grad()
def make_example(
    model: LatentDiffusion, head: AttentionHead, vectors: PromptVectors, patch: Patch, rng: np.random.Generator
) -> Example | None:
    """Ask a patch for a tumour, repaint what attention or a rough region points at; None where that is nothing."""
    conditions = conditions_of(patch)
    encoding = model.encode_patches(torch.from_numpy(patch.image)[None, None], [conditions])
    question = questions(patch, rng)[int(rng.integers(2))]
    abnormal, normal = (vector[None, None] for vector in vectors.draw(question.prompt, rng))
    low = head(encoding.stages, abnormal, normal).probability
    attended = F.interpolate(low.float(), size=patch.image.shape, mode="trilinear", align_corners=False)[0, 0]
    truth = np.isin(patch.flags, question.lesions)
    trusted = bool(rng.random() < 0.5)
    rough = _rough_region(truth, patch, rng) if trusted else _attended_region(attended.numpy(), patch, rng)
    candidate = _largest(rough)
    if not candidate.any():
        return None
    seeds = [int(rng.integers(2**31))]
    evidence = heal_candidate(model, encoding.latent, candidate, conditions, seeds, Sampling(), trusted=trusted)
    box = ndimage.find_objects(candidate.astype(np.uint8))[0]
    signed, feature, decoded, inside = (
        torch.from_numpy(a[box]) for a in (evidence.signed[0], evidence.feature[0], evidence.decoded, candidate)
    )
    part = Part(signed, feature, attended[box], decoded, inside)
    known = inside & torch.from_numpy(patch.flags[box] > 0)
    return Example(part.inputs(trusted)[0], known, torch.from_numpy(truth[box]))


def _attended_region(attended: npt.NDArray[np.float32], patch: Patch, rng: np.random.Generator) -> Mask:
    """What attention suspects at a random threshold, grown by a random margin."""
    settings = replace(Settings(), threshold=float(rng.uniform(0.1, 0.6)), margin_mm=float(rng.uniform(4, 10)))
    return settings.candidate(attended, 1.0, patch.item.spacing)


def _rough_region(truth: Mask, patch: Patch, rng: np.random.Generator) -> Mask:
    """The tumour as someone might outline it in haste, or a ball of healthy tissue where there is none."""
    if truth.any():
        return dilate(_largest(truth), patch.item.spacing, float(rng.uniform(2, 16)))
    centre = np.array(patch.flags.shape) * rng.uniform(0.25, 0.75, 3)
    distance = np.linalg.norm(np.indices(patch.flags.shape) - centre[:, None, None, None], axis=0)
    healthy = (patch.flags > 0) & (patch.flags < TUMOUR) & (patch.image > 0.05)
    tissue: Mask = (distance < rng.uniform(4, 12)) & healthy
    return tissue


def _largest(mask: Mask) -> Mask:
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    largest: Mask = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return largest
