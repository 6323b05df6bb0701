"""Plans that land on the first step are what diffusers does when told not to land on data."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids
from tests.helpers import oracles

diffusers = pytest.importorskip("diffusers")

SCHEDULES = {
    "linear": (fs.NoiseSchedule.linear(), {"beta_start": 1e-4, "beta_end": 0.02}),
    "scaled_linear": (
        fs.NoiseSchedule.scaled_linear(),
        {"beta_start": 0.00085, "beta_end": 0.012},
    ),
}
PREDICTIONS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}

schedules = pytest.mark.parametrize("name", SCHEDULES)
budgets = pytest.mark.parametrize("K", [4, 10, 50])


def network(x, index):
    return np.tanh(x) * (0.3 + index / 1000)


def theirs(make, name, K, **knobs):
    """Their scheduler, with the levels of our schedule."""
    scheduler = make(beta_schedule=name, **SCHEDULES[name][1], steps_offset=1, **knobs)
    # Their table in float32 is a product of a thousand factors.
    levels = torch.from_numpy(SCHEDULES[name][0].alpha_bar(np.arange(1.0, 1001.0)))
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), levels, rtol=1e-4, atol=0)
    scheduler.alphas_cumprod = levels
    scheduler.final_alpha_cumprod = levels[0]
    with warnings.catch_warnings():
        # diffusers 0.42 hands a tensor to np.array, which NumPy 2 asks for a copy keyword.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        scheduler.set_timesteps(K)
    return scheduler


def run(scheduler, dtype, draws=None, **options):
    x, noise = torch.from_numpy(oracles.X_T).to(dtype)[None], {}
    for k, t in enumerate(scheduler.timesteps):
        if draws is not None:
            noise = {"variance_noise": torch.from_numpy(draws[k]).to(dtype)[None]}
        output = torch.from_numpy(network(x.numpy(), int(t)))
        x = scheduler.step(output, t, x, return_dict=False, **noise, **options)[0]
    return x[0].double().numpy()


def ours(plan, draws=None):
    draws = np.zeros((len(plan), 8)) if draws is None else draws
    return oracles.execute(plan, lambda x, t: network(x, t - 1), oracles.X_T, draws)


@schedules
@budgets
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_without_alpha_to_one(name, K, eta, prediction):
    """Every Stable Diffusion 1.x and 2.x config has set_alpha_to_one=False."""
    knobs = {"set_alpha_to_one": False, "clip_sample": False, "timestep_spacing": "leading"}
    scheduler = theirs(
        diffusers.DDIMScheduler,
        name,
        K,
        prediction_type=PREDICTIONS[prediction],
        **knobs,
    )
    schedule, _ = SCHEDULES[name]
    grid = grids.diffusers(1000, K, "leading", 1)
    assert (grid.times[:-1] - 1).tolist() == scheduler.timesteps.tolist()
    draws = oracles.noise_formula(K)
    expected = run(scheduler, torch.float64, draws if eta else None, eta=eta)
    for rederive in (True, False):  # without clipping they are the same
        plan = fs.ddim(
            *(schedule, grid),
            **{"eta": eta, "rederive": rederive, "last": "first", "prediction": prediction},
        )
        assert len(plan) == K
        assert (plan.column("d")[-1] > 0) == (eta > 0)
        found = ours(plan, draws)
        assert np.abs(found - expected).max() < 1e-11 * np.abs(expected).max()
    on_data = ours(fs.ddim(schedule, grid, eta=eta, prediction=prediction), draws)
    assert np.abs(on_data - expected).max() > 1e-6 * np.abs(expected).max()


def assert_same(make_scheduler, make_plan, name, K, stochastic=False, **knobs):
    """Their solvers compute in float32: equal to 3e-5 of the largest element."""
    schedule, _ = SCHEDULES[name]
    draws = oracles.noise_formula(K) if stochastic else None
    for spacing, (prediction, theirs_name) in zip(
        ("leading", "trailing", "leading"), PREDICTIONS.items(), strict=True
    ):
        scheduler = theirs(
            make_scheduler,
            name,
            K,
            prediction_type=theirs_name,
            timestep_spacing=spacing,
            final_sigmas_type="sigma_min",
            **knobs,
        )
        grid = fs.Grid.from_indices(scheduler.timesteps.tolist())
        plan = make_plan(schedule, grid, last="first", prediction=prediction)
        assert plan.nodes.tolist() == [t + 1.0 for t in [*scheduler.timesteps.tolist(), 0]]
        expected, found = run(scheduler, torch.float32, draws), ours(plan, draws)
        assert np.abs(found - expected).max() < 3e-5 * np.abs(expected).max(), (spacing, prediction)


@schedules
@pytest.mark.parametrize("K", [5, 8, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("lower_order_final", [True, False])
def test_dpm_solver_to_sigma_min(name, K, order, lower_order_final):
    assert_same(
        diffusers.DPMSolverMultistepScheduler,
        lambda *a, **k: fs.dpm_solver(*a, order=order, lower_order_final=lower_order_final, **k),
        *(name, K),
        solver_order=order,
        algorithm_type="dpmsolver++",
        lower_order_final=lower_order_final,
    )


@schedules
@pytest.mark.parametrize("K", [5, 8, 20])
@pytest.mark.parametrize("order", [1, 2])
def test_dpm_solver_sde_to_sigma_min(name, K, order):
    assert_same(
        diffusers.DPMSolverMultistepScheduler,
        lambda *a, **k: fs.dpm_solver(*a, order=order, stochastic=True, **k),
        *(name, K),
        stochastic=True,
        solver_order=order,
        algorithm_type="sde-dpmsolver++",
    )


@schedules
@pytest.mark.parametrize("K", [5, 8, 20])
@pytest.mark.parametrize("order", [1, 2])
def test_unipc_to_sigma_min(name, K, order):
    assert_same(
        diffusers.UniPCMultistepScheduler,
        lambda *a, **k: fs.unipc(*a, order=order, **k),
        *(name, K),
        solver_order=order,
    )
