"""Rows by least squares: each row carries the student as near to the teacher as it can.

A row's result is linear in its coefficients, so that, with the student's state, its estimate of x0
and two earlier ones given, the best row is a regression of 4 numbers on as many equations as there
are elements of all samples. Row by row that costs exactly one run of the sampler, no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fastsample import ops
from fastsample.plans.rows import COLUMNS
from fastsample.schedules.transition import ddim_terms
from fastsample.tuning.split import Shares
from fastsample.tuning.teacher import Teacher

Objective: TypeAlias = Literal["endpoint", "robust"]

_RIDGE = 1e-6  # of each feature's own energy, towards the DDIM step
HISTORY = 2
_FEATURES = [COLUMNS.index(name) for name in ("a", "b", "c1", "c2")]  # x, x0, h1, h2


@dataclass(frozen=True)
class Fitted:
    """A run of the student on some times.

    Attributes:
        chosen: positions in the teacher's times, falling.
        states: what each row started from, `(n, *shape)`, and the result.
        earlier: the x0's before each row, latest first.
        coefficients: of each row: x, x0, h1, h2, as many as there were.
    """

    chosen: tuple[int, ...]
    states: list[Tensor]
    earlier: list[tuple[Tensor, ...]]
    coefficients: list[Tensor]

    @property
    def result(self) -> Tensor:
        """`(n, *shape)`."""
        return self.states[-1]


def fit_rows(
    teacher: Teacher,
    chosen: tuple[int, ...],
    samples: slice,
    *,
    known: Fitted | None = None,
    robust: bool = False,
) -> Fitted:
    """Run the student on the chosen times and fit each row to the teacher's next state.

    Args:
        teacher: what to follow.
        chosen: positions in the teacher's times, falling.
        samples: which of them.
        known: a run whose rows are kept as far as they are the same.
        robust: samples that have gone another way than the teacher's count less.
    """
    conditions = teacher.runner.conditions.select(samples)
    kept = 0
    states, earlier, coefficients = [teacher.start[samples]], [()], []
    if known is not None:
        kept = _shared(known.chosen, chosen)
        states, earlier = known.states[: kept + 1], known.earlier[: kept + 1]
        coefficients = known.coefficients[:kept]
    x, history = states[-1], earlier[-1]
    for row in range(kept, len(chosen)):
        k = chosen[row]
        x0, output, uncond = teacher.model.x0(x, k, conditions)
        to = chosen[row + 1] + 1 if row + 1 < len(chosen) else 0
        features = (x, x0, *history)
        target = teacher.states[to][samples]
        if to == 0 and teacher.clips:
            # The result is x0 itself, which stays in the range of the data.
            coefficient = torch.tensor([0.0, 1.0, *[0.0] * len(history)], dtype=torch.float64)
        else:
            prior, weights = _ddim(teacher, k, to), None
            if robust and row:
                wanted = teacher.states[k + 1][samples]
                weights = _weights(x, wanted, teacher.shares, samples)
            coefficient = _regress(features, target, prior, weights, teacher.shares)
        x = _stepped(teacher, k, coefficient, x, output, uncond, history)
        history = (x0, *history)[:HISTORY]
        coefficients = [*coefficients, coefficient]
        states, earlier = [*states, x], [*earlier, history]
    return Fitted(chosen, states, earlier, coefficients)


def _stepped(
    teacher: Teacher,
    k: int,
    coefficient: Tensor,
    x: Tensor,
    output: Tensor,
    uncond: Tensor | None,
    history: tuple[Tensor, ...],
) -> Tensor:
    """The row's result by the operator that users run."""
    row = teacher.model.rows[k].copy()
    row[_FEATURES[: len(coefficient)]] = coefficient.numpy()
    table = torch.as_tensor(row[None], dtype=ops.rows_dtype(x.device), device=x.device)
    h1, h2 = (*history, None, None)[:2]
    number = torch.zeros(1, dtype=torch.int64, device=x.device)
    return ops.step(x, output, table, number, uncond=uncond, h1=h1, h2=h2)


def combined(features: tuple[Tensor, ...], coefficient: Tensor) -> Tensor:
    """``sum c_i f_i`` in the features' dtype."""
    values = coefficient.tolist()
    result = values[0] * features[0]
    for value, feature in zip(values[1:], features[1:], strict=True):
        result = result.add(feature, alpha=value)
    return result


def distance(
    result: Tensor,
    wanted: Tensor,
    objective: Objective,
    shares: Shares,
    scale: float | None = None,
) -> float:
    """Root mean square difference per element; "robust": pseudo-Huber of each sample's own.

    Args:
        result: `(n, *shape)`.
        wanted: the same.
        objective: how samples count.
        shares: of which all processes' errors are summed.
        scale: of the pseudo-Huber: errors far above it count linearly.
    """
    squares = (result - wanted).double().flatten(1).square().mean(1)
    if objective == "robust" and scale:
        squares = 2.0 * scale**2 * (torch.sqrt(1.0 + squares / scale**2) - 1.0)
    if not bool(torch.isfinite(squares).all()):
        squares = torch.full_like(squares, torch.inf)
    total, count = shares.sum(torch.stack([squares.sum(), squares.new_tensor(len(squares))]))
    return float((total / count).sqrt())


def _shared(old: tuple[int, ...], new: tuple[int, ...]) -> int:
    """How many first rows are the same: a row depends on its time and on the next."""
    same = 0
    while same < min(len(old), len(new)) and old[same] == new[same]:
        same += 1
    if same == len(new) == len(old):
        return same
    return max(same - 1, 0)


def _ddim(teacher: Teacher, k: int, to: int) -> tuple[float, float]:
    """(a, b) of the DDIM row between two of the teacher's states."""
    model = teacher.model
    level = (model.alpha[to - 1], model.sigma[to - 1]) if to else (1.0, 0.0)
    a, b = ddim_terms(model.alpha[k], model.sigma[k], *level)
    return float(a), float(b)


def _weights(x: Tensor, wanted: Tensor, shares: Shares, samples: slice) -> Tensor:
    """`(n,)` less for samples that are far from the teacher's, measured by their median."""
    squares = (x - wanted).double().flatten(1).square().mean(1)
    return 1.0 / (1.0 + squares / (9.0 * shares.median(squares, samples) + 1e-30))


def _regress(
    features: tuple[Tensor, ...],
    target: Tensor,
    prior: tuple[float, float],
    weights: Tensor | None,
    shares: Shares,
) -> Tensor:
    """Coefficients `(F,)` float64 on the CPU: normal equations with a small ridge to a prior."""
    base = torch.zeros(len(features), dtype=torch.float64)
    base[:2] = torch.tensor(prior, dtype=torch.float64)
    rest = target.double() - combined(tuple(f.double() for f in features), base)
    columns = torch.stack([f.double().flatten() for f in features])
    scaled = columns
    if weights is not None:
        per_element = weights.repeat_interleave(rest[0].numel())
        scaled = columns * per_element
    equations = torch.cat([scaled @ columns.T, (scaled @ rest.flatten())[:, None]], dim=1)
    gram, moment = shares.sum(equations).split([len(features), 1], dim=1)
    # A feature that is zero everywhere keeps its prior.
    energy = gram.diagonal().clamp(min=1e-300)
    return base + torch.linalg.solve(gram + torch.diag(_RIDGE * energy), moment)[:, 0]
