"""`sample`: how often and with what the network is called, where it lands, what comes back."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids
from fastsample.grids.registry import GRIDS, maker_for
from tests.helpers.cases import INDEX_GRIDS
from tests.helpers.networks import LINEAR, Spy, denoiser, halve, halve_wide

STEPS = {
    "number": (7, 7),
    "NumPy number": (np.int64(7), 7),
    "one": (1, 1),
    "Grid": (grids.quadratic(1000, 9), 9),
    "list": ([1000, 400.5, 20, 0], 3),
    "array": (np.array([600.0, 3.0, 0.0]), 2),
    "range": (range(1000, -1, -250), 4),
    "Plan": (fs.ddim(LINEAR, grids.karras(LINEAR, 6)), 6),
    "repeated indices": (fs.Grid.from_indices([5, 0, 999, 5, 0]), 3),
    "DDIM's list with repeats": (grids.ddim(1000, 50, "quadratic"), 49),
}
METHODS = {
    "default": {},
    "ddim": {"method": "ddim"},
    "ddim eta": {"method": "ddim", "eta": 0.7},
    "ancestral": {"method": "ancestral"},
}

# ---- calls


@pytest.mark.parametrize(("steps", "calls"), STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("method", METHODS)
def test_exactly_K_calls_of_B(steps, calls, method):
    spy = Spy(halve)
    # A plan decides its method itself.
    knobs = {} if isinstance(steps, fs.Plan) else METHODS[method]
    got = fs.sample(denoiser(spy, 3), steps, num_samples=4, **knobs)
    assert got.shape == (4, 3)
    assert spy.batches == [4] * calls


@pytest.mark.parametrize(("steps", "calls"), STEPS.values(), ids=STEPS)
def test_exactly_K_calls_of_2B_with_guidance(steps, calls):
    spy = Spy(halve)
    fs.sample(denoiser(spy, 3), steps, num_samples=4, guidance=2.0, cond={"y": 1}, uncond={"y": 0})
    assert spy.batches == [8] * calls


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("K", [1, 4, 11])
def test_named_grids_have_K_calls_that_fall_from_T(name, K):
    spy = Spy(halve)
    # With one step their lists hold the cleanest time alone (test_first_node.py).
    at_data = K == 1 and name in ("ddim:leading", "ddim:linspace", "respaced", "ddim")
    at_data |= K == 1 and name == "ddim_quadratic"
    warns = pytest.warns(UserWarning, match="got t = 1 of T = 1000,") if at_data else nullcontext()
    with warns:
        fs.sample(denoiser(spy, 3), K, grid=name)
    indices = [float(t[0]) for t in spy.told]
    if name == "ddim":  # its stride is T // K
        assert len(indices) == -(-1000 // (1000 // K))
    else:
        assert len(indices) == K
    assert indices == sorted(set(indices), reverse=True)
    if name == "respaced":
        assert indices[0] == (999.0 if K > 1 else 0.0)
    elif name in ("uniform", "quadratic", "log_snr", "karras") or (
        name == "trailing" and 1000 % K == 0
    ):
        assert indices[0] == 999.0


@pytest.mark.parametrize("name", INDEX_GRIDS)
def test_index_lists_are_taken_as_they_are(name):
    spy = Spy(halve)
    grid = INDEX_GRIDS[name](1000)
    fs.sample(denoiser(spy, 3), grid)
    assert [t.item() for t in spy.told] == (grid.times[:-1] - 1).tolist()
    assert {t.dtype for t in spy.told} == {torch.int64}


def test_the_network_is_told_the_same_of_every_sample():
    spy = Spy(halve)
    fs.sample(denoiser(spy, 3), [1000, 2.5, 0], num_samples=3)
    assert [t.tolist() for t in spy.told] == [[999.0] * 3, [1.5] * 3]
    assert spy.told[0].dtype == torch.float32


@pytest.mark.parametrize("schedule", [fs.NoiseSchedule.vdm(), fs.NoiseSchedule.flow()])
def test_continuous_schedules_take_any_number_of_steps(schedule):
    spy = Spy(halve)
    model = denoiser(spy, 3, schedule=schedule, time="fraction", prediction="v")
    fs.sample(model, 3, method="ddim")
    torch.testing.assert_close(torch.cat(spy.told), torch.tensor([1.0, 2 / 3, 1 / 3]))


def test_a_bare_callable_gets_the_linear_schedule():
    start = torch.linspace(-1, 1, 6).reshape(2, 3)
    assert torch.equal(
        fs.sample(halve, 5, shape=(3,), start=start), fs.sample(denoiser(halve, 3), 5, start=start)
    )
    spy = Spy(halve)
    fs.sample(spy, 2, shape=[3], schedule=fs.NoiseSchedule.cosine(50), method="ddim")
    assert [t.item() for t in spy.told] == [49, 24]


# ---- landing


@pytest.mark.parametrize("clip", [None, 0.5, (-0.25, 0.75)])
@pytest.mark.parametrize("method", METHODS)
def test_the_last_step_lands_on_x0_without_noise(method, clip):
    seen = []
    model = denoiser(halve, 3, clip=clip)
    got = fs.sample(model, 4, num_samples=64, callback=seen.append, **METHODS[method])
    assert torch.equal(got, seen[-1].x0)
    if clip:
        low, high = clip if isinstance(clip, tuple) else (-clip, clip)
        assert got.min() == low
        assert got.max() == high


def test_learned_variance_draws_no_noise_in_the_last_row():
    model = denoiser(halve_wide, 3, variance="learned_range")
    noise = torch.zeros(3, 2, 3)
    noise[-1] = torch.inf  # not even multiplied by 0
    start = torch.ones(2, 3)
    got = fs.sample(model, 3, method="ancestral", start=start, noise=noise)
    assert torch.isfinite(got).all()


def test_clip_is_the_models_own_unless_said_otherwise():
    model = denoiser(halve, 3, clip=0.5)
    start = torch.full((1, 3), 3.0)
    assert fs.sample(model, 2, start=start).abs().max() == 0.5
    assert fs.sample(model, 2, start=start, clip=0.25).abs().max() == 0.25
    assert fs.sample(model, 2, start=start, clip=None).abs().max() > 0.5
    plan = fs.ddim(LINEAR, grids.uniform(1000, 2))
    assert fs.sample(model, plan, start=start).abs().max() > 0.5  # a plan decides everything


# ---- shapes, counts, dtypes


@pytest.mark.parametrize("shape", [(5,), (2, 3), (3, 4, 5), (2, 3, 2, 2)])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_samples_of_any_rank_and_number(shape, batch):
    got = fs.sample(halve, 3, shape=shape, num_samples=batch, eta=1.0)
    assert got.shape == (batch, *shape)
    assert torch.isfinite(got).all()
    wide = denoiser(halve_wide, *shape, variance="learned_range")
    assert fs.sample(wide, 3, num_samples=batch, method="ancestral").shape == (batch, *shape)


@pytest.mark.parametrize(
    "options",
    [
        {"num_samples": 3},
        {"start": torch.zeros(3, 2)},
        {"noise": torch.zeros(2, 3, 2), "eta": 1.0},
        {"cond": {"y": torch.zeros(3)}},
        {"cond": {"scale": 2.0, "y": [1, 2, 3]}},
        {"sample_index": [4, 0, 9]},
        {"seed": [1, 2, 3]},
        {"seed": np.array([1, 2, 3]), "sample_index": torch.tensor([5, 6, 7])},
    ],
)
def test_the_number_of_samples_follows_from_any_argument(options):
    assert fs.sample(halve, 2, shape=(2,), **options).shape == (3, 2)


def test_empty_lists_are_an_empty_batch():
    for options in ({"seed": []}, {"sample_index": []}, {"cond": {"y": []}}):
        assert fs.sample(halve, 2, shape=(2,), eta=1.0, **options).shape == (0, 2)


def test_one_sample_by_default():
    assert fs.sample(halve, 2, shape=(2,)).shape == (1, 2)
    assert fs.sample(halve, 2, shape=(2,), cond={"y": 3}).shape == (1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_dtype_is_the_models_or_the_one_asked_for(dtype):
    network = torch.nn.Linear(2, 2, dtype=dtype)
    spy = Spy(lambda x, t: network(x))
    assert fs.sample(halve, 2, shape=(2,), dtype=dtype).dtype == dtype
    assert fs.sample(spy, 2, shape=(2,), start=torch.ones(1, 2, dtype=dtype)).dtype == dtype
    assert {x.dtype for x in spy.inputs} == {dtype}


# ---- the arguments that choose the plan


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("method", METHODS)
def test_arguments_give_the_plan_that_says_the_same(name, method):
    # The default is UniPC, whose spacings are those of diffusers' multistep schedulers.
    grid = maker_for(name, "multistep" if method == "default" else "ddim")(LINEAR, 6)
    by_name = fs.sample(halve, 6, shape=(3,), grid=name, seed=4, **METHODS[method])
    if method == "ancestral":
        plan = fs.ancestral(LINEAR, grid)
    elif method == "default":
        plan = fs.unipc(LINEAR, grid, order=2)
    else:
        plan = fs.ddim(LINEAR, grid, eta=METHODS[method].get("eta", 0.0))
    assert torch.equal(by_name, fs.sample(halve, plan, shape=(3,), seed=4))


def test_variance_is_the_models_own_unless_said_otherwise():
    for own in ("small", "large", "learned_range"):
        model = denoiser(halve_wide if own == "learned_range" else halve, 3, variance=own)
        plan = fs.ancestral(LINEAR, grids.uniform(1000, 4), variance=own)
        assert torch.equal(
            fs.sample(model, 4, method="ancestral", seed=0), fs.sample(model, plan, seed=0)
        )
    array = np.array([0.1, 0.2, 0.3, 0.0])
    plan = fs.ancestral(LINEAR, grids.uniform(1000, 4), variance=array)
    got = fs.sample(halve, 4, shape=(3,), method="ancestral", variance=array, seed=0)
    assert torch.equal(got, fs.sample(halve, plan, shape=(3,), seed=0))


def test_a_model_with_learned_variance_runs_any_plan():
    wide, narrow = denoiser(halve_wide, 3, variance="learned_range"), denoiser(halve, 3)
    for options in ({"method": "ddim"}, {"method": "ancestral", "variance": "small"}):
        options["seed"] = 0
        assert torch.equal(fs.sample(wide, 4, **options), fs.sample(narrow, 4, **options))


@pytest.mark.parametrize("steps", [np.int64(4), np.array(4), torch.tensor(4)], ids=repr)
def test_a_number_of_steps_of_any_kind(steps):
    model = denoiser(halve, 2, 3)
    assert torch.equal(fs.sample(model, steps, seed=0), fs.sample(model, 4, seed=0))
