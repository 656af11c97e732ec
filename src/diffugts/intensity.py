"""What the numbers of a scan mean, and how they become the model's 0..1 and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .volume import Volume

Modality = Literal["ct", "mr"]

HU_WINDOW = (-1000.0, 1000.0)
"""Air to dense bone: the range that MAISI's networks were trained on (NV-Generate-CTMR)."""

MR_PERCENTILES = (0.0, 99.5)
"""As in MAISI's MR recipe (NV-Generate-CTMR)."""

SPARSE = 0.5
"""A scan with more exact zeros than this is taken for masked (skull-stripped); its zeros say nothing."""

SAMPLE = 2**22
"""Voxels that statistics look at; more of them change no percentile that matters."""

BINS = 256
"""Of the histogram that thresholds are looked for in."""


def guess_modality(volume: Volume) -> tuple[Modality, str]:
    """Tell CT from MR, with the reason in words for the user.

    The file's own word comes first (DICOM). Otherwise only values far below zero speak for CT, since air
    and fat are negative in HU and nothing else in a clinic is: at least 0.5 % of voxels below -50, down to
    -100 and beyond, and not a small part of the range (filters leave MR with small negatives). Everything
    else is taken for MR.
    """
    if volume.modality in ("ct", "mr"):
        return ("ct" if volume.modality == "ct" else "mr"), "the file says so"
    if volume.unit == "HU":
        return "ct", "its unit is HU"
    values = _sample(volume.array)
    low, first, high = (float(v) for v in np.percentile(values, [0.1, 0.5, 99.5]))
    if low <= -100 and first <= -50 and -low >= 0.05 * high:
        return "ct", f"values down to {low:.0f} are those of fat and air in HU"
    if low < 0:
        return "mr", f"values from {low:.3g} to {high:.3g} do not reach the HU of fat and air"
    return "mr", (
        f"no value is below zero ({low:.3g} to {high:.3g}), where HU have fat and air; "
        "CT stored with an offset must be named as CT"
    )


