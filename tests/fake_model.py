"""A segmenter without a model: it marks what is brightest. For tests of what lies around the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffugts.intensity import guess_modality
from diffugts.io import read_volume
from diffugts.lesions import find_lesions
from diffugts.prompts import parse
from diffugts.result import PromptResult, Result
from diffugts.volume import Volume


def ball(shape: tuple[int, int, int], centre: tuple[float, float, float], radius: float) -> np.ndarray:
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return np.linalg.norm(grid - np.array(centre), axis=-1) <= radius


def scan(shape=(24, 20, 16), affine: np.ndarray | None = None, source: str = "scan", tumour: bool = True) -> Volume:
    """A CT in air: a body of 40 HU and a bright ball of 200 HU off its centre."""
    middle = tuple((n - 1) / 2 for n in shape)
    array = np.full(shape, -1000, np.int16)
    array[ball(shape, middle, 7.5)] = 40
    if tumour:
        array[ball(shape, tuple(m + d for m, d in zip(middle, (3, 1, 2), strict=True)), 2.5)] = 200
    affine = np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine
    return Volume(array, affine, unit="HU", source=source)


def answer(volume: Volume, text: str = "liver tumor", seeds: int = 1, region: np.ndarray | None = None) -> PromptResult:
    mask = volume.array > 100
    if region is not None:
        mask &= region
    probability = mask.astype(np.float32) * np.float32(0.8)
    healthy = volume.array.copy()
    healthy[mask] = 40
    return PromptResult(
        understood=parse(text),
        mask=mask.astype(np.uint8),
        probability=probability,
        attention=probability * np.float32(0.9),
        pseudo_healthy=healthy,
        residual=np.abs(volume.array - healthy).astype(np.float32) / 200,
        uncertainty=probability * 0 if seeds > 1 else None,
        lesions=find_lesions(mask, volume, probability),
        image_score=0.9 if mask.any() else 0.1,
        warnings=("a warning about the prompt",),
    )


@dataclass
class FakeCase:
    volume: Volume
    modality: str
    warnings: list[str] = field(default_factory=lambda: ["a warning about the scan"])
    timings: dict[str, float] = field(default_factory=dict)

    def segment(self, prompts, seed=0, seeds=1, steps=None, region=None, progress=None) -> Result:
        for number, _ in enumerate(prompts):
            if progress is not None:
                progress("repainting", number / len(prompts))
        answers = {text: answer(self.volume, text, seeds, region) for text in prompts}
        return Result(self.volume, answers, {"seed": seed, "timings": {"encode": 0.1}})

    def reconstruction(self) -> np.ndarray:
        return self.volume.array + np.int16(10)


class FakeSegmenter:
    """Counts what it was asked for; a scan named `broken` makes it fail."""

    loaded = 0
    encoded = 0

    @classmethod
    def from_pretrained(cls, model: str = "compact", device: str = "auto") -> FakeSegmenter:
        cls.loaded += 1
        return cls()

    def encode(self, path: Path | Volume, affine: Any = None, modality: str = "auto", progress: Any = None) -> FakeCase:
        type(self).encoded += 1
        volume = path if isinstance(path, Volume) else read_volume(path)
        if "broken" in volume.source:
            raise RuntimeError("a bug\non two lines")
        return FakeCase(volume, guess_modality(volume)[0] if modality == "auto" else modality)

    def describe(self) -> dict[str, Any]:
        return {"model": "fake", "reconstruction_mae": {"ct": 12.0}}

    def estimate(self, shape: Any, spacing: Any) -> dict[str, float]:
        return {"seconds": 3.0, "peak_gb": 0.5}
