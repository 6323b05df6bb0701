"""`stop=` between two nodes of a plan: in all but its last row it is the whole plan."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.sampling.resolve import PlanRequest, resolve
from fastsample.sampling.until import until
from tests.helpers.networks import LINEAR, Spy, denoiser, halve, per_sample

SHAPE, ROWS = (2, 3), 5


def labelled(x, t, y):
    return halve(x, t) + 0.25 * per_sample(y, x)


UNCOND, COND = {"y": 0.0}, {"y": [1.0, -2.0]}
GUIDANCE = {
    "one scale": {"guidance": 3.0},
    "high interval": {"guidance": 3.0, "guidance_interval": (500, 1000)},
    "low interval": {"guidance": 3.0, "guidance_interval": (0, 300)},
    "per row": {"guidance": (3.0, 1.0, 2.0, 1.0, 4.0)},
    "per row, unguided at first": {"guidance": (1.0, 1.0, 1.0, 1.0, 2.0)},
    "per row in an interval": {
        "guidance": (3.0, 1.5, 2.0, 2.5, 4.0),
        "guidance_interval": (100, 700),
    },
    "rescaled": {"guidance": 3.0, "guidance_rescale": 0.7},
    "rescaled interval": {
        "guidance": 3.0,
        "guidance_rescale": 0.7,
        "guidance_interval": (0, 300),
    },
    "threshold": {"guidance": 3.0, "threshold": 0.9, "clip": 1.0},
    "everything": {
        "guidance": (3.0, 1.0, 2.0, 1.0, 4.0),
        "guidance_rescale": 0.7,
        "threshold": 0.9,
        "clip": 1.0,
    },
}
METHODS = ("unipc", "ddim", "ancestral", "dpm++")

each_guidance = pytest.mark.parametrize("options", GUIDANCE.values(), ids=GUIDANCE)
each_method = pytest.mark.parametrize("method", METHODS)


def between(plan, k):
    """The time half way between the nodes of row k."""
    return float(plan.nodes[k] + plan.nodes[k + 1]) / 2.0


@each_guidance
@each_method
def test_the_rows_that_run_have_the_scales_of_the_whole_plan(method, options):
    model = denoiser(labelled, *SHAPE)
    options = dict(options)
    corrections = ("guidance", "guidance_interval", "guidance_rescale", "threshold", "clip")
    request = PlanRequest(ROWS, method, **{n: options[n] for n in corrections if n in options})
    whole = resolve("sample", model, request)
    for k in range(ROWS):
        node, time = float(whole.plan.nodes[k + 1]), between(whole.plan, k)
        at = until("sample", model, request, whole, node)
        cut = until("sample", model, request, whole, time)
        assert cut.plan.nodes.tolist() == [*whole.plan.nodes[: k + 1], time]
        assert np.array_equal(cut.plan.column("w"), at.plan.column("w"))
        assert np.array_equal(cut.plan.column("w"), whole.plan.column("w")[: k + 1])
        for name in ("lo", "hi"):
            assert np.array_equal(cut.plan.column(name), at.plan.column(name))
        assert cut.plan.prediction == at.plan.prediction == whole.plan.prediction
        assert (cut.correct is None) == (at.correct is None) == (whole.correct is None)
        assert (cut.method, cut.grid) == (whole.method, whole.grid)


@each_guidance
@each_method
def test_the_network_is_called_as_in_the_whole_run(method, options):
    """With the same samples and batches, but for the last row's result."""

    def run(stop):
        spy = Spy(labelled)
        sampler = fs.Sampler(denoiser(spy, *SHAPE), ROWS, method=method, uncond=UNCOND, **options)
        stop = None if stop is None else between(sampler.plan, stop)
        return spy, sampler(seed=1, cond=COND, stop=stop, return_states=True)

    whole, states = run(None)
    for k in range(ROWS):
        spy, partial = run(k)
        assert spy.batches == whole.batches[: k + 1]
        assert len(partial) == k + 2
        for n in range(k + 1):
            # A plan that is made anew computes its coefficients anew, in float64.
            torch.testing.assert_close(spy.inputs[n], whole.inputs[n])
            torch.testing.assert_close(partial[n], states[n])
            assert torch.equal(spy.told[n], whole.told[n])


@pytest.mark.parametrize("corrected", [False, True])
def test_third_order_with_fewer_rows_is_of_lower_order(corrected):
    """Rows never look back further than the run is long; the first two are those of the method."""
    sampler = fs.Sampler(
        halve, ROWS, shape=SHAPE, method="dpm++", order=3, corrected=corrected, grid="uniform"
    )
    whole = sampler(2, seed=1, return_states=True)
    times = sampler.plan.nodes
    for k in range(ROWS):
        time = between(sampler.plan, k)
        order = min(3, k + 1)
        fixed = {"corrected": corrected} if order == 3 else {}
        named = fs.dpm_solver(
            LINEAR, fs.Grid([*times[: k + 1], 0.0]), order=order, last=time, **fixed
        )
        got = sampler(2, seed=1, stop=time, return_states=True)
        expected = fs.sample(halve, named, shape=SHAPE, num_samples=2, seed=1)
        torch.testing.assert_close(got[-1], expected)
        if not corrected:
            torch.testing.assert_close(got[: min(k, 2) + 1], whole[: min(k, 2) + 1])


def test_variances_of_the_rows_that_run():
    variances = (0.1, 0.2, 0.3, 0.4, 0.0)
    sampler = fs.Sampler(
        halve, ROWS, shape=SHAPE, method="ancestral", variance=np.array(variances), grid="uniform"
    )
    whole = sampler(2, seed=1, return_states=True)
    got = sampler(2, seed=1, stop=500.0, return_states=True)  # in row 2, from 600
    torch.testing.assert_close(got[:3], whole[:3])
    assert not torch.equal(got[3], whole[3])


@pytest.mark.parametrize("stop", [300.0, 499.9, 0.0])
def test_a_stop_below_the_end_of_the_plan_is_refused(stop):
    message = (
        r"^{}: stop must be below the start at 1000 and not below the end at 500, got "
        f"{stop:g}$"
    )
    sampler = fs.Sampler(halve, 4, shape=SHAPE, method="unipc", last=500)
    for _ in range(2):
        with pytest.raises(ValueError, match=message.format("Sampler")):
            sampler(stop=stop)
    with pytest.raises(ValueError, match=message.format("sample")):
        fs.sample(halve, 4, shape=SHAPE, method="unipc", last=500, stop=stop)


def test_a_stop_at_or_above_the_end_of_such_a_plan():
    sampler = fs.Sampler(halve, 4, shape=SHAPE, method="unipc", last=500)
    assert torch.equal(sampler(seed=1, stop=500), sampler(seed=1))
    assert sampler(seed=1, stop=600, return_states=True).shape[0] <= len(sampler.plan) + 1


def test_a_sampler_remembers_eight_stops():
    sampler = fs.Sampler(halve, 4, shape=SHAPE)
    first = sampler(seed=1, stop=1.0)
    for time in range(1, 41):
        sampler(seed=1, stop=float(time))
    assert len(sampler._stopped._values) == 8
    assert torch.equal(sampler(seed=1, stop=1.0), first)
