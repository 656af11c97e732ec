"""Planes through a scan as a radiologist expects them, and the grey values to show them with.

Radiological convention: the patient's right is on the left of axial and coronal planes, anterior is on the
left of sagittal ones. Planes follow the scan's own grid (nothing is interpolated); on an oblique scan the
letters name the nearest direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffugts.intensity import guess_modality
from diffugts.lesions import Lesion
from diffugts.result import PromptResult
from diffugts.volume import Volume

Array = npt.NDArray[Any]
Voxel = tuple[int, int, int]

FIELD_MM = 500.0  # the most that a plane shows of a long scan, around the lesion


FLOOR = {"attention": 0.5, "uncertainty": 0.25}
"""Colour scales reach at least so far: what is weak looks weak."""


class Window(NamedTuple):
    """Grey values from black to white, in the scan's unit."""

    low: float
    high: float
    name: str = ""

    def __str__(self) -> str:
        unit = " HU" if self.name else ""
        return f"{self.name} window {self.low:.0f} to {self.high:.0f}{unit}".strip()


SOFT_TISSUE = Window(-160.0, 240.0, "soft tissue")  # level 40, width 400
LUNG = Window(-1350.0, 150.0, "lung")  # level -600, width 1500
BRAIN = Window(0.0, 80.0, "brain")  # level 40, width 80
BONE = Window(-450.0, 1050.0, "bone")  # level 300, width 1500
CT_WINDOWS = {"lung": LUNG, "pleura": LUNG, "brain": BRAIN, "bone": BONE}
"""CT windows by the prompt's anatomy; any other place is shown as soft tissue, or as lung where it is lung."""


@dataclass(frozen=True)
class Plane:
    """How to cut one plane out of an array whose axes run right→left, anterior→posterior, superior→inferior,
    so that its rows go down and its columns to the right as a radiologist expects."""

    name: str
    axis: int
    letters: tuple[str, str, str, str]  # left, right, top, bottom

    @property
    def across(self) -> int:
        """The turned axis that runs along the plane's rows."""
        return 0 if self.axis != 0 else 1

    @property
    def down(self) -> int:
        """The turned axis that runs along the plane's columns."""
        return 2 if self.axis != 2 else 1


@dataclass(frozen=True)
class Turn:
    """How a scan's axes become R→L, A→P, S→I: the axis that comes to each place, and its direction."""

    order: tuple[int, ...]
    steps: tuple[int, ...]

    @classmethod
    def to_radiological(cls, affine: Array) -> Turn:
        """The turn for an affine (4, 4); to the nearest axes where it is oblique."""
        import nibabel as nib

        axes = nib.orientations.io_orientation(affine)
        moves = nib.orientations.ornt_transform(axes, nib.orientations.axcodes2ornt(("L", "P", "I")))
        order = np.argsort(moves[:, 0])
        return cls(tuple(int(axis) for axis in order), tuple(int(moves[axis, 1]) for axis in order))

    def view(self, array: Array) -> Array:
        """The array with its axes turned; a view, no copy."""
        turned: Array = array.transpose(self.order)[tuple(slice(None, None, step) for step in self.steps)]
        return turned

    def voxel(self, place: Voxel, shape: Voxel) -> Voxel:
        """Where a voxel of the array lies in its turned view."""
        i, j, k = (
            place[axis] if step > 0 else shape[axis] - 1 - place[axis]
            for axis, step in zip(self.order, self.steps, strict=True)
        )
        return i, j, k


PLANES = (
    Plane("axial", 2, ("R", "L", "A", "P")),
    Plane("coronal", 1, ("R", "L", "S", "I")),
    Plane("sagittal", 0, ("A", "P", "S", "I")),
)


class Box(NamedTuple):
    """A rectangle of voxels in a plane."""

    across: slice
    down: slice


