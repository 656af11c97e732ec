"""How well the frozen model renders real scans: encode, decode, compare.

    python benchmarks/reconstruction.py --cases ../shared/cases/cases.json [--only lung healthy]

CT: mean absolute error in HU inside the body (above −500 HU) and PSNR on a range of 2,000 HU, both on values cut to
−1000..1000. MR: mean absolute error and PSNR on the model's 0..1 range, over nonzero voxels. Compared on the
model's own grid. ``checkerboard`` is the error's power at the stride's period over that of its neighbours (1 = none),
mean of three axes, line by line: errors at edges count, too. ``wave`` is how strong that makes it, the root mean square
of what stands out, along the worst axis. ``pattern`` is the wave at that period that lines beside each other have in
common, in tiles four strides wide, root mean square along the worst axis: what may be seen as a grid.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from diffugts.segmenter import Segmenter
from diffugts.training.pretrain import checkerboard, power_at_stride

FIGURES = "mae {:.4g}, psnr {:.2f} dB, checkerboard {:.2f}, wave {:.2g}, pattern {:.2g}"
TILE = 4  # strides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[""], help="ids start with one of these")
    parser.add_argument("--model", default="compact")
    args = parser.parse_args()
    segmenter = Segmenter.from_pretrained(args.model)
    found: dict[str, list[tuple[float, ...]]] = {}
    for case in json.loads(args.cases.read_text())["cases"]:
        if not any(case["id"].startswith(start) for start in args.only):
            continue
        scan = args.cases.parent / next(iter(case["images"].values()))
        figures = measure(segmenter, scan, case["modality"].lower())
        found.setdefault(f"{case['anatomy']} {case['modality']}", []).append(figures)
        print(case["id"], FIGURES.format(*figures), flush=True)
    for category, rows in found.items():
        print(category, len(rows), FIGURES.format(*np.mean(rows, axis=0)))


def measure(segmenter: Segmenter, scan: Path, modality: str) -> tuple[float, ...]:
    """(mean absolute error, PSNR in dB, checkerboard, wave, pattern) of one scan; errors in HU, in MR of 0..1."""
    case = segmenter.encode(scan, modality=modality)
    config = segmenter.backbone.config
    scanned = case.placement.scanned  # what pads it up to the stride is no scan
    image = case.intensity.forward(case.placement.forward(case.volume.array))[scanned]
    error = segmenter.backbone.decode_windows(case.encoding.latent)[0, 0].numpy()[scanned] - image
    whole = torch.from_numpy(error)[None, None]
    board = checkerboard(whole, config.stride).mean()
    at, beside = power_at_stride(whole, config.stride)
    wave = (at - beside).clamp_min(0).sqrt().max()
    inside = image > 0.25 if modality == "ct" else image > 0
    unit = 2000.0 if modality == "ct" else 1.0
    psnr = -10 * np.log10(np.mean(error[inside] ** 2))
    return (
        float(np.abs(error[inside]).mean() * unit),
        float(psnr),
        float(board),
        float(wave * unit),
        pattern(whole, config.stride) * unit,
    )


def pattern(error: torch.Tensor, stride: int) -> float:
    """Wave at the stride's period, root mean square, that tiles of an error (1, 1, D, H, W) have throughout."""
    side, tiles = TILE * stride, error[0, 0]
    for axis in range(3):
        tiles = tiles.unfold(axis, side, side)
    tiles, found = tiles.reshape(-1, 1, side, side, side), []
    for axis in range(3):
        across = [a + 2 for a in range(3) if a != axis]
        power, _ = power_at_stride(tiles.mean(across, keepdim=True).expand_as(tiles), stride)
        found.append(float(power[:, axis].mean().sqrt()))
    return max(found)


if __name__ == "__main__":
    main()
