"""Writes a training run's log and checkpoints to its folder, and resumes the run from it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from fastsample._support.checks import warn_user
from fastsample._support.files import write_atomically
from fastsample.ops.draws import NOISE_VERSION
from fastsample.training.trainer import checkpoints
from fastsample.training.trainer.checkpoints import Checkpoint

LOG_NAME = "log.jsonl"


class RunLog:
    """Writes the log of a run, one line of JSON per iteration.

    Args:
        path: the file; it is made with the first line.
        iteration: the iteration from which the run goes on. Lines of this and later iterations
            are removed, because the run writes them again; so is a last line that was cut off.
    """

    def __init__(self, path: Path, iteration: int) -> None:
        self.path = path
        if path.exists():
            kept = [text for text, line in _lines(path) if _iteration_of(line) < iteration]
            write_atomically(path, "".join(f"{text}\n" for text in kept).encode())

    def add(self, **values: Any) -> None:
        """Append a line."""
        with self.path.open("a") as file:
            file.write(_line_text(values))

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        """Return the complete lines of a log."""
        return [line for _, line in _lines(path)]


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the complete lines of a log, each as text and as the parsed object."""
    lines: list[tuple[str, dict[str, Any]]] = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # The process was killed while it wrote this line.
            continue
        if isinstance(line, dict):  # The trainer writes objects only.
            lines.append((text, cast("dict[str, Any]", line)))
    return lines


def _iteration_of(line: dict[str, Any]) -> int:
    """Return the iteration of a line; -1 for a line that the trainer did not write."""
    iteration = line.get("iteration")
    return iteration if isinstance(iteration, int) else -1


def _line_text(values: dict[str, Any]) -> str:
    """Return a line of strict JSON, in which NaN and infinity become null."""
    strict = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    return json.dumps(strict, allow_nan=False) + "\n"


class RunFolder:
    """Writes the log and the checkpoints of a run, and resumes the run from them.

    Args:
        folder: the folder, made if it is missing; None writes nothing.
        settings: settings of the run. A checkpoint with other settings is refused.
        resume: whether the folder may hold checkpoints already.
        restore: called with the newest checkpoint; raises ValueError if it does not fit the model.
        writes: whether this process writes; of several, one does.

    Raises:
        ValueError: checkpoints without `resume`, or checkpoints of another run or model.
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
        self._log: RunLog | None = None
        self._writes = writes and folder is not None
        self._kept: list[int] = []
        if folder is None:
            if resume:
                raise ValueError("Trainer: folder must be given with resume, got None")
            return
        checkpoint = checkpoints.newest(folder) if folder.is_dir() else None
        if checkpoint is not None:
            if not resume:
                raise ValueError(
                    f"Trainer: folder must not hold checkpoints, got {folder} with one of "
                    f"iteration {checkpoint.iteration}; pass resume=True to go on, or another "
                    "folder"
                )
            self._check_settings(checkpoint)
            try:
                restore(checkpoint)
            except (ValueError, RuntimeError, KeyError) as error:
                raise ValueError(
                    f"Trainer: folder must hold checkpoints of this model, got {folder} ({error})"
                ) from None
            self._kept = [checkpoint.iteration]
        elif not resume and (folder / LOG_NAME).exists():
            raise ValueError(
                f"Trainer: folder must not hold another run's log, got {folder}; pass resume=True "
                "to begin it anew, or another folder"
            )
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            first = 0 if checkpoint is None else checkpoint.iteration
            self._log = RunLog(folder / LOG_NAME, first)

    def _check_settings(self, checkpoint: Checkpoint) -> None:
        noise = checkpoint.notes["settings"].get("noise", 1)
        if noise != NOISE_VERSION:
            warn_user(
                f"Trainer: folder should hold a run with noise of version {NOISE_VERSION}, got "
                f"{self.folder} with version {noise}; the run goes on with other random numbers "
                "than it would have had with the earlier fastsample"
            )
        for name, value in self.settings.items():
            if name == "noise":
                continue
            stored = checkpoint.notes["settings"].get(name)
            if stored != value:
                raise ValueError(
                    f"Trainer: folder must hold checkpoints of this run, got {self.folder} with "
                    f"{name} {stored!r} instead of {value!r}"
                )

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line to the log."""
        if self._log is not None:
            self._log.add(**line)

    def save(
        self, iteration: int, tensors: Callable[[], Mapping[str, Tensor]], notes: Mapping[str, Any]
    ) -> Path | None:
        """Write a checkpoint.

        Returns:
            The path of the file; None in a process that writes nothing.
        """
        if not self._writes or self.folder is None:
            return None
        notes = {"settings": self.settings, **notes}
        # Keep two checkpoints, both read or written by this run: an older one may be damaged, and
        # would then be no fallback.
        self._kept = [*(kept for kept in self._kept if kept != iteration), iteration][-2:]
        return checkpoints.save(self.folder, iteration, tensors(), notes, keep=self._kept)
