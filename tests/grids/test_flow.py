"""The four lists of flow-matching models, the shift from a resolution, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastsample as fs
from fastsample import grids
from fastsample.grids.registry import GRIDS, grid_names
from tests.helpers.refusals import check_refusal, refusals

STEPS = (1, 2, 3, 4, 7, 9, 10, 27, 28, 37, 50, 111, 333, 999)
SHIFTS = (0.3, 1.0, 1.15, 3.0, 8.0, 17.3)
MUS = (-1.0, 0.5, 0.83, 1.15, 2.7)
SETTINGS = [{"shift": shift} for shift in SHIFTS] + [{"mu": mu} for mu in MUS]
ULP = 2.0**-24
"""Half the spacing of float32 numbers below 1, relative to them."""

settings = pytest.mark.parametrize("setting", SETTINGS, ids=str)
terminals = pytest.mark.parametrize("terminal", [None, 0.02, 0.1, 0.5])


def factor(setting):
    return setting["shift"] if "shift" in setting else math.exp(setting["mu"])


def end_slope(base, setting, terminal):
    """By how much stretching to a terminal enlarges an error of the times."""
    last = base[-1] * factor(setting) / (1.0 + (factor(setting) - 1.0) * base[-1])
    return 1.0 if terminal is None else max(1.0, (1.0 - terminal) / (1.0 - last))


# ---- formulas: a shift adds its logarithm to the logit of every time


def logit(t):
    with np.errstate(divide="ignore"):
        return np.log(t) - np.log1p(-np.asarray(t))


def moved(t, setting):
    """The shifted times by way of logits, in which a shift is a sum."""
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(-(logit(t) + math.log(factor(setting)))))


@pytest.mark.parametrize("like", ["sigmas", "euler", "unipc", "dpm"])
@settings
@terminals
def test_times_follow_from_their_formulas(like, setting, terminal):
    if like == "dpm" and terminal is not None:
        return  # refused, see below
    for K in STEPS:
        if K == 1 and terminal is not None:
            continue
        k = np.arange(K)
        if like == "sigmas":
            base = (K - k) / K
        elif like == "euler":
            end = 0.001 if "mu" in setting else moved(0.001, setting)
            base = 1.0 - k / max(K - 1, 1) * (1.0 - end)
        elif like == "unipc":
            base = 1.0 - k * 0.999 / K
        else:
            base = 0.999 - k * 0.999 / K
        want = moved(base, setting)
        if terminal is not None:
            want = 1.0 - (1.0 - want) * (1.0 - terminal) / (1.0 - want[-1])
        if like == "unipc":
            want[0] -= 1e-6
        got = grids.flow(K, terminal=terminal, like=like, **setting)
        assert len(got) == K
        # 1 - t of float64 times carries a rounding of 2^-53, and so do some ten operations.
        error = 32 * 2.0**-53 * max(1.0, 1 / factor(setting)) * end_slope(base, setting, terminal)
        np.testing.assert_allclose(got.times, [*want, 0.0], rtol=0, atol=error)


def test_no_shift_is_the_uniform_grid():
    for K in range(1, 60):
        np.testing.assert_allclose(
            grids.flow(K).times, grids.uniform(1.0, K).times, rtol=0, atol=2**-52
        )


def test_a_terminal_is_the_last_time_above_the_data():
    for like in ("sigmas", "euler", "unipc"):
        times = grids.flow(8, mu=1.15, terminal=0.1, like=like).times
        assert times[-2] == pytest.approx(0.1, abs=1e-15)
        assert times[0] == pytest.approx(1.0, abs=1.1e-6)


# ---- diffusers


@settings
@terminals
def test_lists_of_diffusers_for_euler(setting, terminal):
    diffusers = pytest.importorskip("diffusers")
    mu = setting.get("mu")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        shift=setting.get("shift", 1.0),
        use_dynamic_shifting=mu is not None,
        shift_terminal=terminal,
    )
    for K in STEPS[1 if terminal else 0 :]:
        base = np.linspace(1, 1 / K, K)
        scheduler.set_timesteps(sigmas=base, mu=mu)
        got = grids.flow(K, terminal=terminal, **setting).times
        # They compute this list in float32: a rounding of each of about eight operations.
        error = 8 * ULP * max(1.0, 1 / factor(setting)) * end_slope(base, setting, terminal)
        np.testing.assert_allclose(got, scheduler.sigmas.numpy(), rtol=0, atol=error)
        scheduler.set_timesteps(K, mu=mu)
        got = grids.flow(K, terminal=terminal, like="euler", **setting).times
        # Here the first shift of the last time is float32, and the list is rounded at the end.
        np.testing.assert_allclose(got, scheduler.sigmas.numpy(), rtol=4 * ULP, atol=0)


@settings
@terminals
def test_lists_of_diffusers_for_unipc(setting, terminal):
    diffusers = pytest.importorskip("diffusers")
    mu = setting.get("mu")
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=setting.get("shift", 1.0),
        use_dynamic_shifting=mu is not None,
        shift_terminal=terminal,
    )
    for K in STEPS[1 if terminal else 0 :]:
        scheduler.set_timesteps(K, mu=mu)
        got = grids.flow(K, terminal=terminal, like="unipc", **setting).times
        np.testing.assert_allclose(got, scheduler.sigmas.numpy(), rtol=ULP, atol=0)
        # Truncation shows every bit of their float64 numbers, also where 1000 t is nearly whole.
        assert np.array_equal(scheduler.timesteps.numpy(), (got[:-1] * 1000).astype(np.int64))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@settings
def test_lists_of_diffusers_for_dpm(setting):
    diffusers = pytest.importorskip("diffusers")
    mu = setting.get("mu")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=setting.get("shift", 1.0),
        use_dynamic_shifting=mu is not None,
    )
    for K in STEPS:
        scheduler.set_timesteps(K, mu=mu)
        got = grids.flow(K, like="dpm", **setting).times
        np.testing.assert_allclose(got, scheduler.sigmas.numpy(), rtol=ULP, atol=0)
        assert np.array_equal(scheduler.timesteps.numpy(), (got[:-1] * 1000).astype(np.int64))


def test_a_linear_mu_is_the_exponential_one_of_its_logarithm():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type="linear"
    )
    for mu in (0.8, 1.15, 3.0):
        scheduler.set_timesteps(8, mu=mu)
        theirs = scheduler.sigmas.numpy()
        by_log = grids.flow(8, mu=math.log(mu), like="euler").times
        np.testing.assert_allclose(by_log, theirs, rtol=4 * ULP, atol=0)
        # A constant shift also moves the last time before, a dynamic one does not.
        assert abs(grids.flow(8, shift=mu, like="euler").times - theirs).max() > 1e-4
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8), mu=mu)
        theirs = scheduler.sigmas.numpy()
        np.testing.assert_allclose(grids.flow(8, shift=mu).times, theirs, rtol=0, atol=8 * ULP)


# ---- the shift from the resolution


def test_mu_is_a_straight_line_in_the_number_of_tokens():
    assert grids.flow_mu(256) == pytest.approx(0.5, abs=1e-15)
    assert grids.flow_mu(4096) == pytest.approx(1.15, abs=1e-15)
    assert grids.flow_mu((256 + 4096) // 2) == pytest.approx((0.5 + 1.15) / 2, abs=1e-15)
    assert grids.flow_mu(2 * 4096 - 256) == pytest.approx(2 * 1.15 - 0.5, abs=1e-14)  # beyond
    qwen = {"max_seq_len": 8192, "max_shift": 0.9}
    assert grids.flow_mu(8192, **qwen) == pytest.approx(0.9, abs=1e-15)


def test_mu_is_that_of_the_flux_pipeline():
    pytest.importorskip("transformers")
    flux = pytest.importorskip("diffusers.pipelines.flux.pipeline_flux")
    for tokens in (1, 256, 1024, 4096, 10000):
        assert grids.flow_mu(tokens) == pytest.approx(flux.calculate_shift(tokens), rel=1e-15)


# ---- names and refusals

FLOW = fs.Denoiser(
    lambda x, t: x, fs.NoiseSchedule.flow(), (3,), prediction="flow", time="fraction"
)
NO_STEPS = (
    r"got NoiseSchedule\.flow\(\); the list holds .*: pass fs\.grids\.flow\(K, shift=\.\.\.\)"
)


@refusals(
    flow={
        "no steps": (lambda: grids.flow(0), ValueError, "num_steps must be at least 1, got 0"),
        "real": (lambda: grids.flow(4.0), TypeError, "num_steps must be an integer"),  # type: ignore[arg-type]
        "shift": (lambda: grids.flow(4, shift=0.0), ValueError, "shift must be positive, got 0"),
        "nan": (lambda: grids.flow(4, shift=math.nan), ValueError, "shift must be finite"),
        "both": (
            lambda: grids.flow(4, shift=3.0, mu=1.0),
            ValueError,
            r"shift must be left out with mu, got both 3\.0 and 1\.0",
        ),
        "mu": (lambda: grids.flow(4, mu=100.0), ValueError, r"mu must be in \[-20, 20\], got 100"),
        "like": (
            lambda: grids.flow(4, like="wan"),  # type: ignore[arg-type]
            ValueError,
            "like must be one of .*'unipc'.*, got 'wan'",
        ),
        "terminal": (
            lambda: grids.flow(4, terminal=1.0),
            ValueError,
            r"terminal must be in \(0, 1\), got 1",
        ),
        "terminal of one": (
            lambda: grids.flow(1, terminal=0.1),
            ValueError,
            "num_steps must be at least 2 with terminal, got 1",
        ),
        "terminal of dpm": (
            lambda: grids.flow(4, terminal=0.1, like="dpm"),
            ValueError,
            'terminal must be left out with like="dpm".*, got 0.1',
        ),
        "rising": (  # the second time is above 1 - 1e-6, the first
            lambda: grids.flow(1000, shift=1e4, like="unipc"),
            ValueError,
            'shift must leave the 1000 times of like="unipc" apart from each other, got 10000',
        ),
        "equal": (lambda: grids.flow(4, shift=1e300), ValueError, "apart from each other, got 1e"),
    },
    mu={
        "tokens": (lambda: grids.flow_mu(0), ValueError, "sequence_length must be at least 1"),
        "line": (
            lambda: grids.flow_mu(9, base_seq_len=64, max_seq_len=64),
            ValueError,
            "max_seq_len must be above base_seq_len = 64, got 64",
        ),
    },
    names={
        "flow": (
            lambda: fs.sample(FLOW, 4, num_samples=1, grid="flow"),
            ValueError,
            r"grid must be one of .*, got 'flow'; pass steps=fs\.grids\.flow\(K, shift=",
        ),
        "fastdpm": (
            lambda: fs.sample(FLOW, 4, num_samples=1, method="fastdpm"),
            ValueError,
            r"schedule must have whole steps, got NoiseSchedule\.flow\(\)",
        ),
    },
)
def test_bad_input_is_refused(call, error, match):
    check_refusal(call, error, match)


REAL = ("uniform", "quadratic", "power", "blended", "log_snr", "karras")
INDEX_LISTS = [name for name in GRIDS if name not in REAL]


@pytest.mark.parametrize("name", INDEX_LISTS)
def test_lists_of_indices_say_what_to_take_for_flow(name):
    assert name in grid_names()
    with pytest.raises(ValueError, match=NO_STEPS):
        fs.sample(FLOW, 4, num_samples=1, grid=name)
    vdm = fs.Denoiser(lambda x, t: x, fs.NoiseSchedule.vdm(), (3,), time="log_snr")
    with pytest.raises(ValueError, match=r'the list holds their indices: try grid="uniform"'):
        fs.sample(vdm, 4, num_samples=1, grid=name)
