"""Files in and out: right grid and values, and a sentence for everything that cannot be used."""

from __future__ import annotations

import errno
import gzip
import logging
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from diffugts.errors import InputError
from diffugts.io import atomic_path, atomic_write, case_name, from_array, read_mask, read_volume, write_nifti
from diffugts.volume import Volume

FLIP = np.array([-1.0, -1.0, 1.0])


def save(path, array, sform, codes=(1, 1), qform=None, units="mm", image_class=nib.Nifti1Image):
    """Write a NIfTI file with chosen forms and codes (qform, sform)."""
    image = image_class(np.asarray(array), None)
    image.header.set_xyzt_units(units)
    image.set_sform(sform, code=codes[1])
    image.set_qform(sform if qform is None else qform, code=codes[0])
    nib.save(image, path)
    return path


def grid_of(path):
    """What SimpleITK says of a file's grid."""
    image = sitk.ReadImage(str(path))
    return image.GetSize(), image.GetOrigin(), image.GetSpacing(), image.GetDirection()


@pytest.mark.parametrize("degrees", [0, 25])
@pytest.mark.parametrize(("codes", "shift"), [((1, 1), 0), ((0, 2), 0), ((1, 0), 0), ((1, 2), 3.0), ((2, 1), 3.0)])
def test_nifti_grid_is_kept_to_the_bit(tmp_path, make_volume, orientation, degrees, codes, shift):
    made = make_volume(orientation, spacing=(0.7, 1.1, 3.3), degrees=degrees)
    qform = made.affine.copy()
    qform[0, 3] += shift
    scan = save(tmp_path / "scan.nii", made.array, made.affine, codes, qform)
    volume = read_volume(scan)
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, made.array)

    mask = np.zeros(volume.shape, bool)
    mask[2, 7, 5] = True
    out = write_nifti(mask, volume, tmp_path / "mask.nii")
    source, written = nib.load(scan), nib.load(out)
    assert written.shape == source.shape
    assert written.get_data_dtype() == np.uint8
    assert written.affine.tobytes() == source.affine.tobytes() == volume.affine.tobytes()
    for field in ("qform_code", "sform_code", "xyzt_units", "pixdim", "quatern_b", "srow_x", "qoffset_x"):
        assert written.header[field].tobytes() == source.header[field].tobytes(), field
    assert np.array_equal(np.asarray(written.dataobj), mask)
    assert grid_of(out) == grid_of(scan)
    assert np.array_equal(read_mask(out, volume), mask)
    if not shift:  # with two different forms each reader has its own truth; without, one point is one point
        point = sitk.ReadImage(str(out)).TransformIndexToPhysicalPoint((2, 7, 5))
        assert np.allclose(np.array(point) * FLIP, made.affine[:3, :3] @ [2, 7, 5] + made.affine[:3, 3], atol=1e-3)


@pytest.mark.parametrize(("extension", "degrees"), [(".nrrd", 25), (".mha", 25), (".nhdr", 0), (".mhd", 0)])
def test_nrrd_and_metaimage_both_ways(tmp_path, make_volume, extension, degrees, orientation):
    made = make_volume(orientation, spacing=(0.7, 1.1, 3.3), degrees=degrees)
    image = sitk.GetImageFromArray(made.array.transpose(2, 1, 0))
    image.SetOrigin(FLIP * made.affine[:3, 3])
    image.SetSpacing(made.spacing)
    image.SetDirection((FLIP[:, None] * made.affine[:3, :3] / made.spacing).ravel())
    scan = tmp_path / f"scan{extension}"
    sitk.WriteImage(image, str(scan))

    volume = read_volume(scan)
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, made.array)
    assert np.allclose(volume.affine, made.affine, atol=1e-5)
    out = write_nifti(made.array > 0, volume, tmp_path / "mask.nii.gz")
    assert np.allclose(nib.load(out).affine, made.affine, atol=1e-4)
    for here, there in zip(grid_of(out), grid_of(scan), strict=True):
        assert np.allclose(here, there, atol=1e-4)
    assert np.array_equal(read_mask(out, volume), made.array > 0)


