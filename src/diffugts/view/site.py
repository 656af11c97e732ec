"""What the viewer's page may fetch, and nothing else: the page, NiiVue, a description of the cases, their volumes.

Any server can hand it out: `Site.get(path)` answers every request. Paths are looked up in a table made at the
start, never joined to a folder, so no request can reach another file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffugts._version import __version__
from diffugts.errors import InputError
from diffugts.report.load import finished
from diffugts.report.planes import CT_WINDOWS, SOFT_TISSUE
from diffugts.report.save import REPORT, SCAN

STATIC = Path(__file__).with_name("static")
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
    ".gz": "application/octet-stream",
}
PAGE = ("viewer.html", "viewer.css", "viewer.js", "layers.js", "niivue/niivue.umd.js", "niivue/LICENSE")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self' data: blob:; worker-src blob:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",  # patients' images do not stay in the browser's cache
}
REPORT_HEADERS = {**HEADERS, "Content-Security-Policy": "frame-ancestors 'none'"}  # the report brings its own policy

# What can lie over the scan, from the bottom up: name, label, colour map, and whether it is shown at first.
LAYERS = (
    ("pseudo_healthy", "Pseudo-healthy", "scan", False),
    ("attention", "Attention", "inferno", False),
    ("residual", "Residual", "magma", False),
    ("uncertainty", "Uncertainty", "viridis", False),
    ("probability", "Probability", "viridis", False),
    ("mask", "Mask", "mask", True),
)


@dataclass(frozen=True)
class Reply:
    """One answer: its type, headers, and the bytes or the file that holds them."""

    kind: str
    body: bytes | Path
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Site:
    """All that can be fetched, by path relative to the page."""

    replies: Mapping[str, Reply]

    @classmethod
    def of(cls, folders: Sequence[Path], scans: Mapping[Path, Path] | None = None) -> Site:
        """The viewer for these cases.

        Args:
            folders: of cases.
            scans: NIfTI files on the cases' grids, for folders that keep no copy of their scan.

        Raises:
            InputError: a folder without a finished result or without a scan.
        """
        replies = {name: _file(STATIC / name) for name in PAGE}
        replies[""] = replies.pop("viewer.html")
        described = []
        for number, folder in enumerate(folders):
            case, files = _case(folder, f"case/{number}", (scans or {}).get(folder))
            described.append(case)
            replies |= {path: _file(file) for path, file in files.items()}
        data = {"version": __version__, "cases": described}
        replies["data.json"] = Reply(KINDS[".json"], json.dumps(data).encode(), HEADERS)
        return cls(replies)

    def get(self, path: str) -> Reply | None:
        """The answer to a request for a path relative to the page; None for anything unknown."""
        return self.replies.get(path)


def _file(path: Path) -> Reply:
    headers = REPORT_HEADERS if path.name == REPORT else HEADERS
    return Reply(KINDS.get(path.suffix, KINDS[".txt"]), path, headers)


def _case(folder: Path, root: str, scan: Path | None) -> tuple[dict[str, Any], dict[str, Path]]:
    """One case for the page, and its files by path."""
    manifest = finished(folder)
    files = {f"{root}/{SCAN}": scan or _inside(folder, SCAN)}
    if not files[f"{root}/{SCAN}"].is_file():
        raise InputError(
            f"{folder} keeps no copy of the scan {manifest['scan'].get('source')!r}; name it with --scan, "
            "or segment with --report."
        )
    prompts = []
    for number, (text, entry) in enumerate(manifest["prompts"].items()):
        layers = []
        for name, label, colours, shown in LAYERS:
            if (file := f"{name}.nii.gz") in entry["files"]:
                url = f"{root}/{number}/{file}"
                files[url] = _inside(folder, entry["folder"], file)
                layers.append({"name": name, "label": label, "url": url, "colours": colours, "shown": shown})
        prompts.append(
            {
                "text": text,
                "layers": layers,
                "lesions": entry["lesions"],
                "score": entry["score"],
                "volume_ml": entry.get("volume_ml"),
                "window": _window(manifest, entry),
                "warnings": entry.get("warnings", []),
            }
        )
    report = None
    if (page := _inside(folder, REPORT)).is_file():
        report = f"{root}/{REPORT}"
        files[report] = page
    case = {
        "name": manifest.get("case", folder.name),
        "scan": f"{root}/{SCAN}",
        "modality": manifest.get("modality"),
        "report": report,
        "warnings": manifest.get("warnings", []),
        "prompts": prompts,
    }
    return case, files


def _inside(folder: Path, *names: str) -> Path:
    """A file in a case's folder. Raises InputError for a link that leads out of it."""
    path = folder.joinpath(*names)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{path} is a link out of its folder; copy the file there instead.")
    return path


def _window(manifest: Mapping[str, Any], entry: Mapping[str, Any]) -> list[float] | None:
    """Grey values to start with: CT by the prompt's anatomy; None leaves it to the page."""
    if manifest.get("modality") != "ct":
        return None
    anatomy = str((entry.get("understood") or {}).get("anatomy"))
    return list(CT_WINDOWS.get(anatomy, SOFT_TISSUE)[:2])
