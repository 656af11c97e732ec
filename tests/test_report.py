"""What is written: the files of a case, the manifest, the preview."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import sys
import types
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

import diffugts.report.save as save_module
from diffugts.cli import main
from diffugts.errors import InputError, PromptError
from diffugts.io import write_nifti
from diffugts.report.cautions import cautions
from diffugts.report.html import PICTURED, report_page
from diffugts.report.load import load_result
from diffugts.report.pictures import grey, heat, outline
from diffugts.report.planes import (
    LUNG,
    PLANES,
    SOFT_TISSUE,
    Aim,
    focus,
    grey_window,
    position,
    scale_bar_mm,
    scale_top,
)
from diffugts.report.preview import draw_preview
from diffugts.report.save import MANIFEST, REPORT, SCAN, add_report, read_manifest, save_result, unique_names
from diffugts.result import Result
from diffugts.volume import Volume
from fake_model import FakeSegmenter, answer, scan

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
    i, j, k = np.rint(np.linalg.inv(affine) @ (4.0, 7.5, 12.0, 1.0)).astype(int)[:3].tolist()
    aim = Aim.at(Volume(array, affine), (i, j, k))
    axial, coronal, sagittal = (aim.cut(array, plane) for plane in PLANES)
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
    assert full.mask[focus(full, volume)] == 1
    empty = replace(full, mask=full.mask * 0, lesions=(), attention=np.zeros(volume.shape, np.float32))
    assert focus(empty, volume) == (12, 10, 8)
    empty.attention[3, 4, 5] = 0.2
    assert focus(empty, volume) == (3, 4, 5)


def test_preview_focus_lies_inside_a_ring():
    volume = scan()
    mask = np.zeros(volume.shape, np.uint8)
    mask[5:12, 5:12, 8] = 1
    mask[6:11, 6:11, 8] = 0
    full = answer(replace(volume, array=np.where(mask, 200, 0).astype(np.int16)))
    assert full.mask[focus(full, volume)] == 1


def test_preview_windows_follow_the_tissue_and_the_modality():
    volume = scan()
    body = replace(volume, array=np.full(volume.shape, 40, np.int16))
    assert grey_window(body, (12, 10, 8), body.array) == SOFT_TISSUE
    assert grey_window(volume, (12, 10, 8), volume.array) == SOFT_TISSUE  # mostly air, which is not lung
    lung = replace(volume, array=np.full(volume.shape, -800, np.int16))
    assert grey_window(lung, (12, 10, 8), lung.array) == LUNG
    values = np.linspace(0, 1000, 24 * 20 * 16, dtype=np.float32).reshape(24, 20, 16)
    low, high, _ = grey_window(Volume(values, volume.affine), (1, 1, 1), values)
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


# --- pictures for pages -----------------------------------------------------------------------------------


def pixels(uri: str) -> np.ndarray:
    """RGBA of a PNG data URI."""
    with Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))) as image:
        return np.asarray(image.convert("RGBA"))


def test_grey_values_go_from_black_to_white_over_the_window():
    shown = pixels(grey(np.array([[-1000, -160, 40, 240, 3000]], np.int16), SOFT_TISSUE))
    assert shown[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert (shown[..., 3] == 255).all()


def test_overlays_fade_towards_zero_and_residuals_do_not():
    cut = np.array([[0.0, 0.5, 1.0]], np.float32)
    over, solid = (pixels(heat(cut, 1.0, "inferno", see_through)) for see_through in (True, False))
    assert over[0, 0, 3] == 0
    assert over[0, 0, 3] < over[0, 1, 3] < over[0, 2, 3] < 255
    assert (solid[..., 3] == 255).all()
    assert solid[0, 0, :3].max() < 10  # nothing is dark
    assert solid[0, 2, 0] > 200


def test_an_outline_runs_along_the_border_in_mm():
    cut = np.zeros((10, 20), np.uint8)
    cut[2:6, 5:15] = 1
    path = outline(cut, (40.0, 30.0))  # voxels of 2 mm across and 3 mm down
    numbers = np.array(re.findall(r"[\d.]+", path), float).reshape(-1, 2)
    assert path.count("M") == path.count("Z") == 1
    np.testing.assert_allclose([numbers.min(axis=0), numbers.max(axis=0)], [[10.0, 6.0], [30.0, 18.0]], atol=0.1)
    assert outline(cut * 0, (40.0, 30.0)) == ""
    assert outline(np.ones((4, 4), np.uint8), (4.0, 4.0)).endswith("Z")  # one that fills the plane is closed too


def test_scale_bars_and_positions_are_what_a_reader_expects():
    assert [scale_bar_mm(width) for width in (2, 30, 100, 400, 900)] == [1, 10, 20, 100, 100]
    assert [position(mm, axis) for axis, mm in enumerate((1.26, -2.0, -3.0))] == ["R 1.3 mm", "A −2.0 mm", "S −3.0 mm"]


def test_a_weak_map_is_drawn_weakly():
    weak, strong = np.full((2, 2), 0.05, np.float32), np.full((2, 2), 0.9, np.float32)
    assert scale_top("attention", weak) > 5 * weak.max()
    assert scale_top("attention", weak, strong) == pytest.approx(0.9)
    assert scale_top("residual", weak * 0) > 0


# --- the report -------------------------------------------------------------------------------------------

HOSTILE = "<script>alert('broken in')</script> \"tumor\" & <img src=x onerror=alert(1)>"


def page_of(result: Result, **manifest) -> str:
    known = {
        "case": HOSTILE, "finished": "today", "diffugts": "1", "peak_memory_gb": 1.0, "licence": "Apache-2.0",
        "scan": {"spacing_mm": [2.0, 2.0, 3.0], "affine": np.eye(4).tolist()},
    }  # fmt: skip
    return report_page(result, {**known, **result.manifest, **manifest})


def test_whatever_comes_from_outside_is_escaped_and_nothing_is_fetched():
    volume = scan(source=HOSTILE)
    told = replace(answer(volume, seeds=2), warnings=(HOSTILE,))
    page = page_of(Result(volume, {HOSTILE: told}, {"modality": "ct", "model": HOSTILE}), warnings=[HOSTILE])
    assert HOSTILE not in page
    tags: list[tuple[str, dict[str, str | None]]] = []
    reader = HTMLParser()
    reader.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))  # type: ignore[method-assign]
    reader.feed(page)
    assert [tag for tag, _ in tags if tag in ("script", "img", "iframe", "link")] == ["script"]
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    links = [attributes[name] or "" for _, attributes in tags for name in ("href", "src") if name in attributes]
    assert any(link.startswith("data:") for link in links)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert "url(" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in page.replace("&#39;", "'")


def test_each_lesion_is_pictured_in_three_planes_with_all_its_evidence():
    result = result_of(scan(), seeds=2)
    page = page_of(result, model_error={"mae": 12.3, "unit": "HU", "limit": 24.0, "psnr_db": 30.0})
    lesion = result["liver tumor"].lesions[0]
    assert page.count('class="compare"') == page.count('type="range"') == 3
    for plane in ("axial plane at S", "coronal plane at A", "sagittal plane at R"):
        for view in ("Scan", "Attention", "Residual", "Uncertainty"):
            assert re.search(f'aria-label="{view}[^"]*{plane}', page), (view, plane)
    for said in (f"{lesion.volume_ml:.2f} ml", f"{lesion.longest_diameter_mm:.1f} mm", "Apache-2.0", "12.3 HU"):
        assert said in page
    assert "Research use only" in page
    assert "soft tissue window -160 to 240 HU" in page


def test_only_the_largest_lesions_are_pictured_and_all_are_listed():
    volume = scan((40, 24, 16), tumour=False)
    for x in range(4, 36, 4):
        volume.array[x : x + 2, 10:12, 8] = 200
    result = result_of(volume)
    count = len(result["liver tumor"].lesions)
    assert count > PICTURED
    page = page_of(result)
    assert page.count("<article>") == PICTURED
    assert page.count('class="compare"') == 3 * PICTURED
    assert f"{count} lesions" in page


def test_a_report_of_nothing_says_so_and_shows_where_attention_was():
    volume = scan(tumour=False)
    told = answer(volume)
    told.attention[3, 4, 5] = 0.2
    page = page_of(Result(volume, {"liver tumor": told}))
    assert "Nothing was found for this prompt." in page
    assert "No region stood out" in page
    assert 'class="compare"' not in page
    assert "Through voxel (3, 4, 5)" in page
    assert page.count('aria-label="Attention') == 3
    repainted = replace(told, pseudo_healthy=told.pseudo_healthy + 1)
    assert "did not confirm" in page_of(Result(volume, {"liver tumor": repainted}))


def test_a_lung_lesion_is_shown_in_the_lung_and_in_the_soft_tissue_window():
    volume = scan()
    page = page_of(Result(volume, {"lung tumor": answer(volume, "lung tumor")}))
    assert "lung window -1350 to 150 HU" in page
    assert page.count("the scan in the soft tissue window") == 3


def test_cautions_tell_what_the_scan_cuts_off():
    assert cautions(result_of(scan())) == []
    volume = scan()
    cut = replace(volume, array=volume.array[:, 6:])
    (said,) = cautions(result_of(cut))
    assert "cut off at the scan's back." in said  # the affine is RAS: the low end of the second axis
    touching = scan(tumour=False)
    touching.array[0, 9:12, 8] = 200
    (said,) = cautions(result_of(touching))
    assert "lower bound" in said


# --- read back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [None, oblique()], ids=["straight", "oblique"])
def test_a_saved_result_is_read_back_whole(tmp_path: Path, affine):
    before = result_of(scan(affine=affine), "liver tumor", "kidney cyst", seeds=2)
    folder = before.save(tmp_path, report=True)
    after = load_result(folder)
    assert list(after) == list(before)
    np.testing.assert_array_equal(after.volume.array, before.volume.array)
    np.testing.assert_allclose(after.volume.affine, before.volume.affine, atol=1e-5)
    for text in before:
        for name in (*IMAGES, "uncertainty"):
            np.testing.assert_allclose(getattr(after[text], name), getattr(before[text], name), atol=1e-6)
        assert [lesion.to_dict() for lesion in after[text].lesions] == [
            lesion.to_dict() for lesion in before[text].lesions
        ]


def test_a_report_can_be_added_later_and_goes_with_the_next_run(tmp_path: Path):
    volume = scan()
    folder = result_of(volume).save(tmp_path)
    with pytest.raises(InputError, match="--scan"):
        load_result(folder)
    given = write_nifti(volume.array, volume, tmp_path / "given.nii.gz")
    add_report(load_result(folder, given), folder)
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest["report"] == REPORT
    assert "liver tumor" in (folder / REPORT).read_text(encoding="utf-8")
    np.testing.assert_array_equal(nib.load(folder / SCAN).get_fdata(), volume.array)
    result_of(volume).save(tmp_path)
    assert not (folder / REPORT).exists()  # it told of another run
    assert not (folder / SCAN).exists()


def test_another_patients_scan_is_refused(tmp_path: Path):
    folder = result_of(scan()).save(tmp_path)
    other = np.random.default_rng(0).integers(-1000, 1000, scan().shape).astype(np.int16)
    given = write_nifti(other, scan(), tmp_path / "other.nii.gz")
    with pytest.raises(InputError, match="not the one"):
        load_result(folder, given)


def test_files_that_went_missing_are_a_sentence(tmp_path: Path):
    folder = result_of(scan()).save(tmp_path, report=True)
    (folder / "liver-tumor" / "residual.nii.gz").unlink()
    with pytest.raises(InputError, match="is missing"):
        load_result(folder)
    (folder / MANIFEST).write_text("{}")
    with pytest.raises(InputError, match="not a manifest"):
        load_result(folder)


# --- from the command line --------------------------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeSegmenter]:
    module = types.ModuleType("diffugts.segmenter")
    module.Segmenter = FakeSegmenter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "diffugts.segmenter", module)
    monkeypatch.setattr(FakeSegmenter, "encoded", 0)
    return FakeSegmenter


def test_segment_reports_each_case_and_lists_them_all(fake, tmp_path: Path, capsys):
    for name in ("a.nii.gz", "broken.nii.gz"):
        write_nifti(scan().array, scan(), tmp_path / name)
    out = tmp_path / "out"
    words = [
        "segment",
        str(tmp_path / "a.nii.gz"),
        str(tmp_path / "broken.nii.gz"),
        "-p",
        "liver tumor",
        "-o",
        str(out),
    ]
    assert main([*words, "--json"]) == 1
    assert "report" not in json.loads(capsys.readouterr().out.splitlines()[0])
    assert not (out / "index.html").exists()
    # A case that was done before gets its report without being segmented again.
    assert main([*words, "--json", "--report", "--skip-done"]) == 1
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["status"] == "skipped"
    assert Path(first["report"]).is_file()
    assert fake.encoded == 3  # twice the broken one
    index = (out / "index.html").read_text(encoding="utf-8")
    assert 'href="a/report.html"' in index
    assert second["error"].split(";")[0] in index


def test_a_report_measures_how_well_the_model_renders_the_scan(fake, tmp_path: Path, monkeypatch, capsys):
    scan_file = str(write_nifti(scan().array, scan(), tmp_path / "a.nii.gz"))
    words = ["segment", scan_file, "-p", "liver tumor", "-o", str(tmp_path / "out"), "--report", "--json"]
    assert main(words) == 0
    assert not any("mean error" in warning for warning in json.loads(capsys.readouterr().out)["warnings"])
    assert not (tmp_path / "out" / "index.html").exists()  # one scan needs none
    monkeypatch.setattr("fake_model.FakeCase.reconstruction", lambda case: case.volume.array + np.int16(500))
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert any("mean error" in warning for warning in told["warnings"])
    assert "mean error" in Path(told["report"]).read_text(encoding="utf-8")
