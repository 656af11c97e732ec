"""Time and memory of the frozen model alone: encoding a chest CT with all features, and one step of the flow.

    python benchmarks/backbone.py [--model compact] [--threads 2] [--shape 256 256 134]

The volume is a synthetic torso at the working resolution, field of view and all (no crop to the body). Medians of three
runs after one that is not counted; memory is the highest that the process reached, libraries and weights included.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from diffugts.backbone.conditions import Conditions
from diffugts.backbone.weights import load_backbone, model_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 256, 134), metavar=("D", "H", "W"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_backbone(model_folder(args.model))
    spacing = (model.config.spacing_mm,) * 3
    conditions = Conditions(spacing, "ct")
    image = chest(args.shape, spacing, model.config.multiple)
    seconds = median(lambda: model.encode(image, conditions))
    print(f"encode with features, {tuple(image.shape[2:])} voxels: {seconds:.2f} s, peak {peak_gb():.2f} GB")
    z = torch.randn(1, model.config.latent_channels, 16, 16, 16)
    with torch.inference_mode():
        seconds = median(lambda: model.guided(z, torch.tensor([0.5]), conditions, model.config.guidance))
        print(f"one flow step, 16³ latent: {seconds:.3f} s")
        seconds = median(lambda: model.decode(z))
        print(f"decode, 16³ latent: {seconds:.3f} s, peak {peak_gb():.2f} GB")


def chest(shape: tuple[int, int, int], spacing: tuple[float, float, float], multiple: int) -> torch.Tensor:
    """A synthetic torso in 0..1, padded to what the model takes: (1, 1, D, H, W)."""
    from diffugts.intensity import IntensityMap
    from diffugts.synth import sample_patient

    image = IntensityMap.ct().forward(
        sample_patient(7, kind="torso").render(tuple(shape), spacing, modality="ct").image
    )
    width = [(0, -side % multiple) for side in image.shape]
    return torch.from_numpy(np.pad(image, width, mode="edge"))[None, None]


def median(work: Callable[[], object], runs: int = 3) -> float:
    """Seconds of ``work``: median of ``runs`` after one more."""
    work()
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def peak_gb() -> float:
    """Highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
