"""Model folders: what ships with the package, where it lies, whether it is intact.

A model is a folder with ``config.json`` (the networks), ``weights.json`` (sha256, size, licence and origin of each
file), safetensors files and a model card. Weights are stored in half precision and used in single.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffugts.backbone.home import SOURCES, home_folder, how_to_get, missing_parts, part_path, read_sources
from diffugts.errors import WeightsError

if TYPE_CHECKING:
    import torch

    from diffugts.backbone.latent_diffusion import LatentDiffusion

MODELS = Path(__file__).parent.parent / "models"
AUTOENCODER, UNET, ATTENTION = "autoencoder.safetensors", "unet.safetensors", "attention.safetensors"


@dataclass(frozen=True)
class WeightFile:
    """One file of a model, as ``weights.json`` records it."""

    path: str
    sha256: str
    bytes: int
    licence: str
    origin: str


@dataclass(frozen=True)
class ModelInfo:
    """A model on this machine.

    Attributes:
        name: what ``--model`` takes.
        licence: of its weights.
        files: what it is made of.
        origin: who trained it, on what, in a phrase.
        reconstruction_mae: mean error of encoding and decoding real scans, by modality: HU for "ct", 0..1 for "mr".
    """

    name: str
    licence: str
    files: tuple[WeightFile, ...]
    origin: str
    reconstruction_mae: dict[str, float] = field(default_factory=dict)

    @property
    def non_commercial(self) -> bool:
        """Whether the licence forbids commercial use."""
        return "non-commercial" in self.licence.lower()

    def to_dict(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return {**asdict(self), "non_commercial": self.non_commercial}


def model_folder(name_or_path: str | Path, home: str | Path | None = None) -> Path:
    """The folder of a model, by its name or as a path.

    Args:
        home: where weights that do not ship lie; see ``home_folder``.

    Raises:
        WeightsError: there is none, or its weights are not on this machine.
    """
    shipped, fetched = MODELS / str(name_or_path), home_folder(home) / "models" / str(name_or_path)
    for folder in (shipped, fetched, Path(name_or_path)):
        partial = folder == fetched and missing_parts(folder)
        if (folder / "config.json").is_file() and not (folder / SOURCES).is_file() and not partial:
            return folder
    if (shipped / SOURCES).is_file():
        raise WeightsError(how_to_get(shipped.name, read_sources(shipped).licence))
    names = ", ".join(path.parent.name for path in sorted(MODELS.glob("*/config.json")))
    raise WeightsError(f"there is no model {str(name_or_path)!r}; give one of: {names}, or a folder with config.json")


def read_info(folder: Path) -> ModelInfo:
    """What a model folder says of itself.

    Raises:
        WeightsError: ``weights.json`` is missing or not readable.
    """
    try:
        data = json.loads((folder / "weights.json").read_text(encoding="utf-8"))
        files = tuple(WeightFile(**file) for file in data["files"])
        return ModelInfo(folder.name, data["licence"], files, data["origin"], data.get("reconstruction_mae", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"model {folder.name!r} has no usable weights.json ({error}); install it again") from error


def available() -> list[ModelInfo]:
    """The models that ship with the package."""
    return [read_info(path.parent) for path in sorted(MODELS.glob("*/weights.json"))]


def installed(home: str | Path | None = None) -> list[Path]:
    """Folders of the models whose weights are in the home folder."""
    return [path.parent for path in sorted(home_folder(home).glob("models/*/weights.json"))]


def not_installed(home: str | Path | None = None) -> list[ModelInfo]:
    """Models that the package knows and whose weights are neither shipped nor in the home folder."""
    here = {folder.name for folder in installed(home) if not missing_parts(folder)}
    folders = [path.parent for path in sorted(MODELS.glob(f"*/{SOURCES}")) if path.parent.name not in here]
    known = [(folder.name, read_sources(folder)) for folder in folders]
    return [ModelInfo(name, sources.licence, (), sources.origin) for name, sources in known]


def verify(name_or_path: str | Path) -> list[str]:
    """Compare a model's files with their records; one sentence per problem, none when all is well."""
    folder, problems = model_folder(name_or_path), []
    for file in read_info(folder).files:
        path = folder / file.path
        if not path.is_file():
            problems.append(f"{file.path} is missing; install the model again")
        elif sha256_of(path) != file.sha256:
            problems.append(f"{file.path} differs from its sha256 {file.sha256[:12]}…; install the model again")
    return problems


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file as float32.

    Raises:
        WeightsError: missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise WeightsError(f"weight file {path.name} is missing from {path.parent.name!r}; install the model again")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"weight file {path.name} cannot be read ({error}); install the model again") from error
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def header(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, empty where it has none or cannot be read (``load_tensors`` says why)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def save_tensors(
    path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None, half: bool = True
) -> None:
    """Write tensors, in half precision unless told otherwise, atomically."""
    from safetensors.torch import save_file

    from diffugts.io import atomic_path

    kept = {k: (v.half() if half and v.is_floating_point() else v).contiguous() for k, v in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(kept, temporary, metadata)
        temporary.chmod(0o644)  # a model is shared, and safetensors makes its files private


def load_strictly(module: torch.nn.Module, tensors: dict[str, torch.Tensor], what: str) -> None:
    """Load weights whose keys and shapes must all agree.

    Raises:
        WeightsError: they do not; the sentence names the first that differ.
    """
    wrong = differences(module, tensors)
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsError(f"{what} does not fit this network: {'; '.join(wrong[:3])}{more}")
    module.load_state_dict(tensors)


def differences(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> list[str]:
    """How tensors differ from a module's in keys and shapes, a phrase each; none where they fit."""
    own = module.state_dict()
    wrong = [f"{key} is missing" for key in own if key not in tensors]
    wrong += [f"{key} is unknown" for key in tensors if key not in own]
    wrong += [
        f"{key} has shape {tuple(tensors[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    return wrong


def load_backbone(folder: Path, controlnet: bool = False) -> LatentDiffusion:
    """The frozen learner of a model folder, on the CPU.

    The scale factor in the UNet file's header, where there is one, goes before the configuration's.

    Args:
        controlnet: load the ControlNet as well.

    Raises:
        WeightsError: files missing, damaged or of another network.
    """
    from diffugts.backbone.config import ModelConfig
    from diffugts.backbone.latent_diffusion import LatentDiffusion
    from diffugts.backbone.networks import build_controlnet

    config = ModelConfig.read(folder / "config.json")
    if controlnet and not (config.controlnet and part_path(folder, "controlnet").is_file()):
        raise WeightsError(f"model {config.name!r} has no ControlNet here, which an organ map needs")
    if (scale := header(folder / UNET).get("scale_factor")) is not None:
        config = replace(config, scale_factor=float(scale))
    model = LatentDiffusion(config)
    load_strictly(model.autoencoder, load_tensors(folder / AUTOENCODER), AUTOENCODER)
    load_strictly(model.unet, load_tensors(folder / UNET), UNET)
    if controlnet:
        model.controlnet = build_controlnet(config)
        load_strictly(model.controlnet, load_tensors(part_path(folder, "controlnet")), "controlnet.safetensors")
    return model.frozen()


def write_record(folder: Path, licence: str, origin: str, reconstruction_mae: dict[str, float] | None = None) -> None:
    """Write ``weights.json`` for the safetensors files of a folder, held-out heads included."""
    from diffugts.io import atomic_write

    files = [
        WeightFile(path.relative_to(folder).as_posix(), sha256_of(path), path.stat().st_size, licence, origin)
        for path in sorted(folder.rglob("*.safetensors"))
    ]
    record = {
        "licence": licence,
        "origin": origin,
        "reconstruction_mae": reconstruction_mae or {},
        "files": [asdict(file) for file in files],
    }
    atomic_write(folder / "weights.json", json.dumps(record, indent=2) + "\n")
