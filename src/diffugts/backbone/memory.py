"""How much memory a model takes before it runs, and what size of a job fits.

The bytes that the networks hold at their worst moment are not guessed: they are run on shapes alone (PyTorch's meta
device, no numbers), while every allocation is counted. All of them grow with the number of voxels, so one small run
gives the bytes per latent voxel.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffugts.backbone.conditions import Conditions
from diffugts.backbone.config import ModelConfig
from diffugts.backbone.latent_diffusion import LatentDiffusion
from diffugts.machine import available_memory_gb

SHARE = 0.6  # of what is free that one box may take: maps and copies need the rest
ROOM = 3  # times a window's tensors: with more than that free, convolutions need no slabs
CONVOLUTIONS = (torch.ops.aten.conv3d.default, torch.ops.aten.convolution.default)
SMALLEST = 16**3  # latent voxels; less than that leaves the network nothing to look at


@dataclass(frozen=True)
class Costs:
    """Bytes at the worst moment per latent voxel, weights not counted.

    Attributes:
        encode: image to latent and every feature stage, outputs included.
        features: what of that stays: latent and stages.
        decode: latent to image. unet: one pass, one sample.
    """

    encode: float
    features: float
    decode: float
    unet: float


def costs(config: ModelConfig) -> Costs:
    """Bytes per latent voxel of a model, found once per configuration (under a second)."""
    return _costs(config.to_json())


@lru_cache(maxsize=8)
def _costs(text: str) -> Costs:
    config = ModelConfig.from_json(text)
    with torch.device("meta"):
        model = LatentDiffusion(config).frozen()
    side = 2 * config.multiple // config.stride
    voxels, where = side**3, Conditions((1.0, 1.0, 1.0), "unknown")

    def image() -> Tensor:
        return torch.empty(1, 1, *[side * config.stride] * 3, device="meta")

    def latent() -> Tensor:
        return torch.empty(1, config.latent_channels, side, side, side, device="meta")

    kept = model.encode_patches(image(), [where])
    features = sum(part.numel() * part.element_size() for part in (kept.latent, *kept.stages))
    unet = live_bytes(lambda: model.predict(latent(), torch.empty(1, device="meta"), [where]))
    small = live_bytes(lambda: model.predict(latent()[..., : side // 2], torch.empty(1, device="meta"), [where]))
    return Costs(
        encode=live_bytes(lambda: model.encode_patches(image(), [where])) / voxels,
        features=features / voxels,
        decode=live_bytes(lambda: model.decode(latent())) / voxels,
        unet=(unet - small) / (voxels / 2),  # what does not grow, such as embeddings, is not per voxel
    )


def live_bytes(run: Callable[[], Any]) -> int:
    """The most bytes of tensors that live at one moment of a run; tensors from before it do not count."""
    counter = _LiveBytes()
    with torch.no_grad(), counter:
        run()
    return counter.most


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it without annotations
    """Counts storages as operations make them and as they die, and the copy of its input, in its kernel's own order,
    that a convolution holds while it works: with it, encoding of 128³ by MAISI's autoencoder takes what it was seen
    to take (2.16 GB), and a quarter less without.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        reordered = args[0].numel() * args[0].element_size() if func in CONVOLUTIONS else 0
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.known:
                    self.known.add(key)
                    self.now += size
                    weakref.finalize(storage, self._gone, key, size)
        self.most = max(self.most, self.now + reordered)
        return result

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


BASE_GB = 0.75
"""Python with the libraries, and what their kernels keep for themselves."""

WINDOW_COPIES = 4  # of a window's features, in attention and where windows are added up
MODEL_MAPS, SCAN_MAPS = 48, 34  # bytes per voxel of the model grid and of the scan: masks, maps, and their way back


def peak_bytes(config: ModelConfig, weights: int, model_voxels: float, scan_voxels: float) -> float:
    """The most memory that encoding a scan and asking one prompt takes, everything counted but a box to repaint.

    Args:
        weights: bytes of the networks. model_voxels: on the model grid, padding included. scan_voxels: of the file.
    """
    found, latents = costs(config), model_voxels / config.stride**3
    window = min(latents, (config.window / config.stride) ** 3)
    features = found.features * latents
    encode = found.encode * window + (WINDOW_COPIES - 1) * found.features * window + 12 * model_voxels
    maps = max(MODEL_MAPS * model_voxels, SCAN_MAPS * scan_voxels + 12 * model_voxels)
    attention = WINDOW_COPIES * found.features * window
    return BASE_GB * 1e9 + weights + 4 * scan_voxels + features + max(encode, attention, maps)


def free_gb(device: torch.device) -> float | None:
    """Memory that this device can still give, GB; None where nobody says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (free + idle) / 1e9
    return available_memory_gb()


def wanted_splits(config: ModelConfig, device: torch.device) -> int:
    """In how many slabs the autoencoder's convolutions should work: the model's own number on a GPU that is tight.

    Slabs save what a GPU's convolutions need besides their tensors; the tensors themselves grow by a tenth to a
    third (counted on shapes), so elsewhere one slab is best.
    """
    free = free_gb(device)
    if device.type != "cuda" or free is None:
        return 1
    found, window = costs(config), (config.window / config.stride) ** 3
    plenty = ROOM * max(found.encode, found.decode) * window / 1e9
    return 1 if free > plenty else int(config.autoencoder.get("num_splits", 1))


def box_limit(model: LatentDiffusion) -> int:
    """The most latent voxels that the UNet, with guidance, or the decoder can take at once; 0 for any number."""
    free = free_gb(model.device)
    if free is None:
        return 0
    found = costs(model.config)
    return max(int(SHARE * free * 1e9 / max(found.decode, 2 * found.unet)), SMALLEST)
