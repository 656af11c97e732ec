"""A saved result, read back from its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffugts.errors import InputError
from diffugts.lesions import Lesion
from diffugts.report.save import MANIFEST, SCAN, read_manifest
from diffugts.result import PromptResult, Result
from diffugts.volume import Volume

ALIKE = 0.5  # a scan equals its pseudo-healthy in all but the repainted part; another patient's does hardly anywhere


def load_result(folder: str | Path, scan: str | Path | Volume | None = None) -> Result:
    """Read what `save_result` wrote.

    Args:
        folder: a case's folder, with its manifest.
        scan: the scan that was segmented, or its file; by default the copy that `segment --report` keeps in the folder.

    Returns:
        The result; its manifest is the folder's, with `case`, `finished` and the rest.

    Raises:
        InputError: no finished result, a file missing or damaged, no scan, or another scan.
    """
    folder = Path(folder)
    manifest = finished(folder)
    volume = read_scan(folder, manifest, scan)
    answers = {text: _answer(folder, entry, text, volume) for text, entry in manifest["prompts"].items()}
    return Result(volume, answers, manifest)


def finished(folder: Path) -> dict[str, Any]:
    """The manifest of a case's folder, checked for what readers rely on. Raises InputError where there is none."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder} holds no finished result (no readable {MANIFEST}); run `diffugts segment` into it.")
    prompts, scan = manifest.get("prompts"), manifest.get("scan")
    entries = list(prompts.values()) if isinstance(prompts, dict) else []
    if not entries or not isinstance(scan, dict) or not all(_usable(entry) for entry in entries):
        raise InputError(f"{folder / MANIFEST} is not a manifest that this version understands; segment again.")
    return manifest


def cases(folder: Path) -> list[Path]:
    """The folder itself where it is a case's, else the cases in it by name. Raises InputError where none is."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give a case's folder or the output folder of `diffugts segment`.")
    found = [folder] if (folder / MANIFEST).is_file() else sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    if not found:
        raise InputError(f"{folder} holds no result (no {MANIFEST} in it or one level below); run `diffugts segment`.")
    return found


def is_plain(name: object) -> bool:
    """Whether a manifest's word is the name of something right inside its folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\:\0")


def _usable(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("files"), list):
        return False
    return is_plain(entry.get("folder")) and all(map(is_plain, entry["files"])) and {"lesions", "score"} <= set(entry)


def read_scan(folder: Path, manifest: Mapping[str, Any], scan: str | Path | Volume | None = None) -> Volume:
    """The scan of a result: the copy in its folder, or the file named, which must lie on the same grid."""
    from diffugts.io import read_volume

    known = manifest["scan"]
    if scan is None and not (folder / SCAN).is_file():
        raise InputError(
            f"{folder} keeps no copy of the scan {known.get('source')!r}; name it with --scan, "
            "or segment with --report."
        )
    volume = scan if isinstance(scan, Volume) else read_volume(folder / SCAN if scan is None else scan)
    if list(volume.shape) != known.get("shape") or not np.allclose(volume.affine, known.get("affine"), atol=1e-3):
        raise InputError(
            f"{volume.source} lies on another grid than the scan of {folder}; give the scan that was used."
        )
    modality = manifest.get("modality", volume.modality)
    return replace(volume, source=str(known.get("source")), unit=str(known.get("unit")), modality=modality)


def _answer(folder: Path, entry: Mapping[str, Any], text: str, volume: Volume) -> PromptResult:
    from diffugts.prompts import parse

    def array(name: str) -> npt.NDArray[Any]:
        return _array(folder / entry["folder"] / f"{name}.nii.gz", volume)

    healthy = array("pseudo_healthy")
    if np.mean(healthy == volume.array) < ALIKE:
        raise InputError(f"The scan given is not the one that {folder} was made from; give the scan that was used.")
    return PromptResult(
        understood=parse(text),
        mask=(array("mask") != 0).astype(np.uint8),
        probability=array("probability"),
        attention=array("attention"),
        pseudo_healthy=healthy,
        residual=array("residual"),
        uncertainty=array("uncertainty") if "uncertainty.nii.gz" in entry["files"] else None,
        lesions=tuple(_lesion(values) for values in entry["lesions"]),
        image_score=float(entry["score"]),
        warnings=tuple(entry.get("warnings", ())),
    )


def _array(path: Path, volume: Volume) -> npt.NDArray[Any]:
    from diffugts.io.nifti import read_nifti

    if not path.is_file():
        raise InputError(f"{path} is missing; segment again.")
    array = read_nifti(path).array
    if array.shape != volume.shape:
        raise InputError(f"{path} is {array.shape} but the scan {volume.shape}; segment again.")
    return array


def _lesion(values: Mapping[str, Any]) -> Lesion:
    shell = values["mean_shell"]
    r, a, s = values["centre_mm"]
    return Lesion(**{**values, "centre_mm": (r, a, s), "mean_shell": math.nan if shell is None else shell})
