"""What a segmentation hands back: the mask and its reasons, all on the scan's own grid."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffugts.errors import PromptError
from diffugts.lesions import Lesion
from diffugts.volume import Volume

if TYPE_CHECKING:
    from diffugts.prompts import Prompt


@dataclass(frozen=True, eq=False)
class PromptResult:
    """The answer to one prompt. Every array is (I, J, K) on the scan's grid.

    Attributes:
        understood: the prompt as it was read: anatomy, finding, negation, phrases.
        mask: uint8, 1 is tumour.
        probability: float32, 0 to 1, of each voxel being tumour.
        attention: float32, the anomaly-aware attention of the prompt, 0 to 1.
        pseudo_healthy: the scan as it would look without the finding, in the scan's units and in a dtype
            that holds its values exactly; bit-identical to the scan outside the repainted region.
        residual: float32, how much scan and pseudo-healthy differ, fused over pixels and features.
        uncertainty: float32, spread of the probability over seeds; None with a single seed.
        lesions: the mask's connected components, the largest first.
        image_score: 0 to 1, whether the scan holds the finding at all.
        warnings: one sentence each.
    """

    understood: Prompt
    mask: npt.NDArray[np.uint8]
    probability: npt.NDArray[np.float32]
    attention: npt.NDArray[np.float32]
    pseudo_healthy: npt.NDArray[Any]
    residual: npt.NDArray[np.float32]
    uncertainty: npt.NDArray[np.float32] | None = None
    lesions: tuple[Lesion, ...] = ()
    image_score: float = 0.0
    warnings: tuple[str, ...] = ()

    @property
    def volume_ml(self) -> float:
        """Volume of all lesions, millilitres."""
        return float(sum(lesion.volume_ml for lesion in self.lesions))


@dataclass(frozen=True, eq=False)
class Result:
    """The answers to all prompts on one scan.

    Attributes:
        volume: the scan.
        prompts: answers, keyed by the prompts as the user wrote them, in that order.
        manifest: how they came about (versions, model, weights, seed, timings): plain JSON values.
    """

    volume: Volume
    prompts: Mapping[str, PromptResult]
    manifest: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, prompt: str) -> PromptResult:
        try:
            return self.prompts[prompt]
        except KeyError:
            known = ", ".join(repr(text) for text in self.prompts)
            raise PromptError(f"No result for the prompt {prompt!r}; this case was asked for {known}.") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.prompts)

    def __len__(self) -> int:
        return len(self.prompts)

    def save(
        self,
        directory: str | Path,
        name: str | None = None,
        report: bool = False,
        exports: Collection[str] = (),
    ) -> Path:
        """Write everything to `directory/<case>/` and return that folder (`diffugts.report.save_result`).

        Args:
            directory: made where it is missing.
            name: the case's folder; by default from the scan's own name.
            report: also write `report.html`, and a copy of the scan for the viewer and for figures.
            exports: "dicom-seg" (`mask.dcm`), "rtstruct" (`rtstruct.dcm`) or both; for a DICOM scan only.
        """
        from diffugts.report.save import save_result

        return save_result(self, directory, name, report, exports)
