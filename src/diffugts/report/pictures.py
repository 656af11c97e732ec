"""Planes as pictures that a page can hold in itself: PNG data URIs, and outlines as vector paths in mm."""

from __future__ import annotations

import base64
import io

import numpy as np

from diffugts.report.planes import Array, Window

OPACITY = 0.75  # of an overlay at the top of its scale


def grey(cut: Array, window: Window) -> str:
    """A plane (rows, columns) in grey values, black at the window's low end, as a data URI."""
    span = max(window.high - window.low, 1e-6)
    level = np.clip((cut.astype(np.float32) - window.low) / span, 0.0, 1.0)
    return _data_uri(np.rint(level * 255).astype(np.uint8))


def heat(cut: Array, top: float, colours: str, see_through: bool) -> str:
    """A map (rows, columns) from 0 to `top` in a matplotlib colour map, as a data URI.

    Args:
        see_through: fade out towards zero, to lie over the scan.
    """
    import matplotlib

    level = np.rint(np.clip(cut.astype(np.float32) / top, 0.0, 1.0) * 255).astype(np.uint8)
    palette = matplotlib.colormaps[colours](np.arange(256), bytes=True)[:, :3]
    alpha = np.rint(np.arange(256) * OPACITY).astype(np.uint8) if see_through else None
    return _data_uri(level, palette, alpha)


def outline(cut: Array, size_mm: tuple[float, float]) -> str:
    """The border of a mask (rows, columns) as an SVG path; mm from the plane's upper left corner."""
    from skimage.measure import find_contours

    if not cut.any():
        return ""
    step = np.array(size_mm)[::-1] / cut.shape  # mm per row, per column
    padded = np.pad(cut.astype(np.float32), 1)  # closes the outline of what touches the border
    lines = (np.clip((line - 0.5) * step, 0.0, size_mm[::-1]) for line in find_contours(padded, 0.5))
    return "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for y, x in line[:-1]) + "Z" for line in lines)


def _data_uri(pixels: Array, palette: Array | None = None, alpha: Array | None = None) -> str:
    """An 8-bit image as a PNG data URI; with a palette of (256, 3) colours and (256,) alpha where given."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    options = {}
    if palette is not None:
        image.putpalette(palette.tobytes())  # turns the levels into indices
        if alpha is not None:
            options["transparency"] = alpha.tobytes()
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=False, **options)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
