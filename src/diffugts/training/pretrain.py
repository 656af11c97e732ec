"""Training of the frozen learner itself: first the autoencoder, then the rectified flow of healthy anatomy."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffugts.backbone.conditions import Conditions
from diffugts.backbone.config import ModelConfig
from diffugts.backbone.latent_diffusion import LatentDiffusion
from diffugts.backbone.networks import space_to_depth
from diffugts.training.bank import KNOWN, Bank, Item
from diffugts.training.features import conditions_of
from diffugts.training.loop import ALONE, Batch, RunOptions, train
from diffugts.training.workers import Workers

LATENT_NOISE = 0.05  # the decoder is trained on latents blurred by this much, so that generated ones decode well
CHECKERBOARD = 0.003  # weight of the error's power at the stride's period, log
NO_POWER = 1e-12
WHOLE = 0.25  # share of the patches that a flow of clean surroundings paints as a whole
HOLES, HOLE_RADIUS = 3, (1.2, 8.0)  # at most so many ellipsoids in the others; latent voxels
HOLE_TIME = (1.0, 1.3)  # mean and deviation of their times' logit: the first step decides where what lies
KEPT = 3.0  # weight of features that are to stay as they are


def train_autoencoder(
    config: ModelConfig, bank: Bank, options: RunOptions, out: Path, start: LatentDiffusion | None = None,
    workers: Workers = ALONE, device: torch.device | None = None, keep_features: bool = False,
) -> LatentDiffusion:  # fmt: skip
    """Train the autoencoder: masked L1 on voxels and on their differences along each axis, and no checkerboard.

    Args:
        start: a model of the same configuration to go on from; its linear code is kept, and its scale factor, so
            that its flow still fits.
        keep_features: only the decoder is trained, so that latents and features stay what they are.
        workers: the processes that share each batch. device: where to train; None for where the start's weights are.

    Returns:
        A model with the averaged autoencoder and a scale factor that makes its latents unit variance.
    """
    torch.manual_seed(options.seed)
    model = LatentDiffusion(config) if start is None else start.train().requires_grad_(True)
    autoencoder = model.autoencoder
    if autoencoder.linear is not None and start is None:
        autoencoder.linear.fit(_blocks(bank, config.stride, options.seed))

    model.to(device)
    if keep_features:
        for part in (autoencoder.net.encoder, autoencoder.net.quant_conv_mu):
            part.requires_grad_(False)

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, float]]:
        mu, _ = autoencoder.encode(batch.image)
        noisy = mu + LATENT_NOISE * batch.randn(mu.shape[1:], batch.generators())
        decoded = autoencoder.decode(noisy).float()
        known = (batch.flags > 0).float()
        voxels = _masked_mean((decoded - batch.image).abs(), known)
        edges = sum(
            _masked_mean((decoded.diff(dim=d) - batch.image.diff(dim=d)).abs(), known.narrow(d, 1, known.shape[d] - 1))
            for d in (2, 3, 4)
        )
        spread = mu.float().pow(2).mean()
        board = checkerboard((decoded - batch.image) * known, config.stride).log().clamp_min(0).mean()
        loss = voxels + 0.5 * edges + 1e-4 * spread + CHECKERBOARD * board
        mse = _masked_mean((decoded - batch.image).pow(2), known)
        return loss, {
            "l1": voxels.item(),
            "psnr": (-10 * torch.log10(mse)).item(),
            "latent_square": spread.item(),
            "checkerboard": board.item(),
        }

    train({"autoencoder": autoencoder}, loss_of, bank, options, out, workers=workers)
    return with_scale_factor(model, bank, options) if start is None else model


def with_scale_factor(model: LatentDiffusion, bank: Bank, options: RunOptions) -> LatentDiffusion:
    """The model with s = 1 / std of its latents over random patches."""
    rng = np.random.default_rng(options.seed)
    latents = []
    with torch.no_grad():
        for _ in range(32):
            image = torch.from_numpy(bank.sample(rng, options.size).image)[None, None].to(model.device)
            latents.append(model.autoencoder.encode(image)[0].flatten())
    model.config = replace(model.config, scale_factor=float(1 / torch.cat(latents).std()))
    return model


def checkerboard(error: Tensor, stride: int) -> Tensor:
    """Power of an error (N, 1, D, H, W) at the stride's period over its neighbours', by axis: (N, 3); 1 = none."""
    at, beside = power_at_stride(error, stride)
    return (at + NO_POWER) / (beside + NO_POWER)


def power_at_stride(error: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Mean square of the wave at the stride's period in an error (N, 1, D, H, W), and of those beside it: (N, 3)."""
    found, around = [], []
    for axis in (2, 3, 4):
        side = error.shape[axis] // stride * stride
        power = 2 * torch.fft.rfft(error.narrow(axis, 0, side), dim=axis).abs().pow(2) / side**2
        line = power.mean([a for a in (1, 2, 3, 4) if a != axis])
        at = side // stride
        beside = [line[:, at + step] for step in (-2, -1, 1, 2) if 0 < at + step < line.shape[1]]
        found.append(line[:, at])
        around.append(torch.stack(beside).mean(0))
    return torch.stack(found, 1), torch.stack(around, 1)


