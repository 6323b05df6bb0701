"""What networks of flow models are told, by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids
from tests.helpers.networks import Spy

FLOW = fs.NoiseSchedule.flow()
LONG = fs.NoiseSchedule.from_functions(alpha=lambda t: 1.0, sigma=lambda t: t, T=80.0)
CONVENTIONS = {
    "fraction": lambda share: share,
    "thousandths": lambda share: 1000 * share,
    "whole_thousandths": lambda share: np.floor(1000 * share),
    "reversed": lambda share: 1 - share,
}


def told(plan, time, schedule=FLOW):
    """The timesteps that reach the network, and their dtype."""
    spy = Spy(lambda x, t: x)
    denoiser = fs.Denoiser(spy, schedule, (3,), prediction=plan.prediction, time=time)
    fs.sample(denoiser, plan, start=torch.ones(2, 3))
    assert len({timestep.dtype for timestep in spy.told}) == 1
    return torch.stack(spy.told)[:, 0]


@pytest.mark.parametrize("time", CONVENTIONS)
@pytest.mark.parametrize("schedule", [FLOW, fs.NoiseSchedule.vdm(), LONG], ids=["1", "vdm", "80"])
def test_the_share_of_T_by_name(time, schedule):
    share = np.array([0.9999, 0.7313, 0.25, 0.0123])
    plan = fs.ddim(schedule, fs.Grid([*(share * schedule.T), 0.0]), prediction="x0")
    got = told(plan, time, schedule)
    whole = time == "whole_thousandths"
    assert got.dtype == (torch.int64 if whole else torch.float32)
    want = CONVENTIONS[time](share)
    np.testing.assert_allclose(got.double().numpy(), want, rtol=2**-24, atol=2**-52)


def test_a_discrete_schedule_has_shares_of_T_too():
    plan = fs.ddim(fs.NoiseSchedule.linear(50), fs.Grid([50, 20, 1, 0]))
    got = told(plan, "thousandths", fs.NoiseSchedule.linear(50))
    assert got.tolist() == [1000.0, 400.0, 20.0]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0])
@pytest.mark.parametrize("K", [1, 3, 4, 9, 20, 27, 50])
def test_timesteps_are_those_of_diffusers(K, shift):
    diffusers = pytest.importorskip("diffusers")
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    for like, scheduler in (
        ("unipc", diffusers.UniPCMultistepScheduler(**flow)),
        ("dpm", diffusers.DPMSolverMultistepScheduler(**flow)),
    ):
        scheduler.set_timesteps(K)
        plan = fs.ddim(FLOW, grids.flow(K, shift=shift, like=like), prediction="flow")
        got = told(plan, "whole_thousandths")
        assert got.dtype == scheduler.timesteps.dtype == torch.int64
        assert torch.equal(got, scheduler.timesteps)
        # The same numbers as floats, through the plan's times, for a network told in thousandths.
        floor = plan.with_times(np.floor(1000 * plan.times) / 1000)
        assert torch.equal(told(floor, "thousandths"), scheduler.timesteps.float())
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(K)
    plan = fs.ddim(FLOW, grids.flow(K, shift=shift, like="euler"), prediction="flow")
    torch.testing.assert_close(told(plan, "thousandths"), scheduler.timesteps, rtol=5e-7, atol=0)
    reversed_ = (1000 - scheduler.timesteps) / 1000  # as the pipeline of Z-Image computes it
    torch.testing.assert_close(told(plan, "reversed"), reversed_, rtol=0, atol=2e-7)


def test_truncation_never_rounds_up():
    plan = fs.ddim(FLOW, fs.Grid([0.569 - 1e-9, 0.25, 0.0]), prediction="flow")
    assert told(plan, "whole_thousandths").tolist() == [568, 250]


@pytest.mark.parametrize("time", ["index", "rescaled"])
def test_step_numbers_of_a_flow_model_are_refused_with_the_names_to_take(time):
    names = r'pass time="fraction" \(t / T\), "thousandths" \(1000 t / T\), "whole_thousandths", '
    match = rf"time must not be '{time}' for NoiseSchedule\.flow\(\).*; {names}"
    with pytest.raises(ValueError, match=match):
        fs.Denoiser(lambda x, t: x, FLOW, (3,), time=time)


def test_an_unknown_name_is_refused_with_all_names():
    names = "'fraction', 'thousandths', 'whole_thousandths', 'reversed', 'log_snr'"
    with pytest.raises(ValueError, match=f"time must be one of .*{names}.*, got 'milliseconds'"):
        fs.Denoiser(lambda x, t: x, FLOW, (3,), time="milliseconds")  # type: ignore[arg-type]


@pytest.mark.parametrize(("time", "factor"), [("index", 1.0), ("rescaled", 0.25)])
def test_times_below_the_first_step_are_told_as_it(time, factor):
    """A network's indices begin at 0, that of time 1, as FastDPM's code and k-diffusion have it."""
    schedule = fs.NoiseSchedule.linear(4000, 2.5e-5, 0.005)
    times = [2.5, 1.0, 0.9999, 0.0047]
    plan = fs.ddim(schedule, fs.Grid([*times, 0.0]))
    assert told(plan, time, schedule).tolist() == [1.5 * factor, 0.0, 0.0, 0.0]
    network = fs.Denoiser(lambda x, t: x, schedule, (3,), time=time)
    assert network.network_times([0.5, 0.0]).tolist() == [0.0, 0.0]
    assert network.network_times([3.0, 1.0]).tolist() == [2.0 * factor, 0.0]


def test_sigmas_below_the_first_step():
    """Stable Diffusion's first step has the sigma 0.029; the last one here is a tenth of that."""
    schedule = fs.NoiseSchedule.scaled_linear()
    grid = grids.from_sigmas(schedule, [14.6, 3.0, 0.5, 0.002, 0.0])
    assert 0.0 < grid.times[3] < 0.01
    got = told(fs.ddim(schedule, grid), "index", schedule)
    assert got.dtype == torch.float32
    assert got[3] == 0.0
    np.testing.assert_allclose(got[:3], grid.times[:3] - 1.0, rtol=2**-24)
