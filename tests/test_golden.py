"""Numbers that the reference repositories produced (data/samplers.json, times 0-based there)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import oracles
import pytest

from fastsample import grids
from fastsample.grid import Grid
from fastsample.samplers import ancestral, ddim, ddim_inversion
from fastsample.schedule import NoiseSchedule
from fastsample.transition import transition

DATA = json.loads((Path(__file__).parent / "data" / "samplers.json").read_text())


def golden(*kinds: str):
    """Parametrise over the cases of some kinds."""
    found = [c for c in DATA["cases"] if c["kind"] in kinds]
    assert found
    return pytest.mark.parametrize("case", found, ids=[c["id"] for c in found])


def test_every_case_has_a_test():
    used = set(re.findall(r'^@golden\("(\w+)"\)', Path(__file__).read_text(), re.MULTILINE))
    assert {c["kind"] for c in DATA["cases"]} == used
    assert len(DATA["cases"]) == 65


def named_schedule(name: str, T: int) -> NoiseSchedule:
    """improved-diffusion's `get_named_beta_schedule`."""
    if name == "cosine":
        return NoiseSchedule.cosine(T)
    return NoiseSchedule.linear(T, 0.1 / T, 20.0 / T)


def reference_betas(schedule: NoiseSchedule) -> np.ndarray:
    """Betas of a discrete schedule, from its own levels."""
    a, s = schedule.levels(np.arange(schedule.num_steps + 1))
    return transition(a[:-1], s[:-1], a[1:], s[1:]).variance


def close(got, expected, tolerance=1e-10):
    expected = np.asarray(expected)
    assert np.all(np.abs(got - expected) <= tolerance * np.maximum(1, np.abs(expected)))


@golden("beta_schedule")
def test_beta_schedules(case):
    inputs, expected = case["inputs"], case["expected"]
    T = inputs.get("T", 1000)
    schedule = named_schedule(inputs.get("name", "linear"), T)
    t = np.array(inputs["indices"]) + 1
    np.testing.assert_allclose(schedule.alpha_bar(t), expected["alphas_cumprod"], rtol=1e-11)
    close(schedule.alpha_bar(t), expected["alphas_cumprod"], 1e-12)
    if "beta" in expected:
        betas = reference_betas(schedule)
        close(betas[t - 1], expected["beta"], 1e-12)
        clipped = int(np.sum(betas >= 0.999 - 1e-12))
        assert clipped == expected["n_betas_clipped_at_0.999"]


@golden("ddim_get_beta_schedule")
def test_ddim_beta_schedules(case):
    inputs = case["inputs"]
    start, end, T = inputs["beta_start"], inputs["beta_end"], inputs["T"]
    sigmoid = 1 / (1 + np.exp(-np.linspace(-6, 6, T))) * (end - start) + start
    schedule = {
        "linear": lambda: NoiseSchedule.linear(T, start, end),
        "quad": lambda: NoiseSchedule.scaled_linear(T, start, end),
        "const": lambda: NoiseSchedule.linear(T, end, end),
        "sigmoid": lambda: NoiseSchedule.from_betas(sigmoid),
    }[inputs["beta_schedule"]]()
    i = np.array(inputs["indices"])
    close(reference_betas(schedule)[i], case["expected"]["beta"], 1e-12)
    close(schedule.alpha_bar(i + 1), case["expected"]["alphas_cumprod"], 1e-12)


@golden("fastdpm_R")
def test_continuous_levels(case):
    inputs = case["inputs"]
    schedule = NoiseSchedule.linear(inputs["T"], inputs["beta_1"], inputs["beta_T"])
    for value in case["expected"]["values"]:
        if value["t_paper"] > inputs["T"]:
            with pytest.raises(ValueError, match=r"alpha_bar: t must be in \[0, 1000\], got"):
                schedule.alpha_bar(value["t_paper"])
            continue
        level = float(schedule.alpha_bar(value["t_paper"]))
        if value["log_abar"] > 0.0:
            # R exceeds 1 here: the schedule stays below 1 instead, to be invertible.
            assert level < 1.0
            continue
        assert np.log(level) == pytest.approx(value["log_abar"], abs=1e-12)
        assert float(schedule.alpha(value["t_paper"])) == pytest.approx(value["R"], abs=1e-12)


