"""The part of a scan that is looked at: a box or a mask given by the user, within the patient's own box."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffugts.errors import InputError
from diffugts.spatial import Box
from diffugts.volume import Volume

MARGIN_MM = 30.0
"""Around a mask: what the networks need to see of its surroundings."""

Roi = str | Path | Sequence[Sequence[int]] | npt.NDArray[Any]


def roi_box(roi: Roi, volume: Volume) -> Box:
    """The voxels of the scan that a region of interest stands for.

    Args:
        roi: "i0:i1,j0:j1,k0:k1" (voxels of the file, the last one left out), the same as three pairs, a mask on the
            scan's grid, or a file with one; a mask gets ``MARGIN_MM`` around it.

    Raises:
        InputError: not a box, outside the scan, empty, or on another grid.
    """
    if isinstance(roi, str) and re.fullmatch(r"\s*\d+:\d+(\s*,\s*\d+:\d+){2}\s*", roi):
        roi = [[int(end) for end in part.split(":")] for part in roi.split(",")]
    if isinstance(roi, str | Path) or (isinstance(roi, np.ndarray) and roi.ndim == 3):
        return _around(roi, volume)
    pairs = [tuple(int(end) for end in part) for part in roi]
    if len(pairs) != 3 or any(len(pair) != 2 for pair in pairs):
        raise InputError(f"the region of interest {pairs} must have three pairs of voxels: i0:i1,j0:j1,k0:k1")
    if not all(0 <= pair[0] < pair[1] <= side for pair, side in zip(pairs, volume.shape, strict=True)):
        raise InputError(
            f"the region of interest {pairs} must lie inside the scan's {volume.shape} voxels and hold some"
        )
    (a, b), (c, d), (e, f) = pairs
    return (a, b), (c, d), (e, f)


def narrowed(body: Box, roi: Box) -> Box:
    """What of the region of interest is patient; all of it where that is nothing."""
    both = [(max(a[0], b[0]), min(a[1], b[1])) for a, b in zip(body, roi, strict=True)]
    return (both[0], both[1], both[2]) if all(start < stop for start, stop in both) else roi


def _around(roi: str | Path | npt.NDArray[Any], volume: Volume) -> Box:
    from diffugts.io import read_mask

    if isinstance(roi, str) and not Path(roi).exists():
        raise InputError(f"the region of interest {roi!r} is neither a box (i0:i1,j0:j1,k0:k1) nor a file that exists")
    mask = read_mask(roi, volume)
    if not mask.any():
        raise InputError("the region of interest is empty; mark at least one voxel of it")
    ends = []
    for axis, (side, mm) in enumerate(zip(volume.shape, volume.spacing, strict=True)):
        found = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = int(np.ceil(MARGIN_MM / mm))
        ends.append((max(int(found[0]) - margin, 0), min(int(found[-1]) + 1 + margin, side)))
    return ends[0], ends[1], ends[2]
