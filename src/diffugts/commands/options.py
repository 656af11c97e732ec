"""Options that several verbs have, checked while the command line is read."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffugts.errors import InputError

if TYPE_CHECKING:
    from diffugts.volume import Volume


SEQUENCES = (
    "ct-plain", "ct-contrast", "mr-t1", "mr-t2", "mr-flair", "mr-pd", "mr-dwi", "mr-adc", "mr-ssfp", "mr-mra", "mr-t1c",
    "mr-swi", "mr-t1-stripped", "mr-t2-stripped", "mr-flair-stripped", "mr-swi-stripped", "mr-mra-stripped",
)  # fmt: skip
"""The finer modalities of `backbone.config.MODALITY_CODES`, here so that `--help` imports nothing heavy."""


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


def not_negative(text: str) -> float:
    """A number from 0 up."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be 0 or more")
    return number


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
    parser.add_argument(
        "--model", default="compact", help="a model of `diffugts weights list`, or a folder with one (default: compact)"
    )
    add_home(parser)
    parser.add_argument(
        "--modality",
        choices=("auto", "ct", "mr", *SEQUENCES),
        metavar="{auto,ct,mr,…}",
        default="auto",
        help=f"what the scan is (default: auto, guessed); more closely, for MAISI: {', '.join(SEQUENCES)}",
    )
    parser.add_argument(
        "--device",
        type=device,
        default="auto",
        metavar="{auto,cpu,cuda[:i]}",
        help="where to compute (default: auto)",
    )


def add_home(parser: argparse.ArgumentParser) -> None:
    """--home, where weights lie that do not ship."""
    parser.add_argument(
        "--home",
        type=Path,
        metavar="DIR",
        help="where weights lie that do not ship (default: DIFFUGTS_HOME, else your data folder)",
    )


def placed(args: argparse.Namespace) -> dict[str, Any]:
    """What `Segmenter.from_pretrained` is told besides model and device, where the user said so."""
    told = {} if args.home is None else {"home": args.home}
    return told | ({"controlnet": True} if getattr(args, "organ_map", None) is not None else {})


def add_series(parser: argparse.ArgumentParser) -> None:
    """--series, which scan of a DICOM folder."""
    parser.add_argument(
        "--series",
        metavar="UID",
        help="SeriesInstanceUID, where a DICOM folder holds several series (without it they are listed)",
    )
    parser.set_defaults(max_voxels=None)


def scan_of(args: argparse.Namespace, path: Path) -> Path | Volume:
    """What `Segmenter.encode` shall take: the path, or the volume where more than its path says which and how large."""
    if args.series is None and args.max_voxels is None:
        return path
    from diffugts.io import read_volume
    from diffugts.io.checks import MAX_VOXELS

    return read_volume(path, args.series, args.max_voxels or MAX_VOXELS)


def add_reach(parser: argparse.ArgumentParser) -> None:
    """--roi, --body, --guidance and --organ-map: what is looked at, and what the diffusion model is told."""
    parser.add_argument(
        "--roi",
        metavar="BOX|MASK",
        help="look at this part of the scan only: i0:i1,j0:j1,k0:k1 in voxels, or a mask file (30 mm are added)",
    )
    parser.add_argument(
        "--body",
        metavar="REGION",
        help="body regions in view from the top down, as in chest-abdomen, for maisi-ct-ddpm (default: found)",
    )
    parser.add_argument(
        "--guidance",
        type=not_negative,
        metavar="W",
        help="classifier-free guidance (default: the model's own; 0: none)",
    )
    parser.add_argument(
        "--organ-map",
        type=Path,
        metavar="LABELS",
        help="organs on the scan's grid in MAISI's labels: its ControlNet paints the candidate as healthy organ",
    )


def add_exports(parser: argparse.ArgumentParser) -> None:
    """--dicom-seg and --rtstruct, for a DICOM scan."""
    for name, text in (
        ("dicom-seg", "also write each mask as DICOM SEG (mask.dcm) that refers to the scan's series"),
        ("rtstruct", "also write each mask's contours as DICOM RTSTRUCT (rtstruct.dcm)"),
    ):
        parser.add_argument(f"--{name}", action="append_const", dest="exports", const=name, default=[], help=text)


def add_output(parser: argparse.ArgumentParser, default: Path | None = None) -> None:
    """-o/--output, the folder for results; required where there is no default."""
    text = "folder for the results; made if missing" + (f" (default: {default})" if default else "")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", default=default, required=default is None, help=text
    )


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """--json, machine-readable lines on stdout."""
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON, one object per line")
