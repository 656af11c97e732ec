"""NRRD and MetaImage through SimpleITK, from its LPS frame to ours (RAS+)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..volume import Volume
from .checks import MAX_VOXELS, check_shape, reason
from .nifti import GZIP_RATIO

log = logging.getLogger(__name__)

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

DETACHED = (".nhdr", ".mhd")
"""Headers whose voxels lie in another file."""


def read_itk(path: Path, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read .nrrd, .nhdr, .mha or .mhd; the header is checked before any voxel is read."""
    import SimpleITK as sitk

    name = path.name
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(name, error) from error
    if reader.GetNumberOfComponents() > 1:
        raise InputError(
            f"{name} has {reader.GetNumberOfComponents()} values per voxel (colour or several frames); "
            "save one scalar 3D image."
        )
    if reader.GetPixelID() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
        raise InputError(f"{name} has complex voxels; save their magnitude instead.")
    check_shape(reader.GetSize(), name, max_voxels)
    size, voxels = path.stat().st_size, int(np.prod(reader.GetSize()))
    if path.suffix.lower() not in DETACHED and voxels > size * GZIP_RATIO:
        raise InputError(
            f"{name} is truncated: its header claims {voxels:,} voxels, the file has {size:,} bytes; "
            "copy or export it again."
        )
    if path.suffix.lower() in (".nrrd", ".nhdr") and not reader.HasMetaDataKey("NRRD_space"):
        log.warning("%s: the header names no space; left-posterior-superior is assumed.", name)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise _unreadable(name, error) from error
    array = sitk.GetArrayFromImage(image)
    array = array.reshape(array.shape[-3:]) if array.ndim > 3 else array
    return Volume(array.transpose(2, 1, 0), itk_affine(image), source=name)


def itk_affine(image: Any) -> npt.NDArray[np.float64]:
    """Voxel index to RAS+ mm of a SimpleITK image, its first three axes."""
    count = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(count, count)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(image.GetSpacing())[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    return LPS_TO_RAS @ affine


def _unreadable(name: str, error: Exception) -> InputError:
    return InputError(f"{name} is no readable image file ({reason(error)}); copy or export it again.")
