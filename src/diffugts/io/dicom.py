"""One DICOM series from a folder: pydicom reads and checks the headers, SimpleITK (GDCM) the voxels."""

from __future__ import annotations

import logging
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..volume import Volume
from .checks import MAX_VOXELS, check_shape, reason
from .itk import LPS_TO_RAS

log = logging.getLogger(__name__)

MODALITIES = {"CT": "ct", "MR": "mr"}

TILT_TOLERANCE = 1e-2
"""Sine of the angle between the way slices are stacked and their normal; a tilted gantry has 0.1 and more."""

GAP_TOLERANCE = 0.1
"""Slice distances may differ by this part of their median, or by as many mm: headers round positions."""

_TAGS = [
    *("Modality", "SeriesInstanceUID", "SeriesDescription", "NumberOfFrames", "SamplesPerPixel"),
    *("Rows", "Columns", "BitsAllocated", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType"),
]


def read_dicom(folder: Path, series_uid: str | None = None, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read the CT or MR series in a folder; CT comes in HU.

    Args:
        folder: holds the slices, in any order and under any names; other files are passed over.
        series_uid: SeriesInstanceUID of the series to take where the folder holds several.

    Raises:
        InputError: no or several series, another modality, multi-frame files, slices missing, doubled or
            uneven, a tilted gantry, geometry that is missing or NaN, CT without rescale.
    """
    name = folder.resolve().name
    slices = _select(_headers(folder), series_uid, name)
    affine, slices = _geometry(slices, name)
    first = slices[0].header
    check_shape((int(first.Columns), int(first.Rows), len(slices)), name, max_voxels)
    modality = MODALITIES[first.Modality]
    unit = _unit([s.header for s in slices], name) if modality == "ct" else "arbitrary"
    _check_whole(slices, name)
    array = _voxels(slices, name)
    return Volume(array, affine, unit=unit, source=name, modality=modality)


class Slice(NamedTuple):
    """One image file: its header, and the bytes from where its pixels start to the end of the file."""

    path: Path
    header: Any
    room: int


def _headers(folder: Path) -> dict[str, list[Slice]]:
    """Headers of the DICOM images in a folder, by series."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    series: dict[str, list[Slice]] = defaultdict(list)
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
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


def _select(series: dict[str, list[Slice]], uid: str | None, name: str) -> list[Slice]:
    """The one series to read, refused by name where there is none or a choice."""
    if not series:
        raise InputError(f"{name} is a folder without DICOM images; give the series' own folder.")
    listed = "; ".join(
        f"{key} ({first.get('Modality', '?')}, {len(s)} slices, {first.get('SeriesDescription', '')})"
        for key, s in series.items()
        for first in [s[0].header]
    )
    if uid is not None:
        if uid not in series:
            raise InputError(f"{name} holds no series {uid}; it holds {listed}.")
        chosen = series[uid]
    else:
        scans = [s for s in series.values() if s[0].header.get("Modality") in MODALITIES]
        scans = scans or list(series.values())
        if len(scans) > 1:
            raise InputError(f"{name} holds {len(scans)} series: {listed}; keep one per folder, or pass series_uid.")
        chosen = scans[0]
    modality = chosen[0].header.get("Modality")
    if modality not in MODALITIES:
        raise InputError(f"{name} holds a series of modality {modality}; give CT or MR.")
    if any(int(s.header.get("NumberOfFrames", None) or 1) > 1 for s in chosen):
        raise InputError(f"{name} holds multi-frame DICOM; convert it to NIfTI first (dcm2niix).")
    if any(int(s.header.get("SamplesPerPixel", None) or 1) > 1 for s in chosen):
        raise InputError(f"{name} holds colour (RGB) DICOM images; give the original CT or MR series.")
    return chosen


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


def _geometry(slices: list[Slice], name: str) -> tuple[npt.NDArray[np.float64], list[Slice]]:
    """The series' affine (RAS+ mm) and its slices in order along their normal."""
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


def _voxels(slices: list[Slice], name: str) -> npt.NDArray[Any]:
    """(I, J, K) voxels with each slice's rescale applied: int16 where that is exact, else float32."""
    import SimpleITK as sitk

    headers = [s.header for s in slices]
    rescales = {(float(h.get("RescaleSlope") or 1), float(h.get("RescaleIntercept") or 0)) for h in headers}
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
