"""`grid="auto"`: times from the profile that a model carries."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.samplers.registry import METHODS
from tests.helpers.networks import denoiser, halve, model_b

TIMES = [1, 5, *range(20, 1001, 20)]


def profiled(**options):
    model = denoiser(model_b(), 2, 3, clip=1.0)
    x0 = torch.rand(6, 2, 3) * 2.0 - 1.0
    options = {"times": TIMES, "trajectories": 6, **options}
    return model.with_profile(fs.profile(model, x0, **options))


def test_sample_takes_the_best_grid():
    model = profiled()
    best = model.profile.costs("trajectory").best_grid(5)
    second = model.profile.costs("trajectory", method="dpm++").best_grid(5)
    assert model.profile.best_grid(5) == best != fs.grids.uniform(1000, 5)
    assert second != best
    for options, grid in (
        ({}, second),  # multistep methods take the times that are best for steps of second order
        ({"method": "dpm++", "order": 3}, second),
        ({"method": "ddim"}, best),
        ({"eta": 0.5}, best),
        ({"method": "ancestral"}, best),
    ):
        options |= {"seed": 1}
        expected = fs.sample(model, grid, **options)
        assert torch.equal(fs.sample(model, 5, grid="auto", **options), expected)
        assert torch.equal(fs.sample(model, 5, **options), expected)


def test_without_trajectories_the_reweighted_bound_chooses():
    model = profiled(trajectories=0)
    best = model.profile.costs("mse").best_grid(5)
    assert model.profile.best_grid(5) == best
    assert fs.Sampler(model, 5, method="ddim").plan == fs.Sampler(model, best, method="ddim").plan
    own = METHODS["unipc"].grid
    assert fs.Sampler(model, 5).plan == fs.Sampler(model, 5, grid=own).plan


@pytest.mark.parametrize("method", METHODS)
def test_without_a_grid_of_that_budget_the_times_are_the_methods(method):
    grid = METHODS[method].grid
    if METHODS[method].chooses_times:
        grid = "uniform"
    model = denoiser(halve, 2, 3)
    assert model.profile is None
    for given, steps in ((profiled(), len(TIMES) + 1), (model, 4)):
        named = fs.Sampler(given, steps, method=method, grid=grid).plan
        assert fs.Sampler(given, steps, method=method, grid="auto").plan == named
        assert fs.Sampler(given, steps, method=method).plan == named
    bare = fs.Sampler(halve, 4, method=method, shape=(2, 3))
    assert bare.plan == fs.Sampler(halve, 4, method=method, grid=grid, shape=(2, 3)).plan


EXPLODING = {
    "80": fs.NoiseSchedule.exploding(80.0),
    "5": fs.NoiseSchedule.exploding(5.0),
    "functions": fs.NoiseSchedule.from_functions(alpha=lambda t: 1.0, sigma=lambda t: t, T=80.0),
    "geometric": fs.NoiseSchedule.from_functions(
        alpha=lambda t: 1.0, sigma=lambda t: 0.001 * 8e4**t
    ),
}


def exact(schedule):
    """A model of normal data of deviation 0.5."""

    def network(x, t):
        sigma = torch.as_tensor(schedule.sigma(t.double().numpy())).to(x)[:, None]
        return x * 0.25 / (0.25 + sigma**2)

    return fs.Denoiser(network, schedule, (4,), prediction="x0", time=lambda t: 1.0 * t)


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if not m.chooses_times])
@pytest.mark.parametrize("name", EXPLODING)
def test_variance_exploding_models_take_even_log_snrs(name, method):
    model = exact(EXPLODING[name])
    knobs = {"intervals": []} if method == "restart" else {}
    plan = fs.Sampler(model, 10, method=method, **knobs).plan
    assert plan == fs.Sampler(model, 10, method=method, grid="log_snr", **knobs).plan
    sigmas = np.geomspace(EXPLODING[name].sigma(EXPLODING[name].T), 0.02, 10)
    np.testing.assert_allclose(plan.sigmas, [*sigmas, 0.0], rtol=1e-6)


@pytest.mark.parametrize("name", EXPLODING)
def test_their_ddim_samples_are_as_wide_as_ten_steps_allow(name):
    """Each step on normal data is x (1 + (s / t - 1) t^2 / (t^2 + 1/4)), so the width is known."""
    schedule = EXPLODING[name]
    nodes = [float(schedule.sigma(schedule.T)), *np.geomspace(schedule.sigma(schedule.T), 0.02, 10)]
    width = float(np.hypot(1.0, nodes[0]))
    for t, s in zip(nodes[1:], [*nodes[2:], 0.0], strict=True):
        width *= 1.0 + (s / t - 1.0) * t**2 / (t**2 + 0.25)
    x = fs.sample(exact(schedule), 10, method="ddim", num_samples=4000, seed=0)
    assert float(x.std()) == pytest.approx(width, rel=0.03)  # 16000 numbers: 0.6%
    assert 0.38 < width < 0.5
    even = fs.sample(exact(schedule), 10, method="ddim", num_samples=4000, seed=0, grid="uniform")
    if name in ("80", "functions"):
        assert float(even.std()) < 0.1


def test_other_models_keep_the_methods_own_times():
    for schedule in (
        fs.NoiseSchedule.flow(),
        fs.NoiseSchedule.vdm(),
        fs.NoiseSchedule.exploding(1.5),
    ):
        model = fs.Denoiser(halve, schedule, (4,), prediction="x0", time=lambda t: 1.0 * t)
        for method in ("ddim", "unipc"):
            own = fs.Sampler(model, 6, method=method, grid=METHODS[method].grid).plan
            assert fs.Sampler(model, 6, method=method).plan == own


@pytest.mark.parametrize("name", EXPLODING)
def test_profiles_and_tuned_plans_of_exploding_models_see_clean_times(name):
    schedule = EXPLODING[name]
    model = exact(schedule)
    data = 0.5 * torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    profile = fs.profile(model, data, bin_width=None)
    assert len(profile.times) == 256
    assert profile.times[-1] == schedule.T
    np.testing.assert_allclose(schedule.sigma(profile.times[0]), 0.02, rtol=1e-6)
    plan = fs.tune(model, 4, samples=32)
    assert plan.sigmas[-2] < 0.5 * plan.sigmas[0] / 4.0


def test_a_model_may_give_up_its_profile():
    assert profiled().with_profile(None).profile is None


@pytest.mark.filterwarnings("ignore:.* data must be on the decoder's bins:UserWarning")
def test_bits_per_dim_takes_the_grid_of_the_lowest_bound():
    model = profiled()
    x0 = torch.rand(6, 2, 3) * 2.0 - 1.0
    found = fs.bits_per_dim(model, x0, 6, grid="auto")
    assert found.grid == model.profile.costs("elbo", decoder="respaced").best_grid(6)
    assert found.total < fs.bits_per_dim(model, x0, 6).total
    chosen = fs.bits_per_dim(model, x0, 1, grid="auto", decoder_variance=0.1)
    assert chosen.grid == fs.Grid([1000, 0])


def test_invert_takes_it_too():
    model = profiled().with_profile(profiled().profile)
    x0 = torch.rand(2, 2, 3) - 0.5
    for options in ({}, {"method": "ddim"}):
        times = fs.Sampler(model, 6, grid="auto", clip=None, **options).plan.nodes
        expected = fs.invert(model, x0, times, **options)
        assert torch.equal(fs.invert(model, x0, 6, grid="auto", **options), expected)


def test_a_profile_leaves_the_model_alone():
    model = denoiser(model_b(), 2, 3, clip=1.0)
    other = model.with_profile(profiled().profile)
    assert model.profile is None
    assert other.model is model.model
    assert other.profile is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": fs.NoiseSchedule.cosine()}, "profile must have the model's schedule .*, got"),
        ({"shape": (3, 2)}, r"profile must have the model's shape \(3, 2\), got \(2, 3\)"),
        ({"prediction": "v"}, "profile must have the model's prediction 'v', got 'epsilon'"),
        ({"variance": "large"}, "profile must have the model's variance 'large', got 'small'"),
    ],
)
def test_a_profile_of_another_model(options, message):
    given = {"schedule": fs.NoiseSchedule.linear(), "shape": (2, 3), **options}
    model = fs.Denoiser(halve, given.pop("schedule"), given.pop("shape"), **given)
    with pytest.raises(ValueError, match=f"^with_profile: {message}"):
        model.with_profile(profiled().profile)
    with pytest.raises(TypeError, match=r"^with_profile: profile must be a Profile, got str"):
        model.with_profile("digits")


def test_the_digits_model_brings_its_profile():
    model = fs.load("digits")
    assert model.profile.count == 1500
    samples = {"num_samples": 24, "seed": 3}
    fine = fs.sample(model, 100, **samples)
    errors = {
        grid: float(
            (fs.sample(model, 5, method="ddim", grid=grid, **samples) - fine).square().mean().sqrt()
        )
        for grid in ("uniform", "auto")
    }
    assert errors["auto"] < 0.8 * errors["uniform"], errors
    # The profile knows the bound that its model was trained to (1.64 on this data, all steps).
    table = model.profile.costs("elbo")
    assert 1.5 < table.bits_per_dim(table.best_grid(64)) < 1.64
    assert np.all(np.diff(model.profile.times) > 0)


def test_the_digits_model_brings_tuned_plans():
    model = fs.load("digits")
    assert list(model.plans) == [4, 5, 6, 8, 10, 12, 16, 20]
    samples = {"num_samples": 24, "seed": 3}
    fine = fs.sample(model, 100, method="dpm++", **samples)

    def error(**options):
        x = fs.sample(model, 5, **options, **samples)
        return float((x - fine).square().mean().sqrt())

    known = min(error(method=m, grid=g) for m in ("ddim", "dpm++") for g in ("uniform", "log_snr"))
    assert error() < 0.7 * known
    assert "<- this plan" in model.plans[5].describe()
