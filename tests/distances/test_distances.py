"""Distances between samples and data against loops in float64, closed forms and POT."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsample.distances import pairwise
from fastsample.distances.distances import (
    energy_distance,
    energy_score,
    mmd,
    paired_huber,
    paired_mse,
    random_directions,
    sliced_wasserstein,
)

SET_LOSSES = {
    "energy": energy_distance,
    "mmd": mmd,
    "sliced": lambda x, y: sliced_wasserstein(x, y, axes(x)),
}
PAIR_LOSSES = {"mse": paired_mse, "huber": paired_huber}
SHAPES = [(), (1,), (2,), (3, 2), (40,)]
sizes = given(n=st.integers(2, 7), m=st.integers(2, 7), shape=st.sampled_from(SHAPES))
few = settings(max_examples=25, deadline=None)


def axes(x: torch.Tensor, count: int = 6) -> torch.Tensor:
    """Some fixed directions for samples like x."""
    return random_directions(count, x[0].numel(), torch.Generator().manual_seed(5))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sets(n: int, m: int, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    return normal(n, *shape, seed=1), 0.7 * normal(m, *shape, seed=2) + 0.3


# ---- loops


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return math.sqrt(sum((p - q) ** 2 for p, q in zip(a.ravel(), b.ravel(), strict=True)))


def mean_between(x: np.ndarray, y: np.ndarray, f=distance) -> float:
    return sum(f(a, b) for a in x for b in y) / (len(x) * len(y))


def mean_within(x: np.ndarray, f=distance) -> float:
    pairs = list(itertools.permutations(range(len(x)), 2))
    return sum(f(x[i], x[j]) for i, j in pairs) / len(pairs)


def naive_mmd(x: np.ndarray, y: np.ndarray, bandwidths: tuple[float, ...]) -> float:
    known = sorted(distance(a, b) for a, b in itertools.combinations(y, 2))
    median = known[(len(known) - 1) // 2]

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        d = distance(a, b) / median
        return sum(math.exp(-(d**2) / (2 * w**2)) for w in bandwidths) / len(bandwidths)

    return mean_within(x, kernel) + mean_within(y, kernel) - 2 * mean_between(x, y, kernel)


def naive_sliced(x: np.ndarray, y: np.ndarray, directions: np.ndarray) -> float:
    """Both sets repeated to the same count, where the best matching is that of the ranks."""
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    total = 0.0
    for direction in directions:
        a = np.sort(np.repeat(x @ direction, len(y)))
        b = np.sort(np.repeat(y @ direction, len(x)))
        total += float(np.mean((a - b) ** 2))
    return total / len(directions)


@few
@sizes
def test_sets_against_loops(n: int, m: int, shape: tuple[int, ...]) -> None:
    x, y = sets(n, m, shape)
    a, b = x.numpy(), y.numpy()
    expected = 2 * mean_between(a, b) - mean_within(a) - mean_within(b)
    assert float(energy_distance(x, y)) == pytest.approx(expected, abs=1e-12)
    widths = (0.4, 1.5)
    assert float(mmd(x, y, bandwidths=widths)) == pytest.approx(naive_mmd(a, b, widths), abs=1e-12)
    expected = naive_sliced(a, b, axes(x).double().numpy())
    assert float(sliced_wasserstein(x, y, axes(x))) == pytest.approx(expected, abs=1e-12)


@few
@sizes
def test_energy_score_against_loops(n: int, m: int, shape: tuple[int, ...]) -> None:
    x, y = normal(m, n, *shape), normal(n, *shape, seed=3)
    chains = x.numpy()
    expected = np.mean(
        [
            2 * mean_between(chains[:, i], y[i : i + 1].numpy()) - mean_within(chains[:, i])
            for i in range(n)
        ]
    )
    assert float(energy_score(x, y)) == pytest.approx(expected, abs=1e-12)


@few
@sizes
def test_pairs_against_loops(n: int, m: int, shape: tuple[int, ...]) -> None:
    x, y = normal(n, *shape), 2 * normal(n, *shape, seed=m)
    errors = (x - y).numpy().ravel()
    assert float(paired_mse(x, y)) == pytest.approx(sum(e * e for e in errors) / len(errors))
    for delta in (0.3, 1.0):
        terms = [e * e / 2 if abs(e) <= delta else delta * (abs(e) - delta / 2) for e in errors]
        assert float(paired_huber(x, y, delta)) == pytest.approx(sum(terms) / len(terms))


# ---- gradients and arithmetic


@pytest.mark.parametrize("name", [*SET_LOSSES, *PAIR_LOSSES, "score"])
def test_gradients(name: str) -> None:
    if name == "score":
        arguments, loss = (normal(3, 4, 2), normal(4, 2, seed=1)), energy_score
    else:
        loss = {**SET_LOSSES, **PAIR_LOSSES}[name]
        arguments = (normal(4, 2), normal(4 if name in PAIR_LOSSES else 6, 2, seed=1))
    x, y = (a.requires_grad_() for a in arguments)
    # The bandwidth of mmd is a constant of the data: only samples are differentiated there.
    assert torch.autograd.gradcheck(loss, (x, y.detach() if name == "mmd" else y))


def test_no_gradient_flows_through_the_bandwidth_of_mmd() -> None:
    """With learned features the data have a gradient too: that at a median held fixed."""
    x, y = sets(5, 6, (2,))
    y.requires_grad_()
    mmd(x, y, bandwidths=[1.0]).backward()
    width = float(torch.nn.functional.pdist(y.detach()).median())
    z = y.detach().clone().requires_grad_()
    within = torch.exp(-torch.nn.functional.pdist(z).square() / (2 * width**2)).mean()
    across = torch.exp(-torch.cdist(x, z).square() / (2 * width**2)).mean()
    (within - 2 * across).backward()
    torch.testing.assert_close(y.grad, z.grad)


@pytest.mark.parametrize("size", [1, 2, 300], ids="D{}".format)
@pytest.mark.parametrize("name", SET_LOSSES)
def test_coinciding_points_have_a_finite_gradient(name: str, size: int) -> None:
    y = normal(6, size, dtype=torch.float32)
    x = torch.cat([y[:3], y[:3]]).requires_grad_()
    SET_LOSSES[name](x, y).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() < 10


def test_equal_chains_have_a_finite_gradient() -> None:
    y = normal(3, 2)
    x = y.expand(4, 3, 2).clone().requires_grad_()
    energy_score(x, y).backward()
    assert x.grad is not None
    assert float(x.grad.abs().max()) == 0


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_wide_and_narrow_distances_agree(monkeypatch, offset: float) -> None:
    """The product form against the difference form, in values and in slopes; far from 0 too."""
    x = (normal(20, 500) + offset).float()
    # Some points of the data are a rounding away from samples, where products cancel.
    y = torch.cat([normal(10, 500, seed=1).float() + offset, x[:3] * (1 + 2e-7), x[3:5]])
    weights = normal(20, 15, seed=2, dtype=torch.float32)
    result = []
    for narrow in (0, 500):
        monkeypatch.setattr(pairwise, "_MAX_DIRECT", narrow)
        leaf = x.clone().requires_grad_()
        distances = pairwise.pairwise_distances(leaf, y)
        (distances[5:, :10] * weights[5:, :10]).sum().backward()
        result.append((distances.detach(), leaf.grad))
    (one, slope), (other, other_slope) = result
    exact = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
    size = float(x.double().norm(dim=1).max())
    eps = torch.finfo(torch.float32).eps
    # One rounding of a sample bounds the cancellation; the direct form sums 500 squares.
    assert float((one.double() - exact).abs().max()) < eps * size
    assert float((other.double() - exact).abs().max()) < 500 * eps * float(exact.max())
    assert float((slope - other_slope).abs().max()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", [*SET_LOSSES, *PAIR_LOSSES])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    x, y = (normal(8, 50, seed=s).to(dtype) for s in (0, 1))
    loss = {**SET_LOSSES, **PAIR_LOSSES}[name]
    got = loss(x, y)
    assert got.dtype == torch.float32
    assert torch.equal(got, loss(x.float(), y.float()))
    assert float(got) == pytest.approx(float(loss(x.double(), y.double())), rel=1e-5, abs=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(x, y), got)


def test_the_wider_dtype_wins() -> None:
    x, y = normal(5, 40).float(), normal(4, 40, seed=1)
    assert energy_distance(x, y).dtype == torch.float64
    assert torch.equal(energy_distance(x, y), energy_distance(x.double(), y))


def test_nan_is_not_hidden() -> None:
    for size in (2, 300):
        x = normal(4, size, dtype=torch.float32)
        x[1, 0] = math.nan
        for loss in SET_LOSSES.values():
            assert torch.isnan(loss(x, normal(5, size, dtype=torch.float32)))


# ---- statistics


@pytest.mark.parametrize(
    ("name", "n", "m"), [("energy", 2, 2), ("energy", 3, 8), ("mmd", 4, 60), ("score", 2, 1)]
)
def test_u_statistics_have_no_bias(name: str, n: int, m: int) -> None:
    """Equal distributions: the mean over draws is within its standard error of the true value."""
    draws = normal(3000, n + m, 2, seed=11)
    if name == "score":  # E|x - x'| of two normal variables in 2-D
        values = torch.stack([energy_score(d[:n, None], d[n:]) for d in draws]) - math.sqrt(math.pi)
    else:
        values = torch.stack([SET_LOSSES[name](d[:n], d[n:]) for d in draws])
    assert abs(float(values.mean())) < 3 * float(values.std()) / math.sqrt(len(values))


@pytest.mark.parametrize("name", ["energy", "mmd"])
def test_distances_do_not_depend_on_the_frame(name: str) -> None:
    x, y = sets(9, 6, (3,))
    rotation = torch.linalg.qr(normal(3, 3, seed=4)).Q
    shift = normal(3, seed=5)
    loss = SET_LOSSES[name]
    torch.testing.assert_close(loss(x @ rotation + shift, y @ rotation + shift), loss(x, y))
    torch.testing.assert_close(loss(x.flip(0), y[[3, 0, 5, 1, 2, 4]]), loss(x, y))


def test_units() -> None:
    x, y = sets(9, 6, (3,))
    directions = axes(x)
    torch.testing.assert_close(energy_distance(3 * x, 3 * y), 3 * energy_distance(x, y))
    torch.testing.assert_close(mmd(3 * x, 3 * y), mmd(x, y))
    torch.testing.assert_close(
        sliced_wasserstein(3 * x, 3 * y, directions), 9 * sliced_wasserstein(x, y, directions)
    )


def test_a_distribution_loss_finds_the_data_and_a_paired_one_their_mean() -> None:
    """Among N(mu, s) the energy distance, mmd and sliced W2 are least at the data's own mu, s."""
    noise, data = normal(500, 1, seed=1), 0.5 + 0.8 * normal(500, 1, seed=2)
    candidates = list(itertools.product([0.2, 0.5, 0.8], [0.0, 0.4, 0.8, 1.2]))

    def best(loss) -> tuple[float, float]:
        return min(candidates, key=lambda c: float(loss(c[0] + c[1] * noise, data)))

    for loss in SET_LOSSES.values():
        assert best(loss) == (0.5, 0.8)
    assert best(paired_mse) == (0.5, 0.0)
    assert best(paired_huber) == (0.5, 0.0)


