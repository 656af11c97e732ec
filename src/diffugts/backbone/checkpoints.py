"""Files that NVIDIA publishes, or a user trained in NVIDIA's format, become a model folder of ours.

Nothing in a checkpoint is ever run: PyTorch reads it with ``weights_only=True`` and there is no switch for that.
Every key and shape is checked against the network of the model's configuration before anything is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffugts.backbone import weights
from diffugts.backbone.config import ModelConfig
from diffugts.backbone.home import Sources, home_folder, missing_parts, part_path, read_sources
from diffugts.backbone.weights import differences, header, load_tensors, save_tensors, write_record
from diffugts.errors import WeightsError

if TYPE_CHECKING:
    import torch

NESTS = {  # where a checkpoint keeps its tensors, and which part they then are; an autoencoder may hide as a "unet"
    "unet_state_dict": None,
    "controlnet_state_dict": "controlnet",
    "autoencoder_state_dict": "autoencoder",
    "state_dict": None,
    "model": None,
}
SHOWN = 5


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of one network, and the scale factor where the file has one."""

    tensors: dict[str, torch.Tensor]
    scale_factor: float | None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a ``.pt`` file in any of NVIDIA's nestings, or a safetensors file.

    Raises:
        WeightsError: no such file, one that holds more than tensors (nothing of it is run), or none at all.
    """
    import torch

    if not path.is_file():
        raise WeightsError(f"{path} does not exist or is no file; check the path")
    if path.suffix == ".safetensors":
        scale = header(path).get("scale_factor")
        return Checkpoint(load_tensors(path), None if scale is None else float(scale))
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file provokes
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(
            f"{path.name} is no plain checkpoint of tensors, so it was not loaded and nothing in it was run ({reason})"
        ) from error
    return _unwrapped(data, path.name)


def _unwrapped(data: Any, name: str) -> Checkpoint:
    """The tensors below whatever nesting; the scale factor may lie on any level."""
    import torch

    scale: float | None = None
    while isinstance(data, Mapping):
        if "scale_factor" in data:
            scale = float(torch.as_tensor(data["scale_factor"]))
        nest = next((key for key in NESTS if isinstance(data.get(key), Mapping)), None)
        if nest is None:
            break
        data = data[nest]
    tensors = {} if not isinstance(data, Mapping) else {k: v for k, v in data.items() if isinstance(v, torch.Tensor)}
    tensors.pop("scale_factor", None)
    if not tensors:
        raise WeightsError(f"{name} holds no network's tensors; it should be a state dict or hold one of {list(NESTS)}")
    if all(key.startswith("module.") for key in tensors):  # saved from a distributed run
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return Checkpoint(tensors, scale)


def networks(config: ModelConfig) -> dict[str, torch.nn.Module]:
    """The networks of a configuration by part, without memory (on the meta device): keys and shapes only."""
    import torch

    from diffugts.backbone.latent_diffusion import LatentDiffusion
    from diffugts.backbone.networks import build_controlnet

    with torch.device("meta"):
        model = LatentDiffusion(config)
        parts: dict[str, torch.nn.Module] = {"autoencoder": model.autoencoder.net, "unet": model.unet}
        if config.controlnet:
            parts["controlnet"] = build_controlnet(config)
    return parts


def which_part(parts: Mapping[str, torch.nn.Module], tensors: Mapping[str, torch.Tensor], name: str) -> str:
    """The part whose keys a checkpoint shares most.

    Raises:
        WeightsError: its keys or shapes differ from that part's; the sentence lists which.
    """
    shared = {part: len(net.state_dict().keys() & tensors.keys()) for part, net in parts.items()}
    best = max(shared, key=lambda part: (shared[part], part == "unet"))
    wrong = differences(parts[best], dict(tensors))
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise WeightsError(f"{name} does not fit the {best} of this model: {'; '.join(wrong[:SHOWN])}{more}")
    return best


def model_of(files: Sequence[Path]) -> str:
    """The model that files belong to, by the names under which they are published.

    Raises:
        WeightsError: the names fit none, or several.
    """
    names = {path.name for path in files}
    known = sorted(path.parent for path in weights.MODELS.glob("*/sources.json"))
    fits = [folder.name for folder in known if names <= {source.name for source in read_sources(folder).files.values()}]
    if len(fits) != 1:
        choice = ", ".join(fits or [folder.name for folder in known])
        raise WeightsError(f"the file names do not tell which model this is; name it with --model, one of: {choice}")
    return fits[0]


def import_files(files: Sequence[Path], model: str | None = None, home: str | Path | None = None) -> Path:
    """Check checkpoints against a model's networks and write them into the home folder as safetensors.

    Args:
        files: one per part, in any order; parts imported before stay.
        model: its name; None finds it from the file names.
        home: see ``home_folder``.

    Returns:
        The model's folder. ``home.missing_parts`` tells what it still lacks.

    Raises:
        WeightsError: a file that cannot be read or does not fit; then nothing is written.
    """
    name = model or model_of(files)
    source = weights.MODELS / name
    sources, config = read_sources(source), ModelConfig.read(source / "config.json")
    parts = networks(config)
    found: dict[str, Checkpoint] = {}
    for path in files:
        checkpoint = read_checkpoint(path)
        part = which_part(parts, checkpoint.tensors, path.name)
        if part in found:
            raise WeightsError(f"two of the files are the {part} of {name!r}; give one file per part")
        if part == "unet" and checkpoint.scale_factor is None:
            raise WeightsError(
                f"{path.name} has no scale_factor, which this model's latents need; it is not the file as published"
            )
        found[part] = checkpoint
    folder = home_folder(home) / "models" / name
    for part, checkpoint in found.items():
        _write_part(folder, part, checkpoint, sources)
    _finish(folder, config, sources)
    return folder


def _write_part(folder: Path, part: str, checkpoint: Checkpoint, sources: Sources) -> None:
    prefix = "net." if part == "autoencoder" else ""
    notes = {"licence": sources.licence, "origin": sources.origin}
    if checkpoint.scale_factor is not None:
        notes["scale_factor"] = repr(checkpoint.scale_factor)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {prefix + key: value for key, value in checkpoint.tensors.items()}
    save_tensors(part_path(folder, part), tensors, notes, half=False)


def _finish(folder: Path, config: ModelConfig, sources: Sources) -> None:
    """Configuration and record, the record last; both are written for incomplete models too, which cannot load."""
    from diffugts.io import atomic_write

    scale = header(part_path(folder, "unet")).get("scale_factor")
    if scale is not None:
        config = replace(config, scale_factor=float(scale))
    atomic_write(folder / "config.json", config.to_json())
    write_record(folder, sources.licence, f"{sources.origin} ({sources.licence_url})")


def summary(folder: Path) -> dict[str, Any]:
    """What an import left: for JSON."""
    record = json.loads((folder / "weights.json").read_text(encoding="utf-8"))
    return {"model": folder.name, "folder": str(folder), "missing": missing_parts(folder), **record}
