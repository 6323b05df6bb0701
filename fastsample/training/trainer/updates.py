"""One update of the weights from one or two gradients, and their moving average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel

from fastsample._support.checks import check_integer, check_real
from fastsample._support.distributed import running
from fastsample.training.trainer.optimizer import MakeOptimizer, Stepper


class Rate(NamedTuple):
    """Learning rate by iteration: it rises from 0, and falls to 0 along a cosine."""

    rate: float
    rises: int
    """Iterations to the full rate; 0 starts with it."""
    falls: int | None
    """Iterations to 0; None never falls."""

    def __call__(self, iteration: int) -> float:
        """At an iteration, from 0."""
        rise = min(1.0, (iteration + 1) / self.rises) if self.rises else 1.0
        if self.falls is None:
            return self.rate * rise
        done = min(iteration / self.falls, 1.0)
        return self.rate * rise * 0.5 * (1.0 + math.cos(math.pi * done))


class Norms(NamedTuple):
    """Norms of the gradients before they were clipped, and what was done with them."""

    diffusion: float
    fidelity: float
    """NaN where there was none."""
    skipped: bool
    """Nothing was changed: the gradient of the diffusion loss was not finite."""
    dropped: bool = False
    """The fidelity term's gradient was not finite, and was left out."""


class Updates:
    """Optimisers and moving average of some modules.

    With `second_rate` the second gradient has an optimiser of its own, with its own moments; else
    both are added and one optimiser takes one step. Steps of one optimiser never alternate between
    the two: a second step on shared moments, even of a zero gradient, acts as a larger rate.

    Args:
        modules: whose parameters are trained.
        rate: of the optimiser.
        second_rate: the same for the second gradient's own optimiser, or None.
        weight: of the second gradient in a sum.
        clip: largest norm of the first gradient; inf is none.
        second_clip: largest norm of the second.
        decay: of the moving average, in [0, 1); less in the first iterations.
        make: ``(parameters, lr=...) -> Optimizer``.
        make_second: the same for the second gradient's own.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        *,
        rate: Rate,
        second_rate: Rate | None,
        weight: float,
        clip: float,
        second_clip: float,
        decay: float,
        make: MakeOptimizer = AdamW,
        make_second: MakeOptimizer = AdamW,
    ) -> None:
        self.modules = nn.ModuleList(modules)
        self.parameters = [p for p in self.modules.parameters() if p.requires_grad]
        self.rate, self.second_rate, self.weight = rate, second_rate, weight
        self.clip, self.second_clip = clip, second_clip
        # At the full rate: a group with a rate of its own is in proportion to that.
        self.optimizer = Stepper(make(self.parameters, lr=rate.rate), rate.rate)
        self.second = None
        if second_rate:
            own = second_rate.rate
            self.second = Stepper(make_second(self.parameters, lr=own), own)
        self.averaged = _averaged(self.modules, decay)

    @property
    def averages(self) -> list[nn.Module]:
        """The modules with averaged weights."""
        return list(self.averaged.module)  # type: ignore[arg-type]  # it is a copy of a ModuleList

    def zero(self) -> None:
        """Forget the gradients."""
        for p in self.parameters:
            p.grad = None

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """Of the second term, summed over processes; the first term's stay where they are."""
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        full = [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(self.parameters, found, strict=True)
        ]
        if running():
            flat = torch.cat([g.flatten() for g in full])  # in the widest of their dtypes
            dist.all_reduce(flat)
            pieces = flat.split([g.numel() for g in full])
            full = [piece.reshape(g.shape).to(g) for piece, g in zip(pieces, full, strict=True)]
        return full

    def step(self, iteration: int, second: Sequence[Tensor] | None) -> Norms:
        """Change the weights by the gradients they carry and the second term's."""
        first = [p.grad for p in self.parameters if p.grad is not None]
        norms = torch.stack([_norm(part) for part in (first, second) if part])
        own, other = [*norms.tolist(), math.nan][:2]  # the only wait for the device
        dropped = bool(second) and not math.isfinite(other)
        if not math.isfinite(own):
            return Norms(own, other, skipped=True, dropped=dropped)
        _scale(first, self.clip, own)
        usable = None if dropped else second
        if usable:
            _scale(usable, self.second_clip, other)
        if usable and self.second is None:
            for p, g in zip(self.parameters, usable, strict=True):
                p.grad = self.weight * g if p.grad is None else p.grad.add_(g, alpha=self.weight)
        self.optimizer.step_at(self.rate(iteration))
        if usable and self.second is not None and self.second_rate is not None:
            for p, g in zip(self.parameters, usable, strict=True):
                p.grad = g
            self.second.step_at(self.second_rate(iteration))
        self.averaged.update_parameters(self.modules)
        return Norms(own, other, skipped=False, dropped=dropped)

    # ---- what a checkpoint holds

    def tensors(self) -> dict[str, Tensor]:
        """Weights, average and moments by name."""
        found = {f"model.{k}": v for k, v in self.modules.state_dict().items()}
        found |= {f"average.{k}": v for k, v in self.averaged.state_dict().items()}
        for label, stepper in self._steppers():
            found |= {f"{label}.{name}": value for name, value in stepper.tensors().items()}
        return found

    def notes(self) -> dict[str, Any]:
        """What optimisers keep besides tensors."""
        return {label: stepper.changes() for label, stepper in self._steppers()}

    def load(self, tensors: dict[str, Tensor], notes: Mapping[str, Any]) -> None:
        """What `tensors` and `notes` gave, into the same modules.

        Raises:
            ValueError: of other modules or optimisers; nothing was changed then.
        """
        self._check(tensors)
        self.modules.load_state_dict(_under("model", tensors))
        self.averaged.load_state_dict(_under("average", tensors))
        for label, stepper in self._steppers():
            stepper.load(_under(label, tensors), notes[label])

    def _check(self, tensors: dict[str, Tensor]) -> None:
        shapes = {name: tuple(value.shape) for name, value in self.tensors().items()}
        # A fresh optimiser has no moments yet, and only it knows what shape they have.
        moments = tuple(
            f"{label}.{number}."
            for label, _ in self._steppers()
            for number in range(len(self.parameters))
        )
        shapes |= {k: tuple(v.shape) for k, v in tensors.items() if k.startswith(moments)}
        for name in sorted(shapes.keys() | tensors.keys()):
            theirs = tuple(tensors[name].shape) if name in tensors else "missing"
            mine = shapes.get(name, "unknown")
            if mine != theirs:
                raise ValueError(f"{name} is {theirs} instead of {mine}")

    def _steppers(self) -> list[tuple[str, Stepper]]:
        both = [("optimizer", self.optimizer), ("fidelity_optimizer", self.second)]
        return [(label, stepper) for label, stepper in both if stepper is not None]


