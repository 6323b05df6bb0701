from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsample.schedules.schedule import NoiseSchedule
from fastsample.schedules.transition import transition
from tests.helpers.cases import SCHEDULES

EPS = np.finfo(np.float64).eps

schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


def assert_sound(schedule: NoiseSchedule) -> None:
    """Monotone, right at both ends, and invertible as far as float64 carries it."""
    t = np.linspace(0.0, schedule.T, 161)
    level, snr = schedule.alpha_bar(t), schedule.log_snr(t)
    assert level[0] == 1.0
    assert schedule.alpha(0.0) == 1.0
    assert schedule.sigma(0.0) == 0.0
    assert snr[0] == np.inf
    assert np.all((level >= 0.0) & (level <= 1.0))
    assert np.all(np.diff(snr) < 0)
    a, s = schedule.levels(t)
    np.testing.assert_allclose(a**2 / (a**2 + s**2), level, rtol=1e-13)
    assert schedule.time_at(1.0) == schedule.time_at_log_snr(np.inf) == 0.0
    # An error of one rounding in a level becomes this much time.
    log = np.log(np.maximum(level, 1e-300))
    slope = np.min(-np.diff(log) / np.diff(t))
    tolerance = 16 * EPS * (max(1.0, np.abs(log).max()) / slope + schedule.T)
    np.testing.assert_allclose(schedule.time_at(level), t, rtol=0, atol=tolerance)
    # Terms of order one cancel in the closed form of steep linear betas, near t = 0.
    cancelled = 4 * EPS / slope if schedule.kind == "linear" else 0.0
    finite = np.isfinite(snr)
    slope = np.min(-np.diff(snr[finite]) / np.diff(t[finite]))
    tolerance = 16 * EPS * (max(1.0, np.abs(snr[finite]).max()) / slope + schedule.T) + cancelled
    np.testing.assert_allclose(schedule.time_at_log_snr(snr), t, rtol=0, atol=tolerance)


@schedules
def test_sound(schedule):
    assert_sound(schedule)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 300),
    st.floats(1e-5, 0.3),
    st.floats(1e-5, 0.5),
    st.sampled_from(["linear", "scaled_linear"]),
)
def test_sound_for_any_range_of_betas(num_steps, start, end, kind):
    schedule = getattr(NoiseSchedule, kind)(num_steps, start, end)
    assert_sound(schedule)
    betas = np.linspace(start, end, num_steps)
    if kind == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, num_steps) ** 2
    table = np.concatenate(([0.0], np.cumsum(np.log1p(-betas))))
    got = np.log(schedule.alpha_bar(np.arange(num_steps + 1)))
    np.testing.assert_allclose(got, table, rtol=1e-12, atol=1e-15)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(1e-5, 0.9), min_size=1, max_size=40), st.booleans())
def test_sound_for_any_table(betas, zero_snr):
    last = [1.0] if zero_snr else []
    schedule = NoiseSchedule.from_betas(betas + last)
    assert_sound(schedule)
    values = schedule.alpha_bar(np.arange(1, schedule.num_steps + 1))
    assert_sound(NoiseSchedule.from_alpha_bar(values))


@settings(deadline=None, max_examples=40)
@given(st.floats(-25, 0), st.floats(0.5, 25))
def test_sound_for_any_vdm(gamma_min, gamma_max):
    t = np.linspace(0.0, 1.0, 41)
    schedule = NoiseSchedule.vdm(gamma_min, gamma_max)
    gamma = gamma_min + (gamma_max - gamma_min) * t
    np.testing.assert_allclose(schedule.log_snr(t)[1:], -gamma[1:], rtol=1e-12, atol=1e-12)
    assert schedule.log_snr(0.0) == np.inf
    np.testing.assert_allclose(schedule.time_at_log_snr(schedule.log_snr(t)), t, atol=1e-12)
    assert schedule.time_at_log_snr(1000.0) == 0.0


@settings(deadline=None, max_examples=60)
@given(st.integers(21, 1000), st.floats(1e-4, 0.02), st.floats(1e-5, 1.0))
def test_linear_follows_the_gamma_form(num_steps, start, fraction):
    mpmath = pytest.importorskip("mpmath")
    end = start + 0.04 * fraction
    schedule = NoiseSchedule.linear(num_steps, start, end)
    with mpmath.workdps(50):
        d = (mpmath.mpf(end) - mpmath.mpf(start)) / (num_steps - 1)
        a = (1 - mpmath.mpf(start)) / d
        for t in np.linspace(1.0, num_steps, 7).tolist():
            exact = t * mpmath.log(d) + mpmath.loggamma(a + 1) - mpmath.loggamma(a - t + 1)
            sigma = float(mpmath.sqrt(-mpmath.expm1(exact)))
            assert float(schedule.sigma(t)) == pytest.approx(sigma, rel=1e-13)


