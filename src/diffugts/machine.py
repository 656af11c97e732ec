"""What this machine has, what is left of it, and what this process took."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from diffugts.errors import InputError

if TYPE_CHECKING:
    import torch


def available_memory_gb() -> float | None:
    """Memory that a new process can have, GB; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    return kilobytes * 1024 / 1e9


def peak_memory_gb() -> float | None:
    """The most memory that this process has held so far, GB; None where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)


def resident_gb() -> float | None:
    """Memory that this process holds now, GB; None where the system does not say (only Linux does)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return None
    import os

    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def find_device(wanted: str) -> torch.device:
    """Where to run: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:<i>".

    Raises:
        InputError: no such device.
    """
    import torch

    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise InputError(f"device must be auto, cpu, cuda or cuda:<i>, not {wanted!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {wanted!r} was asked for, but PyTorch sees no GPU; use --device cpu")
    return device
