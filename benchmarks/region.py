"""How well a tumour is outlined whose rough region is known: the expert mask dilated by 8 mm, given as a user would.

    python benchmarks/region.py --cases ../shared/cases/cases.json [--only brain lung]

Prints the Dice, on the scan's own grid and with seed 0, of each form of the refinement, and of the dilated region
itself. Which form a user gets is ``region_form`` in the model's heads.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffugts.bench.metrics import dice
from diffugts.inpaint import dilate
from diffugts.io import read_mask, read_volume
from diffugts.segmenter import Segmenter

FORMS = ("plain", "learned", "likelihood")
SAYS = ", ".join(f"{what} {{:.3f}}" for what in (*FORMS, "region itself"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[""], help="ids start with one of these")
    parser.add_argument("--model", default="compact")
    args = parser.parse_args()
    segmenter, found = Segmenter.from_pretrained(args.model), {}
    for case in json.loads(args.cases.read_text())["cases"]:
        if case.get("tumor") and case["id"].startswith(tuple(args.only)):
            dices = measure(segmenter, args.cases.parent, case)
            found.setdefault(f"{case['anatomy']} {case['modality']}", []).append(dices)
            print(case["id"], SAYS.format(*dices), flush=True)
    for category, rows in found.items():
        print(category, len(rows), SAYS.format(*np.mean(rows, axis=0)))


def measure(segmenter: Segmenter, root: Path, case: dict) -> tuple[float, ...]:
    """Dice of each form and of the region."""
    volume = read_volume(root / next(iter(case["images"].values())))
    truth = read_mask(root / case["tumor"], volume) > 0
    region = dilate(truth, tuple(volume.spacing.tolist()), 8.0)
    encoded = segmenter.encode(volume, modality=case["modality"].lower())
    found = []
    for kind in FORMS:
        settings = replace(segmenter.settings, region_form=kind)
        form = replace(encoded, segmenter=replace(segmenter, settings=settings))
        found.append(dice(form.segment(case["prompt"], seed=0, region=region)[case["prompt"]].mask > 0, truth))
    return (*found, dice(region, truth))


if __name__ == "__main__":
    main()
