"""Segment what the prompts name in one or more scans, and write the mask with the evidence for it."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffugts.commands import options
from diffugts.commands.terminal import complain, explain, json_line, progress_bar
from diffugts.errors import WeightsError

if TYPE_CHECKING:
    from diffugts.result import Result
    from diffugts.segmenter import Segmenter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `diffugts segment`."""
    parser.add_argument(
        "scans",
        nargs="+",
        type=Path,
        metavar="SCAN",
        help="NIfTI, NRRD or MHA file, or folder with a DICOM series",
    )
    parser.add_argument(
        "-p",
        "--prompt",
        action="append",
        required=True,
        dest="prompts",
        metavar="TEXT",
        help="what to find; repeatable",
    )
    options.add_output(parser)
    options.add_model_options(parser)
    parser.add_argument(
        "--region",
        type=Path,
        metavar="MASK",
        help="rough mask on the scan's grid, instead of where attention points",
    )
    parser.add_argument("--seed", type=options.at_least(0), default=0, help="of the diffusion noise (default: 0)")
    parser.add_argument(
        "--seeds",
        type=options.at_least(1),
        default=1,
        metavar="K",
        help="repaint K times; the spread is the uncertainty",
    )
    parser.add_argument(
        "--steps", type=options.at_least(1), metavar="N", help="diffusion steps (default: the model's own)"
    )
    parser.add_argument("--skip-done", action="store_true", help="leave cases alone that are done with these settings")
    options.add_json(parser, "each case")


def run(args: argparse.Namespace) -> int:
    """Segment each scan; a case that fails is reported and the others still run."""
    load = _once(lambda: _load(args))
    failed = 0
    for job in plan(args.scans, args.output):
        line = run_case(args, job, load)
        failed += line["status"] == "failed"
        _report(args, line)
    return 1 if failed else 0


@dataclass(frozen=True)
class Job:
    """One scan to segment and the folder that will hold the result."""

    scan: Path
    folder: Path


def plan(scans: Iterable[Path], output: Path) -> list[Job]:
    """A folder for each scan. Scans of one name (`a/ct.nii.gz`, `b/ct.nii.gz`) are told apart by their parent
    folders, whatever their order; a scan named twice is done once."""
    from diffugts.io import case_name
    from diffugts.report.save import unique_names

    distinct = list({scan.resolve(): scan for scan in scans}.values())
    plain = [case_name(scan) for scan in distinct]
    count = Counter(name.casefold() for name in plain)
    names = [
        f"{case_name(scan.resolve().parent)}-{name}" if count[name.casefold()] > 1 else name
        for scan, name in zip(distinct, plain, strict=True)
    ]
    return [Job(scan, output / name) for scan, name in zip(distinct, unique_names(names), strict=True)]


def run_case(args: argparse.Namespace, job: Job, load: Callable[[], Segmenter]) -> dict[str, Any]:
    """Segment one scan and save the result; returns what `--json` prints for it."""
    started = time.perf_counter()
    line: dict[str, Any] = {"case": job.folder.name, "status": "done", "scan": str(job.scan)}
    try:
        asked = request(args, job.scan)
        manifest = _finished(job.folder, asked) if args.skip_done else None
        if manifest is not None:
            line["status"] = "skipped"
        else:
            manifest = _segment(args, job, asked, load)
        line |= {"output": str(job.folder), "prompts": _summaries(manifest), "warnings": manifest["warnings"]}
    except Exception as error:
        if args.debug:
            raise
        line |= {"status": "failed", "error": explain(error)}
    line["seconds"] = round(time.perf_counter() - started, 3)
    return line


def request(args: argparse.Namespace, scan: Path) -> dict[str, Any]:
    """All that decides the result, as it goes into the manifest; `--skip-done` compares it."""
    from diffugts._version import __version__
    from diffugts.prompts import parse

    options.must_exist(scan)
    if args.region is not None:
        options.must_exist(args.region)
    return {
        "diffugts": __version__,
        "scan_sha256": fingerprint(scan),
        "prompts": [parse(text).text for text in dict.fromkeys(args.prompts)],
        "model": args.model,
        "weights_sha256": model_hashes(args.model),
        "modality": args.modality,
        "region_sha256": None if args.region is None else fingerprint(args.region),
        "seed": args.seed,
        "seeds": args.seeds,
        "steps": args.steps,
    }


