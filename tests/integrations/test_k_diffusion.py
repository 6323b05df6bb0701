"""k-diffusion: its denoisers here, this package's samplers there, against loops of its formulas."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import fastsample as fs
from fastsample.integrations import k_diffusion
from fastsample.integrations.k_diffusion.convert import for_x0_models
from fastsample.plans.plan import COLUMNS
from fastsample.samplers.ddim import ddim_inversion
from tests.helpers.networks import LINEAR, halve
from tests.helpers.refusals import check_refusal, refusals

SHAPE = (3, 4, 4)


def karras_list(n=8, low=0.03, high=14.6):
    """A list as k-diffusion makes it: float32, 0 at the end."""
    ramp = torch.linspace(0, 1, n)
    sigmas = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    return torch.cat([sigmas, sigmas.new_zeros(1)])


LISTS = {
    "whole": karras_list(),
    "from the middle": karras_list()[3:],
    "to the middle": karras_list()[:5],
    "one step": karras_list()[-2:],
    "long": karras_list(20),
}


def model(x, sigma, **extra):
    """An x0 that depends on x and sigma in no simple way."""
    sigma = sigma.reshape(-1, *[1] * (x.dim() - 1))
    return torch.tanh(x / (1 + sigma**2).sqrt()) + 0.1 * torch.sin(3 * x / (1 + sigma))


def start(sigmas, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(batch, *SHAPE, generator=generator, dtype=torch.float64)
    return (noise * float(sigmas[0])).to(dtype)


class Noise:
    """The same normal noise for the same step, as a Brownian path gives it."""

    def __init__(self, shape=(2, *SHAPE)):
        self.shape = shape

    def __call__(self, sigma, sigma_next):
        generator = torch.Generator().manual_seed(round(float(sigma) * 1e4))
        return torch.randn(self.shape, generator=generator, dtype=torch.float64)


# ---- k-diffusion's loops, from their formulas, in float64


def x0_at(x, sigma):
    return model(x, torch.full((x.shape[0],), sigma, dtype=x.dtype))


def euler(x, sigmas, noise=None):
    for t, s in pairwise(sigmas):
        x = x + (x - x0_at(x, t)) / t * (s - t)
    return x


def euler_ancestral(x, sigmas, noise, eta=1.0):
    for t, s in pairwise(sigmas):
        x0 = x0_at(x, t)
        up = min(s, eta * math.sqrt(s**2 * (t**2 - s**2) / t**2))
        down = math.sqrt(s**2 - up**2)
        x = x + (x - x0) / t * (down - t)
        if s > 0:
            x = x + noise(t, s) * up
    return x


def dpmpp_2m(x, sigmas, noise=None):
    old, h_old = None, None
    for t, s in pairwise(sigmas):
        x0 = x0_at(x, t)
        if s == 0:
            x = x0
            continue
        h = math.log(t / s)
        mixed = x0 if old is None else x0 + (x0 - old) * h / (2 * h_old)
        x = s / t * x + (1 - math.exp(-h)) * mixed
        old, h_old = x0, h
    return x


def dpmpp_2m_sde(x, sigmas, noise):
    old, h_old = None, None
    for t, s in pairwise(sigmas):
        x0 = x0_at(x, t)
        if s == 0:
            x = x0
            continue
        h = math.log(t / s)
        gain = 1 - math.exp(-2 * h)
        x = s / t * math.exp(-h) * x + gain * x0
        if old is not None:
            x = x + 0.5 * gain * (x0 - old) * h / h_old
        x = x + noise(t, s) * s * math.sqrt(gain)
        old, h_old = x0, h
    return x


PAIRS = {
    "euler": (euler, ("ddim", {})),
    "euler_ancestral": (euler_ancestral, ("ddim", {"eta": 1.0})),
    "euler_ancestral, eta = 0.4": (
        lambda x, sigmas, noise: euler_ancestral(x, sigmas, noise, 0.4),
        ("ddim", {"eta": 0.4}),
    ),
    "dpmpp_2m": (dpmpp_2m, ("dpm++", {})),
    "dpmpp_2m_sde": (dpmpp_2m_sde, ("dpm++", {"stochastic": True})),
}


@pytest.mark.parametrize("which", LISTS)
@pytest.mark.parametrize("name", PAIRS)
def test_equals_the_loop_of_k_diffusion(name, which):
    loop, (method, knobs) = PAIRS[name]
    sigmas = LISTS[which]
    x, noise = start(sigmas), Noise()
    ours = k_diffusion.sampler(method, **knobs)(model, x, sigmas, noise_sampler=noise)
    theirs = loop(x, sigmas.double().tolist(), noise)
    # Both round in float64 at each of at most 20 steps, from samples of size 60.
    assert (ours - theirs).abs().max() < 1e-12 * x.abs().max()


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m"])
def test_single_precision_differs_by_its_rounding(name):
    loop, (method, knobs) = PAIRS[name]
    sigmas = LISTS["whole"]
    x = start(sigmas, dtype=torch.float32)
    ours = k_diffusion.sampler(method, **knobs)(model, x, sigmas)
    theirs = loop(x.double(), sigmas.double().tolist())
    assert ours.dtype == torch.float32
    assert (ours - theirs).abs().max() < 8 * 2**-24 * x.abs().max()


@pytest.mark.parametrize("source", ["ddim", fs.ddim(LINEAR, fs.Grid([900.0, 0.0]))])
@pytest.mark.parametrize("levels", [[1.0], [0.0], [14.6, 14.6]])
def test_a_list_without_a_step_returns_its_samples(source, levels):
    """A list that ComfyUI splits at its first or last level leaves one level."""

    def never(x, sigma):
        raise AssertionError

    x = start([1.0])
    assert torch.equal(k_diffusion.sampler(source)(never, x, torch.tensor(levels)), x)


@pytest.mark.parametrize("split", range(9))
def test_two_parts_of_any_split_are_the_whole(split):
    sigmas = LISTS["whole"]
    sample, x = k_diffusion.sampler("ddim"), start(sigmas)
    middle = sample(model, x, sigmas[: split + 1])
    whole = sample(model, x, sigmas)
    assert torch.allclose(sample(model, middle, sigmas[split:]), whole, atol=1e-12)


def test_two_parts_of_a_run_are_the_whole():
    sigmas = LISTS["whole"]
    sample, x = k_diffusion.sampler("ddim"), start(sigmas)
    middle = sample(model, x, sigmas[:4])
    assert torch.allclose(sample(model, middle, sigmas[3:]), sample(model, x, sigmas), atol=1e-12)


@pytest.mark.parametrize("method", ["auto", "ancestral", "shortcut", "unipc", "restart"])
def test_every_method_takes_a_list(method):
    sigmas, told = LISTS["whole"], []
    knobs = {"intervals": [(0.5, 3.0, 2)]} if method == "restart" else {}

    def spy(x, sigma):
        told.append(float(sigma[0]))
        return model(x, sigma)

    k_diffusion.sampler(method, seed=1, **knobs)(spy, start(sigmas), sigmas)
    if method == "restart":  # some levels are visited twice
        assert len(told) > len(sigmas) - 1
        told = sorted(set(told), reverse=True)
    assert told == sigmas[:-1].tolist()


def test_knobs_may_come_with_the_call_and_choose_the_method():
    sigmas, noise = LISTS["whole"], Noise()
    x = start(sigmas)
    late = k_diffusion.sampler()(model, x, sigmas, noise_sampler=noise, eta=1.0)
    early = k_diffusion.sampler("ddim", eta=1.0)(model, x, sigmas, noise_sampler=noise)
    assert torch.equal(late, early)


def test_an_order_above_the_number_of_steps_is_lowered():
    sigmas = LISTS["one step"]
    x = start(sigmas)
    high = k_diffusion.sampler("dpm++", order=3, corrected=True)(model, x, sigmas)
    assert torch.equal(high, k_diffusion.sampler("ddim")(model, x, sigmas))


def test_repeated_levels_are_no_steps():
    sigmas = LISTS["whole"]
    doubled = torch.repeat_interleave(sigmas, 2)
    sample, x = k_diffusion.sampler(), start(sigmas)
    assert torch.equal(sample(model, x, doubled), sample(model, x, sigmas))


# ---- noise


def test_noise_belongs_to_the_seed_and_the_place_in_the_batch():
    sigmas = LISTS["whole"]
    sample, x = k_diffusion.sampler("ddim", eta=1.0), start(sigmas, 4, torch.float32)
    four = sample(model, x, sigmas, {"seed": 7})
    one = sample(model, x[:1], sigmas, {"seed": 7})
    assert torch.equal(four[:1], one)
    assert not torch.equal(four, sample(model, x, sigmas, {"seed": 8}))
    assert torch.equal(four, k_diffusion.sampler("ddim", eta=1.0, seed=7)(model, x, sigmas))


def test_noise_is_that_of_sample():
    sigmas = LISTS["whole"]
    x = start(sigmas, dtype=torch.float32)
    denoiser = k_diffusion.denoiser(model, SHAPE, sigma_max=14.7)
    here = fs.sample(denoiser, sigmas, method="ddim", eta=1.0, seed=3, start=x)
    there = k_diffusion.sampler("ddim", eta=1.0, seed=3)(model, x, sigmas)
    assert torch.allclose(here, there, atol=1e-6)


def test_without_a_seed_torch_governs():
    sigmas = LISTS["whole"]
    sample, x = k_diffusion.sampler("ddim", eta=1.0), start(sigmas)
    torch.manual_seed(1)
    first, second = sample(model, x, sigmas), sample(model, x, sigmas)
    torch.manual_seed(1)
    assert torch.equal(first, sample(model, x, sigmas))
    assert not torch.equal(first, second)


# ---- the interface


def test_callback_and_arguments_are_those_of_k_diffusion():
    sigmas = LISTS["whole"]
    seen, given = [], []

    def spy(x, sigma, **extra):
        given.append((x, sigma, extra))
        return model(x, sigma)

    x = start(sigmas, dtype=torch.float32)
    before = x.clone()
    options = {"a": [1]}
    out = k_diffusion.sampler("ddim")(spy, x, sigmas, {"options": options}, seen.append, True)
    assert torch.equal(x, before)
    assert [info["i"] for info in seen] == list(range(len(sigmas) - 1))
    for (told_x, told, extra), info, sigma in zip(given, seen, sigmas[:-1], strict=True):
        assert extra == {"options": options}
        assert extra["options"] is options
        assert torch.equal(told, sigma.expand(2))
        assert told.dtype == x.dtype
        assert info["sigma"] == info["sigma_hat"] == sigma
        assert torch.equal(info["x"], told_x)  # the samples before the step, as given
        assert torch.equal(info["denoised"], model(told_x, told))
    assert torch.equal(seen[-1]["denoised"], out)
    assert k_diffusion.sampler("ddim").__name__ == "sample_fastsample_ddim"


def test_a_model_may_keep_its_input():
    sigmas, kept = LISTS["whole"], []

    def keeper(x, sigma):
        kept.append((x, x.clone()))
        return model(x, sigma)

    k_diffusion.sampler("dpm++")(keeper, start(sigmas), sigmas)
    assert all(torch.equal(x, copy) for x, copy in kept)


def test_half_precision_samples_get_half_precision_levels():
    dtypes = []

    def spy(x, sigma):
        dtypes.append((x.dtype, sigma.dtype))
        return model(x, sigma)

    sigmas = LISTS["whole"].half()
    k_diffusion.sampler()(spy, start(sigmas, dtype=torch.float16), sigmas)
    assert set(dtypes) == {(torch.float16, torch.float16)}


def test_clip_bounds_x0():
    sigmas = LISTS["whole"]
    x = start(sigmas)
    out = k_diffusion.sampler("ddim", clip=0.25)(model, x, sigmas)
    assert out.abs().max() == 0.25


def test_disable_false_shows_a_bar(capsys):
    sigmas = LISTS["whole"]
    k_diffusion.sampler()(model, start(sigmas), sigmas, disable=False)
    assert "8/8" in capsys.readouterr().err
    k_diffusion.sampler()(model, start(sigmas), sigmas, disable=True)
    assert not capsys.readouterr().err


# ---- plans of other schedules, on samples of the other scale


def wrapped(network, schedule, prediction):
    """The x0 for x = x0 + sigma eps of a network with another scale and prediction."""

    def x0(x, sigma):
        log_snr = -2.0 * math.log(float(sigma[0]))
        time = schedule.time_at_log_snr(max(log_snr, float(schedule.log_snr(schedule.T))))
        alpha, noise = (float(v) for v in schedule.levels(time))
        inside = alpha * x
        m = network(inside, torch.full(x.shape[:1], float(time) - 1))
        return {
            "epsilon": lambda: (inside - noise * m) / alpha,
            "v": lambda: alpha * inside - noise * m,
            "x0": lambda: m,
        }[prediction]()

    return x0


def network(x, t):
    return torch.tanh(x + 0.001 * t.to(x).reshape(-1, 1, 1, 1))


def free(plan):
    """The plan with rows and times that obey no law, as tuning makes them."""
    rows = np.array(plan.rows)
    nudge = np.random.default_rng(0).uniform(0.9, 1.1, rows.shape)
    columns = [COLUMNS.index(name) for name in ("p", "q", "a", "b", "e", "c1", "c2")]
    rows[:, columns] *= nudge[:, columns]
    times = np.maximum(plan.times * 0.97, 1.0)
    return dataclasses.replace(plan, rows=rows, times=times, check="none")


GRID = fs.grids.quadratic(1000, 6)
PLANS = {
    "tuned": lambda p: free(fs.dpm_solver(LINEAR, GRID, prediction=p)),
    "ddim": lambda p: fs.ddim(LINEAR, GRID, eta=0.5, prediction=p),
    "ddim, own eps": lambda p: fs.ddim(LINEAR, GRID, clip=0.8, rederive=False, prediction=p),
    "large variance": lambda p: fs.ancestral(LINEAR, GRID, variance="large", prediction=p),
    "3M": lambda p: fs.dpm_solver(LINEAR, GRID, order=3, prediction=p),
    "unipc": lambda p: fs.unipc(LINEAR, GRID, prediction=p),
    "part way": lambda p: fs.ddim(LINEAR, GRID, last="first", prediction=p),
    "restart": lambda p: fs.restart(LINEAR, GRID, intervals=[(100, 300, 2)], prediction=p),
}


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
@pytest.mark.parametrize("name", PLANS)
def test_a_plan_does_the_same_to_the_other_samples(name, prediction):
    plan = PLANS[name](prediction)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)
    denoiser = fs.Denoiser(network, LINEAR, SHAPE, prediction=prediction)
    ours = fs.sample(denoiser, plan, start=x, seed=5)
    sample = k_diffusion.sampler(plan, seed=5)
    theirs = sample(
        wrapped(network, LINEAR, prediction), x / plan.alphas[0], k_diffusion.sigmas(plan)
    )
    # float32 tells the network its level to 2^-24, and the network depends on it mildly.
    assert torch.allclose(theirs * plan.alphas[-1], ours, atol=2e-5)


def test_a_plan_tells_its_own_times():
    plan = fs.dpm_solver(LINEAR, fs.grids.karras(LINEAR, 5))
    plan = plan.with_times(np.maximum(np.rint(plan.times), 1.0))
    told = []

    def spy(x, sigma):
        told.append(float(sigma[0]))
        return 0.5 * x

    k_diffusion.sampler(plan)(spy, torch.ones(1, *SHAPE), k_diffusion.sigmas(plan))
    alpha, sigma = LINEAR.levels(plan.times)
    assert told == (sigma / alpha).astype(np.float32).tolist()


def test_a_plan_of_a_k_diffusion_model_comes_from_a_file(tmp_path):
    denoiser = k_diffusion.denoiser(model, SHAPE, sigma_max=14.6)
    grid = k_diffusion.karras(4, sigma_min=0.03, sigma_max=14.6)
    plan = fs.dpm_solver(denoiser.schedule, grid, prediction="x0")
    plan = plan.with_times(0.98 * plan.times)
    path = fs.save_plans(tmp_path / "plans.json", [dataclasses.replace(plan, schedule=None)])
    loaded = fs.load_plans(path)[4]
    x = start([14.6])
    here = fs.sample(denoiser, plan, start=x)
    there = k_diffusion.sampler(loaded)(model, x, k_diffusion.sigmas(loaded))
    assert torch.allclose(here, there, atol=1e-6)
    other = dataclasses.replace(free(fs.ddim(LINEAR, GRID)), schedule=None)
    with pytest.raises(ValueError, match="plan must have a schedule where its times are not"):
        k_diffusion.sampler(other)


def test_a_converted_plan_obeys_the_laws_of_its_levels():
    for make in PLANS.values():
        plan = make("epsilon")
        for convention in ("ratio", "flow"):  # building a Plan checks its laws
            other, scales = for_x0_models("test", plan, convention)
            assert other.check == plan.check
            assert set(scales) == {1.0} or plan.check == "none"
            snr = np.log(plan.alphas[:-1] / plan.sigmas[:-1])
            assert np.allclose(np.log(other.alphas[:-1] / other.sigmas[:-1]), snr, atol=1e-12)


# ---- lists and schedules


def test_sigmas_of_a_plan_and_of_a_grid_agree():
    grid = fs.grids.uniform(1000, 6)
    listed = k_diffusion.sigmas(fs.unipc(LINEAR, grid))
    alpha, sigma = LINEAR.levels(grid.times)
    assert listed.dtype == torch.float32
    assert np.array_equal(listed.numpy(), (sigma / alpha).astype(np.float32))
    assert torch.equal(listed, k_diffusion.sigmas(grid, LINEAR))


def test_sigmas_of_flow_are_its_times():
    flow = fs.NoiseSchedule.flow()
    grid = fs.grids.uniform(1.0, 4)
    assert k_diffusion.sigmas(grid, flow).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert k_diffusion.sigmas(fs.Grid([0.5, 0.0]), flow, convention="ratio").tolist() == [1.0, 0.0]


def test_sigmas_leave_out_returns_to_noise():
    grid = fs.grids.uniform(1000, 6)
    plan = fs.restart(LINEAR, grid, intervals=[(100, 600, 2)])
    assert np.any(np.diff(plan.nodes) > 0)
    assert torch.equal(k_diffusion.sigmas(plan), k_diffusion.sigmas(grid, LINEAR))


@pytest.mark.parametrize(
    "schedule",
    [
        LINEAR,
        fs.NoiseSchedule.flow(),
        fs.NoiseSchedule.exploding(),
        fs.NoiseSchedule.from_functions(alpha=lambda t: 1 - t**2, sigma=lambda t: t**2),
    ],
    ids=["linear", "flow", "exploding", "flow of functions"],
)
def test_a_plan_has_one_list(schedule):
    plan = fs.ddim(schedule, fs.Grid(schedule.T * np.array([0.9, 0.4, 0.1, 0.0])))
    assert torch.equal(k_diffusion.sigmas(plan), torch.tensor(plan.to_sigmas()).float())
    assert torch.equal(k_diffusion.sigmas(plan), k_diffusion.sigmas(fs.Grid(plan.nodes), schedule))
    back = fs.grids.from_sigmas(schedule, plan.to_sigmas())
    assert np.allclose(back.times, plan.nodes, rtol=1e-9)


def test_plans_and_profiles_of_their_models_can_be_saved(tmp_path):
    denoiser = k_diffusion.denoiser(model, SHAPE, sigma_max=80.0)
    plan = fs.Sampler(denoiser, 4).plan
    path = fs.save_plans(tmp_path / "plans.json", [plan])
    assert fs.load_plans(path) == {4: plan}
    assert fs.load_plans(path)[4].schedule == denoiser.schedule
    data = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    file = tmp_path / "profile.safetensors"
    profile = fs.profile(denoiser, data, bin_width=None, times=[1.0, 9.0, 80.0], save=file)
    assert fs.Profile.load(file).schedule == denoiser.schedule
    assert denoiser.with_profile(fs.Profile.load(file)).profile is not None
    assert profile.schedule == denoiser.schedule


def test_schedule_reads_a_table():
    alpha, sigma = LINEAR.levels(np.arange(1, 1001))

    class Table:
        sigmas = torch.as_tensor((sigma / alpha).astype(np.float32))

    class Outer:
        inner_model = Table()

    schedule = k_diffusion.schedule(Outer())
    assert np.allclose(schedule.alpha(np.arange(1, 1001)), alpha, rtol=1e-7)
    assert k_diffusion.sigmas(fs.grids.uniform(1000, 3), schedule)[0] == Table.sigmas[-1]


def test_karras_levels_are_those_of_the_paper():
    grid = k_diffusion.karras(18, sigma_min=0.002, sigma_max=80.0)
    i = np.arange(18)
    want = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert np.allclose(grid.times, np.append(want, 0.0), rtol=1e-13)
    assert grid.times[0] == 80.0
    one = k_diffusion.karras(1, sigma_min=0.002, sigma_max=80.0)
    assert one.times.tolist() == [80.0, 0.0]


# ---- their denoisers here


class Discrete(nn.Module):
    """k-diffusion's wrapper of an epsilon network with a table of noise levels."""

    def __init__(self, quantize=False):
        super().__init__()
        alpha, sigma = LINEAR.levels(np.arange(1, 1001))
        self.register_buffer("sigmas", torch.as_tensor(sigma / alpha, dtype=torch.float32))
        self.weight = nn.Parameter(torch.tensor(0.7))
        self.quantize = quantize
        self.told = []
        self.eval()

    @property
    def sigma_max(self):
        return self.sigmas[-1]

    def forward(self, x, sigma, shift=0.0):
        logs, at = self.sigmas.log().double(), sigma.log().double()
        index = torch.as_tensor(np.interp(at.cpu(), logs.cpu(), np.arange(1000.0)))
        index = index.round() if self.quantize else index
        self.told.append(float(index[0]))
        level = sigma.reshape(-1, *[1] * (x.dim() - 1))
        inside = x / (level**2 + 1) ** 0.5
        shift = torch.as_tensor(shift).to(x).reshape(-1, *[1] * (x.dim() - 1))
        return x - level * torch.tanh(self.weight.to(x) * inside + shift)


