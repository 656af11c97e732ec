"""Results for clinical systems: DICOM SEG and RTSTRUCT that refer to the DICOM series of the scan."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from diffugts.errors import InputError
from diffugts.export.rtstruct import write_rtstruct
from diffugts.export.seg import write_seg
from diffugts.result import PromptResult
from diffugts.volume import Volume

__all__ = ["EXPORTS", "check_exports", "empty_exports", "save_exports", "write_rtstruct", "write_seg"]

Writer = Callable[[PromptResult, Volume, Path, Mapping[str, Any]], Path]

EXPORTS: Mapping[str, tuple[str, Writer]] = {
    "dicom-seg": ("mask.dcm", write_seg),
    "rtstruct": ("rtstruct.dcm", write_rtstruct),
}
"""What can be asked for, as the command line names it: file name and writer."""


def save_exports(
    answer: PromptResult, volume: Volume, about: Mapping[str, Any], folder: Path, wanted: Collection[str]
) -> list[str]:
    """Write what is wanted of one answer into its folder, and remove what an earlier run left there.

    An empty mask gives no file: most viewers show an object without contours as an error or as a finding.

    Args:
        about: the result's manifest.
        wanted: keys of `EXPORTS`.

    Returns:
        The names of the files.

    Raises:
        InputError: a scan that was no DICOM series, or one that lacks what the objects need.
    """
    files = []
    for name, (file, write) in EXPORTS.items():
        if name in wanted and answer.mask.any():
            files.append(write(answer, volume, folder / file, about).name)
        else:
            (folder / file).unlink(missing_ok=True)
    return files


def empty_exports(answers: Mapping[str, PromptResult], wanted: Collection[str]) -> list[str]:
    """A sentence for each answer of which nothing can be exported, since its mask is empty."""
    files = " and ".join(EXPORTS[name][0] for name in EXPORTS if name in wanted)
    empty = [text for text, answer in answers.items() if files and not answer.mask.any()]
    return [f"Nothing was found for {text!r}, so there is no {files} of it." for text in empty]


def check_exports(scan: Path, wanted: Collection[str]) -> None:
    """Refuse at once what would fail after the segmentation.

    Raises:
        InputError: the scan is no DICOM folder, or highdicom is missing.
    """
    for name in wanted:
        if not scan.is_dir():
            raise InputError(
                f"{scan.name} is no DICOM series, so --{name} has nothing to refer to; give the folder of the series "
                f"or leave --{name} out."
            )
    if "dicom-seg" in wanted:
        from importlib.util import find_spec

        if find_spec("highdicom") is None:
            raise InputError("--dicom-seg needs highdicom; install it with: pip install 'diffugts[dicom]'")
