"""Writes and reads the checkpoints of a training run, each one safetensors file.

A file appears by an atomic rename, and older ones are removed only afterwards, so that a process
killed at any moment leaves at least one complete checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from torch import Tensor

from fastsample._support.checks import warn_user
from fastsample._support.files import TensorFormat

_FORMAT = TensorFormat(
    "fastsample.training", 2, "Trainer", "folder must hold intact checkpoints", framework="pt"
)
# The pattern matches checkpoints (also of format version 1, "iteration-<number>"), with the number
# as its group, and the hidden temporary files that a killed process leaves behind.
_NAME = re.compile(
    r"(?:checkpoint|iteration)-(\d+)\.(?:json|safetensors)|\.(?:checkpoint|iteration)-\d+\..*"
)


class Checkpoint(NamedTuple):
    """Holds the content of a checkpoint file."""

    iteration: int
    """Number of training iterations made so far."""
    tensors: dict[str, Tensor]
    """Weights, averages and optimiser states on the CPU, in the dtypes they were saved in."""
    notes: dict[str, Any]
    """Everything else, from JSON: settings of the run, counters, the collapse detector's state."""


def save(
    folder: Path,
    iteration: int,
    tensors: Mapping[str, Tensor],
    notes: Mapping[str, Any],
    *,
    keep: Collection[int] = (),
) -> Path:
    """Write a checkpoint, then remove all others except those of the iterations in `keep`.

    Raises:
        TypeError: notes that JSON cannot hold.
    """
    # Make copies, because safetensors refuses two tensors that share memory, as tied weights do.
    copies = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    path = folder / f"checkpoint-{iteration:09d}.safetensors"
    _FORMAT.save(path, {"iteration": iteration, "notes": notes}, copies)
    # Sort, so that the JSON file of a version 1 checkpoint is removed before its tensors.
    for file in sorted(folder.iterdir()):
        name = _NAME.fullmatch(file.name)
        if name and (name[1] is None or int(name[1]) not in {iteration, *keep}):
            file.unlink(missing_ok=True)
    return path


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ValueError: the file is damaged, or not a checkpoint of training.
    """
    try:
        fields, tensors = _load_version_1(path) if path.suffix == ".json" else _FORMAT.load(path)
    except OSError as error:
        raise _FORMAT.refusal(path, error) from None
    with _FORMAT.reading(path):
        return Checkpoint(int(fields["iteration"]), tensors, fields["notes"])


def _load_version_1(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read version 1: a JSON file with a checksum, and a safetensors file beside it."""
    with _FORMAT.reading(path):
        fields = json.loads(path.read_bytes())
        data = path.with_suffix(".safetensors").read_bytes()
        digest = hashlib.sha256(data)
        digest.update(json.dumps([fields["iteration"], fields["notes"]], sort_keys=True).encode())
        header = (fields["format"], fields["version"], fields["sha256"])
        if header != (_FORMAT.name, 1, digest.hexdigest()):
            raise ValueError("damaged: its checksum is not that of its content")
        return fields, safetensors.torch.load(data)


def newest(folder: Path) -> Checkpoint | None:
    """Return the latest intact checkpoint of a folder; None if the folder has no checkpoints.

    Raises:
        ValueError: there are checkpoints, but none is intact.

    Warns:
        UserWarning: a later checkpoint is damaged.
    """
    failure = None
    for path in reversed(_paths(folder)):
        try:
            checkpoint = load(path)
        except ValueError as error:
            failure = failure or error
            continue
        if failure is not None:
            warn_user(f"{failure}; going on from iteration {checkpoint.iteration}")
        return checkpoint
    if failure is not None:
        raise failure
    return None


def _paths(folder: Path) -> list[Path]:
    """Return the checkpoint files of a folder, the latest last."""
    files = [*folder.glob("checkpoint-[0-9]*.safetensors"), *folder.glob("iteration-*.json")]
    return sorted(files, key=lambda path: path.stem.rpartition("-")[2])
