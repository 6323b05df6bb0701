"""The log of a run: one JSON object per line, without repeats after a resumption."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from fastsample.files import write_atomically


class Journal:
    """Lines of a run.

    Args:
        path: the file; it is made with the first line.
        iteration: lines of this iteration and later ones are dropped: they will come again. So
            is a last line that was cut off.
    """

    def __init__(self, path: Path, iteration: int) -> None:
        self.path = path
        if path.exists():
            kept = [text for text, line in _lines(path) if _number(line) < iteration]
            write_atomically(path, "".join(f"{text}\n" for text in kept).encode())

    def add(self, **values: Any) -> None:
        """Append a line."""
        with self.path.open("a") as file:
            file.write(_text(values))

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        """The complete lines of a log."""
        return [line for _, line in _lines(path)]


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The complete lines of a log, as they stand there and as they mean."""
    found = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # killed while writing
            continue
        if isinstance(line, dict):  # somebody else wrote the rest
            found.append((text, line))
    return found


def _number(line: dict[str, Any]) -> int:
    """Its iteration; -1 for a line that is not the trainer's."""
    found = line.get("iteration")
    return found if isinstance(found, int) else -1


def _text(line: dict[str, Any]) -> str:
    """A line; JSON has no NaN and no infinity, which become null."""
    strict = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in line.items()
    }
    return json.dumps(strict, allow_nan=False) + "\n"
