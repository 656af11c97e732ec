"""What a latent diffusion model is made of, as data: one JSON file per model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from diffugts.errors import WeightsError

# Class codes of NVIDIA's MAISI models (modality_mapping.json of NV-Generate-CTMR); `compact` is trained with the
# same ones. 0 is also what guidance leaves the modality out with.
MODALITY_CODES = {
    "unknown": 0, "ct": 1, "ct-plain": 2, "ct-contrast": 3,
    "mr": 8, "mr-t1": 9, "mr-t2": 10, "mr-flair": 11, "mr-pd": 12, "mr-dwi": 13, "mr-adc": 14, "mr-ssfp": 15,
    "mr-mra": 16, "mr-t1c": 17, "mr-swi": 20, "mr-t1-stripped": 29, "mr-t2-stripped": 30, "mr-flair-stripped": 31,
    "mr-swi-stripped": 32, "mr-mra-stripped": 33,
}  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    """Configuration of a frozen latent diffusion model.

    Attributes:
        name: the model's name on the command line.
        licence: licence of its weights, shown on load and kept in every manifest.
        spacing_mm: working spacing in mm; scans are resampled to about this.
        autoencoder: keyword arguments of MONAI's ``AutoencoderKlMaisi``.
        unet: keyword arguments of MONAI's ``DiffusionModelUNetMaisi``.
        space_to_depth: block side folded into channels before the autoencoder; 1 for MAISI itself.
        linear_shortcut: whether a fixed whitened linear code of stride³ blocks runs beside the autoencoder.
        spacing_scale: spacing in mm is multiplied by this before the UNet (100 for MAISI).
        scale_factor: latents are multiplied by it (s in z = E(x)·s).
        prediction: "flow" (v = x0 − noise, t in [0, 1]) or "epsilon" (DDPM, t in [0, train_steps)).
        train_steps: timesteps that the UNet's time embedding was trained on.
        steps: sampling steps by default.
        jumps: RePaint jumps per step (flow only), so that what is painted agrees with its surroundings.
        clean_context: whether the flow learned to paint into surroundings without noise. Inpainting then shows it the
            scan as it is around the mask; else that is noised along, as in RePaint.
        window: most of the side of the encoder's and the attention's windows, voxels.
        feature_times: noise levels in [0, 1] at which the UNet is read as a further feature stage.
        image_window: the 0..1 intensities that the image stage spreads out, () for no such stage; 0.42 to 0.62 are
            −160 to 240 HU, where organs and most of their tumours lie.
        contrast: whether the last stage says how much each place differs from the tissue around it.
        clip_mr: whether MR intensities above the upper percentile are clipped (MAISI does not).
        guidance: classifier-free guidance by default: v = v0 + guidance · (v − v0), v0 without the modality; 0 and 1
            are none.
        time_base: latent voxels at which a flow's steps are evenly spaced; larger latents spend more of them near
            the noise, smaller ones fewer (see ``inpaint.flow_times``). 0: evenly spaced always.
        feature_stride: stages finer than this many image voxels are averaged down to it.
        modality: "ct" or "mr" where the model knows that alone, "" for both.
        controlnet: keyword arguments of MONAI's ``ControlNetMaisi``, empty for a model without one.
    """

    name: str
    licence: str
    spacing_mm: float
    autoencoder: dict[str, Any]
    unet: dict[str, Any]
    space_to_depth: int = 1
    linear_shortcut: bool = False
    spacing_scale: float = 100.0
    scale_factor: float = 1.0
    prediction: str = "flow"
    train_steps: int = 1000
    steps: int = 10
    jumps: int = 0
    clean_context: bool = False
    window: int = 96
    feature_times: tuple[float, ...] = field(default=(0.1,))
    image_window: tuple[float, ...] = ()
    contrast: bool = False
    clip_mr: bool = True
    guidance: float = 0.0
    time_base: int = 0
    feature_stride: int = 1
    modality: str = ""
    controlnet: dict[str, Any] = field(default_factory=dict)

    @property
    def stride(self) -> int:
        """Image voxels per latent voxel along each axis."""
        return int(self.space_to_depth * 2 ** (len(self.autoencoder["num_channels"]) - 1))

    @property
    def multiple(self) -> int:
        """Image sides must be a multiple of this many voxels for the UNet to halve them evenly."""
        return int(self.stride * 2 ** (len(self.unet["num_channels"]) - 1))

    @property
    def latent_channels(self) -> int:
        """Channels of the latent."""
        return int(self.autoencoder["latent_channels"])

    def to_json(self) -> str:
        """The configuration as JSON text; ``from_json`` reads it back equal."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Read a configuration.

        Raises:
            WeightsError: a key is missing or unknown.
        """
        data = json.loads(text)
        unknown = set(data) - {f.name for f in fields(cls)}
        if unknown:
            raise WeightsError(f"model configuration has unknown keys {sorted(unknown)}; is it of a newer version?")
        data.update({key: tuple(data[key]) for key in ("feature_times", "image_window") if key in data})
        try:
            return cls(**data)
        except TypeError as error:
            raise WeightsError(f"model configuration is incomplete: {error}") from error

    @classmethod
    def read(cls, path: Path) -> ModelConfig:
        """Read a configuration file (see ``from_json``)."""
        if not path.is_file():
            raise WeightsError(f"no model configuration at {path}; give a folder that holds config.json")
        return cls.from_json(path.read_text(encoding="utf-8"))
