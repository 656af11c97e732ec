"""The benchmark: what it reads, what it compares, what it keeps when it is stopped, and what it writes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diffugts.bench import baselines
from diffugts.bench.cases import brats, choose, kits, msd, read_cases, read_dataset
from diffugts.bench.judges import Judges, Options
from diffugts.bench.methods import Subject, methods
from diffugts.bench.metrics import dice
from diffugts.bench.rival import (
    build,
    load_rival,
    rival_file,
    save_rival,
    seen_bank,
    supervised_loss,
    train_rival,
)
from diffugts.bench.rival import main as train
from diffugts.bench.run import chosen_methods, run
from diffugts.cli import main
from diffugts.errors import InputError, WeightsError
from diffugts.heads import Settings, heads_folder, load_heads, save_heads
from diffugts.io import from_array, read_mask, write_nifti
from diffugts.residual import ResidualHead
from diffugts.segmenter import Segmenter
from diffugts.training.bank import Bank, Item, write_item
from diffugts.training.fit import UNTRUSTED
from diffugts.training.loop import RunOptions
from tiny import tiny_folder, tiny_model

SIDE = 24
EAGER = Settings(threshold=0.0, relative=0.9, score_threshold=0.0, margin_mm=2.0, min_candidate_ml=0.0)
MODEL_FREE = "otsu,multi-otsu,multi-otsu-middle"


def ball(centre: tuple[int, int, int], radius: float) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij"))
    return ((grid - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(0) <= radius**2


def save(array: np.ndarray, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = from_array(array if array.any() else array + np.eye(SIDE)[None], np.diag([2.0, 2.0, 2.0, 1.0]))
    write_nifti(array, volume, path)
    return path.name


def patient(seed: int, truth: np.ndarray) -> np.ndarray:
    """An MR of a body with a bright tumour in it."""
    rng = np.random.default_rng(seed)
    image = 300.0 * ball((12, 12, 12), 10) + 500.0 * truth + rng.normal(0, 8, (SIDE,) * 3)
    return np.abs(image).astype(np.float32)


TUMOUR = ball((14, 12, 11), 4)


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two soft tissue tumours, one in the lung, and a scan without any."""
    root = tmp_path_factory.mktemp("cases")
    listed: list[dict[str, Any]] = []
    anatomies = {"leg_t1_1": "soft tissue", "leg_t1_2": "soft tissue", "chest": "lung", "well": "abdomen"}
    for seed, (name, anatomy) in enumerate(anatomies.items()):
        truth = TUMOUR if name != "well" else np.zeros_like(TUMOUR)
        image = save(patient(seed, truth), root / f"{name}.nii.gz")
        tumor = save(truth.astype(np.uint8), root / f"{name}_tumor.nii.gz") if truth.any() else None
        prompt = f"{anatomy} tumor" if tumor else None
        case = {"id": name, "images": {"t1": image}, "tumor": tumor, "prompt": prompt}
        listed.append({**case, "modality": "MR", "anatomy": anatomy})
    path = root / "cases.json"
    path.write_text(json.dumps({"cases": listed}))
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with a second head that left out soft tissue."""
    folder = tiny_folder(tmp_path_factory.mktemp("model") / "tiny", EAGER)
    head, *_ = load_heads(folder)
    torch.manual_seed(7)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_heads(folder / "held_out" / "soft-tissue", head, EAGER, seen=["brain", "lung"])
    return folder


@pytest.fixture(scope="session")
def done(cases: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of everything that needs no further file, two seeds included."""
    out = tmp_path_factory.mktemp("run")
    words = ["bench", "--cases", str(cases), "-o", str(out), "--model", str(model), "--seeds", "2", "--save-masks"]
    assert main(words) == 0
    return out


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def record(out: Path, case: str, method: str) -> dict[str, Any]:
    return next(r for r in results(out)["cases"] if (r["case"], r["method"]) == (case, method))


# --- a whole run ------------------------------------------------------------------------------------------


