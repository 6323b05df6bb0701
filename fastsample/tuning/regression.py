"""Fits a plan's rows (coefficients of a step) to the states of a fine run by least squares.

The student is the run of K steps that is fitted, the teacher the fine run that it follows. The
result of a row is linear in its coefficients: with the student's state, its estimate of x0 and two
earlier estimates known, the best row is a regression of 4 numbers on as many equations as all
samples have elements. Fitting row by row takes one run of the sampler, and no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor

from fastsample import ops
from fastsample.plans.rows import COLUMNS
from fastsample.schedules.transition import ddim_terms
from fastsample.tuning.split import Split
from fastsample.tuning.teacher import Teacher

Objective: TypeAlias = Literal["endpoint", "robust"]
_Solve: TypeAlias = Callable[[Tensor, Tensor], Tensor]

HISTORY = 2  # A row may read this many earlier estimates of x0.
_RIDGE = 1e-6  # pulls towards the DDIM step, relative to the sum of squares of each feature
_FEATURES = [COLUMNS.index(name) for name in ("a", "b", "c1", "c2")]  # for x, x0, h1, h2


@dataclass(frozen=True)
class FittedRun:
    """Holds a run of the student on some times, with its rows fitted to the teacher.

    Attributes:
        positions: positions of the times in the teacher's times, descending.
        states: samples `(n, *shape)` before each row, and the result.
        histories: the earlier x0 `(n, *shape)` that each row may read, latest first.
        coefficients: float64 coefficients of each row: of x, x0, and the earlier x0.
    """

    positions: tuple[int, ...]
    states: list[Tensor]
    histories: list[tuple[Tensor, ...]]
    coefficients: list[Tensor]

    @property
    def result(self) -> Tensor:
        """Return the samples `(n, *shape)` after the last row."""
        return self.states[-1]


def fit_rows(
    teacher: Teacher,
    positions: tuple[int, ...],
    samples: slice,
    *,
    previous: FittedRun | None = None,
    robust: bool = False,
) -> FittedRun:
    """Run the student on some times and fit each step's coefficients to the teacher's next state.

    Args:
        teacher: the run to follow.
        positions: positions of the times in the teacher's times, descending.
        samples: local positions of the samples.
        previous: an earlier run on the same samples; its first rows are reused as far as they are
            the same.
        robust: give less weight to samples that have moved far from the teacher's.
    """
    conditions = teacher.runner.conditions.select(samples)
    num_reused = 0
    states: list[Tensor] = [teacher.start[samples]]
    histories: list[tuple[Tensor, ...]] = [()]
    coefficients: list[Tensor] = []
    if previous is not None:
        num_reused = _num_equal_rows(previous.positions, positions)
        states = previous.states[: num_reused + 1]
        histories = previous.histories[: num_reused + 1]
        coefficients = previous.coefficients[:num_reused]
    x, history = states[-1], histories[-1]
    for row in range(num_reused, len(positions)):
        k = positions[row]
        x0, output, uncond = teacher.model.x0(x, k, conditions)
        next_state = positions[row + 1] + 1 if row + 1 < len(positions) else 0
        target = teacher.states[next_state][samples]
        if next_state == 0 and teacher.clips:
            # Make the result x0 itself, so that it stays in the range of the data.
            coefficient = torch.tensor(
                [0.0, 1.0, *[0.0] * len(history)], dtype=torch.float64, device="cpu"
            )
        else:
            prior, weights = _ddim_coefficients(teacher, k, next_state), None
            if robust and row:
                weights = _weights(x, teacher.states[k + 1][samples], teacher.split, samples)
            coefficient = _regress((x, x0, *history), target, prior, weights, teacher.split)
        x = _stepped(teacher, k, coefficient, x, output, uncond, history)
        history = (x0, *history)[:HISTORY]
        coefficients = [*coefficients, coefficient]
        states, histories = [*states, x], [*histories, history]
    return FittedRun(positions, states, histories, coefficients)


def _stepped(
    teacher: Teacher,
    k: int,
    coefficient: Tensor,
    x: Tensor,
    output: Tensor,
    uncond: Tensor | None,
    history: tuple[Tensor, ...],
) -> Tensor:
    """Return the samples after a row with these coefficients, by the same operator as `sample`."""
    row = teacher.model.rows[k].copy()
    row[_FEATURES[: len(coefficient)]] = coefficient.numpy()
    table = torch.as_tensor(row[None], dtype=ops.rows_dtype(x.device), device=x.device)
    h1, h2 = (*history, None, None)[:2]
    number = torch.zeros(1, dtype=torch.int64, device=x.device)
    return ops.step(x, output, table, number, uncond=uncond, h1=h1, h2=h2)


def linear_combination(features: tuple[Tensor, ...], coefficient: Tensor) -> Tensor:
    """Return ``sum c_i f_i`` for F features of equal shape and coefficients `(F,)`."""
    values = [float(value) for value in coefficient]
    result = values[0] * features[0]
    for value, feature in zip(values[1:], features[1:], strict=True):
        result = result.add(feature, alpha=value)
    return result


def distance(
    result: Tensor,
    target: Tensor,
    objective: Objective,
    split: Split,
    scale: float | None = None,
) -> float:
    """Return the root mean square difference per element, over the samples of all processes.

    Args:
        result: `(n, *shape)`.
        target: `(n, *shape)`.
        objective: "robust" takes the pseudo-Huber loss of each sample's root mean square instead
            of its square.
        split: the split of the samples over processes.
        scale: error of a sample above which its pseudo-Huber loss grows linearly; None is the
            square.
    """
    squares = (result - target).double().flatten(1).square().mean(1)
    if objective == "robust" and scale:
        squares = 2.0 * scale**2 * (torch.sqrt(1.0 + squares / scale**2) - 1.0)
    if not bool(torch.isfinite(squares).all()):
        squares = torch.full_like(squares, torch.inf)
    total, count = split.sum(torch.stack([squares.sum(), squares.new_tensor(len(squares))]))
    return float((total / count).sqrt())


def _num_equal_rows(old: tuple[int, ...], new: tuple[int, ...]) -> int:
    """Return the number of equal first rows; a row depends on its time and the next one."""
    same = 0
    while same < min(len(old), len(new)) and old[same] == new[same]:
        same += 1
    if same == len(new) == len(old):
        return same
    return max(same - 1, 0)


def _ddim_coefficients(teacher: Teacher, k: int, next_state: int) -> tuple[float, float]:
    """Return (a, b) of the DDIM step ``a x + b x0`` from time k to one of the teacher's states."""
    model = teacher.model
    target = next_state - 1
    level = (model.alpha[target], model.sigma[target]) if next_state else (1.0, 0.0)
    a, b = ddim_terms(model.alpha[k], model.sigma[k], *level)
    return float(a), float(b)


