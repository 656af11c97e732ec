"""The process that computes, seen from the server: one task in, progress and an outcome out, killed at will."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

POLL_S = 0.1
COMMAND = (sys.executable, "-m", "diffugts.serve.worker")

Report = Callable[[str, float], None]
Outcome = Mapping[str, Any]


class Runner(Protocol):
    """What runs one job at a time."""

    def run(self, task: Mapping[str, Any], report: Report, stopped: Callable[[], bool]) -> Outcome | None:
        """Do a task to its end and return what came out; None as soon as `stopped()`."""

    def close(self) -> None:
        """End at once."""


class WorkerProcess:
    """Runs `diffugts.serve.worker` as a child, started with the first task and again after it was killed.

    Args:
        command: of the child.
        debug: let the child write to our stderr; otherwise what it says of scans is dropped.
    """

    def __init__(self, command: Sequence[str] = COMMAND, debug: bool = False) -> None:
        self.command = tuple(command)
        self.debug = debug
        self._child: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()

    def run(self, task: Mapping[str, Any], report: Report, stopped: Callable[[], bool]) -> Outcome | None:
        """Send a task to the child and follow it. A child that dies gives an outcome that says so."""
        child = self._started()
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps(task) + "\n")
            child.stdin.flush()
        except OSError:
            return self._died()
        while not stopped():
            try:
                line = self._lines.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if line is None:
                return self._died()
            message = json.loads(line)
            if "outcome" in message:
                return dict(message["outcome"])
            report(str(message["stage"]), float(message["progress"]))
        self.close()
        return None

    def close(self) -> None:
        """Kill the child, whatever it does."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            if child.stdin is not None:
                with suppress(OSError):
                    child.stdin.close()

    def _started(self) -> subprocess.Popen[str]:
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._lines = queue.Queue()
            self._child = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if self.debug else subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is for the server, which ends the child itself
            )
            threading.Thread(target=_read, args=(self._child, self._lines), daemon=True).start()
        return self._child

    def _died(self) -> Outcome:
        self.close()
        return {
            "status": "failed",
            "error": "The computation ended by itself, perhaps for lack of memory; crop the scan.",
        }


def _read(child: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    """Pass on what the child says; None at its end."""
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            lines.put(line)
    lines.put(None)
