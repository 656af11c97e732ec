"""One page over the cases of a run: a table to sort, with links to the reports and a sentence for each failure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffugts.report.html import render
from diffugts.report.save import REPORT

INDEX = "index.html"


@dataclass(frozen=True)
class Row:
    """One prompt on one scan, or one scan that failed; None where there is nothing to say."""

    case: str
    link: str | None
    status: str
    prompt: str = ""
    lesions: int | None = None
    volume_ml: float | None = None
    score: float | None = None
    seconds: float | None = None
    notes: tuple[str, ...] = ()


def write_index(lines: Iterable[Mapping[str, Any]], directory: str | Path) -> Path:
    """Write `index.html` into the output folder of a run; returns its path.

    Args:
        lines: what `diffugts segment --json` prints, one per case.
        directory: the folder that holds the cases.
    """
    from diffugts.io import atomic_write

    directory = Path(directory)
    rows = [row for line in lines for row in _rows(line, directory)]
    return atomic_write(directory / INDEX, render("index.html.j2", rows=rows, folder=directory.resolve().name))


def _rows(line: Mapping[str, Any], directory: Path) -> list[Row]:
    seconds = line.get("seconds")
    if line["status"] == "failed":
        return [Row(line["case"], None, "failed", seconds=seconds, notes=(line["error"],))]
    link = f"{line['case']}/{REPORT}" if (directory / line["case"] / REPORT).is_file() else None
    return [
        Row(
            case=line["case"],
            link=link,
            status="done before" if line["status"] == "skipped" else "done",
            prompt=text,
            lesions=answer["lesions"],
            volume_ml=answer["volume_ml"],
            score=answer["score"],
            seconds=seconds,
            notes=tuple(line["warnings"]),
        )
        for text, answer in line["prompts"].items()
    ]
