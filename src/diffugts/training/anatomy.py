"""Training of the locator: which organ lies where, from healthy synthetic patients.

    python -m diffugts.training.anatomy -o runs/anatomy --patients 237 --steps 3000

No tumour is ever in its pictures, marked or not. Blobs of any tone are pasted into them instead, under which the organ
goes on: what is to be learnt is that a lung is a lung where it is dense, too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffugts.anatomy import CLASSES, LOCATOR, MULTIPLE, REST, SPACING_MM, Locator, channels, shares
from diffugts.backbone.weights import save_tensors
from diffugts.intensity import IntensityMap
from diffugts.io import atomic_path
from diffugts.synth import sample_patient
from diffugts.synth.field import rotation
from diffugts.synth.labels import ORGANS, values
from diffugts.training.loop import log_row

FIRST_SEED = 500_000
FINE_MM = SPACING_MM / 2  # what is rendered; the model's voxels are means of eight
PLAN = (("torso", "ct", 0.7), ("torso", "mr", 0.2), ("limb", "ct", 0.03), ("limb", "mr", 0.03), ("head", "mr", 0.04))
"""Kind of patient, modality, share."""
WINDOW = (20, 48)  # voxels a side: 16 to 38 cm
HELD_BACK = 20
SAVE_EVERY = 100
NOBODY = 255  # class of the padding, of which nothing is known
BLOBS = 3
BLOB_MM = (8.0, 60.0)
BLOB_TONE = {"ct": (0.42, 0.58), "mr": (0.05, 0.9)}  # -160 to 160 HU


@dataclass(frozen=True)
class Picture:
    """image (D, H, W) float16 0..1 and classes (D, H, W) uint8 of one patient, at ``SPACING_MM``."""

    image: npt.NDArray[np.float16]
    classes: npt.NDArray[np.uint8]
    modality: str


def make_pictures(root: Path, count: int) -> list[Path]:
    """Render ``count`` healthy patients whole, going on where an earlier call stopped."""
    kinds = [(kind, modality) for kind, modality, share in PLAN for _ in range(max(1, round(share * 100)))]
    np.random.default_rng(0).shuffle(kinds)
    paths = []
    for number in range(count):
        kind, modality = kinds[number % len(kinds)]
        path = root / f"{number:05d}_{kind}_{modality}.npz"
        paths.append(path)
        if not path.exists():
            made = picture(FIRST_SEED + number, kind, modality)
            with atomic_path(path) as temporary:
                np.savez_compressed(temporary, image=made.image, classes=made.classes)
    return paths


def picture(seed: int, kind: str, modality: str) -> Picture:
    """One healthy patient, whole."""
    patient, rng = sample_patient(seed, kind=kind, lesions=0), np.random.default_rng(seed)
    low, high = (np.asarray(corner, float) for corner in patient.extent)
    fine = FINE_MM * rng.uniform(0.85, 1.15)
    size = (np.ceil((high - low) / fine / 2) * 2).astype(int)
    shape, origin = (int(size[0]), int(size[1]), int(size[2])), low + fine / 2
    sample = patient.render(shape, (fine,) * 3, (origin[0], origin[1], origin[2]), modality, seed=seed)
    scale = IntensityMap.ct() if modality == "ct" else IntensityMap.mr(sample.image)
    image = F.avg_pool3d(torch.from_numpy(scale.forward(sample.image))[None], 2)[0].numpy()
    return Picture(image.astype(np.float16), _classes(sample.labels)[::2, ::2, ::2], modality)


def _classes(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Tissue labels to the locator's classes."""
    table = np.full(256, REST, np.uint8)
    for number, organ in enumerate(CLASSES, start=REST + 1):
        for value in values(ORGANS[organ]):
            table[value] = number
    for value in values(("airway", "airway wall")):
        table[value] = table[values(("lung",))[0]]
    return table[labels]


def drawn(made: Picture, rng: np.random.Generator) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """A window of a patient as another scanner, another field of view and another illness would show it."""
    image, classes = made.image.astype(np.float32), made.classes
    box = tuple(_span(rng, side) for side in image.shape)
    image, classes = image[box], classes[box]
    for _ in range(int(rng.integers(0, BLOBS + 1))):
        image = _blobbed(image, classes, made.modality, rng)
    if made.modality == "ct":
        image = image * rng.uniform(0.97, 1.03) + rng.normal(0, 0.006)
    else:
        image = np.clip(image, 0, None) ** rng.uniform(0.7, 1.4) * rng.uniform(0.8, 1.15)
    noisy = image + rng.normal(0, rng.uniform(0, 0.02), image.shape)
    pad = [(0, -side % MULTIPLE) for side in image.shape]
    padded = np.pad(np.clip(noisy, 0, 1), pad, mode="edge").astype(np.float32)
    return padded, np.pad(classes, pad, constant_values=NOBODY)


def _span(rng: np.random.Generator, side: int) -> slice:
    wanted = min(int(rng.integers(*WINDOW)), side)
    start = int(rng.integers(0, side - wanted + 1))
    return slice(start, start + wanted)


