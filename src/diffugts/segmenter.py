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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from diffugts.aova import Attention, AttentionHead, attend
from diffugts.backbone.conditions import Conditions, find_regions, parse_regions
from diffugts.backbone.config import MODALITY_CODES
from diffugts.backbone.latent_diffusion import Encoding, LatentDiffusion
from diffugts.backbone.memory import free_gb, peak_bytes, wanted_splits
from diffugts.backbone.weights import load_backbone, model_folder, read_info
from diffugts.errors import InputError
from diffugts.heads import HEADS, Settings, heads_folder, load_heads, load_residual_head
from diffugts.healing import Sampling
from diffugts.intensity import IntensityMap, guess_modality
from diffugts.io import from_array, read_mask, read_volume
from diffugts.lesions import find_lesions
from diffugts.machine import resident_gb
from diffugts.organs import OrganMap, read_labels
from diffugts.prompts import Prompt, parse_all
from diffugts.refine import Evidence, heal_candidate, refine
from diffugts.residual import ResidualHead
from diffugts.result import PromptResult, Result
from diffugts.roi import Roi, narrowed, roi_box
from diffugts.spatial import Box, Placement, body_box, place
from diffugts.text import TextEncoder, default_encoder, prompt_vectors
from diffugts.volume import Volume

log = logging.getLogger(__name__)

SEQUENCES = [code for code in MODALITY_CODES if "-" in code]

