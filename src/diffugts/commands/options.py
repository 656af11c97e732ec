"""Options that several verbs have, checked while the command line is read."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from diffugts.errors import InputError


def at_least(lowest: int) -> Callable[[str], int]:
    """A parser of whole numbers from `lowest` up."""

    def whole(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not lowest <= number < 2**63:
            raise argparse.ArgumentTypeError(f"{number} must be {lowest} or more")
        return number

    return whole


def device(text: str) -> str:
    """auto, cpu, cuda or cuda:i."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of auto, cpu, cuda, cuda:0, cuda:1, …")
    return text


def must_exist(path: Path) -> None:
    """Raise InputError for a file or folder that is not there: at once, not once a model is loaded."""
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path.")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model runs where, and what the scan is."""
    parser.add_argument("--model", default="compact", help="a shipped model or a folder with one (default: compact)")
    parser.add_argument(
        "--modality",
        choices=("auto", "ct", "mr"),
        default="auto",
        help="what the scan is (default: auto, guessed)",
    )
    parser.add_argument(
        "--device",
        type=device,
        default="auto",
        metavar="{auto,cpu,cuda[:i]}",
        help="where to compute (default: auto)",
    )


def add_output(parser: argparse.ArgumentParser, default: Path | None = None) -> None:
    """-o/--output, the folder for results; required where there is no default."""
    text = "folder for the results; made if missing" + (f" (default: {default})" if default else "")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", default=default, required=default is None, help=text
    )


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """--json, machine-readable lines on stdout."""
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON, one object per line")
