"""Checkpoints of a training run: one safetensors file each, always one complete.

A file appears by a rename, and older ones are removed after that, so that a kill at any moment
leaves one to go on from.
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
# Files of checkpoints, of version 1 ("iteration-") too; a kill leaves the others, half written.
_NAME = re.compile(
    r"(?:checkpoint|iteration)-(\d+)\.(?:json|safetensors)|\.(?:checkpoint|iteration)-\d+\..*"
)


class Checkpoint(NamedTuple):
    """What a file holds."""

    iteration: int
    """Iterations that were made."""
    tensors: dict[str, Tensor]
    """On the CPU, in the dtypes they were saved in."""
    notes: dict[str, Any]
    """Everything else, as JSON had it."""


def save(
    folder: Path,
    iteration: int,
    tensors: Mapping[str, Tensor],
    notes: Mapping[str, Any],
    *,
    keep: Collection[int] = (),
) -> Path:
    """Write a checkpoint, and remove all others but those of the iterations to keep.

    Raises:
        TypeError: notes that do not fit into JSON.
    """
    # Copies: the format holds no two tensors in one memory, as tied weights are.
    copies = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    path = folder / f"checkpoint-{iteration:09d}.safetensors"
    _FORMAT.save(path, {"iteration": iteration, "notes": notes}, copies)
    for file in sorted(folder.iterdir()):  # the JSON of version 1 goes before its tensors
        name = _NAME.fullmatch(file.name)
        if name and (name[1] is None or int(name[1]) not in {iteration, *keep}):
            file.unlink(missing_ok=True)
    return path


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ValueError: damaged, or not a checkpoint of training.
    """
    try:
        fields, tensors = _load_first(path) if path.suffix == ".json" else _FORMAT.load(path)
    except OSError as error:
        raise _FORMAT.refusal(path, error) from None
    with _FORMAT.reading(path):
        return Checkpoint(int(fields["iteration"]), tensors, fields["notes"])


def _load_first(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Version 1: tensors in a file of their own, and beside it JSON with the checksum of both."""
    with _FORMAT.reading(path):
        fields = json.loads(path.read_bytes())
        data = path.with_suffix(".safetensors").read_bytes()
        digest = hashlib.sha256(data)
        digest.update(json.dumps([fields["iteration"], fields["notes"]], sort_keys=True).encode())
        said = (fields["format"], fields["version"], fields["sha256"])
        if said != (_FORMAT.name, 1, digest.hexdigest()):
            raise ValueError("damaged: its checksum is not that of its content")
        return fields, safetensors.torch.load(data)


def newest(folder: Path) -> Checkpoint | None:
    """The latest intact checkpoint of a folder; None if it has none.

    Raises:
        ValueError: there are checkpoints, but none is intact.

    Warns:
        UserWarning: it is not the latest of all.
    """
    failure = None
    for path in reversed(_found(folder)):
        try:
            found = load(path)
        except ValueError as error:
            failure = failure or error
            continue
        if failure is not None:
            warn_user(f"{failure}; going on from iteration {found.iteration}")
        return found
    if failure is not None:
        raise failure
    return None


def _found(folder: Path) -> list[Path]:
    """Files of checkpoints, the latest last."""
    files = [*folder.glob("checkpoint-[0-9]*.safetensors"), *folder.glob("iteration-*.json")]
    return sorted(files, key=lambda path: path.stem.rpartition("-")[2])