def _weights(x: Tensor, target: Tensor, split: Split, samples: slice) -> Tensor:
    """Return `(n,)` weights, smaller the farther a sample is from the teacher's sample.

    Distances are in units of their median. A sample at three times the median distance counts half.
    """
    squares = (x - target).double().flatten(1).square().mean(1)
    return 1.0 / (1.0 + squares / (9.0 * split.median(squares, samples) + 1e-30))


def _regress(
    features: tuple[Tensor, ...],
    target: Tensor,
    prior: tuple[float, float],
    weights: Tensor | None,
    split: Split,
) -> Tensor:
    """Solve least squares by normal equations, with a small ridge towards a prior.

    Args:
        features: F tensors `(n, *shape)`: x, x0, and earlier x0.
        target: `(n, *shape)`.
        prior: the coefficients of x and x0 that the ridge pulls towards; the others are 0.
        weights: `(n,)` weights of the samples; None is equal weights.
        split: the split of the samples over processes.

    Returns:
        Coefficients `(F,)`, float64 on the CPU.
    """
    base = torch.zeros(len(features), dtype=torch.float64, device="cpu")
    base[:2] = torch.tensor(prior, dtype=torch.float64, device="cpu")
    residual = target.double() - linear_combination(tuple(f.double() for f in features), base)
    columns = torch.stack([f.double().flatten() for f in features])
    weighted = columns
    if weights is not None:
        weighted = columns * weights.repeat_interleave(residual[0].numel())
    equations = torch.cat([weighted @ columns.T, (weighted @ residual.flatten())[:, None]], dim=1)
    gram, moment = torch.split(split.sum(equations), [len(features), 1], dim=1)
    # With a positive diagonal a feature that is zero everywhere keeps its prior coefficient.
    energy = gram.diagonal().clamp(min=1e-300)
    solve = cast(_Solve, torch.linalg.solve)  # pyright: ignore[reportUnknownMemberType]
    return base + solve(gram + torch.diag(_RIDGE * energy), moment)[:, 0]
