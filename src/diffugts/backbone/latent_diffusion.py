"""The frozen learner: encode to latent and stage features, denoise, decode.

One implementation over MONAI's MAISI networks serves `compact` and MAISI alike; they differ in numbers only.
Tensors are (N, C, D, H, W) float32 on the model grid (RAS axes), images in 0..1.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from diffugts.backbone.conditions import REGIONS, Conditions, Organs
from diffugts.backbone.config import MODALITY_CODES, ModelConfig
from diffugts.backbone.convolutions import laid_out
from diffugts.backbone.image_stage import CONTRAST_CHANNELS, IMAGE_CHANNELS, contrast_stage, image_stage
from diffugts.backbone.networks import Autoencoder, build_unet
from diffugts.errors import InputError
from diffugts.inpaint import scaled_linear_alphas

log = logging.getLogger(__name__)

LONG_S = 60.0  # encoding that will take longer than this is announced


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
        self.controlnet: nn.Module | None = None  # only where an organ map is to be painted (``weights.load_backbone``)
        laid_out(self)

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
        shape, multiple = image.shape[2:], self.config.multiple
        boxes = windows(shape, self.config.window, multiple, multiple)
        if len(boxes) == 1:
            return self.encode_patches(image.to(self.device), [conditions])
        sums: list[Tensor] = []
        weights: list[Tensor] = []
        for done, box in enumerate(boxes, start=1):
            began = time.perf_counter()
            around: tuple[Any, ...] = (..., *box)
            crop = image[around]
            encoding = self.encode_patches(crop.to(self.device), [conditions])
            for index, part in enumerate((encoding.latent, *encoding.stages)):
                stride = crop.shape[2] // part.shape[2]
                if len(sums) <= index:
                    grid = [side // stride for side in shape]
                    sums.append(part.new_zeros(1, part.shape[1], *grid))
                    weights.append(part.new_zeros(1, 1, *grid))
                place: tuple[Any, ...] = (..., *(slice(b.start // stride, b.stop // stride) for b in box))
                bump = blending_weight(part.shape[2:], self.device)
                sums[index][place] += part * bump
                weights[index][place] += bump
            if done == 2:  # the first one also pays for what starts only once
                announce("encoding", (time.perf_counter() - began) * (len(boxes) - done))
            if progress:
                progress(done / len(boxes))
        latent, *stages = (total.div_(weight) for total, weight in zip(sums, weights, strict=True))
        return Encoding(latent, tuple(stages))

    @torch.inference_mode()
    def encode_patches(self, image: Tensor, conditions: Sequence[Conditions]) -> Encoding:
        """Encode small images of one shape at once, without windows: (N, 1, D, H, W) and N conditions."""
        mu, stages = self.autoencoder.encode(image)
        latent = mu * self.config.scale_factor
        first = [image_stage(image, self.config.image_window)] if self.config.image_window else []
        last = [contrast_stage(image)] if self.config.contrast else []
        every = (*first, *stages, *self.unet_features(latent, conditions), *last)
        found = zip(every, self._raw_strides, self.feature_strides, strict=True)
        return Encoding(latent, tuple(_pooled(stage, wanted // stride) for stage, stride, wanted in found))

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """C_l of every stage that ``encode`` returns, in its order."""
        unet = tuple(reversed(self.config.unet["num_channels"])) * len(self.config.feature_times)
        first = (IMAGE_CHANNELS,) if self.config.image_window else ()
        last = (CONTRAST_CHANNELS,) if self.config.contrast else ()
        return (*first, *self.config.autoencoder["num_channels"], *unet, *last)

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """Image voxels per voxel of every stage that ``encode`` returns, in its order."""
        return tuple(max(stride, self.config.feature_stride) for stride in self._raw_strides)

    @property
    def _raw_strides(self) -> tuple[int, ...]:
        config = self.config
        autoencoder = [config.space_to_depth * 2**i for i in range(len(config.autoencoder["num_channels"]))]
        levels = len(config.unet["num_channels"])
        # An up block ends with its upsampling, but for the last, which has none.
        unet = [config.stride * 2 ** max(level - 1, 0) for level in reversed(range(levels))]
        first = (2,) if config.image_window else ()
        last = (2,) if config.contrast else ()
        return (*first, *autoencoder, *unet * len(config.feature_times), *last)

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Tensor:
        """Decode a scaled latent (1, C, d, h, w) whole: D(z / s), (1, 1, D, H, W), about 0..1."""
        image: Tensor = self.autoencoder.decode(latent.to(self.device) / self.config.scale_factor)
        return image

    def decode_within(self, latent: Tensor, limit: int) -> Tensor:
        """Decode whole where the latent has at most ``limit`` voxels (0: whatever it has), else in windows of those."""
        if not limit or latent[0, 0].numel() <= limit:
            return self.decode(latent)
        return self.decode_windows(latent, max(int(limit ** (1 / 3)), 4))

    @torch.inference_mode()
    def decode_windows(self, latent: Tensor, window: int | None = None) -> Tensor:
        """Decode a large latent window by window with gaussian blending: (1, 1, D, H, W), about 0..1.

        Args:
            window: its side in latent voxels; None takes the configuration's.
        """
        stride = self.config.stride
        window = window or self.config.window // stride
        boxes = windows(latent.shape[2:], window, window // 4)
        if len(boxes) == 1:
            return self.decode(latent)
        image = latent.new_zeros(1, 1, *(side * stride for side in latent.shape[2:]))
        weight = torch.zeros_like(image)
        for box in boxes:
            around: tuple[Any, ...] = (..., *box)
            part = self.decode(latent[around])
            bump = blending_weight(part.shape[2:], self.device)
            place: tuple[Any, ...] = (..., *(slice(b.start * stride, b.stop * stride) for b in box))
            image[place] += part * bump
            weight[place] += bump
        return image.div_(weight)

    def predict(self, z: Tensor, t: Tensor, conditions: Sequence[Conditions], organs: Tensor | None = None) -> Tensor:
        """The UNet's output: v = x0 − noise for a flow (t in 0..1, 1 = noise), epsilon for DDPM (t = timestep).

        Args:
            z: (N, C, d, h, w) noisy latent. t: (N,) float. conditions: N of them.
            organs: (N, 8, D, H, W) label map in bits for the ControlNet, which must be loaded then.
        """
        steps = t * self.config.train_steps if self.config.prediction == "flow" else t
        given: dict[str, Any] = self.condition_tensors(conditions)
        if organs is not None:
            given |= self._control(z, steps, given, organs)
        output: Tensor = self.unet(z, steps, **given)
        return output

    def _control(self, z: Tensor, steps: Tensor, given: dict[str, Any], organs: Tensor) -> dict[str, Any]:
        if self.controlnet is None:
            raise InputError(f"the ControlNet of model {self.config.name!r} is not loaded; an organ map needs it")
        labels = {key: value for key, value in given.items() if key == "class_labels"}
        down, middle = self.controlnet(x=z, timesteps=steps, controlnet_cond=organs, **labels)
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    def guided(
        self, z: Tensor, t: Tensor, conditions: Conditions, guidance: float, organs: Organs | None = None
    ) -> Tensor:
        """``predict`` with classifier-free guidance: v0 + guidance · (v − v0); 0 and 1 are no guidance, one pass.

        What v0 leaves out: with an organ map its healthy organs, so that guidance above 1 pushes away from the
        tumours of ``organs.diseased``; otherwise the modality, where the UNet has one.

        Args:
            z: (N, C, d, h, w). t: (N,). conditions: of all samples.
            organs: see ``Organs``.
        """
        count = len(z)
        healthy = None if organs is None else organs.healthy.expand(count, -1, -1, -1, -1)
        if guidance in (0.0, 1.0):
            return self.predict(z, t, [conditions] * count, healthy)
        other = conditions if organs is not None else conditions.unconditional()
        if organs is None and not self.config.unet.get("num_class_embeds"):
            raise InputError(
                f"model {self.config.name!r} has no modality input, so guidance must be 0, not {guidance:g}"
            )
        maps = None
        if organs is not None and healthy is not None:
            maps = torch.cat([healthy, organs.diseased.expand(count, -1, -1, -1, -1)])
        both = self.predict(torch.cat([z, z]), torch.cat([t, t]), [*[conditions] * count, *[other] * count], maps)
        wanted, unwanted = both.chunk(2)
        return unwanted + guidance * (wanted - unwanted)

    def unet_features(self, latent: Tensor, conditions: Sequence[Conditions]) -> list[Tensor]:
        """UNet activations at low noise as further stages: after each up block, coarse to fine.

        The latent is scaled as the known path would be at time t, without noise, so that the features are
        deterministic. Our choice; the paper reads the autoencoder only. Gradients flow where they are asked for.
        """
        features: list[Tensor] = []
        hooks = [
            block.register_forward_hook(lambda _m, _i, output: features.append(output))
            for block in self.unet.up_blocks  # type: ignore[union-attr]
        ]
        try:
            for t in self.config.feature_times:
                time = torch.full(
                    (len(latent),), t if self.config.prediction == "flow" else t * self.config.train_steps
                )
                self.predict(latent * self._known_scale(t), time.to(latent), conditions)
        finally:
            for hook in hooks:
                hook.remove()
        return features

    def _known_scale(self, t: float) -> float:
        """What the scan's latent is multiplied by on the known path at a time in 0..1."""
        if self.config.prediction == "flow":
            return 1 - t
        alphas = scaled_linear_alphas(self.config.train_steps)
        return float(alphas[min(round(t * len(alphas)), len(alphas) - 1)].sqrt())

    def condition_tensors(self, conditions: Sequence[Conditions]) -> dict[str, Tensor]:
        """MAISI's conditioning inputs, one row per sample: scaled spacing, modality class code, body regions × 100."""
        given: dict[str, Tensor] = {}
        if self.config.unet.get("include_spacing_input"):
            spacing = torch.tensor([c.spacing for c in conditions], dtype=torch.float32, device=self.device)
            given["spacing_tensor"] = spacing * self.config.spacing_scale
        if self.config.unet.get("num_class_embeds"):
            codes = [MODALITY_CODES[c.modality] for c in conditions]
            given["class_labels"] = torch.tensor(codes, dtype=torch.long, device=self.device)
        for end, name in enumerate(("top", "bottom")):
            if self.config.unet.get(f"include_{name}_region_index_input"):
                one_hot = torch.eye(len(REGIONS), device=self.device)[[c.regions[end] for c in conditions]]
                given[f"{name}_region_index_tensor"] = one_hot * 100
        return given


