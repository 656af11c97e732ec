"""The mask as an RT Structure Set (PS3.3 A.19): closed contours in the planes of the images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffugts.errors import InputError
from diffugts.export.codes import finding_code
from diffugts.export.source import (
    CHARACTER_SET,
    MANUFACTURER,
    MAY_BE_EMPTY,
    label,
    model_name,
    serial_number,
    series_number,
    source_images,
    version,
)
from diffugts.io.atomic import atomic_path
from diffugts.result import PromptResult
from diffugts.volume import Volume

COLOUR = [230, 25, 25]


def write_rtstruct(
    answer: PromptResult, volume: Volume, path: str | os.PathLike[str], about: Mapping[str, Any]
) -> Path:
    """Write the mask as an RTSTRUCT with one region of interest; returns the path.

    Contours run half way between the voxels inside and outside, so that a point-in-polygon test of the voxel
    centres gives the mask back. Holes are contours of their own: readers must count them by the even-odd rule.

    Args and errors as `write_seg`, without highdicom.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

    text = answer.understood.text
    if not answer.mask.any():
        raise InputError(f"Nothing was found for {text!r}, so there is no RTSTRUCT of it.")
    images = source_images(volume)
    now = datetime.now()
    date, clock = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    rt = Dataset()
    rt.SpecificCharacterSet = CHARACTER_SET
    rt.SOPClassUID, rt.SOPInstanceUID = RTStructureSetStorage, generate_uid()
    rt.InstanceCreationDate, rt.InstanceCreationTime = date, clock
    for tag in MAY_BE_EMPTY:
        setattr(rt, tag, images[0].get(tag))
    rt.StudyInstanceUID, rt.SeriesInstanceUID = images[0].StudyInstanceUID, generate_uid()
    rt.Modality, rt.SeriesNumber, rt.OperatorsName = "RTSTRUCT", series_number(images[0]), ""
    rt.SeriesDescription = label(f"{MANUFACTURER}: {text}")
    rt.Manufacturer, rt.ManufacturerModelName = MANUFACTURER, model_name(about)
    rt.SoftwareVersions, rt.DeviceSerialNumber = version(), serial_number(about)
    rt.StructureSetLabel, rt.StructureSetName = label(MANUFACTURER, 16), label(text)
    rt.StructureSetDate, rt.StructureSetTime = date, clock
    rt.InstanceNumber = 1
    rt.FrameOfReferenceUID = images[0].FrameOfReferenceUID
    rt.PositionReferenceIndicator = images[0].get("PositionReferenceIndicator", "")
    rt.ReferencedFrameOfReferenceSequence = [_frame_of_reference(images)]
    rt.StructureSetROISequence = [_roi(images[0].FrameOfReferenceUID, text, about)]
    rt.ROIContourSequence = [_contours(answer.mask, images)]
    rt.RTROIObservationsSequence = [_observation(answer)]
    rt.file_meta = FileMetaDataset()
    rt.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    rt.file_meta.MediaStorageSOPClassUID, rt.file_meta.MediaStorageSOPInstanceUID = rt.SOPClassUID, rt.SOPInstanceUID
    with atomic_path(path) as temporary:
        rt.save_as(temporary, enforce_file_format=True)
    return Path(path)


def outlines(plane: npt.NDArray[Any]) -> Iterator[npt.NDArray[np.float64]]:
    """Closed outlines of a (rows, columns) mask, each (points, 2): row and column in voxels, no point twice."""
    from skimage.measure import find_contours

    for line in find_contours(np.pad(plane, 1).astype(np.float32), 0.5):
        yield line[:-1] - 1.0


def _frame_of_reference(images: list[Any]) -> Any:
    """The series that the contours lie in, image by image."""
    from pydicom.dataset import Dataset

    frame, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = images[0].SeriesInstanceUID
    series.ContourImageSequence = [_reference(image) for image in images]
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management: retired, still what is used
    study.ReferencedSOPInstanceUID = images[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = images[0].FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _reference(image: Any) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    return item


def _roi(frame_uid: str, text: str, about: Mapping[str, Any]) -> Any:
    from pydicom.dataset import Dataset

    roi = Dataset()
    roi.ROINumber, roi.ReferencedFrameOfReferenceUID, roi.ROIName = 1, frame_uid, label(text)
    roi.ROIGenerationAlgorithm = "SEMIAUTOMATIC" if about.get("region_given") else "AUTOMATIC"
    roi.ROIGenerationDescription = label(f"{model_name(about)} {version()}")
    return roi


def _contours(mask: npt.NDArray[Any], images: list[Any]) -> Any:
    """The outlines in each image's own plane, in mm of the patient (LPS)."""
    from pydicom.dataset import Dataset

    contours = Dataset()
    contours.ROIDisplayColor, contours.ReferencedROINumber = COLOUR, 1
    contours.ContourSequence = []
    for k in np.flatnonzero(mask.any(axis=(0, 1))):
        image = images[int(k)]
        row, column = np.array(image.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
        row_mm, column_mm = (float(side) for side in image.PixelSpacing)
        corner = np.array(image.ImagePositionPatient, dtype=np.float64)
        for line in outlines(mask[:, :, k].T):
            points = corner + line[:, 1:] * row * column_mm + line[:, :1] * column * row_mm
            item = Dataset()
            item.ContourImageSequence = [_reference(image)]
            item.ContourGeometricType = "CLOSED_PLANAR"
            item.NumberOfContourPoints = len(points)
            item.ContourData = [f"{value:.4f}" for value in points.ravel()]  # DS: at most 16 characters
            contours.ContourSequence.append(item)
    return contours


def _observation(answer: PromptResult) -> Any:
    """What the region is; its interpreted type stays empty, since calling it a target is for a physician."""
    from pydicom.dataset import Dataset

    code = finding_code(answer.understood)
    coded = Dataset()
    coded.CodeValue, coded.CodingSchemeDesignator, coded.CodeMeaning = code.value, code.scheme_designator, code.meaning
    item = Dataset()
    item.ObservationNumber, item.ReferencedROINumber = 1, 1
    item.RTROIIdentificationCodeSequence = [coded]
    item.RTROIInterpretedType, item.ROIInterpreter = "", ""
    return item