Progress = Callable[[str, float], None]
"""Told the stage and the fraction of it that is done."""


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
    """

    backbone: LatentDiffusion
    head: AttentionHead | None
    settings: Settings
    text: TextEncoder
    folder: Path
    residual_head: ResidualHead | None = None

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
        folder, where = model_folder(model, home), _device(device)
        trained = heads_folder(folder, held_out)
        head, settings, residual = None, Settings(), None
        if (trained / HEADS).is_file():
            head, settings = load_heads(trained)
            head, residual = head.to(where), load_residual_head(trained)
        backbone = load_backbone(folder, controlnet).to(where)
        backbone.autoencoder.splits = wanted_splits(backbone.config, where)
        log.info("model %s, weights under %s", backbone.config.name, backbone.config.licence)
        return cls(backbone, head, settings, default_encoder(), folder, residual)

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
            array, placement = place(volume, config.spacing_mm, config.multiple, crop=crop)
            array = intensity.forward(array)
            image = torch.from_numpy(array)[None, None]
        conditions = Conditions(placement.spacing, found)
        if config.unet.get("include_top_region_index_input"):
            regions = find_regions(array, placement.spacing) if body is None else parse_regions(body)
            conditions = replace(conditions, regions=regions)
        with clock("encode"):
            encoding = self.backbone.encode(image, conditions, progress and partial(progress, "encode"))
        return Case(self, volume, placement, intensity, conditions, encoding, (*warnings, *intensity.warnings), clock)

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
        return {"seconds": rate * voxels * overlap * 1.2, "peak_gb": self.peak_gb(shape, spacing)}

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
        return peak_bytes(config, weights, voxels, float(np.prod(shape))) / 1e9

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


@dataclass(frozen=True, eq=False)
class Case:
    """One encoded scan, ready for any number of prompts.

    Attributes:
        volume: the scan as given.
        placement: how it was brought to the model grid, and back.
        intensity: how its values were mapped to 0..1.
        conditions: what the model is told of it.
        encoding: latent and features.
        warnings: what is unusual about it, one sentence each.
        clock: seconds by stage.
    """

    segmenter: Segmenter
    volume: Volume
    placement: Placement
    intensity: IntensityMap
    conditions: Conditions
    encoding: Encoding
    warnings: tuple[str, ...]
    clock: Clock

    @property
    def modality(self) -> str:
        """ "ct" or "mr"."""
        return self.conditions.modality.split("-")[0]

    @property
    def timings(self) -> Mapping[str, float]:
        """Seconds by stage so far."""
        return self.clock.seconds

    def segment(
        self, prompts: str | Sequence[str], seed: int = 0, seeds: int = 1, steps: int | None = None,
        region: npt.NDArray[Any] | str | Path | None = None, progress: Progress | None = None,
        guidance: float | None = None, organ_map: npt.NDArray[Any] | str | Path | None = None,
    ) -> Result:  # fmt: skip
        """Segment what the prompts name.

        Args:
            prompts: one or several phrases.
            seed: first seed of the inpainting; the same seed gives the same bits.
            seeds: how many seeds are averaged; more than one gives an uncertainty map.
            steps: sampling steps; None takes the model's own number.
            region: (I, J, K) rough mask on the scan's grid, or its file, to use as the candidate instead of
                attention's.
            progress: told the stage and its fraction.
            guidance: of the sampler, see ``LatentDiffusion.guided``; None takes the model's own.
            organ_map: MAISI's labels on the scan's grid, or their file: the candidate is painted healthy in the
                shape of its organs, and guidance above 1 pushes away from tumours.

        Raises:
            PromptError: a prompt that cannot be understood. InputError: a region on another grid, or bad numbers.
        """
        if seeds < 1:
            raise InputError(f"seeds must be at least 1, not {seeds}")
        if steps is not None and steps < 1:
            raise InputError(f"steps must be at least 1, not {steps}")
        if guidance is not None and not guidance >= 0:
            raise InputError(f"guidance must be 0 or more, not {guidance}")
        labels = None if organ_map is None else self._labels(organ_map)
        understood = parse_all([prompts] if isinstance(prompts, str) else prompts)
        given = None if region is None else self._given(region)
        if given is None and self.segmenter.head is None:
            raise InputError(
                f"no attention heads were fitted to model {self.segmenter.backbone.config.name!r}: fit them with "
                "`diffugts fit`, or give a rough mask with --region"
            )
        with self.clock("attention"):
            attention = self.attention(understood)
        answers = {
            prompt.text: self._answer(
                prompt, attention, index, given, seed, seeds, Sampling(steps, guidance=guidance), labels, progress
            )
            for index, prompt in enumerate(understood)
        }
        config = self.segmenter.backbone.config
        settings = {
            "seed": seed,
            "seeds": seeds,
            "steps": steps or config.steps,
            "guidance": config.guidance if guidance is None else guidance,
            "region_given": region is not None,
            "organ_map_given": labels is not None,
        }
        return Result(self.volume, answers, {**self._manifest(), **settings})

    def attention(self, prompts: Sequence[Prompt]) -> Attention:
        """Attention maps of parsed prompts on the finest feature grid; empty ones where no head was fitted."""
        if self.segmenter.head is None:
            return self._no_attention(len(prompts))
        pairs = [prompt_vectors(prompt, self.segmenter.text) for prompt in prompts]
        abnormal, normal = (
            torch.from_numpy(np.stack(side)).to(self.segmenter.backbone.device) for side in zip(*pairs, strict=True)
        )
        with torch.inference_mode():
            config = self.segmenter.backbone.config
            return attend(self.segmenter.head, self.encoding.stages, abnormal, normal, config.window, config.multiple)

    def _no_attention(self, prompts: int) -> Attention:
        grid = min((stage.shape[2:] for stage in self.encoding.stages), key=lambda shape: -shape.numel())
        nothing = torch.full((prompts, *grid), -torch.inf)
        return Attention(nothing, torch.zeros(prompts, 0), torch.full((prompts,), -torch.inf))

    def _labels(self, organ_map: npt.NDArray[Any] | str | Path) -> npt.NDArray[np.uint8]:
        if self.segmenter.backbone.controlnet is None:
            name = self.segmenter.backbone.config.name
            raise InputError(f"an organ map needs a ControlNet, and model {name!r} was loaded without one")
        return read_labels(organ_map, self.volume, self.placement)

    def reconstruction(self) -> npt.NDArray[np.float32]:
        """Decode of the latent, on the scan's grid and in its unit: (I, J, K) float32."""
        with self.clock("decode"):
            image = self.segmenter.backbone.decode_windows(self.encoding.latent)[0, 0].cpu().numpy()
        return self.intensity.inverse(self.placement.inverse(image, "linear", fill=0.0))

    def heal(self, mask: npt.NDArray[Any] | str | Path, seed: int = 0, steps: int | None = None) -> npt.NDArray[Any]:
        """The scan as it would look without what the mask covers.

        Args:
            mask: (I, J, K) on the scan's grid, or its file.

        Returns:
            (I, J, K) in the scan's unit; bit-identical to the scan outside the (slightly dilated) mask.
        """
        candidate = self._given(mask)
        evidence = heal_candidate(
            self.segmenter.backbone, self.encoding.latent, candidate, self.conditions, [seed], Sampling(steps)
        )
        return self._pseudo_healthy(evidence)

    def _given(self, region: npt.NDArray[Any] | str | Path) -> npt.NDArray[np.bool_]:
        """A user's mask on the model grid, dilated by the settings' margin."""
        mask = read_mask(region, self.volume)
        return self.segmenter.settings.dilated(self.placement.forward(mask, kind="max"), self.placement.spacing)

    def _answer(
        self, prompt: Prompt, attention: Attention, index: int, given: npt.NDArray[np.bool_] | None, seed: int,
        seeds: int, sampling: Sampling, labels: npt.NDArray[np.uint8] | None, progress: Progress | None,
    ) -> PromptResult:  # fmt: skip
        settings, backbone = self.segmenter.settings, self.segmenter.backbone
        attended = upsampled(attention.probability[index], self.placement.grid.shape)
        score = float(attention.score[index])
        candidate = settings.candidate(attended, score, self.placement.spacing) if given is None else given
        if prompt.negated:
            candidate = np.zeros_like(candidate)
        if labels is not None:
            sampling = replace(sampling, organs=OrganMap.of(labels, candidate, backbone.device))
        with self.clock("inpaint"):
            report = progress and partial(progress, "inpaint")
            evidence = heal_candidate(
                backbone,
                self.encoding.latent,
                candidate,
                self.conditions,
                range(seed, seed + seeds),
                sampling,
                report,
                settings.fusion.smooth_vox,
            )
        with self.clock("refine"):
            wanted = settings.learned if given is None else settings.learned_region
            learned = self.segmenter.residual_head if wanted else None
            refined = refine(evidence, attended, settings, trusted=given is not None, head=learned)
        with self.clock("restore"):
            back = self.placement.inverse
            probability = np.clip(back(refined.probability, "linear"), 0, 1)
            mask = (probability > 0.5).astype(np.uint8)
            return PromptResult(
                understood=prompt,
                mask=mask,
                probability=probability,
                attention=np.clip(back(attended, "linear"), 0, 1),
                pseudo_healthy=self._pseudo_healthy(evidence),
                residual=back(refined.residual, "linear"),
                uncertainty=back(refined.spread, "linear") if seeds > 1 else None,
                lesions=find_lesions(mask, self.volume, probability, min_ml=settings.min_lesion_ml),
                image_score=score,
                warnings=_prompt_warnings(prompt),
            )

    def _pseudo_healthy(self, evidence: Evidence) -> npt.NDArray[Any]:
        """Paste the healed regions into the scan, feathered inside the mask; every other voxel keeps its bits."""
        scan = self.volume.array
        healed = scan.astype(np.result_type(scan.dtype, np.float32))
        if not evidence.mask.any():
            return healed
        weight = self.placement.inverse(evidence.feather(), "linear")
        inside = weight > 0
        painted = self.intensity.inverse(self.placement.inverse(evidence.healthy, "linear"))
        healed[inside] += weight[inside] * (painted[inside] - healed[inside])
        return healed

    def _manifest(self) -> dict[str, Any]:
        return {
            **self.segmenter.describe(),
            "modality": self.modality,
            "warnings": list(self.warnings),
            "intensity": self.intensity.to_dict(),
            "placement": self.placement.to_dict(),
            "timings_s": {stage: round(value, 3) for stage, value in self.timings.items()},
        }


