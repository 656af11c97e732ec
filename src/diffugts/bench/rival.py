"""The honest rival: a supervised 3D U-Net, trained on the items that the heads see and asked nothing.

    python -m diffugts.bench.rival --bank runs/fit/bank --exclude lung -o runs/rival/lung.safetensors --loaders 16

It gets the patches that `diffugts fit` gives a head, foreign patches among them, under the same weights of voxels, and
whatever is marked in them is its one target: no prompt tells a lung's tumour from a piece of another scan.

One file each for every anatomy that is left out, named after it (`soft-tissue.safetensors`), and one trained on
everything, `default.safetensors`, make a folder that `diffugts bench --rival` takes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

from diffugts.backbone.weights import header, load_strictly, load_tensors, save_tensors
from diffugts.bench.metrics import Map
from diffugts.errors import InputError, WeightsError
from diffugts.machine import find_device
from diffugts.training.bank import TUMOUR, Bank
from diffugts.training.fit import admitted, alteration, voxel_weights
from diffugts.training.foreign import home_of
from diffugts.training.loop import Batch, RunOptions, train

FEATURES = (24, 24, 48, 96, 192, 24)  # about 2 M weights; finest first, the last is the output's
WINDOW = 64  # as in training: instance normalisation sees as much
DEFAULT = "default"


@dataclass(frozen=True, eq=False)
class Rival:
    """A trained U-Net.

    Attributes:
        network: (N, 1, D, H, W) in 0..1 at the working spacing → (N, 1, D, H, W) logits of "tumour".
        seen: organs whose tumours it was trained on.
        path: its file.
    """

    network: nn.Module
    seen: tuple[str, ...]
    path: Path

    @torch.inference_mode()
    def probability(self, image: Map) -> Map:
        """(D, H, W) float32 in 0..1 → the same grid, window by window with gaussian blending."""
        device = next(self.network.parameters()).device
        x = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None].to(device)
        logits = sliding_window_inference(x, (WINDOW,) * 3, 1, self.network, overlap=0.25, mode="gaussian")
        found: Map = torch.sigmoid(logits)[0, 0].float().cpu().numpy()
        return found


def build(features: Sequence[int] = FEATURES) -> nn.Module:
    """MONAI's BasicUNet with instance normalisation; every side of its input is padded to 16 voxels at least."""
    network: nn.Module = BasicUNet(spatial_dims=3, in_channels=1, out_channels=1, features=tuple(features))
    return network


def train_rival(
    bank: Bank, options: RunOptions, out: Path, foreign: float, device: torch.device | str = "cpu",
    features: Sequence[int] = FEATURES,
) -> nn.Module:  # fmt: skip
    """Train on every named tumour of a bank and on foreign patches, as a head is trained.

    Args:
        bank: of ``seen_bank``.
        out: run folder; the run goes on where it stopped.
        foreign: share 0..1 of the labelled patches without a lesion that get a foreign patch; those of items without
            labels all do, see ``training.fit.alteration``.

    Returns:
        The network with averaged weights, on the CPU.
    """
    torch.manual_seed(options.seed)
    network = build(features).to(device)

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, float]]:
        return supervised_loss(network(batch.image).float(), batch.flags, voxel_weights(batch)), {}

    train({"unet": network}, loss_of, bank, options, out, alter=alteration(bank, foreign, options))
    return network.cpu().eval().requires_grad_(False)


def supervised_loss(logits: Tensor, flags: Tensor, weight: Tensor) -> Tensor:
    """Soft Dice over the batch plus mean cross-entropy, both under weights.

    Args:
        logits: (N, 1, ·) of "tumour". flags: (N, 1, ·) of the bank; a lesion of any kind is the target.
        weight: (N, 1, ·) 0..1 of each voxel, 0 where nothing is known.
    """
    p, target = torch.sigmoid(logits), (flags >= TUMOUR).float()
    dice = 1 - (2 * (weight * p * target).sum() + 1) / ((weight * (p + target)).sum() + 1)
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum")
    return dice + entropy / weight.sum().clamp_min(1)


def seen_bank(root: Path, exclude: Sequence[str]) -> Bank:
    """What of a bank a head without the excluded organs is trained on, with foreign patches.

    Raises:
        InputError: no labelled tumour is left.
    """
    bank = Bank(root, partial(admitted, excluded=exclude, foreign=True), partial(home_of, organs=exclude))
    if not any(item.lesions for item in bank.items):
        raise InputError(f"the bank {root} has no labelled tumour left without {', '.join(exclude) or 'anything'}.")
    return bank


def save_rival(path: Path, network: nn.Module, features: Sequence[int], seen: Sequence[str]) -> None:
    """Write weights (half precision) and, in the same file, their shape and what they saw."""
    about = {"features": json.dumps(list(features)), "seen": json.dumps(list(seen))}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, network.state_dict(), about)


def load_rival(path: Path, device: torch.device | str = "cpu") -> Rival:
    """Read what ``save_rival`` wrote.

    Raises:
        WeightsError: missing, damaged, or not of this kind.
    """
    tensors, about = load_tensors(path), header(path)
    try:
        features, seen = json.loads(about["features"]), json.loads(about["seen"])
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{path.name} is no rival of `python -m diffugts.bench.rival` ({error}).") from error
    network = build(features)
    load_strictly(network, tensors, path.name)
    return Rival(network.eval().requires_grad_(False).to(device), tuple(seen), path)


def rival_file(given: Path, held_out: str | None) -> Path:
    """The file for cases of an organ: ``given`` itself, or from that folder one that left the organ out.

    Files are named after what they left out, several organs joined by "+", as the heads' folders are.

    Raises:
        WeightsError: the folder has neither such a file nor the default.
    """
    if not given.is_dir():
        return given
    files = sorted(given.glob("*.safetensors"), key=lambda path: (path.name.count("+"), path.name))
    name = held_out and held_out.replace(" ", "-")
    for wanted in (name, DEFAULT):
        for path in files:
            if wanted in path.stem.split("+"):
                return path
    raise WeightsError(f"{given} has no {name or DEFAULT}.safetensors and no {DEFAULT}.safetensors; train one.")


def main(argv: Sequence[str] | None = None) -> None:
    """Train one rival."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=Path, required=True, help="folder that `diffugts fit` filled")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.safetensors")
    parser.add_argument("--exclude", nargs="*", default=[], metavar="ORGAN", help="organs whose tumours are not shown")
    parser.add_argument("--foreign", type=float, default=0.3, metavar="SHARE", help="as of `diffugts fit`: %(default)s")
    parser.add_argument("--widest", type=float, default=1.5, metavar="TIMES", help="as of `diffugts fit`: %(default)s")
    parser.add_argument("--steps", type=int, default=20000, metavar="N", help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many at the latest (default: no limit)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="patches per step (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="patch side in voxels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<i>")
    parser.add_argument("--loaders", type=int, default=0, metavar="N", help="processes that draw patches: %(default)s")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="use each batch this often: %(default)s")
    args = parser.parse_args(argv)
    device, bank = find_device(args.device), seen_bank(args.bank, args.exclude)
    options = RunOptions(
        args.steps, args.batch, args.size, 1e-3, warmup=50, ema=0.99, seed=args.seed, on_tumour=0.7,
        widest=args.widest, minutes=args.minutes, loaders=args.loaders, repeats=args.repeats,
    )  # fmt: skip
    network = train_rival(bank, options, args.output.with_suffix(""), args.foreign, device)
    save_rival(args.output, network, FEATURES, sorted({organ for item in bank.items for organ in item.lesions}))


if __name__ == "__main__":
    main()
