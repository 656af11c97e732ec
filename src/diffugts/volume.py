"""The one image type: an array, where it lies in the patient, and its unit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3D scalar image in the patient.

    Attributes:
        array: (I, J, K), any numeric dtype, in the order of the file it came from.
        affine: (4, 4) float64, voxel index (centre) to RAS+ world, mm.
        unit: "HU" for CT, "arbitrary" for everything else or when it is not known.
        header: the file's own header where there is one, so that output keeps its codes; of a DICOM scan
            the series' files (`io.dicom.DicomSeries`).
        source: a short name for messages and folders, never a full path.
        modality: "ct" or "mr" where the file itself says so (DICOM), else None.
    """

    array: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    unit: str = "arbitrary"
    header: Any = field(default=None, repr=False)
    source: str = "volume"
    modality: str | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis of the file."""
        i, j, k = self.array.shape
        return i, j, k

    @property
    def spacing(self) -> npt.NDArray[np.float64]:
        """(3,) voxel size in mm along each array axis."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0), dtype=np.float64)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0
