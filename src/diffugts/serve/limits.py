"""What one server lets its clients take."""

from __future__ import annotations

from dataclasses import dataclass

MIN_TOKEN = 16
"""Characters of the shortest token; a shorter one can be guessed."""

TOKEN_VARIABLE = "DIFFUGTS_TOKEN"


@dataclass(frozen=True)
class Limits:
    """Bounds of a server.

    Attributes:
        max_bytes: of one upload, all of its parts together.
        max_unpacked: bytes of an unpacked zip.
        max_files: files in a zip.
        max_voxels: of a scan.
        time_s: seconds that a job may run.
        keep_s: seconds that an ended job and its files stay.
        waiting: jobs that may wait, those that are being uploaded included.
        kept: ended jobs that stay at most; the oldest go first.
    """

    max_bytes: int = 2**30
    max_unpacked: int = 4 * 2**30
    max_files: int = 10_000
    max_voxels: int = 2**28
    time_s: float = 1800.0
    keep_s: float = 3600.0
    waiting: int = 8
    kept: int = 16