class Clock:
    """Seconds by stage, added up over calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began


def upsampled(probability: torch.Tensor, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """A map (d, h, w) of the finest feature grid, trilinear on the model grid (D, H, W)."""
    fine = torch.nn.functional.interpolate(
        probability[None, None], size=tuple(shape), mode="trilinear", align_corners=False
    )
    result: npt.NDArray[np.float32] = fine[0, 0].cpu().numpy()
    return result


def _prompt_warnings(prompt: Prompt) -> tuple[str, ...]:
    if prompt.negated:
        return (f"The prompt {prompt.text!r} says that nothing is there, so nothing was segmented.",)
    return ()


def _modality(volume: Volume, wanted: str) -> tuple[str, tuple[str, ...]]:
    if (wanted != "auto" and wanted not in MODALITY_CODES) or wanted == "unknown":
        raise InputError(f"modality must be auto, ct or mr, or one of {', '.join(SEQUENCES)}; not {wanted!r}")
    if wanted != "auto":
        return wanted, ()
    found, reason = guess_modality(volume)
    return found, (f"The modality was taken to be {found.upper()}: {reason}. Give --modality to set it.",)


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise InputError(f"device must be auto, cpu, cuda or cuda:<i>, not {wanted!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {wanted!r} was asked for, but PyTorch sees no GPU; use --device cpu")
    return device
