"""What the frozen model makes of training patches: computed for each batch, or once per patch and kept on disk."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffugts.backbone.conditions import Conditions
from diffugts.backbone.latent_diffusion import LatentDiffusion
from diffugts.backbone.weights import header
from diffugts.errors import InputError
from diffugts.training.bank import Patch
from diffugts.training.loop import Batch


def conditions_of(patch: Patch) -> Conditions:
    """As at inference: CT or MR, the sequence unknown."""
    return Conditions(patch.item.spacing, patch.item.modality.split("-")[0])


def features(model: LatentDiffusion, image: Tensor, patches: Sequence[Patch]) -> list[Tensor]:
    """Frozen stage features of patches (N, 1, S, S, S), (N, C_l, ·) each."""
    conditions = [conditions_of(patch) for patch in patches]
    return [stage.clone() for stage in model.encode_patches(image, conditions).stages]


class FeatureCache:
    """Features of a run's patches on disk, one file each in half precision, made when they are first asked for.

    A run with ``RunOptions.distinct`` patches passes the backbone once for each; later runs on the same patches, for
    longer or with another seed of their weights, not at all. Each file tells the image that it was made from: where
    another version of the code draws another patch of that number, its features are made anew.
    """

    def __init__(self, root: Path, key: dict[str, Any]) -> None:
        """Open or start a cache.

        Args:
            key: all that the features depend on; a folder that was filled under another one is refused.

        Raises:
            InputError: the folder holds features of something else.
        """
        root.mkdir(parents=True, exist_ok=True)
        self.root, note = root, root / "cache.json"
        text = json.dumps(key, indent=2, sort_keys=True) + "\n"
        if note.exists() and note.read_text(encoding="utf-8") != text:
            raise InputError(f"{root} keeps features of another model or other patches; give an empty folder")
        note.write_text(text, encoding="utf-8")

    def features(self, model: LatentDiffusion, batch: Batch) -> list[Tensor]:
        """As the function of that name, of a batch whose draws name its patches."""
        images = [_checksum(patch) for patch in batch.patches]
        missing = {draw: n for n, draw in enumerate(batch.draws) if self._image_of(draw) != images[n]}
        if missing:
            places = list(missing.values())
            made = features(model, batch.image[places], [batch.patches[n] for n in places])
            for row, (draw, n) in enumerate(missing.items()):
                self._keep(draw, [stage[row].to(torch.bfloat16) for stage in made], images[n])
        rows = [self._read(draw) for draw in batch.draws]
        return [torch.stack(parts).to(model.device).float() for parts in zip(*rows, strict=True)]

    def _path(self, draw: int) -> Path:
        return self.root / f"{draw:07d}.safetensors"

    def _image_of(self, draw: int) -> str:
        """Checksum of the image that a patch's features were made from; empty where there are none."""
        path = self._path(draw)
        return header(path).get("image", "") if path.exists() else ""

    def _keep(self, draw: int, stages: Sequence[Tensor], image: str) -> None:
        from safetensors.torch import save_file

        path = self._path(draw)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        tensors = {str(i): stage.contiguous().cpu() for i, stage in enumerate(stages)}
        save_file(tensors, temporary, {"image": image})
        os.replace(temporary, path)

    def _read(self, draw: int) -> list[Tensor]:
        from safetensors.torch import load_file

        stages = load_file(self._path(draw))
        return [stages[str(i)] for i in range(len(stages))]


def _checksum(patch: Patch) -> str:
    return f"{zlib.crc32(patch.image.tobytes()):08x}"
