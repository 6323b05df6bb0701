"""The operator elbo_sums against exact arithmetic and golden numbers: where digits are at stake."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import ops
from fastsample.likelihood.bound import discretized_gaussian_log_likelihood
from fastsample.ops import library, reference
from tests.helpers.stored import stored

DATA = stored("elbo_dp")


@pytest.fixture(params=[*fs.build_info()["cpu_available"], "reference"])
def _arithmetic(request, isa, monkeypatch):
    """Each instruction set, and the plain torch that other tests and devices trust."""
    if request.param == "reference":
        monkeypatch.setattr(library, "elbo_sums_op", reference.elbo_sums)
    else:
        isa(request.param)


every_arithmetic = pytest.mark.usefixtures("_arithmetic")


def vector(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def learned(raw, error2, nodes):
    """The sums of one sample whose elements have these raw v and squared errors."""
    raw, error = vector(raw)[None], vector(error2).sqrt()[None]
    out = torch.cat((torch.zeros_like(raw), raw), dim=1)  # x0hat = 0
    return ops.elbo_sums(
        error, error, out, x0_terms=(0.0, 1.0), eps_terms=(1.0, 0.0), nodes=vector(nodes)
    )


def decoder(x, mean, log_scales, bin_width=2 / 255):
    """`(B, scales)` nats, a sample for each x."""
    x, mean = vector(x)[:, None], vector(mean)[:, None]
    sums = ops.elbo_sums(
        x,
        x,
        mean,
        x0_terms=(0.0, 1.0),
        eps_terms=(0.0, 1.0),
        log_scales=vector(log_scales),
        bin_width=bin_width,
    )
    return sums.nll


# ---- learned variances ----


@every_arithmetic
def test_golden_learned_range():
    golden = DATA["learned_range_sums"]
    points = golden["points"]
    raw = [2.0 * v - 1.0 for v in golden["v01"]]
    sums = learned(raw, golden["delta2"], [point["a"] for point in points])
    found = {
        "V": sums.v.expand(len(points)),
        "S1": sums.weighted[0],
        "S0_minus_D_plus_aV": sums.excess[0],
        "L_nats": 0.5 * (sums.excess[0] + vector([p["dsnr"] for p in points]) * sums.weighted[0]),
    }
    for key, values in found.items():
        expected = [point[key] for point in points]
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-12, err_msg=key)


def exact_excess(x: Fraction) -> float:
    """``e^-x - 1 + x`` from its series, summed exactly."""
    total, term, n = Fraction(0), Fraction(1), 0
    while n < 3 or abs(term) > abs(total) * Fraction(1, 10**25):
        n += 1
        term = -term * x / n
        total += term if n > 1 else 0
    return float(total)


def exact_exponential(x: Fraction) -> float:
    with localcontext() as context:
        context.prec = 60
        return float((-Decimal(x.numerator) / Decimal(x.denominator)).exp())


@every_arithmetic
def test_excess_keeps_its_digits():
    """Between neighbouring times a v is about 1e-9; the series and the exponential meet at 0.35."""
    size = [2.0**-30, 1e-9, 3e-7, 1e-4, 0.02, 0.3, 0.3465, 0.34658, 0.3466, 0.347, 0.5, 1.0]
    size += [1.5, 5.0, 11.5, 23.0, 45.0, 79.9]
    for a in (*size, *(-s for s in size)):
        for raw in (1.0, 0.3, -0.999):
            x = Fraction(a) * (Fraction(raw) + 1) / 2
            sums = learned([raw], [0.25], [a])
            assert float(sums.excess) == pytest.approx(exact_excess(x), rel=1e-13), (a, raw)
            expected = 0.25 * exact_exponential(x)
            # The exponential of a rounded argument: half a unit of 80 is 7e-15.
            assert float(sums.weighted) == pytest.approx(expected, rel=1e-13), (a, raw)


@every_arithmetic
def test_small_terms_are_not_lost_among_many():
    """4000 neighbouring-time terms of 1e-19: the sum is exact to the last digits, too."""
    raw = np.linspace(-1.0, 1.0, 4000)
    (total,) = learned(raw, np.ones(4000), [1e-9]).excess.ravel().tolist()
    expected = sum(Fraction(1e-9) ** 2 * ((Fraction(r) + 1) / 2) ** 2 / 2 for r in raw.tolist())
    assert total == pytest.approx(float(expected), rel=1e-9)  # what the cubic term leaves out


@every_arithmetic
@pytest.mark.parametrize("v", [8.0, 9.0, 30.0])
def test_v_far_above_one(v):
    """Nothing bounds a raw v: an untrained network's may be 50."""
    sums = learned([2.0 * v - 1.0], [0.25], [11.5])
    assert float(sums.excess) == pytest.approx(11.5 * v - 1.0, rel=1e-13)
    assert float(sums.weighted) <= 0.25 * math.exp(-80.0)


# ---- decoder ----


