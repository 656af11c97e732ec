"""Where the organ that a prompt names lies. Ours; the paper has nothing like it.

To a head that never saw tumours of an organ, the organ's name means nothing: asked for any tumour, it points anywhere
in the scan. A small network finds the organ on a coarse grid instead. It was trained on healthy synthetic patients
alone (``training.anatomy``), so no tumour of any organ was ever a target of it. Where in the organ a tumour may lie,
the scan itself tells (``search``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from monai.networks.nets import UNet
from torch import Tensor, nn

from diffugts.backbone.weights import MODELS, load_strictly, load_tensors
from diffugts.search import Map, Mask, Search, Spacing, brain, liver, lung, soft_tissue

LOCATOR = "locator.safetensors"
SPACING_MM = 8.0
MULTIPLE = 8
REST = 0
CLASSES = (
    "lung", "liver", "kidney", "spleen", "pancreas", "stomach", "colon", "bladder", "brain", "bone", "soft tissue",
)  # fmt: skip
"""What is told apart; the number of a class is its place here plus one."""
FOUND_WELL = {"lung": lung.search, "liver": liver.search}
"""Organs that are found well enough to look nowhere else."""
OWN_TONE = {"brain": brain.search, "soft tissue": soft_tissue.search}
"""What its tone tells better than the locator, which misses brains in FLAIR and takes limbs in MR for lungs."""
WIDTHS = (16, 32, 64, 96)
NARROW = (0.42, 0.62)  # of 0..1: -160 to 240 HU


class Locator(nn.Module):
    """(N, 2, D, H, W) coarse scan, its whole and its narrow range → (N, 1 + organs, D, H, W) logits."""

    def __init__(self) -> None:
        super().__init__()
        steps = (2,) * (len(WIDTHS) - 1)
        norm = ("group", {"num_groups": 4})
        self.network = UNet(3, 2, 1 + len(CLASSES), WIDTHS, steps, num_res_units=2, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """Sides must be multiples of ``MULTIPLE``."""
        logits: Tensor = self.network(x)
        return logits


def channels(image: Tensor) -> Tensor:
    """What the locator reads of an image (D, H, W) in 0..1: (2, D, H, W)."""
    low, high = NARROW
    return torch.stack([image, ((image - low) / (high - low)).clamp(0, 1)])


@torch.inference_mode()
def shares(locator: Locator, image: Map) -> Map:
    """Probability of the rest and of each organ, (1 + organs, D, H, W), in an image (D, H, W) at ``SPACING_MM``."""
    pad = [(0, -side % MULTIPLE) for side in image.shape]
    x = channels(torch.from_numpy(np.pad(image, pad, mode="edge")))[None]
    d, h, w = image.shape
    found: Map = torch.softmax(locator(x), 1)[0, :, :d, :h, :w].numpy()
    return found


def locator_file(model: Path) -> Path:
    """The locator of a model folder; that of `compact` for models without their own."""
    own = model / LOCATOR
    return own if own.is_file() else MODELS / "compact" / LOCATOR


@cache
def load_locator(path: Path) -> Locator:
    """A locator, frozen, on the CPU.

    Raises:
        WeightsError: missing or damaged.
    """
    locator = Locator()
    load_strictly(locator, load_tensors(path), path.name)
    return locator.eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class Organs:
    """What the locator finds in one scan, and muscle, which its tone tells.

    Attributes:
        classes: (d, h, w) uint8 likeliest class on the coarse grid. coarse: spacing of that grid, mm.
        image: (D, H, W) the scan in 0..1, RAS axes. spacing: of its voxels, mm. modality: "ct" or "mr".
    """

    classes: npt.NDArray[np.uint8]
    coarse: Spacing
    image: Map
    spacing: Spacing
    modality: str
    _searches: dict[str, Search | None] = field(default_factory=dict, repr=False)

    @classmethod
    def find(cls, locator: Locator, image: Map, spacing: Spacing, modality: str) -> Organs:
        """Look for all organs in a scan.

        Args:
            image: (D, H, W) in 0..1, RAS axes, without padding. spacing: its voxels, mm. modality: "ct" or "mr".
        """
        a, b, c = (max(1, round(side * mm / SPACING_MM)) for side, mm in zip(image.shape, spacing, strict=True))
        small = F.adaptive_avg_pool3d(torch.from_numpy(image)[None, None].float(), (a, b, c))[0, 0].clamp(0, 1)
        classes = shares(locator, small.numpy()).argmax(0).astype(np.uint8)
        i, j, k = (mm * side / n for mm, side, n in zip(spacing, image.shape, (a, b, c), strict=True))
        return cls(classes, (i, j, k), image, spacing, modality)

    def search(self, organ: str | None) -> Search | None:
        """Where to look for an organ's tumours; None where it is not found, or is none that is found well."""
        if organ is None:
            return None
        if organ not in self._searches:
            self._searches[organ] = self._search(organ)
        return self._searches[organ]

    def _search(self, organ: str) -> Search | None:
        if organ in OWN_TONE:
            return OWN_TONE[organ](self.image, self.spacing, self.modality)
        if organ not in FOUND_WELL:
            return None
        said = self._finer(self.classes == 1 + CLASSES.index(organ))
        return FOUND_WELL[organ](self.image, self.spacing, self.modality, said)

    def _finer(self, mask: Mask) -> Mask:
        """A coarse mask on the scan's own grid."""
        size = (self.image.shape[0], self.image.shape[1], self.image.shape[2])
        fine = F.interpolate(torch.from_numpy(mask[None, None].astype(np.float32)), size=size, mode="trilinear")
        found: Mask = fine[0, 0].numpy() > 0.5
        return found
