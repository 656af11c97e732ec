"""What the diffusion model is told of a scan besides its latent, and how that is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffugts.errors import InputError

REGIONS = ("head", "chest", "abdomen", "pelvis")
"""Body regions of MAISI's DDPM for CT, from the top down; pelvis stands for all below, legs included."""

BODY, LUNG, BONE = 0.25, (0.02, 0.25), 0.65
"""On the model's 0..1 scale of -1000..1000 HU: above -500 HU is body, -960 to -500 HU lung, above 300 HU bone."""

CHEST_SHARE = 0.1
ABDOMEN_MM, PELVIS_MM, NECK_MM = 60.0, 300.0, 90.0


@dataclass(frozen=True)
class Conditions:
    """What the UNet is told besides the latent.

    Attributes:
        spacing: (3,) mm, of the image grid along the model axes.
        modality: a key of ``MODALITY_CODES``.
        regions: topmost and lowest body region in view, indices into ``REGIONS``; only MAISI's DDPM for CT reads
            them.
    """

    spacing: tuple[float, float, float]
    modality: str
    regions: tuple[int, int] = (1, 2)

    def unconditional(self) -> Conditions:
        """The same without the modality: what guidance pushes away from."""
        return replace(self, modality="unknown")


def parse_regions(text: str) -> tuple[int, int]:
    """ "chest", or "chest-abdomen" from the top down, as indices into ``REGIONS``.

    Raises:
        InputError: another word, or the wrong order.
    """
    words = text.split("-")
    if not 1 <= len(words) <= 2 or any(word not in REGIONS for word in words):
        raise InputError(
            f"the body region {text!r} must be one of {', '.join(REGIONS)}, or two of them as in 'chest-abdomen'"
        )
    top, bottom = REGIONS.index(words[0]), REGIONS.index(words[-1])
    if top > bottom:
        raise InputError(f"the body regions {text!r} must be named from the top down: {words[1]}-{words[0]}")
    return top, bottom


def find_regions(image: npt.NDArray[np.float32], spacing: Sequence[float]) -> tuple[int, int]:
    """Topmost and lowest body region of a CT, as indices into ``REGIONS``; a simple rule of ours.

    Slices where lung fills at least a tenth of the filled body are chest. What reaches more than 9 cm above
    them is head and neck, 6 cm below them abdomen, 30 cm below them pelvis. Without any lung: a body of less than
    25 cm across whose bone is more than a tenth of it is a head, anything else abdomen, with the pelvis when it is
    longer than 30 cm.

    Args:
        image: (D, H, W) 0..1, RAS axes, -1000..1000 HU. spacing: (3,) mm.
    """
    from scipy import ndimage

    area, lung, bone = (np.zeros(image.shape[2]) for _ in range(3))
    for k in range(image.shape[2]):
        section = image[:, :, k]
        body = ndimage.binary_fill_holes(ndimage.binary_opening(section > BODY))
        area[k] = body.sum()
        lung[k] = (body & (section > LUNG[0]) & (section < LUNG[1])).sum()
        bone[k] = (body & (section > BONE)).sum()
    there = np.flatnonzero(area > 0)
    if not there.size:
        return 1, 2
    low, high, step = int(there[0]), int(there[-1]), float(spacing[2])
    chest = np.flatnonzero(lung > CHEST_SHARE * np.maximum(area, 1))
    if chest.size:
        above, below = (high - chest[-1]) * step, (chest[0] - low) * step
        return (0 if above > NECK_MM else 1), (3 if below > PELVIS_MM else 2 if below > ABDOMEN_MM else 1)
    across = 2 * float(np.sqrt(area.max() * spacing[0] * spacing[1] / np.pi))
    if across < 250 and bone.sum() > 0.1 * area.sum():
        return 0, 0
    return 2, (3 if (high - low) * step > PELVIS_MM else 2)


@dataclass(frozen=True)
class Organs:
    """Organ label maps in bits for the ControlNet, (1, 8, D, H, W) float on the image's grid.

    Attributes:
        healthy: as it should look. diseased: as it should not (the same where there is no such map).
    """

    healthy: Tensor
    diseased: Tensor


def label_bits(labels: Tensor) -> Tensor:
    """Integer label map (D, H, W), 0..255, to the (1, 8, D, H, W) float bits that MAISI's ControlNet reads."""
    powers = 2 ** torch.arange(8, device=labels.device)
    bits = (labels.long()[None] & powers.reshape(8, 1, 1, 1)) > 0
    return bits.float()[None]
