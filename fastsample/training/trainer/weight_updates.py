"""Updates weights by the gradients of one or two losses, and the weights' moving average."""

# These rules are off because torch types all_reduce, tolist and linalg in part or not at all.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastsample._support.checks import check_real
from fastsample._support.distributed import running
from fastsample.training.trainer.fidelity_term import FidelityTerm
from fastsample.training.trainer.moving_average import averaged_copy
from fastsample.training.trainer.optimizer import Optimizer
from fastsample.training.trainer.scheduled_optimizer import ScheduledOptimizer


class GradientNorms(NamedTuple):
    """Holds an iteration's gradient norms before clipping, and whether its step was skipped."""

    diffusion: float
    """Norm of the diffusion loss's gradient."""
    fidelity: float
    """Norm of the fidelity loss's gradient; NaN in an iteration without it."""
    skipped: bool
    """True if the diffusion loss's gradient was not finite, so that no weight was changed."""
    fidelity_dropped: bool = False
    """True if the fidelity loss's gradient was not finite and was left out."""


class WeightUpdater:
    """Changes the weights of some modules by the gradients of one or two losses.

    If the fidelity term has a learning rate, it has an optimiser with its own moments, which takes
    a second step after that of the diffusion loss. Otherwise both gradients are added and one
    optimiser takes one step. One optimiser never takes two steps in an iteration: a second step on
    shared moments, even of a zero gradient, acts as a larger learning rate.

    Args:
        modules: the modules whose parameters are trained.
        optimizer: settings of the optimiser.
        fidelity: settings of the fidelity term; None without it.
        ema: decay of the moving average, in [0, 1); it is less in the first iterations.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        *,
        optimizer: Optimizer,
        fidelity: FidelityTerm | None,
        ema: float,
    ) -> None:
        self.modules = nn.ModuleList(modules)
        self.parameters = [p for p in self.modules.parameters() if p.requires_grad]
        self.settings, self.fidelity = optimizer, fidelity
        self.optimizer = optimizer.create(
            self.parameters, lr=optimizer.lr, weight_decay=optimizer.weight_decay
        )
        self.fidelity_optimizer: ScheduledOptimizer | None = None
        if fidelity is not None and fidelity.lr is not None:
            # No weight decay here, because the other optimiser applies it once per iteration.
            self.fidelity_optimizer = optimizer.create(
                self.parameters, lr=fidelity.lr, weight_decay=0.0
            )
        self.average = averaged_copy(self.modules, check_real("Trainer", "ema", ema, 0.0, 0.999999))

    @property
    def averages(self) -> list[nn.Module]:
        """Return the modules with averaged weights."""
        return list(cast("nn.ModuleList", self.average.module))

    def zero_gradients(self) -> None:
        """Clear the gradients of all parameters."""
        for p in self.parameters:
            p.grad = None

    def fidelity_gradients(self, loss: Tensor) -> list[Tensor]:
        """Return the fidelity loss's gradients, one per parameter, summed over processes.

        The gradients of the diffusion loss in ``p.grad`` are not touched.
        """
        gradients = cast(
            "Sequence[Tensor | None]",
            torch.autograd.grad(loss, self.parameters, allow_unused=True),
        )
        full = [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(self.parameters, gradients, strict=True)
        ]
        if running():
            flat = torch.cat([g.flatten() for g in full])  # `cat` takes the widest of their dtypes.
            dist.all_reduce(flat)
            pieces = torch.split(flat, [g.numel() for g in full])
            full = [piece.reshape(g.shape).to(g) for piece, g in zip(pieces, full, strict=True)]
        return full

    def step(self, iteration: int, fidelity_gradients: Sequence[Tensor] | None) -> GradientNorms:
        """Update weights and average by ``p.grad`` and the fidelity loss's gradients.

        Args:
            iteration: number of the iteration, which decides the learning rate.
            fidelity_gradients: from `fidelity_gradients`, or None.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        parts = [part for part in (gradients, fidelity_gradients) if part]
        # Fetch both norms at once: this is the only wait for the device in a step.
        norms: list[float] = torch.stack([_norm(part) for part in parts]).tolist()
        norm, fidelity_norm = [*norms, math.nan][:2]
        dropped = bool(fidelity_gradients) and not math.isfinite(fidelity_norm)
        if not math.isfinite(norm):
            return GradientNorms(norm, fidelity_norm, skipped=True, fidelity_dropped=dropped)
        _clip(gradients, self.settings.max_norm, norm)
        usable = None if dropped or self.fidelity is None else fidelity_gradients
        if usable and self.fidelity is not None:
            _clip(usable, self.fidelity.clip, fidelity_norm)
            if self.fidelity_optimizer is None:
                self._add(usable, float(self.fidelity.weight))
        self.optimizer.step(iteration)
        if usable and self.fidelity_optimizer is not None:
            for p, g in zip(self.parameters, usable, strict=True):
                p.grad = g
            self.fidelity_optimizer.step(iteration)
        self.average.update_parameters(self.modules)
        return GradientNorms(norm, fidelity_norm, skipped=False, fidelity_dropped=dropped)

    def _add(self, gradients: Sequence[Tensor], weight: float) -> None:
        for p, g in zip(self.parameters, gradients, strict=True):
            p.grad = weight * g if p.grad is None else p.grad.add_(g, alpha=weight)

    # ---- checkpoints

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, averages and optimiser states, by name."""
        tensors = {f"model.{k}": v for k, v in self.modules.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for label, optimizer in self._optimizers():
            tensors |= {f"{label}.{name}": value for name, value in optimizer.tensors().items()}
        return tensors

    def changed_settings(self) -> dict[str, Any]:
        """Return settings that each optimiser has changed, such as counters, by its name."""
        return {label: optimizer.changed_settings() for label, optimizer in self._optimizers()}

    def load(self, tensors: dict[str, Tensor], changed_settings: Mapping[str, Any]) -> None:
        """Restore what `tensors` and `changed_settings` returned.

        Raises:
            ValueError: tensors of other modules or optimisers; nothing has been changed then.
        """
        self._check_shapes(tensors)
        self.modules.load_state_dict(_without_prefix("model", tensors))
        self.average.load_state_dict(_without_prefix("average", tensors))
        for label, optimizer in self._optimizers():
            optimizer.load(_without_prefix(label, tensors), changed_settings[label])

    def _check_shapes(self, tensors: dict[str, Tensor]) -> None:
        expected = {name: tuple(value.shape) for name, value in self.tensors().items()}
        # Accept any moments: a fresh optimiser has none yet, so that their shapes are unknown.
        moments = tuple(
            f"{label}.{number}."
            for label, _ in self._optimizers()
            for number in range(len(self.parameters))
        )
        expected |= {k: tuple(v.shape) for k, v in tensors.items() if k.startswith(moments)}
        for name in sorted(expected.keys() | tensors.keys()):
            stored = tuple(tensors[name].shape) if name in tensors else "missing"
            wanted = expected.get(name, "unknown")
            if wanted != stored:
                raise ValueError(f"{name} is {stored} instead of {wanted}")

    def _optimizers(self) -> list[tuple[str, ScheduledOptimizer]]:
        """Return pairs (name in checkpoints, optimiser)."""
        both = [("optimizer", self.optimizer), ("fidelity_optimizer", self.fidelity_optimizer)]
        return [(label, optimizer) for label, optimizer in both if optimizer is not None]


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of all gradients, taken together as one vector."""
    norms = torch._foreach_norm(list(gradients))  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
    return torch.linalg.vector_norm(torch.stack(norms))


def _clip(gradients: Sequence[Tensor], max_norm: float, norm: float) -> None:
    """Scale gradients whose norm is `norm` down, in place, to at most `max_norm`."""
    if norm > max_norm:
        torch._foreach_mul_(  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
            list(gradients), max_norm / norm
        )


def _without_prefix(label: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose key starts with `<label>.`, keyed by the rest."""
    prefix = f"{label}."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
