"""The process that computes: tasks as JSON lines on stdin, progress and outcomes as JSON lines on stdout.

A task is the words of a `diffugts segment` of one scan, and runs as that command does, so that a job and the command
line cannot differ. The process ends with its stdin: a server that is gone leaves nothing running.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from diffugts.commands.terminal import Progress

EVERY_S = 0.2
"""Progress is told at most this often."""

CASE = "case"
RESULTS = "results.zip"


def main() -> None:
    """Do tasks until stdin ends."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # whatever a library prints stays out of the protocol
    tasks: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(tasks,), daemon=True).start()
    while True:
        outcome = work(tasks.get(), channel)
        print(json.dumps({"outcome": outcome}), file=channel, flush=True)


def work(task: Mapping[str, Any], channel: TextIO) -> dict[str, Any]:
    """Segment one scan; returns what `diffugts segment --json` prints, after writing `results.zip` beside the case.

    Args:
        task: `words` of the command line, `folder` for the result, `max_voxels`.
        channel: where progress goes.
    """
    from diffugts.cli import build_parser
    from diffugts.commands.segment import Job, run_case

    args = build_parser().parse_args(task["words"])
    args.max_voxels = task["max_voxels"]
    folder = Path(task["folder"])
    line = run_case(args, Job(args.scans[0], folder / CASE), lambda: _segmenter(args.model, args.device), _bar(channel))
    if line["status"] == "done":
        pack(folder / CASE, folder / RESULTS)
    return line


def pack(folder: Path, archive: Path) -> None:
    """Zip a folder under its own name; what is in it is compressed already."""
    temporary = archive.with_suffix(".part")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as target:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            target.write(path, path.relative_to(folder.parent).as_posix())
    temporary.replace(archive)


def _bar(channel: TextIO) -> Any:
    """A progress bar that speaks JSON."""

    @contextmanager
    def bar(title: str) -> Iterator[Progress]:
        told: dict[str, float] = {}

        def progress(stage: str, fraction: float) -> None:
            now = time.monotonic()
            if stage in told and now - told[stage] < EVERY_S:
                return
            told[stage] = now
            print(json.dumps({"stage": stage, "progress": round(fraction, 4)}), file=channel, flush=True)

        yield progress

    return bar


@cache
def _segmenter(model: str, device: str) -> Any:
    from diffugts.segmenter import Segmenter

    return Segmenter.from_pretrained(model, device=device)


def _listen(tasks: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        tasks.put(json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    main()
