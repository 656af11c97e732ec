"""The report: one page per case that opens from disk, without a network, with every picture inside it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffugts.lesions import Lesion
from diffugts.report.cautions import cautions
from diffugts.report.pictures import grey, heat, outline
from diffugts.report.planes import (
    LUNG,
    PLANES,
    SOFT_TISSUE,
    Aim,
    Box,
    Plane,
    Window,
    focus,
    grey_window,
    position,
    scale_bar_mm,
    scale_top,
)
from diffugts.result import PromptResult, Result

if TYPE_CHECKING:
    from jinja2 import Environment

PICTURED = 5  # lesions with pictures; the table has all
ZOOM_MM = 100.0  # the least that a close view shows
ZOOM = 2.0  # of a lesion's longest diameter, where that is more
TEMPLATES = Path(__file__).with_name("templates")
COLOURS = {"attention": "inferno", "residual": "magma", "uncertainty": "viridis"}


@dataclass(frozen=True)
class Close:
    """A close view's picture: what it shows, the image's data URI over the scan or in its place, and words."""

    title: str
    words: str
    image: str
    over_scan: bool = False


@dataclass(frozen=True)
class View:
    """One plane of a lesion; lengths in mm, places from the plane's upper left corner.

    Attributes:
        name: "axial", "coronal", "sagittal".
        letters: left, right, top, bottom.
        place: "S 12.0 mm".
        size: width and height of the whole plane.
        scan: the whole plane as a data URI.
        outline: SVG path of the mask.
        zoom: x, y, width, height of the close views.
        healthy: the close view without the finding, as a data URI; None where nothing was found.
        closes: attention, residual and the rest.
    """

    name: str
    letters: tuple[str, str, str, str]
    place: str
    size: tuple[float, float]
    scan: str
    outline: str
    zoom: tuple[float, float, float, float]
    healthy: str | None
    closes: tuple[Close, ...]


@dataclass(frozen=True)
class Aimed:
    """The pictures of one lesion, or of the place that attention points at."""

    lesion: Lesion | None
    voxel: str
    window: str
    views: tuple[View, ...]


@dataclass(frozen=True)
class Section:
    """One prompt's part of the report."""

    text: str
    answer: PromptResult
    scales: Mapping[str, float]
    pictured: tuple[Aimed, ...]
    reason: str


def report_page(result: Result, manifest: Mapping[str, Any]) -> str:
    """The page of one case as HTML.

    Args:
        result: arrays on the scan's grid.
        manifest: the case's manifest as it is saved.
    """
    sections = [_section(result, text) for text in result]
    warnings = [*manifest.get("warnings", ()), *(w for s in sections for w in s.answer.warnings), *cautions(result)]
    return render(
        "report.html.j2",
        manifest=manifest,
        scan=result.volume,
        sections=sections,
        warnings=list(dict.fromkeys(warnings)),
        colours={name: _gradient(colours) for name, colours in COLOURS.items()},
    )


def render(template: str, **values: Any) -> str:
    """A template filled in; whatever comes from outside is escaped, and only the page's own script may run."""
    script = (TEMPLATES / f"{template.split('.')[0]}.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return _environment().get_template(template).render(script=script, style=style, policy=policy, **values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["centre"] = lambda mm: ", ".join(
        position(value, axis).removesuffix(" mm") for axis, value in enumerate(mm)
    )
    environment.filters["ml"] = lambda ml: f"{ml:.2f}" if ml >= 0.005 else "< 0.01"
    environment.filters["times"] = lambda numbers: " × ".join(f"{number:.4g}" for number in numbers)
    environment.globals["scale_bar"] = scale_bar_mm
    return environment


def _section(result: Result, text: str) -> Section:
    answer = result[text]
    maps = _maps(answer)
    scales = {name: scale_top(name, array) for name, array in maps.items()}
    lesions: tuple[Lesion | None, ...] = answer.lesions[:PICTURED] or (None,)
    pictured = tuple(_aimed(result, answer, lesion, scales) for lesion in lesions)
    return Section(text, answer, scales, pictured, "" if answer.lesions else _why_nothing(result, answer))


