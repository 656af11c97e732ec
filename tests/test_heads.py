"""From an attention map to a candidate: thresholds, gates, and small parts."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from diffugts.heads import Settings
from diffugts.residual import Fusion

SPACING = (2.0, 2.0, 2.0)


@pytest.fixture
def attended() -> np.ndarray:
    """A block of 0.4 with 1 ml, a voxel of 0.9 with 0.008 ml, and 0.1 elsewhere."""
    field = np.full((20, 20, 20), 0.1, np.float32)
    field[4:9, 4:9, 4:9] = 0.4
    field[15, 15, 15] = 0.9
    return field


def test_threshold_and_small_parts(attended: np.ndarray) -> None:
    found = Settings(threshold=0.3, min_candidate_ml=0.1).suspicious(attended, 1.0, SPACING)
    assert found.sum() == 125
    assert found[4:9, 4:9, 4:9].all()
    assert Settings(threshold=0.3, min_candidate_ml=0.0).suspicious(attended, 1.0, SPACING).sum() == 126


def test_relative_threshold_follows_the_peak(attended: np.ndarray) -> None:
    assert Settings(threshold=0.05, relative=0.5).suspicious(attended, 1.0, SPACING).sum() == 0  # 0.45 > 0.4
    assert Settings(threshold=0.05, relative=0.4).suspicious(attended, 1.0, SPACING).sum() == 125


def test_a_part_counts_only_where_its_peak_is_sure(attended: np.ndarray) -> None:
    attended[6, 6, 6] = 0.7
    attended[12:15, 4:9, 4:9] = 0.5
    found = Settings(threshold=0.3, sure=0.6).suspicious(attended, 1.0, SPACING)
    assert found.sum() == 125  # the whole block, not its peak alone
    assert found[4:9, 4:9, 4:9].all()
    assert Settings(threshold=0.3, sure=0.8).suspicious(attended, 1.0, SPACING).sum() == 0


def test_where_no_organ_is_named_a_part_must_be_firm(attended: np.ndarray) -> None:
    attended[12:17, 12:17, 12:17] = 0.8  # log-odds 1.39; those of the block are -0.41
    settings = Settings(threshold=0.3, min_candidate_ml=0.1, firm=1.2)
    assert settings.suspicious(attended, 1.0, SPACING).sum() == 250
    found = settings.suspicious(attended, 1.0, SPACING, anywhere=True)
    assert found.sum() == 125
    assert found[12:17, 12:17, 12:17].all()
    assert Settings(threshold=0.3, min_candidate_ml=0.1).suspicious(attended, 1.0, SPACING, anywhere=True).sum() == 250


def test_score_gates_everything(attended: np.ndarray) -> None:
    settings = Settings(threshold=0.3, score_threshold=0.5)
    assert not settings.candidate(attended, 0.49, SPACING).any()
    assert settings.candidate(attended, 0.5, SPACING).any()


def test_candidate_is_grown_by_the_margin(attended: np.ndarray) -> None:
    candidate = Settings(threshold=0.3, margin_mm=4.0).candidate(attended, 1.0, SPACING)
    assert candidate[2, 6, 6]
    assert not candidate[1, 6, 6]


def test_settings_survive_json() -> None:
    settings = Settings(threshold=0.2, fusion=Fusion(pixel=3.0))
    assert Settings.from_dict(asdict(settings)) == settings