@pytest.mark.parametrize(
    ("num_steps", "start", "end"), [(21, 0.0047, 0.952), (20, 0.005, 0.9999), (2, 0.1, 0.9)]
)
def test_linear_follows_the_gamma_form_where_betas_are_steep(num_steps, start, end):
    """Here the argument of Gamma nears 0, far below where Stirling's series holds unaided."""
    mpmath = pytest.importorskip("mpmath")
    schedule = NoiseSchedule.linear(num_steps, start, end)
    with mpmath.workdps(50):
        d = (mpmath.mpf(end) - mpmath.mpf(start)) / (num_steps - 1)
        a = (1 - mpmath.mpf(start)) / d
        for t in np.linspace(1.0, num_steps, 33).tolist():
            exact = t * mpmath.log(d) + mpmath.loggamma(a + 1) - mpmath.loggamma(a - t + 1)
            got = np.log(float(schedule.alpha_bar(t)))
            assert got == pytest.approx(float(exact), rel=1e-12, abs=1e-14)


def test_sigma_near_data_keeps_its_digits():
    schedule = NoiseSchedule.linear()
    tiny = 1e-9  # log abar = -8.99e-14: 1 - abar would have three digits left
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(50):
        d = (mpmath.mpf(0.02) - mpmath.mpf(1e-4)) / 999
        a = (1 - mpmath.mpf(1e-4)) / d
        exact = tiny * mpmath.log(d) + mpmath.loggamma(a + 1) - mpmath.loggamma(a - tiny + 1)
        sigma = float(mpmath.sqrt(-mpmath.expm1(exact)))
    assert schedule.sigma(tiny) == pytest.approx(sigma, rel=1e-14)
    assert NoiseSchedule.flow().log_snr(1e-9) == pytest.approx(-2 * np.log(1e-9), rel=1e-9)


def test_zero_terminal_snr():
    for schedule in (
        NoiseSchedule.linear(20, 0.005, 1.0),
        NoiseSchedule.scaled_linear(20, 0.005, 1.0),
        NoiseSchedule.cosine(20, 1.0),
        NoiseSchedule.from_betas([0.1, 0.3, 1.0]),
        NoiseSchedule.from_alpha_bar([0.9, 0.5, 0.0]),
        NoiseSchedule.flow(),
    ):
        T = schedule.T
        assert schedule.alpha(T) == pytest.approx(0.0, abs=1e-15)
        assert schedule.sigma(T) == 1.0
        assert schedule.log_snr(T) < -70
        assert 0.0 < schedule.alpha(T * 0.99) < schedule.alpha(T * 0.98)
    assert schedule.log_snr(T) == -np.inf
    assert schedule.time_at_log_snr(-np.inf) == T


def test_flow_and_vdm_formulas():
    t = np.linspace(0.01, 1.0, 12)
    flow, vdm = NoiseSchedule.flow(), NoiseSchedule.vdm()
    np.testing.assert_array_equal(flow.alpha(t), 1 - t)
    np.testing.assert_array_equal(flow.sigma(t), t)
    gamma = -13.3 + 18.3 * t
    np.testing.assert_allclose(vdm.alpha(t) ** 2, 1 / (1 + np.exp(gamma)), rtol=1e-13)
    np.testing.assert_allclose(vdm.sigma(t) ** 2, 1 / (1 + np.exp(-gamma)), rtol=1e-13)
    assert (vdm.num_steps, vdm.T, flow.num_steps, flow.T) == (None, 1.0, None, 1.0)


@schedules
def test_shapes(schedule):
    for f in (schedule.alpha_bar, schedule.alpha, schedule.sigma, schedule.log_snr):
        assert f(schedule.T / 2).dtype == np.float64
        assert np.shape(f(schedule.T / 2)) == ()
        assert f(np.full((2, 3), schedule.T / 2)).shape == (2, 3)
        assert f([0, 1]).shape == (2,)
    assert schedule.time_at(np.full((2, 1), 0.7)).shape == (2, 1)
    assert np.shape(schedule.time_at(0.7)) == ()


@schedules
def test_is_a_value(schedule):
    data = json.loads(json.dumps(schedule.to_dict()))
    for copy in (NoiseSchedule.from_dict(data), pickle.loads(pickle.dumps(schedule))):
        assert copy == schedule
        assert hash(copy) == hash(schedule)
        np.testing.assert_array_equal(copy.alpha_bar([0.5, 1.0]), schedule.alpha_bar([0.5, 1.0]))
    assert [other == schedule for other in SCHEDULES.values()].count(True) == 1


