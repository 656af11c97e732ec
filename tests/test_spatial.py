"""The chain of steps to the model grid: right place, right values, and the way back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from diffugts.errors import InputError
from diffugts.spatial import Resample, _area, _triangle, body_box, closest_ras, place
from diffugts.volume import Volume

CROP = ((1, 8), (2, 11), (0, 9))


def world(affine, index):
    return affine[:3, :3] @ index + affine[:3, 3]


@pytest.mark.parametrize("degrees", [0, 20])
@pytest.mark.parametrize("crop", [None, CROP])
def test_without_resampling_the_way_back_is_bit_exact(make_volume, orientation, degrees, crop):
    volume = make_volume(orientation, spacing=(0.7, 1.1, 3.0), degrees=degrees)
    model, placement = place(volume, spacing=None, multiple=16, crop=crop)
    assert model.dtype == np.float32
    assert model.shape == placement.grid.shape == (16, 16, 16)
    box = tuple(slice(*ends) for ends in crop or ((0, None),) * 3)
    for kind in ("linear", "nearest"):
        back = placement.inverse(model.astype(np.int16) if kind == "nearest" else model, kind, fill=-7)
        assert back.shape == volume.shape
        assert np.array_equal(back[box], volume.array[box])
        outside = np.ones(volume.shape, bool)
        outside[box] = False
        assert (back[outside] == -7).all()


@pytest.mark.parametrize("degrees", [0, 20])
def test_voxels_keep_their_world_place_in_ras_order(make_volume, orientation, degrees):
    volume = make_volume(orientation, spacing=(0.7, 1.1, 3.0), degrees=degrees)
    model, placement = place(volume, spacing=None, multiple=1, crop=CROP)
    axes, signs = closest_ras(placement.grid.affine)
    assert axes == (0, 1, 2)
    assert signs == (1, 1, 1)
    for index in np.ndindex(*model.shape):
        inverse = np.linalg.inv(volume.affine)
        original = inverse[:3, :3] @ world(placement.grid.affine, index) + inverse[:3, 3]
        rounded = np.round(original).astype(int)
        assert np.allclose(original, rounded, atol=1e-6)
        assert model[index] == volume.array[tuple(rounded)]
        if index[2] > 1:
            break


@pytest.mark.parametrize("spacing", [(1.0, 0.8, 5.0), (3.0, 2.0, 1.0), (0.6, 0.6, 0.6)])
def test_resampling_keeps_the_field_of_view_and_a_linear_ramp(make_volume, spacing):
    volume = make_volume("LPI", (36, 40, 30), spacing, degrees=12)
    index = np.indices(volume.shape).reshape(3, -1)
    weights = np.array([0.3, -0.5, 0.2])
    ramp = (weights @ (volume.affine[:3, :3] @ index + volume.affine[:3, 3:])).reshape(volume.shape)
    model, placement = place(Volume(ramp, volume.affine), spacing=2.0, multiple=1)

    extent = np.array(volume.shape) * spacing
    assert np.allclose(np.sort(np.array(model.shape) * placement.spacing), np.sort(extent), rtol=1e-12)
    assert all(abs(mm - 2.0) < 0.15 for mm in placement.spacing)
    grid = np.indices(model.shape).reshape(3, -1)
    affine = placement.grid.affine
    expected = (weights @ (affine[:3, :3] @ grid + affine[:3, 3:])).reshape(model.shape)
    inner = (slice(3, -3),) * 3  # at the edges the ramp is held
    assert np.abs(model - expected)[inner].max() < 0.05  # mm * 0.3: where a voxel is, not how blurred
    back = placement.inverse(model)
    assert back.shape == volume.shape
    far = (slice(8, -8),) * 3
    assert np.abs(back - ramp)[far].max() < 0.1


def test_upsampling_is_plain_linear_interpolation():
    array = np.random.default_rng(0).normal(size=(8, 9, 10)).astype(np.float32)
    step = Resample((8, 9, 10), (20, 18, 10))
    got = step.forward(array, "image")
    sides = zip(array.shape, got.shape, strict=True)
    points = np.meshgrid(*[(np.arange(m) + 0.5) * n / m - 0.5 for n, m in sides], indexing="ij")
    assert np.allclose(got, map_coordinates(array, points, order=1, mode="nearest"), atol=1e-5)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("target", [(5, 7, 20), (20, 7, 5), (16, 12, 10), (4, 3, 2)])
@pytest.mark.parametrize(("kind", "kernel"), [("image", _triangle), ("mask", _area)])
def test_separable_passes_equal_the_dense_sum(order, target, kind, kernel):
    array = np.asarray(np.random.default_rng(1).normal(size=(16, 12, 10)) > 0.3, order=order)
    dense = [kernel(n, m).toarray() for n, m in zip(array.shape, target, strict=True)]
    assert all(np.allclose(w.sum(axis=1), 1, atol=1e-6) for w in dense)
    expected = np.einsum("ijk,ai,bj,ck->abc", array, *dense)
    got = Resample(array.shape, target).forward(array, kind)
    if kind == "image":
        assert np.allclose(got, expected, atol=1e-5)
    else:
        assert np.array_equal(got, expected >= 0.5 - 1e-6)


def test_nearest_takes_the_model_voxel_over_the_centre():
    model = np.arange(7)[:, None, None] * np.ones((7, 8, 8), int)
    assert Resample((3, 8, 8), (7, 8, 8)).inverse(model, "nearest", 0)[:, 0, 0].tolist() == [1, 3, 5]


def test_down_sampling_does_not_alias():
    stripes = np.tile(np.array([0.0, 1.0]), 32)[:, None, None] * np.ones((64, 8, 8))
    model, _ = place(Volume(stripes, np.diag([0.7, 2, 2, 1])), spacing=2.0, multiple=1)
    assert np.ptp(model[2:-2]) < 0.15  # picking voxels would give 1


def test_one_voxel_survives_max_but_not_mask(make_volume):
    volume = make_volume(shape=(30, 30, 30), spacing=(0.7, 0.7, 0.7))
    lesion = np.zeros(volume.shape, bool)
    lesion[17, 4, 29] = True
    _, placement = place(volume, multiple=1)
    found = placement.forward(lesion, "max")
    assert found.dtype == bool
    assert found.sum() >= 1
    assert placement.inverse(found, "nearest")[lesion].all()
    assert not placement.forward(lesion, "mask").any()
    assert placement.forward(~np.zeros_like(lesion), "mask").all()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(8, 24)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 6.0)] * 3),
    wanted=st.floats(0.7, 4.0),
    multiple=st.sampled_from([1, 4, 16]),
    seed=st.integers(0, 2**16),
)
def test_any_volume_comes_back_to_its_shape_and_values(shape, spacing, wanted, multiple, seed):
    rng = np.random.default_rng(seed)
    signs = rng.permutation(np.eye(3)) * rng.choice([-1, 1], 3)
    affine = np.eye(4)
    affine[:3, :3] = signs * spacing
    labels = rng.integers(0, 5, shape).astype(np.uint8)
    model, placement = place(Volume(labels, affine), wanted, multiple)
    assert all(n % multiple == 0 for n in model.shape)
    assert model.min() >= labels.min() - 1e-4
    assert model.max() <= labels.max() + 1e-4
    nearest = placement.inverse(np.round(model).astype(np.uint8), "nearest")
    assert nearest.dtype == np.uint8
    assert nearest.shape == shape
    full = np.full(model.shape, 3.25, np.float32)
    assert np.allclose(placement.inverse(full, "linear"), 3.25)
    corners = np.array([[-0.5] * 3, np.array(shape) - 0.5])
    low, high = np.sort([world(affine, corner) for corner in corners], axis=0)
    assert np.allclose(world(placement.grid.affine, [-0.5] * 3), low)  # the first edge of the field of view
    used = next((s.shape for s in placement.steps if type(s).__name__ == "Pad"), model.shape)
    assert np.allclose(world(placement.grid.affine, np.array(used) - 0.5), high)


def test_smooth_image_survives_the_round_trip(make_volume):
    volume = make_volume("PIR", (40, 36, 44), (1.3, 1.0, 1.6), degrees=10)
    smooth = np.sin(np.indices(volume.shape)[0] / 6) * np.cos(np.indices(volume.shape)[2] / 7)
    model, placement = place(Volume(smooth, volume.affine))
    assert np.abs(placement.inverse(model) - smooth)[4:-4, 4:-4, 4:-4].max() < 0.06


def test_padding_repeats_the_edge(make_volume):
    model, placement = place(make_volume(shape=(9, 12, 10)), spacing=None, multiple=8)
    assert model.shape == (16, 16, 16)
    assert (model[9:] == model[8]).all()
    assert model[placement.scanned].shape == (9, 12, 10)


def test_without_padding_all_of_the_model_grid_was_scanned(make_volume):
    model, placement = place(make_volume(shape=(8, 16, 8)), spacing=None, multiple=8)
    assert model[placement.scanned].shape == model.shape


def test_placement_is_plain_numbers(make_volume):
    _, placement = place(make_volume("LPS", (20, 20, 20)), crop=((0, 20), (2, 20), (0, 20)))
    record = json.loads(json.dumps(placement.to_dict()))
    assert [step["step"] for step in record["steps"]] == ["crop", "reorient", "resample", "pad"]


def test_body_box_finds_the_patient_not_the_table():
    array = np.full((60, 60, 40), -1000, np.int16)
    array[15:45, 20:50, :] = 40
    array[5:55, 55:57, :] = 100  # a table, not touching
    box = body_box(Volume(array, np.diag([2.0, 2, 4, 1])), threshold=-500, margin_mm=6)
    (a, b), (c, d), ends = box
    assert 8 <= a <= 12 and 48 <= b <= 52 and 13 <= c <= 17 and 52 <= d <= 56  # noqa: PT018
    assert ends == (0, 40)
    empty = Volume(np.full((9, 9, 9), -1000), np.eye(4))
    assert body_box(empty, -500) == ((0, 9),) * 3


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"spacing": 0.0}, "spacing 0.0"),
        ({"spacing": -1.0}, "spacing -1.0"),
        ({"spacing": float("nan")}, "spacing nan"),
        ({"multiple": 0}, "multiple 0"),
        ({"crop": ((0, 9), (0, 13), (0, 9))}, "does not lie inside"),
        ({"crop": ((3, 3), (0, 9), (0, 9))}, "does not lie inside"),
    ],
)
def test_bad_arguments_of_place(make_volume, kwargs, message):
    with pytest.raises(InputError, match=message):
        place(make_volume(), **kwargs)


def test_arrays_of_another_grid_are_refused(make_volume):
    model, placement = place(make_volume())
    with pytest.raises(InputError, match="its grid is"):
        placement.inverse(model[1:])
    with pytest.raises(InputError, match="its grid is"):
        placement.forward(model)
    with pytest.raises(InputError, match="kind is"):
        placement.inverse(model, "cubic")
    with pytest.raises(InputError, match="kind is"):
        placement.forward(np.zeros((9, 12, 10)), "cubic")


def test_the_result_never_shares_memory_with_the_model_array(make_volume):
    model, placement = place(make_volume(), spacing=None, multiple=1)
    back = placement.inverse(model)
    back[:] = 0
    assert model.any()