def _blobbed(
    image: npt.NDArray[np.float32], classes: npt.NDArray[np.uint8], modality: str, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """The image with an even blob of any tone in one of the organs, most often not beyond it."""
    organs = [number for number in np.unique(classes) if number != REST]
    if not organs:
        return image
    organ = rng.choice(organs)
    centre = np.unravel_index(rng.choice(np.flatnonzero(classes == organ)), image.shape)
    radius = np.exp(rng.uniform(*np.log(BLOB_MM))) / SPACING_MM
    axes = np.indices(image.shape, dtype=np.float32) - np.array(centre, np.float32)[:, None, None, None]
    turned = np.tensordot(np.asarray(rotation(rng, 180)) / np.exp(rng.normal(0, 0.3, 3))[:, None], axes, 1)
    share = np.clip((1 - np.sqrt((turned**2).sum(0)) / radius) * radius + 0.5, 0, 1)
    share = share * (classes == organ if rng.random() < 0.7 else image > 0.02)
    tone = rng.uniform(*BLOB_TONE[modality])
    return np.asarray(image + share * (tone - image), np.float32)


def train_locator(paths: Sequence[Path], steps: int, seed: int, out: Path, rate: float = 2e-3) -> Locator:
    """Train on windows of the pictures, going on where an earlier call stopped; cross-entropy and soft Dice."""
    torch.manual_seed(seed)
    locator, known = Locator(), [_read(path) for path in paths]
    optimiser = torch.optim.AdamW(locator.parameters(), rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    state, step = out / "state.pt", 0
    out.mkdir(parents=True, exist_ok=True)
    if state.exists():
        kept = torch.load(state, weights_only=True)
        locator.load_state_dict(kept["model"])
        optimiser.load_state_dict(kept["optimiser"])
        schedule.load_state_dict(kept["schedule"])
        step = int(kept["step"])
    losses: list[float] = []
    while step < steps:
        rng = np.random.default_rng((seed, step))
        made = known[rng.integers(len(known))]
        image, classes = drawn(made, rng)
        loss = locator_loss(locator(channels(torch.from_numpy(image))[None]), torch.from_numpy(classes)[None])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without annotations
        nn.utils.clip_grad_norm_(locator.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        step += 1
        losses.append(loss.item())
        if step % SAVE_EVERY == 0 or step == steps:
            log_row(out / "curve.csv", {"step": step, "loss": float(np.mean(losses))})
            losses.clear()
            parts: dict[str, Any] = {"model": locator, "optimiser": optimiser, "schedule": schedule}
            with atomic_path(state) as temporary:
                torch.save({"step": step, **{name: one.state_dict() for name, one in parts.items()}}, temporary)
    return locator.eval().requires_grad_(False)


def locator_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy and, over the organs in view, 1 − soft Dice; (N, K, ·) and (N, ·) uint8, ``NOBODY`` unknown."""
    target, known = classes.long(), classes != NOBODY
    entropy = F.cross_entropy(logits, target, ignore_index=NOBODY)
    p = torch.softmax(logits, 1) * known[:, None]
    y = F.one_hot(target.where(known, REST), logits.shape[1]).movedim(-1, 1) * known[:, None]
    overlap, both, size = (x.flatten(2).sum((0, 2)) for x in (p * y, p + y, y))
    there = size > 0
    return entropy + (1 - (2 * overlap + 1) / (both + 1))[there].mean()


def judged(locator: Locator, paths: Sequence[Path]) -> dict[str, float]:
    """Mean Dice of each organ over whole patients that have it."""
    found: dict[str, list[float]] = {}
    for path in paths:
        made = _read(path)
        best = shares(locator, made.image.astype(np.float32)).argmax(0)
        for number, organ in enumerate(CLASSES, start=REST + 1):
            said, truth = best == number, made.classes == number
            if truth.any():
                found.setdefault(organ, []).append(float(2 * (said & truth).sum() / (said.sum() + truth.sum())))
    return {organ: round(float(np.mean(dices)), 3) for organ, dices in found.items()}


def _read(path: Path) -> Picture:
    with np.load(path, allow_pickle=False) as kept:
        return Picture(kept["image"], kept["classes"], path.stem.rsplit("_", 1)[1])


def main(argv: Sequence[str] | None = None) -> None:
    """Make the pictures, train on them, judge on every twentieth, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="pictures, curve, weights")
    parser.add_argument("--patients", type=int, default=237, metavar="N", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=3000, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    paths = make_pictures(args.output / "pictures", args.patients)
    kept = paths[::HELD_BACK]
    locator = train_locator([path for path in paths if path not in kept], args.steps, args.seed, args.output / "run")
    about = {
        "licence": "Apache-2.0",
        "origin": f"python -m diffugts.training.anatomy --patients {args.patients} --steps {args.steps} "
        f"--seed {args.seed}: healthy synthetic patients alone",
        "dice": json.dumps(judged(locator, kept)),
    }
    save_tensors(args.output / LOCATOR, locator.state_dict(), about)
    sys.stdout.write(f"Dice on {len(kept)} patients that it was not trained on: {about['dice']}\n")


if __name__ == "__main__":
    main()
