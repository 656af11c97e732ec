"""One DICOM series from a folder: pydicom reads and checks the headers, SimpleITK (GDCM) the voxels."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..volume import Volume
from .checks import MAX_VOXELS, check_shape, reason
from .dicom_stack import Slice, stacked

log = logging.getLogger(__name__)

MODALITIES = {"CT": "ct", "MR": "mr"}

MAX_FILES = 20_000
"""Files that a folder may hold: a study has a few thousand, a disk that was named by mistake has more."""

MAX_LISTED = 20
"""Series that a message lists."""

_TAGS = [
    *("Modality", "SeriesInstanceUID", "SeriesDescription", "NumberOfFrames", "SamplesPerPixel"),
    *("Rows", "Columns", "BitsAllocated", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType"),
]


@dataclass(frozen=True)
class DicomSeries:
    """Where a volume came from, so that results can refer to it (`Volume.header` of a DICOM scan).

    Attributes:
        uid: SeriesInstanceUID.
        files: one per slice, in the order of the volume's last axis.
    """

    uid: str
    files: tuple[Path, ...]


def read_dicom(folder: Path, series_uid: str | None = None, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read the CT or MR series in a folder; CT comes in HU.

    Args:
        folder: holds the slices, in any order, under any names and in any subfolders; other files are passed over.
        series_uid: SeriesInstanceUID of the series to take where the folder holds several.

    Returns:
        The volume, axes as in the images: columns, rows, slices along their normal. Its header is a `DicomSeries`.

    Raises:
        InputError: no or several series, another modality, multi-frame files, slices missing, doubled or
            uneven, a tilted gantry, geometry that is missing or NaN, CT without rescale.
    """
    name = folder.resolve().name
    slices = _select(_headers(folder), series_uid, name)
    affine, slices = stacked(slices, name)
    first = slices[0].header
    check_shape((int(first.Columns), int(first.Rows), len(slices)), name, max_voxels)
    modality = MODALITIES[first.Modality]
    unit = _unit([s.header for s in slices], name) if modality == "ct" else "arbitrary"
    _check_whole(slices, name)
    array = _voxels(slices, name)
    series = DicomSeries(str(first.SeriesInstanceUID), tuple(s.path for s in slices))
    return Volume(array, affine, unit=unit, header=series, source=name, modality=modality)


def _headers(folder: Path) -> dict[str, list[Slice]]:
    """Headers of the DICOM images in a folder and below it, by series."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    series: dict[str, list[Slice]] = defaultdict(list)
    for path in files_below(folder):
        try:
            with path.open("rb") as file:
                header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
                room = path.stat().st_size - file.tell()
            uid = str(header.get("SeriesInstanceUID", ""))
        except InvalidDicomError:
            continue
        except (OSError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
            log.warning("%s: %s is passed over (%s).", folder.resolve().name, path.name, reason(error))
            continue
        if uid and "Rows" in header:
            series[uid].append(Slice(path, header, room))
    return dict(series)


def files_below(folder: Path) -> Iterator[Path]:
    """All files of a folder and its subfolders, in a fixed order; links to folders are not followed.

    Raises:
        InputError: more of them than a study has.
    """
    count = 0
    for parent, below, names in os.walk(folder):
        below.sort()
        for path in (Path(parent, name) for name in sorted(names)):
            if path.is_file():
                count += 1
                if count > MAX_FILES:
                    raise InputError(
                        f"{folder.resolve().name} holds more than {MAX_FILES:,} files; give the series' own folder."
                    )
                yield path


def _select(series: dict[str, list[Slice]], uid: str | None, name: str) -> list[Slice]:
    """The one series to read, refused by name where there is none or a choice."""
    if not series:
        raise InputError(f"{name} is a folder without DICOM images; give the series' own folder.")
    if uid is not None:
        if uid not in series:
            raise InputError(f"{name} holds no series {_word(uid)}; it holds {_listed(series)}.")
        chosen = series[uid]
    else:
        scans = [s for s in series.values() if s[0].header.get("Modality") in MODALITIES]
        scans = scans or list(series.values())
        if len(scans) > 1:
            raise InputError(
                f"{name} holds {len(scans)} series: {_listed(series)}; name one with --series UID (in Python "
                "read_volume(folder, series_uid=...)), or give its own folder."
            )
        chosen = scans[0]
    modality = chosen[0].header.get("Modality")
    if modality not in MODALITIES:
        raise InputError(f"{name} holds a series of modality {modality}; give CT or MR.")
    if any(int(s.header.get("NumberOfFrames", None) or 1) > 1 for s in chosen):
        raise InputError(f"{name} holds multi-frame DICOM; convert it to NIfTI first (dcm2niix).")
    if any(int(s.header.get("SamplesPerPixel", None) or 1) > 1 for s in chosen):
        raise InputError(f"{name} holds colour (RGB) DICOM images; give the original CT or MR series.")
    return chosen


def _listed(series: dict[str, list[Slice]]) -> str:
    """The series in words: what a person needs in order to choose."""
    entries = [
        f"{_word(uid)} ({_word(first.get('SeriesDescription', '')) or 'no description'}, "
        f"{_word(first.get('Modality', '')) or 'no modality'}, {len(s)} slice{'' if len(s) == 1 else 's'})"
        for uid, s in series.items()
        for first in [s[0].header]
    ]
    more = f"; and {len(entries) - MAX_LISTED} more" if len(entries) > MAX_LISTED else ""
    return "; ".join(entries[:MAX_LISTED]) + more


def _word(value: object) -> str:
    """A header's text for a message: one line, printable, at most 64 characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in ("" if value is None else str(value))).split())[:64]


