"""Run methods over cases; each case's records are written as soon as they are made, so that a run can go on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from diffugts._version import __version__
from diffugts.bench.cases import CaseItem
from diffugts.bench.judges import Judges, Options
from diffugts.bench.methods import Method, Subject, methods
from diffugts.commands.terminal import explain
from diffugts.errors import InputError

RECORDS = "records"


def chosen_methods(options: Options, judges: Judges) -> list[Method]:
    """The methods to run, in the tables' order.

    Raises:
        InputError: a name that is not known, or one that lacks what it needs.
    """
    known = methods(options.seeds, options.predictions, judges.rival if options.rival else None, judges.learned)
    hints = {"unet": "--rival FILE", "+seeds": "--seeds 2 or more", "learned": "a model with a residual head"}
    for name in options.methods:
        if name not in known:
            hint = f"it needs {hints[name]}" if name in hints else f"there are: {', '.join(known)}"
            raise InputError(f"the method {name!r} cannot run; {hint}.")
    return [method for name, method in known.items() if not options.methods or name in options.methods]


def run(
    cases: Sequence[CaseItem], options: Options, output: Path, tell: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Answer, measure and record every case with every method.

    Args:
        output: folder for ``records/<case>.json``; made if missing.
        tell: given one line per case.

    Returns:
        What results.json holds, without the summary: the set-up, notes, and "cases", one record per case and method.
    """
    judges = Judges(options)
    chosen = chosen_methods(options, judges)
    records: list[dict[str, Any]] = []
    for number, item in enumerate(cases, start=1):
        began = time.perf_counter()
        own = _case(item, chosen, options, judges, output)
        records += own
        tell(f"[{number}/{len(cases)}] {item.id} ({item.category}) {_line(own)} {time.perf_counter() - began:.0f} s")
    return {
        "diffugts": __version__,
        "model": {"name": judges.folder.name, "sha256": judges.hashes(None)},
        "held_out": options.held_out,
        "seed": options.seed,
        "seeds": options.seeds,
        "methods": {method.name: method.about for method in chosen},
        "notes": list(judges.notes(cases, chosen)),
        "cases": records,
    }


def _line(records: Sequence[Mapping[str, Any]]) -> str:
    """The case in a few words: Dice by method, or the volume found where there is no tumour."""
    parts = [f"FAILED: {error}" for error in dict.fromkeys(r["error"] for r in records if r["status"] != "done")]
    for record in records:
        if record["status"] != "done":
            parts.append(f"{record['method']} failed")
        elif record["false_ml"] is None:
            parts.append(f"{record['method']} {record['dice']:.2f}")
        else:
            parts.append(f"{record['method']} {record['false_ml']:.1f} ml")
    return ", ".join(parts)


def _case(
    item: CaseItem, chosen: Sequence[Method], options: Options, judges: Judges, output: Path
) -> list[dict[str, Any]]:
    """Records of one case: those that can be kept, and new ones, which are written at once."""
    from diffugts.io import atomic_write, case_name

    path = output / RECORDS / f"{case_name(item.id)}.json"
    held_out = judges.held_out(item.anatomy)
    kept = _kept(path) if options.resume else {}
    records: dict[str, dict[str, Any]] = {}
    subject = Subject(item, partial(judges.segmenter, held_out), options.seed)
    for method in chosen:
        about = {**_about(item, method), "held_out": held_out if method.needs == "model" else None}
        try:
            key = _key(item, method, options, judges, held_out)
            old = kept.get(method.name)
            if old is not None and old["status"] == "done" and old["key"] == key:
                records[method.name] = {**old, **about}
                continue
            record = {**about, "status": "done", "key": key, **_answer(subject, method, options, output)}
        except Exception as error:  # one case must not end the run, whatever it holds
            record = {**about, "status": "failed", "error": explain(error)}
        records[method.name] = record
        atomic_write(path, json.dumps({**kept, **records}, indent=1, allow_nan=False))
    return list(records.values())


def _about(item: CaseItem, method: Method) -> dict[str, Any]:
    return {
        "case": item.id,
        "patient": item.patient,
        "category": item.category,
        "anatomy": item.anatomy,
        "modality": item.modality,
        "prompt": item.prompt,
        "method": method.name,
    }


def _answer(subject: Subject, method: Method, options: Options, output: Path) -> dict[str, Any]:
    """The method's answer, measured; what other methods share is not in its seconds."""
    from diffugts.bench.metrics import measure

    volume, truth = subject.volume, subject.truth
    seconds: dict[str, float] = {}
    if method.needs in ("model", "rival"):
        encoded = subject.encoded
        seconds["encode_seconds"] = sum(encoded.timings.get(stage, 0.0) for stage in ("read", "resample", "encode"))
    began = time.perf_counter()
    answer = method.run(subject)
    seconds["seconds"] = time.perf_counter() - began
    if options.save_masks:
        from diffugts.io import write_nifti

        write_nifti(answer.mask, volume, output / "masks" / method.name / f"{subject.item.id}.nii.gz")
    found = measure(answer.mask, truth, volume.spacing.tolist(), answer.values, answer.calibrated)
    rounded: dict[str, Any] = json.loads(json.dumps({**found, "score": answer.score, **seconds}), parse_float=_short)
    return rounded


def _short(text: str) -> float:
    return float(f"{float(text):.6g}")


def _key(item: CaseItem, method: Method, options: Options, judges: Judges, held_out: str | None) -> str:
    """A hash of all that decides a record; records with the same key need not be made again."""
    decides: dict[str, Any] = {
        "diffugts": __version__,
        "scan": fingerprint_of(item.image),
        "tumor": None if item.tumor is None else fingerprint_of(item.tumor),
        "labels": item.labels,
        "modality": item.modality,
        "method": method.about,
    }
    if method.needs == "model":
        decides |= {"prompt": item.prompt, "seed": options.seed, "weights": judges.hashes(held_out)}
    if method.needs == "rival":
        path = judges.rival_path(item.anatomy)
        decides |= {"rival": path and fingerprint_of(path), "model": judges.hashes(None).get("config.json")}
    if method.needs == "folder":
        folder = options.predictions[method.name.partition(":")[2]]
        decides["prediction"] = [fingerprint_of(path) for path in sorted(folder.glob(f"{item.id}.nii*"))]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


@cache
def fingerprint_of(path: Path) -> str | None:
    """sha256 of a file or folder that must be there."""
    from diffugts.commands.options import must_exist
    from diffugts.commands.segment import fingerprint

    must_exist(path)
    return fingerprint(path)


def _kept(path: Path) -> dict[str, dict[str, Any]]:
    """Earlier records of a case by method; none where the file is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: record for name, record in found.items() if {"status", "key"} <= set(record)}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
