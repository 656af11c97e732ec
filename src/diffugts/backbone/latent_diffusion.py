"""The frozen learner: encode to latent and stage features, denoise, decode.

One implementation over MONAI's MAISI networks serves `compact` and MAISI alike; they differ in numbers only.
Tensors are (N, C, D, H, W) float32 on the model grid (RAS axes), images in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from diffugts.backbone.config import MODALITY_CODES, ModelConfig
from diffugts.backbone.networks import Autoencoder, build_unet, space_to_depth


@dataclass(frozen=True)
class Conditions:
    """What the UNet is told besides the latent.

    Attributes:
        spacing: (3,) mm, of the image grid along the model axes.
        modality: a key of ``MODALITY_CODES``.
    """

    spacing: tuple[float, float, float]
    modality: str


@dataclass(frozen=True)
class Encoding:
    """A scan as the model sees it.

    Attributes:
        latent: (1, C, d, h, w), scaled: z = E_mu(x) · s.
        stages: raw features F_l, each (1, C_l, ·): the image stage where configured, the autoencoder's stages,
            finest first, then the UNet's up blocks, coarsest first, at each feature time.
    """

    latent: Tensor
    stages: tuple[Tensor, ...]


class LatentDiffusion(nn.Module):
    """A latent diffusion model that is only read, never trained, once built with ``frozen()``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.autoencoder = Autoencoder(config)
        self.unet = build_unet(config)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's stub lacks it

    def frozen(self) -> LatentDiffusion:
        """Evaluation mode without gradients."""
        return self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @torch.inference_mode()
    def encode(
        self, image: Tensor, conditions: Conditions, progress: Callable[[float], None] | None = None
    ) -> Encoding:
        """Encode a scan once, for features and latent, window by window where it is larger than the window.

        Args:
            image: (1, 1, D, H, W) in 0..1, sides multiples of the configuration's ``multiple``.
            progress: told the fraction that is done.
        """
        shape, window = image.shape[2:], self.config.window
        corners = _corners(shape, window, self.config.multiple)
        if len(corners) == 1:
            return self._encode_window(image.to(self.device), conditions)
        sums: list[Tensor] = []
        weights: list[Tensor] = []
        for done, corner in enumerate(corners, start=1):
            box = tuple(slice(a, min(a + window, side)) for a, side in zip(corner, shape, strict=True))
            around: tuple[Any, ...] = (..., *box)
            crop = image[around]
            encoding = self._encode_window(crop.to(self.device), conditions)
            for index, part in enumerate((encoding.latent, *encoding.stages)):
                stride = crop.shape[2] // part.shape[2]
                if len(sums) <= index:
                    grid = [side // stride for side in shape]
                    sums.append(part.new_zeros(1, part.shape[1], *grid))
                    weights.append(part.new_zeros(1, 1, *grid))
                place: tuple[Any, ...] = (..., *(slice(b.start // stride, b.stop // stride) for b in box))
                bump = _bump(part.shape[2:], self.device)
                sums[index][place] += part * bump
                weights[index][place] += bump
            if progress:
                progress(done / len(corners))
        latent, *stages = (total.div_(weight) for total, weight in zip(sums, weights, strict=True))
        return Encoding(latent, tuple(stages))

    def _encode_window(self, image: Tensor, conditions: Conditions) -> Encoding:
        mu, stages = self.autoencoder.encode(image)
        latent = mu * self.config.scale_factor
        first = [image_stage(image, self.config.image_window)] if self.config.image_window else []
        return Encoding(latent, (*first, *stages, *self.unet_features(latent, conditions)))

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """C_l of every stage that ``encode`` returns, in its order."""
        unet = tuple(reversed(self.config.unet["num_channels"])) * len(self.config.feature_times)
        first = (IMAGE_CHANNELS,) if self.config.image_window else ()
        return (*first, *self.config.autoencoder["num_channels"], *unet)

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Tensor:
        """Decode a scaled latent (1, C, d, h, w) whole: D(z / s), (1, 1, D, H, W), about 0..1."""
        image: Tensor = self.autoencoder.decode(latent.to(self.device) / self.config.scale_factor)
        return image

    @torch.inference_mode()
    def decode_windows(self, latent: Tensor) -> Tensor:
        """Decode a large latent window by window with gaussian blending: (1, 1, D, H, W), about 0..1."""
        stride = self.config.stride
        window = self.config.window // stride
        corners = _corners(latent.shape[2:], window, window // 4)
        if len(corners) == 1:
            return self.decode(latent)
        image = latent.new_zeros(1, 1, *(side * stride for side in latent.shape[2:]))
        weight = torch.zeros_like(image)
        for corner in corners:
            box = tuple(slice(a, min(a + window, side)) for a, side in zip(corner, latent.shape[2:], strict=True))
            around: tuple[Any, ...] = (..., *box)
            part = self.decode(latent[around])
            bump = _bump(part.shape[2:], self.device)
            place: tuple[Any, ...] = (..., *(slice(b.start * stride, b.stop * stride) for b in box))
            image[place] += part * bump
            weight[place] += bump
        return image.div_(weight)

    def predict(self, z: Tensor, t: Tensor, conditions: Sequence[Conditions]) -> Tensor:
        """The UNet's output: v = x0 − noise for a flow (t in 0..1, 1 = noise), epsilon for DDPM (t = timestep).

        Args:
            z: (N, C, d, h, w) noisy latent. t: (N,) float. conditions: N of them.
        """
        steps = t * self.config.train_steps if self.config.prediction == "flow" else t
        output: Tensor = self.unet(z, steps, **self.condition_tensors(conditions))
        return output

    @torch.inference_mode()
    def unet_features(self, latent: Tensor, conditions: Conditions) -> list[Tensor]:
        """UNet activations at low noise as further stages: after each up block, coarse to fine.

        The latent is scaled as the known path would be at time t, without noise, so that the features are
        deterministic. Our choice; the paper reads the autoencoder only.
        """
        features: list[Tensor] = []
        hooks = [
            block.register_forward_hook(lambda _m, _i, output: features.append(output))
            for block in self.unet.up_blocks  # type: ignore[union-attr]
        ]
        try:
            for t in self.config.feature_times:
                time = torch.full((1,), t if self.config.prediction == "flow" else t * self.config.train_steps)
                self.predict(latent * (1 - t), time.to(latent), [conditions])
        finally:
            for hook in hooks:
                hook.remove()
        return features

    def condition_tensors(self, conditions: Sequence[Conditions]) -> dict[str, Tensor]:
        """MAISI's conditioning inputs, one row per sample: scaled spacing and the modality class code."""
        given: dict[str, Tensor] = {}
        if self.config.unet.get("include_spacing_input"):
            spacing = torch.tensor([c.spacing for c in conditions], dtype=torch.float32, device=self.device)
            given["spacing_tensor"] = spacing * self.config.spacing_scale
        if self.config.unet.get("num_class_embeds"):
            codes = [MODALITY_CODES[c.modality] for c in conditions]
            given["class_labels"] = torch.tensor(codes, dtype=torch.long, device=self.device)
        return given


IMAGE_CHANNELS = 13


def image_stage(image: Tensor, window: tuple[float, ...]) -> Tensor:
    """The image itself as the finest stage: (1, 1, D, H, W) → (1, 13, D/2, H/2, W/2).

    The eight voxels of each block, and means over 1, 3 and 7 blocks of the windowed and over 3 and 7 of the whole
    range: a liver metastasis differs from its liver by a fiftieth of the model's range, which features that were
    learnt for reconstruction drown. Our choice; the paper reads the autoencoder only.
    """
    low, high = window
    blocks = space_to_depth(image, 2)
    narrow = space_to_depth(((image - low) / (high - low)).clamp(0, 1), 2).mean(1, keepdim=True)
    means = [_box_mean(x, side) for x in (narrow, blocks.mean(1, keepdim=True)) for side in (3, 7)]
    return torch.cat([blocks, narrow, *means], dim=1)


def _box_mean(x: Tensor, side: int) -> Tensor:
    """Mean over a box of odd ``side`` around each voxel of (1, 1, ·), of those voxels of it that exist."""
    pad = [side // 2] * 6
    total, count = (
        nn.functional.avg_pool3d(nn.functional.pad(y, pad), side, stride=1) for y in (x, torch.ones_like(x))
    )
    return total / count


def _corners(shape: torch.Size, window: int, overlap: int) -> list[tuple[int, ...]]:
    """Corners of windows that cover the volume, neighbours sharing at least ``overlap`` voxels."""
    starts = [[*range(0, max(side - window, 0), window - overlap), max(side - window, 0)] for side in shape]
    return list(product(*starts))


def _bump(shape: torch.Size, device: torch.device) -> Tensor:
    """Gaussian blending weight (1, 1, d, h, w), highest in the middle, never zero."""
    weight = torch.ones(1, 1, *shape, device=device)
    for axis, side in enumerate(shape):
        x = (torch.arange(side, device=device) - (side - 1) / 2) / (side * 0.25)
        weight = weight * torch.exp(-0.5 * x**2).clamp_min(1e-3).reshape([-1 if i == axis + 2 else 1 for i in range(5)])
    return weight
