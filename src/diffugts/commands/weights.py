"""List and verify the model files."""

from __future__ import annotations

import argparse

from diffugts.commands import options
from diffugts.commands.terminal import complain, json_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `diffugts weights`."""
    parser.add_argument("action", choices=("list", "verify"), help="show what there is, or check every file's sha256")
    options.add_json(parser, "each model")


def run(args: argparse.Namespace) -> int:
    """Print each model; with `verify`, 1 when one is missing or damaged."""
    from diffugts.backbone.weights import available, verify

    damaged = False
    for model in available():
        problems = verify(model.name) if args.action == "verify" else []
        damaged |= bool(problems)
        if args.json:
            json_line({**model.to_dict(), **({"problems": problems} if args.action == "verify" else {})})
            continue
        state = "" if args.action == "list" else (": damaged" if problems else ": verified")
        print(f"{model.name}{state}")
        print(f"  licence  {model.licence}\n  origin   {model.origin}")
        for file in model.files:
            print(f"  {file.sha256}  {file.bytes / 1e6:8.2f} MB  {file.path}")
        for problem in problems:
            complain(f"{model.name}: {problem}")
    return 1 if damaged else 0
