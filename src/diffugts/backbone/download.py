"""Downloads that can be stopped and go on: range requests, a size cap, sha256, an atomic rename at the end.

Only ``diffugts weights get`` comes here. Proxies are taken from the environment (``HTTPS_PROXY``, ``NO_PROXY``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from diffugts.backbone.home import Source
from diffugts.backbone.weights import sha256_of
from diffugts.errors import WeightsError

CHUNK, TIMEOUT_S = 1 << 20, 60.0
RECORD = "sha256.json"


def is_offline(asked: bool = False) -> bool:
    """Whether the network must not be used: asked for, or by ``DIFFUGTS_OFFLINE`` (anything but "" and "0")."""
    return asked or os.environ.get("DIFFUGTS_OFFLINE", "") not in ("", "0")


def mirrored(url: str, mirror: str | None) -> str:
    """The same path on another host: ``https://mirror.example/base`` in place of the publisher's."""
    return url if mirror is None else mirror.rstrip("/") + urlsplit(url).path


def download(
    source: Source, folder: Path, mirror: str | None = None, progress: Callable[[float], None] | None = None
) -> Path:
    """Fetch a file into a folder, going on where an earlier attempt ended.

    The file is compared with its sha256 where that is known; where it is not, the first download's is noted in
    ``sha256.json`` beside it and later ones must agree.

    Raises:
        WeightsError: no connection, larger than its cap, or another file than before; the sentence says which.
    """
    url, target = mirrored(source.url, mirror), folder / source.name
    if target.is_file() and sha256_of(target) == _noted(folder).get(source.name):
        return target  # a run that was stopped later on
    if urlsplit(url).scheme not in ("http", "https"):
        raise WeightsError(f"{url} is no web address; it must start with https://")
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{source.name}.part"
    _fetch(url, partial, source.max_bytes, progress)
    digest = sha256_of(partial)
    expected = source.sha256 or _noted(folder).get(source.name)
    if expected not in (None, digest):
        partial.unlink()
        raise WeightsError(
            f"{source.name} has sha256 {digest[:12]}…, not {str(expected)[:12]}…: changed or damaged on the way; "
            f"try again, or remove its line from {folder / RECORD} if its publisher replaced it"
        )
    os.replace(partial, target)
    _note(folder, source.name, digest)
    return target


def _fetch(url: str, partial: Path, cap: int, progress: Callable[[float], None] | None) -> None:
    have = partial.stat().st_size if partial.is_file() else 0
    request = Request(url, headers={"User-Agent": "diffugts", **({"Range": f"bytes={have}-"} if have else {})})
    try:
        with urlopen(request, timeout=TIMEOUT_S) as answer:
            going_on = answer.status == 206 and str(answer.headers.get("Content-Range", "")).startswith(
                f"bytes {have}-"
            )
            have = have if going_on else 0
            total = have + int(answer.headers.get("Content-Length") or 0)
            _check_size(max(total, have), cap, partial)
            with open(partial, "ab" if going_on else "wb") as file:
                while block := answer.read(CHUNK):
                    have += len(block)
                    _check_size(have, cap, partial)
                    file.write(block)
                    if progress and total:
                        progress(min(have / total, 1.0))
        if total and have < total:
            raise WeightsError(
                f"the connection ended after {have / 1e6:.0f} of {total / 1e6:.0f} MB; run it again to go on"
            )
    except HTTPError as error:
        if error.code == 416 and have:  # all of it is here, or the partial file is of another version
            return _whole_or_again(error, url, partial, cap, progress, have)
        hint = "; its publisher may ask for a login" if error.code in (401, 403) else ""
        raise WeightsError(f"{url} answered {error.code} {error.reason}{hint}") from error
    except (URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise WeightsError(
            f"{url} cannot be reached ({reason}); check the network and proxy, then run it again"
        ) from error


def _whole_or_again(
    error: HTTPError, url: str, partial: Path, cap: int, progress: Callable[[float], None] | None, have: int
) -> None:
    if str(error.headers.get("Content-Range", "")) == f"bytes */{have}":
        return
    partial.unlink()
    _fetch(url, partial, cap, progress)


def _check_size(size: int, cap: int, partial: Path) -> None:
    if size > cap:
        with suppress(OSError):
            partial.unlink()
        raise WeightsError(f"{partial.stem} is larger than the {cap / 1e6:.0f} MB that it may have; it was not kept")


def _noted(folder: Path) -> dict[str, str]:
    try:
        noted: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in noted.items()}


def _note(folder: Path, name: str, digest: str) -> None:
    from diffugts.io import atomic_write

    atomic_write(folder / RECORD, json.dumps({**_noted(folder), name: digest}, indent=2) + "\n")
