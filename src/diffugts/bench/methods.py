"""What is compared: each method turns one case into an answer on the scan's own grid.

A subject makes what several methods need (scan, truth, encoding, attention, inpainting) once, when it is first asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from diffugts.bench import baselines
from diffugts.bench.cases import CaseItem
from diffugts.bench.metrics import Map, Mask
from diffugts.errors import InputError
from diffugts.intensity import IntensityMap
from diffugts.io import read_mask, read_volume
from diffugts.volume import Volume

if TYPE_CHECKING:
    from diffugts.bench.rival import Rival
    from diffugts.case import Case
    from diffugts.heads import Settings
    from diffugts.prompts import Prompt
    from diffugts.refine import Evidence
    from diffugts.segmenter import Segmenter

Needs = Literal["nothing", "model", "rival", "folder"]


@dataclass(frozen=True, eq=False)
class Answer:
    """What a method says of a case, (I, J, K) on the scan's grid.

    Attributes:
        mask: bool.
        values: float32, at least 0, to rank voxels by; None where there is nothing but the mask.
        calibrated: whether ``values`` is a probability.
        score: image-level probability that there is a tumour, where the method gives one.
    """

    mask: Mask
    values: Map | None = None
    calibrated: bool = False
    score: float | None = None


class Subject:
    """One case under test."""

    def __init__(self, item: CaseItem, load: Callable[[], Segmenter], seed: int = 0) -> None:
        """``load`` gives the segmenter for this case; it is called when a method first needs it."""
        self.item, self._load, self.seed = item, load, seed
        self._painted: dict[int, Evidence] = {}

    @cached_property
    def volume(self) -> Volume:
        """The scan."""
        return read_volume(self.item.image)

    @cached_property
    def truth(self) -> Mask:
        """The expert's mask, all False for a scan without tumour."""
        if self.item.tumor is None:
            return np.zeros(self.volume.shape, np.bool_)
        mask = read_mask(self.item.tumor, self.volume)
        if not self.item.labels:
            return mask
        from diffugts.io.nifti import read_nifti

        values = read_nifti(self.item.tumor).array.reshape(mask.shape)
        return mask & np.isin(values, self.item.labels)

    @cached_property
    def intensity(self) -> IntensityMap:
        """Its map to 0..1."""
        modality = self.item.modality.lower()
        if modality not in ("ct", "mr"):
            raise InputError(f"the case {self.item.id!r} has modality {self.item.modality!r}; it must be CT or MR.")
        return IntensityMap.of("ct" if modality == "ct" else "mr", self.volume.array)

    @cached_property
    def encoded(self) -> Case:
        """The scan as the model sees it; one encoding for all methods."""
        return self._load().encode(self.volume, modality=self.item.modality.lower())

    @property
    def settings(self) -> Settings:
        """Those of the head that judges this case."""
        return self.encoded.segmenter.settings

    @cached_property
    def prompt(self) -> Prompt:
        """The prompt as it is understood."""
        from diffugts.prompts import parse

        return parse(self.item.prompt)

    @cached_property
    def attended(self) -> tuple[Map, float]:
        """P_abn (D, H, W) on the model grid, and the image-level score."""
        if self.encoded.segmenter.head is None:
            raise InputError("the model has no attention heads; fit them with `diffugts fit`.")
        found = self.encoded.attention([self.prompt])
        return self.encoded.attended(found, self.prompt), float(found.score[0])

    @cached_property
    def suspicious(self) -> Mask:
        """Where attention points, (D, H, W) on the model grid; empty for a negated prompt."""
        return self.encoded.suspicious(self.prompt, *self.attended)

    @cached_property
    def telling(self) -> Map | None:
        """What tells the suspicious from the rest of the organ, (D, H, W) on the model grid."""
        return self.encoded.telling(self.prompt, self.suspicious)

    def evidence(self, seeds: int) -> Evidence:
        """What inpainting shows under that many seeds; each seed is painted once, whoever asks."""
        from diffugts.healing import Sampling
        from diffugts.refine import convincing, heal_candidate

        case, settings = self.encoded, self.settings
        candidate = settings.dilated(self.suspicious, case.placement.spacing)
        for seed in range(self.seed, self.seed + seeds):
            if seed not in self._painted:
                again = seed == self.seed and settings.fall > 0
                self._painted[seed] = heal_candidate(
                    case.segmenter.backbone, case.encoding.latent, candidate, case.conditions, [seed], Sampling(),
                    smooth_vox=settings.fusion.smooth_vox, look=case.second_look(self.prompt) if again else None,
                )  # fmt: skip
        every = [self._painted[seed] for seed in range(self.seed, self.seed + seeds)]
        signed, feature = (tuple(getattr(one, name)[0] for one in every) for name in ("signed", "feature"))
        found = replace(every[0], signed=signed, feature=feature, telling=self.telling)
        return convincing(found, self.suspicious, settings, case.placement.spacing)


