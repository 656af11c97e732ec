"""What is written: the files of a case, the manifest, the preview."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import diffugts.report.save as save_module
from diffugts.errors import InputError, PromptError
from diffugts.report.preview import LUNG, PLANES, SOFT_TISSUE, _cut, _focus, _Turn, _window, draw_preview
from diffugts.report.save import MANIFEST, read_manifest, save_result, unique_names
from diffugts.result import Result
from diffugts.volume import Volume
from fake_model import answer, scan

IMAGES = ("mask", "probability", "attention", "pseudo_healthy", "residual")


def result_of(volume: Volume, *texts: str, seeds: int = 1) -> Result:
    texts = texts or ("liver tumor",)
    return Result(volume, {text: answer(volume, text, seeds) for text in texts}, {"seed": np.int64(3)})


def oblique() -> np.ndarray:
    angle = np.radians(20)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[:3, :3] = affine[:3, :3] @ np.diag([-0.8, 1.7, -3.1])
    affine[:3, 3] = 12.5, -33.0, 101.0
    return affine


def test_result_gives_answers_by_the_users_own_words():
    result = result_of(scan(), "liver tumor", "kidney cyst")
    assert list(result) == ["liver tumor", "kidney cyst"]
    assert len(result) == 2
    assert result["kidney cyst"].understood.anatomy == "kidney"
    with pytest.raises(PromptError, match=r"'spleen tumor'.*'liver tumor', 'kidney cyst'"):
        result["spleen tumor"]


@pytest.mark.parametrize("affine", [None, oblique()], ids=["straight", "oblique"])
def test_a_case_is_complete_and_on_the_scans_grid(tmp_path: Path, affine):
    volume = scan(affine=affine)
    folder = result_of(volume).save(tmp_path)
    assert folder == tmp_path / "scan"
    for name in IMAGES:
        path = folder / "liver-tumor" / f"{name}.nii.gz"
        image = nib.load(path)
        assert image.shape == volume.shape
        np.testing.assert_allclose(image.affine, volume.affine, atol=1e-5)
        assert sitk.ReadImage(str(path)).GetSize() == volume.shape
    stored = {name: nib.load(folder / "liver-tumor" / f"{name}.nii.gz").get_data_dtype() for name in IMAGES}
    assert stored["mask"] == np.uint8
    assert stored["pseudo_healthy"] == volume.array.dtype
    assert stored["probability"] == np.float32
    with (folder / "liver-tumor" / "lesions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 1
    assert (folder / "liver-tumor" / "preview.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / "liver-tumor" / "uncertainty.nii.gz").exists()


def test_the_manifest_lists_what_was_written_and_what_was_asked(tmp_path: Path):
    folder = result_of(scan(), "liver tumor", "kidney cyst", seeds=2).save(tmp_path, name="patient 1")
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest["case"] == "patient 1"
    assert manifest["seed"] == 3
    assert manifest["versions"]["torch"]
    assert 0.01 < manifest["peak_memory_gb"] < 1000
    assert manifest["scan"]["shape"] == [24, 20, 16]
    assert manifest["prompts"]["kidney cyst"]["understood"]["finding"] == "cyst"
    for entry in manifest["prompts"].values():
        assert sorted(entry["files"]) == sorted(path.name for path in (folder / entry["folder"]).iterdir())
        assert "uncertainty.nii.gz" in entry["files"]
    assert str(tmp_path) not in (folder / MANIFEST).read_text()


def test_an_uncertainty_map_of_an_earlier_run_does_not_stay(tmp_path: Path):
    result_of(scan(), seeds=2).save(tmp_path)
    folder = result_of(scan(), seeds=1).save(tmp_path)
    assert not (folder / "liver-tumor" / "uncertainty.nii.gz").exists()


def test_an_interrupted_save_leaves_no_manifest_and_no_half_files(tmp_path: Path, monkeypatch):
    folder = result_of(scan()).save(tmp_path)
    before = {path.name for path in (folder / "liver-tumor").iterdir()}

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(save_module, "write_csv", interrupt)
    with pytest.raises(KeyboardInterrupt):
        result_of(scan()).save(tmp_path)
    assert not (folder / MANIFEST).exists()
    assert {path.name for path in (folder / "liver-tumor").iterdir()} == before


def test_a_file_in_the_folders_place_is_a_sentence(tmp_path: Path):
    (tmp_path / "scan").write_text("in the way")
    with pytest.raises(InputError, match="choose another output folder"):
        result_of(scan()).save(tmp_path)


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc"])
def test_case_names_cannot_leave_the_output_folder(tmp_path: Path, name: str):
    with pytest.raises(InputError, match="plain folder name"):
        save_result(result_of(scan()), tmp_path, name)


def test_a_manifest_never_holds_nan(tmp_path: Path):
    result = result_of(scan())
    with pytest.raises(ValueError, match="JSON"):
        replace(result, manifest={"loss": float("nan")}).save(tmp_path)
    assert not (tmp_path / "scan" / MANIFEST).exists()


def test_a_damaged_manifest_reads_as_none(tmp_path: Path):
    assert read_manifest(tmp_path) is None
    (tmp_path / MANIFEST).write_text('{"case": ')
    assert read_manifest(tmp_path) is None
    (tmp_path / MANIFEST).write_text(json.dumps([1]))
    assert read_manifest(tmp_path) is None


def test_unique_names_number_later_ones_whatever_their_case():
    assert unique_names(["a", "A", "a-2", "b", "a"]) == ["a", "A-2", "a-2-2", "b", "a-3"]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA", "IRP"])
def test_preview_planes_are_radiological_in_every_orientation(codes: str):
    """Markers at the patient's left, front and top are seen on the right, up (or left) and up."""
    ras = np.zeros((9, 11, 13), np.int16)
    ras[0, 5, 6], ras[4, 10, 6], ras[4, 5, 12] = 1, 2, 3
    image = nib.Nifti1Image(ras, np.diag([1.0, 1.5, 2.0, 1.0]))
    to = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    turned = image.as_reoriented(to)
    array, affine = np.asarray(turned.dataobj), turned.affine
    turn = _Turn.to_radiological(affine)
    middle = np.rint(np.linalg.inv(affine) @ (4.0, 7.5, 12.0, 1.0)).astype(int)[:3]
    point = turn.voxel(tuple(int(i) for i in middle), array.shape)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[list(turn.order)]
    axial, coronal, sagittal = (_cut(turn.view(array), plane, point, spacing) for plane in PLANES)
    assert np.argwhere(axial == 1).tolist() == [[5, 8]]  # the patient's left is at the right
    assert np.argwhere(axial == 2).tolist() == [[0, 4]]  # anterior is up
    assert np.argwhere(coronal == 3).tolist() == [[0, 4]]  # superior is up
    assert np.argwhere(sagittal == 2).tolist() == [[6, 0]]  # anterior is left
    assert axial.shape == (11, 9)
    assert coronal.shape == (13, 9)
    assert sagittal.shape == (13, 11)


