"""From records to figures: means by category, their macro average, and bootstrap intervals.

Every metric is a ratio of sums over cases, Σ numerator / Σ denominator, so that means, pooled sensitivity and counts
per scan go one way, and a bootstrap draw is a weighting of the cases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from diffugts.bench.metrics import SIZES

Record = Mapping[str, Any]
Ratio = tuple[float, float]
Array = npt.NDArray[np.float64]

MACRO = "macro"
DRAWS = 2000


def _mean(key: str) -> Callable[[Record], Ratio]:
    return lambda record: (0.0, 0.0) if record.get(key) is None else (float(record[key]), 1.0)


def _sensitivity(sizes: Sequence[str]) -> Callable[[Record], Ratio]:
    def of(record: Record) -> Ratio:
        lesions = record["lesions"]
        return float(sum(lesions["found"][s] for s in sizes)), float(sum(lesions["all"][s] for s in sizes))

    return of


def _false_positives(sizes: Sequence[str]) -> Callable[[Record], Ratio]:
    return lambda record: (float(sum(record["lesions"]["false"][size] for size in sizes)), 1.0)


METRICS: dict[str, Callable[[Record], Ratio]] = {
    **{key: _mean(key) for key in ("dice", "nsd_2mm", "hd95_mm", "auroc", "auprc", "ece")},
    "sensitivity": _sensitivity(SIZES),
    **{f"sensitivity_{size}": _sensitivity([size]) for size in SIZES},
    "false_positives": _false_positives(SIZES),
    **{f"false_positives_{size}": _false_positives([size]) for size in SIZES},
    "false_ml": _mean("false_ml"),
    "seconds": _mean("seconds"),
}
EVERYWHERE = ("false_ml", "seconds")
"""Metrics whose macro average takes categories without any tumour too; no other does."""


def summarise(records: Sequence[Record], seed: int = 0, draws: int = DRAWS) -> dict[str, Any]:
    """Figures of all methods.

    Args:
        records: one per case and method; those that failed are counted and otherwise left out.
        seed: of the bootstrap.

    Returns:
        ``summary[method][category][metric]``, ``intervals`` alike with [low, high] or None, ``cases`` the number of
        cases by method and category, ``failed`` alike. "macro" is the mean of the categories.
    """
    found: dict[str, dict[str, Any]] = {"summary": {}, "intervals": {}, "cases": {}, "failed": {}}
    for method in dict.fromkeys(record["method"] for record in records):
        own = [record for record in records if record["method"] == method]
        done = [record for record in own if record["status"] == "done"]
        found["failed"][method] = _counts(record for record in own if record["status"] != "done")
        found["cases"][method] = _counts(done)
        if done:
            found["summary"][method], found["intervals"][method] = _figures(done, seed, draws)
    return found


def _counts(records: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        counts[record["category"]] = counts.get(record["category"], 0) + 1
    return counts


def _figures(records: Sequence[Record], seed: int, draws: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(values, intervals) by category and metric, of one method."""
    categories = list(dict.fromkeys(record["category"] for record in records))
    member = np.array([[record["category"] == category for category in categories] for record in records], float)
    with_tumour = np.array([any(r["tumour_ml"] > 0 for r in records if r["category"] == c) for c in categories])
    patients = np.array([len({r["patient"] for r in records if r["category"] == c}) for c in categories])
    weights = np.vstack([np.ones(len(records)), bootstrap_weights(records, seed, draws)])
    values: dict[str, Any] = {category: {} for category in (*categories, MACRO)}
    intervals: dict[str, Any] = {category: {} for category in (*categories, MACRO)}
    for metric, of in METRICS.items():
        ratios = np.array([of(record) for record in records])
        above, below = (weights @ (member * ratios[:, [side]]) for side in (0, 1))
        drawn = np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)  # (1 + draws, categories)
        counted = drawn if metric in EVERYWHERE else drawn[:, with_tumour]
        columns = {category: (drawn[:, i], int(patients[i])) for i, category in enumerate(categories)}
        columns[MACRO] = (_mean_over(counted), int(patients.max()))
        for category, (column, count) in columns.items():
            values[category][metric] = _number(column[0])
            intervals[category][metric] = _interval(column[1:]) if count > 1 else None
    return values, intervals


def bootstrap_weights(records: Sequence[Record], seed: int, draws: int) -> Array:
    """How often each record is in each draw, (draws, N).

    Patients are drawn with replacement among those with scans in the same categories, so that no category is ever
    left empty; all scans of a patient come along.
    """
    rng = np.random.default_rng(seed)
    strata: dict[tuple[str, ...], list[str]] = {}
    for patient in dict.fromkeys(record["patient"] for record in records):
        key = tuple(sorted({record["category"] for record in records if record["patient"] == patient}))
        strata.setdefault(key, []).append(patient)
    drawn: dict[str, npt.NDArray[np.int64]] = {}
    for members in strata.values():
        counts = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
        drawn |= {patient: counts[:, index] for index, patient in enumerate(members)}
    return np.stack([drawn[record["patient"]] for record in records], axis=1).astype(float)


def _mean_over(columns: Array) -> Array:
    """Mean over categories of those that are defined; NaN where none is."""
    defined = np.isfinite(columns)
    count = defined.sum(axis=1)
    total = np.where(defined, columns, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _interval(draws: Array) -> list[float] | None:
    """The 95 % percentile interval of the draws in which the metric is defined."""
    defined = draws[np.isfinite(draws)]
    if not defined.size:
        return None
    low, high = np.percentile(defined, [2.5, 97.5])
    return [float(low), float(high)]


def pooled_reliability(records: Sequence[Record]) -> dict[str, list[float]] | None:
    """One reliability curve of several cases, voxels added up; None where no record has one."""
    curves = [record["reliability"] for record in records if record.get("reliability")]
    if not curves:
        return None
    voxels = np.array([curve["voxels"] for curve in curves], float)
    total = voxels.sum(axis=0)
    mean = {
        key: (voxels * np.array([curve[key] for curve in curves])).sum(axis=0) / np.maximum(total, 1)
        for key in ("probability", "tumour")
    }
    return {"voxels": total.tolist(), **{key: values.tolist() for key, values in mean.items()}}