@dataclass(frozen=True)
class Method:
    """A way to answer.

    Attributes:
        name: as on the command line and in the tables.
        about: what it is, in a phrase for results.md.
        run: subject to answer.
        needs: what its answers depend on beside the scan; decides what `--resume` compares.
    """

    name: str
    about: str
    run: Callable[[Subject], Answer]
    needs: Needs = "model"


def thresholded(subject: Subject, rule: Callable[[Map, Mask], Mask]) -> Answer:
    """A threshold on the scan's own intensities; voxels are ranked by intensity inside the body."""
    image = subject.intensity.forward(subject.volume.array)
    body = subject.volume.array > subject.intensity.body_threshold
    return Answer(rule(image, body), np.where(body, image, 0).astype(np.float32))


def anomaly(subject: Subject) -> Answer:
    """Reconstruction-only anomaly detection with the same flow: no text, no attention."""
    case = subject.encoded
    residual = baselines.anomaly_map(case.segmenter.backbone, case.encoding.latent, case.conditions, subject.seed)
    values = np.maximum(case.placement.inverse(residual, "linear"), 0)
    body = subject.volume.array > subject.intensity.body_threshold
    return Answer(baselines.otsu(values, body), values)


def attention(subject: Subject) -> Answer:
    """The suspicious region of the attention map, without any inpainting."""
    back = subject.encoded.placement.inverse
    attended, score = subject.attended
    mask = back(subject.suspicious.astype(np.float32), "linear") > 0.5
    return Answer(mask, np.clip(back(attended, "linear"), 0, 1), True, score)


def plain(subject: Subject, feature: bool) -> Answer:
    """Otsu on the fixed sum of attention, pixel residual and, if asked for, feature residual.

    Weights are the model's own; a residual that it gives no weight gets the default one, so that its part is seen.
    """
    from diffugts.residual import Fusion

    own, default = subject.settings.fusion, Fusion()
    weights = {
        "pixel": own.pixel or default.pixel,
        "feature": (own.feature or default.feature) if feature else 0.0,
    }
    return refined(subject, replace(subject.settings, fusion=replace(own, **weights), form="plain"))


def learned(subject: Subject) -> Answer:
    """The residual head over attention, pixel and feature residual, whether or not it is the model's default."""
    if subject.encoded.segmenter.residual_head is None:
        raise InputError("the model has no residual head.")
    return refined(subject, replace(subject.settings, form="learned"))


def likelihood(subject: Subject) -> Answer:
    """Bayes' rule with the scan's own densities, whether or not it is the model's default."""
    return refined(subject, replace(subject.settings, form="likelihood"))


def shipped(subject: Subject, seeds: int = 1) -> Answer:
    """The whole method as `Case.segment` gives it, over several seeds if asked for."""
    return refined(subject, subject.settings, seeds)


