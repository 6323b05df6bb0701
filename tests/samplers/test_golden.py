"""Numbers that the reference repositories produced (data/samplers.json, times 0-based there)."""

from __future__ import annotations

import re
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from fastsample import grids
from fastsample.grids.grid import Grid
from fastsample.samplers.ancestral import ancestral
from fastsample.samplers.ddim import ddim, ddim_inversion
from fastsample.samplers.fastdpm import fastdpm, steps_grid, var_betas, var_grid
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.schedules.transition import transition
from tests.helpers import oracles
from tests.helpers.stored import stored

DATA = stored("samplers")


def golden(*kinds: str):
    """Parametrise over the cases of some kinds."""
    found = [c for c in DATA["cases"] if c["kind"] in kinds]
    assert found
    return pytest.mark.parametrize("case", found, ids=[c["id"] for c in found])


def test_every_case_has_a_test():
    used = set(re.findall(r'^@golden\("(\w+)"\)', Path(__file__).read_text(), re.MULTILINE))
    assert {c["kind"] for c in DATA["cases"]} == used
    assert len(DATA["cases"]) == 98


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


def fastdpm_schedule(inputs) -> NoiseSchedule:
    return NoiseSchedule.linear(inputs["T"], inputs["beta_1"], inputs["beta_T"])


