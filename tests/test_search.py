"""Where a prompt is searched for: a region, what the scan says there, and masses in muscle, lung and liver."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from diffugts.bench.metrics import dice
from diffugts.search import Search, liver, lung, smoothed, soft_tissue, standardised
from diffugts.search.base import FARTHEST
from diffugts.search.lung import Lungs
from diffugts.search.soft_tissue import Muscle
from diffugts.shapes import convex, rounded

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
    assert (p > 0.5)[MASS].mean() > 0.75
    assert (p > 0.5)[MASS].mean() > 2 * (p > 0.5)[found.region & ~MASS].mean()
    assert p.argmax() in np.flatnonzero(MASS)
    assert (p[~found.region] < 0.5).all()


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


def ball(x: float, y: float, z: float, radius: float, side: int = 64) -> np.ndarray:
    i, j, k = np.indices((side,) * 3)
    return (i - x) ** 2 + (j - y) ** 2 + (k - z) ** 2 < radius**2


def ct(hu: np.ndarray, seed: int = 0) -> np.ndarray:
    """A CT in 0..1 with some noise."""
    return ((hu + np.random.default_rng(seed).normal(0, 12, hu.shape) + 1000) / 2000).clip(0, 1).astype(np.float32)


def chest() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU of a body with one lung, its lung, and a mass against the lung's wall."""
    body, inside, mass = ball(32, 32, 32, 28), ball(32, 32, 32, 18), ball(43, 32, 32, 6)
    hu = np.where(body, 50.0, -1000.0)
    hu[inside] = -850
    hu[inside & (np.indices(hu.shape)[0] % 16 == 0) & (np.indices(hu.shape)[1] % 16 == 0)] = -200  # vessels
    hu[mass] = 40
    return hu, inside & ~mass, mass & inside


def test_a_mass_against_the_wall_of_a_lung_is_looked_for_and_neither_air_nor_body_is() -> None:
    hu, lungs, mass = chest()
    said = lungs & (np.indices(hu.shape)[2] < 36)  # the locator misses a good part
    found = lung.search(ct(hu), SPACING, "ct", said)
    assert found is not None
    assert found.region[mass].mean() > 0.75
    assert found.region[lungs].mean() < 0.1
    assert not found.region[~ball(32, 32, 32, 20)].any()  # the air around the body is no lung


def test_a_nodule_with_air_on_all_sides_is_sure_and_neither_vessels_nor_walls_are() -> None:
    hu, lungs, mass = chest()
    nodule = ball(26, 27, 36, 3)
    hu[nodule] = 30
    found = lung.search(ct(hu), SPACING, "ct", lungs)
    assert found is not None
    p = found.of(np.full(hu.shape, 0.05, np.float32))
    assert dice(p > 0.5, nodule) > 0.75
    assert (p[mass & found.region] < 0.1).mean() > 0.95


