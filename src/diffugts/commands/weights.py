"""List and verify the model files, and bring in those that do not ship: download them, or import your own copies.

  diffugts weights list
  diffugts weights get maisi-ct-rflow
  diffugts weights import autoencoder_v1.pt diff_unet_3d_rflow-ct.pt
  diffugts weights verify

Imported weights lie in the home folder: --home, else DIFFUGTS_HOME, else the user's data folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from diffugts.commands import options
from diffugts.commands.terminal import complain, json_line, progress_bar
from diffugts.errors import InputError, WeightsError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `diffugts weights`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "action",
        choices=("list", "verify", "get", "import"),
        help="show what there is; check every file's sha256; download a model's files; read files that you have",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="models to get, or files to import (.pt, .safetensors)"
    )
    parser.add_argument("--model", help="the model that imported files belong to (default: known from their names)")
    options.add_home(parser)
    parser.add_argument("--controlnet", action="store_true", help="get the ControlNet too, which --organ-map needs")
    parser.add_argument(
        "--mirror", metavar="URL", help="get the files from here, by the same path, not their publisher"
    )
    parser.add_argument(
        "--offline", action="store_true", help="never use the network: `get` is refused (also: DIFFUGTS_OFFLINE=1)"
    )
    options.add_json(parser, "each model")


def run(args: argparse.Namespace) -> int:
    """Do what is asked; with `verify`, 1 when a file is missing or damaged."""
    if args.action in ("list", "verify"):
        if args.names:
            raise InputError(f"`weights {args.action}` looks at every model; leave out {' '.join(args.names)}")
        return _show(args)
    if not args.names:
        raise InputError(
            f"`weights {args.action}` needs {'a model' if args.action == 'get' else 'files'} to {args.action}"
        )
    if args.action == "get":
        return max([_get(args, name) for name in args.names])
    return _import(args, [Path(name) for name in args.names], args.model)


def _show(args: argparse.Namespace) -> int:
    from diffugts.backbone.weights import available, installed, not_installed, read_info, verify

    damaged = False
    entries: list[tuple[Any, str | Path]] = [(model, model.name) for model in available()]
    entries += [(read_info(folder), folder) for folder in installed(args.home)]
    for model, where in entries:
        problems = verify(where) if args.action == "verify" else []
        damaged |= bool(problems)
        if args.json:
            found = {"problems": problems} if args.action == "verify" else {"installed": True}
            json_line({**model.to_dict(), **found})
            continue
        state = "" if args.action == "list" else (": damaged" if problems else ": verified")
        print(f"{model.name}{state}")
        _print_terms(model)
        for file in model.files:
            print(f"  {file.sha256}  {file.bytes / 1e6:8.2f} MB  {file.path}")
        for problem in problems:
            complain(f"{model.name}: {problem}")
    if args.action == "list":
        for model in not_installed(args.home):
            if args.json:
                json_line({**model.to_dict(), "installed": False})
                continue
            print(f"{model.name}: not installed (diffugts weights get {model.name})")
            _print_terms(model)
    return 1 if damaged else 0


def _print_terms(model: Any) -> None:
    print(f"  licence  {model.licence}\n  origin   {model.origin}")


def _get(args: argparse.Namespace, name: str) -> int:
    from diffugts.backbone.download import download, is_offline
    from diffugts.backbone.home import REQUIRED, home_folder, read_sources
    from diffugts.backbone.weights import MODELS

    if is_offline(args.offline):
        raise WeightsError(
            "the network is off (--offline or DIFFUGTS_OFFLINE); bring the files and use `diffugts weights import`"
        )
    sources = read_sources(MODELS / name)
    wanted = [*REQUIRED, *(["controlnet"] if args.controlnet else [])]
    if args.controlnet and "controlnet" not in sources.files:
        raise WeightsError(f"there is no ControlNet for model {name!r}")
    complain(f"{name}: weights under {sources.licence}, {sources.licence_url}")
    folder = home_folder(args.home) / "downloads"
    files = []
    with progress_bar(name) as progress:
        for part in wanted:
            source = sources.files[part]
            files.append(download(source, folder, args.mirror, lambda done, part=part: progress(part, done)))  # type: ignore[misc]
    code = _import(args, files, name)
    for file in files:  # the imported copy is what counts
        file.unlink(missing_ok=True)
    return code


def _import(args: argparse.Namespace, files: list[Path], model: str | None) -> int:
    from diffugts.backbone.checkpoints import import_files, summary

    found = summary(import_files(files, model, args.home))
    if args.json:
        json_line(found)
        return 0
    print(f"{found['model']} -> {found['folder']}\n  licence  {found['licence']}")
    for file in found["files"]:
        print(f"  {file['sha256']}  {file['bytes'] / 1e6:8.2f} MB  {file['path']}")
    if found["missing"]:
        complain(f"{found['model']} still lacks its {' and '.join(found['missing'])}; import that as well")
    return 0
