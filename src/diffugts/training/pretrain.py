"""Training of the frozen learner itself: first the autoencoder, then the rectified flow of healthy anatomy."""

from __future__ import annotations

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
from diffugts.training.loop import ALONE, Batch, RunOptions, train
from diffugts.training.workers import Workers

LATENT_NOISE = 0.05  # the decoder is trained on latents blurred by this much, so that generated ones decode well


def train_autoencoder(
    config: ModelConfig, bank: Bank, options: RunOptions, out: Path, start: LatentDiffusion | None = None,
    workers: Workers = ALONE, device: torch.device | None = None,
) -> LatentDiffusion:  # fmt: skip
    """Train the autoencoder: masked L1 on voxels and on their differences along each axis.

    Args:
        start: a model of the same configuration to go on from; its linear code is kept, and its scale factor, so
            that its flow still fits.
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
        loss = voxels + 0.5 * edges + 1e-4 * spread
        mse = _masked_mean((decoded - batch.image).pow(2), known)
        return loss, {
            "l1": voxels.item(),
            "psnr": (-10 * torch.log10(mse)).item(),
            "latent_square": spread.item(),
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


def train_flow(
    model: LatentDiffusion, bank: Bank, options: RunOptions, out: Path, workers: Workers = ALONE
) -> LatentDiffusion:
    """Train the rectified flow v = x0 − noise on latents whose voxels are all known and healthy."""
    model.autoencoder.eval().requires_grad_(False)
    config = model.config

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, float]]:
        with torch.no_grad():
            x0 = (model.autoencoder.encode(batch.image)[0] * config.scale_factor).float()
        generators = batch.generators()
        noise = batch.randn(x0.shape[1:], generators)
        t = torch.sigmoid(batch.randn((), generators))  # logit-normal: most weight on middle times
        time = t.view(-1, 1, 1, 1, 1)
        healthy = -F.max_pool3d(-(batch.flags == KNOWN).float(), config.stride)
        conditions = [_conditions(patch.item, one) for patch, one in zip(batch.patches, generators, strict=True)]
        v = model.predict((1 - time) * x0 + time * noise, t, conditions).float()
        error = (v - (x0 - noise)).pow(2).mean(1, keepdim=True)
        loss = _masked_mean(error, healthy)
        return loss, {"healthy_share": healthy.mean().item()}

    train({"unet": model.unet}, loss_of, bank, options, out, workers=workers)
    return model


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
