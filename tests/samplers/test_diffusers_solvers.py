"""The same trajectories as diffusers' schedulers, through `sample` in float32."""

from __future__ import annotations

import warnings

import pytest
import torch

import fastsample as fs
from fastsample.grids.grid import Grid
from tests.helpers.networks import denoiser, per_sample

diffusers = pytest.importorskip("diffusers")

SHAPE = (3, 2, 2)
SCHEDULES = {
    "linear": (fs.NoiseSchedule.linear(), {"beta_start": 1e-4, "beta_end": 0.02}),
    "scaled_linear": (
        fs.NoiseSchedule.scaled_linear(),
        {"beta_start": 0.00085, "beta_end": 0.012},
    ),
}
PREDICTIONS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}


def network(x, t):
    return torch.tanh(x) * per_sample(0.3 + t / 1000, x)


def start(K):
    """(x_T, one draw for each step)."""
    return torch.randn(4, *SHAPE), torch.randn(K, 4, *SHAPE)


def run(scheduler, x, draws=None, **options):
    """Their loop, on the timesteps it was given."""
    for i, t in enumerate(scheduler.timesteps):
        noise = {} if draws is None else {"variance_noise": draws[i]}
        output = network(x, torch.full((len(x),), int(t)))
        x = scheduler.step(output, t, x, return_dict=False, **noise, **options)[0]
    return x


def set_timesteps(scheduler, K):
    with warnings.catch_warnings():
        # diffusers 0.42 hands a tensor to np.array, which NumPy 2 asks for a copy keyword.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        scheduler.set_timesteps(K)


def cases():
    """(schedule, spacing, prediction, K): spacings and K in full, the others in turn."""
    for i, spacing in enumerate(("leading", "trailing", "linspace")):
        for j, K in enumerate((5, 8, 20)):
            for k, schedule in enumerate(SCHEDULES):
                yield schedule, spacing, list(PREDICTIONS)[(i + j + k) % 3], K


def assert_same(make_scheduler, make_plan, stochastic=False, **knobs):
    """All cases agree to 1e-5 of the largest element."""
    for name, spacing, prediction, K in cases():
        schedule, betas = SCHEDULES[name]
        scheduler = make_scheduler(
            beta_schedule=name,
            **betas,
            timestep_spacing=spacing,
            prediction_type=PREDICTIONS[prediction],
            final_sigmas_type="zero",
            **knobs,
        )
        set_timesteps(scheduler, K)
        grid = Grid.from_indices(scheduler.timesteps.tolist())
        assert len(grid) == K
        x, draws = start(K)
        expected = run(scheduler, x, draws if stochastic else None)
        got = fs.sample(
            denoiser(network, *SHAPE, schedule=schedule, prediction=prediction),
            make_plan(schedule, grid, prediction=prediction),
            start=x,
            **({"noise": draws} if stochastic else {}),
        )
        assert got.dtype == torch.float32
        error = float((got - expected).abs().max() / expected.abs().max())
        assert error < 1e-5, (name, spacing, prediction, K)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("lower_order_final", [True, False])
def test_dpm_solver(order, lower_order_final):
    knobs = {"lower_order_final": lower_order_final}
    assert_same(
        diffusers.DPMSolverMultistepScheduler,
        lambda *a, **k: fs.dpm_solver(*a, order=order, **knobs, **k),
        solver_order=order,
        algorithm_type="dpmsolver++",
        **knobs,
    )


@pytest.mark.parametrize("order", [1, 2])
def test_dpm_solver_sde(order):
    assert_same(
        diffusers.DPMSolverMultistepScheduler,
        lambda *a, **k: fs.dpm_solver(*a, order=order, stochastic=True, **k),
        stochastic=True,
        solver_order=order,
        algorithm_type="sde-dpmsolver++",
    )


@pytest.mark.parametrize("order", [1, 2])
def test_unipc(order):
    assert_same(
        diffusers.UniPCMultistepScheduler,
        lambda *a, **k: fs.unipc(*a, order=order, **k),
        solver_order=order,
    )


@pytest.mark.parametrize("kappa", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("S", [4, 10, 28])  # a whole stride, as DDIMScheduler assumes
def test_the_reverse_process_of_fastdpm_is_ddim(S, kappa):
    schedule, betas = SCHEDULES["linear"]
    scheduler = diffusers.DDIMScheduler(**betas, clip_sample=False)
    plan = fs.fastdpm(schedule, S, kappa=kappa)
    scheduler.timesteps = torch.from_numpy(plan.times - 1).long()
    scheduler.num_inference_steps = S - 1  # it steps back by T // this = 999 / (S - 1)
    x, draws = start(S)
    expected = run(scheduler, x, draws if kappa else None, eta=kappa)
    noise = {"noise": draws} if kappa else {}
    got = fs.sample(denoiser(network, *SHAPE, schedule=schedule), plan, start=x, **noise)
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-5
