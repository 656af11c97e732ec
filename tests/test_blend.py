"""What was painted meets the scan without a step and has its texture."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from diffugts.blend import seamless, textured

SHAPE = (24, 20, 22)


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> np.ndarray:
    grid = np.indices(shape).reshape(3, -1).T - np.array(centre)
    return np.asarray((np.linalg.norm(grid, axis=1) <= radius).reshape(shape))


def test_a_difference_that_goes_on_around_the_mask_is_no_finding() -> None:
    i, j, k = np.indices(SHAPE, dtype=np.float32)
    slope = 0.1 + 0.01 * i - 0.02 * j + 0.005 * k  # a plane is a membrane
    mask = ball(SHAPE, (12, 10, 11), 6)
    assert np.abs(seamless(slope, mask)).max() < 2e-3


def test_a_finding_inside_the_mask_stays() -> None:
    mask, tumour = ball(SHAPE, (12, 10, 11), 7), ball(SHAPE, (12, 10, 11), 3)
    difference = 0.3 * tumour.astype(np.float32)
    left = seamless(difference + 0.2, mask)
    np.testing.assert_allclose(left[mask], difference[mask], atol=2e-3)
    assert not left[~mask].any()


def test_a_mask_at_the_border_is_held_by_the_voxels_that_exist() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[:5] = True
    assert np.abs(seamless(np.full(SHAPE, 0.4, np.float32), mask)).max() < 2e-3


def test_where_nothing_is_known_around_a_mask_the_difference_stays() -> None:
    difference = np.full(SHAPE, 0.4, np.float32)
    np.testing.assert_array_equal(seamless(difference, np.ones(SHAPE, bool)), difference)


def test_no_mask_no_difference() -> None:
    assert not seamless(np.ones(SHAPE, np.float32), np.zeros(SHAPE, bool)).any()


@pytest.fixture(scope="module")
def noisy() -> np.ndarray:
    return np.random.default_rng(0).normal(100, 10, (60, 60, 40)).astype(np.float32)


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.0, 1.0, 5.0)])
def test_texture_is_as_strong_as_around(noisy: np.ndarray, spacing: tuple[float, ...]) -> None:
    mask = ball(noisy.shape, (30, 30, 20), 9)
    healed = textured(noisy, np.full_like(noisy, 100), mask, spacing, seed=0)
    assert 0.7 < healed[mask].std() / noisy.std() < 1.1
    np.testing.assert_array_equal(healed[~mask], noisy[~mask])
    assert abs(np.corrcoef(healed[mask], noisy[mask])[0, 1]) < 0.2  # not what was there


def test_texture_comes_from_tissue_of_the_same_tone() -> None:
    rng = np.random.default_rng(1)
    scan = np.full((80, 40, 40), 50, np.float32)  # even on one side, rough and brighter on the other
    scan[40:] = 150 + rng.normal(0, 15, (40, 40, 40))
    for centre, tone, least, most in ((20, 50, 0.0, 2.0), (60, 150, 9.0, 18.0)):
        mask = ball(scan.shape, (centre, 20, 20), 6)
        healed = textured(scan, np.full_like(scan, tone), mask, (2.0, 2.0, 2.0), seed=0)
        assert least <= healed[mask].std() <= most


def test_the_draw_is_the_seeds(noisy: np.ndarray) -> None:
    mask = ball(noisy.shape, (30, 30, 20), 9)
    first, again, other = (textured(noisy, noisy * 0 + 100, mask, (2.0,) * 3, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first[mask] != other[mask]).any()


def test_coarse_paint_stays(noisy: np.ndarray) -> None:
    mask = ball(noisy.shape, (30, 30, 20), 12)
    painted = np.full_like(noisy, 60)
    healed = textured(noisy, painted, mask, (2.0,) * 3, seed=0)
    deep = ndimage.binary_erosion(mask, iterations=6)
    assert abs(healed[deep].mean() - 60) < 5


def test_without_a_place_to_borrow_from_the_paint_is_taken_as_it_is() -> None:
    scan, mask = np.zeros((12, 12, 12), np.float32), np.ones((12, 12, 12), bool)
    mask[0] = False
    painted = np.full_like(scan, 7)
    np.testing.assert_array_equal(textured(scan, painted, mask, (2.0,) * 3, 0), np.where(mask, painted, scan))


def test_a_scan_without_a_mask_is_left_alone(noisy: np.ndarray) -> None:
    np.testing.assert_array_equal(textured(noisy, noisy * 0, noisy > 1e9, (2.0,) * 3, 0), noisy)
