"""What a reader must know before trusting a result: what the scan cuts off."""

from __future__ import annotations

import numpy as np

from diffugts.intensity import IntensityMap, guess_modality
from diffugts.report.planes import Array, Turn
from diffugts.result import PromptResult, Result
from diffugts.volume import Volume

SIDES = (("right", "left"), ("front", "back"))  # where the turned axes 0 and 1 begin and end
SHARE = 0.02  # of a face of the scan: less of the body there is skin that touches, or noise


def cautions(result: Result) -> list[str]:
    """One sentence for each: body cut off at the scan's sides, findings that touch its border."""
    found = clipped_body(result.volume)
    for text, answer in result.prompts.items():
        found += clipped_findings(answer, text)
    return found


def clipped_body(volume: Volume) -> list[str]:
    """Whether the body leaves the field of view to the sides, to the front or to the back. Head and foot end are
    cut in every scan."""
    modality, _ = guess_modality(volume)
    threshold = IntensityMap.of(modality, volume.array).body_threshold
    turned = Turn.to_radiological(volume.affine).view(volume.array)
    cut = [
        name
        for axis, names in enumerate(SIDES)
        for name, index in zip(names, (0, -1), strict=True)
        if np.mean(turned.take(index, axis=axis) > threshold) > SHARE
    ]
    if not cut:
        return []
    return [
        f"The field of view is clipped: the body is cut off at the scan's {_joined(cut)}. The model knows whole "
        "cross-sections and judges the parts near a cut worse."
    ]


def clipped_findings(answer: PromptResult, text: str) -> list[str]:
    """Whether the mask reaches the scan's border, so that its size is too small."""
    if not _touches_border(answer.mask):
        return []
    return [f"What was found for {text!r} reaches the border of the scan; its size is a lower bound."]


def _touches_border(mask: Array) -> bool:
    return any(bool(mask.take((0, -1), axis=axis).any()) for axis in range(3))


def _joined(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
