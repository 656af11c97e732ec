"""What is trained on top of a backbone, with the settings that go with it: one file each in the model folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffugts.aova import AttentionConfig, AttentionHead
from diffugts.backbone.weights import ATTENTION, load_strictly, load_tensors, save_tensors
from diffugts.errors import WeightsError
from diffugts.inpaint import dilate
from diffugts.residual import Fusion

HEADS = "heads.json"


@dataclass(frozen=True)
class Settings:
    """Thresholds and weights of the refinement; ours, chosen by ``benchmarks/tune.py``.

    Attributes:
        threshold: attention probability above which a voxel is a candidate.
        relative: and above which share of the scan's highest: attention is surer on some scanners than on others.
        score_threshold: image-level score below which there is no candidate at all.
        margin_mm: how far the candidate is grown before it is repainted.
        min_candidate_ml: connected candidates smaller than this are dropped.
        min_lesion_ml: connected lesions smaller than this are left out of the table.
        fusion: how residuals become a mask.
    """

    threshold: float = 0.5
    relative: float = 0.0
    score_threshold: float = 0.5
    margin_mm: float = 6.0
    min_candidate_ml: float = 0.1
    min_lesion_ml: float = 0.0
    fusion: Fusion = field(default_factory=Fusion)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Settings:
        """The settings that ``dataclasses.asdict`` described."""
        return cls(**{**data, "fusion": Fusion(**data.get("fusion", {}))})

    def dilated(self, mask: npt.NDArray[np.bool_], spacing: tuple[float, float, float]) -> npt.NDArray[np.bool_]:
        """M: the mask grown by the margin, (D, H, W) on the model grid."""
        return dilate(mask, spacing, self.margin_mm)

    def suspicious(
        self, attended: npt.NDArray[np.float32], score: float, spacing: tuple[float, float, float]
    ) -> npt.NDArray[np.bool_]:
        """P_abn > threshold without its smallest parts, gated by the image-level score.

        Args:
            attended: (D, H, W) P_abn on the model grid. score: image level, 0..1. spacing: of the model grid, mm.
        """
        from scipy import ndimage

        mask = attended > max(self.threshold, self.relative * float(attended.max()))
        if score < self.score_threshold:
            return np.zeros_like(mask)
        labels, _ = ndimage.label(mask)
        sizes = np.bincount(labels.ravel()) * float(np.prod(spacing)) / 1000
        return mask & (sizes >= self.min_candidate_ml)[labels]

    def candidate(
        self, attended: npt.NDArray[np.float32], score: float, spacing: tuple[float, float, float]
    ) -> npt.NDArray[np.bool_]:
        """M: what is suspicious, grown by the margin; arguments as there."""
        return self.dilated(self.suspicious(attended, score, spacing), spacing)


def load_heads(folder: Path) -> tuple[AttentionHead, Settings]:
    """The attention head (frozen) and the settings of a model folder.

    Raises:
        WeightsError: missing, damaged or of another network.
    """
    try:
        data = json.loads((folder / HEADS).read_text(encoding="utf-8"))
        config = AttentionConfig(**{**data["attention"], "channels": tuple(data["attention"]["channels"])})
        settings = Settings.from_dict(data["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"model {folder.name!r} has no usable {HEADS} ({error}); run `diffugts fit`") from error
    head = AttentionHead(config)
    load_strictly(head, load_tensors(folder / ATTENTION), ATTENTION)
    return head.eval().requires_grad_(False), settings


def save_heads(folder: Path, head: AttentionHead, settings: Settings, seen: list[str]) -> None:
    """Write the head, its shape, the settings, and the categories that it was trained on."""
    from diffugts.io import atomic_write

    save_tensors(folder / ATTENTION, head.state_dict())
    data = {"attention": asdict(head.config), "settings": asdict(settings), "seen": seen}
    atomic_write(folder / HEADS, json.dumps(data, indent=2) + "\n")
