"""Time and memory of the whole path on a chest-size CT (500 × 500 × 400 mm), by stage.

    python benchmarks/speed.py -o runs/speed [--prompt "lung tumor"] [--voxel 1.0 1.0 2.0] [--threads 2]

The patient is synthetic, with one tumour. The command line runs as a process of its own, as for a user; its manifest
gives the stages, and the operating system the peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

FIELD_MM = (500.0, 500.0, 400.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--prompt", default="lung tumor")
    parser.add_argument("--model", default="compact")
    parser.add_argument("--voxel", type=float, nargs=3, default=(1.0, 1.0, 2.0), help="mm")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    scan = args.output / "chest.nii.gz"
    if not scan.exists():
        make(scan, args.voxel)
    command = [sys.executable, "-m", "diffugts", "segment", str(scan), "-p", args.prompt, "-o", str(args.output)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    began = time.monotonic()
    subprocess.run([*command, "--model", args.model], check=True, env=environment, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    manifest = json.loads((args.output / "chest" / "manifest.json").read_text())
    answer = manifest["prompts"][args.prompt]
    print(f"total {seconds:.1f} s, peak {peak:.2f} GB, {answer['volume_ml']} ml found, score {answer['score']}")
    for stage, value in manifest["timings_s"].items():
        print(f"  {stage:10s} {value:7.2f} s")


def make(scan: Path, voxel: tuple[float, float, float]) -> None:
    """A synthetic torso with a lung tumour on the whole field of view."""
    from diffugts.io import write_nifti
    from diffugts.synth import sample_patient
    from diffugts.volume import Volume

    scan.parent.mkdir(parents=True, exist_ok=True)
    patient = sample_patient(7, kind="torso", lesions=1, organ="lung")
    shape = tuple(int(mm / v) for mm, v in zip(FIELD_MM, voxel, strict=True))
    middle = (np.asarray(patient.extent[0]) + np.asarray(patient.extent[1])) / 2
    middle[2] = patient.lesions[0].centre_mm[2]
    origin = tuple(float(m - mm / 2) for m, mm in zip(middle, FIELD_MM, strict=True))
    sample = patient.render(shape, tuple(voxel), origin, modality="ct")  # type: ignore[arg-type]
    affine = np.diag([*voxel, 1.0])
    affine[:3, 3] = origin
    volume = Volume(np.round(sample.image).astype(np.int16), affine, "HU")
    write_nifti(volume.array, volume, scan)


if __name__ == "__main__":
    main()