@dataclass(frozen=True)
class IntensityMap:
    """A line from the scan's unit to the model's: `low` becomes 0 and `high` becomes 1.

    Attributes:
        modality: "ct" or "mr".
        low, high: in the scan's unit.
        clip: whether values outside are cut to 0..1.
        warnings: what is unusual about the scan, one sentence each.
    """

    modality: Modality
    low: float
    high: float
    clip: bool = True
    warnings: tuple[str, ...] = ()

    @classmethod
    def ct(cls, array: npt.NDArray[Any] | None = None) -> IntensityMap:
        """-1000..1000 HU; the scan, where given, is only looked at for warnings."""
        warnings = () if array is None else _ct_warnings(_sample(array))
        return cls("ct", *HU_WINDOW, clip=True, warnings=warnings)

    @classmethod
    def mr(
        cls,
        array: npt.NDArray[Any],
        lower_pct: float = MR_PERCENTILES[0],
        upper_pct: float = MR_PERCENTILES[1],
        clip: bool = True,
    ) -> IntensityMap:
        """Percentiles of the scan; over its nonzero voxels alone where more than half are exactly zero.

        The second rule is our choice: a skull-stripped brain fills a sixth of its box, and percentiles
        over the box would move with the size of the margin.

        Raises:
            InputError: percentiles out of order or of 0..100, or a scan too empty to have a range.
        """
        if not 0 <= lower_pct < upper_pct <= 100:
            raise InputError(f"percentiles {lower_pct} and {upper_pct} must be in order and within 0..100.")
        values = _sample(array)
        nonzero = values[values != 0]
        kept = nonzero if nonzero.size < (1 - SPARSE) * values.size else values
        ends = np.percentile(kept, [lower_pct, upper_pct]) if kept.size else np.zeros(2)
        low, high = float(ends[0]), float(ends[1])
        if not high > low:
            raise InputError(f"the scan's percentiles {lower_pct:g} and {upper_pct:g} are both {low:g}: no contrast.")
        return cls("mr", low, high, clip, _mr_warnings(kept))

    @classmethod
    def of(cls, modality: Modality, array: npt.NDArray[Any]) -> IntensityMap:
        """The default map of a modality for this scan."""
        return cls.ct(array) if modality == "ct" else cls.mr(array)

    @property
    def body_threshold(self) -> float:
        """Above it lies the patient, below it the room; in the scan's unit. Our choice: -500 HU, a twentieth on MR."""
        return -500.0 if self.modality == "ct" else self.low + (self.high - self.low) / 20

    def forward(self, array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Scan's unit -> model's: float32, 0..1 where `clip`."""
        result = np.array(array, dtype=np.float32)
        result -= np.float32(self.low)
        result /= np.float32(self.high - self.low)
        return np.clip(result, 0, 1, out=result) if self.clip else result

    def inverse(self, array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Model's unit -> scan's, float32."""
        result = np.array(array, dtype=np.float32)
        result *= np.float32(self.high - self.low)
        result += np.float32(self.low)
        return result

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest; `IntensityMap.from_dict` reads them."""
        return {**asdict(self), "warnings": list(self.warnings)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> IntensityMap:
        """The map that `to_dict` described."""
        return cls(**{**values, "warnings": tuple(values["warnings"])})


def three_classes(values: npt.NDArray[np.floating[Any]]) -> tuple[float, float] | None:
    """The two cuts between three classes of values of any shape (multi-Otsu); None where there are no three."""
    from skimage.filters import threshold_multiotsu

    histogram = histogram_of(values)
    if histogram is None or np.count_nonzero(histogram[0]) < 3:
        return None
    low, high = threshold_multiotsu(hist=histogram, classes=3)
    return float(low), float(high)


def histogram_of(
    values: npt.NDArray[np.floating[Any]],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]] | None:
    """(counts, bin centres); None where values do not differ."""
    if not values.size or values.min() == values.max():
        return None
    counts, edges = np.histogram(values, BINS)
    return counts, (edges[:-1] + edges[1:]) / 2


def _sample(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """At most about SAMPLE voxels, on a regular lattice: the same ones each time."""
    step = max(1, int(np.ceil((array.size / SAMPLE) ** (1 / max(1, array.ndim)))))
    return array[(slice(None, None, step),) * array.ndim].ravel()


def _ct_warnings(values: npt.NDArray[Any]) -> tuple[str, ...]:
    """Why these values may not be HU; made for whole scans, so a crop of one organ may be warned of too."""
    low, high = float(values.min()), float(values.max())
    span = f"{low:g} to {high:g}"
    if low >= 0 and high <= 1:
        return (f"CT values {span} look scaled to 0..1, not HU; give the scan in HU.",)
    if low >= 0 and high <= 255:
        return (f"CT values {span} look scaled to 0..255, not HU; give the scan in HU.",)
    if low >= 0 and high > 1000:
        return (f"CT values {span} look shifted by 1024; subtract 1024 to get HU.",)
    if low > -200:
        return (f"CT values {span} hold no air, which is -1000 HU; the scan may be windowed or not in HU.",)
    found = []
    at_low, at_high = float(np.mean(values == low)), float(np.mean(values == high))
    if low > -950 and at_low > 0.05:
        found.append(f"CT values are cut off at {low:g} HU; air should reach -1000.")
    if high < 700 and at_high > 0.001:
        found.append(f"CT values are cut off at {high:g} HU; bone should reach 700 and more.")
    if (fill := float(np.mean(values < -1500))) > 0:
        found.append(f"{fill:.1%} of the voxels are below -1500 HU, the filling outside the field of view.")
    return tuple(found)


def _mr_warnings(values: npt.NDArray[Any]) -> tuple[str, ...]:
    """What is unusual about MR values."""
    low, high = float(values.min()), float(values.max())
    found = []
    if (saturated := float(np.mean(values == high))) > 0.005:
        found.append(f"{saturated:.1%} of the MR voxels hold the highest value {high:g}; it is saturated.")
    if low < -0.2 * high:
        found.append(f"MR values {low:g} to {high:g} reach far below zero; the scan was normalised before.")
    if np.unique(values).size < 64:
        found.append("MR values take fewer than 64 levels; the scan lost contrast in a conversion.")
    return tuple(found)
