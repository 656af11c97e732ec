"""How well repainting and residual outline a tumour whose rough region is known: the expert mask dilated by 8 mm.

    python benchmarks/region.py --cases ../shared/cases/cases.json [--only brain lung]

Prints the Dice of the plain form, of the learned form, and of the dilated region itself, on the model's grid, seed 0.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from diffugts.healing import Sampling
from diffugts.inpaint import dilate
from diffugts.io import read_mask, read_volume
from diffugts.refine import heal_candidate, refine
from diffugts.segmenter import Segmenter


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
            print(case["id"], "plain {:.2f}, learned {:.2f}, region itself {:.2f}".format(*dices), flush=True)
    for category, rows in found.items():
        print(category, len(rows), "plain {:.3f}, learned {:.3f}, region itself {:.3f}".format(*np.mean(rows, axis=0)))


def measure(segmenter: Segmenter, root: Path, case: dict) -> tuple[float, ...]:
    """Dice of the plain form, the learned form and the region."""
    volume = read_volume(root / next(iter(case["images"].values())))
    encoded = segmenter.encode(volume, modality=case["modality"].lower())
    placement, truth = encoded.placement, read_mask(root / case["tumor"], volume)
    region = dilate(placement.forward(truth, kind="max"), placement.spacing, 8.0)
    evidence = heal_candidate(segmenter.backbone, encoded.encoding.latent, region, encoded.conditions, [0], Sampling())
    attended, wanted = np.zeros(region.shape, np.float32), placement.forward(truth, "mask").astype(bool)
    masks = [
        refine(evidence, attended, segmenter.settings, trusted=True, head=head).probability > 0.5
        for head in (None, segmenter.residual_head)
    ]
    return tuple(2 * float((m & wanted).sum()) / float(m.sum() + wanted.sum()) for m in (*masks, region))


if __name__ == "__main__":
    main()
