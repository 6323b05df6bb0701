"""Defines the report of a tuning, which becomes part of the plan's provenance."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Stage:
    """Holds a stage's errors per element against the teacher (root mean square or pseudo-Huber).

    Attributes:
        name: what the stage did.
        calibration: error on the samples that were fitted to; None where they were not run.
        validation: error on the held-out samples, by which the plan is chosen.
    """

    name: str
    calibration: float | None
    validation: float


@dataclass(frozen=True)
class TuneReport:
    """Holds the errors of the stages of a tuning, and its cost.

    Attributes:
        starts: the known samplers, best first.
        stages: the stages after them, in order.
        chosen: name of the stage whose plan was chosen.
        samples: numbers of calibration and of held-out samples.
        teacher_steps: network calls of the teacher's run.
        runs: number of candidates that were run.
        network_calls: network calls per sample of the tuning.
    """

    starts: tuple[Stage, ...]
    stages: tuple[Stage, ...]
    chosen: str
    samples: tuple[int, int]
    teacher_steps: int
    runs: int
    network_calls: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as dictionaries and lists, for JSON."""
        return asdict(self)


def fingerprint(model: Any) -> str | None:
    """Return the SHA-256 of a module's weights and their names; None for any other callable."""
    if not isinstance(model, nn.Module):
        return None
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
