"""The image itself as feature stages, for models that are configured with them. Ours; the paper reads the autoencoder.

A liver metastasis differs from its liver by a fiftieth of the model's range, which features that were learnt for
reconstruction drown.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffugts.backbone.networks import space_to_depth

IMAGE_CHANNELS = 13
CONTRAST_CHANNELS = 8
TISSUES = ((0.485, 0.62), (0.06, 2.0))  # of 0..1: organs and muscle in CT (-30 to 240 HU), all of the body in MR
LEAST_DEVIATION = (0.004, 0.02)  # of each, as even as tissue gets
SURROUNDINGS = (5, 13)  # blocks: 2 and 5 cm on voxels of 2 mm
HIGHEST = 4.0  # deviations


def image_stage(image: Tensor, window: tuple[float, ...]) -> Tensor:
    """The image as the finest stage: (N, 1, D, H, W) → (N, 13, D/2, H/2, W/2).

    The eight voxels of each block, and means over 1, 3 and 7 blocks of the windowed range, over 3 and 7 of the whole.
    """
    low, high = window
    blocks = space_to_depth(image, 2)
    narrow = space_to_depth(((image - low) / (high - low)).clamp(0, 1), 2).mean(1, keepdim=True)
    there = torch.ones_like(narrow[:1])
    means = [_around(x, n) / _around(there, n) for x in (narrow, blocks.mean(1, keepdim=True)) for n in (3, 7)]
    return torch.cat([blocks, narrow, *means], dim=1)


def contrast_stage(image: Tensor) -> Tensor:
    """How much each block differs from the tissue around it: (N, 1, D, H, W) → (N, 8, D/2, H/2, W/2).

    (block − mean) / deviation, both of the same kind of tissue in a box around it, 0 in other tissue: a lesion stands
    out as much in an even organ as in one beside bone or air. For each kind and box of the block itself and of the
    mean over 3 blocks, in which noise is less.
    """
    block = nn.functional.avg_pool3d(image.float(), 2)
    tissue = torch.cat([((block > low) & (block < high)).float() for low, high in TISSUES], dim=1)
    least = block.new_tensor(LEAST_DEVIATION).reshape(1, -1, 1, 1, 1)
    sums = torch.cat([tissue, tissue * block, tissue * block**2], dim=1)
    count, total = _around(sums[:, : 2 * len(TISSUES)], 3).chunk(2, dim=1)
    smooth = total / count.clamp_min(1e-6)
    found = []
    for side in SURROUNDINGS:
        count, total, squares = _around(sums, side).chunk(3, dim=1)
        mean = total / count.clamp_min(1e-6)
        variance = (squares / count.clamp_min(1e-6) - mean**2).clamp_min(0)
        scale = tissue / (variance + least**2).sqrt()
        found += [((x - mean) * scale).clamp(-HIGHEST, HIGHEST) for x in (block, smooth)]
    return torch.stack(found, dim=2).flatten(1, 2)


def _around(x: Tensor, side: int) -> Tensor:
    """Sum over a box of odd ``side`` around each voxel of (N, C, ·), divided by the box's volume, zeros outside."""
    for axis in range(3):  # three lines cost far less than a box
        kernel = tuple(side if i == axis else 1 for i in range(3))
        around = [side // 2 if i == axis else 0 for i in reversed(range(3)) for _ in range(2)]
        x = nn.functional.avg_pool3d(nn.functional.pad(x, around), kernel, stride=1)
    return x