@dataclass(frozen=True)
class Aim:
    """A scan's three planes through one voxel.

    Attributes:
        turn: from the scan's axes to radiological ones.
        spacing: (3,) mm along the turned axes.
        shape: voxels along the turned axes.
        point: the voxel, turned.
    """

    turn: Turn
    spacing: npt.NDArray[np.float64]
    shape: Voxel
    point: Voxel

    @classmethod
    def at(cls, volume: Volume, voxel: Voxel) -> Aim:
        """Aim at a voxel of the volume."""
        turn = Turn.to_radiological(volume.affine)
        i, j, k = (volume.shape[axis] for axis in turn.order)
        return cls(turn, volume.spacing[list(turn.order)], (i, j, k), turn.voxel(voxel, volume.shape))

    def box(self, plane: Plane, field_mm: float = FIELD_MM) -> Box:
        """The part of the plane within a field around the point, moved inwards where it would leave the scan."""
        return Box(self._side(plane.across, field_mm), self._side(plane.down, field_mm))

    def cut(self, array: Array, plane: Plane, box: Box | None = None) -> Array:
        """(rows, columns) of an array on the scan's grid."""
        box = self.box(plane) if box is None else box
        sides: list[slice | int] = [0, 0, 0]
        sides[plane.axis], sides[plane.across], sides[plane.down] = self.point[plane.axis], box.across, box.down
        cut: Array = self.turn.view(array)[tuple(sides)].T
        return cut

    def size_mm(self, plane: Plane, box: Box) -> tuple[float, float]:
        """Width and height of a box."""
        width, height = (side.stop - side.start for side in box)
        return width * float(self.spacing[plane.across]), height * float(self.spacing[plane.down])

    def offset_mm(self, plane: Plane, outer: Box, inner: Box) -> tuple[float, float]:
        """From the upper left corner of one box to that of another, rightwards and downwards."""
        right, below = inner.across.start - outer.across.start, inner.down.start - outer.down.start
        return right * float(self.spacing[plane.across]), below * float(self.spacing[plane.down])

    def _side(self, axis: int, field_mm: float) -> slice:
        length = self.shape[axis]
        shown = min(length, max(1, round(field_mm / self.spacing[axis])))
        start = int(np.clip(self.point[axis] - shown // 2, 0, length - shown))
        return slice(start, start + shown)


def focus(answer: PromptResult, volume: Volume, lesion: Lesion | None = None) -> Voxel:
    """The voxel to cut through: inside the lesion (by default the largest), else the attention's peak, else
    the middle."""
    if lesion is None and answer.lesions:
        lesion = answer.lesions[0]
    if lesion is not None:
        centre = np.linalg.inv(volume.affine) @ (*lesion.centre_mm, 1.0)
        inside = np.argwhere(answer.mask)
        # The centre of a ring or a crescent lies outside it: take the mask's voxel nearest in mm.
        offset = (inside - centre[:3]) * volume.spacing
        i, j, k = inside[np.argmin((offset**2).sum(axis=1))]
    elif np.ptp(answer.attention) > 0:
        i, j, k = np.unravel_index(int(np.argmax(answer.attention)), answer.attention.shape)
    else:
        i, j, k = (side // 2 for side in volume.shape)
    return int(i), int(j), int(k)


def grey_window(volume: Volume, place: Voxel, shown: Array, anatomy: str | None = None) -> Window:
    """Grey values shown. CT: by the prompt's anatomy, else soft tissue, or lung where the place is lung; MR:
    percentiles of what is shown."""
    if guess_modality(volume)[0] == "ct":
        if anatomy in CT_WINDOWS:
            return CT_WINDOWS[anatomy]
        margin = [math.ceil(20.0 / side) for side in volume.spacing]
        near = volume.array[tuple(slice(max(p - m, 0), p + m + 1) for p, m in zip(place, margin, strict=True))]
        return LUNG if -950.0 < np.median(near) < -400.0 else SOFT_TISSUE  # darker still is air around the patient
    inside = shown[shown > shown.min()]
    if inside.size == 0:
        return Window(float(shown.min()), float(shown.min()) + 1.0)
    low, high = np.percentile(inside, (0.5, 99.5))
    return Window(float(low), float(max(high, low + 1e-6)))


def scale_top(name: str, *maps: Array) -> float:
    """Top of a map's colour scale, one for all that are given; above zero, so that an empty map stays dark."""
    return max(FLOOR.get(name, 1e-6), *(float(array.max()) for array in maps))


def scale_bar_mm(width_mm: float) -> int:
    """A round length that takes up to a third of a picture's width."""
    return max((mm for mm in (1, 2, 5, 10, 20, 50, 100) if mm <= width_mm / 3), default=1)


def position(mm: float, axis: int) -> str:
    """A world coordinate (RAS+): "R −12.0 mm". Signed, not "L 12.0 mm": the origin need not be the patient's
    middle, and a lesion on the right must not seem to be on the left."""
    return f"{'RAS'[axis]} {mm:.1f} mm".replace("-", "−")