def train_flow(
    model: LatentDiffusion, bank: Bank, options: RunOptions, out: Path, workers: Workers = ALONE,
    keep_features: bool = False,
) -> LatentDiffusion:  # fmt: skip
    """Train the rectified flow v = x0 − noise on latents whose voxels are all known and healthy.

    Where the configuration says ``clean_context``, most patches are noised in holes only, and learn there.

    Args:
        keep_features: what heads read of the UNet is held where it was, so that they go on to fit.
    """
    model.autoencoder.eval().requires_grad_(False)
    config = model.config
    before = copy.deepcopy(model).frozen() if keep_features else None

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, float]]:
        with torch.no_grad():
            x0 = (model.autoencoder.encode(batch.image)[0] * config.scale_factor).float()
        generators = batch.generators()
        noise = batch.randn(x0.shape[1:], generators)
        draw = batch.randn((), generators)  # logit-normal: most weight on middle times
        hole = torch.ones_like(x0[:, :1])
        if config.clean_context:
            hole = torch.stack([_hole(x0.shape[2:], one) for one in generators]).to(x0)
            whole = hole.flatten(1).all(1)
            draw = torch.where(whole, draw, HOLE_TIME[0] + HOLE_TIME[1] * draw)
        t = torch.sigmoid(draw)
        time = t.view(-1, 1, 1, 1, 1)
        healthy = -F.max_pool3d(-(batch.flags == KNOWN).float(), config.stride)
        conditions = [_conditions(patch.item, one) for patch, one in zip(batch.patches, generators, strict=True)]
        v = model.predict(torch.where(hole > 0, (1 - time) * x0 + time * noise, x0), t, conditions).float()
        error = (v - (x0 - noise)).pow(2).mean(1, keepdim=True)
        loss = _masked_mean(error, healthy * hole)
        figures = {"healthy_share": healthy.mean().item(), "flow": loss.item()}
        if before is not None:
            moved = _moved(before, model, x0[::2], [conditions_of(patch) for patch in batch.patches[::2]])
            loss, figures = loss + KEPT * moved, {**figures, "moved": moved.item()}
        return loss, figures

    train({"unet": model.unet}, loss_of, bank, options, out, workers=workers)
    return model


def _hole(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """(1, d, h, w) bool: what is painted of a patch; all of it, or up to three ellipsoids of any size."""
    u = torch.rand(HOLES * 6 + 2, generator=generator)
    if float(u[0]) < WHOLE:
        return torch.ones((1, *shape), dtype=torch.bool)
    grid = torch.stack(torch.meshgrid(*(torch.arange(side) + 0.5 for side in shape), indexing="ij"), -1)
    count = 1 + int(u[1] * HOLES)
    centres, sizes = u[2:].view(HOLES, 2, 3)[:count].unbind(1)
    low, high = (math.log(radius) for radius in HOLE_RADIUS)
    size = torch.exp(low + (high - low) * sizes[:, :1]) * (0.6 + 0.4 * sizes)  # much alike along the three axes
    away = (grid[..., None, :] - centres * torch.tensor(shape)) / size
    inside = (away.pow(2).sum(-1) < 1).any(-1)
    inside[tuple((centres[0] * torch.tensor(shape)).long().tolist())] = True
    return inside[None]


def _moved(before: LatentDiffusion, model: LatentDiffusion, z: Tensor, conditions: Sequence[Conditions]) -> Tensor:
    """How far the features that heads read moved: mean square, each channel in its own deviation."""
    with torch.no_grad():
        wanted = [stage.float() for stage in before.unet_features(z, conditions)]
    found = model.unet_features(z, conditions)
    parts = [
        ((new.float() - old) / (old.std((0, 2, 3, 4), keepdim=True) + 1e-3)).pow(2).mean()
        for new, old in zip(found, wanted, strict=True)
    ]
    return torch.stack(parts).mean()


def _conditions(item: Item, generator: torch.Generator) -> Conditions:
    """An item's conditions; the sequence is hidden half of the time and the modality one time in ten."""
    draw = float(torch.rand(1, generator=generator))
    modality = item.modality if draw > 0.5 else item.modality.split("-")[0]
    return Conditions(item.spacing, "unknown" if draw < 0.1 else modality)


def _blocks(bank: Bank, block: int, seed: int, patches: int = 200) -> Tensor:
    """Sample blocks (N, block³) of known voxels for the linear code, half of the patches CT where there are any."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(patches):
        patch = bank.sample(rng, 64)
        image = space_to_depth(torch.from_numpy(patch.image)[None, None], block).flatten(2)[0].T
        known = space_to_depth(torch.from_numpy(patch.flags > 0)[None, None].float(), block).flatten(2)[0].amin(0) > 0
        found.append(image[known])
    return torch.cat(found)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over patches of each one's mean over its mask, (N, ·) each."""
    return ((values * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp_min(1)).mean()


def save_model(model: LatentDiffusion, folder: Path, origin: str) -> None:
    """Write a model folder: configuration, weights in half precision, and their record."""
    from diffugts.backbone.weights import AUTOENCODER, UNET, save_tensors, write_record
    from diffugts.io import atomic_write

    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "config.json", model.config.to_json())
    save_tensors(folder / AUTOENCODER, model.autoencoder.state_dict())
    save_tensors(folder / UNET, model.unet.state_dict())
    write_record(folder, model.config.licence, origin)
