"""Anderson-accelerated fixed points: each sample of a batch solved for itself."""

from __future__ import annotations

import math

import pytest
import torch

from fastsample.sampling.fixed_point import fixed_point


class Counted:
    """A map that keeps what it was called with."""

    def __init__(self, g):
        self.g, self.seen = g, []

    def __call__(self, y):
        self.seen.append(y.clone())
        return self.g(y)


def linear(eigenvalues, batch=3):
    """(map, its fixed points): ``A (y - y*) + y*`` with the given eigenvalues of A."""
    n = len(eigenvalues)
    basis = torch.eye(n).double() + 0.3 * torch.randn(n, n).double()
    matrix = basis @ torch.diag(torch.tensor(eigenvalues).double()) @ torch.linalg.inv(basis)
    points = torch.randn(batch, n).double()
    return lambda y: points + (y - points) @ matrix.T, points


def sizes(g, y):
    return (g(y) - y).flatten(1).abs().amax(1)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-8, 1e-13])
@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (2, 3, 4, 4)], ids=str)
def test_a_contraction_is_solved_to_the_tolerance(shape, tolerance):
    start = 2.0 * torch.rand(shape, dtype=torch.float64)
    g = Counted(torch.cos)
    got = fixed_point(g, start.clone(), tolerance, 50)
    assert got.shape == shape
    assert sizes(torch.cos, got).max() <= tolerance
    assert (got - 0.7390851332151607).abs().max() <= tolerance  # |cos'| < 1: nearer than 1 residual
    # Plain iteration gains a factor of 0.67 a call.
    assert len(g.seen) <= 5 + math.log10(1.0 / tolerance)


@pytest.mark.parametrize(
    "eigenvalues", [[-3.0], [-1.5, 0.9], [-8.0, -1.2, 0.5], [-2.0, 1.8, 4.0, -1.1, 0.3]], ids=str
)
def test_maps_that_plain_iteration_blows_up(eigenvalues):
    """Anderson is GMRES on a linear map: done after as many directions as there are."""
    g, points = linear(eigenvalues)
    plain = torch.zeros_like(points)
    for _ in range(60):
        plain = g(plain)
    assert not (plain - points).abs().max() < 1.0
    counted = Counted(g)
    got = fixed_point(counted, torch.zeros_like(points), 1e-7, 12)
    assert sizes(g, got).max() <= 1e-7
    torch.testing.assert_close(got, points, rtol=0.0, atol=1e-5)
    assert len(counted.seen) <= len(eigenvalues) + 4


def test_a_sample_is_the_same_next_to_a_slow_one():
    rates = torch.tensor([0.1, 0.999, -0.95, 0.5]).double()
    start = torch.randn(4, 6).double()

    def g(rates):
        return lambda y: rates[:, None] * torch.sin(3.0 * y) + 0.1 * y**2

    together = fixed_point(g(rates), start, 1e-9, 40)
    for i in range(4):
        own = slice(i, i + 1)
        assert torch.equal(together[own], fixed_point(g(rates[own]), start[own], 1e-9, 40))


def test_long_samples_are_nearly_the_same_in_any_batch():
    """Batched matrix products may round otherwise."""
    rates, start = torch.linspace(0.1, 0.9, 3).double()[:, None], torch.randn(3, 3000).double()
    together = fixed_point(lambda y: torch.cos(rates * y), start, 1e-9, 40)
    for i in range(3):
        alone = fixed_point(lambda y, i=i: torch.cos(rates[i] * y), start[i : i + 1], 1e-9, 40)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0.0, atol=1e-8)


def test_a_sample_stays_at_its_first_iterate_within_the_tolerance():
    start = torch.tensor([[5.0], [0.5]]).double()
    counted = Counted(lambda y: torch.cos(y) * 0.5)
    got = fixed_point(counted, start, 1e-6, 50)
    assert len(counted.seen) < 50
    for i in range(2):
        visited = [y[i : i + 1] for y in counted.seen]
        within = [y for y in visited if sizes(counted.g, y)[0] <= 1e-6]
        assert torch.equal(got[i : i + 1], within[0])


@pytest.mark.parametrize("calls", [1, 2, 3, 7])
def test_no_more_calls_than_allowed_and_the_best_of_them(calls):
    g = Counted(lambda y: -1.7 * y + torch.sin(5.0 * y) + 3.0)
    start = torch.linspace(-2.0, 2.0, 5).double()[:, None]
    got = fixed_point(g, start, 1e-14, calls)
    assert len(g.seen) == calls
    each = torch.stack([sizes(g.g, y) for y in g.seen])
    assert torch.equal(sizes(g.g, got), each.min(0).values)


def test_a_start_that_is_fixed_needs_one_call():
    start = torch.zeros(2, 3)
    g = Counted(torch.sin)
    assert torch.equal(fixed_point(g, start, 1e-6, 9), start)
    assert len(g.seen) == 1


def test_the_residual_is_the_largest_of_a_sample():
    start = torch.zeros(1, 10_000)
    start[0, 77] = 1.0
    assert fixed_point(lambda y: 0.5 * y, start, 1e-3, 30).abs().max() <= 2e-3


def test_NaN_ends_and_stays_with_its_sample():
    start = torch.ones(3, 2).double()
    g = Counted(lambda y: y * torch.nan)
    assert torch.equal(fixed_point(g, start, 1e-6, 6), start)
    assert len(g.seen) == 6

    def partly(y):
        return torch.cos(y) / torch.tensor([1.0, 0.0, 1.0]).double()[:, None]

    alone = fixed_point(torch.cos, start[:1], 1e-9, 30)
    got = fixed_point(partly, start, 1e-9, 30)
    assert torch.equal(got[0], alone[0])
    assert torch.equal(got[2], alone[0])
    assert torch.equal(got[1], start[1])


def test_an_empty_batch():
    for shape in ((0, 3), (0, 2, 4)):
        assert fixed_point(torch.cos, torch.zeros(shape), 1e-6, 5).shape == shape


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)],
)
def test_the_iterates_have_the_dtype_of_the_start(dtype, tolerance):
    g = Counted(torch.cos)
    start = torch.full((2, 3), 0.3, dtype=dtype)
    got = fixed_point(g, start, tolerance, 30)
    assert got.dtype == dtype
    assert {y.dtype for y in g.seen} == {dtype}
    assert len(g.seen) < 15
    assert (got.double() - 0.739085).abs().max() <= 2.0 * tolerance
    assert torch.equal(start, torch.full((2, 3), 0.3, dtype=dtype))