@golden("fastdpm_VAR")
def test_fastdpm_variances(case):
    inputs, expected = case["inputs"], case["expected"]
    schedule, chain = fastdpm_schedule(inputs), (inputs["S"], inputs["schedule"])
    eta = var_betas(schedule, *chain)
    np.testing.assert_allclose(eta, expected["eta"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.cumprod(1 - eta), expected["gamma_bar"], rtol=0, atol=1e-12)
    target = float(schedule.alpha_bar(schedule.T))
    np.testing.assert_allclose(target, expected["target_abar_T"], rtol=1e-11)
    ratio = expected["gamma_bar_S_over_abar_T"]
    np.testing.assert_allclose(np.prod(1 - eta) / target, ratio, rtol=1e-11)
    x = eta[-1] if inputs["schedule"] == "linear" else (eta[-1] / eta[0]) ** 0.5 - 1
    x /= 1 if inputs["schedule"] == "linear" else inputs["S"] - 1
    np.testing.assert_allclose(x, expected["free_parameter"], rtol=1e-12)

    # The reference stops at the bound of its search in silence; here that is said.
    reached = expected["reaches_target"]
    with nullcontext() if reached else pytest.warns(UserWarning, match="pass extended=True"):
        grid = var_grid(schedule, *chain)
    index = grid.times[-2::-1] - 1
    np.testing.assert_allclose(index, expected["t_index_exact"], rtol=0, atol=1e-8)
    # Its bisection in time ends anywhere within a relative 1e-8 of log alpha_bar.
    np.testing.assert_allclose(index, expected["t_index_reference"], rtol=0, atol=5e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extended = var_grid(schedule, *chain, extended=True)
    if reached:
        assert extended == grid
    else:
        assert grid.times[0] < 0.95 * schedule.T
        assert extended.times[0] == pytest.approx(schedule.T, abs=1e-6)


@golden("fastdpm_STEP")
def test_fastdpm_steps(case):
    inputs, expected = case["inputs"], case["expected"]
    schedule, chain = fastdpm_schedule(inputs), (inputs["S"], inputs["schedule"])
    tau, grid = np.array(expected["tau"]), steps_grid(schedule, *chain)
    assert grid == Grid.from_indices(tau)
    assert len(grid) == expected["n_unique"]
    levels = schedule.alpha_bar(tau + 1)
    np.testing.assert_allclose(levels, expected["gamma_bar"], rtol=0, atol=1e-12)
    a, s = schedule.levels(np.append(0, tau + 1))
    pair = transition(a[:-1], s[:-1], a[1:], s[1:])
    np.testing.assert_allclose(pair.variance, expected["eta"], rtol=0, atol=1e-12)
    # floor of a float falls one short for S = 14, and quadratic lists end at 0.8 T by design.
    short = inputs["S"] == 14 or inputs["schedule"] == "quadratic"
    assert (grid.times[0] < inputs["T"]) == short
    assert steps_grid(schedule, *chain, extended=True).times[0] == inputs["T"]


@golden("fastdpm_nonlinear_schedule_failure")
def test_fastdpm_away_from_linear_betas(case):
    """The reference inverts linear betas' levels whatever the betas, and sticks at n +- 0.01."""
    betas = np.linspace(1e-4**0.5, 0.02**0.5, 1000) ** 2
    levels, expected = np.array(case["inputs"]["gamma_bar"]), case["expected"]
    right = np.array(expected["t_index_by_linear_interpolation_of_log_abar_table"])
    wrong = np.array(expected["t_index_reference_code"])
    for schedule in (
        NoiseSchedule.from_betas(betas),
        NoiseSchedule.scaled_linear(1000, 1e-4, 0.02),
    ):
        index = schedule.time_at(levels) - 1
        np.testing.assert_allclose(index, right, rtol=0, atol=1e-6)
        assert np.all(np.abs(index - wrong)[1:] > 0.4)
    ratios = levels / np.append(1.0, levels[:-1])
    np.testing.assert_allclose(1 - ratios, case["inputs"]["eta"], rtol=0, atol=1e-12)


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


def fastdpm_parts(inputs):
    """(schedule, network in project time, noise) of a FastDPM trajectory."""
    schedule, T = fastdpm_schedule(inputs), inputs["T"]
    model = oracles.model_b(T)
    noise = oracles.noise_formula(inputs.get("S", T))
    if inputs["noise"] != "noise_formula":
        noise = np.zeros_like(noise)

    def network(x, t):
        return schedule.sigma(t) * x if inputs["model"] == "A" else model(x, t - 1)

    return schedule, network, noise


@golden("fastdpm_trajectory")
def test_fastdpm_trajectories(case):
    inputs, expected = case["inputs"], case["expected"]
    schedule, network, noise = fastdpm_parts(inputs)
    if "STD" in case["sampler"]:
        plans = [
            fastdpm(schedule, inputs["T"], kappa=1.0),
            ancestral(schedule, grids.uniform(inputs["T"], inputs["T"])),
        ]
    else:
        var = "VAR" in case["sampler"]
        options = {"approximation": "var" if var else "steps", "spacing": inputs["schedule"]}
        short = var and inputs["schedule"] == "quadratic"  # S = 10: see test_fastdpm_variances
        with pytest.warns(UserWarning, match="variances end at") if short else nullcontext():
            plans = [fastdpm(schedule, inputs["S"], kappa=inputs["kappa"], **options)]
        if var:
            exact = np.array(inputs["t_index_descending_exact"])
            np.testing.assert_allclose(plans[0].times - 1, exact, rtol=0, atol=1e-8)
        else:
            assert (plans[0].times - 1).tolist() == inputs["tau"][::-1]
    for plan in plans:
        got = oracles.execute(plan, network, np.array(inputs["x_T"]), noise)
        close(got, expected.get("x_0_with_exact_t", expected["x_0"]))
        close(got, expected["x_0"], 1e-6)


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


def test_fastdpm_oracles_reproduce_the_repository():
    for case in (c for c in DATA["cases"] if c["kind"] == "fastdpm_trajectory"):
        inputs, x_T = case["inputs"], np.array(case["inputs"]["x_T"])
        _, network, noise = fastdpm_parts(inputs)
        betas = np.linspace(inputs["beta_1"], inputs["beta_T"], inputs["T"])

        def model(x, i, network=network):
            return network(x, i + 1)

        if "STD" in case["sampler"]:
            got = oracles.std_sampling(x_T, betas, model, noise)
        else:
            if "tau" in inputs:
                times = inputs["tau"]
                levels = np.cumprod(1 - betas)[times]
            else:
                times = inputs["t_index_descending_reference"][::-1]
                levels = np.cumprod(1 - np.array(inputs["eta"]))
            got = oracles.fastdpm_sampling(x_T, levels, times, model, inputs["kappa"], noise)
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
