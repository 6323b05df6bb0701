"""Plans as lists of sigmas and timesteps for other programs, and grids from such lists."""

from __future__ import annotations

import numpy as np
import pytest

import fastsample as fs
from fastsample import grids
from tests.helpers.cases import SCHEDULES
from tests.helpers.refusals import check_refusal, refusals

SD = fs.NoiseSchedule.scaled_linear()
FLOW = fs.NoiseSchedule.flow()
ZERO_SNR = fs.NoiseSchedule.from_alpha_bar(np.linspace(0.99, 0.0, 30))


def test_ratio_is_the_sigma_of_k_diffusion():
    plan = fs.ddim(SD, fs.Grid.from_indices([999, 400, 24]))
    alpha_bar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    want = np.sqrt((1 - alpha_bar) / alpha_bar)[[999, 400, 24]]
    np.testing.assert_allclose(plan.to_sigmas(), [*want, 0.0], rtol=1e-12)
    assert plan.to_sigmas().dtype == np.float64
    assert np.array_equal(plan.to_sigmas("ratio"), plan.to_sigmas())
    assert plan.to_timesteps().tolist() == [999, 400, 24]
    assert plan.to_timesteps().dtype == np.int64


def test_flow_is_the_time_of_flow_matching():
    grid = grids.flow(6, shift=3.0)
    assert np.array_equal(fs.ddim(FLOW, grid, prediction="flow").to_sigmas(), grid.times)
    # The same time belongs to a variance-preserving plan of the same signal-to-noise ratio.
    vp = fs.ddim(SD, fs.Grid.from_indices([999, 400, 24]))
    ratio = vp.to_sigmas("ratio")
    np.testing.assert_allclose(vp.to_sigmas("flow"), ratio / (1 + ratio), rtol=1e-14)


def test_the_list_of_a_plan_that_ends_part_way_ends_above_0():
    plan = fs.dpm_solver(SD, fs.Grid.from_indices([999, 400, 24]), last="first")
    alpha, sigma = SD.levels(1.0)
    assert plan.to_sigmas()[-1] == sigma / alpha > 0.0
    assert len(plan.to_sigmas()) == plan.calls + 1
    assert plan.to_timesteps().tolist() == [999, 400, 24]
    assert np.array_equal(plan.until(401).to_sigmas(), plan.to_sigmas()[:2])


def test_timesteps_are_what_the_network_is_told():
    """ "DPM++ 2M Karras": exact levels, and whole steps for the network."""
    plan = fs.dpm_solver(SD, grids.karras(SD, 10))
    with pytest.raises(ValueError, match="times must be whole steps"):
        plan.to_timesteps()
    rounded = plan.with_times(np.maximum(np.rint(plan.times), 1))
    assert rounded.to_timesteps().tolist() == (np.rint(plan.times) - 1).tolist()
    assert np.array_equal(rounded.to_sigmas(), plan.to_sigmas())


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("convention", ["ratio", "flow"])
def test_a_grid_comes_back_from_its_sigmas(name, convention):
    schedule = SCHEDULES[name]
    start = 1.0 if convention == "flow" else 0.97  # the ratio may be infinite at T
    times = schedule.T * start * np.array([1.0, 0.83, 0.5, 0.31, 0.04])
    plan = fs.shortcut(schedule, fs.Grid([*times, 0.0]), prediction="v")
    grid = grids.from_sigmas(schedule, plan.to_sigmas(convention), convention=convention)
    np.testing.assert_allclose(grid.times[:-1], times, rtol=1e-9)
    again = fs.shortcut(schedule, grid, prediction="v").to_sigmas(convention)
    np.testing.assert_allclose(again, plan.to_sigmas(convention), rtol=1e-9)


def test_flow_times_come_back_to_the_bit():
    for K in (1, 7, 40):
        grid = grids.flow(K, shift=5.0, like="unipc")
        plan = fs.ddim(FLOW, grid, prediction="flow")
        assert grids.from_sigmas(FLOW, plan.to_sigmas()) == grid


