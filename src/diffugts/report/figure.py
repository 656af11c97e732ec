"""A figure for a paper: a row for each case, the columns scan, attention, pseudo-healthy, residual and mask.

All rows share one scale: the same field of view in mm and the same colours for the same values. CT windows follow the
prompt's anatomy, so rows that ask for the same are shown the same; MR has no common unit, so each row has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffugts.errors import InputError
from diffugts.report.planes import PLANES, Aim, Plane, Voxel, Window, focus, grey_window, scale_bar_mm, scale_top
from diffugts.result import PromptResult, Result
from diffugts.volume import Volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("scan", "attention", "pseudo-healthy", "residual", "mask")
FORMATS = (".pdf", ".png", ".svg", ".tif", ".tiff")
CELL = 1.4  # inches: five columns make the 7 inches of a two-column page
FIELD_MM = 120.0  # the least field of view
ZOOM = 2.5  # of the longest diameter, where that is more
OUTLINE = "#00b7eb"
FONTS = {"font.family": "sans-serif", "font.size": 7, "pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none"}


@dataclass(frozen=True)
class Row:
    """One case in the figure: the scan, the answer to one prompt, and where the plane goes through."""

    label: str
    volume: Volume
    answer: PromptResult
    place: Voxel

    @classmethod
    def of(cls, result: Result, label: str, prompt: str | None = None) -> Row:
        """A row for a prompt of the result, by default its first; through the largest lesion. Raises PromptError."""
        answer = result[next(iter(result)) if prompt is None else prompt]
        return cls(label, result.volume, answer, focus(answer, result.volume))


def draw_figure(
    rows: Sequence[Row], plane: str = "axial", window: tuple[float, float] | None = None, field_mm: float | None = None
) -> Figure:
    """The figure.

    Args:
        rows: from top to bottom.
        plane: "axial", "coronal" or "sagittal".
        window: grey values of every row; by default by anatomy for CT, and percentiles for MR.
        field_mm: side of the field of view; by default what the largest lesion needs.

    Raises:
        InputError: no rows, another plane, or a window or field that is empty.
    """
    import matplotlib
    from matplotlib.figure import Figure

    cut = next((known for known in PLANES if known.name == plane), None)
    if not rows or cut is None:
        raise InputError(f"A figure needs rows, and a plane out of axial, coronal, sagittal, not {plane!r}.")
    if (window is not None and not window[0] < window[1]) or (field_mm is not None and not field_mm > 0):
        raise InputError("A window goes from a lower to a higher value, and a field of view is above 0 mm.")
    field = _field_mm(rows, cut) if field_mm is None else field_mm
    windows = [_window(row, cut, field) if window is None else Window(*window) for row in rows]
    tops = {
        "attention": scale_top("attention", *(row.answer.attention for row in rows)),
        "residual": scale_top("residual", *(row.answer.residual for row in rows)),
    }
    with matplotlib.rc_context(FONTS):
        figure = Figure(figsize=(CELL * len(COLUMNS), CELL * len(rows) + 0.45))
        grid = figure.subplots(len(rows), len(COLUMNS), squeeze=False)
        height = figure.get_figheight()
        figure.subplots_adjust(
            left=0.03, right=0.998, top=1 - 0.18 / height, bottom=0.27 / height, wspace=0.03, hspace=0.03
        )
        for cells, row, grey in zip(grid, rows, windows, strict=True):
            _draw_row(cells, row, cut, grey, field, tops)
        for axes, name in zip(grid[0], COLUMNS, strict=True):
            axes.set_title(name, fontsize=8, pad=3)
        _bars(figure, grid[-1], tops)
    return figure


def save_figure(figure: Figure, path: str | Path, dpi: int = 300) -> None:
    """Write the figure in the format that the name ends in, in one step. Raises InputError for another format."""
    import matplotlib

    from diffugts.io import atomic_path

    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path.name} must end in one of {', '.join(FORMATS)} to be written as a figure.")
    with matplotlib.rc_context(FONTS), atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi, facecolor="white")


def _field_mm(rows: Sequence[Row], plane: Plane) -> float:
    """What the largest lesion needs; the whole plane where no row has a lesion."""
    found = [row for row in rows if row.answer.lesions]
    return max(_needed_mm(row, plane) for row in found or rows)


def _needed_mm(row: Row, plane: Plane) -> float:
    aim = Aim.at(row.volume, row.place)
    whole = max(aim.size_mm(plane, aim.box(plane)))
    if not row.answer.lesions:
        return whole
    return min(max(FIELD_MM, ZOOM * row.answer.lesions[0].longest_diameter_mm), whole)


def _window(row: Row, plane: Plane, field: float) -> Window:
    aim = Aim.at(row.volume, row.place)
    shown = aim.cut(row.volume.array, plane, aim.box(plane, field))
    return grey_window(row.volume, row.place, shown, row.answer.understood.anatomy)


def _draw_row(
    cells: Sequence[Axes], row: Row, plane: Plane, window: Window, field: float, tops: dict[str, float]
) -> None:
    aim = Aim.at(row.volume, row.place)
    box = aim.box(plane, field)
    width, height = aim.size_mm(plane, box)
    grey: dict[str, Any] = {"cmap": "gray", "vmin": window.low, "vmax": window.high}
    extent = (-width / 2, width / 2, height / 2, -height / 2)  # centred: a smaller scan leaves a margin
    for axes, name in zip(cells, COLUMNS, strict=True):
        under = row.answer.pseudo_healthy if name == "pseudo-healthy" else row.volume.array
        if name == "residual":
            cut = aim.cut(row.answer.residual, plane, box)
            axes.imshow(cut, cmap="magma", vmin=0, vmax=tops[name], extent=extent, interpolation="bilinear")
        else:
            axes.imshow(aim.cut(under, plane, box), extent=extent, interpolation="bilinear", **grey)
        if name == "attention":
            strength = np.clip(aim.cut(row.answer.attention, plane, box) / tops[name], 0.0, 1.0)
            axes.imshow(strength, cmap="inferno", vmin=0, vmax=1, alpha=0.75 * strength, extent=extent)
        if name == "mask":
            _outline(axes, aim.cut(row.answer.mask, plane, box), width, height)
        _frame(axes, field)
    _letters(cells[0], plane)
    _scale(cells[0], field)
    cells[0].set_ylabel(row.label.replace("$", r"\$"), fontsize=7, labelpad=2)


def _outline(axes: Axes, mask: Any, width: float, height: float) -> None:
    if not mask.any():
        return
    rows, columns = mask.shape
    x = (np.arange(-1, columns + 1) + 0.5) * width / columns - width / 2
    y = (np.arange(-1, rows + 1) + 0.5) * height / rows - height / 2
    axes.contour(x, y, np.pad(mask.astype(float), 1), levels=[0.5], colors=OUTLINE, linewidths=0.8)


def _frame(axes: Axes, field: float) -> None:
    axes.set_xlim(-field / 2, field / 2)
    axes.set_ylim(field / 2, -field / 2)
    axes.set_aspect("equal")
    axes.set_facecolor("black")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _letters(axes: Axes, plane: Plane) -> None:
    for letter, (x, y) in zip(plane.letters, ((0.04, 0.5), (0.96, 0.5), (0.5, 0.95), (0.5, 0.05)), strict=True):
        axes.text(x, y, letter, transform=axes.transAxes, ha="center", va="center", **_readable())


def _scale(axes: Axes, field: float) -> None:
    """A bar of a round length at the lower right."""
    from matplotlib.patheffects import withStroke

    length = scale_bar_mm(field)
    right, low = 0.45 * field, 0.42 * field
    (bar,) = axes.plot([right - length, right], [low, low], color="white", linewidth=1.5, solid_capstyle="butt")
    bar.set_path_effects([withStroke(linewidth=2.5, foreground="black")])
    axes.text(right - length / 2, low - 0.025 * field, f"{length} mm", ha="center", va="bottom", **_readable())


def _readable() -> dict[str, Any]:
    """White letters with a black rim."""
    from matplotlib.patheffects import withStroke

    return {"color": "white", "fontsize": 6, "path_effects": [withStroke(linewidth=1.5, foreground="black")]}


def _bars(figure: Figure, cells: Sequence[Axes], tops: dict[str, float]) -> None:
    """Colour scales under the columns that need one."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    for name, colours in (("attention", "inferno"), ("residual", "magma")):
        place = cells[COLUMNS.index(name)].get_position()
        height = 0.07 / figure.get_figheight()
        axes = figure.add_axes((place.x0 + 0.1 * place.width, place.y0 - 1.7 * height, 0.8 * place.width, height))
        bar = figure.colorbar(ScalarMappable(Normalize(0, tops[name]), colours), cax=axes, orientation="horizontal")
        bar.set_ticks([0, tops[name]], labels=["0", f"{tops[name]:.2g}"])
        bar.ax.tick_params(labelsize=6, length=1.5, pad=1)
        bar.outline.set_linewidth(0.4)
