"""Who judges a case: the head, and the supervised rival, that never saw tumours of its anatomy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from diffugts.bench.cases import CaseItem
from diffugts.errors import DiffuGTSError, InputError

if TYPE_CHECKING:
    from diffugts.bench.methods import Method
    from diffugts.bench.rival import Rival
    from diffugts.segmenter import Segmenter

SAME_AS = {"hepatic vessel": "liver", "head": "brain", "limb": "soft tissue"}
"""Anatomies of cases whose tumours go by another name among the held-out heads."""


def organ(anatomy: str) -> str:
    """The name under which heads and rivals leave a case's anatomy out: "brain", "soft tissue", "liver", …"""
    return SAME_AS.get(anatomy.lower(), anatomy.lower())


@dataclass(frozen=True)
class Options:
    """What is run, and how.

    Attributes:
        model, home, device: as for the segmenter.
        held_out: "auto": the head that never saw the case's anatomy; "none": the default head for all.
        methods: names; empty for all that can run.
        seed, seeds: of the inpainting; ``+seeds`` averages from ``seed`` on.
        predictions: folders of other tools' masks, by name.
        rival: a U-Net's file, or a folder with one per left-out anatomy.
        resume: keep records whose scan, truth, settings and weights are the same.
        save_masks: also write each mask to ``masks/<method>/<case>.nii.gz``.
    """

    model: str = "compact"
    device: str = "auto"
    held_out: str = "auto"
    methods: tuple[str, ...] = ()
    seed: int = 0
    seeds: int = 1
    predictions: Mapping[str, Path] = field(default_factory=dict)
    rival: Path | None = None
    resume: bool = False
    save_masks: bool = False
    home: Path | None = None


class Judges:
    """The segmenters of one model, and the rivals: those that left an anatomy out, where there are such.

    Each is loaded once, and all segmenters share one backbone.
    """

    def __init__(self, options: Options) -> None:
        from diffugts.backbone.weights import model_folder

        self.options, self.folder = options, model_folder(options.model, options.home)
        self.segmenter = cache(self._segmenter)
        self.hashes = cache(self._hashes)
        self.rival = cache(self._rival)

    def held_out(self, anatomy: str) -> str | None:
        """The name of the head for a case, None for the default one."""
        from diffugts.heads import held_out_heads

        name = organ(anatomy)
        return name if self.options.held_out == "auto" and name in held_out_heads(self.folder) else None

    @property
    def learned(self) -> bool:
        """Whether all heads that may judge have the learned form of the refinement."""
        from diffugts.heads import RESIDUAL, held_out_heads

        held_out = set(held_out_heads(self.folder).values()) if self.options.held_out == "auto" else set()
        return all((folder / RESIDUAL).is_file() for folder in (self.folder, *held_out))

    def _segmenter(self, held_out: str | None) -> Segmenter:
        from diffugts.segmenter import Segmenter

        loaded = Segmenter.from_pretrained(self.folder, self.options.device, held_out, home=self.options.home)
        return loaded if held_out is None else replace(loaded, backbone=self.segmenter(None).backbone)

    def _hashes(self, held_out: str | None) -> dict[str, str]:
        """sha256 of every file that decides what this head answers."""
        from diffugts.anatomy import LOCATOR, locator_file
        from diffugts.backbone.weights import sha256_of
        from diffugts.heads import heads_folder

        heads = heads_folder(self.folder, held_out)
        files = {path.name: path for folder in (self.folder, heads) for path in sorted(folder.glob("*.safetensors"))}
        files |= {name: self.folder / name for name in ("config.json", "weights.json")}
        files |= {"heads.json": heads / "heads.json", LOCATOR: locator_file(self.folder)}
        return {name: sha256_of(path) for name, path in sorted(files.items()) if path.is_file()}

    def rival_path(self, anatomy: str) -> Path | None:
        """The U-Net's file for cases of an anatomy, left out where the heads leave it out."""
        from diffugts.bench.rival import rival_file

        if self.options.rival is None:
            return None
        return rival_file(self.options.rival, organ(anatomy) if self.options.held_out == "auto" else None)

    def _rival(self, anatomy: str) -> Rival:
        from diffugts.bench.rival import load_rival

        path = self.rival_path(anatomy)
        if path is None:
            raise InputError("the method unet needs --rival with a trained U-Net.")
        return load_rival(path, self.segmenter(None).backbone.device)

    def notes(self, cases: Sequence[CaseItem], chosen: Sequence[Method]) -> Iterator[str]:
        """What a reader of the figures must know about this run, one sentence each."""
        anatomies = list(dict.fromkeys(case.anatomy for case in cases if case.tumor is not None))
        names, zero_shot = {method.name for method in chosen}, self.options.held_out == "auto"
        if any(method.needs == "model" and method.name != "anomaly" for method in chosen):
            if not zero_shot:
                yield "The default head judged every case; it may have seen tumours of the same anatomies."
            for anatomy in anatomies if zero_shot else []:
                if self.held_out(anatomy) is None:
                    yield (
                        f"Warning: the model has no head that never saw {anatomy} tumours. The default head judged "
                        "those cases (`held_out` is null), so their figures may not be zero-shot."
                    )
            if zero_shot and any(case.tumor is None for case in cases):
                yield "Scans without a tumour are judged by the default head unless one leaves their anatomy out."
        if "unet" in names:
            yield from (self._rival_note(anatomy) for anatomy in anatomies if zero_shot and self._knows(anatomy))
        elif not self.options.methods:
            yield "The supervised U-Net is left out: no --rival was given."

    def _knows(self, anatomy: str) -> bool:
        """Whether the U-Net for these cases saw such tumours in training."""
        try:
            return organ(anatomy) in self.rival(anatomy).seen
        except (DiffuGTSError, OSError):  # its cases have failed, and say why
            return False

    def _rival_note(self, anatomy: str) -> str:
        name = self.rival(anatomy).path.name
        return f"Warning: the U-Net {name} has seen {anatomy} tumours; its figures for them are not held out."
