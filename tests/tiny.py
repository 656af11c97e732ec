"""A model of a few thousand weights, random but seeded, with every part of the real one."""

from __future__ import annotations

from pathlib import Path

import torch

from diffugts.aova import AttentionConfig, AttentionHead
from diffugts.backbone.config import ModelConfig
from diffugts.backbone.latent_diffusion import LatentDiffusion
from diffugts.backbone.weights import write_record
from diffugts.heads import Settings, save_heads
from diffugts.training.pretrain import save_model


def tiny_config(**changes: object) -> ModelConfig:
    """`compact` in small: the same parts, 8 to 16 channels."""
    values: dict[str, object] = {
        "name": "tiny",
        "licence": "Apache-2.0",
        "spacing_mm": 2.0,
        "autoencoder": {
            "spatial_dims": 3, "in_channels": 8, "out_channels": 8, "latent_channels": 4,
            "num_channels": [8, 16], "num_res_blocks": [1, 1], "norm_num_groups": 4, "norm_eps": 1e-6,
            "attention_levels": [False, False], "with_encoder_nonlocal_attn": False,
            "with_decoder_nonlocal_attn": False, "use_checkpointing": False, "use_convtranspose": False,
            "norm_float16": True, "num_splits": 4, "dim_split": 1, "save_mem": False,
        },
        "unet": {
            "spatial_dims": 3, "in_channels": 4, "out_channels": 4, "num_channels": [8, 16], "num_res_blocks": 1,
            "attention_levels": [False, True], "num_head_channels": [0, 8], "norm_num_groups": 4,
            "use_flash_attention": True, "include_spacing_input": True, "num_class_embeds": 128,
            "resblock_updown": False, "include_fc": True,
        },
        "space_to_depth": 2,
        "linear_shortcut": True,
        "spacing_scale": 1.0,
        "scale_factor": 0.5,
        "steps": 2,
        "window": 32,
        "image_window": (0.42, 0.62),
        "contrast": True,
    }  # fmt: skip
    return ModelConfig(**{**values, **changes})  # type: ignore[arg-type]


def tiny_model(seed: int = 0, **changes: object) -> LatentDiffusion:
    """Random weights, and a linear code fitted to noise, so that nothing is zero."""
    torch.manual_seed(seed)
    model = LatentDiffusion(tiny_config(**changes))
    if model.autoencoder.linear is not None:
        model.autoencoder.linear.fit(torch.rand(500, 64))
    for parameter in model.parameters():  # MONAI starts some layers at zero: every path must count here
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model.frozen()


def tiny_folder(folder: Path, settings: Settings | None = None) -> Path:
    """A model folder with heads, as `from_pretrained` reads it."""
    model = tiny_model()
    save_model(model, folder, origin="random weights of a test")
    torch.manual_seed(1)
    head = AttentionHead(AttentionConfig.of(model.feature_channels, model.feature_strides, 384, "minilm"))
    save_heads(folder, head, settings or Settings(), seen=[])
    write_record(folder, "Apache-2.0", "random weights of a test")
    return folder