def test_energy_score_is_strictly_proper() -> None:
    """Given its start each x0 has a mean of its own; the score wants the spread around it."""
    centre, chains = normal(2000, 2, seed=1), normal(4, 2000, 2, seed=3)
    x0 = centre + 0.6 * normal(2000, 2, seed=2)
    scores = {s: float(energy_score(centre + s * chains, x0)) for s in (0.0, 0.3, 0.6, 0.9)}
    assert min(scores, key=lambda s: scores[s]) == 0.6
    # E|x - x0| and E|x - x'| of normal variables in 2-D: the score is that mean at the optimum.
    assert scores[0.6] == pytest.approx(0.6 * math.sqrt(math.pi), rel=0.02)


# ---- known values


def test_two_points_each() -> None:
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [4.0]])
    # 2 (2 + 4 + 1 + 3)/4 - 1 - 2
    assert float(energy_distance(x, y)) == 2.0
    # Ranks: 0 -> 2, 1 -> 4
    assert float(sliced_wasserstein(x, y, torch.ones(1, 1))) == pytest.approx((4 + 9) / 2)
    # Median distance 2; one bandwidth of half of it: exp(-d^2/2).
    e = [math.exp(-(d**2) / 2) for d in (1, 2, 3, 4)]
    expected = e[0] + e[1] - (e[1] + e[3] + e[0] + e[2]) / 2
    assert float(mmd(x, y, bandwidths=[0.5])) == pytest.approx(expected)