def fingerprint(path: Path) -> str | None:
    """sha256 of a file, or of all files in a folder; None where there is nothing to read."""
    import hashlib

    digest = hashlib.sha256()
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    found = False
    for file in files:
        if file.is_file():
            found = True
            digest.update(file.name.encode("utf-8", "surrogateescape") + b"\0")
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest() if found else None


def model_hashes(model: str) -> dict[str, str]:
    """sha256 of each weight file as the model's record has it; empty where there is no record."""
    from diffugts.backbone.weights import model_folder, read_info

    try:
        return {file.path: file.sha256 for file in read_info(model_folder(model)).files}
    except WeightsError:  # for the segmenter to judge, should it come to that
        return {}


def _load(args: argparse.Namespace) -> Segmenter:
    from diffugts.segmenter import Segmenter

    return Segmenter.from_pretrained(args.model, device=args.device)


def _once(make: Callable[[], Any]) -> Callable[[], Any]:
    """Call `make` when it is first needed, then hand out what it made; a failure is tried again."""
    made: list[Any] = []

    def get() -> Any:
        if not made:
            made.append(make())
        return made[0]

    return get


def _segment(
    args: argparse.Namespace, job: Job, asked: dict[str, Any], load: Callable[[], Segmenter]
) -> dict[str, Any]:
    from diffugts.report.save import read_manifest

    with progress_bar(job.folder.name) as progress:
        progress("loading", 0.0)
        segmenter = load()
        case = segmenter.encode(job.scan, modality=args.modality, progress=progress)
        region = _region(args.region, case.volume)
        result: Result = case.segment(
            asked["prompts"],
            seed=args.seed,
            seeds=args.seeds,
            steps=args.steps,
            region=region,
            progress=progress,
        )
        progress("writing", 1.0)
        warnings = [*case.warnings, *(w for answer in result.prompts.values() for w in answer.warnings)]
        noted = {**result.manifest, "request": asked, "warnings": list(dict.fromkeys(warnings))}
        folder = replace(result, manifest=noted).save(job.folder.parent, name=job.folder.name)
    manifest = read_manifest(folder)
    if manifest is None:
        raise OSError(f"the manifest in {folder} vanished while it was written")
    return manifest


def _region(path: Path | None, volume: Any) -> Any:
    if path is None:
        return None
    from diffugts.io import read_mask

    return read_mask(path, volume)


def _finished(folder: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a case that was done with the same settings and whose files are all there."""
    from diffugts.report.save import read_manifest

    manifest = read_manifest(folder)
    if manifest is None or manifest.get("request") != asked:
        return None
    answers = manifest["prompts"].values()
    whole = all((folder / answer["folder"] / name).is_file() for answer in answers for name in answer["files"])
    return manifest if whole else None


def _summaries(manifest: dict[str, Any]) -> dict[str, Any]:
    return {
        text: {
            "folder": answer["folder"],
            "volume_ml": answer["volume_ml"],
            "lesions": len(answer["lesions"]),
            "score": answer["score"],
        }
        for text, answer in manifest["prompts"].items()
    }


def _report(args: argparse.Namespace, line: dict[str, Any]) -> None:
    """The outcome of one case, for a program or for a person."""
    if line["status"] == "failed":
        complain(f"{line['case']}: {line['error']}")
    if args.json:
        json_line(line)
        return
    if line["status"] == "failed":
        return
    if line["status"] == "done":
        for warning in line["warnings"]:
            complain(f"{line['case']}: warning: {warning}")
    note = "done before" if line["status"] == "skipped" else f"{line['seconds']:.1f} s"
    print(f"{line['case']} ({note}) -> {line['output']}")
    for text, answer in line["prompts"].items():
        plural = "" if answer["lesions"] == 1 else "s"
        size = (
            f"{answer['lesions']} lesion{plural}, {answer['volume_ml']:.2f} ml"
            if answer["lesions"]
            else "nothing found"
        )
        print(f"  {text}: {size}, score {answer['score']:.2f} -> {answer['folder']}/")
