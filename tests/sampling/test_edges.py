"""The edges of sampling: faults once found, kept from coming back."""

from __future__ import annotations

import pytest
import torch

import fastsample as fs


def test_a_network_that_returns_infinity_as_variance_is_found():
    def network(x, t):
        return torch.cat((x, torch.full_like(x, torch.inf)), 1)

    model = fs.Denoiser(network, fs.NoiseSchedule.linear(), (2,), variance="learned_range")
    with pytest.raises(
        ValueError, match="the model's output must be finite, got infinity in row 0"
    ):
        fs.sample(model, 4, method="ancestral")


def test_devices_by_name():
    model = fs.Denoiser(lambda x, t: x, fs.NoiseSchedule.linear(), (2,), device="cpu:0")
    start = torch.ones(1, 2)
    assert fs.sample(model, 2, start=start).device == start.device
    assert fs.sample(model, 2, start=start, device="cpu:0").device == start.device
    with pytest.raises(ValueError, match="load: device must be the name of a device, got 'gpu'"):
        fs.load("digits", device="gpu")
    with pytest.raises(ValueError, match="sample: device must hold values, got meta"):
        fs.sample(model, 2, device="meta")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_is_a_clear_error():
    with pytest.raises(ValueError, match="load: device must be there, got cuda; "):
        fs.load("digits", device="cuda")


@pytest.mark.parametrize(
    "knob", [{"method": "ancestral"}, {"eta": 0.5}, {"grid": "karras"}, {"clip": None}]
)
def test_a_plan_leaves_no_room_for_knobs(knob):
    model = fs.Denoiser(lambda x, t: x, fs.NoiseSchedule.linear(), (2,))
    plan = fs.ddim(model.schedule, fs.grids.uniform(1000, 3))
    with pytest.raises(
        ValueError, match=f"sample: {next(iter(knob))} must be left out with a Plan"
    ):
        fs.sample(model, plan, **knob)


def test_a_guided_plan_needs_no_guidance_argument():
    seen = []

    def network(x, t, y):
        seen.append(len(x))
        return x * y.view(-1, 1)

    model = fs.Denoiser(network, fs.NoiseSchedule.linear(), (2,), uncond={"y": 0.0})
    plan = fs.ddim(model.schedule, fs.grids.uniform(1000, 3))
    asked = fs.sample(model, plan, guidance=3.0, cond={"y": 0.1}, seed=0)
    built_in = fs.sample(model, plan.with_guidance(3.0), cond={"y": 0.1}, seed=0)
    assert torch.equal(asked, built_in)
    assert seen == [2] * 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_samples_of_another_dtype_are_cast_for_the_network_and_back(dtype):
    model = fs.load("digits")
    spy, seen = model.model.register_forward_pre_hook, []
    hook = spy(lambda _module, inputs: seen.append(inputs[0].dtype))
    got = fs.sample(model, 3, num_samples=2, seed=0, dtype=dtype)
    hook.remove()
    assert got.dtype == dtype
    assert seen == [torch.float32] * 3
    expected = fs.sample(model, 3, num_samples=2, seed=0).to(dtype)
    # Three steps round the samples to float16, where neighbours are 1e-3 apart.
    torch.testing.assert_close(got, expected, rtol=0.0, atol=0.02 if dtype.itemsize == 2 else 1e-4)
