"""The public interface: encode a scan once, ask it many prompts, get masks with their reasons.

seg = Segmenter.from_pretrained("compact")
case = seg.encode("scan.nii.gz")
result = case.segment(["liver tumor"], seed=0)
result["liver tumor"].mask
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from diffugts.aova import AttentionHead
from diffugts.backbone.conditions import Conditions, find_regions, parse_regions
from diffugts.backbone.config import MODALITY_CODES
from diffugts.backbone.latent_diffusion import LatentDiffusion
from diffugts.backbone.memory import free_gb, peak_bytes, wanted_splits
from diffugts.backbone.weights import load_backbone, model_folder, read_info
from diffugts.case import Case, Clock, Progress, View
from diffugts.errors import InputError
from diffugts.heads import HEADS, Settings, heads_folder, load_heads, load_residual_head
from diffugts.intensity import IntensityMap, guess_modality
from diffugts.io import from_array, read_volume
from diffugts.machine import find_device, resident_gb
from diffugts.prompts import ANY_TUMOR, Prompt, parse
from diffugts.residual import ResidualHead
from diffugts.roi import Roi, narrowed, roi_box
from diffugts.spatial import Box, body_box, place
from diffugts.text import TextEncoder, default_encoder
from diffugts.volume import Volume

log = logging.getLogger(__name__)

SEQUENCES = [code for code in MODALITY_CODES if "-" in code]


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A frozen backbone, a trained attention head and a text encoder.

    Attributes:
        backbone: frozen; never trained here.
        head: attention over its features; None for a backbone that no head was fitted to.
        settings: thresholds and weights of the refinement.
        text: where prompt vectors come from; must be the encoder that the head was trained with.
        folder: the model folder.
        residual_head: the learned form of the refinement, where the model has one; on the CPU.
        seen: organs whose tumours the head saw; empty where that is not known.
    """

    backbone: LatentDiffusion
    head: AttentionHead | None
    settings: Settings
    text: TextEncoder
    folder: Path
    residual_head: ResidualHead | None = None
    seen: frozenset[str] = frozenset()

    @classmethod
    def from_pretrained(
        cls, model: str | Path = "compact", device: str = "auto", held_out: str | None = None,
        home: str | Path | None = None, controlnet: bool = False,
    ) -> Segmenter:  # fmt: skip
        """Load a model.

        Args:
            model: a name that ships with the package, or a model folder.
            device: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:<i>".
            held_out: an anatomy whose tumours the head must never have seen, for zero-shot figures.
            home: where weights that do not ship lie; see ``backbone.home.home_folder``.
            controlnet: load the ControlNet too, for organ maps.

        Raises:
            WeightsError: files missing, damaged or of another network.
            InputError: no such device.
        """
        folder, where = model_folder(model, home), find_device(device)
        trained = heads_folder(folder, held_out)
        head, settings, residual, seen = None, Settings(), None, frozenset[str]()
        if (trained / HEADS).is_file():
            head, settings, seen = load_heads(trained)
            head, residual = head.to(where), load_residual_head(trained)
        backbone = load_backbone(folder, controlnet).to(where)
        backbone.autoencoder.splits = wanted_splits(backbone.config, where)
        log.info("model %s, weights under %s", backbone.config.name, backbone.config.licence)
        return cls(backbone, head, settings, default_encoder(), folder, residual, seen)

    def encode(
        self, scan: str | Path | Volume | npt.NDArray[Any], affine: npt.ArrayLike | None = None,
        modality: str = "auto", progress: Progress | None = None, roi: Roi | None = None, body: str | None = None,
    ) -> Case:  # fmt: skip
        """Read a scan, bring it to the model grid and encode it, once for all prompts.

        Args:
            scan: a file, a DICOM folder, a volume, or an (I, J, K) array with its affine.
            affine: (4, 4) voxel to RAS+ mm; for arrays only.
            modality: "auto", "ct" (HU) or "mr", or a sequence that the model knows, as in "mr-flair".
            roi: the part of the scan to look at; see ``roi.roi_box``.
            body: body regions in view from the top down, as in "chest-abdomen", for a model that asks for them; None
                finds them.

        Raises:
            InputError: a scan that cannot be used as it is; the sentence says why.
        """
        clock = Clock()
        with clock("read"):
            volume = self._volume(scan, affine)
            found, warnings = _modality(volume, modality)
        kind, config = found.split("-")[0], self.backbone.config
        if config.modality not in ("", kind):
            raise InputError(
                f"model {config.name!r} knows {config.modality.upper()} only, and this scan is {kind.upper()}"
            )
        with clock("resample"):
            intensity = IntensityMap.of(kind, volume.array)  # type: ignore[arg-type]
            if kind == "mr" and not config.clip_mr:
                intensity = replace(intensity, clip=False)
            crop = body_box(volume, intensity.body_threshold)
            if roi is not None:
                crop = narrowed(crop, roi_box(roi, volume))
            self._refuse_too_large(volume, crop)
        report = progress and partial(progress, "encode")
        look = partial(self._look, volume, intensity, crop, found, body, clock, report)
        near = look(config.spacing_mm)
        wide = tuple(look(config.spacing_mm * times) for times in self._wide)
        said = (*warnings, *intensity.warnings)
        return Case(self, volume, near.placement, intensity, near.conditions, near.encoding, said, clock, wide)

    def asked(self, prompt: Prompt) -> Prompt:
        """The prompt that attention is asked: of an organ whose tumours it never saw, any tumour.

        Such a name means nothing to the head, or what it learnt of other organs' names: no tumour here.
        """
        unseen = prompt.anatomy is not None and self.seen and prompt.anatomy not in self.seen
        return parse(ANY_TUMOR) if unseen else prompt

    @property
    def _wide(self) -> tuple[float, ...]:
        """Larger voxels that attention looks at as well, as multiples of the model's."""
        return () if self.head is None else self.settings.wide

    @property
    def _looks(self) -> float:
        """Voxels that are encoded in all, as a share of those on the model grid."""
        return 1 + sum(times**-3 for times in self._wide)

    def _look(
        self, volume: Volume, intensity: IntensityMap, crop: Box, modality: str, body: str | None, clock: Clock,
        report: Callable[[float], None] | None, spacing: float,
    ) -> View:  # fmt: skip
        """Encode the scan at one voxel size."""
        config = self.backbone.config
        with clock("resample"):
            array, placement = place(volume, spacing, config.multiple, crop=crop)
            array = intensity.forward(array)
        conditions = Conditions(placement.spacing, modality)
        if config.unet.get("include_top_region_index_input"):
            regions = find_regions(array, placement.spacing) if body is None else parse_regions(body)
            conditions = replace(conditions, regions=regions)
        with clock("encode"):
            encoding = self.backbone.encode(torch.from_numpy(array)[None, None], conditions, report)
        return View(placement, conditions, encoding)

    def describe(self) -> dict[str, Any]:
        """Model, weight files with hash and licence, and the libraries that ran: for manifests."""
        info = read_info(self.folder)
        return {
            "model": info.name,
            "licence": info.licence,
            "non_commercial": info.non_commercial,
            "weights": [asdict(file) for file in info.files],
            "reconstruction_mae": info.reconstruction_mae,
            "text_encoder": self.text.name,
            "device": str(self.backbone.device),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }

    def estimate(self, shape: Sequence[int], spacing: Sequence[float]) -> dict[str, float]:
        """Expected seconds and peak memory (GB) to encode and attend to a scan of this size, air around it included.

        Time is measured on one window of this model on this machine. A lesion to repaint comes on top: some
        seconds for each 100 ml.
        """
        config = self.backbone.config
        voxels = float(np.prod([n * s / config.spacing_mm for n, s in zip(shape, spacing, strict=True)]))
        side = min(config.window, 2 * config.multiple)
        began = time.perf_counter()
        self.backbone.encode(torch.zeros(1, 1, side, side, side), Conditions((config.spacing_mm,) * 3, "unknown"))
        rate = (time.perf_counter() - began) / side**3
        window = config.window
        overlap = (window / (window - config.multiple)) ** 3 if voxels > window**3 else 1.0
        return {"seconds": rate * voxels * self._looks * overlap * 1.2, "peak_gb": self.peak_gb(shape, spacing)}

    def peak_gb(self, shape: Sequence[int], spacing: Sequence[float], crop: Box | None = None) -> float:
        """Expected peak memory, GB, to encode a scan and ask it one prompt; a box to repaint is fitted to what is left.

        Args:
            shape, spacing: of the scan. crop: the part of it that is looked at; None for all of it.
        """
        config = self.backbone.config
        seen = shape if crop is None else [stop - start for start, stop in crop]
        sides = [max(1, round(n * mm / config.spacing_mm)) for n, mm in zip(seen, spacing, strict=True)]
        voxels = float(np.prod([-(-side // config.multiple) * config.multiple for side in sides]))
        weights = sum(p.numel() * p.element_size() for p in self.backbone.parameters())
        return peak_bytes(config, weights, voxels * self._looks, float(np.prod(shape))) / 1e9

    def _refuse_too_large(self, volume: Volume, crop: Box) -> None:
        """Say so before the machine runs out of memory, rather than after."""
        free, device = free_gb(self.backbone.device), self.backbone.device.type
        needed = self.peak_gb(volume.shape, volume.spacing.tolist(), crop)
        more = needed - (resident_gb() or 0.0) if device == "cpu" else needed
        if free is not None and more > free:
            raise InputError(
                f"this scan of {volume.shape} voxels needs about {needed:.1f} GB of memory and {free:.1f} GB are free; "
                "look at a part of it with --roi, or close other programs"
            )

    @staticmethod
    def _volume(scan: str | Path | Volume | npt.NDArray[Any], affine: npt.ArrayLike | None) -> Volume:
        if isinstance(scan, Volume):
            return scan
        if isinstance(scan, np.ndarray):
            if affine is None:
                raise InputError("an array needs its affine (4 × 4, voxel to RAS+ mm) to be placed in the patient")
            return from_array(scan, affine)
        return read_volume(scan)


def _modality(volume: Volume, wanted: str) -> tuple[str, tuple[str, ...]]:
    if (wanted != "auto" and wanted not in MODALITY_CODES) or wanted == "unknown":
        raise InputError(f"modality must be auto, ct or mr, or one of {', '.join(SEQUENCES)}; not {wanted!r}")
    if wanted != "auto":
        return wanted, ()
    found, reason = guess_modality(volume)
    return found, (f"The modality was taken to be {found.upper()}: {reason}. Give --modality to set it.",)
