"""What a scan must be before anything is computed from it; each refusal is one sentence."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..volume import Volume

MAX_VOXELS = 2**30
"""Voxels of the largest scan that is read at all: 1024 x 1024 x 1024."""

MIN_SIDE = 8
"""Voxels of the shortest axis that can still hold an image of anatomy."""

SHEAR_TOLERANCE = 1e-2
"""Largest cosine between two voxel axes; above it, voxels are not boxes."""

MIN_SPACING_MM = 1e-4
"""A voxel side below this is taken for zero."""


def check_shape(shape: tuple[int, ...], name: str, max_voxels: int = MAX_VOXELS) -> tuple[int, int, int]:
    """The (I, J, K) of a shape without its trailing singletons; InputError if it is not 3D or is too big."""
    shape = tuple(int(n) for n in shape)
    spatial = shape
    while len(spatial) > 3 and spatial[-1] == 1:
        spatial = spatial[:-1]
    if len(spatial) > 3:
        raise InputError(
            f"{name} has {len(spatial)} dimensions {shape}; save one 3D frame, "
            "for instance nibabel.save(image.slicer[..., 0], 'frame.nii.gz'), and give that."
        )
    if len(spatial) < 3 or min(spatial) == 1:
        raise InputError(f"{name} is a single 2D slice {shape}; give the whole 3D scan.")
    if min(spatial) < 1:
        raise InputError(f"{name} has an empty axis {shape}; give a 3D scan.")
    if int(np.prod(spatial, dtype=object)) > max_voxels:
        raise InputError(
            f"{name} claims {shape} voxels, more than the limit of {max_voxels:,}; crop or resample it first."
        )
    return spatial[0], spatial[1], spatial[2]


def check_dtype(dtype: np.dtype[Any], name: str) -> None:
    """Raises InputError for colour, complex and non-numeric voxels."""
    if dtype.names is not None:
        raise InputError(f"{name} has colour (RGB) voxels; convert it to one scalar intensity per voxel.")
    if dtype.kind == "c":
        raise InputError(f"{name} has complex voxels ({dtype}); save their magnitude instead.")
    if dtype.kind not in "biuf":
        raise InputError(f"{name} has voxels of type {dtype}; give numbers, for instance int16 or float32.")


def check_affine(affine: npt.ArrayLike, name: str) -> npt.NDArray[np.float64]:
    """The affine as (4, 4) float64; raises InputError if it cannot place voxels in a patient."""
    try:
        matrix = np.array(affine, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape != (4, 4):
        raise InputError(f"{name} needs a (4, 4) affine from voxel index to RAS+ mm, not {matrix.shape}.")
    if not np.isfinite(matrix).all():
        raise InputError(f"{name} has NaN or infinite numbers in its affine; export it again.")
    if not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise InputError(f"{name} has the last affine row {matrix[3].tolist()}; it must be [0, 0, 0, 1].")
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    if spacing.min() < MIN_SPACING_MM:
        raise InputError(
            f"{name} has zero voxel spacing {np.round(spacing, 6).tolist()} mm; set the true spacing in its header."
        )
    axes = matrix[:3, :3] / spacing
    if abs(np.linalg.det(axes)) < 1e-3:
        raise InputError(f"{name} has a singular affine (two voxel axes are parallel); correct its header.")
    cosine = np.abs(axes.T @ axes - np.eye(3)).max()
    if cosine > SHEAR_TOLERANCE:
        raise InputError(
            f"{name} has a sheared affine (voxel axes {np.degrees(np.arcsin(min(cosine, 1.0))):.1f} degrees "
            "off the right angle); resample it to a grid with perpendicular axes first."
        )
    return matrix


def reason(error: Exception) -> str:
    """The line of another library's message that names the cause, without code addresses and full stop."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith("Reason:")]  # ITK's is errno, often stale
    if not lines:
        return type(error).__name__
    return re.sub(r"^.*ERROR:\s*(\w+\(0x\w+\):\s*)?", "", lines[-1]).rstrip(".")


def displacement_mm(shape: tuple[int, ...], first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """The largest distance in mm between where two affines put the corners of a grid of this shape."""
    corners = np.array(list(product(*[(0, n - 1) for n in shape[:3]])), dtype=np.float64)
    moved = (np.asarray(first) - np.asarray(second))[:3]
    return float(np.linalg.norm(corners @ moved[:, :3].T + moved[:, 3], axis=1).max())


def native(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same values in native byte order: bool becomes uint8, floats become float32."""
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def squeezed(volume: Volume, max_voxels: int = MAX_VOXELS) -> Volume:
    """Checks grid and type of voxels, not their values; trailing singletons go. Raises InputError."""
    name = volume.source
    check_dtype(volume.array.dtype, name)
    shape = check_shape(volume.array.shape, name, max_voxels)
    affine = check_affine(volume.affine, name)
    return replace(volume, array=volume.array.reshape(shape), affine=affine)


def validate(volume: Volume, max_voxels: int = MAX_VOXELS) -> Volume:
    """The volume, ready for use: 3D, native dtype, perpendicular axes, finite values that differ.

    A trailing singleton axis is squeezed; float64 becomes float32.

    Raises:
        InputError: 2D, 4D, tiny, huge, colour, complex, NaN or infinite, constant; affine not finite,
            singular, sheared, or with zero spacing.
    """
    volume = squeezed(volume, max_voxels)
    name, array = volume.source, volume.array
    if min(array.shape) < MIN_SIDE:
        raise InputError(f"{name} is too small {array.shape}; every axis needs at least {MIN_SIDE} voxels.")
    with np.errstate(over="ignore"):
        array = native(array)
    low, high = array.min(), array.max()  # NaN and infinity both survive min and max: no mask needed
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = array.size - int(np.isfinite(array).sum())
        raise InputError(
            f"{name} has {bad:,} voxels that are NaN or infinite; replace them with the background value "
            "(numpy.nan_to_num) and save it again."
        )
    if low == high:
        raise InputError(f"{name} is constant (every voxel is {low}); there is no image in it.")
    return replace(volume, array=array)