@pytest.mark.parametrize(
    ("dtype", "slope", "intercept", "expected"),
    [
        (np.int16, 1, 0, np.int16),
        (np.uint16, 1, -1024, np.int16),
        (np.uint8, 2, 5, np.int16),
        (np.int16, 0.5, -10, np.float32),
        (np.uint16, 1, 60000, np.float32),
        (">i2", 1, 0, np.int16),
        (np.float64, 1, 0, np.float32),
        (np.float32, 3, 1, np.float32),
    ],
)
def test_slope_and_dtype(tmp_path, dtype, slope, intercept, expected):
    raw = np.random.default_rng(0).integers(0, 200, (8, 9, 10)).astype(dtype)
    image = nib.Nifti1Image(raw, np.eye(4), nib.Nifti1Header(endianness=">" if dtype == ">i2" else "<"))
    image.header.set_data_dtype(raw.dtype)
    path = tmp_path / "scan.nii.gz"
    nib.save(image, path)
    content = bytearray(gzip.decompress(path.read_bytes()))
    order = ">f4" if dtype == ">i2" else "<f4"
    content[112:120] = np.array([slope, intercept], order).tobytes()  # scl_slope, scl_inter
    path.write_bytes(gzip.compress(bytes(content)))
    volume = read_volume(path)
    assert volume.array.dtype == expected
    assert volume.array.dtype.isnative
    assert np.allclose(volume.array, raw.astype(float) * slope + intercept)
    out = write_nifti(volume.array, volume, tmp_path / "out.nii.gz")
    assert (nib.load(out).dataobj.slope, nib.load(out).dataobj.inter) == (1, 0)
    assert np.array_equal(read_volume(out).array, volume.array)


