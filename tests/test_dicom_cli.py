"""`segment` and `check` on DICOM: the series is chosen, the objects are written, and refusals come first."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pydicom
import pytest

from dicom_series import write_series
from diffugts.cli import main
from diffugts.io import write_nifti
from fake_model import FakeSegmenter, scan


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeSegmenter]:
    module = types.ModuleType("diffugts.segmenter")
    module.Segmenter = FakeSegmenter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "diffugts.segmenter", module)
    monkeypatch.setattr(FakeSegmenter, "loaded", 0)
    return FakeSegmenter


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two series below one folder: 1.2.3.1 with a tumour, 1.2.3.2 without."""
    write_series(tmp_path / "study" / "a", uid="1.2.3.1", voxels=scan().array)
    write_series(tmp_path / "study" / "b", uid="1.2.3.2", voxels=scan(tumour=False).array)
    return tmp_path / "study"


def segment(out: Path, *words: Any, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    main(["segment", *map(str, words), "-p", "liver tumor", "-o", str(out), "--json"])
    return dict(json.loads(capsys.readouterr().out))


def test_objects_lie_beside_the_mask_and_in_the_manifest(study, tmp_path, capsys):
    line = segment(tmp_path / "out", study, "--series", "1.2.3.1", "--dicom-seg", "--rtstruct", capsys=capsys)
    assert line["status"] == "done"
    folder = tmp_path / "out" / "study"
    manifest = json.loads((folder / "manifest.json").read_text())
    (answer,) = manifest["prompts"].values()
    assert {"mask.dcm", "rtstruct.dcm"} <= set(answer["files"])
    assert pydicom.dcmread(folder / answer["folder"] / "mask.dcm").Modality == "SEG"
    assert pydicom.dcmread(folder / answer["folder"] / "rtstruct.dcm").Modality == "RTSTRUCT"
    assert manifest["request"]["series"] == "1.2.3.1"


def test_an_empty_mask_is_a_warning_and_old_objects_go(study, tmp_path, capsys):
    segment(tmp_path / "out", study, "--series", "1.2.3.1", "--dicom-seg", capsys=capsys)
    (old,) = (tmp_path / "out").rglob("mask.dcm")
    line = segment(tmp_path / "out", study, "--series", "1.2.3.2", "--dicom-seg", capsys=capsys)
    assert line["status"] == "done"
    assert line["warnings"][-1] == "Nothing was found for 'liver tumor', so there is no mask.dcm of it."
    assert not old.exists()


def test_a_study_is_listed_until_a_series_is_named(study, tmp_path, capsys):
    line = segment(tmp_path / "out", study, capsys=capsys)
    assert line["status"] == "failed"
    assert "1.2.3.1 (series 0, CT, 16 slices); 1.2.3.2 (" in line["error"]
    assert main(["check", str(study)]) == 1
    assert "name one with --series" in capsys.readouterr().err
    assert main(["check", str(study), "--series", "1.2.3.2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["geometry"]["shape"] == [24, 20, 16]


def test_objects_of_what_is_no_dicom_are_refused_before_the_model_loads(fake, tmp_path, capsys):
    volume = scan()
    nifti = write_nifti(volume.array, volume, tmp_path / "ct.nii.gz")
    line = segment(tmp_path / "out", nifti, "--rtstruct", capsys=capsys)
    assert "ct.nii.gz is no DICOM series, so --rtstruct has nothing to refer to" in line["error"]
    assert fake.loaded == 0


def test_skip_done_notices_that_an_object_is_wanted_now(study, tmp_path, capsys):
    words = (study, "--series", "1.2.3.1", "--skip-done")
    assert segment(tmp_path / "out", *words, capsys=capsys)["status"] == "done"
    assert segment(tmp_path / "out", *words, capsys=capsys)["status"] == "skipped"
    assert segment(tmp_path / "out", *words, "--dicom-seg", capsys=capsys)["status"] == "done"
    assert segment(tmp_path / "out", *words, "--dicom-seg", capsys=capsys)["status"] == "skipped"
    next((study / "b").iterdir()).unlink()
    assert segment(tmp_path / "out", *words, "--dicom-seg", capsys=capsys)["status"] == "done"
