"""Organ label maps for MAISI's ControlNet: the candidate is painted healthy in the shape of its own organ.

Labels are NVIDIA's (label_dict.json of NV-Generate-CTMR, 0..132, and 200 for the rest of the body). Beyond the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffugts.backbone.conditions import Organs, label_bits
from diffugts.errors import InputError
from diffugts.spatial import Placement
from diffugts.tiles import Box
from diffugts.volume import Volume

BODY = 200
TUMOURS = {23: 28, 24: 4, 26: 1, 27: 62, 128: BODY}
"""Tumour label to the organ that it grows in: lung, pancreas, liver, colon, and bone, whose own label is not known."""

TUMOUR_IN = {
    1: 26, 4: 24, 62: 27,
    **dict.fromkeys(range(28, 33), 23),
    **dict.fromkeys([*range(33, 57), *range(63, 98), 120, 122, 127], 128),
}  # fmt: skip
"""Organ label to the tumour that MAISI knows there: liver, pancreas, colon, lung lobes, bones."""


@dataclass(frozen=True, eq=False)
class OrganMap:
    """What lies where on the model grid, (D, H, W) uint8 each.

    Attributes:
        healthy: organs without tumours. diseased: the same with the tumour of each organ inside the candidate.
    """

    healthy: Tensor
    diseased: Tensor

    @classmethod
    def of(cls, labels: npt.NDArray[np.uint8], candidate: npt.NDArray[np.bool_], device: torch.device) -> OrganMap:
        """From labels and the candidate M, (D, H, W) each; tumours in the labels become their organs."""
        table = np.arange(256, dtype=np.uint8)
        for tumour, organ in TUMOURS.items():
            table[tumour] = organ
        healthy = table[labels]
        ill = np.arange(256, dtype=np.uint8)
        for organ, tumour in TUMOUR_IN.items():
            ill[organ] = tumour
        diseased = np.where(candidate, ill[healthy], healthy)
        return cls(torch.from_numpy(healthy).to(device), torch.from_numpy(diseased).to(device))

    def crop(self, box: Box, outer: Box, stride: int) -> Organs:
        """Bits of a latent box that is given in the coordinates of ``outer``: (1, 8, D, H, W) float each."""
        place = tuple(
            slice((o.start + b.start) * stride, (o.start + b.stop) * stride) for b, o in zip(box, outer, strict=True)
        )
        return Organs(label_bits(self.healthy[place]), label_bits(self.diseased[place]))


def read_labels(given: str | Path | npt.NDArray[Any], volume: Volume, placement: Placement) -> npt.NDArray[np.uint8]:
    """A label map on the scan's grid, or its file, on the model grid: (D, H, W) uint8, nearest voxel.

    Raises:
        InputError: another grid than the scan's, or labels outside 0..255.
    """
    from diffugts.io import read_volume

    if isinstance(given, np.ndarray):
        array = given
    else:
        read = read_volume(given)
        array = read.array
        if not np.allclose(read.affine, volume.affine, atol=1e-3):
            raise InputError(f"the organ map {given} lies elsewhere than the scan; bring it to the scan's grid")
    if array.shape != volume.shape:
        raise InputError(f"the organ map has shape {array.shape}, the scan {volume.shape}; give it on the scan's grid")
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > 255 or (array != np.round(array)).any():
        raise InputError("the organ map must hold whole numbers from 0 to 255: MAISI's labels, 200 for other body")
    return _nearest(array.astype(np.uint8), placement)


def _nearest(labels: npt.NDArray[np.uint8], placement: Placement) -> npt.NDArray[np.uint8]:
    """Both grids run along the same lines, so each axis has its own list of nearest voxels."""
    to_source = np.linalg.solve(placement.source.affine, placement.grid.affine)
    indices, order = [], []
    for axis in range(3):
        along = int(np.abs(to_source[axis, :3]).argmax())
        order.append(along)
        place = to_source[axis, along] * np.arange(placement.grid.shape[along]) + to_source[axis, 3]
        indices.append(np.clip(np.round(place).astype(int), 0, labels.shape[axis] - 1))
    turned = labels[np.ix_(*indices)].transpose([order.index(along) for along in range(3)])
    return np.ascontiguousarray(turned)
