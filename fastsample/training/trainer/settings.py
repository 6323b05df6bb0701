"""Lists the settings that a resumed run must share with the run that wrote the checkpoint."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from fastsample.denoiser.denoiser import Denoiser
from fastsample.ops.draws import NOISE_VERSION
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.training.trainer.data import Batches
from fastsample.training.trainer.fidelity_term import FidelityTerm
from fastsample.training.trainer.objective import Loss


def run_settings(
    denoiser: Denoiser,
    batches: Batches,
    loss: Loss,
    fidelity: FidelityTerm | None,
    optimizer: torch.optim.Optimizer,
) -> dict[str, Any]:
    """Return the settings of a run by name, ready for JSON."""
    return {
        "prediction": denoiser.prediction,
        "shape": list(denoiser.shape),
        "data": batches.count,
        "batch_size": batches.batch_size,
        "seed": batches.seed,
        "noise": NOISE_VERSION,
        "loss": repr(loss),
        "optimizer": type(optimizer).__name__,
        "schedule": _schedule_text(denoiser.schedule),
        "fidelity": repr(fidelity and fidelity.loss),
    }


def _schedule_text(schedule: NoiseSchedule) -> str:
    """Return the schedule as text with a digest of its values: two tables may print alike."""
    values = json.dumps(schedule.to_dict(), sort_keys=True)
    return f"{schedule!r}, {hashlib.sha256(values.encode()).hexdigest()[:8]}"
