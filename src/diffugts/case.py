"""One encoded scan and what can be asked of it: attention, inpainting and refinement for any number of prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from diffugts.anatomy import Organs, load_locator, locator_file
from diffugts.aova import Attention, AttentionHead, attend, finer, mean_of_looks
from diffugts.backbone.conditions import Conditions
from diffugts.backbone.latent_diffusion import Encoding
from diffugts.blend import textured
from diffugts.discriminant import discriminant
from diffugts.errors import InputError
from diffugts.healing import Sampling
from diffugts.intensity import IntensityMap
from diffugts.io import read_mask
from diffugts.lesions import find_lesions, without_crumbs
from diffugts.organs import OrganMap, read_labels
from diffugts.prompts import Prompt, parse_all
from diffugts.refine import Evidence, convincing, heal_candidate, refine
from diffugts.result import PromptResult, Result
from diffugts.search import Search, log_odds
from diffugts.spatial import Placement
from diffugts.text import prompt_vectors
from diffugts.volume import Volume

if TYPE_CHECKING:
    from diffugts.segmenter import Segmenter

Progress = Callable[[str, float], None]
"""Told the stage and the fraction of it that is done."""


@dataclass(frozen=True, eq=False)
class View:
    """The scan at one voxel size: how it was brought there, what the model is told of it, and what it sees."""

    placement: Placement
    conditions: Conditions
    encoding: Encoding


@dataclass(frozen=True, eq=False)
class Case:
    """One encoded scan, ready for any number of prompts.

    Attributes:
        volume: the scan as given.
        placement: how it was brought to the model grid, and back.
        intensity: how its values were mapped to 0..1.
        conditions: what the model is told of it.
        encoding: latent and features.
        wide: the same on larger voxels, for attention's further looks.
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
    wide: tuple[View, ...] = ()

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
        abnormal, normal = self._vectors(prompts)
        config, head = self.segmenter.backbone.config, self.segmenter.head
        with torch.inference_mode():
            looks = [
                attend(head, encoding.stages, abnormal, normal, config.window, config.multiple)
                for encoding in (self.encoding, *(view.encoding for view in self.wide))
            ]
        small = self.placement.spacing
        ratios = [[mm / large for mm, large in zip(small, view.placement.spacing, strict=True)] for view in self.wide]
        return mean_of_looks(looks[0], looks[1:], ratios, self.segmenter.settings.coarse)

    def attended(self, attention: Attention, prompt: Prompt, index: int = 0) -> npt.NDArray[np.float32]:
        """P_abn of one prompt on the model grid, (D, H, W).

        0 in the padding, of which training says nothing, and outside an organ whose tumours the head never saw: to
        the head its name means nothing, so the locator tells where to look. Of an organ whose tumours it saw, with
        what the scan says of them.
        """
        whole = upsampled(attention.probability[index], self.placement.grid.shape)
        inside, own = np.zeros_like(whole), whole[self.placement.scanned]
        search = self.search(prompt)
        inside[self.placement.scanned] = self._agreed(prompt, own) if search is None else search.of(own)
        return inside

    def _agreed(self, prompt: Prompt, own: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Attention ``own`` of an organ whose tumours the head saw, with what the scan says of them.

        The scan's own candidates count where attention agrees with them.
        """
        heard = self.segmenter.settings.heard.get(prompt.anatomy or "")
        if heard is None or self.segmenter.asked(prompt) is not prompt:
            return own
        search = self.organs.search(prompt.anatomy)
        if search is None:
            return own
        found = search.beside(own)
        answer = found > 0.5
        agreed = not search.replaces or (answer.any() and log_odds(own)[answer].mean() >= heard)
        return found if agreed else own

    def suspicious(self, prompt: Prompt, attended: npt.NDArray[np.float32], score: float) -> npt.NDArray[np.bool_]:
        """Where attention points, (D, H, W) on the model grid; nowhere for a negated prompt.

        Args:
            attended: P_abn of the prompt. score: image level, 0..1.
        """
        if prompt.negated:
            return np.zeros(attended.shape, np.bool_)
        return self.segmenter.settings.suspicious(attended, score, self.placement.spacing, prompt.anywhere)

    def search(self, prompt: Prompt) -> Search | None:
        """Where a prompt is searched for, on the scanned part of the model grid; None for all of it."""
        return None if self.segmenter.asked(prompt) is prompt else self.organs.search(prompt.anatomy)

    @cached_property
    def organs(self) -> Organs:
        """What the locator finds in this scan."""
        image = self.intensity.forward(self.placement.forward(self.volume.array))[self.placement.scanned]
        locator = load_locator(locator_file(self.segmenter.folder))
        return Organs.find(locator, image, self.placement.spacing, self.modality)

    def telling(self, prompt: Prompt, suspicious: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32] | None:
        """Log odds (D, H, W) by what tells the suspicious from the rest of the organ in the frozen features.

        None where the settings do not ask, nothing is suspicious, or the organ is not found.
        """
        settings = self.segmenter.settings
        search = self.organs.search(prompt.anatomy) if settings.odds.features and suspicious.any() else None
        if search is None:
            return None
        healthy = np.zeros_like(suspicious)
        healthy[self.placement.scanned] = search.region
        healthy &= ~settings.dilated(suspicious, self.placement.spacing)
        return discriminant(self.encoding.stages, suspicious, healthy)

    def second_look(self, prompt: Prompt) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """Attention's logits on any image (D, H, W) in 0..1 of the model grid; None where no head was fitted."""
        if self.segmenter.head is None:
            return None
        return partial(self._logits_on, self.segmenter.head, self._vectors([prompt]))

    def _logits_on(
        self, head: AttentionHead, vectors: tuple[torch.Tensor, torch.Tensor], image: torch.Tensor
    ) -> torch.Tensor:
        config, shape = self.segmenter.backbone.config, image.shape
        pad = [n for side in reversed(shape) for n in (0, -side % config.multiple)]
        whole = torch.nn.functional.pad(image[None, None].float(), pad, mode="replicate")
        with torch.inference_mode():
            stages = self.segmenter.backbone.encode(whole, self.conditions).stages
            found = attend(head, stages, *vectors, config.window, config.multiple).logits
        return finer(found[0], whole.shape[2:])[tuple(slice(side) for side in shape)]

    def _vectors(self, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
        """Abnormal and normal text vectors (P, T), as attention is asked."""
        pairs = [prompt_vectors(self.segmenter.asked(prompt), self.segmenter.text) for prompt in prompts]
        device = self.segmenter.backbone.device
        abnormal, normal = (torch.from_numpy(np.stack(side)).to(device) for side in zip(*pairs, strict=True))
        return abnormal, normal

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
        return self._pseudo_healthy(evidence, seed)

    def _given(self, region: npt.NDArray[Any] | str | Path) -> npt.NDArray[np.bool_]:
        """A user's mask on the model grid, dilated by the settings' margin."""
        mask = read_mask(region, self.volume)
        return self.segmenter.settings.dilated(self.placement.forward(mask, kind="max"), self.placement.spacing)

    def _answer(
        self, prompt: Prompt, attention: Attention, index: int, given: npt.NDArray[np.bool_] | None, seed: int,
        seeds: int, sampling: Sampling, labels: npt.NDArray[np.uint8] | None, progress: Progress | None,
    ) -> PromptResult:  # fmt: skip
        settings, backbone = self.segmenter.settings, self.segmenter.backbone
        attended = self.attended(attention, prompt, index)
        score = float(attention.score[index])
        suspicious = self.suspicious(prompt, attended, score)
        candidate = settings.dilated(suspicious, self.placement.spacing) if given is None else given
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
                self.second_look(prompt) if given is None and settings.fall > 0 else None,
                given is not None,
            )
            evidence = convincing(evidence, suspicious, settings, self.placement.spacing)
        with self.clock("refine"):
            if given is None:
                evidence = replace(evidence, telling=self.telling(prompt, suspicious))
            refined = refine(evidence, attended, settings, given is not None, self.segmenter.residual_head)
        with self.clock("restore"):
            back = self.placement.inverse
            probability = np.clip(back(refined.probability, "linear"), 0, 1)
            if given is None:  # a user's region may be as small as it likes
                probability = without_crumbs(probability, settings.min_lesion_ml / self.volume.voxel_ml)
            mask = (probability > 0.5).astype(np.uint8)
            return PromptResult(
                understood=prompt,
                mask=mask,
                probability=probability,
                attention=np.clip(back(attended, "linear"), 0, 1),
                pseudo_healthy=self._pseudo_healthy(evidence, seed),
                residual=back(refined.residual, "linear"),
                uncertainty=back(refined.spread, "linear") if seeds > 1 else None,
                lesions=find_lesions(mask, self.volume, probability),
                image_score=score,
                warnings=self._prompt_warnings(prompt, given is not None),
            )

    def _prompt_warnings(self, prompt: Prompt, given: bool) -> tuple[str, ...]:
        if prompt.negated:
            return (f"The prompt {prompt.text!r} says that nothing is there, so nothing was segmented.",)
        asked = self.segmenter.asked(prompt)
        if asked is not prompt and not given:
            searched = "the whole scan; tumours of other organs count too"
            if search := self.search(prompt):
                searched = f"the {prompt.anatomy} that was found in it{search.hint}"
            return (
                f"The model saw no tumour of the {prompt.anatomy} in training, so {prompt.text!r} was asked as "
                f"{asked.text!r} in {searched}.",
            )
        return ()

    def _pseudo_healthy(self, evidence: Evidence, seed: int) -> npt.NDArray[Any]:
        """Paste the healed regions into the scan, with its own texture; every voxel outside the mask keeps its bits."""
        scan = self.volume.array
        healed = scan.astype(np.result_type(scan.dtype, np.float32))
        if not evidence.mask.any():
            return healed
        weight = self.placement.inverse(evidence.feather(), "linear")
        inside = weight > 0
        painted = self.intensity.inverse(self.placement.inverse(evidence.healthy, "linear"))
        painted = textured(healed, painted, inside, self.volume.spacing.tolist(), seed)
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
    result: npt.NDArray[np.float32] = finer(probability, shape).cpu().numpy()
    return result
