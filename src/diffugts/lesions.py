"""From a mask to a table of lesions: how many, how large, where, how bright, how sure."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffugts.errors import InputError
from diffugts.volume import Volume

Array = npt.NDArray[Any]
Box = tuple[slice, ...]

CSV_COLUMNS = (
    "id",
    "volume_ml",
    "longest_diameter_mm",
    "centre_r_mm",
    "centre_a_mm",
    "centre_s_mm",
    "mean_inside",
    "mean_shell",
    "score",
)


@dataclass(frozen=True)
class Lesion:
    """One connected component of a mask.

    Attributes:
        id: 1 for the largest, then on by volume.
        volume_ml: voxels times voxel volume, millilitres.
        longest_diameter_mm: largest distance between any two points of it in 3D, mm (`longest_diameter`).
        centre_mm: centroid in RAS+ world coordinates, mm.
        mean_inside: mean of the scan inside, in the scan's unit.
        mean_shell: mean of the scan around it, outside every lesion, in the scan's unit; NaN where
            nothing is left around it.
        score: mean probability inside, 0 to 1.
    """

    id: int
    volume_ml: float
    longest_diameter_mm: float
    centre_mm: tuple[float, float, float]
    mean_inside: float
    mean_shell: float
    score: float

    def row(self) -> dict[str, str]:
        """The lesion as one row of `lesions.csv`; what is not defined stays empty."""
        numbers = (
            self.volume_ml,
            self.longest_diameter_mm,
            *self.centre_mm,
            self.mean_inside,
            self.mean_shell,
            self.score,
        )
        texts = ("" if math.isnan(number) else f"{number:.4f}" for number in numbers)
        return dict(zip(CSV_COLUMNS, (str(self.id), *texts), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """The lesion as plain JSON values; what is not defined becomes null."""
        shell = None if math.isnan(self.mean_shell) else round(self.mean_shell, 4)
        return {
            "id": self.id,
            "volume_ml": round(self.volume_ml, 4),
            "longest_diameter_mm": round(self.longest_diameter_mm, 4),
            "centre_mm": [round(value, 4) for value in self.centre_mm],
            "mean_inside": round(self.mean_inside, 4),
            "mean_shell": shell,
            "score": round(self.score, 4),
        }


def find_lesions(
    mask: Array,
    volume: Volume,
    probability: Array,
    shell_mm: float = 5.0,
) -> tuple[Lesion, ...]:
    """Measure each connected component of a mask, the largest first.

    Voxels that touch by a face, an edge or a corner (26 neighbours) belong together. The work is done in
    the components' bounding boxes, so that an almost empty mask of 512³ voxels costs one pass over it.

    Args:
        mask: (I, J, K), nonzero is lesion; on the volume's grid.
        volume: the scan; gives intensities and the place in the patient.
        probability: (I, J, K) float, 0 to 1.
        shell_mm: thickness of the shell around a lesion, measured from voxel centre to voxel centre.

    Raises:
        InputError: when the arrays do not lie on one grid.
    """
    for name, array in (("mask", mask), ("probability", probability)):
        if array.shape != volume.shape:
            raise InputError(
                f"The {name} has shape {array.shape} and the scan {volume.shape}; both must lie on one grid."
            )
    found = [_measure(component, box, mask, volume, probability, shell_mm) for component, box in _components(mask != 0)]
    found.sort(key=lambda lesion: -lesion.volume_ml)
    return tuple(replace(lesion, id=number) for number, lesion in enumerate(found, start=1))


def without_crumbs(probability: Array, least_voxels: float) -> Array:
    """(I, J, K) the probability, one half at most in components above it that hold fewer voxels.

    Voxels belong together as in the table of lesions.
    """
    kept: Array = probability.copy()
    for component, box in _components(probability > 0.5):
        if component.sum() < least_voxels:
            kept[box][component] = 0.5
    return kept


def longest_diameter(component: Array, affine: Array) -> float:
    """Largest distance in mm between any two points of a component, in the patient, hence right under
    anisotropic and oblique grids.

    A voxel reaches half its size from its centre along each axis (its six face centres count, its corners
    do not): one voxel measures its longest side, a row of n voxels n sides, and a sphere its diameter to
    within a voxel.

    Args:
        component: (I, J, K) bool with at least one voxel.
        affine: (4, 4) voxel to world mm.
    """
    faces = np.concatenate([np.eye(3), -np.eye(3)]) / 2.0
    ends = _line_ends(component).astype(np.float64)
    points = _hull((_hull(ends)[:, None] + faces).reshape(-1, 3)) @ affine[:3, :3].T
    return math.sqrt(max(_largest_square(points)))


def write_csv(lesions: Iterable[Lesion], path: str | Path) -> None:
    """Write `lesions.csv`: a header always, then one row per lesion; mm in RAS+ world coordinates."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS)
        writer.writeheader()
        writer.writerows(lesion.row() for lesion in lesions)


