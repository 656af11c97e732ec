"""DICOM in: series found and chosen, voxels and grid right, a sentence for each way to be wrong."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from dicom_series import write_series
from diffugts.errors import InputError
from diffugts.io import dicom, read_volume, write_nifti
from diffugts.io.dicom import DicomSeries


def test_dicom_series_in_hu_on_its_grid(tmp_path):
    stored, slices = write_series(tmp_path / "ct")
    (tmp_path / "ct" / "README.txt").write_text("not DICOM")
    volume = read_volume(tmp_path / "ct")
    assert (volume.unit, volume.modality, volume.source) == ("HU", "ct", "ct")
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, stored.astype(int) - 1024)
    expected = [[-0.75, 0, 0, 10], [0, -1.5, 0, -20], [0, 0, 2.5, 5], [0, 0, 0, 1]]
    assert np.allclose(volume.affine, expected)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in slices])
    reader.Execute()
    out = write_nifti(volume.array, volume, tmp_path / "out.nii")
    image = sitk.ReadImage(str(out))
    assert np.allclose(image.GetOrigin(), (-10, 20, 5))
    assert np.allclose(image.GetSpacing(), (0.75, 1.5, 2.5))


def test_dicom_sagittal_mr_with_fractional_rescale(tmp_path):
    stored, _ = write_series(
        tmp_path / "mr", modality="MR", step=(3.0, 0, 0),
        ImageOrientationPatient=[0, 1, 0, 0, 0, -1], RescaleSlope=0.5, RescaleIntercept=0,
    )  # fmt: skip
    volume = read_volume(tmp_path / "mr")
    assert (volume.unit, volume.modality, volume.array.dtype) == ("arbitrary", "mr", np.float32)
    # the normal points to the left's opposite, so the stack is read from the far end
    assert np.allclose(volume.array, stored[:, :, ::-1] / 2)
    point = volume.affine @ [0, 0, volume.shape[2] - 1, 1]
    assert np.allclose(point[:3], [10, -20, 5])


def test_dicom_slices_may_differ_in_rescale(tmp_path):
    stored, _ = write_series(tmp_path / "mr", modality="MR", RescaleSlope=lambda k: 1 + k / 4, RescaleIntercept=0)
    volume = read_volume(tmp_path / "mr")
    assert np.allclose(volume.array, stored * (1 + np.arange(10) / 4))


def test_dicom_choice_of_series(tmp_path):
    write_series(tmp_path / "both", uid="1.2.3.100001", seed=1)
    second, _ = write_series(tmp_path / "both" / "below", uid="1.2.3.100002", seed=2, SeriesDescription="late\tphase ")
    listed = r"1\.2\.3\.100001 \(series 1, CT, 10 slices\); 1\.2\.3\.100002 \(late phase, CT, 10 slices\)"
    with pytest.raises(InputError, match=f"both holds 2 series: {listed}; name one with --series UID"):
        read_volume(tmp_path / "both")
    volume = read_volume(tmp_path / "both", series_uid="1.2.3.100002")
    assert np.array_equal(volume.array, second.astype(int) - 1024)
    with pytest.raises(InputError, match="no series 9; it holds"):
        read_volume(tmp_path / "both", series_uid="9")


def test_a_long_list_of_series_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom, "MAX_LISTED", 2)
    for n in range(4):
        write_series(tmp_path / "study" / str(n), count=1, uid=f"1.2.3.{n}", SeriesDescription=None)
    with pytest.raises(InputError, match=r"4 series: 1\.2\.3\.0 \(no description, CT, 1 slice\); 1.*; and 2 more"):
        read_volume(tmp_path / "study")


def test_a_folder_of_too_many_files_is_not_searched(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom, "MAX_FILES", 9)
    write_series(tmp_path / "ct" / "a" / "b", count=10)
    with pytest.raises(InputError, match="ct holds more than 9 files; give the series' own folder"):
        read_volume(tmp_path / "ct")


def test_a_volume_knows_the_file_of_each_slice(tmp_path):
    _, slices = write_series(tmp_path / "ct", uid="1.2.3.5")
    _, upside_down = write_series(tmp_path / "down", step=(0, 0, -2.5))
    volume = read_volume(tmp_path / "ct")
    assert volume.header == DicomSeries("1.2.3.5", tuple(slices))
    assert read_volume(tmp_path / "down").header.files == tuple(reversed(upside_down))


def test_dicom_passes_over_what_is_no_scan(tmp_path):
    stored, _ = write_series(tmp_path / "ct")
    write_series(tmp_path / "ct", count=1, modality="SEG", seed=3)
    assert np.array_equal(read_volume(tmp_path / "ct").array, stored.astype(int) - 1024)


def _tilt(k):
    return [-10.0, 20.0 + 0.6 * k, 5.0 + 2.5 * k]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modality": "PT"}, "modality PT"),
        ({"NumberOfFrames": 5}, "multi-frame"),
        ({"SamplesPerPixel": 3}, "RGB"),
        ({"ImagePositionPatient": _tilt}, "tilted gantry .13.5 degrees"),
        ({"ImagePositionPatient": lambda k: [0, 0, 2.5 * max(k, 1)]}, "two slices at the same position"),
        ({"ImagePositionPatient": lambda k: [0, 0, 0]}, "two slices at the same position"),
        ({"ImagePositionPatient": lambda k: [0, 0, 2.5 * k + (k > 4)]}, "uneven slices"),
        ({"ImagePositionPatient": lambda k: [30.0 * (k == 4), 0, 2.5 * k]}, "one straight line"),
        ({"ImagePositionPatient": None}, "no usable ImagePositionPatient"),
        ({"ImageOrientationPatient": None}, "no usable ImageOrientationPatient"),
        ({"PixelSpacing": None}, "no usable PixelSpacing"),
        ({"PixelSpacing": [0, 0]}, "zero voxel spacing"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "."),
        ({"ImageOrientationPatient": [1, 0, 0, 0.5, 1, 0]}, "."),
        (
            {"ImageOrientationPatient": lambda k: [1, 0, 0, 0, 1, 0] if k else [0, 1, 0, 0, 0, 1]},
            "different ori",
        ),
        ({"RescaleSlope": None, "RescaleIntercept": None}, "without RescaleSlope"),
        ({"RescaleSlope": 0}, "RescaleSlope 0.0 and RescaleIntercept -1024.0, which give no intensities"),
        ({"RescaleSlope": lambda k: 1 if k else 0}, "RescaleSlope 0.0 and"),
        ({"modality": "MR", "RescaleSlope": 0}, "RescaleSlope 0.0 and"),
        ({"count": 1}, "single 2D slice"),
        ({"count": 5}, "too small"),
    ],
)
def test_bad_dicom_gets_a_sentence(tmp_path, changes, message):
    write_series(tmp_path / "ct", **changes)
    with pytest.raises(InputError, match=message) as caught:
        read_volume(tmp_path / "ct")
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.995])
def test_dicom_truncated_slice(tmp_path, kept):
    _, slices = write_series(tmp_path / "ct", Rows=120, Columns=90, PixelData=b"\1\2" * 120 * 90)
    content = slices[4].read_bytes()
    slices[4].write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(InputError, match=f"{slices[4].name} is truncated"):
        read_volume(tmp_path / "ct")


@pytest.mark.parametrize(
    ("attribute", "written", "read", "message"),
    [
        ("ImagePositionPatient", [1.25, 1.25, 1.25], rb"nan \nan \nan ", "no usable ImagePositionPatient"),
        ("ImageOrientationPatient", [1.25] * 6, rb"inf \inf \inf \inf \inf \inf ", "no usable ImageOrientationPatient"),
        ("PixelSpacing", [1.25, 1.25], rb"nan \1.25", "no usable PixelSpacing"),
        ("RescaleIntercept", 1.25, rb"nan ", "RescaleSlope 1.0 and RescaleIntercept nan, which give no intensities"),
    ],
)
def test_dicom_nan_geometry(tmp_path, attribute, written, read, message):
    """pydicom refuses to write NaN as a decimal string, other software does not."""
    _, slices = write_series(tmp_path / "ct", **{attribute: written})
    good = b"\\".join([b"1.25"] * read.count(b"\\")) + (b"\\1.25" if b"\\" in read else b"1.25")
    for path in slices:
        path.write_bytes(path.read_bytes().replace(good, read))
    with pytest.raises(InputError, match=message):
        read_volume(tmp_path / "ct")


def test_a_slice_that_is_there_twice_is_named(tmp_path):
    _, slices = write_series(tmp_path / "ct")
    shutil.copy(slices[3], tmp_path / "ct" / "copy")
    with pytest.raises(InputError, match=f"two slices at the same position .*{slices[3].name}"):
        read_volume(tmp_path / "ct")


@pytest.mark.parametrize(("lost", "count"), [([4], 1), ([4, 5], 2)])
def test_dicom_missing_slices_are_counted(tmp_path, lost, count):
    _, slices = write_series(tmp_path / "ct", count=12)
    for k in lost:
        slices[k].unlink()
    with pytest.raises(
        InputError,
        match=rf"about {count} slice\(s\) missing.*{slices[3].name}.*{slices[4 + count].name}",
    ):
        read_volume(tmp_path / "ct")


def test_dicom_without_rescale_that_says_hu(tmp_path, caplog):
    stored, _ = write_series(tmp_path / "ct", RescaleSlope=None, RescaleIntercept=None, RescaleType="HU")
    with caplog.at_level(logging.WARNING):
        volume = read_volume(tmp_path / "ct")
    assert volume.unit == "HU"
    assert np.array_equal(volume.array, stored)
    assert "taken as HU" in caplog.text


def test_dicom_with_another_quantity_is_not_called_hu(tmp_path):
    write_series(tmp_path / "ct", RescaleType="MGML")
    assert read_volume(tmp_path / "ct").unit == "arbitrary"


def test_a_folder_without_dicom(tmp_path):
    (tmp_path / "scan.nii").write_bytes(b"x")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(InputError, match="without DICOM"):
        read_volume(tmp_path)
