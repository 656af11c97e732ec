"""Look at a scan before segmenting it: geometry, intensities, and how much of it the model can represent."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffugts.commands import options
from diffugts.commands.terminal import json_line, progress_bar, table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from diffugts.case import Case
    from diffugts.segmenter import Segmenter
    from diffugts.volume import Volume

TOLERANCE = 2.0  # times the model card's error: beyond it a scan is outside what the model knows
LIMIT = {"ct": 100.0, "mr": 0.1}  # HU and of 0..1: the limit for a model whose card states no error
LATTICE_MM = 3.0  # the error is sampled about this densely: it is a mean, and a chest CT has 10^8 voxels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `diffugts check`."""
    parser.add_argument("scan", type=Path, metavar="SCAN", help="NIfTI, NRRD or MHA file, or folder with DICOM series")
    options.add_series(parser)
    options.add_model_options(parser)
    options.add_json(parser, "the findings")


def run(args: argparse.Namespace) -> int:
    """Print what is found; warnings do not change the exit code."""
    options.must_exist(args.scan)
    from diffugts.segmenter import Segmenter

    with progress_bar(args.scan.name) as progress:
        progress("loading", 0.0)
        segmenter = Segmenter.from_pretrained(args.model, device=args.device, **options.placed(args))
        case = segmenter.encode(options.scan_of(args, args.scan), modality=args.modality, progress=progress)
        progress("decode", 0.5)
        findings = examine(segmenter, case)
    if args.json:
        json_line({"scan": str(args.scan), **findings})
    else:
        _print(args.scan, findings)
    return 0


def examine(segmenter: Segmenter, case: Case) -> dict[str, Any]:
    """All findings about an encoded scan as plain JSON values."""
    from diffugts.intensity import guess_modality

    volume = case.volume
    guess, reason = guess_modality(volume)
    error, doubts = model_error(segmenter, case)
    warnings = [*case.warnings, *doubts]
    if guess != case.modality:
        told = case.modality.upper()
        warnings.append(f"The scan was taken for {told} as told, but looks like {guess.upper()}: {reason}.")
    cost = segmenter.estimate(volume.shape, volume.spacing.tolist())
    return {
        "geometry": geometry(volume),
        "intensity": intensity(volume),
        "modality": case.modality,
        "reason": reason if guess == case.modality else "as told",
        "model_error": error,
        "estimate": {name: round(value, 2) for name, value in cost.items()},
        "warnings": warnings,
    }


def model_error(segmenter: Segmenter, case: Case) -> tuple[dict[str, Any], list[str]]:
    """How well the model renders the scan, beside what its card expects, and a sentence where that is badly."""
    error = reconstruction_error(case.volume, case.reconstruction(), case.modality)
    expected = (segmenter.describe().get("reconstruction_mae") or {}).get(case.modality)
    limit = LIMIT[case.modality] if expected is None else TOLERANCE * expected
    warnings = []
    if error["mae"] is None:
        warnings.append("The scan shows no body to measure the model's error in; look at its intensities.")
    elif error["mae"] > limit:
        warnings.append(
            f"The model renders this scan with a mean error of {error['mae']:.3g} {error['unit']}, "
            f"more than the {limit:.3g} that it should stay under; check its units and modality."
        )
    return {**error, "expected": expected, "limit": limit}, warnings


def geometry(volume: Volume) -> dict[str, Any]:
    """Where the grid lies in the patient."""
    import nibabel as nib
    import numpy as np

    axes = np.abs(volume.affine[:3, :3] / volume.spacing)
    tilt = math.degrees(math.acos(min(1.0, float(axes.max(axis=0).min()))))
    return {
        "shape": list(volume.shape),
        "spacing_mm": [round(float(side), 4) for side in volume.spacing],
        "extent_mm": [round(n * float(side), 1) for n, side in zip(volume.shape, volume.spacing, strict=True)],
        "orientation": "".join(nib.orientations.aff2axcodes(volume.affine)),
        "oblique_degrees": round(tilt, 2),
        "voxel_ml": volume.voxel_ml,
        "dtype": str(volume.array.dtype),
    }


