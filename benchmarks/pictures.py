"""Pictures of what the model does, of synthetic patients alone: reconstructions, samples from noise, before and after.

    python benchmarks/pictures.py -o docs/pictures [--model compact]

Writes model_reconstruction.png (scan, reconstruction, what is lost), model_samples.png (anatomy painted from noise
alone, three seeds a row), and model_healing.png (a planted tumour, the pseudo-healthy scan, the same patient rendered
without it). The patients' seeds trained nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from diffugts.backbone.conditions import Conditions
from diffugts.case import Case
from diffugts.inpaint import inpaint_flow
from diffugts.segmenter import Segmenter
from diffugts.synth import sample_patient
from diffugts.volume import Volume

SIDE, SPACING = 96, 2.0
SCENES = (("torso", "lung", "ct"), ("torso", "liver", "ct"), ("limb", "soft tissue", "mr"), ("head", "brain", "mr"))
FIRST_SEED = 910_000
Row = list[tuple[np.ndarray, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="compact")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    segmenter = Segmenter.from_pretrained(args.model)
    scenes = [scene(segmenter, FIRST_SEED + n, *what) for n, what in enumerate(SCENES)]
    draw([reconstruction(case) for case, _, _ in scenes], args.output / "model_reconstruction.png")
    draw([healed(*one) for one in scenes], args.output / "model_healing.png")
    draw([samples(segmenter, name) for name in ("ct", "mr-t1", "mr-flair")], args.output / "model_samples.png")


def scene(segmenter: Segmenter, seed: int, kind: str, organ: str, modality: str) -> tuple[Case, np.ndarray, np.ndarray]:
    """A patient around its tumour: the encoded scan, the tumour, and the same scan without it."""
    patient = sample_patient(seed, kind=kind, lesions=1, organ=organ)
    origin = tuple(float(c) - SIDE * SPACING / 2 for c in patient.lesions[0].centre_mm)
    ill, well = (
        patient.render((SIDE,) * 3, (SPACING,) * 3, origin, modality, lesions=lesions, contrast=None)
        for lesions in (True, False)
    )
    unit = "HU" if modality == "ct" else "arbitrary"
    volume = Volume(ill.image, np.diag([SPACING, SPACING, SPACING, 1.0]), unit)
    return segmenter.encode(volume, modality=modality), ill.lesion > 0, well.image


def plane(array: np.ndarray, lesion: np.ndarray | None = None) -> np.ndarray:
    """The axial plane with most of the lesion, or the middle, as a radiologist sees it."""
    k = array.shape[2] // 2 if lesion is None else int(lesion.sum((0, 1)).argmax())
    return array[::-1, ::-1, k].T


def shown(case: Case, array: np.ndarray) -> np.ndarray:
    """Grey values 0..1: a soft tissue window (wide where lung is in view) for CT, the model's own range for MR."""
    if case.modality == "mr":
        return case.intensity.forward(array)
    low, high = (-1000, 300) if (case.volume.array < -600).mean() > 0.1 else (-160, 240)
    return np.clip((array - low) / (high - low), 0, 1)


def reconstruction(case: Case) -> Row:
    scan, model = shown(case, case.volume.array), shown(case, case.reconstruction())
    return [(plane(scan), "scan"), (plane(model), "reconstruction"), (plane(np.abs(scan - model)), "what is lost")]


def healed(case: Case, lesion: np.ndarray, well: np.ndarray) -> Row:
    painted = case.heal(lesion, seed=0)
    rows = (
        (case.volume.array, "with a planted tumour"),
        (painted, "painted healthy"),
        (well, "the patient without it"),
    )
    return [(plane(shown(case, array), lesion), name) for array, name in rows]


@torch.inference_mode()
def samples(segmenter: Segmenter, modality: str) -> Row:
    """Three seeds of anatomy from noise: an inpainting whose mask is everything."""
    model = segmenter.backbone
    side = SIDE // model.config.stride
    conditions, times = Conditions((SPACING,) * 3, modality), torch.linspace(1, 0, 31)
    row: Row = []
    for seed in range(3):
        noise = torch.randn(
            (1, model.config.latent_channels, *(side,) * 3), generator=torch.Generator().manual_seed(seed)
        )
        everywhere = torch.ones(1, 1, *(side,) * 3)
        z = inpaint_flow(
            lambda zt, t: model.guided(zt, t, conditions, 0.0), torch.zeros_like(noise), everywhere, noise, 30,
            0, torch.Generator().manual_seed(seed), times,
        )  # fmt: skip
        row.append((plane(model.decode(z)[0, 0].numpy()), f"{modality}, seed {seed}"))
    return row


def draw(rows: list[Row], path: Path) -> None:
    figure, axes = plt.subplots(len(rows), len(rows[0]), figsize=(2.4 * len(rows[0]), 2.5 * len(rows)), squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        for axis, (image, title) in zip(line, row, strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize=8)
            axis.axis("off")
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