def announce(what: str, seconds: float) -> None:
    """Say how long the rest of something takes, known from one part of it, where that is long."""
    if seconds > LONG_S:
        log.warning("%s takes about %.0f min more; --roi limits what is looked at", what, seconds / 60 + 0.5)


def _pooled(stage: Tensor, factor: int) -> Tensor:
    return nn.functional.avg_pool3d(stage, factor) if factor > 1 else stage


def windows(shape: Sequence[int], most: int, overlap: int, multiple: int = 1) -> list[tuple[slice, ...]]:
    """Boxes that cover a volume: as few as ``most`` voxels a side allow, and no larger than those need to be.

    Windows of a fixed size overlap wherever the volume is not a round number of them, and each overlap is paid for.

    Args:
        overlap: what neighbours share at least.
        multiple: sides and corners are multiples of it; so must ``shape``, ``most`` and ``overlap`` be.
    """
    return list(product(*(_spans(side, most, overlap, multiple) for side in shape)))


def _spans(side: int, most: int, overlap: int, multiple: int) -> list[slice]:
    if side <= most:
        return [slice(0, side)]
    count = math.ceil((side - overlap) / (most - overlap))
    width = math.ceil((side + (count - 1) * overlap) / count / multiple) * multiple
    starts = [(side - width) * i // (count - 1) // multiple * multiple for i in range(count)]
    return [slice(start, start + width) for start in starts]


def blending_weight(shape: Sequence[int], device: torch.device) -> Tensor:
    """Gaussian blending weight (1, 1, d, h, w), highest in the middle, never zero."""
    weight = torch.ones(1, 1, *shape, device=device)
    for axis, side in enumerate(shape):
        x = (torch.arange(side, device=device) - (side - 1) / 2) / (side * 0.25)
        weight = weight * torch.exp(-0.5 * x**2).clamp_min(1e-3).reshape([-1 if i == axis + 2 else 1 for i in range(5)])
    return weight