def intensity(volume: Volume) -> dict[str, float]:
    """Range of the values and their percentiles, in the scan's unit."""
    import numpy as np

    low, p1, middle, p99, high = np.percentile(_lattice(volume.array, volume), (0, 1, 50, 99, 100)).tolist()
    return {"min": low, "p1": p1, "median": middle, "p99": p99, "max": high}


def reconstruction_error(volume: Volume, decoded: Any, modality: str) -> dict[str, Any]:
    """Mean absolute error and PSNR of encode → decode inside the body.

    Both are measured on values clipped to what the model can represent at all: CT in HU, MR on the scale 0..1
    that the model sees. PSNR is over that range, in dB.
    """
    import numpy as np

    from diffugts.intensity import IntensityMap

    scale = IntensityMap.of("ct" if modality == "ct" else "mr", volume.array)
    truth = np.clip(scale.forward(_lattice(volume.array, volume)), 0.0, 1.0)
    seen = np.clip(scale.forward(_lattice(np.asarray(decoded), volume)), 0.0, 1.0)
    inside = body(truth, modality)
    ct = modality == "ct"
    if not inside.any():
        return {"mae": None, "unit": "HU" if ct else "of 0..1", "psnr_db": None}
    error = np.abs(truth - seen)[inside].astype(np.float64)
    psnr = -10.0 * math.log10(max(float((error**2).mean()), 1e-12))
    return {
        "mae": round(float(error.mean()) * (scale.high - scale.low if ct else 1.0), 4),
        "unit": "HU" if ct else "of 0..1",
        "psnr_db": round(psnr, 2),
    }


def body(values: npt.NDArray[np.float32], modality: str) -> npt.NDArray[np.bool_]:
    """Where the patient is: brighter than air, with the holes (lungs, gas) of each slice filled.

    Args:
        values: (I, J, K) on the model's scale 0..1.
    """
    import numpy as np
    from scipy import ndimage

    inside = values > (0.25 if modality == "ct" else 0.05)  # -500 HU
    for axis in range(3):
        slices = np.moveaxis(inside, axis, 0)
        for index in range(len(slices)):
            slices[index] = ndimage.binary_fill_holes(slices[index])
    return inside


def _lattice(array: npt.NDArray[Any], volume: Volume) -> npt.NDArray[Any]:
    return array[tuple(slice(None, None, max(1, round(LATTICE_MM / side))) for side in volume.spacing)]


def _print(scan: Path, findings: dict[str, Any]) -> None:
    place, values, error, cost = (findings[k] for k in ("geometry", "intensity", "model_error", "estimate"))
    oblique = f", oblique by {place['oblique_degrees']:g} degrees" if place["oblique_degrees"] > 0.1 else ""
    measured = "no body found"
    if error["mae"] is not None:
        mean = f"{error['mae']:.3g} {error['unit']} (limit {error['limit']:.3g})"
        measured = f"{mean}, PSNR {error['psnr_db']:.1f} dB"
    print(scan)
    rows = {
        "shape": f"{_times(place['shape'])} voxels, {place['dtype']}",
        "spacing": f"{_times(place['spacing_mm'])} mm",
        "extent": f"{_times(place['extent_mm'])} mm",
        "orientation": f"{place['orientation']}{oblique}",
        "intensity": f"{values['min']:g} to {values['max']:g}, 1-99 %: {values['p1']:g} to {values['p99']:g}",
        "modality": f"{findings['modality'].upper()} ({findings['reason']})",
        "model error": measured,
        "estimate": f"{cost['seconds']:.0f} s, {cost['peak_gb']:.1f} GB",
    }
    table(rows, indent="  ")
    for warning in findings["warnings"]:
        print(f"  warning: {warning}")


def _times(numbers: list[float]) -> str:
    return " × ".join(f"{number:g}" for number in numbers)