def refined(subject: Subject, settings: Settings, seeds: int = 1) -> Answer:
    """Inpainting, residuals and their fusion under the given settings; candidates are those of the model's own."""
    from diffugts.lesions import without_crumbs
    from diffugts.refine import refine

    attended, score = subject.attended
    found = refine(subject.evidence(seeds), attended, settings, head=subject.encoded.segmenter.residual_head)
    probability = np.clip(subject.encoded.placement.inverse(found.probability, "linear"), 0, 1)
    probability = without_crumbs(probability, settings.min_lesion_ml / subject.volume.voxel_ml)
    return Answer(probability > 0.5, probability, True, score)


def predicted(subject: Subject, folder: Path) -> Answer:
    """Another tool's answer, `<case id>.nii.gz` or `.nii`: labels (not 0) or probabilities (at least 0.5)."""
    names = [folder / f"{subject.item.id}{suffix}" for suffix in (".nii.gz", ".nii")]
    path = next((path for path in names if path.exists()), None)
    if path is None:
        raise InputError(f"{folder} has no {names[0].name}; name each prediction after its case.")
    from diffugts.io.nifti import read_nifti

    mask = read_mask(path, subject.volume)
    values = read_nifti(path).array.reshape(mask.shape)
    if values.dtype.kind != "f" or values.min() < 0 or values.max() > 1:
        return Answer(mask)
    return Answer(mask, values.astype(np.float32), True)


def supervised(subject: Subject, rival: Callable[[str], Rival]) -> Answer:
    """A supervised 3D U-Net that is asked nothing: it finds any tumour."""
    case = subject.encoded
    image = subject.intensity.forward(case.placement.forward(subject.volume.array))
    probability = np.clip(case.placement.inverse(rival(subject.item.anatomy).probability(image), "linear"), 0, 1)
    return Answer(probability > 0.5, probability, True)


def methods(
    seeds: int = 1,
    predictions: Mapping[str, Path] | None = None,
    rival: Callable[[str], Rival] | None = None,
    residual_head: bool = False,
) -> dict[str, Method]:
    """Every method that can run with what is given, by name, in the tables' order."""
    found = [
        Method("otsu", "Otsu's threshold inside the body, the brighter class", _rule(baselines.otsu), "nothing"),
        Method(
            "multi-otsu",
            "the brightest of three Otsu classes inside the body, opened, largest connected part",
            _rule(baselines.brightest),
            "nothing",
        ),
        Method(
            "multi-otsu-middle",
            "the middle of three Otsu classes of the whole scan (air, soft tissue, bright), opened, largest part",
            _rule(baselines.middle),
            "nothing",
        ),
        Method("anomaly", "the scan against the flow's reconstruction of it from half noise, Otsu; no text", anomaly),
    ]
    if rival is not None:
        run = partial(supervised, rival=rival)
        found.append(Method("unet", "supervised 3D U-Net, trained on the same seen data", run, "rival"))
    found += [
        Method("attention", "anomaly-aware attention alone", attention),
        Method("+pixel", "attention and pixel residual, fixed weights, Otsu", partial(plain, feature=False)),
        Method("+feature", "attention, pixel and feature residual, fixed weights, Otsu", partial(plain, feature=True)),
        Method("likelihood", "attention, and what scan, residual and features say, by Bayes' rule", likelihood),
        *([Method("learned", "attention and both residuals through the residual head", learned)] * residual_head),
        Method("full", "the whole method with the model's own settings", shipped),
    ]
    if seeds > 1:
        found.append(Method("+seeds", f"the whole method, mean of {seeds} seeds", partial(shipped, seeds=seeds)))
    for name, folder in (predictions or {}).items():
        run = partial(predicted, folder=folder)
        found.append(Method(f"predictions:{name}", "masks from another tool", run, "folder"))
    return {method.name: method for method in found}


def _rule(rule: Callable[[Map, Mask], Mask]) -> Callable[[Subject], Answer]:
    return partial(thresholded, rule=rule)
