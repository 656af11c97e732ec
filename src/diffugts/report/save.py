"""A result as a folder of files; the manifest comes last, so a folder that has one is complete."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffugts._version import __version__
from diffugts.errors import InputError
from diffugts.lesions import write_csv
from diffugts.machine import peak_memory_gb
from diffugts.result import PromptResult, Result
from diffugts.volume import Volume

MANIFEST = "manifest.json"
REPORT = "report.html"
SCAN = "scan.nii.gz"  # the copy that a report leaves beside it, for the viewer and for figures
WRITERS = 2  # files compressed at a time; each needs a copy of its array
LIBRARIES = ("torch", "monai", "numpy", "scipy", "nibabel", "SimpleITK", "pydicom")


def save_result(
    result: Result,
    directory: str | Path,
    name: str | None = None,
    report: bool = False,
    exports: Collection[str] = (),
) -> Path:
    """Write `directory/<case>/manifest.json` and one folder per prompt; return the case's folder.

    With `report`, `report.html` and a copy of the scan lie beside the manifest. Each file appears whole or not
    at all, and an older manifest is removed first: what an interruption leaves behind never passes for a
    finished case.

    Raises:
        InputError: when `name` is no plain folder name, or the folder cannot be written.
    """
    from diffugts.export import save_exports
    from diffugts.io import case_name

    name = case_name(result.volume.source) if name is None else name
    if name in ("", ".", "..") or name != Path(name).name:
        raise InputError(f"The case name {name!r} must be a plain folder name, without '/' or '..'.")
    folder = Path(directory) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in (MANIFEST, REPORT, SCAN):
            (folder / old).unlink(missing_ok=True)
        slugs = unique_names(answer.understood.slug for answer in result.prompts.values())
        # The preview's grey values follow what the scan was taken for, also where the user said so.
        volume = replace(result.volume, modality=result.manifest.get("modality", result.volume.modality))
        prompts = {
            text: _save_answer(answer, volume, text, folder, slug)
            for (text, answer), slug in zip(result.prompts.items(), slugs, strict=True)
        }
        for text, saved in prompts.items():
            target = folder / saved["folder"]
            saved["files"] += save_exports(result[text], result.volume, result.manifest, target, exports)
        manifest = _manifest(result, name, prompts)
        if report:
            manifest = _add_report(replace(result, volume=volume), manifest, folder)
        _write_manifest(manifest, folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"Cannot write to {folder}: {reason}; choose another output folder or free some space."
        ) from error
    return folder


def add_report(result: Result, folder: str | Path) -> None:
    """Write the report of a case that was saved without one, and the copy of its scan.

    Args:
        result: as `load_result` reads it, its manifest that of the folder.
        folder: the case's folder.
    """
    folder = Path(folder)
    _write_manifest(_add_report(result, result.manifest, folder), folder)


def unique_names(names: Iterable[str]) -> list[str]:
    """The names in their order, later ones numbered where a file system that ignores case mixes them up."""
    taken: set[str] = set()
    unique = []
    for name in names:
        candidate, number = name, 1
        while candidate.casefold() in taken:
            number += 1
            candidate = f"{name}-{number}"
        taken.add(candidate.casefold())
        unique.append(candidate)
    return unique


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished case; None where there is none, or a damaged one."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def _save_answer(answer: PromptResult, volume: Volume, text: str, folder: Path, slug: str) -> dict[str, Any]:
    """Write one prompt's files and describe them for the manifest."""
    from diffugts.io import atomic_path, write_nifti
    from diffugts.report.preview import save_preview

    target = folder / slug
    target.mkdir(exist_ok=True)
    images: dict[str, npt.NDArray[Any]] = {
        "mask": answer.mask.astype(np.uint8, copy=False),
        "probability": answer.probability,
        "attention": answer.attention,
        "pseudo_healthy": answer.pseudo_healthy,
        "residual": answer.residual,
    }
    if answer.uncertainty is not None:
        images["uncertainty"] = answer.uncertainty
    else:
        (target / "uncertainty.nii.gz").unlink(missing_ok=True)  # of an earlier run with more seeds
    with ThreadPoolExecutor(WRITERS) as pool:  # compression takes most of the time and runs outside the GIL
        paths = [target / f"{image}.nii.gz" for image in images]
        list(pool.map(lambda array, path: write_nifti(_file_order(array), volume, path), images.values(), paths))
    with atomic_path(target / "lesions.csv") as path:
        write_csv(answer.lesions, path)
    with atomic_path(target / "preview.png") as path:
        save_preview(answer, volume, text, path)
    return {
        "folder": slug,
        "files": [*(f"{image}.nii.gz" for image in images), "lesions.csv", "preview.png"],
        "understood": answer.understood.to_dict(),
        "volume_ml": round(answer.volume_ml, 4),
        "lesions": [lesion.to_dict() for lesion in answer.lesions],
        "score": round(float(answer.image_score), 4),
        "warnings": list(answer.warnings),
    }


def _file_order(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array in NIfTI's memory order. One slab after the other fits the processor's caches, which makes it
    several times faster for 512³ voxels than leaving the turn to the writer."""
    if array.flags.f_contiguous:
        return array
    turned = np.empty_like(array, order="F")
    for j in range(array.shape[1]):
        turned[:, j] = np.ascontiguousarray(array[:, j].T).T
    return turned


def _manifest(result: Result, name: str, prompts: dict[str, Any]) -> dict[str, Any]:
    volume = result.volume
    return {
        "diffugts": __version__,
        "versions": {package: metadata.version(package) for package in LIBRARIES},
        "case": name,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "scan": {
            "source": volume.source,
            "shape": list(volume.shape),
            "spacing_mm": [round(float(side), 6) for side in volume.spacing],
            "affine": volume.affine.tolist(),
            "unit": volume.unit,
        },
        **result.manifest,
        "peak_memory_gb": peak_memory_gb(),
        "prompts": prompts,
    }


def _add_report(result: Result, manifest: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write the page and the scan; returns the manifest that tells of them."""
    from diffugts.io import atomic_write, write_nifti
    from diffugts.report.html import report_page

    write_nifti(_file_order(result.volume.array), result.volume, folder / SCAN)
    atomic_write(folder / REPORT, report_page(result, manifest))
    return {**manifest, "scan": {**manifest["scan"], "file": SCAN}, "report": REPORT}


def _write_manifest(manifest: Mapping[str, Any], folder: Path) -> None:
    from diffugts.io import atomic_write

    atomic_write(folder / MANIFEST, _as_json(manifest))


def _as_json(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    """NumPy numbers and paths as JSON values."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")
