"""FastDPM on given variances or noise levels: DiffWave's fast sampling, by a loop of its own."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.samplers.fastdpm import fastdpm, var_betas
from fastsample.schedules.schedule import NoiseSchedule
from tests.helpers.cases import SCHEDULES
from tests.helpers.laws import assert_rows_obey_the_laws
from tests.helpers.networks import Spy, per_sample
from tests.helpers.refusals import check_refusal, refusals

DIFFWAVE = (0.0001, 0.001, 0.01, 0.05, 0.2, 0.5)  # arXiv:2009.09761, appendix C
WAVEGRAD = (7e-6, 1.4e-4, 2.1e-3, 2.8e-2, 0.35, 0.7)
T50 = NoiseSchedule.linear(50, 1e-4, 0.05)
T200 = NoiseSchedule.linear(200, 1e-4, 0.02)
T1000 = NoiseSchedule.linear(1000, 1e-6, 0.01)
CASES = {
    "DiffWave, T = 50": (T50, (50, 1e-4, 0.05), DIFFWAVE),
    "DiffWave, T = 200": (T200, (200, 1e-4, 0.02), DIFFWAVE),
    "WaveGrad": (T1000, (1000, 1e-6, 0.01), WAVEGRAD),
}
PARAMETERS = pytest.mark.parametrize("case", CASES)


def diffwave_loop(x, eta, epsilon, noise, kappa=1.0):
    """Algorithm 2 of DiffWave with the fast schedule eta: (x, s) -> epsilon, s from S - 1 to 0.

    kappa < 1 is FastDPM's DDIM-rev, eq. (12) of arXiv:2106.00132.
    """
    gamma_bar = np.cumprod(1 - np.asarray(eta))
    for k, s in enumerate(reversed(range(len(eta)))):
        e = epsilon(x, s)
        before = gamma_bar[s - 1] if s else 1.0
        variance = kappa**2 * (1 - before) / (1 - gamma_bar[s]) * eta[s]
        if kappa == 1.0:
            x = (x - eta[s] / math.sqrt(1 - gamma_bar[s]) * e) / math.sqrt(1 - eta[s])
        else:
            x0 = (x - math.sqrt(1 - gamma_bar[s]) * e) / math.sqrt(gamma_bar[s])
            x = math.sqrt(before) * x0 + math.sqrt(max(1 - before - variance, 0.0)) * e
        if s > 0:
            x = x + math.sqrt(variance) * noise[k]
    return x


def time_of(level, T, first, last):
    """T(r) by bisection of the Gamma-function form of linear betas, with math.lgamma."""
    D = (last - first) / (T - 1)
    a = (1 - first) / D
    # Below the first step the form may rise; there log alpha_bar is linear (as documented).
    if math.log(level) > math.log1p(-first) and first <= D / 2:
        return math.log(level) / math.log1p(-first)
    low, high = 0.0, float(T)
    for _ in range(100):
        t = (low + high) / 2
        log = t * math.log(D) + math.lgamma(a + 1) - math.lgamma(a - t + 1)
        low, high = (t, high) if log > math.log(level) else (low, t)
    return low


def network(x, t):
    return torch.tanh(1.5 * x) * per_sample(0.3 + t.double() / 50, x)


@PARAMETERS
@pytest.mark.parametrize("kappa", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("shape", [(40,), (1, 40), (2, 5, 4)])
def test_sample_is_the_papers_loop(case, kappa, shape):
    schedule, betas, eta = CASES[case]
    generator = np.random.default_rng(3)
    start = generator.normal(size=(3, *shape))
    noise = generator.normal(size=(len(eta), 3, *shape))
    spy = Spy(network)
    model = fs.Denoiser(spy, schedule, shape)
    drawn = fs.sample(
        *(model, len(eta)),
        method="fastdpm",
        variances=list(eta),
        kappa=kappa,
        start=torch.tensor(start),
        noise=torch.tensor(noise) if kappa else None,
    )
    told = [float(t[0]) for t in spy.told]

    def epsilon(x, s):
        return np.tanh(1.5 * x) * (0.3 + told[len(eta) - 1 - s] / 50)

    expected = diffwave_loop(start, eta, epsilon, noise, kappa)
    np.testing.assert_allclose(drawn.numpy(), expected, rtol=0, atol=1e-11 * abs(expected).max())
    # The network is told index T(r) - 1, as float32, and never less than its first step.
    times = [time_of(level, *betas) for level in np.cumprod(1 - np.array(eta))[::-1]]
    assert {t.dtype for t in spy.told} == {torch.float32}
    # lgamma of 1e6 rounds to 2e-9, which a slope of 2 beta = 1e-5 makes 1e-3 of a step.
    near = 2e-3 if case == "WaveGrad" else 1e-5
    np.testing.assert_allclose(told, np.maximum(np.array(times) - 1, 0), rtol=1e-6, atol=near)


@PARAMETERS
def test_levels_are_those_of_the_list_and_of_the_schedule(case):
    schedule, _, eta = CASES[case]
    gamma_bar = np.cumprod(1 - np.array(eta))
    plan = fastdpm(schedule, variances=eta, kappa=1)
    np.testing.assert_allclose(plan.alphas[-2::-1] ** 2, gamma_bar, rtol=1e-12)
    np.testing.assert_allclose(plan.sigmas[-2::-1] ** 2, 1 - gamma_bar, rtol=1e-9)
    assert plan.calls == len(plan) == len(eta)
    assert plan.method == "fastdpm(variances, kappa=1.0)"
    assert_rows_obey_the_laws(plan)
    same = fastdpm(schedule, len(eta), noise_levels=np.sqrt(gamma_bar), kappa=1)
    assert same.method == "fastdpm(noise_levels, kappa=1.0)"
    np.testing.assert_allclose(same.rows, plan.rows, rtol=1e-8)
    # eta_s is DDPM-rev's, so its posterior variance is the deviation that the row draws.
    before = np.append(1.0, gamma_bar[:-1])
    posterior = (1 - before) / (1 - gamma_bar) * np.array(eta)
    np.testing.assert_allclose(plan.column("d")[::-1] ** 2, posterior, rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize(
    "name", [name for name, s in SCHEDULES.items() if s.kind not in ("flow", "from_functions")]
)
def test_any_variance_preserving_schedule_takes_a_list(name):
    schedule = SCHEDULES[name]
    lowest = float(schedule.alpha_bar(schedule.T))
    levels = np.exp(np.linspace(-0.01, 0.9 * max(math.log(lowest), -4.0) if lowest else -4.0, 5))
    eta = 1 - levels / np.append(1.0, levels[:-1])
    plan = fastdpm(schedule, variances=eta, kappa=0.5, prediction="v")
    np.testing.assert_allclose(plan.alphas[-2::-1] ** 2, levels, rtol=1e-11)
    assert_rows_obey_the_laws(plan)
    if schedule.num_steps:
        assert plan.times.min() >= 1.0


def test_the_authors_variances_are_a_list_too():
    """VAR is the list of its own variances, but for the first time, which is set to 1."""
    schedule = NoiseSchedule.linear()
    for spacing in ("linear", "quadratic"):
        own = fastdpm(schedule, 30, approximation="var", spacing=spacing, kappa=0.3)
        listed = fastdpm(schedule, variances=var_betas(schedule, 30, spacing), kappa=0.3)
        np.testing.assert_allclose(listed.times, own.times, atol=1e-9)
        np.testing.assert_allclose(listed.rows, own.rows, rtol=1e-9, atol=1e-12)


def test_diffwaves_own_alignment_is_other_times_of_the_same_rows():
    """Interpolation of sqrt(alpha_bar) between the trained steps, and how far T(r) is from it."""
    steps = np.arange(1, 51)
    plan = fastdpm(T50, variances=DIFFWAVE, kappa=1)
    theirs = plan.with_times(np.interp(-plan.alphas[:-1], -T50.alpha(steps), steps))
    root = np.sqrt(np.cumprod(1 - np.linspace(1e-4, 0.05, 50)))
    expected = []  # appendix B: t_align = t + (root_t - r) / (root_t - root_{t + 1})
    for r in np.sqrt(np.cumprod(1 - np.array(DIFFWAVE)))[::-1]:
        t = next(t for t in range(49) if root[t + 1] <= r <= root[t] * (1 + 1e-15))
        expected.append(t + (root[t] - r) / (root[t] - root[t + 1]))
    np.testing.assert_allclose(theirs.times - 1, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(theirs.rows, plan.rows)
    gap = np.abs(theirs.times - plan.times)
    assert 0.02 < gap.max() < 0.04  # of a step, as docs/audio.md says


def test_wavegrads_network_is_given_the_noise_level():
    spy = Spy(lambda x, level: x * per_sample(level, x))
    model = fs.Denoiser(spy, T1000, (1, 8), time=T1000.alpha)
    fs.sample(model, 6, variances=WAVEGRAD, kappa=1.0, num_samples=2, seed=1)
    told = [float(level[0]) for level in spy.told]
    levels = np.sqrt(np.cumprod(1 - np.array(WAVEGRAD)))[::-1]
    np.testing.assert_allclose(told, levels, rtol=3e-7)  # float32


def test_lists_around_the_ends_of_the_schedule():
    # Above alpha_bar(1): the level is the list's, and the network's time its first step.
    plan = fastdpm(T1000, variances=[3.6701e-7, 1.7032e-5, 7.908e-4, 0.76146], kappa=1)
    assert 0.0 < plan.nodes[-2] < 0.5
    assert plan.times[-1] == 1.0
    np.testing.assert_allclose(plan.sigmas[-2] ** 2, 3.6701e-7, rtol=1e-9)
    # At alpha_bar(T), up to rounding: T exactly, in silence.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        last = 1 - float(T50.alpha_bar(50)) / (1 - 0.3)
        assert fastdpm(T50, variances=[0.3, last]).nodes.tolist()[::2] == [50.0, 0.0]
        assert len(fastdpm(T50, variances=[0.5])) == 1
    # Below it: a warning, and T.
    with pytest.warns(
        UserWarning,
        match=r"^fastdpm: variances should end at the schedule's alpha_bar\(T\) = 0\.28 or above, "
        r"got 0\.1; the plan starts at T with its level$",
    ):
        plan = fastdpm(T50, variances=[0.2, 0.875])
    assert plan.nodes[0] == 50.0
    assert plan.alphas[0] ** 2 == pytest.approx(float(T50.alpha_bar(50)), rel=1e-12)


def test_last_and_clip_with_a_list():
    whole = fastdpm(T50, variances=DIFFWAVE, clip=1.0)
    assert whole.column("hi").tolist() == [1.0] * 6
    first = fastdpm(T50, variances=DIFFWAVE, clip=1.0, last="first")
    assert first == whole.until(1.0)


def test_the_number_of_steps_of_sample_is_the_length_of_the_list():
    model = fs.Denoiser(network, T50, (4,))
    for values in (DIFFWAVE, tuple(DIFFWAVE), np.array(DIFFWAVE)):
        plan = fs.Sampler(model, variances=values).plan
        assert plan == fs.Sampler(model, 6, variances=values).plan
        assert len(plan) == 6
    start = torch.ones(1, 4)
    counted = fs.sample(model, 6, variances=DIFFWAVE, start=start)
    assert torch.equal(fs.sample(model, variances=DIFFWAVE, start=start), counted)
    levels = [0.9, 0.7]
    assert len(fs.Sampler(model, noise_levels=levels).plan) == 2
    for options in ({}, {"method": "fastdpm"}, {"variances": None}):
        assert len(fs.Sampler(model, **options).plan) == 10, options
    ten = fs.Sampler(model, 10, method="ddim").plan
    tuned = model.with_plans([ten])
    assert fs.Sampler(tuned).plan == ten
    assert fs.Sampler(tuned, variances=DIFFWAVE).plan == fastdpm(T50, variances=DIFFWAVE)


def refuse(*args, schedule=T50, **knobs):
    return lambda: fastdpm(schedule, *args, **knobs)


LIST = {"variances": DIFFWAVE}
BAD = {
    "nothing": (
        refuse(),
        ValueError,
        "^fastdpm: num_steps must be given without a list of levels, got None$",
    ),
    "another number": (
        refuse(10, **LIST),
        ValueError,
        "^fastdpm: num_steps must be the number of variances, 6, got 10; it may be left out$",
    ),
    "another number for sample": (
        lambda: fs.sample(fs.Denoiser(network, T50, (4,)), 10, variances=DIFFWAVE),
        ValueError,
        "^fastdpm: num_steps must be the number of variances, 6, got 10; it may be left out$",
    ),
    "the list as steps": (
        lambda: fs.sample(fs.Denoiser(network, T50, (4,)), DIFFWAVE),
        ValueError,
        r"^sample: steps must be falling times that end at 0 \(data\), got numbers that rise from "
        r"0\.0001 to 0\.5; pass a list of variances as variances=$",
    ),
    "falling variances": (
        refuse(variances=DIFFWAVE[::-1]),
        ValueError,
        "^fastdpm: variances must begin with that of the cleanest step, got values that fall from "
        r"0\.5 to 0\.0001; pass variances\[::-1\]$",
    ),
    "number's kind": (refuse(6.0, **LIST), TypeError, "num_steps must be an integer, got 6.0"),
    "both": (
        refuse(**LIST, noise_levels=[0.9]),
        ValueError,
        r"^fastdpm: noise_levels must be left out with variances, .*, got \[0\.9\]$",
    ),
    "spacing": (
        refuse(**LIST, spacing="quadratic"),
        ValueError,
        "^fastdpm: spacing must be left out with a list of variances or noise levels, got 'quadr",
    ),
    "extended": (refuse(**LIST, extended=True), ValueError, "extended must be left out .* got T"),
    "no list": (refuse(variances=0.1), ValueError, "variances must be a vector with .* shape \\("),
    "empty": (refuse(variances=[]), ValueError, "variances must be a vector with at least one"),
    "text": (refuse(variances="0.1, 0.2"), TypeError, "variances must hold real numbers, got <U8"),
    "NaN": (refuse(variances=[0.1, np.nan]), ValueError, "variances must be finite, got nan"),
    "zero": (refuse(variances=[0.0, 0.1]), ValueError, r"in \(0, 1\), got variances\[0\] = 0$"),
    "one": (refuse(variances=[0.1, 1.0]), ValueError, r"in \(0, 1\), got variances\[1\] = 1$"),
    "percent": (refuse(variances=[1, 50]), ValueError, r"in \(0, 1\), got variances\[0\] = 1$"),
    "rising levels": (
        refuse(noise_levels=[0.2, 0.9]),
        ValueError,
        r"^fastdpm: noise_levels must fall strictly, the cleanest level first, got \[0\.2, 0\.9\]; "
        r"pass noise_levels\[::-1\]$",
    ),
    "equal levels": (
        refuse(noise_levels=[0.9, 0.9]),
        ValueError,
        r"must fall strictly, .* got \[0\.9, 0\.9\]; a level is sqrt\(alpha_bar\)$",
    ),
    "two levels below the schedule": (
        refuse(variances=[0.1, 0.8, 0.9]),
        ValueError,
        r"^fastdpm: variances must stay above the schedule's alpha_bar\(T\) = 0\.28 up to the "
        r"last one, got alpha_bar = 0\.18 at variances\[1\] of 3$",
    ),
    "variances that round away": (
        refuse(variances=[0.1, 1e-17, 0.2]),
        ValueError,
        "variances must give levels at different times",
    ),
    "flow": (
        refuse(schedule=NoiseSchedule.flow(), **LIST),
        ValueError,
        r"^fastdpm: schedule must be variance preserving with variances, got .*flow.*; try ddim$",
    ),
    "schedule": (refuse(schedule=None, **LIST), TypeError, "schedule must be a NoiseSchedule, got"),
    "approximation": (refuse(**LIST, approximation="VAR"), ValueError, "approximation must be"),
}


@refusals(fastdpm=BAD)
def test_refused(call, error, match):
    check_refusal(call, error, match)
