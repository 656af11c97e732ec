"""Metrics against cases that can be worked out by hand, and against other implementations where there are any."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from diffugts.bench import metrics
from diffugts.bench.metrics import Ranking, lesion_counts, measure, reliability, surface_distances
from diffugts.bench.summary import MACRO, bootstrap_weights, pooled_reliability, summarise

UNIT = (1.0, 1.0, 1.0)


def cube(shape: tuple[int, int, int], low: tuple[int, int, int], side: int) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, a + side) for a in low)] = True
    return mask


# --- overlap and surfaces ---------------------------------------------------------------------------------


def test_dice_of_half_overlap() -> None:
    a, b = cube((8, 8, 8), (0, 0, 0), 4), cube((8, 8, 8), (2, 0, 0), 4)
    assert metrics.dice(a, b) == 0.5


@pytest.mark.parametrize(("found", "there"), [(False, False), (True, False), (False, True)])
def test_empty_masks_follow_the_convention(found: bool, there: bool) -> None:
    spacing = (1.0, 2.0, 3.0)
    mask, truth = np.zeros((4, 5, 6), bool), np.zeros((4, 5, 6), bool)
    mask[1, 1, 1], truth[2, 2, 2] = found, there
    result = measure(mask, truth, spacing, mask.astype(np.float32), calibrated=True)
    right = found == there
    assert (result["dice"], result["nsd_2mm"]) == ((1, 1) if right else (0, 0))
    assert result["hd95_mm"] == pytest.approx(0 if right else math.sqrt(4**2 + 10**2 + 18**2))
    assert result["false_ml"] == (None if there else pytest.approx(0.006 * found))
    assert (result["auroc"] is None, result["ece"] is None) == (not there, not there)


def test_surfaces_are_measured_in_mm_along_each_axis() -> None:
    """Two single voxels, three apart along an axis of 4 mm: every surface point is 12 mm from the other voxel."""
    mask, truth = np.zeros((9, 9, 9), bool), np.zeros((9, 9, 9), bool)
    mask[2, 4, 4] = truth[5, 4, 4] = True
    overlap, distance = surface_distances(mask, truth, (4.0, 1.0, 1.0), worst=99.0)
    assert overlap == 0
    assert distance == pytest.approx(12)


def test_shift_within_the_tolerance_keeps_the_surface() -> None:
    truth = cube((20, 20, 20), (5, 5, 5), 8)
    overlap, distance = surface_distances(np.roll(truth, 2, axis=0), truth, UNIT, worst=99.0)
    assert overlap == 1
    assert distance == pytest.approx(2)
    overlap, distance = surface_distances(np.roll(truth, 4, axis=0), truth, UNIT, worst=99.0)
    assert 0.5 < overlap < 0.9  # the sides that run along the shift are still right, its ends are not
    assert distance == pytest.approx(4)


def test_hd95_forgives_a_few_points_far_away() -> None:
    truth = cube((40, 20, 20), (2, 5, 5), 10)
    mask = truth.copy()
    mask[38, 5, 5] = True
    assert surface_distances(mask, truth, UNIT, worst=99.0)[1] == 0


def test_masks_at_the_border_have_a_surface_there() -> None:
    whole = np.ones((6, 6, 6), bool)
    assert surface_distances(whole, whole, UNIT, worst=99.0) == (1.0, 0.0)


# --- ranking ----------------------------------------------------------------------------------------------


def ranked(values: list[float], truth: list[int]) -> Ranking:
    return Ranking.of(np.array(values, np.float32).reshape(1, 1, -1), np.array(truth, bool).reshape(1, 1, -1))


def test_ranking_of_four_voxels() -> None:
    """Three of the four pairs are in order; precision 1 at the first tumour voxel and 2/3 at the second."""
    ranking = ranked([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    assert ranking.auroc() == pytest.approx(0.75)
    assert ranking.auprc() == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_ties_count_half() -> None:
    ranking = ranked([0.3, 0.3, 0.3, 0.3], [0, 1, 0, 0])
    assert ranking.auroc() == 0.5
    assert ranking.auprc() == 0.25
    assert ranked([0.0, -0.0], [1, 0]).auroc() == 0.5


def test_ranking_is_not_defined_without_both_kinds() -> None:
    assert ranked([0.2, 0.3], [0, 0]).auroc() is None
    assert ranked([0.2, 0.3], [0, 0]).auprc() is None
    assert ranked([0.2, 0.3], [1, 1]).auroc() is None


def test_ranking_agrees_with_exact_implementations() -> None:
    """Also where nearly all values are tiny: bins are finer there, since floats are."""
    known = pytest.importorskip("sklearn.metrics", reason="scikit-learn comes with the text extra only")
    rng = np.random.default_rng(0)
    truth = rng.random((30, 20, 10)) < 0.05
    values = np.exp(rng.normal(-9, 2, truth.shape) + 1.5 * truth).clip(0, 1).astype(np.float32)
    values[rng.random(truth.shape) < 0.3] = 0
    ranking = Ranking.of(values, truth)
    assert ranking.auroc() == pytest.approx(known.roc_auc_score(truth.ravel(), values.ravel()), abs=1e-4)
    assert ranking.auprc() == pytest.approx(known.average_precision_score(truth.ravel(), values.ravel()), abs=1e-3)


# --- lesions ----------------------------------------------------------------------------------------------


def test_lesions_are_counted_by_size() -> None:
    """Voxels of 1 ml: lesions of 1, 8 and 27 ml, of which the first and the last are found, and one false part."""
    truth = cube((30, 10, 10), (0, 0, 0), 1) | cube((30, 10, 10), (5, 0, 0), 2) | cube((30, 10, 10), (10, 0, 0), 3)
    mask = cube((30, 10, 10), (0, 0, 0), 1) | cube((30, 10, 10), (10, 0, 0), 2) | cube((30, 10, 10), (20, 5, 5), 2)
    counts = lesion_counts(mask, truth, voxel_ml=1.0)
    assert counts["all"] == {"lt2ml": 1, "2to20ml": 1, "gt20ml": 1}
    assert counts["found"] == {"lt2ml": 1, "2to20ml": 0, "gt20ml": 1}
    assert counts["false"] == {"lt2ml": 0, "2to20ml": 1, "gt20ml": 0}


def test_touching_a_lesion_does_not_find_it_and_flooding_is_a_false_positive() -> None:
    truth = cube((20, 20, 20), (0, 0, 0), 5)
    touch = cube((20, 20, 20), (0, 0, 0), 2)  # 8 of 125 voxels
    assert sum(lesion_counts(touch, truth, 1.0)["found"].values()) == 0
    flood = lesion_counts(np.ones_like(truth), truth, 1.0)
    assert sum(flood["found"].values()) == 1
    assert sum(flood["false"].values()) == 1


def test_crumbs_are_counted_on_neither_side() -> None:
    truth, mask = np.zeros((9, 9, 9), bool), np.zeros((9, 9, 9), bool)
    truth[1, 1, 1] = mask[5, 5, 5] = True
    assert all(sum(count.values()) == 0 for count in lesion_counts(mask, truth, voxel_ml=0.05).values())


@pytest.mark.parametrize(("ml", "name"), [(1.99, "lt2ml"), (2.0, "2to20ml"), (20.0, "2to20ml"), (20.1, "gt20ml")])
def test_size_classes_meet_without_a_gap(ml: float, name: str) -> None:
    assert metrics.size_class(ml) == name


# --- calibration ------------------------------------------------------------------------------------------


def test_calibration_of_two_bins() -> None:
    """Half the voxels say 0.25 and a quarter of them are tumour; the others say 0.95 and half of them are."""
    probability = np.full((4, 4, 4), 0.25, np.float32)
    probability[2:] = 0.95
    truth = np.zeros((4, 4, 4), bool)
    truth[0, :2] = True  # 8 of 32
    truth[2] = True  # 16 of 32
    curve = reliability(probability, truth, (10.0, 10.0, 10.0))
    assert curve["voxels"][2] == curve["voxels"][9] == 32
    assert curve["tumour"][2] == pytest.approx(0.25)
    assert metrics.expected_calibration_error(curve) == pytest.approx(0.5 * 0 + 0.5 * 0.45, abs=1e-6)


def test_calibration_looks_around_the_tumour_only() -> None:
    truth = cube((60, 9, 9), (0, 4, 4), 1)
    curve = reliability(np.zeros((60, 9, 9), np.float32), truth, (2.0, 2.0, 2.0))
    assert sum(curve["voxels"]) == 11 * 9 * 9


def test_curves_are_pooled_by_voxels() -> None:
    sure = {"voxels": [0] * 9 + [10], "probability": [0.0] * 9 + [0.95], "tumour": [0.0] * 9 + [1.0]}
    wrong = {"voxels": [0] * 9 + [30], "probability": [0.0] * 9 + [0.95], "tumour": [0.0] * 9 + [0.0]}
    pooled = pooled_reliability([{"reliability": sure}, {"reliability": wrong}, {"reliability": None}])
    assert pooled is not None
    assert pooled["voxels"][9] == 40
    assert pooled["tumour"][9] == pytest.approx(0.25)
    assert pooled_reliability([{"reliability": None}, {}]) is None


# --- summary ----------------------------------------------------------------------------------------------


def record(case: str, category: str, dice: float, **changes: Any) -> dict[str, Any]:
    counts = {"all": {"lt2ml": 1, "2to20ml": 0, "gt20ml": 1}, "found": {"lt2ml": 0, "2to20ml": 0, "gt20ml": 1}}
    lesions = {**counts, "false": {"lt2ml": 2, "2to20ml": 0, "gt20ml": 0}}
    return {
        "case": case, "patient": case, "category": category, "method": "m", "status": "done", "dice": dice,
        "nsd_2mm": dice, "hd95_mm": 1.0, "auroc": 0.9, "auprc": 0.5, "ece": 0.1, "false_ml": None, "tumour_ml": 5.0,
        "lesions": lesions, "seconds": 1.0, **changes,
    }  # fmt: skip


def healthy(case: str, category: str, false_ml: float) -> dict[str, Any]:
    none = {what: {"lt2ml": 0, "2to20ml": 0, "gt20ml": 0} for what in ("all", "found", "false")}
    undefined = dict.fromkeys(("auroc", "auprc", "ece"))
    return record(case, category, float(false_ml == 0), false_ml=false_ml, tumour_ml=0.0, lesions=none, **undefined)


def test_macro_weighs_categories_alike_and_leaves_out_tumour_free_ones() -> None:
    records = [record("a", "lung CT", 0.2), record("b", "lung CT", 0.4), record("c", "brain MR", 0.9)]
    figures = summarise([*records, healthy("d", "abdomen CT", 3.0), healthy("e", "abdomen CT", 1.0)], draws=50)
    summary = figures["summary"]["m"]
    assert summary["lung CT"]["dice"] == pytest.approx(0.3)
    assert summary[MACRO]["dice"] == pytest.approx(0.6)
    assert summary[MACRO]["auroc"] == pytest.approx(0.9)
    assert summary["abdomen CT"]["auroc"] is None
    assert summary[MACRO]["false_ml"] == summary["abdomen CT"]["false_ml"] == pytest.approx(2.0)
    assert summary["lung CT"]["false_ml"] is None


def test_sensitivity_is_pooled_and_false_positives_are_per_scan() -> None:
    two = {"all": {"lt2ml": 0, "2to20ml": 0, "gt20ml": 2}, "found": {"lt2ml": 0, "2to20ml": 0, "gt20ml": 2}}
    none = {"false": {"lt2ml": 0, "2to20ml": 0, "gt20ml": 0}}
    records = [record("a", "lung CT", 0.2), record("b", "lung CT", 0.4, lesions={**two, **none})]
    values = summarise(records, draws=10)["summary"]["m"]["lung CT"]
    assert values["sensitivity"] == pytest.approx(3 / 4)
    assert values["sensitivity_lt2ml"] == 0
    assert values["sensitivity_2to20ml"] is None
    assert values["false_positives"] == pytest.approx(1.0)


def test_intervals_hold_the_mean_and_follow_the_seed() -> None:
    records = [record(str(i), "lung CT", i / 10) for i in range(10)]
    one, same, other = (summarise(records, seed=seed) for seed in (0, 0, 1))
    low, high = one["intervals"]["m"]["lung CT"]["dice"]
    assert low < one["summary"]["m"]["lung CT"]["dice"] < high
    assert 0.2 < high - low < 0.5  # about 4 · 0.287 / √10
    assert one == same
    assert one["intervals"] != other["intervals"]


def test_one_patient_gives_no_interval() -> None:
    records = [record("a", "lung CT", 0.5), record("b", "lung CT", 0.7, patient="a")]
    assert summarise(records, draws=20)["intervals"]["m"]["lung CT"]["dice"] is None


def test_scans_of_one_patient_are_drawn_together() -> None:
    records = [record(f"{kind}{i}", f"leg {kind}", 0.5, patient=str(i)) for kind in ("CT", "MR") for i in range(4)]
    records.append(record("alone", "leg CT", 0.1))
    weights = bootstrap_weights(records, seed=0, draws=100)
    assert (weights[:, :4] == weights[:, 4:8]).all()
    assert (weights[:, :4].sum(axis=1) == 4).all()
    assert (weights[:, 8] == 1).all()  # nobody else has scans in the same categories
    assert len(np.unique(weights[:, 0])) > 1


def test_failed_records_are_counted_and_left_out() -> None:
    failed = {"case": "b", "patient": "b", "category": "lung CT", "method": "m", "status": "failed", "error": "why"}
    figures = summarise([record("a", "lung CT", 0.5), failed], draws=10)
    assert figures["summary"]["m"]["lung CT"]["dice"] == 0.5
    assert (figures["cases"]["m"], figures["failed"]["m"]) == ({"lung CT": 1}, {"lung CT": 1})
