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
            kept = [line for line in self.read(path) if line["iteration"] < iteration]
            text = "".join(_text(line) for line in kept)
            write_atomically(path, text.encode())

    def add(self, **values: Any) -> None:
        """Append a line."""
        with self.path.open("a") as file:
            file.write(_text(values))

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        """The complete lines of a log."""
        found = []
        for line in path.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:  # killed while writing
                continue
        return found


def _text(line: dict[str, Any]) -> str:
    """A line; JSON has no NaN and no infinity, which become null."""
    strict = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in line.items()
    }
    return json.dumps(strict, allow_nan=False) + "\n"
