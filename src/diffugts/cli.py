"""The command line. Everything heavy is imported by the verb that needs it, so that `--help` is instant."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from diffugts._version import __version__
from diffugts.commands import bench, check, demo, doctor, figure, prompts, segment, serve, view, weights
from diffugts.commands.terminal import complain, explain, show_log

EPILOG = """\
examples:
  diffugts demo
  diffugts segment scan.nii.gz --prompt "liver tumor" --output out/
  diffugts segment *.nii.gz -p "kidney tumor" -p "kidney cyst" -o out/ --seeds 4 --skip-done --json

exit codes: 0 done, 1 bad input or a failed case (the others still run), 2 wrong usage
For research only; not a medical device."""

VERBS = {
    "segment": (segment, "segment what the prompts name in one or more scans"),
    "check": (
        check,
        "look at a scan before segmenting it: geometry, intensities, what the model can see of it",
    ),
    "view": (view, "open a result in the browser"),
    "figure": (figure, "draw results side by side for a paper"),
    "serve": (serve, "segment from a browser or another program: a job server and its page"),
    "prompts": (prompts, "show how prompts are understood"),
    "weights": (weights, "list and verify the model files"),
    "doctor": (doctor, "check this installation"),
    "bench": (bench, "measure methods side by side on cases with expert masks"),
    "demo": (demo, "generate a patient with a tumour and segment it"),
}
TRAINING = {
    "pretrain": "train the autoencoder and the diffusion model",
    "fit": "train the adapters and heads on a frozen model",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Wrong usage raises SystemExit(2), as argparse does."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(argv)
    args = parser.parse_args(argv)
    show_log(args.debug)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except BrokenPipeError:
        # Whoever read us has left (`| head`); without this the interpreter complains again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if args.debug:
            raise
        complain(explain(error))
        return 1


def build_parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser. The training verbs get their options, hence their imports, only when `argv` names them."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="log more, and show a traceback on errors")
    parser = argparse.ArgumentParser(
        prog="diffugts",
        description="Zero-shot tumour segmentation in 3D CT and MR from a text prompt.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"diffugts {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb, (module, summary) in VERBS.items():
        own = verbs.add_parser(verb, parents=[common], help=summary, description=f"{module.__doc__}")
        module.add_arguments(own)
        own.set_defaults(run=module.run)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for verb, summary in TRAINING.items():
        own = verbs.add_parser(verb, parents=[common], help=summary, description=f"{summary.capitalize()}.")
        if verb == chosen:
            _add_training(own, verb)
    return parser


def _add_training(parser: argparse.ArgumentParser, verb: str) -> None:
    from diffugts.training import cli as training

    if verb == "pretrain":
        training.add_pretrain_arguments(parser)
        parser.set_defaults(run=training.run_pretrain)
    else:
        training.add_fit_arguments(parser)
        parser.set_defaults(run=training.run_fit)


def entry() -> NoReturn:
    """The console script."""
    sys.exit(main())