def test_repr():
    assert repr(NoiseSchedule.linear()) == (
        "NoiseSchedule.linear(num_steps=1000, beta_start=0.0001, beta_end=0.02)"
    )
    assert repr(NoiseSchedule.from_betas([0.1, 0.2])) == "NoiseSchedule.from_betas(<2 values>)"
    assert repr(NoiseSchedule.flow()) == "NoiseSchedule.flow()"


@schedules
def test_transition(schedule):
    t = np.linspace(0.0, schedule.T, 23)
    a, s = schedule.levels(t)
    pair = transition(a[:-1], s[:-1], a[1:], s[1:])
    np.testing.assert_allclose(pair.alpha, a[1:] / a[:-1], rtol=1e-15)
    np.testing.assert_allclose(
        pair.variance, s[1:] ** 2 - (a[1:] / a[:-1] * s[:-1]) ** 2, rtol=1e-9, atol=1e-15
    )
    np.testing.assert_allclose(
        pair.posterior_variance, pair.variance * s[:-1] ** 2 / s[1:] ** 2, rtol=1e-14
    )
    assert np.all(pair.variance >= 0)
    assert pair.posterior_variance[0] == 0.0
    assert np.all((pair.snr_ratio >= 0) & (pair.snr_ratio <= 1))


def test_transition_does_not_cancel_and_is_never_negative():
    schedule = NoiseSchedule.vdm()
    s, t = 0.5, 0.5 + 1e-9  # the textbook difference has seven digits here
    pair = transition(*schedule.levels(s), *schedule.levels(t))
    gap = -np.expm1(float(schedule.log_snr(t) - schedule.log_snr(s)))
    assert pair.variance == pytest.approx(gap * schedule.sigma(t) ** 2, rel=1e-6)
    same = transition(0.6, 0.8, 0.6, 0.8)
    assert same.variance == 0.0
    assert transition(0.6, 0.8, 0.6000001, 0.8).variance == 0.0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: s.alpha(-1), ValueError, r"alpha: t must be in \[0, 1000\], got -1.0"),
        (lambda s: s.sigma([5, 1001]), ValueError, r"sigma: t must be in \[0, 1000\], got 1001.0"),
        (lambda s: s.log_snr(np.nan), ValueError, "log_snr: t must be finite, got nan"),
        (lambda s: s.alpha_bar("x"), TypeError, "alpha_bar: t must hold real numbers, got <U1"),
        (
            lambda s: s.time_at(1.5),
            ValueError,
            r"time_at: alpha_bar must be in \[4.*e-05, 1\], got 1",
        ),
        (lambda s: s.time_at(1e-9), ValueError, r"time_at: alpha_bar must be in .* got 1e-09"),
        (
            lambda s: s.time_at_log_snr(-11),
            ValueError,
            "time_at_log_snr: log_snr must be at least -10",
        ),
        (lambda s: s.time_at_log_snr(np.nan), ValueError, "log_snr must not be NaN"),
        (
            lambda s: s.linear(0),
            ValueError,
            r"NoiseSchedule.linear: num_steps must be in .1, 10000000., got 0",
        ),
        (lambda s: s.linear(2.0), TypeError, "linear: num_steps must be an integer, got 2.0"),
        (lambda s: s.linear(True), TypeError, "linear: num_steps must be an integer, got True"),
        (lambda s: s.linear(9, 0.0), ValueError, r"linear: beta_start must be in \(0, 1\), got 0"),
        (
            lambda s: s.linear(9, 1.0, 0.1),
            ValueError,
            r"linear: beta_start must be in \(0, 1\), got 1",
        ),
        (lambda s: s.scaled_linear(9, 0.1, 2), ValueError, r"beta_end must be in \(0, 1\], got 2"),
        (
            lambda s: s.linear(9, "a"),
            TypeError,
            "linear: beta_start must be a real number, got 'a'",
        ),
        (lambda s: s.linear(9, np.nan), ValueError, "linear: beta_start must be finite, got nan"),
        (lambda s: s.cosine(9, 2.0), ValueError, r"cosine: max_beta must be in \[0, 1\], got 2"),
        (
            lambda s: s.from_betas([]),
            ValueError,
            "from_betas: betas must be a vector with at least",
        ),
        (lambda s: s.from_betas([[0.1]]), ValueError, r"from_betas: betas must .* shape \(1, 1\)"),
        (lambda s: s.from_betas([0.1, 1.0, 0.1]), ValueError, r"betas must .* betas\[1\] = 1.0"),
        (lambda s: s.from_betas([0.1, 0.0]), ValueError, r"betas must .* betas\[1\] = 0.0"),
        (lambda s: s.from_betas([np.inf]), ValueError, "betas must be finite, got inf"),
        (
            lambda s: s.from_alpha_bar([0.5, 0.5]),
            ValueError,
            r"strictly decreasing, got values\[1\] = 0.5",
        ),
        (
            lambda s: s.from_alpha_bar([1.0]),
            ValueError,
            r"must be below 1 .* got values\[0\] = 1.0",
        ),
        (lambda s: s.from_alpha_bar([0.5, -0.1]), ValueError, r"values must not be negative"),
        (
            lambda s: s.vdm(5.0, 5.0),
            ValueError,
            "vdm: gamma_max must be above gamma_min = 5.0, got 5.0",
        ),
        (lambda s: s.from_dict([]), TypeError, "from_dict: data must be a mapping, got list"),
        (
            lambda s: s.from_dict({"kind": "magic"}),
            ValueError,
            r"data\[\"kind\"\] must be one of .*'magic'",
        ),
        (
            lambda s: s.from_dict({"kind": ["linear"]}),
            ValueError,
            r"data\[\"kind\"\] must be one of",
        ),
        (
            lambda s: s.from_dict({"kind": "flow", "x": 1}),
            ValueError,
            r"data must hold \[\] for kind",
        ),
        (
            lambda s: s.from_dict({"kind": "vdm"}),
            ValueError,
            r"data must hold \['gamma_min', 'gamma_max'\]",
        ),
    ],
)
def test_messages(call, error, message):
    with pytest.raises(error, match=message):
        call(NoiseSchedule.linear())