@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
def test_trailing_singletons_go_and_private_text_stays_behind(tmp_path, image_class):
    array = np.random.default_rng(0).integers(0, 99, (8, 9, 10, 1, 1)).astype(np.int16)
    image = image_class(array, np.eye(4))
    image.header["descrip"] = b"Jane Doe"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    image.set_sform(np.eye(4), 1)
    nib.save(image, tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    assert volume.shape == (8, 9, 10)
    out = write_nifti(volume.array, volume, tmp_path / "out.nii")
    assert type(nib.load(out)) is image_class
    assert b"Jane" not in out.read_bytes()


def test_the_sform_wins_and_the_user_is_told(tmp_path, make_volume, caplog):
    made = make_volume()
    qform = made.affine.copy()
    qform[1, 3] += 5
    with caplog.at_level(logging.WARNING):
        volume = read_volume(save(tmp_path / "scan.nii", made.array, made.affine, qform=qform))
        assert "differ by up to 5.0 mm" in caplog.text
        caplog.clear()
        read_volume(save(tmp_path / "same.nii", made.array, made.affine))
    assert np.allclose(volume.affine, made.affine)
    assert not caplog.text


NOISE = np.random.default_rng(0).integers(0, 500, (8, 9, 10)).astype(np.int16)
SHEAR = np.array([[1, 0.4, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
SINGULAR = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def spoiled(value):
    array = NOISE.astype(np.float32)
    array[3, 4, 5] = value
    return array


@pytest.mark.parametrize(
    ("array", "affine", "message"),
    [
        pytest.param(spoiled(np.nan), np.eye(4), "1 voxels that are NaN or infinite", id="nan"),
        pytest.param(spoiled(-np.inf), np.eye(4), "NaN or infinite", id="inf"),
        pytest.param(np.full((8, 8, 8), 3), np.eye(4), "constant", id="constant"),
        pytest.param(NOISE[0], np.eye(4), "2D slice", id="2d"),
        pytest.param(NOISE[:, :, :1], np.eye(4), "2D slice", id="one slice"),
        pytest.param(np.stack([NOISE] * 3, -1), np.eye(4), r"4 dimensions \(8, 9, 10, 3\)", id="4d"),
        pytest.param(NOISE[:5], np.eye(4), "too small", id="tiny"),
        pytest.param(NOISE[:0], np.eye(4), "empty axis", id="empty"),
        pytest.param(NOISE.astype(complex), np.eye(4), "complex", id="complex"),
        pytest.param(np.zeros((8, 8, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")]), np.eye(4), "RGB", id="rgb"),
        pytest.param(NOISE.astype(str), np.eye(4), "voxels of type", id="text"),
        pytest.param(NOISE, SHEAR, "sheared", id="sheared"),
        pytest.param(NOISE, SINGULAR, "singular", id="singular"),
        pytest.param(NOISE, np.diag([1, 0, 1, 1]), "zero voxel spacing", id="zero spacing"),
        pytest.param(NOISE, np.diag([1, np.nan, 1, 1]), "affine", id="nan affine"),
        pytest.param(NOISE, np.eye(3), r"\(4, 4\) affine", id="3x3"),
        pytest.param(NOISE, np.ones((4, 4)), "affine row", id="last row"),
        pytest.param(np.broadcast_to(np.int8(1), (2048, 1024, 1024)), np.eye(4), "more than the limit", id="huge"),
    ],
)
def test_bad_arrays_get_a_sentence(array, affine, message):
    with pytest.raises(InputError, match=message) as caught:
        from_array(array, affine, source="mine")
    text = str(caught.value)
    assert text.startswith("mine ")
    assert text.count("\n") == 0
    assert text.endswith(".")


def test_good_arrays_pass():
    volume = from_array(NOISE.astype(np.float64)[..., None], np.eye(4).tolist(), unit="HU")
    assert (volume.shape, volume.array.dtype, volume.unit) == ((8, 9, 10), np.float32, "HU")


def _nifti_bytes(shape=(8, 9, 10), dtype=np.int16):
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.dtype(dtype))
    header.set_sform(np.eye(4), 1)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    return header.binaryblock + b"\0" * 4


BAD_FILES = {
    "missing.nii": (None, "does not exist"),
    "empty.nii.gz": (b"", "is empty"),
    "scan.txt": (b"text", "known type"),
    "scan.dcm": (b"text", "folder of DICOM"),
    "text.nii": (b"this is no image" * 40, "NIfTI"),
    "text.nii.gz": (b"this is no gzip" * 40, "NIfTI"),
    "claims.nii": (_nifti_bytes((30000, 30000, 20000)), "more than the limit"),
    "claims.nii.gz": (gzip.compress(_nifti_bytes((800, 800, 800))), "header claims"),
    "short.nii": (_nifti_bytes() + NOISE.tobytes()[:-9], "truncated"),
    "cut.nii.gz": (gzip.compress(_nifti_bytes() + NOISE.tobytes())[:-300], "truncated or damaged"),
    "cut-early.nii.gz": (gzip.compress(_nifti_bytes() + NOISE.tobytes())[:40], "NIfTI"),
    "4d.nii": (_nifti_bytes((8, 9, 10, 4)) + NOISE.tobytes() * 4, r"\(8, 9, 10, 4\).*slicer"),
    "rgb.nii": (_nifti_bytes(dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]) + NOISE.tobytes() * 2, "RGB"),
    "complex.nii": (_nifti_bytes(dtype=np.complex64) + NOISE.tobytes() * 4, "complex"),
    "negative.nii": (_nifti_bytes((8, 9, 10))[:42] + b"\xf8\xff" + _nifti_bytes()[44:], "."),
    "text.nrrd": (b"NRRD0004\nnonsense", "no readable image"),
    "text.mha": (b"nonsense = 1\n", "readable image"),
    "claims.nrrd": (
        b"NRRD0004\ntype: short\ndimension: 3\nspace: LPS\nsizes: 9000 9000 9000\n"
        b"space directions: (1,0,0) (0,1,0) (0,0,1)\nendian: little\nencoding: gzip\n\n",
        "more than the limit",
    ),
    "short.nrrd": (
        b"NRRD0004\ntype: short\ndimension: 3\nspace: LPS\nsizes: 64 64 64\n"
        b"space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nendian: little\nencoding: raw\n\n"
        + bytes(4000),
        "readable image",
    ),
    "short.mha": (
        b"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        b"CompressedData = False\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\n"
        b"ElementSpacing = 1 1 1\nDimSize = 64 64 64\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
        + b"\1"
        * 4000,
        "readable image|truncated",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_get_a_sentence(tmp_path, name):
    content, message = BAD_FILES[name]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_volume(path)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"codes": (0, 0)}, "code 0.*set_sform"),
        ({"units": "meter"}, "lengths in meter"),
        ({"units": "micron"}, "lengths in micron"),
        ({"sform": SHEAR, "codes": (0, 1)}, "sheared"),
        ({"sform": SINGULAR, "codes": (0, 1)}, "singular"),
        ({"sform": np.diag([0, 1.0, 1, 1]), "codes": (0, 1)}, "zero voxel spacing"),
    ],
)
def test_bad_nifti_headers(tmp_path, kwargs, message):
    settings = {"sform": np.eye(4), **kwargs}
    path = save(tmp_path / "scan.nii", NOISE, qform=np.eye(4), **settings)
    with pytest.raises(InputError, match=message):
        read_volume(path)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (sitk.Image([9, 9], sitk.sitkInt16), "2D slice"),
        (sitk.Image([9, 9, 9], sitk.sitkVectorUInt8, 3), "3 values per voxel"),
        (sitk.Image([9, 9, 9, 4], sitk.sitkInt16), "4 dimensions"),
        (sitk.Image([9, 9, 9], sitk.sitkInt16), "constant"),
    ],
)
def test_bad_metaimages(tmp_path, image, message):
    sitk.WriteImage(image, str(tmp_path / "scan.mha"))
    with pytest.raises(InputError, match=message):
        read_volume(tmp_path / "scan.mha")


def test_an_nrrd_without_a_space_is_warned_of(tmp_path, caplog):
    head = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 8 9 10\nendian: little\nencoding: raw\n\n"
    (tmp_path / "scan.nrrd").write_bytes(head + NOISE.tobytes(order="F"))
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(read_volume(tmp_path / "scan.nrrd").array, NOISE)
    assert "names no space" in caplog.text


# masks


@pytest.mark.parametrize(
    "array",
    [
        (NOISE > 250).astype(np.uint8) * 7,
        NOISE > 250,
        (NOISE > 250).astype(np.float32) * 0.5,
        (NOISE > 250)[..., None],
        np.zeros(NOISE.shape, np.uint8),
    ],
)
@pytest.mark.parametrize("as_file", [False, True])
def test_masks_from_arrays_and_files(tmp_path, array, as_file):
    like = Volume(NOISE, np.eye(4))
    given_ = array
    if as_file:
        given_ = save(
            tmp_path / "mask.nii.gz",
            array.astype(array.dtype if array.dtype != bool else np.uint8),
            np.eye(4),
        )
    mask = read_mask(given_, like)
    assert mask.dtype == bool
    assert np.array_equal(mask, array.reshape(NOISE.shape) > 0)


@pytest.mark.parametrize(
    ("array", "affine", "message"),
    [
        (NOISE[1:], np.eye(4), r"\(7, 9, 10\) but scan is \(8, 9, 10\)"),
        (NOISE, np.diag([1, 1, 1.01, 1]), "mm away"),
        (NOISE, np.diag([-1, 1, 1, 1.0]), "mm away"),
        (spoiled(np.nan), np.eye(4), "NaN"),
    ],
)
def test_bad_masks(tmp_path, array, affine, message):
    like = Volume(NOISE, np.eye(4), source="scan")
    with pytest.raises(InputError, match=message):
        read_mask(save(tmp_path / "mask.nii", array, affine), like)


# writing


def test_atomic_write_and_replace(tmp_path):
    target = tmp_path / "new" / "folder" / "table.csv"
    assert atomic_write(target, "a,é\n") == target
    assert target.read_bytes() == "a,é\n".encode()
    atomic_write(target, b"\x00")
    assert target.read_bytes() == b"\x00"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), InputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ValueError("other"), ValueError),
    ],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, failure, raised):
    target = atomic_write(tmp_path / "file.nii.gz", "old")

    def fail():
        with atomic_path(target) as temporary:
            assert temporary.name.endswith(".nii.gz")
            assert temporary.parent == target.parent
            temporary.write_text("half")
            raise failure

    with pytest.raises(raised, match="No space left" if raised is InputError else None):
        fail()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file.nii.gz", "old")]


