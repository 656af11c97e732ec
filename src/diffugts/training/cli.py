"""The training verbs of the command line: `diffugts pretrain` and `diffugts fit`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_pretrain_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffugts pretrain`: data, then autoencoder, then flow; each goes on where it stopped."""
    parser.description = (
        "Train a frozen learner: build the bank of training volumes, train the autoencoder, then the healthy flow. "
        "Run it again to go on; give larger step counts to train for longer."
    )
    _add_shared(parser)
    parser.add_argument("--config", type=Path, help="networks to train (config.json); default: those of `compact`")
    parser.add_argument("--autoencoder-steps", type=int, default=500, metavar="N", help="default: %(default)s")
    parser.add_argument("--flow-steps", type=int, default=2500, metavar="N", help="default: %(default)s")
    parser.add_argument("--flow-batch", type=int, default=8, metavar="N", help="default: %(default)s")


def add_fit_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffugts fit`."""
    parser.description = (
        "Train adapters, projections, text MLPs and the image-level score on planted tumours, on top of a frozen model."
    )
    _add_shared(parser)
    parser.add_argument("--model", default="compact", help="model name or folder that gives the features")
    parser.add_argument("--steps", type=int, default=800, metavar="N", help="default: %(default)s")
    parser.add_argument("--exclude", nargs="*", default=[], metavar="ORGAN", help="organs whose tumours are not shown")


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="run folder: states, curves, model"
    )
    parser.add_argument("--recipe", type=Path, required=True, help="what to train on (JSON; see recipes/)")
    parser.add_argument("--data", type=Path, default=Path("."), help="folder that the recipe's patterns start from")
    parser.add_argument("--bank", type=Path, help="folder of prepared volumes; default: DIR/bank")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=64, help="patch side in voxels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="patches per step (default: %(default)s)")


def run_pretrain(args: argparse.Namespace) -> int:
    """Carry out `diffugts pretrain`; writes a model folder at ``DIR/model``."""
    from diffugts.backbone.config import ModelConfig
    from diffugts.backbone.weights import MODELS
    from diffugts.training.bank import Bank
    from diffugts.training.loop import RunOptions
    from diffugts.training.pretrain import save_model, train_autoencoder, train_flow

    config = ModelConfig.read(args.config or MODELS / "compact" / "config.json")
    bank = Bank(_bank(args, config.spacing_mm))
    options = RunOptions(args.autoencoder_steps, args.batch, args.size, 2.5e-4, seed=args.seed, on_tumour=0.2)
    model = train_autoencoder(config, bank, options, args.output / "autoencoder")
    healthy = Bank(bank.root, lambda item: item.trusted)
    options = RunOptions(args.flow_steps, args.flow_batch, args.size, 5e-4, seed=args.seed)
    model = train_flow(model, healthy, options, args.output / "flow")
    save_model(model, args.output / "model", origin=f"diffugts pretrain, recipe {args.recipe.name}, seed {args.seed}")
    return 0


def run_fit(args: argparse.Namespace) -> int:
    """Carry out `diffugts fit`; writes the heads into the model folder ``DIR/model`` (a copy of the backbone's)."""
    import shutil

    from diffugts.backbone.weights import load_backbone, model_folder, read_info, write_record
    from diffugts.heads import Settings, save_heads
    from diffugts.text import default_encoder
    from diffugts.training.bank import Bank, Item
    from diffugts.training.fit import train_heads
    from diffugts.training.loop import RunOptions

    folder = model_folder(args.model)
    model = load_backbone(folder)

    def admit(item: Item) -> bool:
        return item.labelled and not set(item.lesions) & set(args.exclude)

    bank = Bank(_bank(args, model.config.spacing_mm), admit)
    options = RunOptions(args.steps, args.batch, args.size, 1e-3, warmup=30, ema=0.99, seed=args.seed, on_tumour=0.6)
    head = train_heads(model, default_encoder(), bank, options, args.output / "heads")
    out = args.output / "model"
    if folder.resolve() != out.resolve():
        shutil.copytree(folder, out, dirs_exist_ok=True)
    seen = sorted({organ for item in bank.items for organ in item.lesions})
    save_heads(out, head, Settings(), seen)
    info = read_info(folder)
    write_record(out, info.licence, info.origin, info.reconstruction_mae)
    return 0


def _bank(args: argparse.Namespace, spacing: float) -> Path:
    """Build what the recipe asks for and the bank lacks."""
    from diffugts.training.recipe import build

    root = args.bank or args.output / "bank"
    build(args.recipe, args.data, root, spacing)
    return Path(root)