@settings(deadline=None, max_examples=40)
@given(st.floats(1e-3, 1e6))
def test_exploding_is_exact(sigma_max):
    schedule = NoiseSchedule.exploding(sigma_max)
    assert (schedule.T, schedule.num_steps) == (sigma_max, None)
    assert_sound(schedule)
    t = sigma_max * np.geomspace(1e-9, 1.0, 50)
    alpha, sigma = schedule.levels(t)
    assert np.array_equal(alpha, np.ones(50))
    assert np.array_equal(sigma, t)
    assert sigma is not t
    # Its logarithm is at most 28, of which one rounding is this much of it.
    np.testing.assert_allclose(schedule.alpha_bar(t), 1 / (1 + t**2), rtol=32 * EPS)
    np.testing.assert_allclose(schedule.log_snr(t), -2 * np.log(t), rtol=8 * EPS, atol=8 * EPS)
    np.testing.assert_allclose(schedule.time_at_log_snr(-2 * np.log(t)), t, rtol=64 * EPS)
    noisy = t[t > 1.0]
    np.testing.assert_allclose(schedule.time_at(1 / (1 + noisy**2)), noisy, rtol=64 * EPS)
    assert schedule.start_scale(sigma_max) == np.hypot(1.0, sigma_max)


def test_exploding_is_data_and_that_of_the_functions():
    schedule = NoiseSchedule.exploding()
    assert schedule.to_dict() == {"kind": "exploding", "sigma_max": 80.0}
    assert NoiseSchedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert schedule != NoiseSchedule.exploding(79.0)
    assert repr(schedule) == "NoiseSchedule.exploding(sigma_max=80.0)"
    functions = NoiseSchedule.from_functions(alpha=lambda t: 1.0, sigma=lambda t: t, T=80.0)
    t = np.linspace(0.0, 80.0, 33)
    for name in ("alpha", "sigma", "alpha_bar", "log_snr"):
        assert np.array_equal(getattr(schedule, name)(t), getattr(functions, name)(t))
    assert schedule.start_scale(7.0) == functions.start_scale(7.0)
    # The functions' smallest level, a millionth of T, must be small; the closed form's need not.
    assert NoiseSchedule.exploding(1e150).sigma(1e150) == 1e150


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0.0, ValueError, r"sigma_max must be in \(0, 1e\+150\], got 0"),
        (1e151, ValueError, r"sigma_max must be in \(0, 1e\+150\], got 1e\+151"),
        (float("inf"), ValueError, "sigma_max must be finite, got inf"),
        ("80", TypeError, "sigma_max must be a real number, got '80'"),
    ],
)
def test_exploding_refuses(value, error, message):
    with pytest.raises(error, match=rf"^NoiseSchedule\.exploding: {message}"):
        NoiseSchedule.exploding(value)


def test_cannot_be_changed():
    with pytest.raises(AttributeError):
        NoiseSchedule.flow().kind = "vdm"