def test_every_case_has_a_record_of_every_method(done: Path) -> None:
    found = results(done)
    names = [
        "otsu", "multi-otsu", "multi-otsu-middle", "anomaly", "attention", "+pixel", "+feature", "likelihood", "full",
        "+seeds",
    ]  # fmt: skip
    assert list(found["summary"]) == list(found["methods"]) == names
    assert len(found["cases"]) == 4 * len(names)
    assert {record["status"] for record in found["cases"]} == {"done"}
    assert set(found["summary"]["full"]) == {"soft tissue MR", "lung MR", "abdomen MR", "macro"}
    rows = list(csv.DictReader((done / "cases.csv").read_text().splitlines()))
    assert [(row["case"], row["method"]) for row in rows] == [(r["case"], r["method"]) for r in found["cases"]]


def test_figures_are_those_of_the_masks(done: Path, cases: Path) -> None:
    for case in read_cases(cases)[:3]:
        volume = Subject(case, load=lambda: pytest.fail("no model is needed to read a case")).volume
        mask = read_mask(done / "masks" / "+pixel" / f"{case.id}.nii.gz", volume)
        assert record(done, case.id, "+pixel")["dice"] == pytest.approx(dice(mask, TUMOUR), abs=1e-5)
    mean = np.mean([record(done, case, "otsu")["dice"] for case in ("leg_t1_1", "leg_t1_2")])
    assert results(done)["summary"]["otsu"]["soft tissue MR"]["dice"] == pytest.approx(mean, abs=1e-5)


def test_the_head_that_never_saw_the_anatomy_judges(done: Path) -> None:
    assert record(done, "leg_t1_1", "full")["held_out"] == "soft tissue"
    assert record(done, "chest", "full")["held_out"] is None
    notes = results(done)["notes"]
    assert any("never saw lung tumours" in note for note in notes)
    assert not any("soft tissue" in note for note in notes)
    assert "never saw lung tumours" in (done / "results.md").read_text()


def test_full_is_what_a_user_gets(done: Path, cases: Path, model: Path) -> None:
    item = read_cases(cases)[0]
    segmenter = Segmenter.from_pretrained(model, held_out="soft tissue")
    case = segmenter.encode(item.image, modality="mr")
    answer = case.segment([item.prompt], seed=0)[item.prompt]
    assert answer.mask.any()
    mask = read_mask(done / "masks" / "full" / f"{item.id}.nii.gz", case.volume)
    assert np.array_equal(mask, answer.mask > 0)
    assert record(done, item.id, "full")["score"] == pytest.approx(answer.image_score, rel=1e-4)
    several = case.segment([item.prompt], seed=0, seeds=2)[item.prompt]
    mask = read_mask(done / "masks" / "+seeds" / f"{item.id}.nii.gz", case.volume)
    assert np.array_equal(mask, several.mask > 0)


def test_the_learned_form_is_measured_beside_the_plain_one(cases: Path, tmp_path: Path) -> None:
    folder, item = tiny_folder(tmp_path / "tiny", EAGER), read_cases(cases)[0]
    head, *_ = load_heads(folder)
    torch.manual_seed(3)
    residual = ResidualHead()
    save_heads(folder, head, replace(EAGER, form="learned"), seen=[], residual=residual)
    options = Options(str(folder), methods=("+feature", "learned", "full"), save_masks=True)
    by_name = {r["method"]: r for r in run([item], options, tmp_path / "out")["cases"]}
    assert by_name["learned"]["mask_ml"] == by_name["full"]["mask_ml"] != by_name["+feature"]["mask_ml"]
    case = Segmenter.from_pretrained(folder).encode(item.image, modality="mr")
    mask = read_mask(tmp_path / "out" / "masks" / "full" / f"{item.id}.nii.gz", case.volume)
    assert np.array_equal(mask, case.segment([item.prompt])[item.prompt].mask > 0)


def test_scans_without_a_tumour_count_painted_volume(done: Path) -> None:
    painted = record(done, "well", "otsu")
    assert painted["false_ml"] == painted["mask_ml"] > 0
    assert painted["dice"] == 0
    assert "well" in (done / "results.md").read_text()


def test_plots_are_pictures(done: Path) -> None:
    for name in ("dice.png", "reliability.png"):
        assert (done / name).read_bytes().startswith(b"\x89PNG")


