"""What tells a lesion from its organ in the frozen features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffugts.discriminant import discriminant

SHAPE = (32, 24, 16)


def _masks() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A lesion, a coarse outline of it that reaches past it, and healthy tissue away from both."""
    at = np.stack(np.indices(SHAPE)).astype(float)
    lesion = np.linalg.norm(at - np.array([14, 12, 8])[:, None, None, None], axis=0) < 6
    suspicious = np.linalg.norm(at - np.array([16, 12, 8])[:, None, None, None], axis=0) < 7
    return lesion, suspicious, np.linalg.norm(at - np.array([15, 12, 8])[:, None, None, None], axis=0) > 10


def _stages(lesion: np.ndarray, apart: float, channels: tuple[int, ...] = (6, 10)) -> list[torch.Tensor]:
    """Random features on grids of strides 2 and 4; those of the lesion differ in half of the channels."""
    torch.manual_seed(0)
    found = []
    for count, stride in zip(channels, (2, 4), strict=True):
        inside = torch.nn.functional.avg_pool3d(torch.from_numpy(lesion)[None, None].float(), stride)
        noise = torch.randn(1, count, *(side // stride for side in SHAPE))
        scale = 10.0 ** torch.arange(count).reshape(1, -1, 1, 1, 1).remainder(3)  # channels of unlike units
        found.append(scale * (noise + apart * inside * (torch.arange(count) % 2).reshape(1, -1, 1, 1, 1)))
    return found


def _auroc(values: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
    a, b = values[positive], values[negative]
    return float((a[:, None] > b[None]).mean())


def test_it_finds_the_lesion_within_a_coarse_outline() -> None:
    lesion, suspicious, healthy = _masks()
    found = discriminant(_stages(lesion, 4.0), suspicious, healthy)
    assert found is not None
    assert found.shape == SHAPE
    assert found.dtype == np.float32
    assert _auroc(found, suspicious & lesion, suspicious & ~lesion) > 0.9
    assert found[suspicious & lesion].mean() > 0 > found[healthy].mean()


def test_features_that_tell_nothing_say_little() -> None:
    lesion, suspicious, healthy = _masks()
    alike, unlike = (discriminant(_stages(lesion, apart), suspicious, healthy) for apart in (0.0, 4.0))
    assert alike is not None
    assert unlike is not None
    assert abs(_auroc(alike, suspicious & lesion, suspicious & ~lesion) - 0.5) < 0.25
    assert np.ptp(alike) < np.ptp(unlike) / 2


def test_units_of_the_channels_do_not_matter() -> None:
    lesion, suspicious, healthy = _masks()
    stages = _stages(lesion, 4.0)
    first = discriminant(stages, suspicious, healthy)
    again = discriminant([1000 * stage + 5 for stage in stages], suspicious, healthy)
    np.testing.assert_allclose(first, again, atol=0.05)


@pytest.mark.parametrize("which", ["nothing suspicious", "a crumb", "no healthy tissue"])
def test_too_few_voxels_say_nothing(which: str) -> None:
    lesion, suspicious, healthy = _masks()
    if which == "no healthy tissue":
        healthy = np.zeros_like(healthy)
    else:
        suspicious = np.zeros_like(suspicious)
        suspicious[3:5, 3:5, 3:5] = which == "a crumb"
    assert discriminant(_stages(lesion, 4.0), suspicious, healthy) is None
