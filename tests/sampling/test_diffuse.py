"""`diffuse`: data at any noise level at once, with noise of its own."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import ops
from fastsample.ops.draws import DIFFUSE_DRAW
from tests.helpers.cases import SCHEDULES
from tests.helpers.networks import LINEAR, Spy, halve, per_sample
from tests.helpers.refusals import START, check_refusal, refusals

FLOW = fs.NoiseSchedule.flow()
SHAPE = (3, 4, 2)


def data(batch=5):
    return torch.randn(batch, *SHAPE, dtype=torch.float64)


def expected(x0, schedule, times, seeds=(0,), index=None):
    """The formula in float64, with the noise of `DIFFUSE_DRAW`."""
    index = torch.arange(len(x0)) if index is None else torch.tensor(index)
    eps = ops.noise(torch.tensor(seeds), index, SHAPE, draw=DIFFUSE_DRAW, dtype=torch.float64)
    times = np.broadcast_to(np.asarray(times, dtype=np.float64), len(x0))
    alpha, sigma = (per_sample(torch.from_numpy(level), x0) for level in schedule.levels(times))
    return alpha * x0 + sigma * eps


@pytest.mark.parametrize("share", [0.0, 1e-3, 0.123456, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_formula_on_every_schedule(schedule, share):
    x0, t = data(), share * schedule.T
    got = fs.diffuse(x0, schedule, t, seed=0)
    torch.testing.assert_close(got, expected(x0, schedule, t), rtol=1e-14, atol=1e-14)


def test_clean_data_and_nothing_but_noise():
    x0 = data()
    for schedule in (LINEAR, FLOW):
        assert torch.equal(fs.diffuse(x0, schedule, 0), x0)
    assert torch.equal(fs.diffuse(x0, FLOW, 1.0, seed=0), fs.diffuse(-3.0 * x0, FLOW, 1.0, seed=0))


def test_the_noise_is_no_noise_of_sample():
    spy = Spy(halve)
    shape = (40_000,)
    identity = {"seed": [5, 2**64 - 1], "sample_index": [7, 2**40]}
    fs.sample(spy, 1, shape=shape, dtype=torch.float64, **identity)
    got = fs.diffuse(torch.zeros(2, *shape).double(), FLOW, 1.0, **identity)
    correlation = torch.corrcoef(torch.cat((got, spy.inputs[0]))) - torch.eye(4)
    assert correlation.abs().max() < 0.03
    assert (got.std(dim=1) - 1.0).abs().max() < 0.02


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_a_time_for_each_sample(kind):
    x0, times = data(), [0.0, 3.0, 999.5, 0.25, 1000.0]
    got = fs.diffuse(x0, LINEAR, kind(times), seed=9)
    torch.testing.assert_close(got, expected(x0, LINEAR, times, (9,)), rtol=1e-14, atol=1e-14)
    for i, t in enumerate(times):
        assert torch.equal(got[i], fs.diffuse(x0, LINEAR, t, seed=9)[i])


def test_fractional_times_lie_between():
    x0 = torch.ones(1, *SHAPE).double()
    below, at, above = (fs.diffuse(x0, LINEAR, t, seed=0) for t in (400.0, 400.5, 401.0))
    assert not torch.equal(at, below)
    assert (((below < at) & (at < above)) | ((below > at) & (at > above))).all()


SAMPLES = {
    "seed": ({"seed": 2**63 + 5}, [5 - 2**63] * 5, range(5)),
    "first index": ({"sample_index": 11, "seed": 3}, [3] * 5, range(11, 16)),
    "indices": (
        {"seed": 0, "sample_index": torch.tensor([4, 0, 4, 2**50, 1])},
        [0] * 5,
        [4, 0, 4, 2**50, 1],
    ),
    "seeds": ({"seed": [1, 2, 3, 2, 1]}, [1, 2, 3, 2, 1], [0] * 5),
    "both": ({"seed": range(5), "sample_index": 6}, range(5), range(6, 11)),
}


@pytest.mark.parametrize(("options", "seeds", "index"), SAMPLES.values(), ids=SAMPLES)
def test_seeds_and_indices(options, seeds, index):
    x0 = data()
    got = fs.diffuse(x0, LINEAR, 300.0, **options)
    reference = expected(x0, LINEAR, 300.0, list(seeds), list(index))
    torch.testing.assert_close(got, reference, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_sample_is_the_same_in_any_batch(dtype):
    x0 = data().to(dtype)
    together = fs.diffuse(x0, LINEAR, 123.4, seed=6)
    assert together.dtype == dtype
    for i in range(5):
        assert torch.equal(
            together[i : i + 1], fs.diffuse(x0[i : i + 1], LINEAR, 123.4, seed=6, sample_index=i)
        )
    assert fs.diffuse(x0[:0], LINEAR, 5.0).shape == (0, *SHAPE)
    assert fs.diffuse(x0[:0], LINEAR, []).shape == (0, *SHAPE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rounds_once(dtype):
    x0 = data().to(dtype)
    wide = fs.diffuse(x0.float(), LINEAR, 321.0, seed=0)
    assert torch.equal(fs.diffuse(x0, LINEAR, 321.0, seed=0), wide.to(dtype))
    # float32 is the float64 result but for the rounding of two products and a sum.
    reference = expected(x0.double(), LINEAR, 321.0)
    torch.testing.assert_close(wide.double(), reference, rtol=0.0, atol=2e-6)


def test_gradients_in_the_data():
    x0 = data().requires_grad_()
    times = [0.0, 1.0, 200.5, 700.0, 1000.0]
    fs.diffuse(x0, LINEAR, times).sum().backward()
    alpha = per_sample(torch.from_numpy(LINEAR.alpha(np.array(times))), x0)
    torch.testing.assert_close(x0.grad, alpha.expand_as(x0), rtol=1e-15, atol=0.0)


def test_explicit_noise_and_data_that_stay():
    x0, eps = data(), data()
    before = x0.clone(), eps.clone()
    got = fs.diffuse(x0, FLOW, 0.25, noise=eps)
    torch.testing.assert_close(got, 0.75 * x0 + 0.25 * eps, rtol=1e-15, atol=1e-15)
    assert torch.equal(x0, before[0])
    assert torch.equal(eps, before[1])
    x_t = fs.diffuse(x0, FLOW, 0.0)
    x_t += 1.0
    assert torch.equal(x0, before[0])
    low = x0.bfloat16(), eps.bfloat16()
    got = fs.diffuse(low[0], FLOW, 0.25, noise=low[1])
    assert torch.equal(got, (0.75 * low[0].float() + 0.25 * low[1].float()).bfloat16())


def test_any_shape_and_layout():
    x0 = torch.randn(2, 3, 4, 4)
    plain = fs.diffuse(x0, LINEAR, 200.0, seed=0)
    last = x0.to(memory_format=torch.channels_last)
    assert torch.equal(fs.diffuse(last, LINEAR, 200.0, seed=0), plain)
    assert torch.equal(fs.diffuse(x0.flatten(1), LINEAR, 200.0, seed=0), plain.flatten(1))


# ---- what is refused


def diffuse(x0=START, schedule=LINEAR, t=5.0, **options):
    return partial(fs.diffuse, x0, schedule, t, **options)


DATA = {
    "integers": (diffuse(START.long()), TypeError, r"x0 must be a floating .*, got torch\.int64"),
    "list": (diffuse([1.0]), TypeError, r"diffuse: x0 must be a floating tensor, got list"),
    "no batch": (
        diffuse(torch.ones(3)),
        ValueError,
        r"x0 must have shape \(B, \*shape\), got \(3,\)",
    ),
    "schedule": (diffuse(schedule="linear"), TypeError, "schedule must be a Noise.*, got 'linear'"),
    "noise": (diffuse(noise=[1.0]), TypeError, "diffuse: noise must be a tensor, got list"),
    "its shape": (
        diffuse(noise=START[:1]),
        ValueError,
        r"diffuse: noise must have shape \(2, 2, 3",
    ),
    "its dtype": (
        diffuse(noise=START.double()),
        TypeError,
        r"diffuse: noise must be torch\.float32",
    ),
}
TIMES = {
    "above T": (
        diffuse(t=1001),
        ValueError,
        r"diffuse: t must be in \[0, 1000\], got 1001 to 1001",
    ),
    "below 0": (diffuse(t=[3, -1]), ValueError, r"t must be in \[0, 1000\], got -1 to 3"),
    "flow": (
        diffuse(schedule=FLOW, t=2),
        ValueError,
        r"diffuse: t must be in \[0, 1\], got 2 to 2",
    ),
    "NaN": (diffuse(t=float("nan")), ValueError, "diffuse: t must be finite, got nan"),
    "text": (diffuse(t="a"), TypeError, "diffuse: t must hold real numbers, got "),
    "three": (diffuse(t=[1, 2, 3]), ValueError, r"one per sample \(2,\), got shape \(3,\)"),
    "a column": (diffuse(t=[[1], [2]]), ValueError, r"one per sample \(2,\), got shape \(2, 1\)"),
}
IDENTITY = {
    "seeds": (
        diffuse(seed=[1, 2, 3]),
        ValueError,
        r"diffuse: seed must be one number or one per sample, got 3 for 2 samples",
    ),
    "indices": (
        diffuse(sample_index=[1]),
        ValueError,
        r"diffuse: sample_index must be one .*, got 1 for 2 samples",
    ),
    "float": (diffuse(seed=1.0), TypeError, r"diffuse: seed must be an integer, got 1\.0"),
    "below 0": (diffuse(seed=-1), ValueError, r"diffuse: seed must be in \[0, 1844.*\], got -1"),
    "a matrix": (diffuse(sample_index=[[1, 2]]), ValueError, "sample_index must be .*, got 2 dims"),
}


@refusals(data=DATA, times=TIMES, identity=IDENTITY)
def test_refused(call, error, match):
    check_refusal(call, error, match)