def test_a_first_sigma_that_was_rounded_up_is_T():
    """Align Your Steps publishes 14.615; sigma at T is 14.6146."""
    assert float(SD.sigma(1000) / SD.alpha(1000)) < 14.615
    grid = grids.from_sigmas(SD, [14.615, 3.0, 0.0])
    assert grid.times[0] == 1000.0
    assert grids.from_sigmas(FLOW, [1.0001, 0.5, 0.0]).times.tolist() == [1.0, 0.5, 0.0]
    assert grids.from_sigmas(ZERO_SNR, [1e9, 1.0, 0.0]).times[0] == pytest.approx(30.0, abs=1e-6)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_schedulers_of_diffusers_take_the_lists():
    diffusers = pytest.importorskip("diffusers")
    plan = fs.dpm_solver(SD, fs.Grid.from_indices([999, 640, 301, 24]))
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    euler = diffusers.EulerDiscreteScheduler(**betas)
    euler.set_timesteps(sigmas=plan.to_sigmas().tolist())
    np.testing.assert_allclose(euler.sigmas.numpy(), plan.to_sigmas(), rtol=1e-6)
    np.testing.assert_allclose(euler.timesteps.numpy()[:4], plan.to_timesteps(), atol=2e-3)
    dpm = diffusers.DPMSolverMultistepScheduler(**betas)
    dpm.set_timesteps(timesteps=plan.to_timesteps().tolist())
    assert dpm.timesteps.tolist() == plan.to_timesteps().tolist()
    np.testing.assert_allclose(dpm.sigmas.numpy(), plan.to_sigmas(), rtol=1e-4)
    plan = fs.ddim(FLOW, grids.flow(5, shift=3.0), prediction="flow")
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)  # or it would shift once more
    flow.set_timesteps(sigmas=plan.to_sigmas()[:-1])
    np.testing.assert_allclose(flow.sigmas.numpy(), plan.to_sigmas(), rtol=2**-24)


GIVEN = fs.ddim(SD, fs.Grid.from_indices([999, 400]))
SILENT = fs.restart(
    SD, grids.uniform(1000, 10), intervals=[(200.0, 500.0, 1, 4)], prediction="epsilon"
)
INVERTING = fs.ddim_inversion(SD, grids.uniform(1000, 4))
NOTHING = fs.ddim(ZERO_SNR, grids.uniform(30, 3), prediction="v")


@refusals(
    sigmas={
        "convention": (
            lambda: GIVEN.to_sigmas("ve"),  # type: ignore[arg-type]
            ValueError,
            r"^Plan.to_sigmas: convention must be one of \['ratio', 'flow'\], got 've'",
        ),
        "inverting": (INVERTING.to_sigmas, ValueError, "nodes must fall, got .*which inverts"),
        "silent rows": (SILENT.to_sigmas, ValueError, "rows must all call the network"),
        "no signal": (
            NOTHING.to_sigmas,
            ValueError,
            'convention must be "flow" for a plan that starts without any signal',
        ),
    },
    timesteps={
        "inverting": (INVERTING.to_timesteps, ValueError, "nodes must fall, got .*which inverts"),
        "silent rows": (SILENT.to_timesteps, ValueError, "rows must all call the network"),
        "continuous": (
            fs.ddim(FLOW, grids.flow(3), prediction="flow").to_timesteps,
            ValueError,
            r"schedule must have whole steps, got NoiseSchedule\.flow\(\); use to_sigmas",
        ),
        "not whole": (
            GIVEN.with_times([999.5, 401.0]).to_timesteps,
            ValueError,
            r"times must be whole steps from 1 on, got 999.5 in row 0; plan.with_times\(",
        ),
        "below 1": (
            GIVEN.with_times([999.0, 1e-7]).to_timesteps,
            ValueError,
            "times must be whole steps from 1 on, got 1e-07 in row 1",
        ),
        "rising": (
            GIVEN.with_times([400.0, 400.0]).to_timesteps,
            ValueError,
            "times must fall from row to row, got 400 then 400 in row 0",
        ),
    },
    grid={
        "schedule": (
            lambda: grids.from_sigmas(1000, [1.0, 0.0]),  # type: ignore[arg-type]
            TypeError,
            "schedule must be a NoiseSchedule, got 1000",
        ),
        "convention": (
            lambda: grids.from_sigmas(SD, [1.0, 0.0], convention="ve"),  # type: ignore[arg-type]
            ValueError,
            "convention must be one of",
        ),
        "far above": (
            lambda: grids.from_sigmas(SD, [80.0, 1.0, 0.0]),
            ValueError,
            r"sigmas must be at most 14\.6146, that of the schedule at T, got 80",
        ),
        "timesteps": (
            lambda: grids.from_sigmas(FLOW, [999.0, 500.0, 0.0]),
            ValueError,
            "sigmas must be at most 1, that of the schedule at T, got 999",
        ),
        "rising": (
            lambda: grids.from_sigmas(SD, [0.0, 1.0, 14.0]),
            ValueError,
            r"sigmas must fall \(noisiest first\), got 0 then 1 at position 0",
        ),
        "no data": (
            lambda: grids.from_sigmas(SD, [14.0, 1.0]),
            ValueError,
            r"sigmas must end at 0 \(data\).*, got 1 last; append 0\.0",
        ),
        "only data": (lambda: grids.from_sigmas(SD, [0.0]), ValueError, "after at least one other"),
        "nan": (lambda: grids.from_sigmas(SD, [np.nan, 0.0]), ValueError, "must be finite"),
    },
)
def test_bad_input_is_refused(call, error, match):
    check_refusal(call, error, match)
