"""Keeps the record of a run: log lines, failures in a row, and the collapse detector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastsample._support.checks import warn_user
from fastsample._support.distributed import gathered, summed
from fastsample.training.fidelity.collapse import CollapseDetector
from fastsample.training.fidelity.loss import FidelityResult
from fastsample.training.trainer.weight_updates import GradientNorms

MAX_FAILURES = 20
"""Training stops after this many gradients in a row that are not finite."""
_HISTORY_LENGTH = 10_000


class RunRecord:
    """Makes log lines of iterations, and keeps the state of a run besides its weights.

    Args:
        world: number of processes.

    Attributes:
        history: the newest log lines, oldest first.
        failures: gradients in a row that were not finite, by loss.
        detector: watches the spread of the samples.
    """

    def __init__(self, world: int) -> None:
        self.world = world
        self.history: list[dict[str, Any]] = []
        self.failures = {"diffusion loss": 0, "fidelity loss": 0}
        self.detector = CollapseDetector()

    def add(
        self, iteration: int, loss: Tensor, result: FidelityResult | None, norms: GradientNorms
    ) -> dict[str, Any]:
        """Make the log line of an iteration.

        Args:
            iteration: its number.
            loss: mean diffusion loss of this process's samples, a scalar.
            result: result of the fidelity loss, or None.
            norms: norms of the gradients.

        Warns:
            UserWarning: a gradient is not finite, and it was in the iteration before.
            CollapseWarning: the samples have lost spread.
        """
        total = summed(loss.double().cpu().reshape(1), loss.device)
        line: dict[str, Any] = {
            "iteration": iteration,
            "loss": float(total[0]) / self.world,
            "norm": norms.diffusion,
            "skipped": norms.skipped,
        }
        self._count_failures(iteration, "diffusion loss", norms.skipped)
        if result is not None:
            line |= {
                "fidelity": float(result.loss.detach()),
                "fidelity_norm": norms.fidelity,
                "fidelity_skipped": norms.skipped or norms.fidelity_dropped,
            }
            samples, data = gathered(result.samples), gathered(result.data)
            # The detector compares spreads, which a single sample or copies of one do not have.
            if len(samples) > 1 and len(data) > 1 and bool((data != data[:1]).any()):
                line |= self.detector.update(samples, data)
            line["times"] = result.plan.times.tolist()
            self._count_failures(iteration, "fidelity loss", norms.fidelity_dropped)
        self.history.append(line)
        del self.history[:-_HISTORY_LENGTH]
        return line

    def failed_loss(self) -> str | None:
        """Return the loss whose gradients were not finite for too long; None while all is well.

        Only an iteration that fails itself counts, so that a run resumed after such a failure may
        try again.
        """
        name = max(self.failures, key=lambda name: self.failures[name])
        line = self.history[-1]
        fails_now = line["skipped"] or line.get("fidelity_skipped", False)
        return name if self.failures[name] >= MAX_FAILURES and fails_now else None

    def state(self) -> dict[str, Any]:
        """Return failure counts and the detector's state for `load_state`, ready for JSON."""
        return {"detector": self.detector.state(), "failures": self.failures}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned; other entries are ignored."""
        self.detector.load_state(state["detector"])
        self.failures = dict(state["failures"])

    def _count_failures(self, iteration: int, name: str, failed: bool) -> None:
        self.failures[name] = self.failures[name] + 1 if failed else 0
        if self.failures[name] == 1:
            warn_user(
                f"Trainer: the gradient of the {name} was not finite in iteration {iteration}; "
                f"it is left out, and {MAX_FAILURES} in a row end the training"
            )