def updates_of(
    modules: Iterable[nn.Module],
    *,
    lr: float,
    second_lr: float | None,
    warmup: int,
    decay: int | None,
    weight_decay: float,
    optimizer: MakeOptimizer | None,
    clip: float | None,
    second_clip: float,
    weight: float,
    ema: float,
) -> Updates:
    """The updates that a trainer's arguments of these names ask for, checked."""
    rises = check_integer("Trainer", "warmup", warmup, 0)
    falls = None if decay is None else check_integer("Trainer", "decay", decay, 1)
    decays = check_real("Trainer", "weight_decay", weight_decay, 0.0)
    if optimizer is not None and decays:
        raise ValueError(
            f"Trainer: weight_decay must be left to the optimizer given, got {decays:g}"
        )
    own = None if second_lr is None else Rate(_positive("fidelity_lr", second_lr), rises, falls)
    return Updates(
        modules,
        rate=Rate(_positive("lr", lr), rises, falls),
        second_rate=own,
        weight=check_real("Trainer", "fidelity_weight", weight, 0.0),
        clip=math.inf if clip is None else _positive("clip", clip),
        second_clip=_positive("fidelity_clip", second_clip),
        decay=check_real("Trainer", "ema", ema, 0.0, 0.999999),
        make=optimizer or partial(AdamW, weight_decay=decays),
        make_second=optimizer or partial(AdamW, weight_decay=0.0),
    )


def _positive(name: str, value: Any) -> float:
    found = check_real("Trainer", name, value)
    if found <= 0.0:
        raise ValueError(f"Trainer: {name} must be positive, got {found:g}")
    return found


def _averaged(modules: nn.Module, decay: float) -> AveragedModel:
    def lerp(average: Any, current: Any, _count: Any) -> None:
        # A short memory at first: the earliest weights are worth little.
        n = float(averaged.n_averaged)  # on the CPU, unlike the argument: no wait
        share = 1.0 - min(decay, (1.0 + n) / (10.0 + n))
        kept = [(a, c) for a, c in zip(average, current, strict=True)]
        moving = [(a, c) for a, c in kept if a.is_floating_point()]
        ours, theirs = ([pair[i] for pair in moving] for i in (0, 1))
        if ours:  # a group of integers has none
            torch._foreach_lerp_(ours, theirs, share)  # pyright: ignore[reportPrivateImportUsage]
        for a, c in kept:
            if not a.is_floating_point():
                a.copy_(c)

    averaged = AveragedModel(modules, multi_avg_fn=lerp, use_buffers=True)
    return averaged.requires_grad_(False).eval()


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    each = torch._foreach_norm(list(gradients))  # pyright: ignore[reportPrivateImportUsage]
    return torch.linalg.vector_norm(torch.stack(each))


def _scale(gradients: Sequence[Tensor], limit: float, norm: float) -> None:
    if norm > limit:
        share = limit / norm
        torch._foreach_mul_(list(gradients), share)  # pyright: ignore[reportPrivateImportUsage]


def _under(label: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{label}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