def _why_nothing(result: Result, answer: PromptResult) -> str:
    if answer.understood.negated:
        return "The prompt says that nothing is there, so nothing was looked for."
    if answer.mask.any():
        return "Some voxels are marked, but they are too few to count as a lesion."
    if np.array_equal(answer.pseudo_healthy, result.volume.array):
        return "No region stood out: nothing was repainted, and the mask is empty."
    return "A region was repainted, but the comparison with the scan did not confirm it; the mask is empty."


def _maps(answer: PromptResult) -> dict[str, Any]:
    maps = {"attention": answer.attention, "residual": answer.residual, "uncertainty": answer.uncertainty}
    return {name: array for name, array in maps.items() if array is not None}


def _aimed(result: Result, answer: PromptResult, lesion: Lesion | None, scales: Mapping[str, float]) -> Aimed:
    volume = result.volume
    voxel = focus(answer, volume, lesion)
    aim = Aim.at(volume, voxel)
    shown = np.concatenate([aim.cut(volume.array, plane).ravel() for plane in PLANES])
    window = grey_window(volume, voxel, shown, answer.understood.anatomy)
    world = volume.affine[:3, :3] @ voxel + volume.affine[:3, 3]
    field = max(ZOOM_MM, ZOOM * lesion.longest_diameter_mm) if lesion else float("inf")
    views = tuple(
        _view(result, answer, aim, plane, window, field, scales, position(world[plane.axis], plane.axis))
        for plane in PLANES
    )
    return Aimed(lesion, ", ".join(map(str, voxel)), str(window), views)


def _view(
    result: Result, answer: PromptResult, aim: Aim, plane: Plane, window: Window, field: float,
    scales: Mapping[str, float], place: str,
) -> View:  # fmt: skip
    scan = result.volume.array
    whole = aim.box(plane)
    close = aim.box(plane, min(field, max(aim.size_mm(plane, whole))))
    size = aim.size_mm(plane, whole)
    found = bool(answer.lesions)
    return View(
        name=plane.name,
        letters=plane.letters,
        place=place,
        size=size,
        scan=grey(aim.cut(scan, plane, whole), window),
        outline=outline(aim.cut(answer.mask, plane, whole), size),
        zoom=(*aim.offset_mm(plane, whole, close), *aim.size_mm(plane, close)),
        healthy=grey(aim.cut(answer.pseudo_healthy, plane, close), window) if found else None,
        closes=tuple(_closes(result, answer, aim, plane, close, window, scales)),
    )


def _closes(
    result: Result, answer: PromptResult, aim: Aim, plane: Plane, box: Box, window: Window, scales: Mapping[str, float]
) -> list[Close]:
    def coloured(name: str, see_through: bool) -> str:
        cut = aim.cut(_maps(answer)[name], plane, box)
        return heat(cut, scales[name], COLOURS[name], see_through)

    closes = []
    if window == LUNG:
        mediastinum = grey(aim.cut(result.volume.array, plane, box), SOFT_TISSUE)
        closes.append(Close("scan, soft tissue", "the scan in the soft tissue window", mediastinum))
    closes.append(Close("attention", "attention over the scan", coloured("attention", True), over_scan=True))
    if answer.lesions:
        closes.append(Close("residual", "how scan and pseudo-healthy differ", coloured("residual", False)))
    if answer.lesions and "uncertainty" in scales:
        words = "spread over seeds, over the scan"
        closes.append(Close("uncertainty", words, coloured("uncertainty", True), over_scan=True))
    return closes


def _gradient(colours: str) -> str:
    """A colour map as a CSS gradient, for its legend."""
    import matplotlib
    from matplotlib.colors import to_hex

    stops = (to_hex(matplotlib.colormaps[colours](step / 8)) for step in range(9))
    return f"linear-gradient(to right, {', '.join(stops)})"
