"""Classifier guidance: equal to float64 loops of both algorithms of arXiv:2105.05233."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.denoiser.denoiser import Denoiser
from fastsample.integrations.openai.guided import TimesAndRows
from tests.helpers.openai_oracle import TinyNet
from tests.integrations.test_openai import CASES, SHAPE, Y, assert_equal, draws, parts

openai = fs.integrations.openai


def cond_fn(x, t, y):
    """The gradient of a made-up log p(y | x_t), by autograd as in guided-diffusion's script."""
    with torch.enable_grad():
        x_in = x.detach().requires_grad_(True)
        target = 0.3 * y.to(x)[:, None, None, None]
        log_p = -((x_in - target) ** 2).sum((1, 2, 3)) * (1 + t.to(x) / 2000)
        return 0.02 * torch.autograd.grad(log_p.sum(), x_in)[0]


@pytest.mark.parametrize("case", CASES)
def test_algorithm_1(case):
    loop, model, grid = parts(*CASES[case])
    start, *noise = draws(len(grid))
    sampler = openai.classifier_ancestral(model, cond_fn, grid)
    ours = sampler(start=start, noise=torch.stack(noise), cond={"y": Y})
    theirs = loop.ancestral(model.model, start, noise, {"y": Y}, cond_fn)
    assert_equal(ours, theirs)
    plain = loop.ancestral(model.model, start, noise, {"y": Y})
    assert (theirs - plain).abs().max() > 1e-2  # the classifier matters in this case


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_algorithm_2(case, eta):
    loop, model, grid = parts(*CASES[case])
    start, *noise = draws(len(grid))
    ours = fs.sample(
        *(openai.classifier_guided(model, cond_fn), grid),
        **{"method": "ddim", "eta": eta, "start": start, "cond": {"y": Y}},
        noise=torch.stack(noise) if eta else None,
    )
    assert_equal(ours, loop.ddim(model.model, start, noise, {"y": Y}, eta, cond_fn))


def test_any_sampler_takes_the_guided_model():
    """A score of a unit normal, guided towards 2: the result is the exact posterior's sample."""
    schedule = fs.NoiseSchedule.cosine(1000)
    table = torch.as_tensor(schedule.sigma(torch.arange(1.0, 1001.0).numpy()))
    alphas = torch.as_tensor(schedule.alpha(torch.arange(1.0, 1001.0).numpy()))

    def network(x, t):
        return table[t][:, None] * x  # exact for data from N(0, 1)

    def gradient(x, t):
        """Of log p(y = 2 | x_t) for y = x0 + N(0, 1): x0 given x_t is N(alpha x, sigma^2)."""
        alpha, sigma = alphas[t][:, None], table[t][:, None]
        return alpha * (2.0 - alpha * x) / (1.0 + sigma**2)

    model = openai.classifier_guided(fs.Denoiser(network, schedule, (5,)), gradient)
    x = fs.sample(model, 50, num_samples=2000, seed=0, dtype=torch.float64)
    # The posterior of x0 is N(1, 1/2); 10,000 draws have a mean within 5 deviations of 0.0071.
    assert abs(x.mean().item() - 1.0) < 0.036
    assert abs(x.var().item() - 0.5) < 5 * 0.5 * (2 / 10000) ** 0.5


