"""Tumours in brains: the brain in a head, its other side, and the outline that depends least on its level."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from diffugts.bench.metrics import dice
from diffugts.search import brain
from diffugts.search.brain import Brain, unlike_other_side

SHAPE = (80, 96, 72)
SPACING = (2.0, 2.0, 2.0)
X, Y, Z = (n - (side - 1) / 2 for n, side in zip(np.indices(SHAPE), SHAPE, strict=True))
TUMOUR = (X - 16) ** 2 + (Y - 6) ** 2 + Z**2 < 8**2


def hinted(place: np.ndarray) -> np.ndarray:
    """Attention that is a little higher around a place than elsewhere, and blurred."""
    return (0.05 + 0.1 * ndimage.gaussian_filter(place.astype(np.float32), 5)).astype(np.float32)


def head(tumour: float | None, stripped: bool = False, tilt: float = 0.0) -> np.ndarray:
    """A head along the last axis: scalp, skull, brain of uneven tone, a ventricle and a bright streak on each side."""
    rng = np.random.default_rng(0)
    x, y = X - tilt * Y, Y + tilt * X
    radius = np.sqrt((x / 30) ** 2 + (y / 38) ** 2 + (Z / 30) ** 2)
    folds = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.5)
    image = np.where(radius < 1, 0.45 + 0.02 * folds / folds.std(), 0.0)
    image[(abs(abs(x) - 6) < 3) & (abs(y) < 12) & (abs(Z) < 8)] = 0.15
    image[(abs(abs(x) - 20) < 3) & (abs(y + 14) < 6) & (abs(Z) < 8)] = 0.75
    if tumour is not None:
        image[TUMOUR] = tumour
    if not stripped:
        image[(radius > 1.15) & (radius < 1.3)] = 0.9
    return (image + rng.normal(0, 0.01, SHAPE) * (image > 0)).clip(0, 1).astype(np.float32)


@pytest.mark.parametrize("stripped", [False, True])
def test_the_brain_is_what_hangs_together_in_a_head(stripped: bool) -> None:
    found = brain.search(head(None, stripped), SPACING, "mr")
    assert found is not None
    inside = (X / 30) ** 2 + (Y / 38) ** 2 + (Z / 30) ** 2 < 1
    assert dice(found.region, inside) > 0.95
    assert found.region[(abs(abs(X) - 6) < 3) & (abs(Y) < 12) & (abs(Z) < 8)].all()  # ventricles too


@pytest.mark.parametrize("tumour", [0.75, 0.25])
def test_attention_says_whether_tumours_are_brighter_or_darker_and_the_scan_where(tumour: float) -> None:
    found = brain.search(head(tumour), SPACING, "mr")
    assert found is not None
    p = found.of(hinted(TUMOUR))
    assert dice(p > 0.5, TUMOUR) > 0.85


def test_what_both_sides_show_is_no_tumour() -> None:
    image = head(0.75)
    streak = (abs(X + 20) < 3) & (abs(Y + 14) < 6) & (abs(Z) < 8)
    found = brain.search(image, SPACING, "mr")
    assert found is not None
    assert found.odds is not None
    assert found.odds[TUMOUR].mean() > 1.5 * found.odds[streak].mean() > 0
    p = found.of(np.maximum(hinted(TUMOUR), hinted(streak)))
    assert dice(p > 0.5, TUMOUR) > 0.85
    assert not (p > 0.5)[streak].any()


@pytest.mark.parametrize("tilt", [0.0, 0.15, -0.15])
def test_a_tilted_head_is_compared_with_its_own_other_side(tilt: float) -> None:
    image = head(None, tilt=tilt)
    found = brain.search(image, SPACING, "mr")
    assert found is not None
    tone = np.where(found.region, (image - 0.45) / 0.02, 0).clip(-3, 3).astype(np.float32)
    unlike = unlike_other_side(tone, found.region, SPACING)
    streaks_and_ventricles = ndimage.binary_opening(abs(tone) > 2.9)
    assert streaks_and_ventricles.sum() > 1000
    assert (abs(unlike[streaks_and_ventricles]) > 1.5).mean() < 0.05


def test_the_outline_is_drawn_where_it_depends_least_on_the_level() -> None:
    region = np.ones((40, 40, 40), bool)
    distance = np.linalg.norm(np.indices(region.shape) - 20.0, axis=0)
    plateau = np.where(distance < 8, 6.0, 0) + np.clip(3 - 0.15 * distance, 0, None)
    noise = np.random.default_rng(0).normal(0, 0.2, region.shape)
    found = Brain(region, np.zeros(region.shape, np.float32))._stable((plateau + noise).astype(np.float32))
    assert dice(found, distance < 8) > 0.97


def test_no_brain_tumour_is_looked_for_in_ct_or_where_there_is_no_head() -> None:
    assert brain.search(head(None), SPACING, "ct") is None
    assert brain.search(np.zeros(SHAPE, np.float32), SPACING, "mr") is None
    small = np.zeros(SHAPE, np.float32)
    small[30:50, 30:50, 30:50] = 0.5  # 64 ml
    assert brain.search(small, SPACING, "mr") is None


def test_attention_may_be_the_same_everywhere() -> None:
    found = brain.search(head(0.75), SPACING, "mr")
    assert found is not None
    p = found.of(np.full(SHAPE, 0.05, np.float32))
    assert np.isfinite(p).all()
    assert not (p > 0.5)[~found.region].any()


@pytest.mark.filterwarnings("error")
def test_a_phantom_of_one_tone_is_searched_without_complaint() -> None:
    found = brain.search(np.full((40, 40, 40), 0.5, np.float32), SPACING, "mr")
    assert found is not None
    assert np.isfinite(found.of(np.full((40, 40, 40), 0.05, np.float32))).all()
