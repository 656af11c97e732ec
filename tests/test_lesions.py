"""Lesions: components, size, place, intensities, on awkward grids."""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffugts.errors import InputError
from diffugts.lesions import CSV_COLUMNS, find_lesions, longest_diameter, without_crumbs, write_csv
from diffugts.volume import Volume


def rotation(degrees: float) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    turn_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return turn_z @ turn_x


def affine_of(spacing: tuple[float, float, float], degrees: float = 0.0, origin=(0.0, 0.0, 0.0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = rotation(degrees) @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def volume_of(array: np.ndarray, spacing=(1.0, 1.0, 1.0), degrees=0.0, origin=(0.0, 0.0, 0.0)) -> Volume:
    return Volume(array, affine_of(spacing, degrees, origin), unit="HU")


def world_ball(shape, affine: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    return np.linalg.norm(world - centre, axis=-1) <= radius


def test_empty_mask_has_no_lesions():
    volume = volume_of(np.zeros((4, 5, 6), np.int16))
    assert find_lesions(np.zeros((4, 5, 6), np.uint8), volume, np.zeros((4, 5, 6), np.float32)) == ()


def test_one_voxel_is_as_long_as_its_longest_side():
    mask = np.zeros((5, 5, 5), np.uint8)
    mask[2, 2, 2] = 1
    (lesion,) = find_lesions(mask, volume_of(np.zeros(mask.shape), (0.5, 2.0, 3.0)), mask.astype(np.float32))
    assert lesion.volume_ml == pytest.approx(0.003)
    assert lesion.longest_diameter_mm == pytest.approx(3.0)
    assert lesion.score == 1.0


@pytest.mark.parametrize("degrees", [0.0, 33.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_row_of_voxels_is_as_long_as_their_sides_together(axis: int, degrees: float):
    spacing = (0.7, 1.3, 5.0)
    component = np.zeros((9, 9, 9), bool)
    row: list[int | slice] = [4, 4, 4]
    row[axis] = slice(1, 8)
    component[tuple(row)] = True
    across = max(side for a, side in enumerate(spacing) if a != axis)
    length = longest_diameter(component, affine_of(spacing, degrees))
    assert 7 * spacing[axis] <= length + 1e-9
    assert length <= math.hypot(7 * spacing[axis], across) + 1e-9


@pytest.mark.parametrize("degrees", [0.0, 20.0, 71.0])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 0.8, 2.5), (3.0, 0.9, 0.9)])
def test_a_ball_measures_its_diameter_volume_and_centre(spacing, degrees):
    shape = tuple(int(44 / side) for side in spacing)
    affine = affine_of(spacing, degrees, (-120.0, 35.0, 900.0))
    centre = affine[:3, :3] @ (np.array(shape) / 2) + affine[:3, 3]
    mask = world_ball(shape, affine, centre, 14.7)
    volume = Volume(np.zeros(shape, np.float32), affine)
    (lesion,) = find_lesions(mask.astype(np.uint8), volume, mask.astype(np.float32))
    assert lesion.longest_diameter_mm == pytest.approx(29.4, abs=max(spacing))
    assert lesion.volume_ml == pytest.approx(4 / 3 * math.pi * 14.7**3 / 1000, rel=0.03)
    assert np.linalg.norm(np.subtract(lesion.centre_mm, centre)) < 0.3


def test_lesions_touching_by_a_corner_are_one_and_the_largest_comes_first():
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[1, 1, 1] = mask[2, 2, 2] = 1
    mask[10:14, 10:14, 10:14] = 1
    mask[18, 18, 18] = 1
    volume = volume_of(np.zeros(mask.shape))
    lesions = find_lesions(mask, volume, mask.astype(np.float32))
    assert [lesion.id for lesion in lesions] == [1, 2, 3]
    assert [round(lesion.volume_ml * 1000) for lesion in lesions] == [64, 2, 1]
    assert lesions[0].centre_mm == pytest.approx((11.5, 11.5, 11.5))


def test_crumbs_end_at_one_half():
    probability = np.full((20, 20, 20), 0.2, np.float32)
    probability[1, 1, 1] = probability[2, 2, 2] = 0.9
    probability[10:14, 10:14, 10:14] = 0.7
    probability[18, 18, 18] = 1.0
    kept = without_crumbs(probability, 2)
    assert np.argwhere(kept != probability).tolist() == [[18, 18, 18]]
    assert kept[18, 18, 18] == 0.5
    assert (without_crumbs(probability, 3) > 0.5).sum() == 64
    assert np.array_equal(without_crumbs(probability, 0), probability)
    assert (without_crumbs(probability, 1000) <= 0.5).all()


def test_means_inside_and_in_the_shell_leave_other_lesions_out():
    mask = np.zeros((30, 12, 12), np.uint8)
    mask[4:8, 4:8, 4:8] = 1
    mask[9:11, 4:8, 4:8] = 1  # within the first one's shell
    array = np.full(mask.shape, 50.0, np.float32)
    array[mask == 1] = 300.0
    array[20:] = -1000.0  # out of reach
    for lesion in find_lesions(mask, volume_of(array), np.where(mask, 0.75, 0.0), shell_mm=3.0):
        assert lesion.mean_inside == pytest.approx(300.0)
        assert lesion.mean_shell == pytest.approx(50.0)
        assert lesion.score == pytest.approx(0.75)


def test_the_shell_is_measured_in_mm_on_an_anisotropic_grid():
    mask = np.zeros((21, 21, 21), np.uint8)
    mask[10, 10, 10] = 1
    array = np.zeros(mask.shape, np.float32)
    array[10, 10, 11] = 900.0  # 5 mm away along the coarse axis: inside the shell only from 5 mm on
    volume = volume_of(array, (1.0, 1.0, 5.0))
    near, far = (find_lesions(mask, volume, mask.astype(float), shell_mm=mm)[0].mean_shell for mm in (4.9, 5.0))
    assert near == 0.0
    assert far > 0.0


def test_a_lesion_that_fills_the_scan_has_no_shell(tmp_path: Path):
    mask = np.ones((3, 3, 3), np.uint8)
    (lesion,) = find_lesions(mask, volume_of(np.ones(mask.shape)), mask.astype(np.float32))
    assert math.isnan(lesion.mean_shell)
    assert lesion.row()["mean_shell"] == ""
    assert lesion.to_dict()["mean_shell"] is None


def test_grids_that_differ_are_refused():
    volume = volume_of(np.zeros((4, 4, 4)))
    with pytest.raises(InputError, match=r"mask has shape \(4, 4, 5\)"):
        find_lesions(np.zeros((4, 4, 5), np.uint8), volume, np.zeros((4, 4, 4)))


def test_csv_reads_back(tmp_path: Path):
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[1:3, 1:3, 1:3] = mask[6, 6, 6] = 1
    lesions = find_lesions(mask, volume_of(np.ones(mask.shape)), mask.astype(np.float32))
    write_csv(lesions, tmp_path / "lesions.csv")
    with (tmp_path / "lesions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert [row["id"] for row in rows] == ["1", "2"]
    assert float(rows[0]["volume_ml"]) == pytest.approx(0.008)
    write_csv((), tmp_path / "none.csv")
    assert (tmp_path / "none.csv").read_text().strip() == ",".join(CSV_COLUMNS)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40))
def test_the_hull_shortcut_gives_the_brute_force_diameter(seed: int, voxels: int):
    rng = np.random.default_rng(seed)
    component = np.zeros((7, 6, 5), bool)
    component[tuple(rng.integers(0, side, voxels) for side in component.shape)] = True
    affine = affine_of((0.6, 1.1, 3.0), float(rng.uniform(0, 90)))
    faces = np.concatenate([np.eye(3), -np.eye(3)]) / 2
    points = (np.argwhere(component)[:, None] + faces).reshape(-1, 3) @ affine[:3, :3].T
    brute = np.linalg.norm(points[:, None] - points[None], axis=-1).max()
    assert longest_diameter(component, affine) == pytest.approx(brute)


def test_a_large_scan_is_quick():
    mask = np.zeros((384, 384, 384), np.uint8)
    mask[100:160, 120:180, 200:260] = 1
    mask[300:303, 20:23, 20:23] = 1
    volume = volume_of(np.zeros(mask.shape, np.int16))
    probability = np.broadcast_to(np.float32(0.5), mask.shape)
    start = time.perf_counter()
    assert len(find_lesions(mask, volume, probability)) == 2
    assert time.perf_counter() - start < 5.0