@pytest.mark.parametrize("quantize", [False, True])
def test_their_denoiser_runs_here_as_there(quantize):
    theirs = Discrete(quantize).double()
    denoiser = k_diffusion.denoiser(theirs, SHAPE)
    assert float(theirs.sigma_max) == denoiser.schedule.T
    grid = k_diffusion.karras(6, sigma_min=0.05, sigma_max=100.0)
    sigmas = k_diffusion.sigmas(grid, denoiser.schedule)
    x = start(sigmas, dtype=torch.float64)
    ours = fs.sample(denoiser, sigmas, method="ddim", start=x)
    want = x
    for t, s in pairwise(sigmas.double()):
        x0 = theirs(want, t.expand(2))
        want = want + (want - x0) / t * (s - t)
    assert (ours - want).abs().max() < 1e-12 * x.abs().max()
    assert all(index == round(index) for index in theirs.told) == quantize


def test_the_schedule_is_exact():
    denoiser = k_diffusion.denoiser(model, SHAPE, sigma_max=700)
    levels = np.array([690.0, 3.0, 1e-3])
    assert denoiser.schedule.alpha(levels).tolist() == [1.0, 1.0, 1.0]
    assert denoiser.schedule.sigma(levels).tolist() == levels.tolist()
    assert denoiser.network_times(levels).tolist() == levels.astype(np.float32).tolist()


