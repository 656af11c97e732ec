"""The training verbs of the command line: `diffugts pretrain` and `diffugts fit`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from diffugts.training.workers import Workers

WIDEST = 1.75
"""Half of the patches show voxels of up to this many times the model's spacing, as the attention's wide looks have."""


def add_pretrain_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffugts pretrain`: data, then autoencoder, then flow; each goes on where it stopped."""
    parser.description = (
        "Train a frozen learner: build the bank of training volumes, train the autoencoder, then the healthy flow. "
        "Run it again to go on; give larger step counts to train for longer."
    )
    _add_shared(parser)
    parser.add_argument("--config", type=Path, help="networks to train (config.json); default: those of `compact`")
    parser.add_argument(
        "--from", dest="start", type=Path, metavar="DIR", help="model folder whose weights to go on from"
    )
    parser.add_argument(
        "--keep-features", action="store_true",
        help="with --from: train the decoder and what the flow paints, so that heads that read the model go on to fit",
    )  # fmt: skip
    parser.add_argument(
        "--keep", type=float, default=0.0, metavar="SHARE",
        help="the autoencoder is a mean of weights, in which that of --from weighs this much: %(default)s",
    )  # fmt: skip
    parser.add_argument("--autoencoder-steps", type=int, default=500, metavar="N", help="default: %(default)s")
    parser.add_argument("--flow-steps", type=int, default=2500, metavar="N", help="default: %(default)s")
    parser.add_argument("--flow-batch", type=int, default=8, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--autoencoder-minutes", type=float, default=0.0, metavar="M", help="end its training after M minutes at most"
    )
    parser.add_argument("--flow-minutes", type=float, default=0.0, metavar="M", help="the same for the flow")


