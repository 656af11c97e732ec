"""Run the command line over a folder of cases with expert masks and tabulate what came out.

    python benchmarks/cases.py --cases ../shared/cases/cases.json -o runs/cases [--only lung] [--region]

Reads the layout of cases.json (relative image and mask paths, prompt, modality, anatomy). Each case is one process,
as a user would start it, so seconds and peak memory include loading. Dice where both masks are empty is 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.stats import rankdata

GENERIC = "tumor"  # asked of the cases that have none


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--only", default="", help="cases whose id contains this")
    parser.add_argument("--region", action="store_true", help="give the true mask as the candidate region")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for case in json.loads(args.cases.read_text())["cases"]:
        if args.only in case["id"] and (case.get("tumor") or not args.region):
            rows.append(run(case, args))
            print(" | ".join(str(value) for value in rows[-1].values()), flush=True)
    (args.output / "table.json").write_text(json.dumps(rows, indent=1))
    (args.output / "table.md").write_text(markdown(rows))
    print(markdown(summary(rows)))


def run(case: dict, args: argparse.Namespace) -> dict:
    """One case through `diffugts segment`, measured against its mask."""
    root, prompt = args.cases.parent, case["prompt"] or GENERIC
    scan = root / next(iter(case["images"].values()))
    out = args.output / case["id"]
    command = [sys.executable, "-m", "diffugts", "segment", str(scan), "-p", prompt, "-o", str(out), "--json"]
    command += ["--model", args.model]
    if args.region:
        command += ["--region", str(root / case["tumor"])]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    row = {"id": case["id"], "category": f"{case['anatomy']} {case['modality']}", "exit": done.returncode}
    if done.returncode:
        return {**row, "error": done.stderr.strip()[-200:]}
    folder = next(out.glob("*/manifest.json")).parent
    answer = next(path.parent for path in folder.glob("*/mask.nii.gz"))
    truth = nib.load(root / case["tumor"]).get_fdata() > 0 if case.get("tumor") else None
    image = nib.load(answer / "mask.nii.gz")
    mask = np.asarray(image.dataobj) > 0
    manifest = json.loads((folder / "manifest.json").read_text())
    row["ml"] = round(float(mask.sum() * abs(np.linalg.det(image.affine[:3, :3])) / 1000), 2)
    row["true_ml"] = case.get("tumor_ml") or 0
    row["dice"] = round(dice(mask, truth), 3) if truth is not None else ""
    attention = nib.load(answer / "attention.nii.gz").get_fdata(dtype=np.float32)
    row["auroc"] = round(auroc(attention, truth), 3) if truth is not None else ""
    row["score"] = round(manifest["prompts"][prompt]["score"], 3)
    row["seconds"] = round(seconds, 1)
    row["peak_gb"] = manifest.get("peak_memory_gb") or ""
    return row


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """2 |a ∩ b| / (|a| + |b|); 1 where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def auroc(values: np.ndarray, truth: np.ndarray, most: int = 200_000) -> float:
    """Probability that a tumour voxel ranks above another voxel; on a seeded sample of large scans."""
    rng = np.random.default_rng(0)
    sides = [values[truth], values[~truth]]
    inside, outside = (rng.choice(side, most, replace=False) if len(side) > most else side for side in sides)
    ranks = rankdata(np.concatenate([inside, outside]))
    n, m = len(inside), len(outside)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def summary(rows: list[dict]) -> list[dict]:
    """Means by category, and their macro average."""
    found = []
    for category in dict.fromkeys(row["category"] for row in rows):
        own = [row for row in rows if row["category"] == category and not row["exit"]]
        mean = {key: values(own, key) for key in ("dice", "auroc", "ml", "seconds", "peak_gb")}
        found.append({"category": category, "cases": len(own), **mean})
    scored = [row for row in found if row["dice"] != ""]
    if scored:
        macro = {key: round(float(np.mean([row[key] for row in scored])), 3) for key in ("dice", "auroc")}
        found.append({"category": "macro", "cases": sum(row["cases"] for row in scored), **macro})
    return found


def values(rows: list[dict], key: str) -> float | str:
    numbers = [row[key] for row in rows if row.get(key, "") != ""]
    return round(float(np.mean(numbers)), 3) if numbers else ""


def markdown(rows: list[dict]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(keys) + " |", "|" + " --- |" * len(keys)]
    lines += ["| " + " | ".join(str(row.get(key, "")) for key in keys) + " |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