def test_conditions_for_the_classifier_alone():
    net = TinyNet(classes=None)
    model = openai.denoiser(net, SHAPE, project="guided", class_cond=False)
    guided = openai.classifier_guided(model, cond_fn, classifier_only=["y"])
    x = fs.sample(guided, 4, seed=0, cond={"y": Y})
    assert not torch.equal(x, fs.sample(model, 4, seed=0, num_samples=3))
    sampler = openai.classifier_ancestral(
        model, cond_fn, openai.grid("5"), classifier_only=["y"], batch_size=2
    )
    torch.testing.assert_close(
        sampler(seed=0, cond={"y": Y})[:1], sampler(seed=0, cond={"y": Y[:1]}), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(AssertionError, match="y if and only if"):
        fs.sample(openai.classifier_guided(model, cond_fn), 4, cond={"y": Y})


def test_a_run_in_inference_mode_and_a_gradient_through_the_network():
    model = openai.denoiser(TinyNet(), SHAPE, project="guided")
    guided = openai.classifier_guided(model, cond_fn)
    expected = fs.sample(guided, 3, seed=0, cond={"y": Y})
    with torch.inference_mode():
        assert torch.equal(fs.sample(guided, 3, seed=0, cond={"y": Y + 0}), expected)
    start = draws(0)[0].float().requires_grad_(True)
    x = fs.sample(guided, 3, start=start, cond={"y": Y}, clip=None)
    assert torch.autograd.grad(x.sum(), start)[0].abs().max() > 0


def test_device_dtype_and_training_mode_are_the_networks():
    model = openai.denoiser(TinyNet().double(), SHAPE, project="guided")
    guided = openai.classifier_guided(model, cond_fn)
    assert guided.dtype == torch.float64
    assert fs.sample(guided, 2, seed=0, cond={"y": Y}).dtype == torch.float64
    trained = openai.denoiser(TinyNet().train(), SHAPE, project="guided")
    with pytest.warns(UserWarning, match="training mode"):
        fs.sample(openai.classifier_guided(trained, cond_fn), 2, seed=0, cond={"y": Y})


def test_wrong_input():
    model = openai.denoiser(TinyNet(), SHAPE, project="guided")
    grid = openai.grid("5")
    with pytest.raises(TypeError, match="denoiser must be a Denoiser, got TinyNet"):
        openai.classifier_guided(TinyNet(), cond_fn)
    with pytest.raises(TypeError, match="cond_fn must be callable, got int"):
        openai.classifier_guided(model, 3)
    with pytest.raises(TypeError, match=r"classifier_only must be a list .* pass \['y'\]"):
        openai.classifier_guided(model, cond_fn, classifier_only="y")
    with pytest.raises(ValueError, match="grid must hold at least 2 times, got 500"):
        openai.classifier_ancestral(model, cond_fn, fs.Grid([500.0, 0.0]))
    inner = openai.classifier_ancestral(model, cond_fn, grid).denoiser
    with pytest.raises(ValueError, match="times must be those of the sampler's grid"):
        fs.sample(inner, openai.grid("7"), cond={"y": Y})
    with pytest.raises(ValueError, match="times must be those of the sampler's grid"):
        fs.sample(inner, fs.Grid([*grid.times[:-1:2], 0.0]), cond={"y": Y})
    for wrong, error, got in (
        (lambda x, t, y: None, TypeError, "got NoneType"),
        (lambda x, t, y: x.sum(), ValueError, r"got \(\) on cpu"),
    ):
        with pytest.raises(error, match=rf"cond_fn must return the gradient, .* {got}"):
            fs.sample(openai.classifier_guided(model, wrong), 2, cond={"y": Y})
    v = Denoiser(TinyNet(), fs.NoiseSchedule.from_alpha_bar([0.5, 0.0]), SHAPE, prediction="v")
    with pytest.raises(ValueError, match=r"times must have alpha above 0, .* got 2; pass a grid"):
        fs.sample(openai.classifier_guided(v, cond_fn), 2, cond={"y": Y})


@pytest.mark.parametrize("time", ["index", "rescaled", "fraction", "log_snr"])
def test_fractional_times_and_other_time_inputs(time):
    """A gradient of 0 changes nothing, at any times: the network is given the same timesteps."""
    schedule = fs.NoiseSchedule.cosine(1000)
    model = Denoiser(TinyNet(classes=None).double(), schedule, SHAPE, time=time, clip=1.0)
    guided = openai.classifier_guided(model, lambda x, t: torch.zeros_like(x))
    for grid in (fs.Grid([1000, 500, 1, 0]), fs.Grid([999.5, 640.25, 3.125, 0])):
        start = draws(0)[0]
        expected = fs.sample(model, grid, method="ddim", start=start)
        ours = fs.sample(guided, grid, method="ddim", start=start)
        # log_snr and the fraction are those of float32 times, which these are exactly.
        assert_equal(ours, expected)


def test_flow_models_and_tuning():
    model = Denoiser(
        lambda x, t: 0.3 * x, fs.NoiseSchedule.flow(), (5,), time="fraction", prediction="flow"
    )
    guided = openai.classifier_guided(model, lambda x, t: 0.1 * (2.0 - x))
    start = torch.ones(1, 5, dtype=torch.float64)
    x, times = start, [0.9, 0.5, 0.2, 0.0]
    for t, s in itertools.pairwise(np.float32(times).astype(float).tolist()):
        x0 = x - t * 0.3 * x + t**2 / (1 - t) * 0.1 * (2.0 - x)
        x = (1 - s) * x0 + s * (x - (1 - t) * x0) / t
    ours = fs.sample(guided, fs.Grid(np.float32(times)), method="ddim", start=start)
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)
    discrete = openai.denoiser(TinyNet(classes=None), SHAPE, project="guided")
    guided = openai.classifier_guided(discrete, lambda x, t: -0.05 * x)
    plan = fs.tune(guided, 3, samples=16)  # looks for times that are not whole
    x = fs.sample(guided.with_plans([plan]), 3, num_samples=4, seed=0)
    copy = pickle.loads(pickle.dumps(TimesAndRows(discrete, np.zeros_like, np.sum)))
    assert copy(np.array([3.0])).dtype == np.int64
    assert torch.isfinite(x).all()