def test_preview_cuts_through_the_largest_lesion_then_the_attentions_peak_then_the_middle():
    volume = scan()
    full = answer(volume)
    assert full.mask[_focus(full, volume)] == 1
    empty = replace(full, mask=full.mask * 0, lesions=(), attention=np.zeros(volume.shape, np.float32))
    assert _focus(empty, volume) == (12, 10, 8)
    empty.attention[3, 4, 5] = 0.2
    assert _focus(empty, volume) == (3, 4, 5)


def test_preview_focus_lies_inside_a_ring():
    volume = scan()
    mask = np.zeros(volume.shape, np.uint8)
    mask[5:12, 5:12, 8] = 1
    mask[6:11, 6:11, 8] = 0
    full = answer(replace(volume, array=np.where(mask, 200, 0).astype(np.int16)))
    assert full.mask[_focus(full, volume)] == 1


def test_preview_windows_follow_the_tissue_and_the_modality():
    volume = scan()
    body = replace(volume, array=np.full(volume.shape, 40, np.int16))
    assert _window(body, (12, 10, 8), body.array) == SOFT_TISSUE
    assert _window(volume, (12, 10, 8), volume.array) == SOFT_TISSUE  # mostly air, which is not lung
    lung = replace(volume, array=np.full(volume.shape, -800, np.int16))
    assert _window(lung, (12, 10, 8), lung.array) == LUNG
    values = np.linspace(0, 1000, 24 * 20 * 16, dtype=np.float32).reshape(24, 20, 16)
    low, high = _window(Volume(values, volume.affine), (1, 1, 1), values)
    assert 0 <= low < 20 < 980 < high <= 1000


def test_preview_draws_empty_answers_and_formula_like_titles():
    volume = scan(tumour=False)
    figure = draw_preview(answer(volume), volume, "$x_{" + "y" * 300)
    texts = [text.get_text() for text in figure.texts]
    assert any("nothing found" in text for text in texts)
    assert {text.get_text() for text in figure.axes[0].texts} == {"R", "L", "A", "P"}
    assert len(figure.axes) == 15


def test_preview_keeps_the_shape_of_anisotropic_voxels():
    volume = scan(affine=np.diag([0.5, 0.5, 6.0, 1.0]))
    coronal = draw_preview(answer(volume), volume, "liver tumor").axes[5]
    assert coronal.get_aspect() == 1.0
    assert coronal.get_xlim() == (0.0, 24 * 0.5)
    assert coronal.get_ylim() == (16 * 6.0, 0.0)


@pytest.mark.parametrize("order", ["C", "F"])
def test_turning_to_file_order_changes_no_voxel(order):
    array = np.asarray(np.random.default_rng(0).random((5, 6, 7), np.float32), order=order)
    for view in (array, array.transpose(2, 0, 1)[::-1]):
        turned = save_module._file_order(view)
        assert turned.flags.f_contiguous
        assert turned.dtype == view.dtype
        np.testing.assert_array_equal(turned, view)