def test_one_encoding_serves_all_methods(
    cases: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[object] = []
    encode = Segmenter.encode
    monkeypatch.setattr(Segmenter, "encode", lambda *a, **k: encoded.append(a[1]) or encode(*a, **k))
    run(read_cases(cases)[:2], Options(str(model), methods=("anomaly", "attention", "+feature")), tmp_path)
    assert len(encoded) == 2


# --- going on ---------------------------------------------------------------------------------------------


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the methods that were run and not taken from records."""
    from diffugts.bench import run as module

    names: list[str] = []
    answer = module._answer
    monkeypatch.setattr(module, "_answer", lambda *a: names.append(a[1].name) or answer(*a))
    return names


def test_resume_keeps_what_has_not_changed(cases: Path, model: Path, tmp_path: Path, ran: list[str]) -> None:
    items = read_cases(cases)[:1]
    first = Options(str(model), methods=("otsu", "attention"))
    before = run(items, first, tmp_path)["cases"]
    again = replace(first, resume=True)
    ran.clear()
    assert run(items, again, tmp_path)["cases"] == before
    assert ran == []
    run(items, replace(again, held_out="none"), tmp_path)
    assert ran == ["attention"]  # another head; thresholds have none
    run(items, replace(again, held_out="none", methods=("otsu", "anomaly", "attention"), seed=3), tmp_path)
    assert ran[1:] == ["anomaly", "attention"]
    run(items, first, tmp_path)
    assert ran[3:] == ["otsu", "attention"]


def test_other_weights_are_other_figures(cases: Path, tmp_path: Path, ran: list[str]) -> None:
    folder = tiny_folder(tmp_path / "tiny", EAGER)
    options = Options(str(folder), methods=("otsu", "attention"), resume=True)
    run(read_cases(cases)[:1], options, tmp_path / "out")
    head, *_ = load_heads(folder)
    save_heads(folder, head, replace(EAGER, relative=0.8), seen=[])
    ran.clear()
    run(read_cases(cases)[:1], options, tmp_path / "out")
    assert ran == ["attention"]


def test_a_damaged_record_is_made_again(cases: Path, model: Path, tmp_path: Path, ran: list[str]) -> None:
    items, options = read_cases(cases)[:1], Options(str(model), methods=("otsu",), resume=True)
    path = tmp_path / "records" / "leg_t1_1.json"
    for damaged in ("{", "[]", '{"otsu": 3}'):
        path.parent.mkdir(exist_ok=True)
        path.write_text(damaged)
        run(items, options, tmp_path)
        assert json.loads(path.read_text())["otsu"]["dice"] > 0
    assert ran == ["otsu"] * 3


def test_a_case_that_fails_is_recorded_and_the_others_run(
    cases: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = json.loads(cases.read_text())["cases"][:2]
    for case in listed:
        case["images"] = {"t1": str(cases.parent / case["images"]["t1"])}
        case["tumor"] = str(cases.parent / case["tumor"])
    listed[0]["images"] = {"t1": "gone.nii.gz"}
    (tmp_path / "cases.json").write_text(json.dumps({"cases": listed}))
    words = ["bench", "--cases", str(tmp_path / "cases.json"), "-o", str(tmp_path / "out"), "--model", str(model)]
    assert main([*words, "--methods", "otsu,attention", "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["failed"]["otsu"] == {"soft tissue MR": 1}
    assert printed["counts"]["attention"] == {"soft tissue MR": 1}
    failed = record(tmp_path / "out", "leg_t1_1", "attention")
    assert "gone.nii.gz does not exist" in failed["error"]
    assert "gone.nii.gz does not exist" in (tmp_path / "out" / "results.md").read_text()


def test_a_mask_on_another_grid_is_refused(cases: Path, model: Path, tmp_path: Path) -> None:
    item = read_cases(cases)[0]
    small = np.ones((SIDE, SIDE, SIDE - 2), np.uint8)
    small[0] = 0
    write_nifti(small, from_array(small, np.eye(4)), tmp_path / f"{item.id}.nii.gz")
    options = Options(str(model), methods=("predictions:x",), predictions={"x": tmp_path})
    (failed,) = run([item], options, tmp_path / "out")["cases"]
    assert failed["status"] == "failed"
    assert "resample" in failed["error"]


# --- methods ----------------------------------------------------------------------------------------------


def test_thresholds_find_a_bright_ball() -> None:
    image = (0.3 * ball((12, 12, 12), 10) + 0.5 * TUMOUR).astype(np.float32)
    body = image > 0.1
    assert np.array_equal(baselines.otsu(image, body), TUMOUR)
    image += 0.2 * ball((6, 12, 12), 3)  # a third class, between the two
    opened = baselines.brightest(image, body)
    assert dice(opened, TUMOUR) > 0.95
    assert not (opened & ~TUMOUR).any()
    between = baselines.middle(image, body)
    assert (between & ball((12, 12, 12), 10) & ~TUMOUR).sum() > 0.9 * between.sum() > 0


def test_thresholds_of_nothing_are_nothing() -> None:
    flat, none = np.ones((8, 8, 8), np.float32), np.zeros((8, 8, 8), bool)
    for rule in (baselines.otsu, baselines.brightest, baselines.middle):
        assert not rule(flat, ~none).any()
        assert not rule(flat, none).any()


def test_the_largest_part_is_cut_from_thin_bridges() -> None:
    mask = np.zeros((20, 8, 8), bool)
    mask[0:7, :7, :7] = mask[12:16, :4, :4] = True
    mask[7:12, 3, 3] = True
    part = baselines.largest_part(mask)
    assert part[3, 3, 3]
    assert not part[9:].any()
    assert not baselines.largest_part(np.zeros_like(mask)).any()


def test_the_anomaly_map_depends_on_the_seed_alone() -> None:
    from diffugts.backbone.latent_diffusion import Conditions

    model, conditions = tiny_model(), Conditions((2.0, 2.0, 2.0), "mr")
    latent = torch.randn(1, 4, 6, 8, 6, generator=torch.Generator().manual_seed(0))
    maps = [baselines.anomaly_map(model, latent, conditions, seed) for seed in (0, 0, 1)]
    assert maps[0].shape == tuple(side * model.config.stride for side in (6, 8, 6))
    assert np.array_equal(maps[0], maps[1])
    assert not np.array_equal(maps[0], maps[2])
    assert maps[0].min() >= 0


def test_predictions_of_another_tool(cases: Path, model: Path, tmp_path: Path) -> None:
    items = read_cases(cases)[:3]
    answers = (TUMOUR.astype(np.uint8), np.where(TUMOUR, 0.8, 0.1).astype(np.float32))  # none for the third
    for item, values in zip(items, answers, strict=False):
        save(values, tmp_path / f"{item.id}.nii.gz")
    options = Options(str(model), methods=("predictions:other",), predictions={"other": tmp_path})
    labels, probabilities, missing = run(items, options, tmp_path / "out")["cases"]
    assert labels["dice"] == probabilities["dice"] == 1
    assert labels["auroc"] is None
    assert probabilities["auroc"] == 1
    assert probabilities["ece"] > 0.1
    assert "chest.nii.gz" in missing["error"]


def test_a_negated_prompt_finds_nothing(cases: Path, model: Path) -> None:
    item = replace(read_cases(cases)[0], prompt="no soft tissue tumor")
    subject = Subject(item, lambda: Segmenter.from_pretrained(model))
    known = methods()
    for name in ("attention", "+feature", "full"):
        assert not known[name].run(subject).mask.any()


def test_unknown_methods_and_missing_pieces_get_a_sentence(model: Path) -> None:
    for name, sentence in (("otzu", "there are: otsu"), ("unet", "--rival"), ("+seeds", "--seeds 2")):
        options = Options(str(model), methods=(name,))
        with pytest.raises(InputError, match=sentence):
            chosen_methods(options, Judges(options))


# --- the supervised rival ---------------------------------------------------------------------------------


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    root = tmp_path / "bank"
    root.mkdir()
    for number, organ in enumerate(("lung", "liver")):
        image = patient(number, TUMOUR) / 900
        flags = np.where(TUMOUR, 2, 1).astype(np.uint8)
        item = Item(f"i{number}", "mr", "limb", "test", (2.0, 2.0, 2.0), (organ,), labelled=True)
        write_item(root, item, image.astype(np.float32), flags)
    return root


def test_the_rival_is_trained_left_out_and_measured(
    bank: Path, cases: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffugts.bench.rival.FEATURES", (4, 4, 4, 4, 4, 4))
    given: list[Any] = []

    def untrained(bank: Bank, options: RunOptions, out: Path, foreign: float, device: torch.device) -> nn.Module:
        given.extend((options, out, foreign, device))
        return build((4,) * 6)

    monkeypatch.setattr("diffugts.bench.rival.train_rival", untrained)
    folder = tmp_path / "rivals"
    words = "--exclude lung --steps 1 --loaders 2 --repeats 3 --widest 2 --foreign 0.5 --device cpu"
    train(["--bank", str(bank), "-o", str(folder / "soft-tissue.safetensors"), *words.split()])
    options, *others = given
    assert (options.steps, options.loaders, options.repeats, options.widest) == (1, 2, 3, 2.0)
    assert others == [folder / "soft-tissue", 0.5, torch.device("cpu")]
    rival = load_rival(folder / "soft-tissue.safetensors")
    assert rival.seen == ("liver",)
    save_rival(folder / "default.safetensors", build((4,) * 6), (4,) * 6, ["lung"])
    found = run(read_cases(cases)[1:3], Options(str(model), methods=("unet",), rival=folder), tmp_path / "out")
    assert [r["status"] for r in found["cases"]] == ["done", "done"]
    assert found["cases"][0]["auroc"] is not None
    assert [note for note in found["notes"] if "default.safetensors has seen lung" in note]
    assert not [note for note in found["notes"] if "soft-tissue" in note]


def test_the_rival_learns(bank: Path, tmp_path: Path) -> None:
    whole = seen_bank(bank, [])
    torch.manual_seed(0)
    options = RunOptions(12, 2, 32, 2e-2, warmup=1, ema=0.5, on_tumour=1.0)
    before = build((4,) * 6)
    after = train_rival(whole, options, tmp_path / "run", 0.3, features=(4,) * 6)
    image = torch.from_numpy(np.pad(patient(0, TUMOUR) / 900, (0, 8)))[None, None].float()
    flags = torch.from_numpy(np.pad(np.where(TUMOUR, 2, 1), (0, 8)))[None, None]
    with torch.inference_mode():
        losses = [float(supervised_loss(network(image), flags, (flags > 0).float())) for network in (before, after)]
    assert losses[1] < losses[0]


def test_the_rival_sees_what_the_heads_see(bank: Path) -> None:
    image, flags = np.full((SIDE,) * 3, 0.5, np.float32), np.where(TUMOUR, 2, 1).astype(np.uint8)
    scan = Item("scan_unmarked", "mr", "torso", "test", (2.0,) * 3, trusted=False)
    hidden = Item("scan_hidden", "mr", "torso", "test", (2.0,) * 3, ("lung",), labelled=True)
    for item in (scan, hidden):
        write_item(bank, item, image, flags)
    seen = {item.name: item for item in seen_bank(bank, ["lung"]).items}
    assert set(seen) == {"i1", "scan_unmarked", "scan_hidden"}  # not the planted lung tumour
    assert not seen["scan_hidden"].lesions
    assert seen["scan_hidden"].weight > hidden.weight  # it shows a lung
    lung = np.pad(np.full((20,) * 3, 0.1), 10, constant_values=0.5)
    chest = Item("scan_chest", "ct", "torso", "test", (4.0,) * 3)
    assert seen_bank(bank, ["lung"]).home(chest, lung) is not None  # where crops and pieces are to lie
    whole = {item.name: item for item in seen_bank(bank, []).items}
    assert whole["scan_hidden"] == hidden


def test_foreign_patches_are_targets_and_hidden_tumours_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = 32  # the smallest that the network can be trained on
    flags = np.ones((side,) * 3, np.uint8)
    flags[:, :, :8] = 2
    image = np.random.default_rng(0).uniform(0.4, 0.6, flags.shape).astype(np.float32)
    hidden = Item("scan_a", "mr", "limb", "test", (2.0,) * 3, ("soft tissue",), trusted=False, labelled=True)
    never_drawn = Item("i0", "mr", "limb", "test", (2.0,) * 3, ("liver",), labelled=True, weight=0.0)
    for item in (hidden, never_drawn):
        write_item(tmp_path, item, image, flags)
    given: list[tuple[torch.Tensor, torch.Tensor]] = []

    def loss(logits: torch.Tensor, flags: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        given.append((flags, weight))
        return supervised_loss(logits, flags, weight)

    monkeypatch.setattr("diffugts.bench.rival.supervised_loss", loss)
    seen = seen_bank(tmp_path, ["soft tissue"])
    train_rival(seen, RunOptions(1, 4, side), tmp_path / "run", 1e-9, features=(4,) * 6)
    ((shown, weight),) = given
    assert (shown >= 2).any()
    assert (shown[..., :8] == 0).all()
    assert (weight[shown >= 2] == 1).all()
    assert (weight[shown == 1] == UNTRUSTED).all()
    assert (weight[shown == 0] == 0).all()


def test_untrusted_healthy_voxels_weigh_less_in_the_loss() -> None:
    flags = torch.tensor([1, 1, 1, 1, 1, 1, 2, 2]).reshape(1, 1, 2, 2, 2)
    logits = torch.where(flags >= 2, 4.0, -4.0)
    logits[0, 0, 0, 0, 0] = 4.0  # found in healthy tissue
    losses = []
    for trust in (1.0, UNTRUSTED, 0.0):
        weight = torch.ones(flags.shape)
        weight[0, 0, 0, 0, 0] = trust
        losses.append(float(supervised_loss(logits, flags, weight)))
    assert losses[0] > losses[1] > losses[2]


def test_unknown_voxels_teach_nothing() -> None:
    logits = torch.zeros(1, 1, 2, 2, 2)
    flags = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]).reshape(1, 1, 2, 2, 2)
    changed = logits.clone()
    changed[flags == 0] = 9.0
    known = (flags > 0).float()
    assert torch.equal(supervised_loss(logits, flags, known), supervised_loss(changed, flags, known))


def test_a_bank_without_tumours_and_a_file_that_is_no_rival(bank: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no labelled tumour"):
        seen_bank(bank, ["lung", "liver"])
    with pytest.raises(WeightsError, match="no rival"):
        load_rival(model / "attention.safetensors")
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "some" / "brain+lung.safetensors", tmp_path / "some" / "default.safetensors")
    assert rival_file(tmp_path / "some", "lung").stem == "brain+lung"
    assert rival_file(tmp_path / "some", "soft tissue").stem == rival_file(tmp_path / "some", None).stem == "default"
    with pytest.raises(WeightsError, match=r"no brain\.safetensors and no default"):
        rival_file(tmp_path / "empty", "brain")


# --- lists of cases and datasets --------------------------------------------------------------------------


def test_patients_are_told_from_ids(cases: Path, shared: Path) -> None:
    assert [case.patient for case in read_cases(cases)] == ["leg_1", "leg_2", "chest", "well"]
    real = {case.id: case for case in read_cases(shared / "cases" / "cases.json")}
    assert real["sarcoma_ct_001"].patient == real["sarcoma_t1_001"].patient
    assert real["lung_pat1"].patient != real["lung_pat2"].patient
    assert real["lung_pat1"].category == "lung CT"
    assert real["healthy_ct_abdomen"].tumor is None
    assert all(case.image.is_file() for case in real.values())


def test_cases_are_chosen_by_id_or_category(cases: Path) -> None:
    every = read_cases(cases)
    assert [case.id for case in choose(every, "soft tissue")] == ["leg_t1_1", "leg_t1_2"]
    assert [case.id for case in choose(every, "leg*2")] == ["leg_t1_2"]
    assert [case.id for case in choose(every, limit=1)] == ["leg_t1_1", "chest", "well"]
    with pytest.raises(InputError, match="no case fits 'kidney'"):
        choose(every, "kidney")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "no list of cases"),
        ('{"cases": [{"id": "a"}]}', "images"),
        ('{"cases": []}', "holds no case"),
        ("[1]", "no list of cases"),
        (None, "cannot be read"),
    ],
)
def test_bad_lists_get_a_sentence(text: str | None, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "cases.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_cases(path)


def test_an_id_must_be_unique(cases: Path, tmp_path: Path) -> None:
    listed = json.loads(cases.read_text())["cases"]
    (tmp_path / "twice.json").write_text(json.dumps({"cases": [listed[0], listed[0]]}))
    with pytest.raises(InputError, match="'leg_t1_1' twice"):
        read_cases(tmp_path / "twice.json")


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_decathlon_as_downloaded(tmp_path: Path) -> None:
    names = {"Task03_Liver": "liver_0", "Task06_Lung": "lung_001", "Task10_Colon": "colon_5", "Task09_Spleen": "s_1"}
    for task, name in names.items():
        for part in ("imagesTr", "labelsTr"):
            touch(tmp_path / task / part / f"{name}.nii.gz", tmp_path / task / part / f"._{name}.nii.gz")
        touch(tmp_path / task / "imagesTs" / f"{name}9.nii.gz")
    labels = {"0": "background", "1": "liver", "2": "cancer"}
    (tmp_path / "Task03_Liver" / "dataset.json").write_text(json.dumps({"labels": labels}))
    found = {case.id: case for case in msd(tmp_path)}
    assert set(found) == {"liver_0", "lung_001", "colon_5"}
    assert [found[name].labels for name in ("liver_0", "lung_001", "colon_5")] == [(2,), (1,), (1,)]
    assert found["liver_0"].image == tmp_path / "Task03_Liver" / "imagesTr" / "liver_0.nii.gz"
    assert found["colon_5"].category == "colon CT"
    assert [case.id for case in msd(tmp_path / "Task06_Lung")] == ["lung_001"]


def test_the_papers_categories_are_all_there(tmp_path: Path) -> None:
    for task in ("Task03_Liver", "Task06_Lung", "Task07_Pancreas", "Task08_HepaticVessel", "Task10_Colon"):
        touch(*(tmp_path / task / part / "a.nii.gz" for part in ("imagesTr", "labelsTr")))
    touch(*(tmp_path / "case_00000" / name for name in ("imaging.nii.gz", "segmentation.nii.gz")))
    touch(*(tmp_path / "BraTS" / name for name in ("BraTS_flair.nii.gz", "BraTS_seg.nii.gz")))
    found = [*msd(tmp_path), *kits(tmp_path), *brats(tmp_path / "BraTS")]
    wanted = {f"{organ} CT" for organ in ("liver", "lung", "pancreas", "hepatic vessel", "colon", "kidney")}
    assert {case.category for case in found} == wanted | {"brain MR"}


def test_kits_counts_tumours_and_not_cysts(tmp_path: Path) -> None:
    folder = tmp_path / "dataset" / "case_00003"
    touch(folder / "imaging.nii.gz", tmp_path / "dataset" / "case_00004" / "imaging.nii.gz")
    labels = np.zeros((SIDE,) * 3, np.uint8)
    labels[4:10, 4:10, 4:10], labels[5:7, 5:7, 5:7], labels[8, 8, 8] = 1, 2, 3
    save(patient(0, labels == 2), folder / "imaging.nii.gz")
    save(labels, folder / "segmentation.nii.gz")
    (case,) = read_dataset("kits", tmp_path)
    assert np.array_equal(Subject(case, lambda: pytest.fail("not needed")).truth, labels == 2)


@pytest.mark.parametrize(
    ("folder", "scan", "truth"),
    [
        ("HGG/Brats18_2013_11_1", "Brats18_2013_11_1_flair.nii.gz", "Brats18_2013_11_1_seg.nii.gz"),
        ("BraTS2021_00000", "BraTS2021_00000_flair.nii.gz", "BraTS2021_00000_seg.nii.gz"),
        ("BraTS20_Training_355", "BraTS20_Training_355_flair.nii", "W39_1998.09.19_Segm.nii"),
        ("BraTS-GLI-00005-000", "BraTS-GLI-00005-000-t2f.nii.gz", "BraTS-GLI-00005-000-seg.nii.gz"),
    ],
)
def test_brats_of_several_years(folder: str, scan: str, truth: str, tmp_path: Path) -> None:
    place = tmp_path / folder
    touch(place / scan, place / truth, place / scan.replace("flair", "t1ce").replace("t2f", "t1c"))
    (case,) = brats(tmp_path)
    assert (case.image, case.tumor) == (place / scan, place / truth)
    assert (case.id, case.category, case.labels) == (place.name, "brain MR", ())


def test_an_empty_root_says_what_was_expected(tmp_path: Path) -> None:
    for kind, word in (("msd", "Task03_Liver"), ("kits", "case_00000"), ("brats", "t2f")):
        with pytest.raises(InputError, match=word):
            read_dataset(kind, tmp_path)


# --- the command line -------------------------------------------------------------------------------------


def test_results_are_rendered_from_results_json_alone(done: Path, tmp_path: Path) -> None:
    target = tmp_path / "docs" / "results.md"
    assert main(["bench", "--render", str(done / "results.json"), "-o", str(target)]) == 0
    text, beside = target.read_text(), (done / "results.md").read_text()
    assert beside.startswith(text.rstrip())  # but for the plots, which lie in the run's folder
    value = results(done)["summary"]["otsu"]["macro"]["dice"]
    assert f"| `otsu` | {value:.3f}" in text or f"{value:.3f} (" in text


@pytest.mark.parametrize("text", ["{", "[]", '{"cases": []}', None])
def test_what_is_no_result_is_refused(text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    assert main(["bench", "--render", str(path), "-o", str(tmp_path / "r.md")]) == 1
    assert "results.json" in capsys.readouterr().err
    assert not (tmp_path / "r.md").exists()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--cases", "a.json", "--dataset", "msd"],
        ["--dataset", "msd"],
        ["--cases", "a.json", "--root", "."],
        ["--cases", "a.json", "--predictions", "nowhere"],
        ["--cases", "a.json", "--seeds", "0"],
        ["--cases", "a.json", "--methods", ","],
    ],
)
def test_wrong_usage_exits_with_2(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", *words, "-o", str(tmp_path)])
    assert stop.value.code == 2


def test_files_that_are_not_there_are_named_at_once(
    cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--rival", "gone.safetensors"], ["--predictions", "x=gone"], ["--model", "gone"]):
        assert main(["bench", "--cases", str(cases), "-o", str(tmp_path), *words]) == 1
        assert "gone" in capsys.readouterr().err


def test_a_dataset_runs_through_the_command_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], make_kits: Callable[[Path], None]
) -> None:
    make_kits(tmp_path / "kits")
    words = ["bench", "--dataset", "kits", "--root", str(tmp_path / "kits"), "-o", str(tmp_path / "out")]
    assert main([*words, "--model", str(model), "--methods", MODEL_FREE]) == 0
    assert "kidney CT" in capsys.readouterr().out
    assert set(results(tmp_path / "out")["summary"]) == set(MODEL_FREE.split(","))


@pytest.fixture
def make_kits() -> Callable[[Path], None]:
    def make(root: Path) -> None:
        image = np.where(ball((12, 12, 12), 10), 40, -1000) + 200 * TUMOUR
        save(image.astype(np.int16), root / "case_00000" / "imaging.nii.gz")
        save(2 * TUMOUR.astype(np.uint8), root / "case_00000" / "segmentation.nii.gz")

    return make


def test_held_out_files_decide_what_resume_compares(model: Path) -> None:
    judges = Judges(Options(str(model)))
    default, other = judges.hashes(None), judges.hashes("soft tissue")
    assert default["attention.safetensors"] != other["attention.safetensors"]
    assert default["unet.safetensors"] == other["unet.safetensors"]
    assert judges.held_out("Limb") == "soft tissue"
    assert Judges(Options(str(model), held_out="none")).held_out("soft tissue") is None
    shared = judges.segmenter("soft tissue").backbone is judges.segmenter(None).backbone
    assert shared
    assert heads_folder(model, "soft tissue").name == "soft-tissue"
