"""DICOM slices as one stack: their order and affine, and a sentence for each way in which they are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .itk import LPS_TO_RAS

TILT_TOLERANCE = 1e-2
"""Sine of the angle between the way slices are stacked and their normal; a tilted gantry has 0.1 and more."""

GAP_TOLERANCE = 0.1
"""Slice distances may differ by this part of their median, or by as many mm: headers round positions."""


class Slice(NamedTuple):
    """One image file: its header, and the bytes from where its pixels start to the end of the file."""

    path: Path
    header: Any
    room: int


def stacked(slices: list[Slice], name: str) -> tuple[npt.NDArray[np.float64], list[Slice]]:
    """The series' affine (RAS+ mm) and its slices in order along their normal.

    Raises:
        InputError: slices that are no evenly spaced stack of one orientation, or geometry that is missing or NaN.
    """
    plane = [
        np.concatenate([_numbers(s, "ImageOrientationPatient", 6), _numbers(s, "PixelSpacing", 2)]) for s in slices
    ]
    sizes = {(int(s.header.Rows), int(s.header.Columns)) for s in slices}
    if len(sizes) > 1 or np.abs(np.array(plane) - plane[0]).max() > 1e-3:
        raise InputError(
            f"{name} mixes slices of different orientation, spacing or size in one series (a localizer?); "
            "keep only those of one stack."
        )
    if len(slices) < 2:
        raise InputError(f"{name} holds a single 2D slice; give the whole series.")
    row, column, (row_mm, column_mm) = plane[0][:3], plane[0][3:6], plane[0][6:]
    normal = np.cross(row, column)
    positions = np.array([_numbers(s, "ImagePositionPatient", 3) for s in slices])
    order = np.argsort(positions @ normal, kind="stable")
    slices, positions = [slices[i] for i in order], positions[order]
    _check_stack(positions, normal, [s.path.name for s in slices], name)
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    affine = np.eye(4)
    affine[:3] = np.stack([row * column_mm, column * row_mm, step, positions[0]], axis=1)
    return LPS_TO_RAS @ affine, slices


def _numbers(item: Slice, tag: str, count: int) -> npt.NDArray[np.float64]:
    """A geometric attribute as floats, refused where it is missing or not finite."""
    try:
        values = np.array([float(v) for v in item.header.get(tag, None) or ()])
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.size != count or not np.isfinite(values).all():
        raise InputError(
            f"{item.path.parent.resolve().name}: slice {item.path.name} has no usable {tag} "
            "(missing, NaN or infinite); export the series again."
        )
    return values


def _check_stack(
    positions: npt.NDArray[np.float64], normal: npt.NDArray[np.float64], files: list[str], name: str
) -> None:
    """Refuse slices that are doubled, missing, uneven or stacked askew."""
    heights = positions @ normal
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    tolerance = GAP_TOLERANCE * max(usual, 1.0)
    if gaps.min() <= min(0.01, 0.1 * max(usual, 0.0)):
        i = int(gaps.argmin())
        raise InputError(
            f"{name} has two slices at the same position ({files[i]} and {files[i + 1]}); "
            "keep one phase or time point per folder."
        )
    if np.abs(gaps - usual).max() > tolerance:
        i = int(np.abs(gaps - usual).argmax())
        count = gaps[i] / usual
        what = f"about {round(count) - 1} slice(s) missing" if count > 1.5 else "uneven slices"
        raise InputError(
            f"{name} has {what}: {gaps[i]:.2f} mm between {files[i]} and {files[i + 1]} where the others are "
            f"{usual:.2f} mm apart; export the whole series again or resample it."
        )
    span = positions[-1] - positions[0]
    askew = float(np.linalg.norm(span - normal * (span @ normal)) / np.linalg.norm(span))
    if askew > TILT_TOLERANCE:
        raise InputError(
            f"{name} was taken with a tilted gantry ({np.degrees(np.arcsin(askew)):.1f} degrees), so its "
            "voxels are sheared; resample it to a straight grid first, for instance with dcm2niix."
        )
    line = positions[0] + np.linspace(0, 1, len(positions))[:, None] * span
    if np.linalg.norm(positions - line, axis=1).max() > max(1.0, tolerance * len(positions) ** 0.5):
        raise InputError(f"{name} has slices off one straight line; keep only those of one stack.")
