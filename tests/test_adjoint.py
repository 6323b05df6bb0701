"""Adjoint-weighted costs: what one DDIM step does to the end, against doing it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from adjoint_cases import D, Linear, identity, signs
from networks import LINEAR

from fastsample.profiling.adjoint import step_terms
from fastsample.profiling.backward import adjoints_of
from fastsample.schedules.transition import ddim_terms

TIMES = np.array([1.0, 60.0, 200.0, 480.0, 777.0, 1000.0])
ALPHA, SIGMA = LINEAR.levels(np.append(0.0, TIMES))


def step(estimate, x, k, s):
    """DDIM from time number k (1 is the first) to number s."""
    a, b = ddim_terms(ALPHA[k], SIGMA[k], ALPHA[s], SIGMA[s])
    return float(a) * x + float(b) * estimate(x, k - 1)


def finished(estimate, x, s):
    """The fine trajectory's end from x at time number s."""
    for k in range(s, 0, -1):
        x = step(estimate, x, k, k - 1)
    return x


def trajectory(estimate, start):
    states = [start]
    for k in range(len(TIMES), 0, -1):
        states.append(step(estimate, states[-1], k, k - 1))
    return torch.stack(states[::-1])


def measured(estimate, states, first=0):
    count = states.shape[1]
    fine = (ALPHA[1:], SIGMA[1:])
    return adjoints_of("test", estimate, TIMES, fine, states, identity(count, first))


def curved(clip=np.inf):
    """A nonlinear x0, clamped."""

    def estimate(x, k):
        return (torch.tanh(x * (0.5 + 0.1 * k)) + 0.3 * x.roll(1, -1)).clamp(-clip, clip)

    return estimate


def linear(x, k):
    told = torch.full((len(x),), TIMES[k] - 1.0)
    eps = Linear().requires_grad_(False)(x, told)
    return (x - SIGMA[k + 1] * eps) / ALPHA[k + 1]


PAIRS = [(t, s) for t in range(1, len(TIMES) + 1) for s in range(t)]
START = torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("clip", [np.inf, 0.8])
def test_adjoints_are_products_of_jacobians(clip):
    estimate, u = curved(clip), signs(5)
    states = trajectory(estimate, START)
    found = measured(estimate, states)
    assert found.count == 5
    expected, starts = np.zeros_like(found.steps), np.zeros_like(found.starts)
    for i, s in itertools.product(range(5), range(len(TIMES) + 1)):
        jacobian = torch.func.jacrev(lambda x, s=s: finished(estimate, x, s))(states[s, i])
        g = u[i] @ jacobian
        starts[s] += float(g @ (states[-1, i] - states[s, i])) ** 2 if s else 0.0
        for t in range(s + 1, len(TIMES) + 1):
            expected[t, s] += float(g @ (step(estimate, states[t, i], t, s) - states[s, i])) ** 2
    np.testing.assert_allclose(found.steps, expected, rtol=1e-9, atol=1e-28)
    np.testing.assert_allclose(found.starts, starts, rtol=1e-9)


def test_a_linear_model_s_costs_are_what_the_step_does_to_the_end():
    states = trajectory(linear, START)
    found, u = measured(linear, states), signs(5)
    errors, starts = found.squared_errors(), found.start_errors()
    for t, s in PAIRS:
        away = finished(linear, step(linear, states[t], t, s), s) - states[0]
        expected = float((u * away).sum(1).square().mean())
        assert errors[t, s] == pytest.approx(expected, rel=1e-9, abs=1e-26)
        away = finished(linear, START, t) - states[0]
        expected = float((u * away).sum(1).square().mean())
        assert starts[t] == pytest.approx(expected, rel=1e-9, abs=1e-26)
    # The trajectory's own steps cost nothing: squares of rounding, not roundings of squares.
    assert np.all(np.diag(errors, -1) < 1e-27)
    assert np.all(np.isinf(errors[np.triu_indices(len(errors))]))
    assert starts[0] == np.inf


def test_random_signs_give_the_squared_length():
    """Many probes of one trajectory."""
    count = 4000
    states = trajectory(linear, START[:1]).expand(-1, count, -1)
    found = measured(linear, states).squared_errors()
    for t, s in [(6, 0), (6, 2), (4, 1), (3, 0)]:
        away = finished(linear, step(linear, states[t, :1], t, s), s) - states[0, :1]
        length = float(away.square().sum())
        # A square of a sum of random signs varies by at most sqrt(2) of its mean.
        assert found[t, s] == pytest.approx(length, rel=5 * np.sqrt(2 / count))


def test_terms_are_those_of_ddim():
    scale, gain = step_terms(ALPHA, SIGMA)
    for t, s in PAIRS:
        a, b = ddim_terms(ALPHA[t], SIGMA[t], ALPHA[s], SIGMA[s])
        assert (scale[s, t], gain[s, t]) == (float(a), float(b))
    assert not np.tril(scale).any()
    assert not np.tril(gain).any()
