"""What tuning found, for people and for the plan's provenance."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Stage:
    """Errors after a stage, per element against the teacher: root mean squares, or pseudo-Huber.

    Attributes:
        name: what was done.
        calibration: on the samples that it was done with; None where they were not run.
        validation: on samples that nothing was fitted to; the plan is chosen by them.
    """

    name: str
    calibration: float | None
    validation: float


@dataclass(frozen=True)
class TuneReport:
    """The errors on the way to a tuned plan, and what they cost.

    Attributes:
        starts: the known samplers, best first.
        stages: what came after them, in order.
        chosen: name of the entry that became the plan.
        samples: calibration samples and validation samples.
        teacher_steps: network calls of the teacher's run.
        runs: candidate times that were tried.
        network_calls: samples that the network has seen, over all samples of the tuning: full
            batches.
    """

    starts: tuple[Stage, ...]
    stages: tuple[Stage, ...]
    chosen: str
    samples: tuple[int, int]
    teacher_steps: int
    runs: int
    network_calls: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def fingerprint(model: Any) -> str | None:
    """SHA-256 of a module's weights and their names; None for any other callable."""
    if not isinstance(model, nn.Module):
        return None
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
