"""MAISI in miniature: the same networks, conditions and files as NVIDIA's, with 8 to 16 channels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from diffugts.backbone.config import ModelConfig
from diffugts.backbone.latent_diffusion import LatentDiffusion
from diffugts.backbone.networks import build_controlnet

SHIPPED = Path(__file__).resolve().parents[1] / "src" / "diffugts" / "models"


def small(arguments: dict[str, Any], channels: list[int]) -> dict[str, Any]:
    """A network's arguments with few channels."""
    heads = {"num_head_channels": [0, 0, 8, 8]} if "num_head_channels" in arguments else {}
    embedding = (
        {"conditioning_embedding_num_channels": [8, 8, 8]} if "conditioning_embedding_in_channels" in arguments else {}
    )
    return {**arguments, "num_channels": channels, "norm_num_groups": 4, "num_res_blocks": 1, **heads, **embedding}


def maisi_config(name: str = "maisi-ct-rflow", **changes: Any) -> ModelConfig:
    """The shipped configuration of a MAISI model in miniature."""
    values = json.loads((SHIPPED / name / "config.json").read_text())
    values["autoencoder"] = {**small(values["autoencoder"], [8, 8, 16]), "num_res_blocks": [1, 1, 1]}
    values["unet"] = small(values["unet"], [8, 8, 16, 16])
    values["controlnet"] = values["controlnet"] and small(values["controlnet"], [8, 8, 16, 16])
    return ModelConfig.from_json(json.dumps({**values, "window": 64, "steps": 2, **changes}))


def maisi_model(name: str = "maisi-ct-rflow", seed: int = 0, **changes: Any) -> LatentDiffusion:
    """Random weights, none of them zero."""
    torch.manual_seed(seed)
    model = LatentDiffusion(maisi_config(name, **changes))
    if model.config.controlnet:
        model.controlnet = build_controlnet(model.config)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model.frozen()


def models_folder(folder: Path) -> Path:
    """The package's model folders in miniature, under their own names: configurations and sources, no weights."""
    for source in sorted(SHIPPED.glob("*/sources.json")):
        target = folder / source.parent.name
        target.mkdir(parents=True)
        (target / "config.json").write_text(maisi_config(source.parent.name).to_json())
        (target / "sources.json").write_text(source.read_text())
    return folder


def nvidia_files(
    folder: Path, name: str = "maisi-ct-rflow", scale_factor: float = 0.9
) -> tuple[LatentDiffusion, list[Path]]:
    """A random model and its checkpoints under NVIDIA's names and in its nestings: autoencoder, unet, controlnet."""
    model = maisi_model(name, scale_factor=scale_factor)
    sources = json.loads((SHIPPED / name / "sources.json").read_text())["files"]
    states: dict[str, Any] = {
        "autoencoder": model.autoencoder.net.state_dict(),
        "unet": {"epoch": 3, "unet_state_dict": model.unet.state_dict(), "scale_factor": torch.tensor(scale_factor)},
    }
    if model.controlnet is not None:
        states["controlnet"] = {"controlnet_state_dict": model.controlnet.state_dict()}
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / sources[part]["url"].rsplit("/", 1)[-1] for part in states]
    for path, state in zip(files, states.values(), strict=True):
        torch.save(state, path)
    return model, files
