"""Zero-shot tumour segmentation in 3D CT and MR from a text prompt, with a frozen latent diffusion model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffugts._version import __version__
from diffugts.errors import DiffuGTSError, InputError, PromptError, WeightsError

if TYPE_CHECKING:
    from diffugts.case import Case as Case
    from diffugts.lesions import Lesion as Lesion
    from diffugts.prompts import Prompt as Prompt
    from diffugts.result import PromptResult as PromptResult
    from diffugts.result import Result as Result
    from diffugts.segmenter import Segmenter as Segmenter
    from diffugts.volume import Volume as Volume

# Loaded on first use: torch and its friends take seconds, and `diffugts --help` must not wait for them.
_LAZY = {
    "Case": "diffugts.case",
    "Lesion": "diffugts.lesions",
    "Prompt": "diffugts.prompts",
    "PromptResult": "diffugts.result",
    "Result": "diffugts.result",
    "Segmenter": "diffugts.segmenter",
    "Volume": "diffugts.volume",
}

__all__ = [
    "Case",
    "DiffuGTSError",
    "InputError",
    "Lesion",
    "Prompt",
    "PromptError",
    "PromptResult",
    "Result",
    "Segmenter",
    "Volume",
    "WeightsError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'diffugts' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