def test_a_nifti_that_fails_half_way_is_not_left(tmp_path, monkeypatch):
    def to_filename(self, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nib.Nifti1Image, "to_filename", to_filename)
    with pytest.raises(InputError, match=r"out\.nii cannot be written \(No space left on device\)"):
        write_nifti(NOISE, Volume(NOISE, np.eye(4)), tmp_path / "out.nii")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        atomic_write(tmp_path / "file" / "out.csv", "x")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="cannot be written"):
            atomic_write(tmp_path / "out.csv", "x")
    finally:
        tmp_path.chmod(0o700)


def test_written_files_are_the_same_bits_and_readable_by_others(tmp_path):
    like = Volume(NOISE, np.eye(4))
    first = write_nifti(NOISE, like, tmp_path / "a" / "out.nii.gz")
    second = write_nifti(NOISE, like, tmp_path / "b" / "out.nii.gz")
    assert first.read_bytes() == second.read_bytes()
    umask = os.umask(0)
    os.umask(umask)
    assert first.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize(
    ("dtype", "wanted", "expected"),
    [
        (bool, None, np.uint8),
        (np.float64, None, np.float32),
        (np.int64, None, np.int32),
        (np.int16, None, np.int16),
        (np.float32, np.uint8, np.uint8),
        (bool, np.float32, np.float32),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_types_on_disk(tmp_path, dtype, wanted, expected, order):
    array = np.asarray((NOISE % 200) * (0.999 if wanted == np.uint8 else 1), dtype=dtype, order=order)
    out = nib.load(write_nifti(array, Volume(NOISE, np.eye(4)), tmp_path / "out.nii.gz", dtype=wanted))
    assert out.get_data_dtype() == expected
    assert np.array_equal(np.asarray(out.dataobj), np.rint(array) if wanted == np.uint8 else array)


@pytest.mark.parametrize(
    ("array", "name", "dtype", "message"),
    [
        (NOISE[1:], "out.nii", None, r"array is \(7, 9, 10\)"),
        (NOISE, "out.nrrd", None, "must end in"),
        (NOISE, "out.nii", np.uint8, "do not fit uint8"),
        (spoiled(np.nan), "out.nii", np.uint8, "do not fit uint8"),
        (NOISE - 9.0, "out.nii", np.uint16, "do not fit uint16"),
        (NOISE.astype(np.int64) << 40, "out.nii", None, "do not fit int32"),
    ],
)
def test_bad_writes(tmp_path, array, name, dtype, message):
    with pytest.raises(InputError, match=message):
        write_nifti(array, Volume(NOISE, np.eye(4), source="scan"), tmp_path / name, dtype)
    assert not list(tmp_path.iterdir())


# names


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/data/scan.nii.gz", "scan"),
        ("scan.v2.NII.GZ", "scan.v2"),
        ("a b/ö (1).nrrd", "o_1"),
        ("case/", "case"),
        (".hidden.nii", "hidden"),
        ("con.nii", "con_"),
        ("patient.7", "patient.7"),
    ],
)
def test_case_names(path, expected):
    assert case_name(path) == expected


@given(st.text(min_size=1, max_size=200).filter(lambda s: "\0" not in s))
def test_case_names_are_always_safe(path):
    name = case_name(path)
    assert 0 < len(name) <= 65
    assert name[0] not in ".-"
    assert name[-1] != "."
    assert all(c.isascii() and (c.isalnum() or c in "._-") for c in name)


def test_long_and_empty_names_do_not_collide():
    assert case_name("x" * 300 + "1.nii") != case_name("x" * 300 + "2.nii")
    assert case_name("患者.nii") != case_name("病人.nii")
    assert case_name(".nii").startswith("case-")