def _check_whole(slices: list[Slice], name: str) -> None:
    """Refuse slices whose file ends before their pixels do: GDCM would fill those up without a word."""
    for path, header, room in slices:
        syntax = header.file_meta.get("TransferSyntaxUID")
        raw = syntax is not None and not (syntax.is_compressed or syntax.is_deflated)
        pixels = int(header.Rows) * int(header.Columns) * int(header.get("BitsAllocated", 16)) // 8
        if raw and room < pixels:
            raise InputError(f"{name}: slice {path.name} is truncated; copy or export the series again.")


def _unit(headers: list[Any], name: str) -> str:
    """The unit of CT: "HU" where its rescale leads there."""
    kinds = {str(h.get("RescaleType", "") or "HU") for h in headers}
    if any(h.get(tag, None) in (None, "") for h in headers for tag in ("RescaleSlope", "RescaleIntercept")):
        if any(h.get("RescaleType") != "HU" for h in headers):
            raise InputError(
                f"{name} is CT without RescaleSlope and RescaleIntercept, so its HU are unknown; "
                "export it again, or convert it to NIfTI in HU."
            )
        log.warning("%s: no RescaleSlope or RescaleIntercept; the stored values are taken as HU.", name)
    if kinds - {"HU", "US"}:  # US: unspecified, which scanners write for plain HU
        log.warning("%s: RescaleType is %s, not HU.", name, "/".join(sorted(kinds)))
        return "arbitrary"
    return "HU"


def _rescale(item: Slice, name: str) -> tuple[float, float]:
    """A slice's slope and intercept, 1 and 0 where it has none; refused where they make no intensity."""
    given = [item.header.get(tag, None) for tag in ("RescaleSlope", "RescaleIntercept")]
    try:
        slope, intercept = (
            default if v in (None, "") else float(v) for v, default in zip(given, (1.0, 0.0), strict=True)
        )
    except (TypeError, ValueError):
        slope = intercept = float("nan")
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise InputError(
            f"{name}: slice {item.path.name} has RescaleSlope {_word(given[0])} and RescaleIntercept "
            f"{_word(given[1])}, which give no intensities; export the series again."
        )
    return slope, intercept


def _voxels(slices: list[Slice], name: str) -> npt.NDArray[Any]:
    """(I, J, K) voxels with each slice's rescale applied: int16 where that is exact, else float32."""
    import SimpleITK as sitk

    rescales = {_rescale(s, name) for s in slices}
    exact = len(rescales) == 1 and all(value.is_integer() for value in next(iter(rescales)))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(s.path) for s in slices])
    reader.SetOutputPixelType(sitk.sitkInt32 if exact else sitk.sitkFloat32)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(
            f"{name} holds DICOM images that cannot be decoded ({reason(error)}); export them again."
        ) from error
    array = sitk.GetArrayViewFromImage(image).transpose(2, 1, 0)  # a view: astype below makes the one copy
    if exact and array.min() >= -(2**15) and array.max() < 2**15:
        return np.array(array, dtype=np.int16)
    return np.array(array, dtype=np.float32)
