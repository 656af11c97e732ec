"""The command line: its contract with scripts, with a segmenter that has no model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from diffugts.backbone import weights
from diffugts.cli import main
from diffugts.commands import demo, terminal
from diffugts.io import write_nifti
from diffugts.report.save import MANIFEST
from fake_model import FakeSegmenter, scan

FILES = {
    "mask.nii.gz", "probability.nii.gz", "attention.nii.gz", "pseudo_healthy.nii.gz", "residual.nii.gz",
    "lesions.csv", "preview.png",
}  # fmt: skip


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeSegmenter]:
    module = types.ModuleType("diffugts.segmenter")
    module.Segmenter = FakeSegmenter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "diffugts.segmenter", module)
    monkeypatch.setattr(FakeSegmenter, "loaded", 0)
    monkeypatch.setattr(FakeSegmenter, "encoded", 0)
    return FakeSegmenter


@pytest.fixture
def write(tmp_path: Path):
    def make(name: str, **options: Any) -> str:
        volume = scan(**options)
        return str(write_nifti(volume.array, volume, tmp_path / name))

    return make


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def cli(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "diffugts", *words],
        capture_output=True,
        text=True,
        **{"timeout": 60, **options},
    )


# --- as a subprocess --------------------------------------------------------------------------------------


def test_help_is_instant_and_imports_nothing_heavy():
    code = "import sys, diffugts.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    heavy = {"torch", "monai", "numpy", "nibabel", "SimpleITK", "matplotlib", "rich", "transformers", "scipy"}
    assert heavy.isdisjoint(done.stdout.split())
    times = [float("inf")]
    while min(times) >= 0.5 and len(times) < 8:  # a busy machine is no slow command
        start = time.perf_counter()
        shown = cli("--help")
        times.append(time.perf_counter() - start)
    assert shown.returncode == 0
    for verb in ("segment", "check", "prompts", "weights", "doctor", "bench", "demo", "pretrain", "fit"):
        assert f"\n    {verb}" in shown.stdout
    assert min(times) < 0.5


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("fly",),
        ("segment", "a.nii.gz", "-o", "out"),
        ("segment", "a.nii.gz", "-p", "liver tumor"),
        ("segment", "-p", "liver tumor", "-o", "out"),
        ("segment", "a.nii.gz", "-p", "liver tumor", "-o", "out", "--seeds", "0"),
        ("segment", "a.nii.gz", "-p", "liver tumor", "-o", "out", "--seed", "-1"),
        ("segment", "a.nii.gz", "-p", "liver tumor", "-o", "out", "--steps", "many"),
        ("segment", "a.nii.gz", "-p", "liver tumor", "-o", "out", "--modality", "pet"),
        ("segment", "a.nii.gz", "-p", "liver tumor", "-o", "out", "--device", "tpu"),
        ("prompts",),
        ("weights", "burn"),
    ],
)
def test_wrong_usage_exits_2(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "usage: diffugts" in capsys.readouterr().err


def test_exit_codes_reach_the_shell(tmp_path: Path):
    assert cli("segment", "a.nii.gz").returncode == 2
    missing = cli("segment", "a.nii.gz", "-p", "liver tumor", "-o", "out", "--json", cwd=tmp_path)
    assert missing.returncode == 1
    assert json.loads(missing.stdout)["status"] == "failed"
    assert missing.stderr == "diffugts: a: a.nii.gz does not exist; check the path.\n"
    assert cli("--version").stdout.startswith("diffugts ")


def test_prompts_are_explained_and_bad_ones_named():
    done = cli("prompts", "no liver tumor", "  ", "--json")
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["anatomy"], first["negated"]) == ("liver", True)
    assert "empty" in second["error"]
    assert done.returncode == 1
    shown = cli("prompts", "HCC")
    assert shown.returncode == 0
    assert "liver tumor" in shown.stdout


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX pipe")
def test_a_reader_that_leaves_early_sees_no_traceback():
    words = " ".join(["liver"] * 3000)
    command = f"{sys.executable} -m diffugts prompts {words} | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    assert done.stdout == "liver\n"


# --- segment ----------------------------------------------------------------------------------------------


def test_segment_writes_each_case_and_says_so(fake, write, tmp_path: Path, capsys):
    out = tmp_path / "out"
    code = main(["segment", write("ct.nii.gz"), "-p", "liver tumor", "-p", "kidney cyst", "-o", str(out), "--json"])
    (line,) = lines(capsys)
    assert code == 0
    assert line["case"] == "ct"
    assert line["status"] == "done"
    assert line["output"] == str(out / "ct")
    assert list(line["prompts"]) == ["liver tumor", "kidney cyst"]
    assert line["prompts"]["liver tumor"]["lesions"] == 1
    assert line["prompts"]["liver tumor"]["volume_ml"] > 0
    assert "a warning about the scan" in line["warnings"]
    for slug in ("liver-tumor", "kidney-cyst"):
        assert {path.name for path in (out / "ct" / slug).iterdir()} == FILES
    assert fake.encoded == 1


def test_segment_speaks_to_people_too(fake, write, tmp_path: Path, capsys):
    assert main(["segment", write("ct.nii.gz"), "-p", "liver tumor", "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "liver tumor: 1 lesion, " in said.out
    assert "ct: warning: a warning about the scan" in said.err


def test_a_failed_case_does_not_stop_the_others(fake, write, tmp_path: Path, capsys):
    text = tmp_path / "notes.txt"
    text.write_text("no scan")
    scans = [write("broken.nii.gz"), str(tmp_path / "gone.nii.gz"), str(text), write("good.nii.gz")]
    assert main(["segment", *scans, "-p", "liver tumor", "-o", str(tmp_path / "out"), "--json"]) == 1
    said = capsys.readouterr()
    report = [json.loads(line) for line in said.out.splitlines()]
    assert [line["status"] for line in report] == ["failed", "failed", "failed", "done"]
    assert "a bug on two lines" in report[0]["error"]
    assert "--debug" in report[0]["error"]
    assert report[1]["error"].endswith("gone.nii.gz does not exist; check the path.")
    assert "known type" in report[2]["error"]
    assert "Traceback" not in said.err
    assert len(said.err.splitlines()) == 3
    assert fake.loaded == 1


def test_debug_shows_where_a_bug_is(fake, write, tmp_path: Path):
    with pytest.raises(RuntimeError, match="a bug"):
        main(["segment", write("broken.nii.gz"), "-p", "liver tumor", "-o", str(tmp_path / "out"), "--debug"])


def test_a_prompt_that_cannot_be_understood_fails_before_the_model_loads(fake, write, tmp_path: Path, capsys):
    assert main(["segment", write("ct.nii.gz"), "-p", "\t", "-o", str(tmp_path / "out"), "--json"]) == 1
    assert "empty" in lines(capsys)[0]["error"]
    assert fake.loaded == 0
    assert not (tmp_path / "out").exists()


def test_skip_done_skips_only_what_is_done_with_the_same_settings(fake, write, tmp_path: Path, capsys):
    path, out = write("ct.nii.gz"), tmp_path / "out"
    words = ["segment", path, "-p", "liver tumor", "-o", str(out), "--json", "--skip-done"]

    def status(*more: str) -> str:
        assert main([*words, *more]) == 0
        return str(lines(capsys)[0]["status"])

    assert status() == "done"
    assert status() == "skipped"
    assert fake.encoded == 1
    assert status("--seed", "1") == "done"
    assert status("--seed", "1", "-p", "kidney cyst") == "done"
    assert status("--seed", "1", "-p", "kidney cyst") == "skipped"
    (out / "ct" / "liver-tumor" / "mask.nii.gz").unlink()
    assert status("--seed", "1", "-p", "kidney cyst") == "done"
    write("ct.nii.gz", tumour=False)
    assert status("--seed", "1", "-p", "kidney cyst") == "done"
    (out / "ct" / MANIFEST).unlink()
    assert status("--seed", "1", "-p", "kidney cyst") == "done"


def test_a_skipped_case_still_tells_its_numbers(fake, write, tmp_path: Path, capsys):
    words = [
        "segment",
        write("ct.nii.gz"),
        "-p",
        "liver tumor",
        "-o",
        str(tmp_path / "out"),
        "--json",
        "--skip-done",
    ]
    main(words)
    main(words)
    first, second = lines(capsys)
    assert second["prompts"] == first["prompts"]


def test_scans_of_one_name_go_to_folders_of_their_own(fake, write, tmp_path: Path, capsys):
    scans = [write("anna/ct.nii.gz"), write("berta/CT.nii.gz"), write("anna/mr.nii.gz")]
    for order in (scans, scans[::-1], [scans[0], *scans]):
        assert main(["segment", *order, "-p", "liver tumor", "-o", str(tmp_path / "out"), "--json"]) == 0
        assert {line["scan"]: line["case"] for line in lines(capsys)} == {
            scans[0]: "anna-ct",
            scans[1]: "berta-CT",
            scans[2]: "mr",
        }


def test_region_limits_the_candidate_and_must_lie_on_the_grid(fake, write, tmp_path: Path, capsys):
    path = write("ct.nii.gz")
    volume = scan()
    empty = write_nifti(np.zeros(volume.shape, np.uint8), volume, tmp_path / "empty.nii.gz")
    moved = scan(affine=np.diag([2.0, 2.0, 4.0, 1.0]))
    off = write_nifti(np.ones(volume.shape, np.uint8), moved, tmp_path / "off.nii.gz")
    words = ["segment", path, "-p", "liver tumor", "-o", str(tmp_path / "out"), "--json", "--region"]
    assert main([*words, str(empty)]) == 0
    assert main([*words, str(off)]) == 1
    assert main([*words, str(tmp_path / "gone.nii.gz")]) == 1
    nothing, wrong, gone = lines(capsys)
    assert nothing["prompts"]["liver tumor"]["lesions"] == 0
    assert "resample the mask" in wrong["error"]
    assert "does not exist" in gone["error"]


def test_seeds_add_uncertainty_and_output_is_on_the_grid(fake, write, tmp_path: Path):
    path, out = write("ct.nii.gz"), tmp_path / "out"
    assert main(["segment", path, "-p", "liver tumor", "-o", str(out), "--seeds", "2"]) == 0
    image = nib.load(out / "ct" / "liver-tumor" / "uncertainty.nii.gz")
    assert np.array_equal(image.affine, nib.load(path).affine)


def test_an_output_that_cannot_be_written_is_a_sentence(fake, write, tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["segment", write("ct.nii.gz"), "-p", "liver tumor", "-o", str(tmp_path / "file"), "--json"]) == 1
    assert "Cannot write to" in lines(capsys)[0]["error"]


def test_ctrl_c_exits_130_without_a_traceback(fake, write, tmp_path: Path, monkeypatch, capsys):
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fake, "encode", interrupt)
    assert main(["segment", write("ct.nii.gz"), "-p", "liver tumor", "-o", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "diffugts: interrupted\n"


def test_running_out_of_memory_is_a_sentence(fake, write, tmp_path: Path, monkeypatch, capsys):
    def hungry(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(fake, "encode", hungry)
    assert main(["segment", write("ct.nii.gz"), "-p", "liver tumor", "-o", str(tmp_path / "out"), "--json"]) == 1
    assert "Not enough memory" in lines(capsys)[0]["error"]


def test_progress_is_drawn_on_a_terminal_only(monkeypatch, capsys):
    with terminal.progress_bar("case") as progress:
        progress("encoding", 0.5)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with terminal.progress_bar("case") as progress:
        progress("encoding [bold]", 0.5)
    assert capsys.readouterr().out == ""


# --- the other verbs --------------------------------------------------------------------------------------


def test_check_measures_the_models_error_inside_the_body(fake, write, capsys):
    assert main(["check", write("ct.nii.gz"), "--json"]) == 0
    (found,) = lines(capsys)
    assert found["geometry"]["shape"] == [24, 20, 16]
    assert found["geometry"]["spacing_mm"] == [2.0, 2.0, 3.0]
    assert found["geometry"]["orientation"] == "RAS"
    assert found["geometry"]["oblique_degrees"] == 0.0
    assert found["intensity"]["min"] == -1000
    assert found["modality"] == "ct"
    assert found["model_error"]["mae"] == pytest.approx(10.0, abs=0.01)
    assert found["model_error"]["psnr_db"] == pytest.approx(46.0, abs=0.1)
    assert found["estimate"] == {"seconds": 3.0, "peak_gb": 0.5}
    assert not any("should stay under" in warning for warning in found["warnings"])


def test_check_warns_where_the_model_cannot_render_the_scan(fake, write, monkeypatch, capsys):
    monkeypatch.setattr(fake, "describe", lambda self: {"reconstruction_mae": {"ct": 4.0}})
    assert main(["check", write("ct.nii.gz")]) == 0
    said = capsys.readouterr().out
    assert "more than the 8 that it should stay under" in said
    assert main(["check", write("ct.nii.gz"), "--modality", "mr", "--json"]) == 0
    (found,) = lines(capsys)
    assert found["model_error"]["unit"] == "of 0..1"
    assert any("looks like CT" in warning for warning in found["warnings"])


def test_check_of_a_bad_scan_exits_1(fake, tmp_path: Path, capsys):
    assert main(["check", str(tmp_path / "gone.nii.gz")]) == 1
    assert "does not exist" in capsys.readouterr().err


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    file = weights.WeightFile("a.safetensors", "ab12", 3, "Apache-2.0", "this project")
    model = weights.ModelInfo("compact", "Apache-2.0", (file,), "this project")
    monkeypatch.setattr(weights, "available", lambda: [model])
    monkeypatch.setattr(weights, "verify", lambda name: [])
    return weights


def test_weights_are_listed_and_verified(models, monkeypatch, capsys):
    assert main(["weights", "list"]) == 0
    assert "Apache-2.0" in capsys.readouterr().out
    assert main(["weights", "verify", "--json"]) == 0
    (line,) = lines(capsys)
    assert line["files"][0]["sha256"] == "ab12"
    assert line["problems"] == []
    monkeypatch.setattr(models, "verify", lambda name: ["a.safetensors is damaged"])
    assert main(["weights", "verify"]) == 1
    assert "damaged" in capsys.readouterr().err


def test_doctor_fails_only_on_what_is_required(models, monkeypatch, capsys):
    assert main(["doctor", "--json"]) == 0
    found = {line["name"]: line for line in lines(capsys)}
    assert found["torch"]["ok"]
    assert found["DICOM"]["ok"]
    monkeypatch.setattr(models, "verify", lambda name: ["a.safetensors is missing"])
    assert main(["doctor"]) == 1
    assert "a.safetensors is missing" in capsys.readouterr().out


def test_demo_is_honest_about_its_dice(fake, tmp_path: Path, monkeypatch, capsys):
    volume = scan()
    monkeypatch.setattr(demo, "patient", lambda: (volume, (volume.array > 100).astype(np.uint8)))
    assert main(["demo", "-o", str(tmp_path), "--json"]) == 0
    (line,) = lines(capsys)
    assert line["dice"] == 1.0
    assert Path(line["mask"]).is_file()
    assert Path(line["preview"]).is_file()
    monkeypatch.setattr(demo, "patient", lambda: (volume, np.zeros(volume.shape, np.uint8)))
    assert main(["demo", "-o", str(tmp_path)]) == 0
    assert "Dice     0.000" in capsys.readouterr().out


def test_the_demo_patient_has_a_whole_tumour_and_is_always_the_same():
    volume, truth = demo.patient()
    again, _ = demo.patient()
    assert np.array_equal(volume.array, again.array)
    assert volume.shape == demo.SHAPE
    assert volume.array.dtype == np.int16
    ml = float(truth.sum()) * volume.voxel_ml
    assert 5 < ml < 300
    assert not any(side.any() for axis in range(3) for side in (np.take(truth, 0, axis), np.take(truth, -1, axis)))


def test_training_verbs_load_their_options_only_when_named(monkeypatch, capsys):
    module = types.ModuleType("diffugts.training.cli")
    module.add_pretrain_arguments = lambda parser: parser.add_argument("recipe")  # type: ignore[attr-defined]
    module.run_pretrain = lambda args: 0 if args.recipe == "tiny.json" else 1  # type: ignore[attr-defined]
    import diffugts.training

    monkeypatch.setitem(sys.modules, "diffugts.training.cli", module)
    monkeypatch.setattr(diffugts.training, "cli", module, raising=False)
    assert main(["pretrain", "tiny.json"]) == 0


# --- with the model that ships ----------------------------------------------------------------------------


@pytest.mark.skipif(not weights.available(), reason="no model has been trained yet")
def test_the_demo_runs_on_the_shipped_model(tmp_path: Path):
    done = cli("demo", "-o", str(tmp_path), "--json", timeout=300)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    assert 0.0 <= line["dice"] <= 1.0
    assert nib.load(line["mask"]).shape == demo.SHAPE
    assert np.array_equal(nib.load(line["mask"]).affine, nib.load(line["scan"]).affine)
    assert Path(line["preview"]).is_file()
