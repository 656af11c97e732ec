"""The figure for papers: one scale for all rows, and what goes into them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from diffugts.cli import main
from diffugts.errors import InputError, PromptError
from diffugts.report.figure import COLUMNS, Row, draw_figure, save_figure
from diffugts.report.planes import LUNG, SOFT_TISSUE
from diffugts.result import Result
from diffugts.volume import Volume
from fake_model import answer, scan

RAS = np.diag([4.0, 4.0, 5.0, 1.0])


def row(
    label: str = "a", prompt: str = "liver tumor", affine: Any = RAS, tumour: bool = True, attention: float = 1.0
) -> Row:
    volume = scan(affine=affine, tumour=tumour)
    told = answer(volume, prompt)
    told = replace(told, attention=told.attention * np.float32(attention))
    return Row.of(Result(volume, {prompt: told}), label)


def size(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as image:
        return image.size


def cell(figure: Figure, row_number: int, name: str) -> Any:
    return figure.axes[row_number * len(COLUMNS) + COLUMNS.index(name)]


def test_rows_share_field_of_view_and_colours():
    small = np.diag([2.0, 2.0, 2.5, 1.0])
    figure = draw_figure([row("a"), row("b", affine=small, attention=0.1)])
    fields = {cell(figure, number, name).get_xlim() for number in (0, 1) for name in COLUMNS}
    assert len(fields) == 1
    assert len({cell(figure, number, "residual").images[0].get_clim() for number in (0, 1)}) == 1
    strong, weak = (cell(figure, number, "attention").images[1].get_array().max() for number in (0, 1))
    assert weak == pytest.approx(0.1 * strong, rel=1e-5)
    low, high = cell(figure, 1, "scan").images[0].get_extent()[:2]
    assert high - low == pytest.approx(24 * 2.0)  # in mm, so the smaller scan is drawn smaller
    assert [cell(figure, number, "scan").get_ylabel() for number in (0, 1)] == ["a", "b"]
    assert [cell(figure, 0, name).get_title() for name in COLUMNS] == list(COLUMNS)


def test_windows_follow_the_anatomy_unless_one_is_given():
    rows = [row(prompt="liver tumor"), row(prompt="lung tumor")]
    shown = [cell(draw_figure(rows), number, "scan").images[0].get_clim() for number in (0, 1)]
    assert shown == [tuple(SOFT_TISSUE[:2]), tuple(LUNG[:2])]
    given = draw_figure(rows, window=(0.0, 100.0))
    assert {cell(given, number, name).images[0].get_clim() for number in (0, 1) for name in ("scan", "mask")} == {
        (0.0, 100.0)
    }


def test_the_mask_is_outlined_where_it_lies():
    drawn = row()
    figure = draw_figure([drawn])
    (outline,) = cell(figure, 0, "mask").collections
    (path,) = outline.get_paths()
    centre = path.vertices.mean(axis=0)
    # The ball lies to the patient's right and front: on the left, and up, where y is below zero.
    assert centre[0] < 0
    assert centre[1] < 0
    assert len(cell(draw_figure([row(tumour=False)]), 0, "mask").collections) == 0


def test_the_scale_bar_has_the_length_it_names():
    figure = draw_figure([row()], field_mm=60)
    axes = cell(figure, 0, "scan")
    (bar,) = axes.lines
    length = float(np.ptp(bar.get_xdata()))
    assert f"{length:.0f} mm" in {text.get_text() for text in axes.texts}
    assert axes.get_xlim() == (-30.0, 30.0)


@pytest.mark.parametrize(("plane", "letters"), [("axial", "RLAP"), ("coronal", "RLSI"), ("sagittal", "APSI")])
def test_planes_are_lettered(plane: str, letters: str):
    texts = {text.get_text() for text in cell(draw_figure([row()], plane), 0, "scan").texts}
    assert set(letters) <= texts


def test_mr_and_constant_maps_are_drawn_too():
    values = np.random.default_rng(0).normal(100, 20, (12, 12, 12)).astype(np.float32)
    volume = Volume(values, RAS, source="mr")
    figure = draw_figure([Row.of(Result(volume, {"brain tumor": answer(volume, "brain tumor")}), "$mr$")])
    low, high = cell(figure, 0, "scan").images[0].get_clim()
    assert low < 100 < high
    assert cell(figure, 0, "scan").get_ylabel() == r"\$mr\$"


@pytest.mark.parametrize(
    "wrong", [{"plane": "oblique"}, {"window": (5.0, 5.0)}, {"field_mm": 0.0}, {"field_mm": float("nan")}]
)
def test_what_cannot_be_drawn_is_a_sentence(wrong: dict[str, Any]):
    with pytest.raises(InputError):
        draw_figure([row()], **wrong)
    with pytest.raises(PromptError):
        Row.of(Result(scan(), {"liver tumor": answer(scan())}), "a", "kidney tumor")
    with pytest.raises(InputError):
        draw_figure([])


@pytest.mark.parametrize(("name", "starts"), [("a.pdf", b"%PDF"), ("a.png", b"\x89PNG"), ("a.SVG", b"<?xml")])
def test_formats_follow_the_name(tmp_path: Path, name: str, starts: bytes):
    save_figure(draw_figure([row()]), tmp_path / name, dpi=72)
    assert (tmp_path / name).read_bytes().startswith(starts)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_verb_draws_folders_of_cases(tmp_path: Path, capsys):
    for name, prompt in (("a", "liver tumor"), ("b", "kidney tumor")):
        Result(scan(), {prompt: answer(scan(), prompt)}).save(tmp_path / "out", name, report=True)
    picture = tmp_path / "figure.png"
    words = ["figure", str(tmp_path / "out"), "-o", str(picture), "--dpi", "72", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) == {"figure": str(picture), "rows": ["a", "b"], "plane": "axial"}
    two = size(picture)
    assert main([*words, "--prompt", "kidney tumor"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["rows"] == ["b"]
    assert "a is left out" in said.err
    one = size(picture)
    assert one[0] == two[0]
    assert one[1] < two[1]
    assert main([*words, "--prompt", "lung tumor"]) == 1
    assert main(["figure", str(tmp_path / "out"), "-o", str(tmp_path / "figure.doc")]) == 1
    assert main(["figure", str(tmp_path), "-o", str(picture)]) == 1
    assert "holds no result" in capsys.readouterr().err
