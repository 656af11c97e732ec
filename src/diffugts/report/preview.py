"""One picture that lets a reader judge an answer: three planes through the largest lesion, five views each."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffugts.report.planes import PLANES, Aim, Array, Plane, Window, focus, grey_window, scale_top
from diffugts.result import PromptResult
from diffugts.volume import Volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("scan", "attention", "pseudo-healthy", "residual", "mask")
_BACKGROUND, _INK, _FAINT, _OUTLINE = "#0b0d10", "#e8eaed", "#8b929b", "#35d0ff"


def draw_preview(answer: PromptResult, volume: Volume, title: str) -> Figure:
    """The preview as a matplotlib figure, made without matplotlib's global state.

    Args:
        answer: arrays on the volume's grid.
        volume: the scan, in any orientation.
        title: the prompt as the user wrote it.
    """
    from matplotlib.figure import Figure

    place = focus(answer, volume)
    aim = Aim.at(volume, place)
    arrays: tuple[Array, ...] = (
        volume.array,
        answer.attention,
        answer.pseudo_healthy,
        answer.residual,
        answer.mask,
    )
    maps = dict(zip(COLUMNS, arrays, strict=True))
    cuts = [{name: aim.cut(array, plane) for name, array in maps.items()} for plane in PLANES]
    sizes = [aim.size_mm(plane, aim.box(plane)) for plane in PLANES]
    heights = [height / width for width, height in sizes]
    cell = 3.0  # inches
    figure = Figure(figsize=(cell * len(COLUMNS), cell * sum(heights) + 1.1), dpi=100, facecolor=_BACKGROUND)
    grid = figure.subplots(len(PLANES), len(COLUMNS), gridspec_kw={"height_ratios": heights}, squeeze=False)
    top = 1 - 1.05 / figure.get_figheight()
    figure.subplots_adjust(left=0.03, right=0.995, bottom=0.01, top=top, wspace=0.03, hspace=0.03)
    shown = np.concatenate([cut["scan"].ravel() for cut in cuts])
    window = grey_window(volume, place, shown, answer.understood.anatomy)
    scale = {name: scale_top(name, maps[name]) for name in ("attention", "residual")}
    for row, (plane, cut, size) in enumerate(zip(PLANES, cuts, sizes, strict=True)):
        for column, name in enumerate(COLUMNS):
            axes = grid[row, column]
            _draw_view(axes, name, cut, size, window, scale)
            _frame(axes, size)
            if row == 0:
                label = f"{name} (0 to {scale[name]:.2g})" if name in scale else name
                axes.set_title(label, color=_INK, fontsize=11, pad=4)
            if column == 0:
                _letters(axes, plane)
    _write_title(figure, answer, volume, title, window)
    return figure


def save_preview(answer: PromptResult, volume: Volume, title: str, path: str | Path) -> None:
    """Write the preview as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = draw_preview(answer, volume, title)
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", facecolor=figure.get_facecolor())


def _draw_view(
    axes: Axes,
    name: str,
    cut: dict[str, Array],
    size: tuple[float, float],
    window: Window,
    scale: dict[str, float],
) -> None:
    """One view; the extent is in mm, so that anisotropic voxels keep their shape."""
    extent = (0.0, size[0], size[1], 0.0)
    if name == "residual":
        shown, (low, high), colours = cut["residual"], (0.0, scale["residual"]), "magma"
    else:
        shown, (low, high), colours = (
            cut["pseudo-healthy" if name == "pseudo-healthy" else "scan"],
            window[:2],
            "gray",
        )
    axes.imshow(shown, cmap=colours, vmin=low, vmax=high, extent=extent, interpolation="nearest")
    if name == "attention":
        strength = np.clip(cut[name].astype(np.float32) / scale[name], 0.0, 1.0)
        axes.imshow(strength, cmap="inferno", vmin=0.0, vmax=1.0, alpha=0.75 * strength, extent=extent)
    if name == "mask" and cut[name].any():
        rows, columns = cut[name].shape
        x = (np.arange(columns) + 0.5) * size[0] / columns
        y = (np.arange(rows) + 0.5) * size[1] / rows
        padded = np.pad(cut[name].astype(float), 1)  # closes the outline of what touches the border
        x, y = (np.concatenate([[2 * c[0] - c[1]], c, [2 * c[-1] - c[-2]]]) for c in (x, y))
        axes.contour(x, y, padded, levels=[0.5], colors=_OUTLINE, linewidths=1.2)


def _frame(axes: Axes, size: tuple[float, float]) -> None:
    axes.set_xlim(0.0, size[0])
    axes.set_ylim(size[1], 0.0)
    axes.set_aspect("equal")
    axes.set_facecolor("black")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _letters(axes: Axes, plane: Plane) -> None:
    from matplotlib.patheffects import withStroke

    places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02))
    align = (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom"))
    for letter, (x, y), (horizontal, vertical) in zip(plane.letters, places, align, strict=True):
        text = axes.text(x, y, letter, transform=axes.transAxes, color="#ffd76a", fontsize=10)
        text.set(ha=horizontal, va=vertical, path_effects=[withStroke(linewidth=2.5, foreground="black")])
    axes.set_ylabel(plane.name, color=_FAINT, fontsize=10)


def _write_title(figure: Figure, answer: PromptResult, volume: Volume, title: str, window: Window) -> None:
    count = len(answer.lesions)
    found = f"{count} lesion{'s' if count != 1 else ''}, {answer.volume_ml:.2f} ml" if count else "nothing found"
    detail = f"{found} · score {answer.image_score:.2f} · {window}"
    # A '$' pair would be read as a formula.
    heading = textwrap.shorten(f"{title} · {volume.source}".replace("$", r"\$"), 110, placeholder=" …")
    height = figure.get_figheight()
    figure.text(0.03, 1 - 0.16 / height, heading, color=_INK, fontsize=14, va="top", weight="bold")
    figure.text(0.03, 1 - 0.46 / height, detail, color=_FAINT, fontsize=11, va="top")
    figure.text(0.995, 1 - 0.16 / height, "research use only", color=_FAINT, fontsize=9, va="top", ha="right")