def test_conditions_and_guidance_reach_their_model():
    denoiser = k_diffusion.denoiser(Discrete(), SHAPE, uncond={"shift": 0.0})
    unguided = fs.sample(denoiser, 4, seed=1, cond={"shift": 0.3})
    guided = fs.sample(denoiser, 4, seed=1, cond={"shift": 0.3}, guidance=2.0)
    assert not torch.equal(guided, unguided)


def test_a_half_precision_wrapper_gets_levels_of_its_dtype():
    class Picky(Discrete):
        def forward(self, x, sigma, shift=0.0):
            assert x.dtype == sigma.dtype == torch.float16
            return 0.5 * x

    denoiser = k_diffusion.denoiser(Picky().half(), SHAPE)
    assert fs.sample(denoiser, 3, seed=0).dtype == torch.float16


def test_a_wrapper_around_a_wrapper_states_the_range():
    class Guided(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner_model = Discrete()
            self.eval()

        def forward(self, x, sigma):
            return self.inner_model(x, sigma)

    guided = Guided()
    T = k_diffusion.denoiser(guided, SHAPE).schedule.T
    assert float(guided.inner_model.sigma_max) == T


def run(sigmas=LISTS["whole"], network=model, x=None, source="ddim", options=None, **knobs):
    def call():
        first = float(torch.as_tensor(sigmas, dtype=torch.float64).reshape(-1)[0])
        samples = start([first]) if x is None else x
        return k_diffusion.sampler(source, **(options or {}))(network, samples, sigmas, **knobs)

    return call


VP_PLAN = fs.ddim(LINEAR, GRID)
NAN = float("nan")


@refusals(
    sampler={
        "unknown method": (lambda: k_diffusion.sampler("euler"), ValueError, "method must be one"),
        "no method": (lambda: k_diffusion.sampler(3), ValueError, "method must be one"),
        "own times": (lambda: k_diffusion.sampler("fastdpm"), ValueError, "levels of a list"),
        "unknown knob": (lambda: k_diffusion.sampler("ddim", s_churn=1.0), TypeError, "s_churn"),
        "foreign knob": (lambda: k_diffusion.sampler("unipc", eta=1.0), ValueError, "eta must be"),
        "plan and knob": (lambda: k_diffusion.sampler(VP_PLAN, eta=1.0), ValueError, "left out"),
        "plan and clip": (lambda: k_diffusion.sampler(VP_PLAN, clip=1.0), ValueError, "left out"),
        "guided plan": (
            lambda: k_diffusion.sampler(VP_PLAN.with_guidance(2.0)),
            ValueError,
            "without guidance",
        ),
        "learned variance": (
            lambda: k_diffusion.sampler(fs.ancestral(LINEAR, GRID, variance="learned_range")),
            ValueError,
            "learned variances",
        ),
        "clip": (lambda: k_diffusion.sampler(clip=-1.0), ValueError, "clip must be positive"),
        "convention": (lambda: k_diffusion.sampler(convention="v"), ValueError, "convention must"),
    },
    run={
        "rising": (run([1.0, 2.0, 0.0]), ValueError, "must fall from noise to data, got 1 then 2"),
        "NaN": (run([1.0, NAN, 0.0]), ValueError, "sigmas must be finite, got nan"),
        "empty": (
            lambda: k_diffusion.sampler("ddim")(model, start([1.0]), []),
            ValueError,
            "sigmas",
        ),
        "order": (
            run(LISTS["whole"][:5], source="unipc", order=9),
            ValueError,
            r"order must be in \[1, 2\], got 9",
        ),
        "negative": (run([1.0, -1.0]), ValueError, "must not be negative"),
        "matrix": (run(torch.ones(2, 2)), ValueError, "must be a vector"),
        "huge": (run([1e200, 1.0]), ValueError, r"sigmas must be at most 1e\+150"),
        "above the model's": (
            run([120.0, 190.0, 0.0][1:], Discrete()),
            ValueError,
            "at most the model's sigma_max = 1",
        ),
        "above 1": (
            run([1.5, 0.0], options={"convention": "flow"}),
            ValueError,
            "at most 1 for a flow",
        ),
        "not callable": (run(network=3), TypeError, "model must be callable, got int"),
        "callback": (run(callback=3), TypeError, "callback must be callable, got int"),
        "noise": (run(noise_sampler=3), TypeError, "noise_sampler must be callable, got int"),
        "arguments": (run(extra_args=3), TypeError, "extra_args must be a mapping"),
        "no samples": (run(x=[1.0]), TypeError, "x must be a floating tensor, got list"),
        "no batch": (run(x=torch.ones(3)), ValueError, r"x must have shape \(B, \*shape\), got"),
        "another list": (run(source=VP_PLAN), ValueError, "sigmas must be the plan's levels"),
        "plan and knob": (run(source=VP_PLAN, eta=1.0), ValueError, "knobs must be left out"),
        "an end": (run(last=0.5), ValueError, "last must be left out"),
        "learned": (run(source="ancestral", variance="learned_range"), ValueError, "variance"),
    },
    denoiser={
        "no range": (
            lambda: k_diffusion.denoiser(model, SHAPE),
            ValueError,
            "sigma_max must be given for function, which has no finite one of its own, got None",
        ),
        "above its own": (
            lambda: k_diffusion.denoiser(Discrete(), SHAPE, sigma_max=1e4),
            ValueError,
            "at most the model's own",
        ),
        "negative": (
            lambda: k_diffusion.denoiser(model, SHAPE, sigma_max=-1.0),
            ValueError,
            "sigma_max must be positive",
        ),
        "text": (lambda: k_diffusion.denoiser(model, SHAPE, sigma_max="x"), TypeError, "sigma_max"),
        "not callable": (lambda: k_diffusion.denoiser(3, SHAPE), TypeError, "must be callable"),
    },
    lists={
        "neither": (lambda: k_diffusion.sigmas([1.0]), TypeError, "source must be a Plan or"),
        "inverts": (
            lambda: k_diffusion.sigmas(ddim_inversion(LINEAR, GRID)),
            ValueError,
            "source must run from noise to data",
        ),
        "no schedule": (lambda: k_diffusion.sigmas(GRID), TypeError, "schedule must be"),
        "two schedules": (lambda: k_diffusion.sigmas(VP_PLAN, LINEAR), ValueError, "left out"),
        "no signal": (
            lambda: k_diffusion.sigmas(
                fs.Grid([1.0, 0.0]), fs.NoiseSchedule.flow(), convention="ratio"
            ),
            ValueError,
            "must hold a signal at every node",
        ),
        "no table": (lambda: k_diffusion.schedule(halve), TypeError, "must have a table of sigmas"),
        "order": (
            lambda: k_diffusion.karras(3, sigma_min=2.0, sigma_max=1.0),
            ValueError,
            "sigma_max must be above",
        ),
        "zero": (
            lambda: k_diffusion.karras(3, sigma_min=0.0, sigma_max=1.0),
            ValueError,
            "sigma_min must be positive",
        ),
        "rho": (
            lambda: k_diffusion.karras(3, sigma_min=0.1, sigma_max=1.0, rho=0.0),
            ValueError,
            "rho must be positive",
        ),
    },
)
def test_bad_input_gets_one_line(call, error, match):
    check_refusal(call, error, match)


def test_seeds_must_be_one_per_sample():
    """Kernels read as many seeds as there are samples."""
    sampler = k_diffusion.sampler("ddim", eta=1.0, seed=[1, 2])
    with pytest.raises(ValueError, match="one per sample, got 2 for 3 samples"):
        sampler(lambda x, sigma: 0.5 * x, torch.ones(3, 4), torch.tensor([3.0, 1.0, 0.0]))