@golden("fastdpm_T_inverse")
def test_time_of_a_level(case):
    inputs = case["inputs"]
    schedule = NoiseSchedule.linear(inputs["T"], inputs["beta_1"], inputs["beta_T"])
    for value in case["expected"]:
        t = float(schedule.time_at(value["r"] ** 2))
        assert t == pytest.approx(value["t_paper"], abs=1e-8)
        assert t - 1 == pytest.approx(value["t_index_reference_bisearch"], abs=5e-6)


@golden("ddim_tau")
def test_ddim_index_lists(case):
    inputs, expected = case["inputs"], case["expected"]
    spacing = {"uniform": "uniform", "quad": "quadratic"}[inputs["skip_type"]]
    grid = grids.ddim(inputs["T"], inputs["S"], spacing)
    assert grid == Grid.from_indices(expected["tau"])
    assert len(grid) == expected["n_unique"]
    assert grid.times[-2::-1].tolist() == [i + 1 for i in sorted(set(expected["tau"]))]


@golden("improved_space_timesteps")
def test_space_timesteps(case):
    inputs, expected = case["inputs"], case["expected"]
    T, sections = inputs["num_timesteps"], inputs["section_counts"]
    if isinstance(expected, dict):
        assert expected["raises"] == "ValueError"
        with pytest.raises(ValueError, match=r"grids\.respaced: sections must"):
            grids.respaced(T, sections)
        return
    assert grids.respaced(T, sections).times[-2::-1].tolist() == [i + 1 for i in expected]


