"""The folder of a training run: checkpoints and log, of one process on behalf of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastsample.training import checkpoints
from fastsample.training.checkpoints import Checkpoint
from fastsample.training.journal import Journal

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
