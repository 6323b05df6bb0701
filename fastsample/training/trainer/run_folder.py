"""A run's folder: its log, its checkpoints, and taking it up again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastsample._support.files import write_atomically
from fastsample.training.trainer import checkpoints
from fastsample.training.trainer.checkpoints import Checkpoint


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


LOG = "log.jsonl"


class Archive:
    """Where a run is written, and taken up again.

    Args:
        folder: made where it is missing; None writes nothing.
        settings: of the run; those of a checkpoint must be equal.
        resume: whether checkpoints may be there.
        restore: takes the newest checkpoint; ValueError if it does not fit.
        writes: whether this process is the one that writes.

    Raises:
        ValueError: checkpoints without `resume`, or of another run or model.
    """

    def __init__(
        self,
        folder: Path | None,
        settings: Mapping[str, Any],
        *,
        resume: bool,
        restore: Callable[[Checkpoint], None],
        writes: bool,
    ) -> None:
        self.folder, self.settings = folder, dict(settings)
        self._journal: Journal | None = None
        self._writes = writes and folder is not None
        self._kept: list[int] = []
        if folder is None:
            if resume:
                raise ValueError("Trainer: folder must be given with resume, got None")
            return
        found = checkpoints.newest(folder) if folder.is_dir() else None
        if found is not None:
            if not resume:
                raise ValueError(
                    f"Trainer: folder must not hold checkpoints, got {folder} with one of "
                    f"iteration {found.iteration}; pass resume=True to go on, or another folder"
                )
            self._check(found)
            try:
                restore(found)
            except (ValueError, RuntimeError, KeyError) as error:
                raise ValueError(
                    f"Trainer: folder must hold checkpoints of this model, got {folder} ({error})"
                ) from None
            self._kept = [found.iteration]
        elif not resume and (folder / LOG).exists():
            raise ValueError(
                f"Trainer: folder must not hold another run's log, got {folder}; pass resume=True "
                "to begin it anew, or another folder"
            )
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            self._journal = Journal(folder / LOG, 0 if found is None else found.iteration)

    def _check(self, found: Checkpoint) -> None:
        for name, mine in self.settings.items():
            theirs = found.notes["settings"].get(name)
            if theirs != mine:
                raise ValueError(
                    f"Trainer: folder must hold checkpoints of this run, got {self.folder} with "
                    f"{name} {theirs!r} instead of {mine!r}"
                )

    def add(self, line: Mapping[str, Any]) -> None:
        """Log a line."""
        if self._journal is not None:
            self._journal.add(**line)

    def save(
        self, iteration: int, tensors: Callable[[], Mapping[str, Tensor]], notes: Mapping[str, Any]
    ) -> Path | None:
        """Write a checkpoint; its path, None where nothing is written."""
        if not self._writes or self.folder is None:
            return None
        notes = {"settings": self.settings, **notes}
        # Of this run's own making: one that it could not read is not the one to fall back on.
        self._kept = [*(kept for kept in self._kept if kept != iteration), iteration][-2:]
        return checkpoints.save(self.folder, iteration, tensors(), notes, keep=self._kept)
