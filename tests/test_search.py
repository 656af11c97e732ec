"""Where a prompt is searched for: a region, what the scan says there, and a mass in muscle."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from diffugts import soft_tissue
from diffugts.bench.metrics import dice
from diffugts.search import FARTHEST, Search, smoothed, standardised

SIDE = 48
SPACING = (2.0, 2.0, 2.0)
X, Y, Z = np.indices((SIDE,) * 3)
MASS = (X - 24) ** 2 + (Y - 16) ** 2 + (Z - 24) ** 2 < 11**2


def limb(modality: str, fat: float) -> np.ndarray:
    """A limb along the last axis: a rim of fat, streaked muscle, a bone, and an even mass of muscle's tone."""
    rng = np.random.default_rng(0)
    muscle = 0.53 if modality == "ct" else 0.35
    air = 0.0
    radius = np.hypot(X - 24, Y - 24)
    streaks = ndimage.gaussian_filter(rng.normal(size=(SIDE,) * 3), (1.5, 1.5, 4))
    streaks *= (0.008 if modality == "ct" else 0.04) / streaks.std()
    image = np.where(radius < 19, muscle + np.where(MASS, 0, streaks), np.where(radius < 23, fat, air))
    image[np.hypot(X - 24, Y - 33) < 5] = 0.8 if modality == "ct" else 0.1
    return (image + rng.normal(0, 0.003, image.shape)).clip(0, 1).astype(np.float32)


@pytest.mark.parametrize(("modality", "fat"), [("ct", 0.45), ("mr", 0.9)])
def test_an_even_mass_in_muscle_is_found_where_attention_says_nothing(modality: str, fat: float) -> None:
    found = soft_tissue.search(limb(modality, fat), SPACING, modality)
    assert found is not None
    assert found.region[MASS].mean() > 0.9
    p = found.of(np.full((SIDE,) * 3, 0.01, np.float32))
    assert (p > 0.5)[MASS].mean() > 4 * (p > 0.5)[found.region & ~MASS].mean()
    assert p.argmax() in np.flatnonzero(MASS)
    assert not p[~found.region].any()


@pytest.mark.parametrize(
    ("image", "modality"),
    [
        (limb("mr", 0.06), "mr"),  # fat is suppressed: what is brightest is no fat
        (np.full((SIDE,) * 3, 0.5, np.float32), "mr"),
        (np.zeros((SIDE,) * 3, np.float32), "ct"),
    ],
    ids=["dark fat", "one tone", "air"],
)
def test_where_muscle_cannot_be_told_nothing_is_said(image: np.ndarray, modality: str) -> None:
    assert soft_tissue.search(image, SPACING, modality) is None


def test_attention_outside_the_region_counts_for_nothing() -> None:
    attended = np.full((8, 8, 8), 0.7, np.float32)
    region = np.zeros((8, 8, 8), bool)
    region[:4] = True
    assert np.array_equal(Search(region).of(attended), np.where(region, attended, 0))


def test_odds_add_to_logits() -> None:
    region = np.ones((4, 4, 4), bool)
    found = Search(region, np.full((4, 4, 4), np.log(3), np.float32)).of(np.full((4, 4, 4), 0.5, np.float32))
    assert np.allclose(found, 0.75)


def test_of_a_share_the_main_part_alone_counts() -> None:
    region = np.ones((32, 32, 32), bool)
    attended = np.full(region.shape, 0.01, np.float32)
    attended[4:16, 4:16, 4:16] = 0.2  # a twentieth of the region
    attended[24:28, 24:28, 24:28] = 0.2
    found = Search(region, np.zeros(region.shape, np.float32), share=0.1).of(attended) > 0.5
    assert found[8:12, 8:12, 8:12].all()
    assert not found[24:28, 24:28, 24:28].any()
    assert found.mean() <= 0.1


def test_attention_need_not_be_sure_only_highest() -> None:
    region = np.ones((32, 32, 32), bool)
    odds = np.zeros(region.shape, np.float32)
    attended = np.random.default_rng(0).uniform(0.01, 0.02, region.shape).astype(np.float32)
    attended[4:16, 4:16, 4:16] = 0.04
    faint = Search(region, odds, 0.1).of(attended) > 0.5
    sure = Search(region, odds, 0.1).of(1 / (1 + (1 - attended) / attended / 20)) > 0.5  # 3 nats more everywhere
    assert dice(faint, sure) > 0.99


def test_standardised_values_are_measured_against_the_region() -> None:
    region = np.zeros((10, 10, 10), bool)
    region[:5] = True
    values = np.where(region, np.random.default_rng(0).normal(5, 2, region.shape), 1000).astype(np.float32)
    found = standardised(values, region)
    assert abs(float(np.median(found[region]))) < 1e-5
    assert 0.8 < float(found[region].std()) < 1.2
    assert found.max() == FARTHEST


def test_smoothing_does_not_look_outside_the_region() -> None:
    region = np.zeros((16, 16, 16), bool)
    region[:8] = True
    values = np.where(region, 1.0, 100.0).astype(np.float32)
    assert np.allclose(smoothed(values, region, 2.0)[region], 1.0, atol=1e-4)