def test_a_shift_in_one_dimension_is_its_square() -> None:
    x = normal(50, 1)
    assert float(sliced_wasserstein(x, x + 3, torch.ones(1, 1))) == pytest.approx(9.0)
    # Every point three times: the same distribution.
    assert float(sliced_wasserstein(x, x.repeat(3, 1), torch.ones(1, 1))) == 0.0


def test_energy_distance_of_two_normals() -> None:
    """E|N(0, v)| = sqrt(2 v / pi) gives the distance of N(0, 1) and N(0, 4) in 1-D."""
    x, y = normal(4000, 1, seed=1), 2 * normal(4000, 1, seed=2)
    expected = math.sqrt(2 / math.pi) * (2 * math.sqrt(5) - math.sqrt(2) - math.sqrt(8))
    assert float(energy_distance(x, y)) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("n", "m"), [(30, 30), (30, 90), (30, 50), (50, 30)])
def test_sliced_wasserstein_is_that_of_pot(n: int, m: int) -> None:
    ot = pytest.importorskip("ot")
    x, y = sets(n, m, (3,))
    directions = axes(x).double()
    known = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=directions.numpy().T)
    assert float(sliced_wasserstein(x, y, directions)) == pytest.approx(known**2, rel=1e-10)


def test_block_matching() -> None:
    """Data k times as many: each sample takes a block of k sorted data."""
    x, y = sets(5, 15, (2,))
    directions = axes(x).double()
    a, b = (np.sort(z.numpy() @ directions.numpy().T, axis=0) for z in (x, y))
    expected = np.mean((a[:, None] - b.reshape(5, 3, -1)) ** 2)
    assert float(sliced_wasserstein(x, y, directions)) == pytest.approx(expected, rel=1e-12)


