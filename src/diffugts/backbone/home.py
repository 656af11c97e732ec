"""Weights that do not ship with the package: what they are, where they lie, what is still missing.

A model without shipped weights is a folder in the package with ``config.json`` and ``sources.json`` (files, where
from, licence). Its weights live in the home folder, ``<home>/models/<name>/``, as a complete model folder.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffugts.errors import WeightsError

SOURCES = "sources.json"
REQUIRED = ("autoencoder", "unet")


def home_folder(given: str | Path | None = None) -> Path:
    """Where downloaded and imported weights lie: as given, else ``DIFFUGTS_HOME``, else the user's data folder."""
    chosen = given or os.environ.get("DIFFUGTS_HOME")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "diffugts"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "diffugts"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "diffugts"


@dataclass(frozen=True)
class Source:
    """One file of a model as its makers publish it.

    Attributes:
        url: where it is.
        max_bytes: a download larger than this is refused.
        sha256: of the file, where its makers or we know it.
    """

    url: str
    max_bytes: int
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Sources:
    """Where a model's files come from and what may be done with them.

    Attributes:
        licence, licence_url: of the weights.
        origin: who made them.
        files: by part: "autoencoder", "unet", and where there is one "controlnet".
    """

    licence: str
    licence_url: str
    origin: str
    files: dict[str, Source]


def read_sources(folder: Path) -> Sources:
    """What a model folder of the package says about files that do not ship.

    Raises:
        WeightsError: it says nothing: a model that ships, or none of ours.
    """
    try:
        data: dict[str, Any] = json.loads((folder / SOURCES).read_text(encoding="utf-8"))
        files = {part: Source(**file) for part, file in data.pop("files").items()}
        return Sources(**data, files=files)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"model {folder.name!r} has no files to get or import; `diffugts weights list` shows those that have"
        ) from error


def part_path(folder: Path, part: str) -> Path:
    """The file of a model folder that holds a part: "autoencoder", "unet" or "controlnet"."""
    return folder / f"{part}.safetensors"


def missing_parts(folder: Path) -> list[str]:
    """Parts without which a model cannot run and whose files are not in its folder."""
    return [part for part in REQUIRED if not part_path(folder, part).is_file()]


def how_to_get(name: str, licence: str) -> str:
    """The sentence for a model whose weights are not here."""
    return (
        f"the weights of model {name!r} are not on this machine; get them with `diffugts weights get {name}` "
        f"or, from files that you have, with `diffugts weights import FILE... --model {name}` (licence: {licence})"
    )
