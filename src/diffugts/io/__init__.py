"""Scans in, results out: NIfTI, NRRD, MetaImage and DICOM series, all in RAS+ mm."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..volume import Volume
from .atomic import atomic_path, atomic_write
from .checks import MAX_VOXELS, displacement_mm, squeezed, validate
from .dicom import files_below, read_dicom
from .itk import read_itk
from .nifti import read_nifti, write_nifti

__all__ = [
    "atomic_path",
    "atomic_write",
    "case_name",
    "files_below",
    "from_array",
    "read_mask",
    "read_volume",
    "validate",
    "write_nifti",
]

READERS = {
    ".nii": read_nifti,
    ".nii.gz": read_nifti,
    ".nrrd": read_itk,
    ".nhdr": read_itk,
    ".mha": read_itk,
    ".mhd": read_itk,
}

GRID_TOLERANCE_MM = 1e-3
"""Two grids are the same when no corner lies farther apart than this."""

MAX_NAME = 64
"""Longest name of a case's folder."""

_RESERVED = {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)}


def read_volume(path: str | os.PathLike[str], series_uid: str | None = None, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read a scan: a NIfTI, NRRD or MetaImage file, or a folder that holds DICOM series.

    Args:
        path: the file (.nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd) or folder.
        series_uid: which DICOM series to take where a folder holds several.
        max_voxels: refuse larger scans before reading them.

    Returns:
        The volume in the file's axis order, checked as `validate` says; unit "HU" for DICOM CT.

    Raises:
        InputError: anything that makes the scan unusable, in one sentence.
    """
    return validate(_read(Path(path), series_uid, max_voxels), max_voxels)


def from_array(array: npt.ArrayLike, affine: npt.ArrayLike, unit: str = "arbitrary", source: str = "array") -> Volume:
    """A volume from an (I, J, K) array and its affine (voxel index to RAS+ mm), checked like a file."""
    matrix = np.asarray(affine)
    return validate(Volume(np.asarray(array), matrix, unit=unit, source=source))


def read_mask(path_or_array: str | os.PathLike[str] | npt.NDArray[Any], like: Volume) -> npt.NDArray[np.bool_]:
    """(I, J, K) bool mask on the grid of `like`, from a file or an array.

    Integers count where they are not 0, floats (probabilities) where they are at least 0.5.

    Raises:
        InputError: unreadable, not finite, or on another grid than `like`.
    """
    if isinstance(path_or_array, np.ndarray):
        mask = squeezed(Volume(path_or_array, like.affine, source="the mask"))
    else:
        mask = squeezed(_read(Path(path_or_array), None, MAX_VOXELS))
    if mask.shape != like.shape:
        raise InputError(
            f"{mask.source} is {mask.shape} but {like.source} is {like.shape}; resample the mask to the scan's grid."
        )
    gap = displacement_mm(like.shape, mask.affine, like.affine)
    if gap > GRID_TOLERANCE_MM:
        raise InputError(
            f"{mask.source} lies up to {gap:.3g} mm away from {like.source} though their shapes agree; "
            "resample the mask to the scan's grid."
        )
    if mask.array.dtype.kind != "f":
        return np.asarray(mask.array != 0, dtype=np.bool_)
    if not np.isfinite(mask.array).all():
        raise InputError(f"{mask.source} has NaN or infinite voxels; write 0 outside and 1 inside.")
    return np.asarray(mask.array >= 0.5, dtype=np.bool_)


def case_name(path: str | os.PathLike[str]) -> str:
    """A folder name for a scan: its own name without extension, only A-Z a-z 0-9 . _ -, never empty.

    Names that are too long, or of which nothing is left, end in a short hash so that they do not collide.
    """
    name = Path(path).name
    if name in ("", ".", ".."):
        name = Path(path).resolve().name
    suffix = _suffix(name)
    stem = name[: len(name) - len(suffix)] if suffix else name
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", plain).strip("._-")
    if len(safe) > MAX_NAME or not safe:
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        return f"{safe[: MAX_NAME - 9] or 'case'}-{digest}"
    return f"{safe}_" if safe.split(".")[0].lower() in _RESERVED else safe


def _suffix(name: str) -> str:
    """The known extension at the end of a file name, as written there, or ""."""
    known = [suffix for suffix in READERS if name.lower().endswith(suffix)]
    return name[-len(max(known, key=len)) :] if known else ""


def _read(path: Path, series_uid: str | None, max_voxels: int) -> Volume:
    """Read by kind of path; grid and values are for the caller to check."""
    try:
        if path.is_dir():
            return read_dicom(path, series_uid, max_voxels)
        if not path.exists():
            raise InputError(f"{path} does not exist; check the path.")
        if not path.is_file():
            raise InputError(f"{path} is neither a file nor a folder.")
        if path.stat().st_size == 0:
            raise InputError(f"{path.name} is empty (0 bytes); copy or export it again.")
        reader = READERS.get(_suffix(path.name).lower())
        if reader is None:
            raise InputError(f"{path.name} is of no known type; give {', '.join(READERS)} or a folder of DICOM slices.")
        return reader(path, max_voxels)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read ({error}); check the path and its permissions.") from error
    except MemoryError as error:
        raise InputError(f"{path.name} does not fit into memory; crop or resample it first.") from error
