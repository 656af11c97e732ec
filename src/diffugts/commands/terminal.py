"""What the verbs share: words for errors, lines for people and for programs, a progress bar."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from diffugts.errors import DiffuGTSError

Progress = Callable[[str, float], None]
Bar = Callable[[str], AbstractContextManager[Progress]]


def complain(sentence: str) -> None:
    """One line on stderr."""
    print(f"diffugts: {sentence}", file=sys.stderr, flush=True)


def explain(error: BaseException) -> str:
    """An error as one sentence for the user."""
    text = " ".join(str(error).split())
    if isinstance(error, DiffuGTSError):
        return text
    if isinstance(error, MemoryError) or "out of memory" in text.lower():
        return "Not enough memory; crop the scan, give a --region, or use a machine with more."
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}."
    name = type(error).__name__
    return f"Unexpected {name}: {text or 'no message'}; run again with --debug for the traceback."


def json_line(values: Any) -> None:
    """One JSON value on one line of stdout, at once, so that a pipe can follow."""
    print(json.dumps(values, ensure_ascii=False, allow_nan=False), flush=True)


def table(rows: Mapping[str, object], indent: str = "") -> None:
    """Names and values in two columns on stdout."""
    width = max(map(len, rows), default=0)
    for name, value in rows.items():
        print(f"{indent}{name:<{width}}  {value}")


def show_log(debug: bool) -> None:
    """Send the package's log to stderr: warnings, and with `debug` all of it."""
    logging.basicConfig(format="%(name)s: %(message)s", stream=sys.stderr, level=logging.WARNING)
    logging.getLogger("diffugts").setLevel(logging.DEBUG if debug else logging.WARNING)


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A callable (stage, fraction 0..1) that draws a bar on stderr; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda stage, fraction: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=1.0)

        def update(stage: str, fraction: float) -> None:
            bar.update(task, description=f"{title}: {stage}", completed=fraction)

        yield update
