"""One picture that lets a reader judge an answer: three planes through the largest lesion, five views each.

Radiological convention: the patient's right is on the left of axial and coronal planes, anterior is on the
left of sagittal ones. Planes follow the scan's own grid (nothing is interpolated); on an oblique scan the
letters name the nearest direction.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffugts.intensity import guess_modality
from diffugts.result import PromptResult
from diffugts.volume import Volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]
Window = tuple[float, float]

COLUMNS = ("scan", "attention", "pseudo-healthy", "residual", "mask")
SOFT_TISSUE: Window = (-160.0, 240.0)  # HU: level 40, width 400
LUNG: Window = (-1350.0, 150.0)  # HU: level -600, width 1500
FIELD_MM = 500.0  # the most that a plane shows of a long scan, around the lesion
_BACKGROUND, _INK, _FAINT, _OUTLINE = "#0b0d10", "#e8eaed", "#8b929b", "#35d0ff"


@dataclass(frozen=True)
class _Plane:
    """How to cut one plane out of an array whose axes run right→left, anterior→posterior, superior→inferior,
    so that its rows go down and its columns to the right as a radiologist expects."""

    name: str
    axis: int
    letters: tuple[str, str, str, str]  # left, right, top, bottom

    @property
    def across(self) -> int:
        return 0 if self.axis != 0 else 1

    @property
    def down(self) -> int:
        return 2 if self.axis != 2 else 1


@dataclass(frozen=True)
class _Turn:
    """How a scan's axes become R→L, A→P, S→I: the axis that comes to each place, and its direction."""

    order: tuple[int, ...]
    steps: tuple[int, ...]

    @classmethod
    def to_radiological(cls, affine: Array) -> _Turn:
        import nibabel as nib

        axes = nib.orientations.io_orientation(affine)
        moves = nib.orientations.ornt_transform(axes, nib.orientations.axcodes2ornt(("L", "P", "I")))
        order = np.argsort(moves[:, 0])
        return cls(tuple(int(axis) for axis in order), tuple(int(moves[axis, 1]) for axis in order))

    def view(self, array: Array) -> Array:
        turned: Array = array.transpose(self.order)[tuple(slice(None, None, step) for step in self.steps)]
        return turned

    def voxel(self, place: tuple[int, int, int], shape: tuple[int, int, int]) -> tuple[int, ...]:
        return tuple(
            place[axis] if step > 0 else shape[axis] - 1 - place[axis]
            for axis, step in zip(self.order, self.steps, strict=True)
        )


PLANES = (
    _Plane("axial", 2, ("R", "L", "A", "P")),
    _Plane("coronal", 1, ("R", "L", "S", "I")),
    _Plane("sagittal", 0, ("A", "P", "S", "I")),
)


def draw_preview(answer: PromptResult, volume: Volume, title: str) -> Figure:
    """The preview as a matplotlib figure, made without matplotlib's global state.

    Args:
        answer: arrays on the volume's grid.
        volume: the scan, in any orientation.
        title: the prompt as the user wrote it.
    """
    from matplotlib.figure import Figure

    turn = _Turn.to_radiological(volume.affine)
    spacing = volume.spacing[list(turn.order)]
    place = _focus(answer, volume)
    point = turn.voxel(place, volume.shape)
    arrays: tuple[Array, ...] = (
        volume.array,
        answer.attention,
        answer.pseudo_healthy,
        answer.residual,
        answer.mask,
    )
    views = {name: turn.view(array) for name, array in zip(COLUMNS, arrays, strict=True)}
    cuts = [{name: _cut(view, plane, point, spacing) for name, view in views.items()} for plane in PLANES]
    sizes = [_size_mm(cut["scan"], plane, spacing) for cut, plane in zip(cuts, PLANES, strict=True)]
    heights = [height / width for width, height in sizes]
    cell = 3.0  # inches
    figure = Figure(figsize=(cell * len(COLUMNS), cell * sum(heights) + 1.1), dpi=100, facecolor=_BACKGROUND)
    grid = figure.subplots(len(PLANES), len(COLUMNS), gridspec_kw={"height_ratios": heights}, squeeze=False)
    top = 1 - 1.05 / figure.get_figheight()
    figure.subplots_adjust(left=0.03, right=0.995, bottom=0.01, top=top, wspace=0.03, hspace=0.03)
    window = _window(volume, place, np.concatenate([cut["scan"].ravel() for cut in cuts]))
    scale = {name: _largest(views[name]) for name in ("attention", "residual")}
    for row, (plane, cut, size) in enumerate(zip(PLANES, cuts, sizes, strict=True)):
        for column, name in enumerate(COLUMNS):
            axes = grid[row, column]
            _draw_view(axes, name, cut, size, window, scale)
            _frame(axes, size)
            if row == 0:
                label = f"{name} (max {scale[name]:.2g})" if name in scale else name
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
            window,
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


