"""What every exported object takes from the scan's DICOM series, and what it says of the program that made it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from diffugts._version import __version__
from diffugts.errors import InputError
from diffugts.io.checks import reason
from diffugts.io.dicom import DicomSeries
from diffugts.volume import Volume

MANUFACTURER = "DiffuGTS"
CHARACTER_SET = "ISO_IR 192"  # UTF-8: prompts and names are written as they are
SERIES_OFFSET = 9000
"""Added to the scan's series number, so that results sort behind the images."""

NEEDED = ("StudyInstanceUID", "FrameOfReferenceUID", "SOPClassUID", "SOPInstanceUID")
MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)


def source_images(volume: Volume) -> list[Any]:
    """Headers (pydicom data sets without pixels) of the scan's slices, in the order of its last axis.

    Patient and study attributes that must be there but may be empty are added where anonymisation took them
    away, and emptied where their value breaks the standard.

    Raises:
        InputError: the volume came from no DICOM series, its files are gone, or they lack identifiers.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    if not isinstance(volume.header, DicomSeries):
        raise InputError(f"{volume.source} was no DICOM series, so a DICOM object has nothing to refer to.")
    try:
        images = [pydicom.dcmread(file, stop_before_pixels=True) for file in volume.header.files]
    except (OSError, InvalidDicomError) as error:
        raise InputError(
            f"{volume.source}: the DICOM files changed since they were read ({reason(error)}); run again."
        ) from error
    missing = sorted({tag for image in images for tag in NEEDED if not image.get(tag)})
    if missing:
        raise InputError(
            f"{volume.source} has slices without {', '.join(missing)}, which a DICOM object needs to refer to them; "
            "export the series again."
        )
    for image in images:
        _repair(image, float(volume.spacing[2]))
    return images


def label(text: str, length: int = 64) -> str:
    """A text as a DICOM string of one line without backslash, of at most `length` (64 for LO, 16 for SH).

    The standard counts characters; some readers count bytes, so those are what is cut.
    """
    line = " ".join(text.replace("\\", "/").split())
    return line.encode()[:length].decode(errors="ignore").strip()


def serial_number(about: Mapping[str, Any]) -> str:
    """The device serial number, LO: 16 hex digits that stand for the weights."""
    hashes = "".join(str(file.get("sha256", "")) for file in about.get("weights", ()))
    return hashlib.sha256(hashes.encode()).hexdigest()[:16]


def model_name(about: Mapping[str, Any]) -> str:
    """The manufacturer's model name, LO."""
    return label(f"{MANUFACTURER} {about.get('model', '')}")


def series_number(image: Any) -> int:
    """Of the new series."""
    try:
        return SERIES_OFFSET + max(0, int(image.get("SeriesNumber") or 0))
    except (TypeError, ValueError):
        return SERIES_OFFSET


def version() -> str:
    """Of the software, LO."""
    return label(__version__)


def _repair(image: Any, slice_mm: float) -> None:
    from pydicom.valuerep import DA, TM

    for tag in MAY_BE_EMPTY:
        if image.get(tag) is None:
            setattr(image, tag, "")
    if image.PatientSex not in ("M", "F", "O"):
        image.PatientSex = ""
    for tag, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        try:
            kind(image.get(tag))
        except ValueError:
            setattr(image, tag, "")
    if not image.get("SliceThickness"):
        image.SliceThickness = f"{slice_mm:.6g}"
