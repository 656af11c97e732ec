"""What a run leaves for readers: results.json, results.md, cases.csv and two plots."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffugts.bench.metrics import CONVENTIONS, SIZES
from diffugts.bench.summary import MACRO, pooled_reliability, summarise
from diffugts.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = "results.json"
PLOTS = {"dice.png": "Dice by category and method", "reliability.png": "Reliability around the tumours"}
CSV_COLUMNS = (
    "case", "patient", "category", "method", "status", "held_out", "dice", "nsd_2mm", "hd95_mm", "auroc", "auprc",
    "ece", "tumour_ml", "mask_ml", "false_ml", "score", "lesions", "found", "false", "seconds", "encode_seconds",
    "error",
)  # fmt: skip
HEADINGS = {
    "dice": ("Dice", 3), "nsd_2mm": ("NSD 2 mm", 3), "hd95_mm": ("HD95, mm", 1), "auroc": ("AUROC", 3),
    "auprc": ("AUPRC", 3), "ece": ("ECE", 3), "sensitivity": ("lesions found", 2),
    "false_positives": ("false positives per scan", 1), "false_ml": ("false ml", 1), "seconds": ("seconds", 1),
}  # fmt: skip
SIZE_NAMES = dict(zip(SIZES, ("< 2 ml", "2–20 ml", "> 20 ml"), strict=True))


def write_results(found: Mapping[str, Any], output: Path, seed: int) -> dict[str, Any]:
    """Summarise a run and write all its files into a folder; returns what results.json holds."""
    from diffugts.io import atomic_write

    figures = summarise(found["cases"], seed)
    counts = {"counts": figures["cases"], "failed": figures["failed"]}
    head = {key: value for key, value in found.items() if key != "cases"}
    results = {
        **head, "conventions": list(CONVENTIONS), "summary": figures["summary"], "intervals": figures["intervals"],
        **counts, "cases": found["cases"],
    }  # fmt: skip
    atomic_write(output / "cases.csv", as_csv(results["cases"]))
    draw_plots(results, output)
    atomic_write(output / "results.md", as_markdown(results, plots=True))
    atomic_write(output / RESULTS, json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return results


def read_results(path: Path) -> dict[str, Any]:
    """A results.json.

    Raises:
        InputError: it is none.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give the results.json of a run.") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}); give the results.json of a run.") from error
    if not isinstance(results, dict) or not {"summary", "intervals", "cases", "methods"} <= set(results):
        raise InputError(f"{path} is no results.json of `diffugts bench`.")
    return results