@golden("improved_respaced")
def test_respaced_chain(case):
    inputs, expected = case["inputs"], case["expected"]
    schedule = named_schedule(inputs["noise_schedule"], inputs["T"])
    grid = grids.respaced(inputs["T"], inputs["section_counts"])
    assert (grid.times[-2::-1] - 1).tolist() == expected["timestep_map"]
    a, s = schedule.levels(grid.times)
    pair = transition(a[1:], s[1:], a[:-1], s[:-1])
    small, large, learned = (
        ancestral(schedule, grid, variance=v) for v in ("small", "large", "learned_range")
    )

    def rising(values):
        return np.asarray(values)[::-1]

    def relative(got, key, absolute=0.0):
        np.testing.assert_allclose(rising(got), expected[key], rtol=1e-10, atol=absolute)

    relative(pair.variance, "betas")
    # The reference forms 1 - beta of its new betas, where cosine's last step leaves eight digits.
    relative(a[:-1] ** 2, "alphas_cumprod", absolute=1e-17)
    relative(pair.posterior_variance, "posterior_variance")
    relative(small.column("b"), "posterior_mean_coef1_x0")
    relative(small.column("a"), "posterior_mean_coef2_xt", absolute=1e-12)
    # The reference has made-up values for the last step, where sampling draws no noise.
    inner = slice(1, None)
    for got, key in (
        (2 * np.log(small.column("d")[:-1]), "posterior_log_variance_clipped"),
        (learned.column("lv_lo")[:-1], "posterior_log_variance_clipped"),
        (2 * np.log(large.column("d")[:-1]), "fixed_large_log_variance"),
    ):
        np.testing.assert_allclose(rising(got), expected[key][inner], rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(np.exp(learned.column("lv_hi")[:-1]), pair.variance[:-1], rtol=1e-13)


def trajectory_parts(inputs):
    """(schedule, grid, network in project time) of a trajectory case."""
    T = inputs["T"]
    if "tau" in inputs:
        schedule, grid = NoiseSchedule.linear(T), Grid.from_indices(inputs["tau"])
    else:
        schedule = named_schedule(inputs["noise_schedule"], T)
        grid = grids.respaced(T, inputs["section_counts"])
    scale = 1000 / T if inputs.get("rescale_timesteps") else 1.0
    inside = inputs.get("T_inside_model_B", T)
    model = {
        "A": oracles.model_a(schedule.alpha_bar(np.arange(1, T + 1))),
        "B": oracles.model_b(inside),
        "A2": oracles.model_a2(inside),
    }[inputs["model"]]
    return schedule, grid, lambda x, t: model(x, (t - 1) * scale)


@golden("trajectory")
def test_trajectories(case):
    inputs, expected = case["inputs"], case["expected"]
    schedule, grid, network = trajectory_parts(inputs)
    clip = 1.0 if inputs.get("clip_denoised") else None
    if "ddpm_steps" in case["sampler"]:
        plan = ddim(schedule, grid, sigma_hat=True, clip=1.0)
    elif "p_sample" in case["sampler"]:
        variance = inputs["model_var_type"].lower().removeprefix("fixed_")
        plan = ancestral(schedule, grid, variance=variance, clip=clip)
    else:
        plan = ddim(schedule, grid, eta=inputs["eta"], clip=clip)
    x_T = np.array(inputs["x_T"])
    got = oracles.execute(plan, network, x_T, oracles.noise_formula(len(plan)))
    close(got, expected["x_0"])
    if "tau" in inputs:  # repeated indices are calls that the grid saves
        assert len(plan) == len(set(inputs["tau"]))
        assert expected["n_network_calls"] == len(inputs["tau"])
    for k, x in enumerate(expected.get("x_after_each_step", [])):
        calls = iter(range(len(plan)))
        states = []

        def spy(x, t, calls=calls, states=states):
            states.append(x)
            next(calls)
            return network(x, t)

        oracles.execute(plan, spy, x_T, oracles.noise_formula(len(plan)))
        close([*states, got][k + 1], x)


@golden("ddim_encode")
def test_inversion(case):
    inputs, expected = case["inputs"], case["expected"]
    schedule, grid, network = trajectory_parts(inputs)
    none = np.zeros((len(grid), 8))
    plan = ddim_inversion(schedule, grid)
    encoded = oracles.execute(plan, network, np.array(inputs["x_0"]), none)
    close(encoded, expected["x_at_level_K_minus_1"])
    close(network(encoded, grid.times[0]), expected["x_after_the_extra_call"])
    decoded = oracles.execute(ddim(schedule, grid), network, encoded, none)
    close(decoded, expected["decoded_again_from_level_K_minus_1"])


@golden("slerp")
def test_slerp_oracle(case):
    inputs = case["inputs"]
    z1, z2 = np.array(inputs["z1"]), np.array(inputs["z2"])
    for weight, expected in zip(inputs["alpha"], case["expected"], strict=True):
        close(oracles.slerp(z1, z2, weight), expected)


def test_oracles_reproduce_the_repositories():
    """The transcriptions themselves, so that tests away from these cases can lean on them."""
    for case in DATA["cases"]:
        if case["kind"] != "trajectory" or case["inputs"].get("rescale_timesteps"):
            continue
        inputs, x_T = case["inputs"], np.array(case["inputs"]["x_T"])
        _, grid, network = trajectory_parts(inputs)
        kept = [int(t) - 1 for t in grid.times[-2::-1]]
        betas, noise = np.linspace(1e-4, 0.02, 1000), oracles.noise_formula(len(kept))

        def model(x, i, network=network):
            return network(x, i + 1)

        sampler, clip = case["sampler"], inputs.get("clip_denoised", False)
        spaced = oracles.SpacedDiffusion(betas, kept)
        if "ddpm_steps" in sampler:
            got = oracles.ddpm_steps(x_T, kept, model, betas, noise, 1.0)
        elif "generalized_steps" in sampler:
            got = oracles.generalized_steps(x_T, kept, model, betas, inputs["eta"], noise)
        elif "p_sample" in sampler:
            variance = inputs["model_var_type"].lower().removeprefix("fixed_")
            got = spaced.p_sample_loop(x_T, model, noise, clip, variance)
        else:
            got = spaced.ddim_sample_loop(x_T, model, noise, clip, inputs["eta"])
        close(got, case["expected"]["x_0"])


def test_spot_values():
    """First-order approach to x_0 = x_T = 1.5 on the exact network, DDIM's own uniform lists."""
    schedule, x_T = NoiseSchedule.linear(), oracles.X_T
    got = []
    for S in (10, 100, 1000):
        plan = ddim(schedule, grids.ddim(1000, S))
        zero = np.zeros((len(plan), 8))
        got.append(oracles.execute(plan, lambda x, t: schedule.sigma(t) * x, x_T, zero)[0])
    assert got == pytest.approx([1.2475, 1.4728, 1.4972], abs=5e-5)
