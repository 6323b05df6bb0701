"""Samplers of flow models against independent loops and diffusers' flow schedulers.

Euler is DDIM, DPM-Solver++ and UniPC are themselves, stochastic sampling is the shortcut sampler.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids

FLOW = fs.NoiseSchedule.flow()
STEPS = (1, 2, 4, 10, 28)
SHIFTS = (1.0, 3.0, 8.0)
# Their sigmas are float32 and every step is; ours are float64. A step is at most eight operations
# on values of size about 4, and K of them add up.
ERROR = 2e-6

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
steps = pytest.mark.parametrize("K", STEPS)
shifts = pytest.mark.parametrize("shift", SHIFTS)


def velocity(x, t):
    """eps - x0 of the exact model of two narrow modes at -0.7 and 0.7, at time t."""
    alpha, sigma = 1 - t, t
    variance = alpha**2 * 0.05 + sigma**2
    mode = 0.7 * torch.tanh(0.7 * alpha * x / variance)
    x0 = (mode * sigma**2 + 0.05 * alpha * x) / variance
    return (x - x0) / sigma  # which is (x - alpha x0) / sigma - x0


def noise(*shape):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


MODEL = fs.Denoiser(
    lambda x, t: velocity(x, t.double()[:, None]), FLOW, (6,), prediction="flow", time="fraction"
)
START = noise(4, 6)


def theirs(scheduler):
    """The loop of a pipeline, with the network at the scheduler's own sigma."""
    x = START
    for i, timestep in enumerate(scheduler.timesteps):
        output = velocity(x, scheduler.sigmas[i].double())
        x = scheduler.step(output, timestep, x, return_dict=False)[0].double()
    return x


@steps
@shifts
@pytest.mark.parametrize("like", ["sigmas", "euler", "unipc", "dpm"])
def test_euler_is_ddim(K, shift, like):
    grid = grids.flow(K, shift=shift, like=like)
    x = START
    times = grid.times.tolist()
    for t, s in itertools.pairwise(times):
        x = x + (s - t) * velocity(x, torch.tensor(t, dtype=torch.float32).double())
    got = fs.sample(MODEL, grid, start=START, method="ddim")
    torch.testing.assert_close(got, x, rtol=0, atol=1e-13 * K)


@steps
@shifts
def test_euler_of_diffusers(K, shift):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    for like in ("sigmas", "euler"):
        if like == "euler":
            scheduler.set_timesteps(K)
        else:
            scheduler.set_timesteps(sigmas=np.linspace(1, 1 / K, K))
        got = fs.sample(MODEL, grids.flow(K, shift=shift, like=like), start=START, method="ddim")
        assert (got - theirs(scheduler)).abs().max() < ERROR


@pytest.mark.parametrize("K", [2, 4, 10, 28])
@shifts
def test_unipc_and_dpm_of_diffusers(K, shift):
    diffusers = pytest.importorskip("diffusers")
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    unipc = diffusers.UniPCMultistepScheduler(**flow)
    unipc.set_timesteps(K)
    got = fs.sample(MODEL, grids.flow(K, shift=shift, like="unipc"), start=START, method="unipc")
    assert (got - theirs(unipc)).abs().max() < ERROR
    for order in (2, 3):
        if order > K:
            continue
        dpm = diffusers.DPMSolverMultistepScheduler(solver_order=order, **flow)
        dpm.set_timesteps(K)
        grid = grids.flow(K, shift=shift, like="dpm")
        got = fs.sample(MODEL, grid, start=START, method="dpm++", order=order)
        assert (got - theirs(dpm)).abs().max() < ERROR


@pytest.mark.parametrize("K", [2, 4, 10])
def test_stochastic_sampling_is_the_shortcut_sampler(K, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    module = pytest.importorskip("diffusers.schedulers.scheduling_flow_match_euler_discrete")
    drawn = noise(K, *START.shape)
    rows = iter(drawn)
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(rows).float())
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
    scheduler.set_timesteps(K)
    want = theirs(scheduler)
    grid = grids.flow(K, shift=3.0, like="euler")
    got = fs.sample(MODEL, grid, start=START, noise=drawn, method="shortcut")
    assert (got - want).abs().max() < ERROR