def test_random_directions() -> None:
    first, again = (random_directions(500, 3, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (500, 3)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(500))
    # Uniform: the second moment is I/3.
    moment = first.T @ first / 500
    assert float((moment - torch.eye(3) / 3).abs().max()) < 0.06
    assert set(random_directions(20, 1).flatten().tolist()) == {-1.0, 1.0}


# ---- errors

X = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: paired_mse(X, X[:3]),
            ValueError,
            r"paired_mse: x0 must have the shape of its "
            r"samples \(4, 2\), got \(3, 2\)",
        ),
        (lambda: paired_mse(X[:0], X[:0]), ValueError, r"samples must have elements, got shape"),
        (
            lambda: paired_huber(X, X, 0.0),
            ValueError,
            "paired_huber: delta must be positive, got 0",
        ),
        (lambda: paired_huber(X, X, "a"), TypeError, "delta must be a real number, got 'a'"),
        (lambda: paired_mse(X.int(), X), TypeError, "samples must be a floating tensor, got torch"),
        (lambda: energy_distance(X, [1.0]), TypeError, "data must be a floating tensor, got list"),
        (
            lambda: energy_distance(X[:1], X),
            ValueError,
            r"energy_distance: samples must hold at "
            r"least 2 samples, got shape \(1, 2\)",
        ),
        (lambda: energy_distance(X, X[:1]), ValueError, "data must hold at least 2 samples"),
        (
            lambda: energy_distance(X, X[:, :1]),
            ValueError,
            r"data must have the sample shape of "
            r"samples \(2,\), got \(1,\)",
        ),
        (lambda: energy_distance(X[:, :0], X[:, :0]), ValueError, "samples must have elements"),
        (
            lambda: energy_distance(X, X.to("meta")),
            ValueError,
            "data must be on the device of samples cpu, got meta",
        ),
        (
            lambda: energy_score(X[None], X),
            ValueError,
            r"energy_score: samples must hold at least 2"
            r" chains \(m, B, ...\), got shape \(1, 4, 2\)",
        ),
        (lambda: energy_score(X, X), ValueError, r"x0 must have the shape of its samples \(2,\)"),
        (lambda: mmd(X, X), ValueError, "mmd: data must have a positive median distance, got 0"),
        (lambda: mmd(X, X, bandwidths=[]), ValueError, "bandwidths must hold at least one"),
        (lambda: mmd(X, X, bandwidths=[1, -1]), ValueError, r"bandwidths\[1\] must be positive"),
        (
            lambda: sliced_wasserstein(X, X, torch.ones(3, 3)),
            ValueError,
            r"sliced_wasserstein: "
            r"directions must have the shape \(P, 2\), P >= 1, got \(3, 3\)",
        ),
        (lambda: sliced_wasserstein(X, X, torch.ones(0, 2)), ValueError, "directions must have"),
        (lambda: sliced_wasserstein(X[:0], X, torch.ones(1, 2)), ValueError, "least 1 sample, got"),
        (lambda: random_directions(0, 2), ValueError, "count must be at least 1, got 0"),
        (lambda: random_directions(2, 1.5), TypeError, "size must be an integer, got 1.5"),
    ],
)
def test_errors(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
