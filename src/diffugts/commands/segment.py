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
from diffugts.commands.terminal import Bar, complain, explain, json_line, progress_bar
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
        help="NIfTI, NRRD or MHA file, or folder with DICOM series",
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
    options.add_series(parser)
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
    parser.add_argument(
        "--report",
        action="store_true",
        help="also write report.html for each case, an index.html over several, and a copy of the scan for "
        "`diffugts view` and `diffugts figure`",
    )
    options.add_exports(parser)
    options.add_reach(parser)
    parser.add_argument("--skip-done", action="store_true", help="leave cases alone that are done with these settings")
    options.add_json(parser, "each case")


def run(args: argparse.Namespace) -> int:
    """Segment each scan; a case that fails is reported and the others still run."""
    load = _once(lambda: _load(args))
    lines: list[dict[str, Any]] = []
    jobs = plan(args.scans, args.output)
    for job in jobs:
        line = run_case(args, job, load)
        lines.append(line)
        _report(args, line)
        if args.report and len(jobs) > 1:  # after each case: what an interruption leaves behind has its index too
            _index(args, lines)
    return 1 if any(line["status"] == "failed" for line in lines) else 0


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


def run_case(
    args: argparse.Namespace, job: Job, load: Callable[[], Segmenter], bar: Bar = progress_bar
) -> dict[str, Any]:
    """Segment one scan and save the result; returns what `--json` prints for it. `bar` shows the progress."""
    started = time.perf_counter()
    line: dict[str, Any] = {"case": job.folder.name, "status": "done", "scan": str(job.scan)}
    try:
        asked = request(args, job.scan)
        manifest = _finished(job.folder, asked) if args.skip_done else None
        if manifest is not None:
            line["status"] = "skipped"
            manifest = _reported(job, manifest, args.series) if args.report else manifest
        else:
            manifest = _segment(args, job, asked, load, bar)
        line |= {"output": str(job.folder), "prompts": _summaries(manifest), "warnings": manifest["warnings"]}
        if args.report:
            line["report"] = str(job.folder / manifest["report"])
    except Exception as error:
        if args.debug:
            raise
        line |= {"status": "failed", "error": explain(error)}
    line["seconds"] = round(time.perf_counter() - started, 3)
    return line


def request(args: argparse.Namespace, scan: Path) -> dict[str, Any]:
    """All that decides the result, as it goes into the manifest; `--skip-done` compares it."""
    from diffugts._version import __version__
    from diffugts.export import check_exports
    from diffugts.prompts import parse

    options.must_exist(scan)
    check_exports(scan, args.exports)
    if args.region is not None:
        options.must_exist(args.region)
    return {
        "diffugts": __version__,
        "scan_sha256": fingerprint(scan),
        "prompts": [parse(text).text for text in dict.fromkeys(args.prompts)],
        "model": args.model,
        "weights_sha256": model_hashes(args.model, args.home),
        "modality": args.modality,
        "region_sha256": None if args.region is None else fingerprint(args.region),
        "seed": args.seed,
        "seeds": args.seeds,
        "steps": args.steps,
        **_reach(args),
        "series": args.series,
        "exports": sorted(args.exports),
    }


def fingerprint(path: Path) -> str | None:
    """sha256 of a file, or of all files in a folder and below it; None where there is nothing to read."""
    import hashlib

    from diffugts.io import files_below

    digest = hashlib.sha256()
    files = list(files_below(path)) if path.is_dir() else [path]
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest() if files else None


def model_hashes(model: str, home: Path | None = None) -> dict[str, str]:
    """sha256 of each weight file as the model's record has it; empty where there is no record."""
    from diffugts.backbone.weights import model_folder, read_info

    try:
        return {file.path: file.sha256 for file in read_info(model_folder(model, home)).files}
    except WeightsError:  # for the segmenter to judge, should it come to that
        return {}


def _load(args: argparse.Namespace) -> Segmenter:
    from diffugts.segmenter import Segmenter

    segmenter = Segmenter.from_pretrained(args.model, device=args.device, **options.placed(args))
    known = segmenter.describe()
    if known.get("licence"):  # once: what may be done with the weights
        only = ", for non-commercial use only" if known.get("non_commercial") else ""
        complain(f"model {known['model']}: weights under {known['licence']}{only}")
    return segmenter


def _once(make: Callable[[], Any]) -> Callable[[], Any]:
    """Call `make` when it is first needed, then hand out what it made; a failure is tried again."""
    made: list[Any] = []

    def get() -> Any:
        if not made:
            made.append(make())
        return made[0]

    return get


def _segment(
    args: argparse.Namespace, job: Job, asked: dict[str, Any], load: Callable[[], Segmenter], bar: Bar
) -> dict[str, Any]:
    from diffugts.commands.check import model_error
    from diffugts.export import empty_exports
    from diffugts.report.save import read_manifest

    with bar(job.folder.name) as progress:
        progress("loading", 0.0)
        segmenter = load()
        case = segmenter.encode(
            options.scan_of(args, job.scan), modality=args.modality, progress=progress, **_given(args, "roi", "body")
        )
        region = _region(args.region, case.volume)
        result: Result = case.segment(
            asked["prompts"],
            seed=args.seed,
            seeds=args.seeds,
            steps=args.steps,
            region=region,
            progress=progress,
            **_given(args, "guidance", "organ_map"),
        )
        measured: dict[str, Any] = {}
        doubts: list[str] = []
        if args.report:
            progress("decode", 1.0)
            measured["model_error"], doubts = model_error(segmenter, case)
        progress("writing", 1.0)
        warnings = [*case.warnings, *doubts, *(w for answer in result.prompts.values() for w in answer.warnings)]
        warnings += empty_exports(result.prompts, args.exports)
        noted = {**result.manifest, **measured, "request": asked, "warnings": list(dict.fromkeys(warnings))}
        folder = replace(result, manifest=noted).save(
            job.folder.parent, name=job.folder.name, report=args.report, exports=args.exports
        )
    manifest = read_manifest(folder)
    if manifest is None:
        raise OSError(f"the manifest in {folder} vanished while it was written")
    return manifest


def _reported(job: Job, manifest: dict[str, Any], series: str | None) -> dict[str, Any]:
    """The manifest of a case that was done before, with its report, which is added where there is none."""
    from diffugts.io import read_volume
    from diffugts.report.load import finished, load_result
    from diffugts.report.save import add_report

    if (job.folder / str(manifest.get("report"))).is_file():
        return manifest
    add_report(load_result(job.folder, read_volume(job.scan, series)), job.folder)
    return finished(job.folder)


def _index(args: argparse.Namespace, lines: list[dict[str, Any]]) -> None:
    from diffugts.report.index import write_index

    write_index(lines, args.output)


def _reach(args: argparse.Namespace) -> dict[str, Any]:
    """`--roi` and the like as the manifest keeps them: files by their content."""
    if args.organ_map is not None:
        options.must_exist(args.organ_map)
    found = _given(args, "roi", "body", "guidance", "organ_map")
    return {name: fingerprint(Path(v)) if Path(str(v)).is_file() else v for name, v in found.items()}


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options among `names` that the user gave."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


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
    if args.report:
        print(f"  report -> {line['report']}")
    for text, answer in line["prompts"].items():
        plural = "" if answer["lesions"] == 1 else "s"
        size = (
            f"{answer['lesions']} lesion{plural}, {answer['volume_ml']:.2f} ml"
            if answer["lesions"]
            else "nothing found"
        )
        print(f"  {text}: {size}, score {answer['score']:.2f} -> {answer['folder']}/")
