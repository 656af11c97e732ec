"""Generate a patient with a lung tumour, segment it, and say how close the mask is to the planted truth."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffugts.commands import options
from diffugts.commands.terminal import json_line, progress_bar

if TYPE_CHECKING:
    import numpy.typing as npt

    from diffugts.volume import Volume

PROMPT = "lung tumor"
SHAPE = (144, 112, 80)
SPACING_MM = 2.5
RADIUS_MM = (18.0, 24.0)  # of the tumour: large enough to be seen in the preview at a glance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `diffugts demo`."""
    options.add_output(parser, default=Path("demo"))
    parser.add_argument("--device", type=options.device, default="auto", help="where to compute (default: auto)")
    options.add_json(parser, "the outcome")


def run(args: argparse.Namespace) -> int:
    """Write scan and truth, segment the scan from its file as a user would, print places and Dice."""
    from diffugts.bench.metrics import dice
    from diffugts.io import read_mask, write_nifti
    from diffugts.segmenter import Segmenter

    started = time.perf_counter()
    scan, truth = args.output / "patient.nii.gz", args.output / "truth.nii.gz"
    with progress_bar("demo") as progress:
        progress("imaging a synthetic patient", 0.0)
        volume, planted = patient()
        write_nifti(volume.array, volume, scan)
        write_nifti(planted, volume, truth)
        progress("loading", 0.0)
        case = Segmenter.from_pretrained("compact", device=args.device).encode(scan, progress=progress)
        result = case.segment([PROMPT], seed=0, progress=progress)
        saved = result.save(args.output, report=True)
        folder = saved / result[PROMPT].understood.slug
    found = read_mask(folder / "mask.nii.gz", case.volume)
    outcome = {
        "scan": str(scan),
        "truth": str(truth),
        "prompt": PROMPT,
        "mask": str(folder / "mask.nii.gz"),
        "preview": str(folder / "preview.png"),
        "report": str(saved / "report.html"),
        "truth_ml": round(float(planted.sum()) * volume.voxel_ml, 2),
        "mask_ml": round(float(found.sum()) * volume.voxel_ml, 2),
        "dice": round(dice(found, planted > 0), 4),
        "seconds": round(time.perf_counter() - started, 1),
    }
    if args.json:
        json_line(outcome)
    else:
        _print(outcome)
    return 0


def patient() -> tuple[Volume, npt.NDArray[Any]]:
    """The demo's CT (int16 HU) and the truth (uint8) of its one lung tumour; the same bits every time."""
    from itertools import count

    import numpy as np

    from diffugts.synth import sample_patient
    from diffugts.volume import Volume

    patients = (sample_patient(seed, "torso", lesions=1, organ="lung") for seed in count())
    low, high = RADIUS_MM
    torso = next(p for p in patients if p.lesions and low <= p.lesions[0].radius_mm <= high)
    side = np.array(SHAPE) * SPACING_MM
    centre = 0.5 * (torso.extent[0] + torso.extent[1])
    centre[2] = torso.lesions[0].centre_mm[2]
    x, y, z = (float(value) for value in centre - side / 2 + SPACING_MM / 2)
    sample = torso.render(SHAPE, (SPACING_MM,) * 3, (x, y, z), modality="ct", contrast="portal")
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    affine[:3, 3] = x, y, z
    image = np.clip(np.rint(sample.image), -1024, 3071).astype(np.int16)
    return Volume(image, affine, unit="HU", source="patient"), (sample.lesion > 0).astype(np.uint8)


def _print(outcome: dict[str, Any]) -> None:
    print(f"A synthetic CT with one planted lung tumour, segmented with the prompt {outcome['prompt']!r}:")
    print(f"  scan     {outcome['scan']}")
    print(f"  truth    {outcome['truth']} ({outcome['truth_ml']} ml)")
    print(f"  mask     {outcome['mask']} ({outcome['mask_ml']} ml)")
    print(f"  preview  {outcome['preview']}")
    print(f"  report   {outcome['report']}")
    print(f"  Dice     {outcome['dice']:.3f} against the truth, in {outcome['seconds']} s")
