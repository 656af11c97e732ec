"""Measure methods side by side on cases with expert masks: Dice and much else, by category, with intervals.

Cases come from a cases.json, or from the Medical Segmentation Decathlon, KiTS or BraTS as downloaded. Each case is
judged by the head that never saw tumours of its anatomy, where the model has one. Writes results.json, results.md,
cases.csv and plots; `--resume` goes on with a run that was stopped.

examples:
  diffugts bench --cases cases.json -o runs/bench
  diffugts bench --cases cases.json -o runs/bench --resume --seeds 4 --rival runs/rival/
  diffugts bench --dataset msd --root Decathlon/ -o runs/msd --model MAISI/ --predictions nnunet=their_masks/
  diffugts bench --render runs/bench/results.json -o docs/results.md
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffugts.commands import options
from diffugts.commands.terminal import json_line

if TYPE_CHECKING:
    from diffugts.bench.cases import CaseItem
    from diffugts.bench.judges import Options

DATASETS = ("msd", "kits", "brats")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `diffugts bench`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--cases", type=Path, metavar="JSON", help="list of cases, with paths relative to it")
    source.add_argument("--dataset", choices=DATASETS, help="a public dataset as downloaded, in --root")
    source.add_argument("--render", type=Path, metavar="RESULTS", help="write a results.json as Markdown to -o FILE")
    parser.add_argument("--root", type=Path, metavar="DIR", help="where the dataset was unpacked")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the results; with --render a file"
    )
    parser.add_argument(
        "--model", default="compact", help="a model of `diffugts weights list`, or a folder with one (default: compact)"
    )
    options.add_home(parser)
    parser.add_argument(
        "--held-out",
        choices=("auto", "none"),
        default="auto",
        help="auto: the head that never saw the case's anatomy (default); none: the default head",
    )
    parser.add_argument(
        "--methods",
        type=_names,
        default=(),
        metavar="A,B",
        help="otsu, multi-otsu, multi-otsu-middle, anomaly, unet (with --rival), attention, +pixel, +feature, "
        "likelihood, learned, full, +seeds (with --seeds), predictions:NAME (default: all that can run)",
    )
    parser.add_argument(
        "--predictions", type=_folder, action="append", default=[], metavar="NAME=DIR",
        help="masks of another tool, <case id>.nii.gz each; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--rival", type=Path, metavar="FILE", help="U-Net of `python -m diffugts.bench.rival`, or folder"
    )
    parser.add_argument("--seed", type=options.at_least(0), default=0, help="of the diffusion noise (default: 0)")
    parser.add_argument(
        "--seeds", type=options.at_least(1), default=1, metavar="K", help="2 or more adds +seeds, a mean of K"
    )
    parser.add_argument("--only", default="", metavar="PATTERN", help="cases whose id or category holds this")
    parser.add_argument("--limit", type=options.at_least(1), metavar="N", help="at most N cases of each category")
    parser.add_argument("--resume", action="store_true", help="keep records made with the same files and settings")
    parser.add_argument("--save-masks", action="store_true", help="also write every mask")
    parser.add_argument(
        "--device", type=options.device, default="auto", metavar="{auto,cpu,cuda[:i]}", help="where to compute"
    )
    options.add_json(parser, "the summary")
    parser.set_defaults(wrong_usage=parser.error)


def run(args: argparse.Namespace) -> int:
    """Run or render; 1 where a case failed."""
    if (args.dataset is None) != (args.root is None):
        args.wrong_usage("--dataset and --root go together")
    from diffugts.bench import report

    if args.render is not None:
        from diffugts.io import atomic_write

        atomic_write(args.output, report.as_markdown(report.read_results(args.render)))
        return 0
    from diffugts.bench.run import run as run_cases

    stream = sys.stderr if args.json else sys.stdout
    found = run_cases(_cases(args), _options(args), args.output, lambda line: print(line, file=stream, flush=True))
    results = report.write_results(found, args.output, args.seed)
    if args.json:
        keys = ("summary", "intervals", "counts", "failed", "notes")
        json_line({"output": str(args.output), **{key: results[key] for key in keys}})
    else:
        _print(results, args.output)
    return 1 if any(record["status"] != "done" for record in results["cases"]) else 0


def _cases(args: argparse.Namespace) -> list[CaseItem]:
    from diffugts.bench.cases import choose, read_cases, read_dataset

    options.must_exist(args.cases or args.root)
    found = read_cases(args.cases) if args.cases else read_dataset(args.dataset, args.root)
    return choose(found, args.only, args.limit)


def _options(args: argparse.Namespace) -> Options:
    from diffugts.bench.judges import Options

    for path in [*(folder for _, folder in args.predictions), *([args.rival] if args.rival else [])]:
        options.must_exist(path)
    return Options(
        model=args.model, device=args.device, held_out=args.held_out, methods=args.methods, seed=args.seed,
        seeds=args.seeds, predictions=dict(args.predictions), rival=args.rival, resume=args.resume,
        save_masks=args.save_masks, home=args.home,
    )  # fmt: skip


def _print(results: dict[str, Any], output: Path) -> None:
    from diffugts.bench.summary import MACRO

    for note in results["notes"]:
        print(note)
    for method, figures in results["summary"].items():
        shown = {category: values["dice"] for category, values in figures.items() if values["dice"] is not None}
        macro = shown.pop(MACRO, None)
        others = ", ".join(f"{category} {value:.3f}" for category, value in shown.items())
        print(f"{method:20s} macro Dice {'–' if macro is None else f'{macro:.3f}'}  ({others})")
    print(f"-> {output / 'results.md'}")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError("give at least one method, or leave --methods out")
    return names


def _folder(text: str) -> tuple[str, Path]:
    name, sign, folder = text.partition("=")
    if not sign or not name or not folder or set(name) & set(",:/\\"):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER")
    return name, Path(folder)
