"""CT or MR, and the line from scanner units to 0..1."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffugts.errors import InputError
from diffugts.intensity import IntensityMap, guess_modality
from diffugts.volume import Volume

RNG = np.random.default_rng(0)
SHAPE = (32, 32, 32)


def ct() -> np.ndarray:
    """Air, fat, soft tissue and a little bone in HU."""
    means = np.array([-1000, -100, 40, 60, 900])
    label = RNG.choice(5, SHAPE, p=[0.4, 0.15, 0.3, 0.1, 0.05])
    return np.clip(means[label] + RNG.normal(0, 15, SHAPE), -1000, 2500).astype(np.int16)


def mr(zeros: float = 0.3) -> np.ndarray:
    """Background zeros and a broad range of positive values."""
    return (RNG.gamma(4, 80, SHAPE) * (RNG.random(SHAPE) > zeros)).astype(np.int16)


def _volume(array, **kwargs):
    return Volume(array, np.eye(4), **kwargs)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        pytest.param(ct(), "ct", id="ct"),
        pytest.param(np.where(RNG.random(SHAPE) < 0.2, -3024, ct()), "ct", id="ct with fill"),
        pytest.param(ct().astype(np.float32), "ct", id="float ct"),
        pytest.param(np.clip(ct(), -160, 240), "ct", id="windowed ct"),
        pytest.param(RNG.normal(20, 70, SHAPE), "ct", id="soft tissue crop of ct"),
        pytest.param(ct() + 1024, "mr", id="shifted ct: not told, but warned"),
        pytest.param(mr(), "mr", id="mr"),
        pytest.param(mr(0.85), "mr", id="skull-stripped"),
        pytest.param(mr() - 30, "mr", id="mr with small negatives"),
        pytest.param(mr() * np.where(RNG.random(SHAPE) < 0.001, -1, 1), "mr", id="mr with ringing"),
        pytest.param(mr() * 10 - 120, "mr", id="mr, negatives a small part of a wide range"),
        pytest.param(RNG.normal(0, 1, SHAPE), "mr", id="z-scored mr"),
    ],
)
def test_modality_from_values(array, expected):
    modality, reason = guess_modality(_volume(array))
    assert modality == expected
    assert reason


@pytest.mark.parametrize(
    ("kwargs", "expected"), [({"unit": "HU"}, "ct"), ({"modality": "ct"}, "ct"), ({"modality": "mr"}, "mr")]
)
def test_the_file_is_believed_first(kwargs, expected):
    array = mr() if expected == "ct" else ct()
    assert guess_modality(_volume(array, **kwargs))[0] == expected


def test_every_real_case_is_told_right_and_not_warned_of(shared):
    from diffugts.io import read_volume

    for case in json.loads((shared / "cases" / "cases.json").read_text())["cases"]:
        for image in case["images"].values():
            volume = read_volume(shared / "cases" / image)
            modality, reason = guess_modality(volume)
            assert modality == case["modality"].lower(), f"{image}: {reason}"
            assert IntensityMap.of(modality, volume.array).warnings == (), image


def test_ct_is_a_fixed_window():
    line = IntensityMap.ct()
    got = line.forward(np.array([-3024, -1000, 0, 40, 1000, 3000], np.int16))
    assert got.dtype == np.float32
    assert np.allclose(got, [0, 0, 0.5, 0.52, 1, 1])
    assert np.allclose(line.inverse(np.array([0, 0.5, 1])), [-1000, 0, 1000])


@given(st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=50))
def test_ct_round_trip_within_the_window(values):
    line = IntensityMap.ct()
    array = np.array(values, np.float32)
    assert np.allclose(line.inverse(line.forward(array)), array, atol=1e-3)


def test_mr_percentiles_and_clipping():
    array = np.arange(1, 1002, dtype=np.float32).reshape(7, 11, 13)
    line = IntensityMap.mr(array)
    assert line.low == 1
    assert line.high == pytest.approx(996)
    assert line.forward(array).max() == 1
    free = IntensityMap.mr(array, clip=False)
    assert free.forward(array).max() == pytest.approx(1000 / 995)
    assert np.allclose(free.inverse(free.forward(array)), array, atol=1e-3)


@pytest.mark.parametrize("margin", [0, 8, 24])
def test_mr_of_a_stripped_brain_does_not_depend_on_its_margin(margin):
    brain = np.pad(RNG.integers(100, 900, (16, 16, 16)), 12)
    line = IntensityMap.mr(np.pad(brain, margin))
    assert line.low == 100
    assert 890 < line.high < 900
    assert line.forward(np.zeros(3)).max() == 0


def test_mr_with_few_zeros_uses_every_voxel():
    assert IntensityMap.mr(mr(0.3)).low == 0


def test_the_input_is_left_alone():
    array = mr().astype(np.float32)
    before = array.copy()
    line = IntensityMap.mr(array)
    line.inverse(line.forward(array))
    assert np.array_equal(array, before)


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (ct() / 4000 + 0.25, "0..1"),
        (np.clip((ct() + 1000) // 8, 0, 255), "0..255"),
        (ct() + 1024, "subtract 1024"),
        (np.clip(ct(), -160, 240), "no air"),
        (np.clip(ct(), -500, 2000), "cut off at -500"),
        (np.clip(ct(), -1000, 400), "cut off at 400"),
        (np.where(RNG.random(SHAPE) < 0.2, -2000, ct()), "below -1500"),
    ],
)
def test_ct_warnings(array, word):
    assert any(word in sentence for sentence in IntensityMap.ct(array).warnings)


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.minimum(mr(), 500), "saturated"),
        (RNG.normal(0, 1, SHAPE), "below zero"),
        (mr() // 100, "64 levels"),
    ],
)
def test_mr_warnings(array, word):
    assert any(word in sentence for sentence in IntensityMap.mr(array).warnings)


def test_ordinary_scans_are_not_warned_of():
    assert IntensityMap.ct(ct()).warnings == ()
    assert IntensityMap.mr(mr()).warnings == ()


@pytest.mark.parametrize("array", [np.zeros(SHAPE), np.full(SHAPE, 7)])
def test_no_contrast_is_refused(array):
    with pytest.raises(InputError, match="no contrast"):
        IntensityMap.mr(array)


@pytest.mark.parametrize("ends", [(50, 50), (-1, 99), (0, 101)])
def test_bad_percentiles(ends):
    with pytest.raises(InputError, match="percentiles"):
        IntensityMap.mr(mr(), *ends)


def test_record_round_trip():
    line = IntensityMap.mr(np.minimum(mr(), 500))
    assert IntensityMap.from_dict(json.loads(json.dumps(line.to_dict()))) == line
