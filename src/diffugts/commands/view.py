"""Open a result in the browser: the scan with mask, probability, attention, residual and pseudo-healthy as layers.

The page and its data are served on this machine only (127.0.0.1), at an address that changes each time, until
Ctrl-C. Nothing is uploaded and nothing is fetched from elsewhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from diffugts.commands import options
from diffugts.commands.terminal import complain
from diffugts.errors import InputError

if TYPE_CHECKING:
    from diffugts.view.site import Site


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `diffugts view`."""
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="a case's folder, or the output folder of `diffugts segment`"
    )
    parser.add_argument(
        "--scan", type=Path, metavar="SCAN", help="the scan, where the result keeps no copy (without --report)"
    )
    parser.add_argument("--port", type=options.at_least(0), default=0, help="to serve on (default: any free one)")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    import webbrowser

    from diffugts.view.server import ViewServer

    if args.port > 65535:
        raise InputError(f"--port {args.port} does not exist; the highest is 65535.")
    with viewer(args.folder, args.scan) as site, ViewServer(site, args.port) as server:
        print(f"viewer -> {server.url}", flush=True)
        print("Ctrl-C ends it.", flush=True)
        if not args.no_browser and not webbrowser.open(server.url):
            complain("no browser was found; open the address yourself")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


@contextmanager
def viewer(folder: Path, scan: Path | None = None) -> Iterator[Site]:
    """The site for a result; a scan from elsewhere is there as NIfTI for as long as the block runs."""
    from diffugts.io import write_nifti
    from diffugts.report.load import cases, finished, read_scan
    from diffugts.report.save import SCAN
    from diffugts.view.site import Site

    found = cases(folder)
    if scan is None:
        whole = [case for case in found if (case / SCAN).is_file()]
        for case in found if whole else []:
            if case not in whole:
                complain(f"{case.name} is left out: it keeps no copy of its scan")
        yield Site.of(whole or found)
        return
    if len(found) > 1:
        raise InputError(f"--scan belongs to one case, and {folder} holds {len(found)}; name the case's folder.")
    options.must_exist(scan)
    with TemporaryDirectory(prefix="diffugts-") as place:
        volume = read_scan(found[0], finished(found[0]), scan)
        copy = write_nifti(volume.array, volume, Path(place) / SCAN)
        yield Site.of(found, {found[0]: copy})
