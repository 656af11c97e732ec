"""Fixtures that several test modules share."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from diffugts.volume import Volume

ORIENTATIONS = [
    "".join(pair[sign] for pair, sign in zip(order, signs, strict=True))
    for order in permutations(["LR", "PA", "IS"])
    for signs in product((1, 0), repeat=3)
]

MakeVolume = Callable[..., Volume]


@pytest.fixture(params=ORIENTATIONS)
def orientation(request: pytest.FixtureRequest) -> str:
    """Each of the 48 ways to lay voxel axes along a patient."""
    return str(request.param)


@pytest.fixture
def make_volume() -> MakeVolume:
    """A smooth random volume of a wanted orientation, spacing, and rotation about (1, 2, 3) in degrees."""

    def make(
        orientation: str = "RAS",
        shape: tuple[int, int, int] = (9, 12, 10),
        spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
        degrees: float = 0.0,
        unit: str = "arbitrary",
    ) -> Volume:
        from scipy.ndimage import gaussian_filter
        from scipy.spatial.transform import Rotation

        axes = np.zeros((3, 3))
        for voxel, letter in enumerate(orientation):
            world = next(i for i, pair in enumerate(("LR", "PA", "IS")) if letter in pair)
            axes[world, voxel] = 1 if letter in "RAS" else -1
        turn = Rotation.from_rotvec(np.radians(degrees) * np.array([1, 2, 3]) / 14**0.5).as_matrix()
        affine: npt.NDArray[np.float64] = np.eye(4)
        affine[:3, :3] = turn @ axes * spacing
        affine[:3, 3] = (-31.5, 17.25, 8.0)
        noise = np.random.default_rng(0).normal(size=shape)
        array = np.round(gaussian_filter(noise, 1.5, mode="nearest") * 3000).astype(np.int16)
        return Volume(array, affine, unit=unit, source="made")

    return make


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real scans beside the repository; the test is skipped where it is absent."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not (folder / "cases" / "cases.json").exists():
        pytest.skip("no shared scans beside the repository")
    return folder
