"""Whole runs of other people's samplers (data/samplers.json) through `sample` in float64."""

from __future__ import annotations

import pytest
import torch

import fastsample as fs
from fastsample import grids
from tests.helpers import oracles
from tests.helpers.networks import denoiser, model_a, model_a2, model_b
from tests.helpers.stored import stored

DATA = stored("samplers")
CASES = [c for c in DATA["cases"] if c["kind"] == "trajectory"]


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


def close(got, expected, tolerance=1e-10):
    expected = doubles(expected)
    assert torch.all((got - expected).abs() <= tolerance * expected.abs().clamp(min=1.0))


def parts(inputs):
    """(denoiser, grid) of a case."""
    T = inputs["T"]
    if "tau" in inputs:
        schedule, grid = fs.NoiseSchedule.linear(T), fs.Grid.from_indices(inputs["tau"])
    else:
        cosine = inputs["noise_schedule"] == "cosine"
        schedule = fs.NoiseSchedule.cosine(T) if cosine else fs.NoiseSchedule.linear(T)
        grid = grids.respaced(T, inputs["section_counts"])
    inside = inputs.get("T_inside_model_B", T)
    network = {"A": model_a(schedule), "B": model_b(inside), "A2": model_a2(inside)}
    learned = inputs["model"] == "A2"
    return denoiser(
        network[inputs["model"]],
        8,
        schedule=schedule,
        variance="learned_range" if learned else "small",
        clip=1.0 if inputs.get("clip_denoised") else None,
        time="rescaled" if inputs.get("rescale_timesteps") else "index",
    ), grid


def test_nothing_is_left_out():
    assert len(CASES) == 21
    found = {(c["sampler"].split()[0], c["inputs"]["model"]) for c in CASES}
    assert {model for _, model in found} == {"A", "B", "A2"}
    assert {c["inputs"]["eta"] for c in CASES} == {None, 0.0, 0.2, 0.5, 1.0}


@pytest.mark.parametrize("case", CASES, ids=[c["id"] for c in CASES])
def test_trajectory(case):
    inputs, expected, sampler = case["inputs"], case["expected"], case["sampler"]
    model, grid = parts(inputs)
    steps, options = grid, {}
    if "ddpm_steps" in sampler:
        steps = fs.ddim(model.schedule, grid, sigma_hat=True, clip=1.0)
    elif "p_sample" in sampler:
        variance = inputs["model_var_type"].lower().removeprefix("fixed_")
        options = {"method": "ancestral", "variance": variance}
    else:
        options = {"eta": inputs["eta"]}
    if options.get("eta") != 0.0:
        options["noise"] = torch.from_numpy(oracles.noise_formula(len(grid)))[:, None]
    seen = []
    got = fs.sample(
        model,
        steps,
        start=doubles([inputs["x_T"]]),
        callback=seen.append,
        **options,
    )
    close(got[0], expected["x_0"])
    # The loop without a callback takes another path, in place.
    plain = fs.sample(
        model,
        steps,
        start=doubles([inputs["x_T"]]),
        **options,
    )
    assert torch.equal(plain, got)
    for step, x in zip(seen, expected.get("x_after_each_step", []), strict=False):
        close(step.x[0], x)
    for step, x0 in zip(seen, expected.get("pred_x0_each_step", []), strict=False):
        close(step.x0[0], x0)


def test_rows_of_a_batch_do_not_mix():
    """Eight one-dimensional samples are the eight elements of the golden vectors."""
    case = next(c for c in CASES if c["id"] == "ddim_uniform_S10_eta0.5_B_noise")
    _, grid = parts(case["inputs"])
    got = fs.sample(
        denoiser(model_b(), 1),
        grid,
        eta=0.5,
        start=doubles(case["inputs"]["x_T"])[:, None],
        noise=torch.from_numpy(oracles.noise_formula(len(grid)))[..., None],
    )
    close(got[:, 0], case["expected"]["x_0"])
