"""DICOM series of random voxels, right in every header unless a test says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

INTERCEPT = -1024


def write_series(
    folder: Path,
    count: int = 10,
    modality: str = "CT",
    step: tuple[float, float, float] = (0.0, 0.0, 2.5),
    uid: str | None = None,
    seed: int = 0,
    voxels: npt.NDArray[Any] | None = None,
    **changes: Any,
) -> tuple[npt.NDArray[np.uint16], list[Path]]:
    """Write a series of slices in shuffled files; returns its (I, J, K) stored values and the files in order.

    Args:
        voxels: (I, J, K) in HU; random where not given.
        changes: attributes of every slice, or functions of k that make them; None deletes.
    """
    folder.mkdir(exist_ok=True, parents=True)
    uid = uid or generate_uid()
    rng = np.random.default_rng(seed)
    if voxels is None:
        stored = rng.integers(0, 2000, (9, 12, count)).astype(np.uint16)
    else:
        stored = (voxels.astype(int) - INTERCEPT).astype(np.uint16)
        count = stored.shape[2]
    names = rng.permutation(count)
    slices = []
    for k in range(count):
        item = _slice(stored[:, :, k], modality)
        item.SeriesInstanceUID, item.SeriesDescription = uid, f"series {seed}"
        item.InstanceNumber = count - k
        item.ImagePositionPatient = [float(v) for v in np.array([-10.0, 20.0, 5.0]) + k * np.array(step)]
        for key, value in changes.items():
            if value is None:
                delattr(item, key)
            else:
                setattr(item, key, value(k) if callable(value) else value)
        path = folder / f"{uid[-6:]}_{names[k]:03d}"
        item.save_as(path, enforce_file_format=True)
        slices.append(path)
    return stored, slices


def _slice(pixels: npt.NDArray[np.uint16], modality: str) -> pydicom.Dataset:
    """One image with what all slices share; `pixels` is (columns, rows)."""
    item = pydicom.Dataset()
    item.file_meta = FileMetaDataset()
    item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    item.SOPClassUID = MRImageStorage if modality == "MR" else CTImageStorage
    item.SOPInstanceUID = generate_uid()
    item.file_meta.MediaStorageSOPClassUID, item.file_meta.MediaStorageSOPInstanceUID = (
        item.SOPClassUID,
        item.SOPInstanceUID,
    )
    item.Modality, item.StudyInstanceUID, item.FrameOfReferenceUID = modality, "1.2.3", "1.2.3.9"
    item.PatientName, item.PatientID, item.StudyDate, item.StudyTime = "Nobody^Invented", "42", "20260102", "101112"
    item.PatientBirthDate, item.PatientSex, item.StudyID, item.AccessionNumber = "", "O", "7", ""
    item.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    item.PixelSpacing = [1.5, 0.75]  # between rows, between columns
    item.Rows, item.Columns = pixels.shape[1], pixels.shape[0]
    item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
    item.BitsAllocated = item.BitsStored = 16
    item.HighBit, item.PixelRepresentation = 15, 0
    item.RescaleSlope, item.RescaleIntercept = 1, INTERCEPT
    item.PixelData = pixels.T.tobytes()
    return item