@every_arithmetic
def test_golden_decoder():
    golden = DATA["discretized_decoder"]
    nll = decoder(golden["x"], golden["mean"], golden["log_scale"]).diagonal()
    np.testing.assert_allclose(nll, golden["nll_nats_tanh_cdf"], rtol=1e-9)


def exact_nll(x: float, mean: float, log_scale: float, bin_width: float) -> float:
    """-log of the bin's probability under the tanh approximation, in 80-bit or wider floats."""
    wide = np.longdouble
    inverse, half = np.exp(-wide(log_scale)), wide(bin_width) / 2

    def logit(side):
        z = (wide(x) - wide(mean) + side * half) * inverse
        return 2 * np.sqrt(2 / wide(np.pi)) * (z + wide("0.044715") * z**3)

    upper = wide("inf") if x > 0.999 else logit(1)
    lower = -wide("inf") if x < -0.999 else logit(-1)
    if upper + lower > 0:  # the other tail, whose probabilities do not round to 1
        upper, lower = -lower, -upper
    with np.errstate(over="ignore"):
        probability = 1 / (1 + np.exp(-upper)) - 1 / (1 + np.exp(-lower))
    return -float(np.log(max(probability, wide("1e-12"))))


LEVELS = (-1.0, -0.99, -0.5, 0.0, 2 / 255, 0.25, 0.99, 1.0)
MEANS = (-1.5, -1.0, -0.4, 0.0, 0.003, 0.3, 0.999, 1.0)
PAIRS = [(x, mean) for x in LEVELS for mean in MEANS]


@every_arithmetic
@pytest.mark.parametrize("bin_width", [2 / 255, 0.125, 1.0])
def test_decoder_keeps_the_digits_of_both_tails(bin_width):
    scales = [math.log(s) for s in (1e-4, 1e-3, 0.02, 0.1, 0.3, 1.05)]
    found = decoder(*zip(*PAIRS, strict=True), scales, bin_width)
    expected = [[exact_nll(x, mean, s, bin_width) for s in scales] for x, mean in PAIRS]
    # Cancellation within a bin that is narrow against the scale: 1e-16 / (2 / 255) at most.
    np.testing.assert_allclose(found, expected, rtol=2e-13, atol=2e-14)


def test_decoder_is_the_bounds_own():
    """`discretized_gaussian_log_likelihood` in float64, to the digits its difference leaves."""
    scales = [math.log(s) for s in (1e-4, 0.01, 0.1, 1.0, 30.0)]
    found = decoder(*zip(*PAIRS, strict=True), scales)
    x, mean = (vector(values)[:, None] for values in zip(*PAIRS, strict=True))
    expected = -discretized_gaussian_log_likelihood(x, mean, vector(scales))
    lost = 4.0 * np.finfo(float).eps * expected.exp()  # relative error of 1e-16 / probability
    assert bool(((found - expected).abs() <= lost + 1e-13).all())


@every_arithmetic
def test_decoder_at_scales_that_no_profile_has():
    floor = -math.log(1e-12)
    # A point mass: certain inside its bin, impossible outside, even where the cubic overflows.
    for log_scale in (-20.0, -100.0, -300.0, -600.0):
        inside, outside, open_side = decoder([0.0, 0.25, 1.0], [0.001, 0.0, 2.0], [log_scale])
        assert float(inside) == 0.0
        assert float(outside) == pytest.approx(floor, rel=1e-15)
        assert float(open_side) == 0.0
    # So wide that a bin's probability goes under the floor, and the outer bins share the rest.
    inner, low, high = decoder([0.0, -1.0, 1.0], [0.0, 0.0, 0.0], [40.0])
    assert float(inner) == pytest.approx(floor, rel=1e-15)
    assert float(low) == pytest.approx(math.log(2.0), rel=1e-13)
    assert float(high) == pytest.approx(math.log(2.0), rel=1e-13)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_all_bins_together_are_certain(levels):
    x = torch.linspace(-1, 1, levels, dtype=torch.float64).tolist()
    scales = [math.log(s) for s in (0.02, 0.3, 2.0)]
    nll = decoder(x, [0.31] * levels, scales, 2 / (levels - 1))
    # Each bin may have been raised to the floor.
    np.testing.assert_allclose((-nll).exp().sum(0), 1.0, atol=levels * 1e-12 + 1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_outer_bins_in_short_types(dtype):
    """-1 and 1 are exact in every type, and the only levels beyond 0.999."""
    x = torch.tensor([[-1.0], [1.0]], dtype=dtype)
    sums = ops.elbo_sums(
        x,
        x,
        torch.zeros_like(x),
        x0_terms=(0.0, 1.0),
        eps_terms=(0.0, 1.0),
        log_scales=vector([0.0]),
        bin_width=0.125,
    )
    expected = exact_nll(1.0, 0.0, 0.0, 0.125)
    np.testing.assert_allclose(sums.nll.ravel(), [expected, expected], rtol=1e-13)
