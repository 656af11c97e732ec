"""Tumours planted anew in the real scans of a recipe, cut out as users cut: how well is each found?

    python benchmarks/planted.py --organ liver --held-out liver --data ../shared [--refine]

From each scan of the recipe's first source (chest and abdomen CT) the first tumours of the organ whose seeds trained
nothing, of half a millilitre at least, are cut out with a margin of 50 mm; the scans around them did train, as tissue
without marked tumours. Printed: Dice of what is suspicious, with --refine also of the answer, by scan and in the mean,
and apart for tumours that are darker than what they grow in. With --whole the scans stay uncut, which is harder: there
is more that is no tumour, and in patients with cancer perhaps a real one, which counts as an error here.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage

from diffugts.bench.metrics import dice
from diffugts.case import Case
from diffugts.prompts import parse_all
from diffugts.segmenter import Segmenter
from diffugts.training.bank import TUMOUR
from diffugts.training.fit import PROMPT_OF
from diffugts.training.recipe import jobs
from diffugts.volume import Volume

MARGIN_MM, SPACING_MM, LEAST_ML = 50.0, 2.0, 0.5
MOST = 60  # numbers of plants that are looked through
RIM_VOX = 4  # around a tumour: what it grows in


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--organ", required=True, choices=["liver", "lung"])
    parser.add_argument(
        "--held-out", metavar="ORGAN", help="head that never saw this organ (default: the default head)"
    )
    parser.add_argument("--model", default="compact")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/compact.json"))
    parser.add_argument("--data", type=Path, required=True, help="folder that the recipe's patterns start from")
    parser.add_argument("--count", type=int, default=4, help="plants of each scan (default: %(default)s)")
    parser.add_argument("--whole", action="store_true", help="whole scans, not cut out")
    parser.add_argument("--refine", action="store_true", help="repaint and refine as well")
    args = parser.parse_args()
    segmenter = Segmenter.from_pretrained(args.model, held_out=args.held_out)
    prompt = f"{PROMPT_OF.get(args.organ, args.organ)} tumor"
    rows, dark = [], []
    for name, volume, truth in planted(args.recipe, args.data, args.organ, args.count, args.whole):
        case = segmenter.encode(volume, modality="ct")
        row = [dice(suspicious(case, prompt), case.placement.forward(truth, "mask").astype(bool))]
        if args.refine:
            row.append(dice(case.segment(prompt)[prompt].mask.astype(bool), truth))
        rows.append(row)
        dark.append(contrast(volume, truth) < 0)
        print(name, f"{truth.sum() * SPACING_MM**3 / 1000:6.1f} ml", *(f"{value:.2f}" for value in row), flush=True)
    for kind, chosen in (("all", np.ones(len(rows), bool)), ("darker", np.array(dark)), ("brighter", ~np.array(dark))):
        if chosen.any():
            print(kind, int(chosen.sum()), *(f"{value:.3f}" for value in np.array(rows)[chosen].mean(0)))


def planted(
    recipe: Path, data: Path, organ: str, count: int, whole: bool = False
) -> Iterator[tuple[str, Volume, np.ndarray]]:
    """(name, volume, (I, J, K) bool truth) of tumours that no model saw."""
    plan = json.loads(recipe.read_text())["scans"][0]
    trained, done = plan["grafts"], Counter[str]()
    for job in jobs({"scans": [{**plan, "grafts": MOST}]}, data, SPACING_MM):
        scan, _, number = job.name.rpartition("_")
        if not job.name.startswith("graft_") or int(number) <= trained or done[scan] == count:
            continue  # one more than was ever trained on tunes (benchmarks/tune.py)
        item, image, flags = job.make()
        truth = flags >= TUMOUR
        if organ not in item.lesions or truth.sum() * SPACING_MM**3 / 1000 < LEAST_ML:
            continue
        done[scan] += 1
        where, margin = np.argwhere(truth), max(image.shape) if whole else int(MARGIN_MM / SPACING_MM)
        box = tuple(
            slice(max(0, low - margin), high + margin + 1) for low, high in zip(where.min(0), where.max(0), strict=True)
        )
        array = image[box].astype(np.float32) * 2000 - 1000
        yield job.name, Volume(array, np.diag([SPACING_MM] * 3 + [1.0]), "HU"), truth[box]


def suspicious(case: Case, prompt: str) -> np.ndarray:
    """What attention takes for tumour, (D, H, W) bool on the model grid."""
    (parsed,) = parse_all([prompt])
    attention = case.attention([parsed])
    return case.suspicious(parsed, case.attended(attention, parsed), float(attention.score[0]))


def contrast(volume: Volume, truth: np.ndarray) -> float:
    """HU of a tumour less those around it, medians."""
    near = ndimage.binary_dilation(truth, iterations=RIM_VOX) & ~ndimage.binary_dilation(truth)
    return float(np.median(volume.array[truth]) - np.median(volume.array[near]))


if __name__ == "__main__":
    main()