def as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """One row per case and method; what is not defined stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for record in records:
        lesions = record.get("lesions") or {}
        counts = {"lesions": "all", "found": "found", "false": "false"}
        totals = {name: sum(lesions[key].values()) for name, key in counts.items() if lesions}
        writer.writerow({key: "" if value is None else value for key, value in {**record, **totals}.items()})
    return text.getvalue()


def as_markdown(results: Mapping[str, Any], plots: bool = False) -> str:
    """results.md, from results.json alone.

    Args:
        plots: whether the plots lie beside the file.
    """
    model = results["model"]
    parts = [
        "# Results",
        f"Model `{model['name']}`, diffugts {results['diffugts']}, held-out heads: {results['held_out']}, "
        f"seed {results['seed']}" + (f", `+seeds` averages {results['seeds']} seeds" * (results["seeds"] > 1)) + ". "
        "Written by `diffugts bench`; do not edit by hand.",
        "\n".join(f"- {note}" for note in results["notes"]),
        "## Dice\nMean with its 95 % interval; the macro average weighs categories alike.\n\n" + _by_category(results),
        "## All metrics, macro average\n" + _macro(results),
        "## By lesion size, all cases\n" + _by_size(results),
        _tumour_free(results),
        _failures(results),
        "## Methods\n" + "\n".join(f"- `{name}`: {about}" for name, about in results["methods"].items()),
        "## Conventions\n" + "\n".join(f"- {line}" for line in results["conventions"]),
        "\n".join(f"![{alt}]({name})" for name, alt in PLOTS.items()) if plots else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _categories(results: Mapping[str, Any], with_tumour: bool = True) -> list[str]:
    """Categories in the order of the cases; those with a tumour in any of their scans, or the others."""
    done = [record for record in results["cases"] if record["status"] == "done"]
    order = dict.fromkeys(record["category"] for record in results["cases"])
    some = {record["category"] for record in done if record["tumour_ml"] > 0}
    return [category for category in order if (category in some) == with_tumour]


def _cell(results: Mapping[str, Any], method: str, category: str, metric: str, interval: bool = True) -> str:
    value = results["summary"].get(method, {}).get(category, {}).get(metric)
    if value is None:
        return "–"
    digits = HEADINGS[metric][1]
    ends = results["intervals"][method][category].get(metric)
    low_high = f" ({ends[0]:.{digits}f}–{ends[1]:.{digits}f})" if ends and interval else ""
    return f"{value:.{digits}f}{low_high}"


def _by_category(results: Mapping[str, Any]) -> str:
    columns = [*_categories(results), MACRO]
    counts = {c: max((m.get(c, 0) for m in results["counts"].values()), default=0) for c in columns}
    header = ["method", *(f"{c} ({counts[c]})" if counts[c] else c for c in columns)]
    rows = [[f"`{name}`", *(_cell(results, name, c, "dice") for c in columns)] for name in results["summary"]]
    return _table(header, rows)


def _macro(results: Mapping[str, Any]) -> str:
    header = ["method", *(name for name, _ in HEADINGS.values())]
    rows = [
        [f"`{name}`", *(_cell(results, name, MACRO, metric, interval=metric == "dice") for metric in HEADINGS)]
        for name in results["summary"]
    ]
    return _table(header, rows)


def _by_size(results: Mapping[str, Any]) -> str:
    """Lesions found of all, and false detections per scan, pooled over every case."""
    header = ["method", *(f"found {SIZE_NAMES[s]}" for s in SIZES), *(f"false {SIZE_NAMES[s]} per scan" for s in SIZES)]
    rows = []
    for name in results["summary"]:
        done = [r["lesions"] for r in results["cases"] if r["method"] == name and r["status"] == "done"]
        total = {key: {s: sum(lesions[key][s] for lesions in done) for s in SIZES} for key in ("all", "found", "false")}
        found = [f"{total['found'][s]} of {total['all'][s]}" for s in SIZES]
        rows.append([f"`{name}`", *found, *(f"{total['false'][s] / max(len(done), 1):.2f}" for s in SIZES)])
    return _table(header, rows)


def _tumour_free(results: Mapping[str, Any]) -> str:
    """What each method painted into each scan that holds no tumour, ml."""
    records = [r for r in results["cases"] if r["status"] == "done" and r["false_ml"] is not None]
    cases = list(dict.fromkeys(record["case"] for record in records))
    if not cases:
        return ""
    volumes = {(r["method"], r["case"]): f"{r['false_ml']:.1f}" for r in records}
    rows = [[f"`{m}`", *(volumes.get((m, case), "–") for case in cases)] for m in results["methods"]]
    title = "## Scans without a tumour\nMillilitres that each method painted.\n\n"
    return title + _table(["method", *cases], rows)


def _failures(results: Mapping[str, Any]) -> str:
    failed: dict[tuple[str, str], list[str]] = {}
    for record in results["cases"]:
        if record["status"] != "done":
            failed.setdefault((record["case"], record["error"]), []).append(f"`{record['method']}`")
    if not failed:
        return ""
    lines = [f"- {case} ({', '.join(names)}): {error}" for (case, error), names in failed.items()]
    return "## Failed\nThese are in no figure above.\n\n" + "\n".join(lines)


# --- plots ------------------------------------------------------------------------------------------------


def draw_plots(results: Mapping[str, Any], output: Path) -> None:
    """Write the plots named in ``PLOTS``, each whole or not at all."""
    from matplotlib.figure import Figure

    from diffugts.io import atomic_path

    for name, draw, size in (("dice.png", _draw_dice, (11.0, 4.5)), ("reliability.png", _draw_reliability, (5.5, 5.0))):
        figure = Figure(figsize=size, dpi=120, layout="constrained")
        draw(figure.subplots(), results)
        with atomic_path(output / name) as path:
            figure.savefig(path)


def _draw_dice(axes: Axes, results: Mapping[str, Any]) -> None:
    """Bars with intervals, and a dot per case."""
    from matplotlib import colormaps

    categories, names = [*_categories(results), MACRO], list(results["summary"])
    width = 0.85 / max(len(names), 1)
    for index, method in enumerate(names):
        colour = colormaps["tab20"](index % 20)
        for place, category in enumerate(categories):
            value = results["summary"][method].get(category, {}).get("dice")
            if value is None:
                continue
            x = place + (index - (len(names) - 1) / 2) * width
            axes.bar(x, value, width * 0.92, color=colour, label=method if place == 0 else None)
            if ends := results["intervals"][method][category].get("dice"):
                axes.plot([x, x], ends, color="black", linewidth=1)
            points = [
                record["dice"]
                for record in results["cases"]
                if record["status"] == "done" and (record["method"], record["category"]) == (method, category)
            ]
            axes.plot([x] * len(points), points, ".", color="black", markersize=2.5, alpha=0.5)
    axes.set_xticks(range(len(categories)), categories)
    axes.set_ylim(0, 1)
    axes.set_ylabel("Dice")
    axes.legend(fontsize=8, ncols=2, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_reliability(axes: Axes, results: Mapping[str, Any]) -> None:
    """Share of tumour against mean probability, for each method that gives one; bins under 50 voxels are left out."""
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    for method in results["summary"]:
        curve = pooled_reliability([record for record in results["cases"] if record["method"] == method])
        if curve is None:
            continue
        points = zip(curve["probability"], curve["tumour"], curve["voxels"], strict=True)
        kept = [(p, share) for p, share, voxels in points if voxels >= 50]
        axes.plot([p for p, _ in kept], [share for _, share in kept], "o-", markersize=3, label=method)
    axes.set_xlabel("probability given")
    axes.set_ylabel("share of tumour")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8)