def _components(mask: Array) -> Iterator[tuple[Array, Box]]:
    """Each component as a bool array in its own bounding box, and that box in the mask."""
    from scipy import ndimage

    outer = bounding_box(mask)
    if outer is None:
        return
    labels, _ = ndimage.label(mask[outer], structure=np.ones((3, 3, 3)))
    for label, inner in enumerate(ndimage.find_objects(labels), start=1):
        box = tuple(slice(o.start + i.start, o.start + i.stop) for o, i in zip(outer, inner, strict=True))
        yield labels[inner] == label, box


def _measure(component: Array, box: Box, mask: Array, volume: Volume, probability: Array, shell_mm: float) -> Lesion:
    start = np.array([side.start for side in box])
    centre = np.argwhere(component).mean(axis=0) + start
    around = _shell_values(component, box, mask, volume, shell_mm)
    r, a, s = volume.affine[:3, :3] @ centre + volume.affine[:3, 3]
    return Lesion(
        id=0,
        volume_ml=int(component.sum()) * volume.voxel_ml,
        longest_diameter_mm=longest_diameter(component, volume.affine),
        centre_mm=(float(r), float(a), float(s)),
        mean_inside=float(volume.array[box][component].mean(dtype=np.float64)),
        mean_shell=float(around.mean(dtype=np.float64)) if around.size else math.nan,
        score=float(probability[box][component].mean(dtype=np.float64)),
    )


def _shell_values(component: Array, box: Box, mask: Array, volume: Volume, shell_mm: float) -> Array:
    """The scan's values within `shell_mm` of the component and in no lesion."""
    from scipy import ndimage

    margin = np.ceil(shell_mm / volume.spacing).astype(int)
    wide = tuple(
        slice(max(side.start - int(m), 0), min(side.stop + int(m), n))
        for side, m, n in zip(box, margin, mask.shape, strict=True)
    )
    pad = [(side.start - w.start, w.stop - side.stop) for side, w in zip(box, wide, strict=True)]
    outside = ~np.pad(component, pad)
    distance = ndimage.distance_transform_edt(outside, sampling=volume.spacing)
    values: Array = volume.array[wide][(distance <= shell_mm) & (mask[wide] == 0)]
    return values


def bounding_box(mask: Array) -> Box | None:
    """The smallest box that holds a mask, as slices; None where it is empty."""
    sides = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        hit = np.flatnonzero(mask.any(axis=others))
        if hit.size == 0:
            return None
        sides.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(sides)


def _line_ends(component: Array) -> Array:
    """First and last voxel of each line along the last axis: every corner of the hull is among them."""
    i, j = np.nonzero(component.any(axis=2))
    lines = component[i, j]
    first = lines.argmax(axis=1)
    last = lines.shape[1] - 1 - lines[:, ::-1].argmax(axis=1)
    return np.concatenate([np.stack([i, j, first], axis=1), np.stack([i, j, last], axis=1)])


def _hull(points: Array) -> Array:
    """Corners of the convex hull; all the points where they are flat, hence few."""
    from scipy.spatial import ConvexHull, QhullError

    try:
        corners: Array = points[ConvexHull(points).vertices]
    except (QhullError, ValueError):
        return points
    return corners


def _largest_square(points: Array, rows: int = 512) -> Iterator[float]:
    """Largest squared distance from each block of points to all; blocks bound the memory."""
    from scipy.spatial.distance import cdist

    for start in range(0, len(points), rows):
        yield float(cdist(points[start : start + rows], points, "sqeuclidean").max())
