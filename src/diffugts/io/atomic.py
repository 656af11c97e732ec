"""Files that are either whole or not there: written beside their place, then renamed into it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InputError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the folder of `path`, renamed to `path` when the block ends well.

    The temporary name ends like `path`, so writers that look at the extension work. If the block
    raises (an interruption too) the temporary file is removed and what stood at `path` stays.

    Raises:
        InputError: the folder or file cannot be written (read-only, full disk, a folder in the way).
    """
    target = Path(path)
    temporary = target.with_name(f".{secrets.token_hex(6)}.{target.name[-64:]}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise InputError(
            f"{target} cannot be written ({error.strerror or error}); "
            "choose a folder that exists, is writable and has free space."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> Path:
    """Write bytes, or text as UTF-8, in one step; returns the path. Raises InputError as `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    return Path(path)
