"""NIfTI: read without trusting the header, write on the very grid that was read."""

from __future__ import annotations

import logging
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..volume import Volume
from .atomic import atomic_path
from .checks import MAX_VOXELS, check_dtype, check_shape, displacement_mm, native, reason

log = logging.getLogger(__name__)

GZIP_RATIO = 1032
"""Deflate cannot pack more bytes than this into one, so a header that claims more is false."""

FORMS_TOLERANCE_MM = 0.1
"""qform and sform that differ by less are the same for anyone who looks at the scan."""

_GRID_FIELDS = [
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
]


def read_nifti(path: Path, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read .nii or .nii.gz; shape, dtype and size are checked before any voxel is read.

    Voxels come scaled by the header's slope and intercept: integers stay integers where that is exact,
    anything else becomes float32. The affine is the sform, or the qform where no sform is set.
    """
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    name = path.name
    try:
        image = nib.load(path, mmap=False)
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, KeyError, zlib.error) as error:
        raise InputError(f"{name} is no readable NIfTI file ({reason(error)}); copy or export it again.") from error
    if not isinstance(image, nib.Nifti1Image):
        raise InputError(f"{name} is no NIfTI but {type(image).__name__}; convert it to NIfTI.")
    header: Any = image.header
    dtype = header.get_data_dtype()
    check_dtype(dtype, name)
    check_shape(image.shape, name, max_voxels)
    _check_size(path, int(image.dataobj.offset) + int(np.prod(image.shape)) * dtype.itemsize)
    affine = _check_forms(image, name)
    try:
        array = _scaled(image.dataobj)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{name} is truncated or damaged ({reason(error)}); copy or export it again.") from error
    return Volume(array, affine, header=header.copy(), source=name)


def _check_size(path: Path, claimed: int) -> None:
    """Refuse a header that claims more bytes than the file can hold, before memory is taken for them."""
    size = path.stat().st_size
    room = size * GZIP_RATIO if path.name.lower().endswith(".gz") else size
    if claimed > room:
        raise InputError(
            f"{path.name} is truncated: its header claims {claimed:,} bytes, the file has {size:,}; "
            "copy or export it again."
        )


def _check_forms(image: Any, name: str) -> npt.NDArray[np.float64]:
    """The affine that nibabel takes, refused where readers disagree about it."""
    header = image.header
    if not int(header["qform_code"]) and not int(header["sform_code"]):
        raise InputError(
            f"{name} has qform and sform code 0, so readers disagree about left and right; if its affine is "
            "right, set a code: image.set_sform(image.affine, code=1) in nibabel, then save."
        )
    if (unit := header.get_xyzt_units()[0]) not in ("mm", "unknown"):
        raise InputError(f"{name} gives its lengths in {unit}; save it in mm (set_xyzt_units('mm')).")
    affine = np.array(image.affine, dtype=np.float64)
    if int(header["qform_code"]) and int(header["sform_code"]):
        try:
            gap = displacement_mm(image.shape, affine, header.get_qform())
        except (ValueError, np.linalg.LinAlgError):
            gap = float("inf")
        if not gap <= FORMS_TOLERANCE_MM:
            log.warning("%s: qform and sform differ by up to %.1f mm; the sform is used.", name, gap)
    return affine


def _scaled(proxy: Any) -> npt.NDArray[Any]:
    """Voxels of a nibabel array proxy with slope and intercept applied, in the smallest exact dtype."""
    raw: npt.NDArray[Any] = proxy.get_unscaled()
    slope, intercept = float(proxy.slope), float(proxy.inter)
    if (slope, intercept) == (1.0, 0.0):
        return native(raw)
    small = max(abs(slope), abs(intercept)) < 2**15 and slope.is_integer() and intercept.is_integer()
    if raw.dtype.kind in "iu" and small:
        ends = [int(raw.min()) * int(slope) + int(intercept), int(raw.max()) * int(slope) + int(intercept)]
        if max(abs(end) for end in ends) < 2**15:
            whole = raw.astype(np.int32) * np.int32(slope) + np.int32(intercept)
            return np.asarray(whole, dtype=np.int16)
    scaled = raw.astype(np.float32)
    scaled *= np.float32(slope)
    scaled += np.float32(intercept)
    return scaled


def write_nifti(
    array: npt.NDArray[Any],
    like: Volume,
    path: str | os.PathLike[str],
    dtype: npt.DTypeLike | None = None,
) -> Path:
    """Write an (I, J, K) array on the grid of `like`, in one step; returns the path.

    Where `like` came from NIfTI its qform, sform, their codes and the units of length are kept bit for
    bit; otherwise both forms are set from its affine with code 1 (scanner). Nothing else of the header,
    such as descriptions or extensions, is carried over. Voxels are stored as they are: slope 1, intercept 0.

    Args:
        array: on the grid of `like`; bool becomes uint8, 64-bit floats become float32.
        like: gives shape, affine and header.
        path: ends in .nii or .nii.gz.
        dtype: type on disk; floats are rounded to the nearest integer for an integer type.

    Raises:
        InputError: another shape, values that do not fit the dtype, a path that cannot be written.
    """
    import nibabel as nib

    target = Path(path)
    if not target.name.lower().endswith((".nii", ".nii.gz")):
        raise InputError(f"{target.name} must end in .nii or .nii.gz to be written as NIfTI.")
    if array.shape != like.array.shape:
        raise InputError(f"{target.name}: the array is {array.shape} but {like.source} is {like.shape}.")
    data = _storable(array, dtype, target.name)
    version2 = isinstance(like.header, nib.Nifti2Header)
    image_class = nib.Nifti2Image if version2 else nib.Nifti1Image
    header = nib.Nifti2Header() if version2 else nib.Nifti1Header()
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    if isinstance(like.header, nib.Nifti1Header):
        for field in _GRID_FIELDS:
            header[field] = like.header[field]
        header["pixdim"][:4] = like.header["pixdim"][:4]
        image = image_class(data, None, header)
    else:
        header.set_xyzt_units("mm")
        image = image_class(data, like.affine, header)
        image.set_sform(like.affine, code=1)
        image.set_qform(like.affine, code=1)
    with atomic_path(target) as temporary:
        image.to_filename(temporary)
    return target


def _storable(array: npt.NDArray[Any], dtype: npt.DTypeLike | None, name: str) -> npt.NDArray[Any]:
    """The array in a dtype that NIfTI readers share, without loss beyond rounding."""
    if dtype is None:
        wanted = np.dtype({"b": np.uint8, "f": np.float32}.get(array.dtype.kind, array.dtype))
        wanted = np.dtype(np.int32) if wanted in (np.int64, np.uint64) else wanted
    else:
        wanted = np.dtype(dtype)
    if wanted == array.dtype:
        return array
    if wanted.kind in "iu" and array.size and array.dtype.kind != "b":
        limits = np.iinfo(wanted)
        low, high = array.min(), array.max()
        if not (limits.min <= low and high <= limits.max):  # NaN fails both
            raise InputError(f"{name}: values {low}..{high} do not fit {wanted}; choose a wider dtype.")
        array = np.rint(array) if array.dtype.kind == "f" else array
    return array.astype(wanted)
