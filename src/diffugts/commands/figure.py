"""Draw results for a paper: a row for each case, with scan, attention, pseudo-healthy, residual and mask.

All rows share the field of view and the colour scales; CT windows follow the prompt's anatomy. Results need
their scan: segment with --report, or name it with --scan.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from diffugts.commands import options
from diffugts.commands.terminal import complain, json_line
from diffugts.errors import InputError

if TYPE_CHECKING:
    from diffugts.report.figure import Row

EPILOG = """\
examples:
  diffugts figure out/patient1 out/patient2 -o figure.pdf
  diffugts figure out/ -o figure.png --plane coronal --prompt "liver tumor" --dpi 600 --window -160 240"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `diffugts figure`."""
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT", help="a case's folder, or a folder of cases")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="ends in .pdf, .png, .svg or .tif"
    )
    parser.add_argument("--plane", choices=("axial", "coronal", "sagittal"), default="axial", help="(default: axial)")
    parser.add_argument(
        "--prompt", metavar="TEXT", help="as it was asked; cases without it are left out (default: each case's first)"
    )
    parser.add_argument("--dpi", type=options.at_least(36), default=300, help="of pixel formats (default: 300)")
    parser.add_argument(
        "--window", nargs=2, type=float, metavar=("LOW", "HIGH"), help="grey values from black to white, for all rows"
    )
    parser.add_argument("--field", type=float, metavar="MM", help="side of the field of view (default: as needed)")
    parser.add_argument(
        "--scan",
        action="append",
        type=Path,
        default=[],
        metavar="SCAN",
        help="the scan of a result that keeps no copy; repeatable, in the order of the results",
    )
    options.add_json(parser, "the outcome")


def run(args: argparse.Namespace) -> int:
    """Write the figure."""
    from diffugts.report.figure import FORMATS, draw_figure, save_figure

    if args.output.suffix.lower() not in FORMATS:
        raise InputError(f"--output {args.output} must end in one of {', '.join(FORMATS)}.")
    rows = _rows(args)
    window = None if args.window is None else (args.window[0], args.window[1])
    save_figure(draw_figure(rows, args.plane, window, args.field), args.output, args.dpi)
    if args.json:
        json_line({"figure": str(args.output), "rows": [row.label for row in rows], "plane": args.plane})
    else:
        print(f"{len(rows)} row{'s' if len(rows) != 1 else ''} -> {args.output}")
    return 0


def _rows(args: argparse.Namespace) -> list[Row]:
    from diffugts.report.figure import Row
    from diffugts.report.load import cases, finished, load_result

    folders = [case for result in args.results for case in cases(result)]
    if args.scan and len(args.scan) != len(folders):
        raise InputError(f"--scan is given {len(args.scan)} times for {len(folders)} results; give one for each.")
    names = Counter(folder.name for folder in folders)
    rows = []
    for folder, scan in zip(folders, args.scan or [None] * len(folders), strict=True):
        manifest = finished(folder)
        if args.prompt is not None and args.prompt not in manifest["prompts"]:
            complain(f"{folder.name} is left out: it was not asked for {args.prompt!r}")
            continue
        label = folder.name if names[folder.name] == 1 else f"{folder.resolve().parent.name}/{folder.name}"
        rows.append(Row.of(load_result(folder, scan), label, args.prompt))
    if not rows:
        raise InputError(f"No result was asked for {args.prompt!r}; see the prompts in their manifest.json.")
    return rows