def _letters(axes: Axes, plane: _Plane) -> None:
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
    unit = " HU" if guess_modality(volume)[0] == "ct" else ""
    detail = f"{found} · score {answer.image_score:.2f} · window {window[0]:.0f} to {window[1]:.0f}{unit}"
    # A '$' pair would be read as a formula.
    heading = textwrap.shorten(f"{title} · {volume.source}".replace("$", r"\$"), 110, placeholder=" …")
    height = figure.get_figheight()
    figure.text(0.03, 1 - 0.16 / height, heading, color=_INK, fontsize=14, va="top", weight="bold")
    figure.text(0.03, 1 - 0.46 / height, detail, color=_FAINT, fontsize=11, va="top")
    figure.text(0.995, 1 - 0.16 / height, "research use only", color=_FAINT, fontsize=9, va="top", ha="right")


def _focus(answer: PromptResult, volume: Volume) -> tuple[int, int, int]:
    """The voxel to cut through: inside the largest lesion, else the attention's peak, else the middle."""
    if answer.lesions:
        centre = np.linalg.inv(volume.affine) @ (*answer.lesions[0].centre_mm, 1.0)
        inside = np.argwhere(answer.mask)
        # The centre of a ring or a crescent lies outside it: take the mask's voxel nearest in mm.
        offset = (inside - centre[:3]) * volume.spacing
        i, j, k = inside[np.argmin((offset**2).sum(axis=1))]
    elif np.ptp(answer.attention) > 0:
        i, j, k = np.unravel_index(int(np.argmax(answer.attention)), answer.attention.shape)
    else:
        i, j, k = (side // 2 for side in volume.shape)
    return int(i), int(j), int(k)


def _cut(view: Array, plane: _Plane, point: tuple[int, ...], spacing: Array) -> Array:
    """(rows, columns) through the point; long sides are cut to FIELD_MM around it."""
    sides: list[slice | int] = []
    for axis, centre in enumerate(point):
        if axis == plane.axis:
            sides.append(int(centre))
            continue
        length = view.shape[axis]
        shown = min(length, max(1, round(FIELD_MM / spacing[axis])))
        start = int(np.clip(centre - shown // 2, 0, length - shown))
        sides.append(slice(start, start + shown))
    cut: Array = view[tuple(sides)].T
    return cut


def _size_mm(cut: Array, plane: _Plane, spacing: Array) -> tuple[float, float]:
    rows, columns = cut.shape
    return columns * float(spacing[plane.across]), rows * float(spacing[plane.down])


def _window(volume: Volume, place: tuple[int, int, int], shown: Array) -> Window:
    """Grey values shown: CT: the soft-tissue window, or lung's where the place is lung; MR: percentiles."""
    if guess_modality(volume)[0] == "ct":
        margin = [math.ceil(20.0 / side) for side in volume.spacing]
        near = volume.array[tuple(slice(max(p - m, 0), p + m + 1) for p, m in zip(place, margin, strict=True))]
        return LUNG if -950.0 < np.median(near) < -400.0 else SOFT_TISSUE  # darker still is air around the patient
    inside = shown[shown > shown.min()]
    if inside.size == 0:
        return float(shown.min()), float(shown.min()) + 1.0
    low, high = np.percentile(inside, (0.5, 99.5))
    return float(low), float(max(high, low + 1e-6))


def _largest(view: Array) -> float:
    """Top of a colour scale: at least a little above zero, so that an empty map stays dark."""
    return max(float(view.max()), 1e-6)
