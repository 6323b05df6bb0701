"""The model's face: times as networks want them, outputs as they give them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import fastsample as fs
from fastsample.denoiser.denoiser import Denoiser
from tests.helpers.networks import LINEAR, Spy, denoiser, halve, halve_wide

WHOLE = np.array([1000.0, 640.0, 1.0])
BROKEN = np.array([999.7, 640.25, 0.5])


def told(times, time="index", schedule=LINEAR):
    return Denoiser(halve, schedule, (2,), time=time).network_times(times)


# ---- time


def test_whole_times_reach_the_network_as_the_integer_index():
    got = told(WHOLE)
    assert got.dtype == torch.int64
    assert got.tolist() == [999, 639, 0]


def test_fractional_times_reach_it_unrounded_as_float32():
    got = told(BROKEN)
    assert got.dtype == torch.float32
    assert got.tolist() == [float(np.float32(max(t - 1, 0.0))) for t in BROKEN]
    # One fractional time makes the whole run float: a network compiled for one dtype stays happy.
    assert told(np.array([1000.0, 0.5])).dtype == torch.float32


def test_rescaled_times():
    got = told(np.array([4000.0, 1.0, 2500.0]), "rescaled", fs.NoiseSchedule.cosine(4000))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.tensor([999.75, 0.0, 624.75]))


def test_fractions_of_T():
    got = told(WHOLE, "fraction")
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.tensor([1.0, 0.64, 0.001]))


@pytest.mark.parametrize("schedule", [LINEAR, fs.NoiseSchedule.vdm(), fs.NoiseSchedule.flow()])
def test_log_snr(schedule):
    times = schedule.T * np.array([0.9, 0.5, 0.01])
    alpha, sigma = schedule.levels(times)
    got = told(times, "log_snr", schedule)
    assert got.dtype == torch.float32
    expected = torch.tensor(2 * np.log(alpha / sigma), dtype=torch.float32)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("function", "dtype"),
    [
        (lambda times: times * 2, torch.float32),
        (lambda times: (times * 2).astype(np.int32), torch.int32),
        (lambda times: [float(t) * 2 for t in times], torch.float32),
        (lambda times: torch.as_tensor(times * 2).to(torch.int64), torch.int64),
    ],
)
def test_a_function_of_the_times(function, dtype):
    got = told(WHOLE, function)
    assert got.dtype == dtype
    assert got.tolist() == [2000, 1280, 2]


def test_a_function_must_give_one_value_per_time():
    with pytest.raises(ValueError, match=r"Denoiser: time must give one value per time \(3,\), "):
        told(WHOLE, lambda times: times[:2])


def test_calling_it_takes_project_times():
    spy = Spy(halve)
    model = denoiser(spy, 2)
    x = torch.ones(3, 2)
    model(x, 17)
    model(x, [1000, 17, 1])
    model(x, torch.tensor([5, 6, 7]))
    model(x, [1000, 17.5, 1])
    assert [t.tolist() for t in spy.told] == [
        [16, 16, 16],
        [999, 16, 0],
        [4, 5, 6],
        [999.0, 16.5, 0.0],
    ]
    assert [t.dtype for t in spy.told] == [torch.int64] * 3 + [torch.float32]


def test_calling_it_passes_conditions_on():
    spy = Spy(halve)
    denoiser(spy, 2)(torch.ones(1, 2), 3, {"y": torch.tensor([4])})
    assert spy.conditions == [{"y": torch.tensor([4])}]


# ---- outputs


@pytest.mark.parametrize(
    "wrap",
    [
        lambda out: out,
        lambda out: (out,),
        lambda out: [out, "attention maps"],
        lambda out: {"sample": out},
        lambda out: SimpleNamespace(sample=out),
    ],
    ids=["tensor", "tuple", "list", "dict", "object"],
)
def test_outputs_are_unwrapped(wrap):
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    plain = denoiser(halve, 3)(x, 7)
    assert torch.equal(denoiser(lambda x, t: wrap(halve(x, t)), 3)(x, 7), plain)


def test_a_diffusers_network_can_be_wrapped_as_it_is():
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        layers_per_block=1,
    )
    got = fs.sample(denoiser(network, 1, 8, 8), 2, num_samples=2)
    assert got.shape == (2, 1, 8, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_outputs_of_another_dtype_come_back_in_that_of_x(dtype):
    x = torch.ones(2, 3)
    got = denoiser(lambda x, t: halve(x, t).to(dtype), 3)(x, 7)
    assert got.dtype == torch.float32


def test_learned_variance_doubles_the_channels():
    got = denoiser(halve_wide, 3, 4, variance="learned_range")(torch.ones(2, 3, 4), 7)
    assert got.shape == (2, 6, 4)


# ---- what it is


def test_device_and_dtype_are_those_of_the_network():
    assert denoiser(halve, 2).device == torch.device("cpu")
    assert denoiser(halve, 2).dtype == torch.float32
    assert denoiser(nn.Identity(), 2).dtype == torch.float32
    assert denoiser(nn.Linear(2, 2, dtype=torch.bfloat16), 2).dtype == torch.bfloat16
    # An integer buffer says nothing about the dtype of samples.
    network = nn.Module()
    network.register_buffer("table", torch.arange(3))
    network.register_buffer("scale", torch.ones(2, dtype=torch.float64))
    assert denoiser(network, 2).dtype == torch.float64
    assert denoiser(halve, 2, device="cpu:0").device == torch.device("cpu")


def test_repr_says_what_it_is():
    text = repr(denoiser(nn.Identity(), 1, 8, 8, prediction="v", clip=1.0))
    for part in ("Identity", "NoiseSchedule.linear", "(1, 8, 8)", "'v'", "clip=1.0"):
        assert part in text


def test_the_bundled_model():
    model = fs.load("digits")
    assert model.shape == (1, 8, 8)
    assert (model.prediction, model.variance) == ("epsilon", "learned_range")
    assert model.uncond is not None
    images = fs.sample(model, 4, num_samples=3, cond={"y": [1, 2, 3]}, guidance=1.5)
    assert images.shape == (3, 1, 8, 8)
    assert images.abs().max() <= 1.0


def test_load_says_what_it_was_given():
    with pytest.raises(
        FileNotFoundError, match=r'load: name must be "digits", "mnist" or a file, got \'x'
    ):
        fs.load("xyz")


@pytest.mark.parametrize("schedule", [fs.NoiseSchedule.flow(), fs.NoiseSchedule.vdm()])
def test_a_continuous_schedule_has_no_index(schedule):
    with pytest.raises(ValueError, match="Denoiser: time must not be 'index'"):
        fs.Denoiser(lambda x, t: x, schedule, (2,), prediction="v")
    told = []

    def network(x, t):
        told.append(t[0].item())
        return x * 0.0

    if schedule == fs.NoiseSchedule.vdm():
        fs.sample(network, 4, shape=(2,), schedule=schedule, method="ddim")
        assert told == [1.0, 0.75, 0.5, 0.25]  # a bare callable is told the fraction


def test_times_that_are_not_finite_are_refused():
    model = fs.Denoiser(
        lambda x, t: x, fs.NoiseSchedule.flow(), (2,), prediction="flow", time="log_snr"
    )
    with pytest.raises(ValueError, match="Denoiser: time must give finite values"):
        fs.sample(model, 4)
