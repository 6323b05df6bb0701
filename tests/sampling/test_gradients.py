"""Inference by default, gradients when asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastsample as fs
from fastsample import grids
from fastsample.sampling.loop import run
from tests.helpers.networks import LINEAR, Spy, denoiser, halve, per_sample

# ---- by default


def test_the_network_runs_in_inference_mode_and_the_result_is_ordinary():
    network = nn.Linear(3, 3)
    spy = Spy(lambda x, t: network(x))
    got = fs.sample(denoiser(spy, 3), 2, num_samples=2)
    assert spy.modes == [(False, True)] * 2
    assert not got.requires_grad
    assert not got.is_inference()
    weight = torch.ones(3, requires_grad=True)
    (got * weight).sum().backward()  # an inference tensor could not be saved for backward
    torch.testing.assert_close(weight.grad, got.sum(0))
    got += 1.0


def test_it_can_be_called_under_inference_mode():
    options = {"shape": (3,), "eta": 1.0, "seed": 0}
    expected = fs.sample(halve, 3, **options)
    with torch.inference_mode():
        assert torch.equal(fs.sample(halve, 3, **options), expected)
    with torch.no_grad():
        assert torch.equal(fs.sample(halve, 3, **options), expected)


def test_sampling_leaves_torch_as_it_was():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    fs.sample(halve, 3, shape=(3,), eta=1.0, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    with pytest.raises(RuntimeError, match="stop"):
        fs.sample(lambda x, t: (_ for _ in ()).throw(RuntimeError("stop")), 3, shape=(3,))
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_parameters_that_require_grad_make_no_graph():
    network = nn.Linear(3, 3)
    got = fs.sample(denoiser(lambda x, t: network(x), 3), 2, start=torch.ones(1, 3))
    assert got.grad_fn is None
    with torch.no_grad():  # nor does a leaf, where gradients are off
        start = torch.ones(1, 3, requires_grad=True)
        got = fs.sample(denoiser(lambda x, t: network(x), 3), 2, start=start)
    assert got.grad_fn is None


# ---- when asked for


def smooth(x, t, y=None):
    """Curved in x and in the condition."""
    out = torch.sin(x) * per_sample(0.4 + t / 2000, x)
    return out if y is None else out + 0.3 * torch.cos(x * y)


def smooth_wide(x, t, y=None):
    return torch.cat((smooth(x, t, y), torch.tanh(0.5 * x)), dim=1)


def doubles(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


PLANS = {
    "ddim": fs.ddim(LINEAR, fs.Grid([700, 300, 40.5, 0])),
    "ddim eta": fs.ddim(LINEAR, fs.Grid([700, 300, 40, 0]), eta=0.6),
    "raw, clipped": fs.ddim(LINEAR, fs.Grid([700, 300, 40, 0]), clip=1.5, rederive=False),
    "ancestral": fs.ancestral(LINEAR, fs.Grid([700, 300, 40, 0]), variance="large"),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_gradients_in_the_start(plan):
    model = denoiser(smooth, 3)
    assert torch.autograd.gradcheck(
        lambda x: fs.sample(model, plan, start=x, seed=0), doubles(2, 3)
    )


def test_gradients_in_noise_condition_and_start():
    model = denoiser(smooth_wide, 3, variance="learned_range")
    plan = fs.ancestral(LINEAR, fs.Grid([700, 300, 40, 0]), variance="learned_range")

    def run(start, noise, y):
        return fs.sample(model, plan, start=start, noise=noise, cond={"y": y})

    inputs = (doubles(2, 3), doubles(3, 2, 3, seed=1), doubles(2, 3, seed=2))
    assert torch.autograd.gradcheck(run, inputs)


def test_gradients_under_guidance():
    model = denoiser(smooth, 3)

    def run(start, y, absent):
        return fs.sample(
            model,
            [700, 300, 0],
            start=start,
            guidance=[2.5, 0.5],
            cond={"y": y},
            uncond={"y": absent},
        )

    inputs = (doubles(2, 3), doubles(2, 3, seed=2), doubles(2, 3, seed=3))
    assert torch.autograd.gradcheck(run, inputs)


def test_one_operand_that_requires_grad_is_enough():
    noise = doubles(2, 1, 3)
    start = torch.ones(1, 3, dtype=torch.float64)
    got = fs.sample(denoiser(smooth, 3), 2, eta=1.0, start=start, noise=noise)
    got.sum().backward()
    assert noise.grad[0].abs().min() > 0
    assert noise.grad[1].abs().max() == 0  # the last row draws none


def test_gradients_reach_the_parameters_and_values_do_not_change():
    network = nn.Linear(3, 3).double()
    spy = Spy(lambda x, t: network(x))
    start = doubles(2, 3)
    got = fs.sample(denoiser(spy, 3), 3, start=start)
    assert spy.modes == [(True, False)] * 3
    got.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())
    plain = fs.sample(denoiser(spy, 3), 3, start=start.detach())
    torch.testing.assert_close(got.detach(), plain, rtol=1e-14, atol=0)


def test_the_start_survives_with_and_without_gradients():
    for requires_grad in (False, True):
        start = torch.ones(2, 3, requires_grad=requires_grad)
        got = fs.sample(denoiser(halve, 3), grids.uniform(1000, 3), start=start, eta=0.5)
        assert torch.equal(start, torch.ones(2, 3))
        assert got.data_ptr() != start.data_ptr()


# ---- runs in place


def gradient(plan, asks, **options):
    """The gradient of a run in a parameter of the network or in its start."""
    scale = torch.tensor(0.4, requires_grad=asks == "parameter")
    start = torch.ones(2, 3, requires_grad=asks == "start")
    model = denoiser(lambda x, t: scale * x, 3)
    run(model, plan, start * 1.0, **options).sum().backward()
    return scale.grad if asks == "parameter" else start.grad


each_input = pytest.mark.parametrize("asks", ["parameter", "start"])


@each_input
def test_a_run_in_place_that_overwrites_x_refuses_a_gradient(asks):
    assert gradient(PLANS["ddim"], asks).abs().min() > 0
    message = "^step: target must be None when a gradient is asked for, got a tensor"
    with pytest.raises(ValueError, match=message):
        gradient(PLANS["ddim"], asks, in_place=True)


@each_input
def test_a_run_in_place_that_keeps_x_keeps_the_gradient(asks):
    """Rows of a multistep method make new tensors."""
    plan = fs.unipc(LINEAR, fs.Grid([700, 300, 40, 0]), order=2)
    expected = gradient(plan, asks)
    assert expected.abs().min() > 0
    torch.testing.assert_close(gradient(plan, asks, in_place=True), expected)
