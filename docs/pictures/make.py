"""Take the documentation's pictures of a result: `python docs/pictures/make.py RESULT`, for synthetic patients only.

RESULT is the output folder of `diffugts segment --report` with one case. It needs Chromium.
"""

from __future__ import annotations

import io
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from browser import chromium  # noqa: E402
from diffugts.cli import main  # noqa: E402
from diffugts.commands.view import viewer  # noqa: E402
from diffugts.report.load import cases  # noqa: E402
from diffugts.view.server import ViewServer  # noqa: E402

COLOURS = 200  # keeps a picture below 200 kB
FIRST_LESION = "document.querySelector('h3').getBoundingClientRect().top + scrollY"


def keep(picture: np.ndarray, name: str) -> None:
    """Save a picture with few colours."""
    image = Image.fromarray(picture).quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    (HERE / name).write_bytes(buffer.getvalue())


def photograph(result: Path) -> None:
    """report.png, viewer.png and figure.png of a result."""
    figure = HERE / "figure.png"
    if main(["figure", str(result), "-o", str(figure), "--dpi", "125"]):
        raise SystemExit(1)
    with Image.open(figure) as image:
        drawn = np.asarray(image.convert("RGB"))
    keep(drawn, figure.name)
    with (
        tempfile.TemporaryDirectory() as profile,
        viewer(result) as site,
        ViewServer(site) as server,
        chromium(Path(profile)) as page,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.open(server.url, 1100, 660)
        page.wait("document.body.dataset.state !== 'loading'")
        page.picture()  # the first may come before the last drawing
        keep(page.picture(), "viewer.png")
        server.shutdown()
        page.open((cases(result)[0] / "report.html").resolve().as_uri(), 1480, 800)
        page.run(f"scrollTo(0, {FIRST_LESION} - 12)")
        keep(page.picture(), "report.png")


if __name__ == "__main__":
    photograph(Path(sys.argv[1]))
