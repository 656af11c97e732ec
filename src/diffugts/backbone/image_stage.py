"""The image itself as the finest feature stage, for models that are configured with one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffugts.backbone.networks import space_to_depth

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
    """Mean over a box of odd ``side`` around each voxel of (N, 1, ·), of those voxels of it that exist."""
    for axis in range(3):  # three lines cost far less than a box
        length = min(side, 2 * x.shape[axis + 2] - 1)
        kernel = tuple(length if i == axis else 1 for i in range(3))
        pad = tuple(length // 2 if i == axis else 0 for i in range(3))
        x = _line_mean(x, kernel, pad)
    return x


def _line_mean(x: Tensor, kernel: tuple[int, ...], pad: tuple[int, ...]) -> Tensor:
    """Mean along one axis of those voxels that exist; torch refuses kernels longer than the unpadded side."""
    around = [width for width in reversed(pad) for _ in range(2)]
    total, count = (
        nn.functional.avg_pool3d(nn.functional.pad(y, around), kernel, stride=1)
        for y in (x, torch.ones_like(x[:1, :1]))
    )
    return total / count
