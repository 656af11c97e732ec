"""What is trained on top of a backbone, with the settings that go with it: one file each in the model folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from diffugts.aova import AttentionConfig, AttentionHead
from diffugts.backbone.weights import ATTENTION, load_strictly, load_tensors, save_tensors
from diffugts.errors import WeightsError
from diffugts.inpaint import dilate
from diffugts.likelihood import Odds
from diffugts.residual import Fusion, ResidualHead
from diffugts.search.base import log_odds

HEADS, RESIDUAL = "heads.json", "residual.safetensors"
HELD_OUT = "held_out"
Form = Literal["plain", "learned", "likelihood"]


@dataclass(frozen=True)
class Settings:
    """Thresholds and weights of the refinement; ours, chosen by ``benchmarks/tune.py``.

    Attributes:
        threshold: attention probability above which a voxel is a candidate.
        relative: and above which share of the scan's highest: attention is surer on some scanners than on others.
        sure: a connected candidate counts only where its highest probability passes this: a low threshold outlines
            what a high one finds.
        firm: where the prompt names no organ, so that nothing but attention says that something is there, a candidate
            counts only where its mean log-odds reach this; 0 does not ask.
        heard: by organ whose tumours the head saw and of which what the scan itself says counts (``Search.beside``):
            what mean log-odds of attention it takes, where that stands in the place of attention's own answer.
        score_threshold: image-level score below which there is no candidate at all.
        margin_mm: how far the candidate is grown before it is repainted.
        min_candidate_ml: connected candidates smaller than this are dropped.
        min_lesion_ml: connected lesions smaller than this are left out, unless the user gave the region.
        fall: by how much attention's logit must fall, in the mean over what is suspicious, once a part is painted
            healthy; parts that fail are dropped. 0 does not ask.
        fall_ml: suspicious parts larger than this are not asked.
        fusion: how residuals become a mask in the plain form.
        wide: attention also looks at voxels that are these many times as large, and all its looks are averaged.
        coarse: each look weighs as its voxels' side to this power; 0 makes all alike.
        odds: how likelihoods become a mask in the likelihood form.
        opened: what is found, but for a user's region, is opened by balls of this share of its depth, so that it does
            not leak along thin bridges.
        form: which form of the refinement gives the mask; "learned" needs a residual head, else it is "plain".
        region_form: the same where the candidate came from the user.
    """

    threshold: float = 0.5
    relative: float = 0.0
    sure: float = 0.0
    firm: float = 0.0
    heard: Mapping[str, float] = field(default_factory=dict)
    score_threshold: float = 0.5
    margin_mm: float = 6.0
    min_candidate_ml: float = 0.1
    min_lesion_ml: float = 0.0
    fall: float = 0.0
    fall_ml: float = 50.0
    wide: tuple[float, ...] = ()
    coarse: float = 0.0
    fusion: Fusion = field(default_factory=Fusion)
    odds: Odds = field(default_factory=Odds)
    opened: float = 0.0
    form: Form = "plain"
    region_form: Form = "plain"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Settings:
        """The settings that ``dataclasses.asdict`` described."""
        parts = {"fusion": Fusion(**data.get("fusion", {})), "odds": Odds(**data.get("odds", {}))}
        return cls(**{**data, **parts, "wide": tuple(data.get("wide", ()))})

    def cut(self, attended: npt.NDArray[np.float32]) -> float:
        """The probability above which a voxel of this scan is suspicious."""
        return max(self.threshold, self.relative * float(attended.max()))

    def dilated(self, mask: npt.NDArray[np.bool_], spacing: tuple[float, float, float]) -> npt.NDArray[np.bool_]:
        """M: the mask grown by the margin, (D, H, W) on the model grid."""
        return dilate(mask, spacing, self.margin_mm)

    def suspicious(
        self, attended: npt.NDArray[np.float32], score: float, spacing: tuple[float, float, float],
        anywhere: bool = False,
    ) -> npt.NDArray[np.bool_]:  # fmt: skip
        """P_abn > threshold without its smallest and its unsure parts, gated by the image-level score.

        Args:
            attended: (D, H, W) P_abn on the model grid. score: image level, 0..1. spacing: of the model grid, mm.
            anywhere: the prompt names no organ.
        """
        from scipy import ndimage

        mask: npt.NDArray[np.bool_] = attended > self.cut(attended)
        if score < self.score_threshold:
            return np.zeros_like(mask)
        labels, count = ndimage.label(mask)
        sizes = np.bincount(labels.ravel()) * float(np.prod(spacing)) / 1000
        peaks = np.asarray(ndimage.maximum(attended, labels, np.arange(count + 1)))
        counts = (sizes >= self.min_candidate_ml) & (peaks > self.sure)
        if anywhere and self.firm:
            counts &= np.asarray(ndimage.mean(log_odds(attended), labels, np.arange(count + 1))) >= self.firm
        kept: npt.NDArray[np.bool_] = mask & counts[labels]
        return kept

    def candidate(
        self, attended: npt.NDArray[np.float32], score: float, spacing: tuple[float, float, float]
    ) -> npt.NDArray[np.bool_]:
        """M: what is suspicious, grown by the margin; arguments as there."""
        return self.dilated(self.suspicious(attended, score, spacing), spacing)


def held_out_folder(folder: Path, organs: Sequence[str]) -> Path:
    """Where a model keeps the heads that never saw tumours of these organs: ``held_out/brain+soft-tissue``."""
    return folder / HELD_OUT / "+".join(organ.replace(" ", "-") for organ in sorted(organs))


def held_out_heads(folder: Path) -> dict[str, Path]:
    """Folder of the head that never saw a tumour of an organ, by organ; of several the one that saw most."""
    found: dict[str, Path] = {}
    paths = [path.parent for path in (folder / HELD_OUT).glob(f"*/{HEADS}")]
    for path in sorted(paths, key=lambda path: (-path.name.count("+"), path.name)):
        found.update({organ.replace("-", " "): path for organ in path.name.split("+")})
    return dict(sorted(found.items()))


def heads_folder(folder: Path, held_out: str | None = None) -> Path:
    """Where the heads of a model lie: the default ones, or those that never saw tumours of an organ.

    Raises:
        WeightsError: the model has no such head.
    """
    if held_out is None:
        return folder
    found = held_out_heads(folder)
    if held_out not in found:
        raise WeightsError(f"model {folder.name!r} has no head without {held_out!r}; there are: {', '.join(found)}")
    return found[held_out]


def load_heads(folder: Path) -> tuple[AttentionHead, Settings, frozenset[str]]:
    """The attention head (frozen) of a model folder, its settings, and the organs whose tumours it saw.

    Raises:
        WeightsError: missing, damaged or of another network.
    """
    try:
        data = json.loads((folder / HEADS).read_text(encoding="utf-8"))
        config = AttentionConfig.from_dict(data["attention"])
        settings, seen = Settings.from_dict(data["settings"]), frozenset(data.get("seen", ()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"model {folder.name!r} has no usable {HEADS} ({error}); run `diffugts fit`") from error
    head = AttentionHead(config)
    load_strictly(head, load_tensors(folder / ATTENTION), ATTENTION)
    return head.eval().requires_grad_(False), settings, seen


def load_residual_head(folder: Path) -> ResidualHead | None:
    """The residual head (frozen) beside an attention head; None where there is none.

    Raises:
        WeightsError: damaged or of another network.
    """
    if not (folder / RESIDUAL).is_file():
        return None
    head = ResidualHead()
    load_strictly(head, load_tensors(folder / RESIDUAL), RESIDUAL)
    return head.eval().requires_grad_(False)


def save_heads(
    folder: Path, head: AttentionHead, settings: Settings, seen: list[str], residual: ResidualHead | None = None
) -> None:
    """Write the heads, their shape, the settings, and the organs of the tumours that they saw, as prompts name them."""
    from diffugts.io import atomic_write

    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / ATTENTION, head.state_dict())
    if residual is not None:
        save_tensors(folder / RESIDUAL, residual.state_dict())
    data = {"attention": asdict(head.config), "settings": asdict(settings), "seen": seen}
    atomic_write(folder / HEADS, json.dumps(data, indent=2) + "\n")
