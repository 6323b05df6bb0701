"""Checkpoints of a training run: tensors in safetensors, the rest in JSON, always one complete.

The tensors are written first and the JSON with their checksum last, each by a rename: a checkpoint
exists when its JSON does. Older ones are removed after that, so that a kill at any moment
leaves one to go on from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fastsample._support.checks import warn_user
from fastsample._support.files import write_atomically

_FORMAT, _VERSION = "fastsample.training", 1
_STEM = "iteration-"


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
    folder.mkdir(parents=True, exist_ok=True)
    # Copies: the format holds no two tensors in one memory, as tied weights are.
    copies = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    data = safetensors.torch.save(copies)
    entry = {
        "format": _FORMAT,
        "version": _VERSION,
        "iteration": iteration,
        "sha256": _digest(data, iteration, notes),
        "notes": notes,
    }
    text = json.dumps(entry, sort_keys=True)
    path = _path(folder, iteration)
    write_atomically(path.with_suffix(".safetensors"), data)
    write_atomically(path, text.encode() + b"\n")
    for old in set(_found(folder)) - {path, *(_path(folder, kept) for kept in keep)}:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)
    for stray in folder.glob(f"{_STEM}*.safetensors"):  # of a run that was killed meanwhile
        if not stray.with_suffix(".json").exists():
            stray.unlink()
    for stray in folder.glob(f".{_STEM}*"):  # half written
        stray.unlink()
    return path


def load(path: Path) -> Checkpoint:
    """Read a checkpoint by its JSON.

    Raises:
        ValueError: damaged, or not a checkpoint of training.
    """
    try:
        entry = json.loads(path.read_text())
        if entry["format"] != _FORMAT or entry["version"] != _VERSION:
            raise ValueError(f"format {entry['format']!r}, version {entry['version']!r}")
        data = path.with_suffix(".safetensors").read_bytes()
        if _digest(data, entry["iteration"], entry["notes"]) != entry["sha256"]:
            raise ValueError("it is not what was written")
        tensors = safetensors.torch.load(data)
        return Checkpoint(int(entry["iteration"]), tensors, entry["notes"])
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise ValueError(
            f"Trainer: folder must hold intact checkpoints, got {path} ({error})"
        ) from None


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


def _path(folder: Path, iteration: int) -> Path:
    return folder / f"{_STEM}{iteration:09d}.json"


def _found(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_STEM}*.json"))


def _digest(data: bytes, iteration: int, notes: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(data)
    digest.update(json.dumps([iteration, notes], sort_keys=True).encode())
    return digest.hexdigest()