def add_fit_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffugts fit`."""
    parser.description = (
        "Train adapters, projections, text MLPs and the image-level score on planted tumours, on top of a frozen model."
    )
    _add_shared(parser)
    parser.add_argument("--model", default="compact", help="model name or folder that gives the features")
    parser.add_argument("--steps", type=int, default=2000, metavar="N", help="of the attention head: %(default)s")
    parser.add_argument("--minutes", type=float, default=0.0, metavar="M", help="end after M minutes at most")
    parser.add_argument("--learning-rate", type=float, default=7e-4, metavar="RATE", help="default: %(default)s")
    parser.add_argument(
        "--exclude",
        nargs="*",
        default=[],
        metavar="ORGAN",
        help="organs whose tumours are neither shown nor named: the head goes to DIR/model/held_out/",
    )
    parser.add_argument(
        "--foreign", type=float, default=0.6, metavar="SHARE",
        help="share of the patches without a lesion that get a piece of another scan, or a mass, to find: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--widest", type=float, default=WIDEST, metavar="TIMES",
        help="half of the patches show up to this many times as much along each axis, on larger voxels: %(default)s",
    )  # fmt: skip
    parser.add_argument("--from", dest="start", type=Path, metavar="DIR", help="folder with heads to go on from")
    parser.add_argument(
        "--keep", type=float, default=0.0, metavar="SHARE",
        help="what is kept is a mean of weights, in which the head of --from weighs this much: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="keep the frozen model's features here, for this and later heads"
    )
    parser.add_argument(
        "--distinct", type=int, default=4000, metavar="N", help="different patches, with --cache: %(default)s"
    )


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="run folder: states, curves, model"
    )
    parser.add_argument(
        "--recipe", type=Path, help="what to train on (JSON; see recipes/); default: what is in --bank already"
    )
    parser.add_argument("--data", type=Path, default=Path("."), help="folder that the recipe's patterns start from")
    parser.add_argument("--bank", type=Path, help="folder of prepared volumes; default: DIR/bank")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<i>; with torchrun each its own GPU")
    parser.add_argument("--size", type=int, default=64, help="patch side in voxels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="patches per step (default: %(default)s)")
    parser.add_argument(
        "--loaders", type=int, default=0, metavar="N",
        help="processes that build the bank and draw patches: beside a GPU one for each core (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--repeats", type=int, default=1, metavar="N",
        help="use each batch this often, mirrored, where a GPU is faster than patches are drawn: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--save-every", type=int, default=50, metavar="N", help="steps between checkpoints (default: %(default)s)"
    )


def run_pretrain(args: argparse.Namespace) -> int:
    """Carry out `diffugts pretrain`; writes a model folder at ``DIR/model``."""
    import copy

    from diffugts.backbone.config import ModelConfig
    from diffugts.backbone.weights import MODELS, load_backbone
    from diffugts.errors import InputError
    from diffugts.training.bank import Bank
    from diffugts.training.loop import RunOptions
    from diffugts.training.pretrain import save_model, train_autoencoder, train_flow
    from diffugts.training.workers import Workers

    if (args.keep_features or args.keep) and not args.start:
        raise InputError("--keep-features and --keep keep something of the model that --from names; give it, too")
    if not 0 <= args.keep < 1:
        raise InputError(f"--keep takes a share from 0 up to 1, not {args.keep}")
    workers = Workers.join()
    device = _device(args, workers)
    start = load_backbone(args.start) if args.start else None
    config = start.config if start else ModelConfig.read(args.config or MODELS / "compact" / "config.json")
    bank = Bank(_bank(args, config.spacing_mm, workers))
    before = copy.deepcopy(start.autoencoder.state_dict()) if start else {}
    shared = {
        "seed": args.seed, "widest": WIDEST, "loaders": args.loaders, "repeats": args.repeats,
        "save_every": args.save_every,
    }  # fmt: skip
    options = RunOptions(
        args.autoencoder_steps, args.batch, args.size, 4e-4, on_tumour=0.2, minutes=args.autoencoder_minutes, **shared
    )
    model = train_autoencoder(
        config, bank, options, args.output / "autoencoder", start, workers, device, args.keep_features
    )
    if args.keep:
        found = {key: value.cpu() for key, value in model.autoencoder.state_dict().items()}
        model.autoencoder.load_state_dict({key: value.lerp(before[key], args.keep) for key, value in found.items()})
    healthy = Bank(bank.root, lambda item: item if item.trusted else None)
    options = RunOptions(args.flow_steps, args.flow_batch, args.size, 5e-4, minutes=args.flow_minutes, **shared)
    model = train_flow(model, healthy, options, args.output / "flow", workers, args.keep_features)
    if workers.rank == 0:
        source = f"recipe {args.recipe.name}" if args.recipe else f"bank {bank.root.name}"
        origin = f"diffugts pretrain, {source}, seed {args.seed}"
        save_model(model.cpu(), args.output / "model", origin)
    workers.wait()
    return 0


def run_fit(args: argparse.Namespace) -> int:
    """Carry out `diffugts fit`; writes the heads into the model folder ``DIR/model`` (a copy of the backbone's)."""
    import hashlib
    import shutil
    from functools import partial

    from diffugts.backbone.weights import AUTOENCODER, UNET, load_backbone, model_folder, read_info, write_record
    from diffugts.errors import InputError
    from diffugts.heads import HEADS, Settings, held_out_folder, load_heads, save_heads
    from diffugts.text import default_encoder
    from diffugts.training.bank import INDEX, Bank, Item
    from diffugts.training.features import FeatureCache
    from diffugts.training.fit import PROMPT_OF, admitted, blended, train_heads
    from diffugts.training.foreign import home_of
    from diffugts.training.loop import RunOptions
    from diffugts.training.workers import Workers

    if not 0 <= args.keep < 1 or (args.keep and not args.start):
        raise InputError(f"--keep takes a share from 0 up to 1 of the head of --from, not {args.keep}")
    if args.widest < 1:
        raise InputError(f"--widest takes a factor of 1 or more, not {args.widest}")
    if args.cache and args.repeats > 1:
        raise InputError("--repeats mirrors patches, of which --cache keeps features as they are; give one of the two")
    workers = Workers.join()
    folder, encoder = model_folder(args.model), default_encoder()
    model = load_backbone(folder).to(_device(args, workers))
    start, settings = (
        load_heads(args.start or folder)[:2] if args.start or (folder / HEADS).is_file() else (None, Settings())
    )
    modality = model.config.modality or ""  # a model of one modality trains on that one alone
    root = _bank(args, model.config.spacing_mm, workers)

    def shown(item: Item) -> Item | None:
        return admitted(item, args.exclude, args.foreign > 0) if item.modality.startswith(modality[:2]) else None

    bank = Bank(root, shown, partial(home_of, organs=args.exclude))
    options = RunOptions(
        args.steps, args.batch, args.size, args.learning_rate, warmup=50, ema=0.995, seed=args.seed, on_tumour=0.7,
        widest=args.widest, distinct=args.distinct if args.cache else 0, minutes=args.minutes, loaders=args.loaders,
        repeats=args.repeats, save_every=args.save_every,
    )  # fmt: skip
    info = read_info(folder)
    cache = None
    if args.cache:
        hashes = {file.path: file.sha256 for file in info.files if file.path in (AUTOENCODER, UNET)}
        patches = {
            "bank": hashlib.sha256((root / INDEX).read_bytes()).hexdigest(),  # as patches are drawn from its order
            "exclude": sorted(args.exclude), "foreign": args.foreign,
        }  # fmt: skip
        shared = {name: getattr(options, name) for name in ("seed", "size", "on_tumour", "widest")}
        cache = FeatureCache(args.cache, {"model": info.name, "weights": hashes, **patches, **shared})
    head = train_heads(
        model, encoder, bank, options, args.output / "heads", args.exclude, start if args.start else None, cache,
        workers, args.foreign,
    ).eval().cpu()  # fmt: skip
    workers.wait()
    if workers.rank:  # one process is enough for what is left
        return 0
    if start is not None and args.keep:
        head = blended(head, start, args.keep).eval()
    model.cpu()
    out = args.output / "model"
    if folder.resolve() != out.resolve():
        shutil.copytree(folder, out, dirs_exist_ok=True)
    seen = sorted({PROMPT_OF.get(organ, organ) for item in bank.items for organ in item.lesions if organ})
    save_heads(held_out_folder(out, args.exclude) if args.exclude else out, head, settings, seen)
    write_record(out, info.licence, info.origin, info.reconstruction_mae)
    return 0


def _device(args: argparse.Namespace, workers: Workers) -> torch.device:
    """Where to train; each of several processes on its own GPU."""
    import torch

    from diffugts.machine import find_device

    device = find_device(args.device)
    if device.type == "cuda" and workers.count > 1:
        return torch.device("cuda", workers.local)
    return device


def _bank(args: argparse.Namespace, spacing: float, workers: Workers) -> Path:
    """Build what the recipe asks for and the bank lacks, each process its part.

    Raises:
        InputError: neither a recipe nor a bank.
    """
    from diffugts.errors import InputError
    from diffugts.training.bank import INDEX
    from diffugts.training.recipe import build

    root: Path = args.bank or args.output / "bank"
    if args.recipe:
        build(args.recipe, args.data, root, spacing, workers.rank, workers.count, max(args.loaders, 1))
    elif not (root / INDEX).is_file():
        raise InputError(f"there is no bank at {root}; give a --recipe to build one from")
    workers.wait()
    return root
