"""The networks of a MAISI-style model, built from a configuration, safe on a CPU.

The autoencoder may fold blocks of voxels into channels (space-to-depth) and may run beside a fixed linear code
of those blocks; with both off it is MONAI's ``AutoencoderKlMaisi`` and nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffugts.backbone.config import ModelConfig


def space_to_depth(x: Tensor, block: int) -> Tensor:
    """(N, C, D, H, W) → (N, C·block³, D/block, H/block, W/block)."""
    if block == 1:
        return x
    n, c, d, h, w = x.shape
    x = x.reshape(n, c, d // block, block, h // block, block, w // block, block)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(n, c * block**3, d // block, h // block, w // block)


def depth_to_space(x: Tensor, block: int) -> Tensor:
    """Inverse of :func:`space_to_depth`."""
    if block == 1:
        return x
    n, c, d, h, w = x.shape
    x = x.reshape(n, c // block**3, block, block, block, d, h, w)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(n, c // block**3, d * block, h * block, w * block)


def _full_precision(x: Tensor) -> torch.autocast:
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


class LinearCode(nn.Module):
    """Whitened principal components of image blocks: a fixed linear autoencoder with unit-variance latents.

    ``mean`` (block³,), ``basis`` (C, block³) orthonormal rows, ``deviation`` (C,) standard deviations.
    """

    mean: Tensor
    basis: Tensor
    deviation: Tensor

    def __init__(self, channels: int, block: int) -> None:
        super().__init__()
        self.block = block
        self.register_buffer("mean", torch.zeros(block**3))
        self.register_buffer("basis", torch.zeros(channels, block**3))
        self.register_buffer("deviation", torch.ones(channels))

    @torch.no_grad()
    def fit(self, blocks: Tensor) -> None:
        """Set the components from sample blocks (N, block³)."""
        blocks = blocks.double()
        mean = blocks.mean(0)
        values, vectors = torch.linalg.eigh((blocks - mean).T @ (blocks - mean) / len(blocks))
        count = len(self.deviation)
        self.mean.copy_(mean)
        self.basis.copy_(vectors.flip(1)[:, :count].T)
        self.deviation.copy_(values.flip(0)[:count].clamp_min(1e-12).sqrt())

    def encode(self, x: Tensor) -> Tensor:
        """(N, 1, D, H, W) → (N, C, D/block, H/block, W/block), unit variance on the fitted data."""
        with _full_precision(x):  # a linear code gains nothing from half precision
            blocks = space_to_depth(x.float(), self.block).movedim(1, -1)
            return ((blocks - self.mean) @ (self.basis / self.deviation[:, None]).T).movedim(-1, 1)

    def decode(self, z: Tensor) -> Tensor:
        """Inverse of :meth:`encode` on the span of the components."""
        with _full_precision(z):
            blocks = z.float().movedim(1, -1) @ (self.basis * self.deviation[:, None]) + self.mean
            return depth_to_space(blocks.movedim(-1, 1), self.block)


class Autoencoder(nn.Module):
    """MONAI's ``AutoencoderKlMaisi`` with optional space-to-depth and linear code."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

        self.block = config.space_to_depth
        self.net = AutoencoderKlMaisi(**cpu_safe(config.autoencoder))
        _use_native_group_norm(self.net)
        self.taps = stage_taps(config.autoencoder["num_res_blocks"])
        self.splits = 1  # slabs that each convolution works in, where the shape allows; fewer bytes, same numbers
        self._split_axis, self._splits_now = int(config.autoencoder.get("dim_split", 0)), 1
        self.stride = config.stride
        self.linear = LinearCode(config.latent_channels, config.stride) if config.linear_shortcut else None
        if self.linear is not None:
            # The networks add to the linear code, and start by adding nothing.
            for last in (self.net.quant_conv_mu, self.net.decoder.blocks[-1]):
                for parameter in last.parameters():
                    nn.init.zeros_(parameter)

    def encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode images.

        Args:
            x: (N, 1, D, H, W) float, 0..1, sides multiples of the stride.

        Returns:
            The latent mean E_mu(x) (N, C, d, h, w), not yet scaled, and the encoder's stage outputs F_l,
            finest first, raw.
        """
        self._split(x.shape[2 + self._split_axis] // self.stride)
        h = space_to_depth(x, self.block).contiguous(memory_format=torch.channels_last_3d)
        stages = []
        for index, block in enumerate(self.net.encoder.blocks):
            h = block(h)
            if index in self.taps:
                stages.append(h)
        mu = self.net.quant_conv_mu(h)
        if self.linear is not None:
            mu = mu + self.linear.encode(x)
        return mu, stages

    def decode(self, z: Tensor) -> Tensor:
        """(N, C, d, h, w) unscaled latent → (N, 1, D, H, W), about 0..1."""
        self._split(z.shape[2 + self._split_axis])
        h = self.net.post_quant_conv(z.contiguous(memory_format=torch.channels_last_3d))
        image = depth_to_space(self.net.decoder(h), self.block)
        if self.linear is not None:
            image = image + self.linear.decode(z)
        return image

    def _split(self, side: int) -> None:
        """Set the convolutions to the wanted number of slabs, or the most below it that a latent side allows."""
        count = allowed_splits(side, self.splits)
        if count != self._splits_now:
            split_convolutions(self.net, count)
            self._splits_now = count


def allowed_splits(side: int, wanted: int) -> int:
    """The most slabs up to ``wanted``, a power of two, that MAISI's split convolutions compute exactly.

    They need equal slabs at every level (``side`` is the latent's, the coarsest) that are no thinner than their
    overlap of 3; other sizes come out short or wrong.
    """
    counts = [1 << power for power in range(8) if 1 << power <= wanted]
    return max(count for count in counts if count == 1 or (side % count == 0 and side // count >= 3))


def stage_taps(num_res_blocks: list[int]) -> tuple[int, ...]:
    """Indices of ``encoder.blocks`` that end a stage: 0 is a convolution, then residual blocks and downsamplings."""
    taps, index = [], 0
    for count in num_res_blocks:
        index += count
        taps.append(index)
        index += 1
    return tuple(taps)


def build_unet(config: ModelConfig) -> nn.Module:
    """MONAI's ``DiffusionModelUNetMaisi`` as configured, with the settings that break on a CPU turned off."""
    from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi

    net: nn.Module = DiffusionModelUNetMaisi(**cpu_safe(config.unet))
    if config.unet.get("use_flash_attention"):
        use_fused_attention(net)
    return net


def build_controlnet(config: ModelConfig) -> nn.Module:
    """MONAI's ``ControlNetMaisi`` as configured, safe on a CPU."""
    from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi

    net: nn.Module = ControlNetMaisi(**{**cpu_safe(config.controlnet), "use_checkpointing": False})
    if config.controlnet.get("use_flash_attention"):
        use_fused_attention(net)
    return net


def cpu_safe(arguments: dict[str, Any]) -> dict[str, Any]:
    """Override what fails away from a large GPU: flash attention, float16 norms, split convolutions."""
    overrides = {
        "use_flash_attention": False,
        "norm_float16": False,
        "num_splits": 1,
        "use_checkpointing": False,
    }
    return {**arguments, **{key: value for key, value in overrides.items() if key in arguments}}


def use_fused_attention(net: nn.Module) -> None:
    """Let attention use PyTorch's fused kernel: the same numbers without the (tokens × tokens) matrix.

    MONAI refuses the flag on a machine without a GPU, though the kernel runs there as well; hence after construction.
    """
    from monai.networks.blocks.selfattention import SABlock

    for module in net.modules():
        if isinstance(module, SABlock):
            module.use_flash_attention = True


def split_convolutions(net: nn.Module, count: int) -> None:
    """Let each convolution of a MAISI autoencoder work through its input in ``count`` slabs, to save memory."""
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import MaisiConvolution

    for module in net.modules():
        if isinstance(module, MaisiConvolution):
            module.num_splits = count


def _use_native_group_norm(net: nn.Module) -> None:
    """MAISI's group norm loops over groups to save GPU memory; PyTorch's own has the same weights and is faster."""
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import MaisiGroupNorm3D

    for module in net.modules():
        if isinstance(module, MaisiGroupNorm3D):
            module.__class__ = nn.GroupNorm
