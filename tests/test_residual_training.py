"""Residual heads: what their examples show, whose tumours they must not, and that they start as Bayes' rule."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffugts.errors import InputError
from diffugts.heads import RESIDUAL, Settings, held_out_folder, load_heads, load_residual_head, save_heads
from diffugts.residual import ResidualHead
from diffugts.training.recipe import build
from diffugts.training.residual import Example, Maker, main, make_examples, train_residual_head
from tiny import tiny_folder

BOTH = ["bone", "soft tissue"]
RECIPE = {"synthetic": [{"kind": "limb", "modality": "ct", "count": 4, "lesions": 1.0, "window": 64}]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(bank, model with a head held out, folder of examples)."""
    folder = tmp_path_factory.mktemp("residual")
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    build(folder / "recipe.json", folder, folder / "bank", 4.0)
    model = tiny_folder(folder / "model")
    head, *_ = load_heads(model)
    save_heads(held_out_folder(model, ["soft tissue"]), head, Settings(), seen=[])
    assert make_examples(str(model), folder / "bank", folder / "out" / "examples", 20, device="cpu") >= 3
    return folder / "bank", model, folder / "out"


def examples(out: Path) -> list[Example]:
    return [Example(**torch.load(path, weights_only=True)) for path in sorted((out / "examples").glob("*.pt"))]


def test_examples_are_finite_and_lie_in_their_candidate(run: tuple[Path, Path, Path]) -> None:
    for example in examples(run[2]):
        assert example.inputs.shape == (ResidualHead.INPUTS, *example.inside.shape)
        assert torch.isfinite(example.inputs).all()
        assert (example.inputs[-1].bool() | ~example.inside).all()
        assert set(example.organs) <= {"bone", "soft tissue", ""}


def test_the_same_number_gives_the_same_example(run: tuple[Path, Path, Path]) -> None:
    bank, model, out = run
    maker, path = Maker.load(str(model), bank, torch.device("cpu")), min((out / "examples").glob("*.pt"))
    kept = Example(**torch.load(path, weights_only=True))
    again = maker.example(np.random.default_rng((0, 77, int(path.stem))))
    assert again is not None
    assert torch.equal(again.target, kept.target)
    assert again.organs == kept.organs


@pytest.mark.parametrize(
    ("organs", "anatomy", "foreign", "excluded", "shown"),
    [
        (("brain",), "head", False, ["brain"], False),
        (("brain",), "head", False, ["lung"], True),
        (("",), "torso", False, ["liver"], False),  # a graft of unknown organ may lie in a liver
        (("",), "torso", False, ["brain"], True),
        (("",), "head", True, ["brain"], True),  # a foreign mass is no tumour
        ((), "limb", False, ["soft tissue"], True),
    ],
)
def test_examples_of_excluded_organs_are_left_out(
    organs: tuple[str, ...], anatomy: str, foreign: bool, excluded: list[str], shown: bool
) -> None:
    nothing = torch.zeros(1)
    assert Example(nothing, nothing, nothing, organs, anatomy, foreign).without(excluded) is shown


def test_a_new_head_says_what_bayes_says(run: tuple[Path, Path, Path]) -> None:
    example = examples(run[2])[0]
    logits = ResidualHead()(example.inputs[None].float())[0]
    torch.testing.assert_close(logits, 4 * example.inputs[0].float())


def test_a_head_learns_its_examples(run: tuple[Path, Path, Path], tmp_path: Path) -> None:
    paths = sorted((run[2] / "examples").glob("*.pt"))
    residual = train_residual_head(paths, [], 30, tmp_path / "curve.csv", device="cpu")
    loss = [sum(_mistakes(head, example) for example in examples(run[2])) for head in (ResidualHead(), residual)]
    assert loss[1] < loss[0]
    shown = [path for path in paths if not Example(**torch.load(path, weights_only=True)).without(BOTH)]
    with pytest.raises(InputError, match="without bone, soft tissue"):
        train_residual_head(shown, BOTH, 2, tmp_path / "none.csv", device="cpu")


def _mistakes(head: ResidualHead, example: Example) -> float:
    with torch.no_grad():
        p = torch.sigmoid(head(example.inputs[None].float())[0])
    return float(((p - example.target.float()).abs() * example.inside).mean())


def test_one_head_is_written_beside_each_attention_head(run: tuple[Path, Path, Path], tmp_path: Path) -> None:
    bank, model, out = run
    where = ["--model", str(model), "--bank", str(bank), "-o", str(out)]
    main([*where, *["--examples", "8", "--steps", "2", "--device", "cpu", "--processes", "2"]])
    for place in (Path(), Path("held_out") / "soft-tissue"):
        assert load_residual_head(out / "heads" / place) is not None
        assert (out / "heads" / place / RESIDUAL).is_file()