def two_lungs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU of a body with two lungs that an airway joins and a wide heart that dents one; lungs, heart."""
    i, j, k = np.indices((64,) * 3)
    body = (np.abs(i - 31.5) < 31) & (np.abs(j - 31.5) < 30)
    air = (np.abs(j - 31.5) < 26) & (np.abs(k - 31.5) < 29) & (np.abs(np.abs(i - 31.5) - 16) < 12)
    airway = (np.abs(j - 45) < 3) & (np.abs(k - 50) < 3) & (np.abs(i - 31.5) < 8)
    dent = ball(31, 31, 4, 24)
    hu = np.where(body, 30.0, -1000.0)
    hu[(air & ~dent) | airway] = -850
    hu[dent & body] = 40
    return hu, air & ~dent, dent & body


def test_two_lungs_that_an_airway_joins_are_outlined_one_by_one() -> None:
    hu, lungs, _ = two_lungs()
    found = lung.search(ct(hu), SPACING, "ct", lungs)
    assert found is not None
    assert not found.region[31:33].any()  # what lies between them


def test_what_dents_a_lung_widely_is_no_answer_and_a_nodule_is() -> None:
    hu, lungs, heart = two_lungs()
    mass, beat = ball(14, 32, 46, 5), ball(23, 31, 8, 5)
    hu[mass & lungs] = 30
    found = lung.search(ct(hu), SPACING, "ct", lungs)
    assert found is not None
    sure_of_both = np.where(beat, 0.95, np.where(mass, 0.8, 0.02)).astype(np.float32)
    assert found.region[beat & heart].any()
    for p in (found.of(sure_of_both), found.beside(sure_of_both)):
        assert not (p[heart] > 0.5).any()
        assert dice(p > 0.5, mass) > 0.8


def test_blood_with_contrast_is_no_lung_tumour() -> None:
    hu, lungs, mass = chest()
    hu[mass] = 250
    found = lung.search(ct(hu), SPACING, "ct", lungs)
    assert found is not None
    assert found.region[ball(43, 32, 32, 4) & mass].mean() < 0.1


def test_a_head_that_knows_lung_tumours_is_told_of_nodules_and_of_air() -> None:
    hu, lungs, mass = chest()
    nodule = ball(26, 27, 36, 3)
    hu[nodule] = 30
    found = lung.search(ct(hu), SPACING, "ct", lungs)
    assert found is not None
    attended = np.where(mass, 0.9, 0.05).astype(np.float32)
    p = found.beside(attended)
    assert dice(p > 0.5, nodule | mass) > 0.85
    assert not p[lungs & (hu < -800)].mean() > 0.005  # air
    np.testing.assert_allclose(p[ball(32, 32, 32, 27) & ~ball(32, 32, 32, 20)], 0.05, atol=1e-3)


def test_in_mr_nothing_is_said_beside_a_head_that_knows_lung_tumours() -> None:
    _, lungs, _ = chest()
    found = lung.search(np.full(lungs.shape, 0.1, np.float32), SPACING, "mr", lungs)
    assert found is not None
    attended = np.full(lungs.shape, 0.3, np.float32)
    np.testing.assert_array_equal(found.beside(attended), attended)


def test_in_mr_the_lung_is_what_the_locator_says_with_what_it_surrounds() -> None:
    _, lungs, mass = chest()
    found = lung.search(np.full(lungs.shape, 0.1, np.float32), SPACING, "mr", lungs)
    assert found is not None
    assert found.region[mass].mean() > 0.75
    assert found.region[lungs].mean() > 0.8


def test_no_lung_no_region() -> None:
    hu, lungs, _ = chest()
    assert lung.search(ct(hu), SPACING, "ct", np.zeros_like(lungs)) is None


LIVER = ball(32, 32, 32, 26)
LESION, SECOND = ball(23, 32, 40, 5), ball(40, 28, 24, 5)


def abdomen() -> np.ndarray:
    """HU of a liver in fat, with muscle beside it, a vessel through it and a gallbladder in its surface."""
    hu = np.where(LIVER, 100.0, -100.0)
    hu[:, :4] = 55
    hu[30:33, 30:33] = 180
    hu[ball(32, 55, 32, 6)] = 5
    return hu


@pytest.mark.parametrize("said", [np.zeros_like(LIVER), LIVER & ~LESION], ids=["locator lost", "locator found it"])
@pytest.mark.parametrize("contrast", [-50, 50])
def test_in_a_liver_another_tone_is_a_part_and_vessels_bile_and_neighbours_are_none(
    contrast: float, said: np.ndarray
) -> None:
    hu, lesion = abdomen(), LESION if contrast < 0 else ball(20, 32, 40, 7)
    hu[lesion] += contrast
    found = liver.search(ct(hu), SPACING, "ct", said)
    assert found is not None
    assert dice(found.of(np.full(hu.shape, 0.01, np.float32)) > 0.5, lesion) > 0.75
    assert found.region[LIVER].mean() > 0.8


def test_attention_says_which_part_is_meant() -> None:
    hu = abdomen()
    hu[LESION | SECOND] -= 50
    found = liver.search(ct(hu), SPACING, "ct", LIVER)
    assert found is not None
    attended = np.full(hu.shape, 0.02, np.float32)
    assert dice(found.of(attended) > 0.5, LESION | SECOND) > 0.75
    attended[SECOND] = 0.06
    assert dice(found.of(attended) > 0.5, SECOND) > 0.75


def test_what_lies_far_from_the_liver_that_the_locator_found_counts_less() -> None:
    hu = abdomen()
    hu[LESION | SECOND] -= 50
    near = LIVER & (np.indices(LIVER.shape)[0] < 28)  # of the first alone: what is beyond may be a heart
    found = liver.search(ct(hu), SPACING, "ct", near)
    assert found is not None
    assert dice(found.of(np.full(hu.shape, 0.02, np.float32)) > 0.5, LESION) > 0.75


def test_a_liver_of_one_tone_shows_nothing_and_without_one_nothing_is_said() -> None:
    found = liver.search(ct(abdomen()), SPACING, "ct", LIVER)
    assert found is not None
    assert not found.of(np.full(LIVER.shape, 0.9, np.float32)).any()
    assert liver.search(ct(np.full(LIVER.shape, -100.0)), SPACING, "ct", np.zeros_like(LIVER)) is None
    assert liver.search(np.full(LIVER.shape, 0.5, np.float32), SPACING, "mr", np.zeros_like(LIVER)) is None


def test_in_mr_another_tone_deep_in_the_liver_is_suspicious_and_a_vessel_is_not() -> None:
    image = np.full((40, 40, 40), 0.55, np.float32) + np.random.default_rng(0).normal(0, 0.01, (40, 40, 40))
    image[18:24, 18:24, 18:24] -= 0.04
    image[12:30, 12, 12] += 0.08
    image[4:6, 18:24, 18:24] += 0.3  # at the surface: a neighbour
    said = np.zeros(image.shape, bool)
    said[4:36, 4:36, 4:36] = True
    found = liver.search(image.astype(np.float32), (4.0,) * 3, "mr", said)
    assert found is not None
    there = found.of(np.full((40, 40, 40), 0.05, np.float32))
    assert there[20:22, 20:22, 20:22].min() > 0.5
    assert np.median(there[found.region]) < 0.05
    assert there[14:28, 12, 12].max() < 0.5
    assert there[:6].max() == 0


def test_attention_outside_the_region_counts_for_nothing() -> None:
    attended = np.full((8, 8, 8), 0.7, np.float32)
    region = np.zeros((8, 8, 8), bool)
    region[:4] = True
    assert np.array_equal(Search(region).of(attended), np.where(region, attended, 0))


def test_odds_add_to_logits() -> None:
    region = np.ones((4, 4, 4), bool)
    found = Lungs(region, np.full((4, 4, 4), np.log(3), np.float32)).of(np.full((4, 4, 4), 0.5, np.float32))
    assert np.allclose(found, 0.75)


def test_what_the_region_cuts_off_from_its_neighbours_is_none_but_for_the_main_part() -> None:
    region = np.zeros((40, 40, 40), bool)
    region[:30] = True
    main, sliver, free = (np.zeros_like(region) for _ in range(3))
    main[18:30, 4:16, 4:16] = True  # against the region's end, as a tumour against a wall
    sliver[27:30, 24:39, 4:36] = True  # larger, but most of it is cut
    free[8:12, 28:32, 28:32] = True
    attended = np.where(main | sliver | free, 0.9, 0.05).astype(np.float32)
    odds = np.zeros(region.shape, np.float32)
    beyond = ~region & (np.indices(region.shape)[0] < 34)
    found = Lungs(region, odds, beyond).of(attended) > 0.5
    assert found[main].all()
    assert found[free].all()
    assert not found[sliver].any()
    every = Lungs(region, odds).of(attended) > 0.5
    assert every[sliver].all()
    alone = np.where(sliver, 0.9, 0.05).astype(np.float32)
    assert (Lungs(region, odds, beyond).of(alone) > 0.5)[sliver].all()  # nothing else is there


def test_the_main_part_of_what_is_highest_counts_alone() -> None:
    region = np.ones((32, 32, 32), bool)
    attended = np.full(region.shape, 0.01, np.float32)
    attended[4:16, 4:16, 4:16] = 0.2  # a twentieth of the region
    attended[24:28, 24:28, 24:28] = 0.2
    found = Muscle(region, np.zeros(region.shape, np.float32)).of(attended) > 0.5
    assert found[8:12, 8:12, 8:12].all()
    assert not found[24:28, 24:28, 24:28].any()
    beyond = np.ones(region.shape, bool)
    beyond[:24, :24, :24] = False  # smoothing and the rim reach a few voxels
    assert not found[beyond].any()


def test_what_runs_on_beyond_the_scan_counts_less() -> None:
    region = np.ones((48, 48, 48), bool)
    within, beyond = np.zeros_like(region), np.zeros_like(region)
    within[20:30, 28:38, 20:30] = True
    beyond[10:20, 8:20, :] = True
    odds = 2 * within.astype(np.float32) + 2 * beyond
    found = Muscle(region, odds).of(np.full(region.shape, 0.01, np.float32)) > 0.5
    assert found[within].mean() > 0.9
    assert not found[beyond].any()


def test_a_lump_is_freed_of_what_leaks_and_filled_where_it_is_hollow() -> None:
    lump = ball(30, 32, 32, 10)
    leaking = lump.copy()
    leaking[38:60, 30:34, 30:34] = True  # a thin bridge
    leaking[54:64, 26:38, 26:38] = True  # into something else, thinner than the lump
    leaking[20:26, 30:34, 30:34] = False  # and a dent
    found = rounded(leaking, 0.6)
    assert dice(found, lump) > 0.9
    assert not found[50:].any()
    assert found[24:26, 31:33, 31:33].all()
    assert not rounded(np.zeros_like(lump), 0.6).any()
    single = np.zeros_like(lump)
    single[5, 6, 7] = True
    assert np.array_equal(rounded(single, 0.6), single)


def test_the_convex_outline_of_a_box_is_the_box_and_of_two_points_what_lies_between() -> None:
    box = np.zeros((12, 12, 12), bool)
    box[2:9, 3:5, 4:10] = True
    assert np.array_equal(convex(box), box)
    pair = np.zeros_like(box)
    pair[1, 5, 5] = pair[9, 5, 5] = True
    between = np.zeros_like(box)
    between[1:10, 5, 5] = True
    assert np.array_equal(convex(pair), between)


def test_attention_need_not_be_sure_only_highest() -> None:
    region = np.ones((32, 32, 32), bool)
    odds = np.zeros(region.shape, np.float32)
    attended = np.random.default_rng(0).uniform(0.01, 0.02, region.shape).astype(np.float32)
    attended[4:16, 4:16, 4:16] = 0.04
    faint = Muscle(region, odds).of(attended) > 0.5
    surer = 1 / (1 + (1 - attended) / attended / 20)  # 3 nats more everywhere
    sure = Muscle(region, odds).of(surer) > 0.5
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
