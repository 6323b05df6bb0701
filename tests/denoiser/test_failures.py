"""Networks that fail: their own error with the place in the run, and the faults that are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastsample as fs
from fastsample.denoiser.at_times import AtTimes
from fastsample.denoiser.conditions import Conditions
from tests.helpers.networks import LINEAR, denoiser, halve


def notes(error):
    return "\n".join(getattr(error, "__notes__", error.args))


def wrong_shape(x, t):
    return x @ torch.ones(5, 5, dtype=x.dtype)


def no_graph(x, t):
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        return torch.autograd.grad((y**2).sum(), y)[0]


class Failure(Exception):
    def __init__(self, code, text):
        super().__init__(code, text)


def own_error(x, t):
    if t[0] < 499:
        raise Failure(7, "full")
    return 0.5 * x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_networks_own_error_is_told_as_it_is(dtype):
    start = torch.randn(2, 6, dtype=dtype)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied") as caught:
        fs.sample(wrong_shape, 3, shape=(6,), start=start, grid="uniform")
    assert "in row 0 of 3 (t = 1000), at the network's timestep 999" in notes(caught.value)
    with pytest.raises(RuntimeError, match="does not require grad and does not have a grad_fn"):
        fs.sample(no_graph, 3, shape=(6,), start=start)


@pytest.mark.parametrize("options", [{}, {"callback": lambda step: None}], ids=["direct", "other"])
def test_the_row_and_the_time_are_added(options):
    with pytest.raises(Failure) as caught:
        fs.sample(own_error, 4, shape=(6,), grid="uniform", **options)
    assert caught.value.args == (7, "full")
    assert caught.value.__cause__ is None
    assert "in row 3 of 4 (t = 250), at the network's timestep 249" in notes(caught.value)


def test_profiles_tell_the_time():
    with pytest.raises(Failure) as caught:
        fs.profile(denoiser(own_error, 6), torch.ones(1, 6), times=[400, 1000], trajectories=0)
    assert "at t = 400, at the network's timestep 399" in notes(caught.value)


def test_the_error_of_interrupts_is_left_alone():
    def interrupted(x, t):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fs.sample(interrupted, 3, shape=(6,))


# ---- networks with a table of times


class Table(nn.Module):
    def __init__(self, size=1000):
        super().__init__()
        self.table, self.layer = nn.Embedding(size, 6), nn.Linear(6, 6)

    def forward(self, x, t):
        return self.layer(x) + self.table(t)


@pytest.mark.parametrize(
    "options",
    [
        {"grid": "karras"},
        {"grid": "log_snr"},
        {"method": "fastdpm", "approximation": "var", "extended": True},
    ],
    ids=str,
)
def test_a_table_of_times_takes_whole_times(options):
    model = fs.Denoiser(Table().eval(), LINEAR, (6,), clip=1.0)
    with pytest.raises(
        ValueError,
        match=r"^Denoiser: times must be whole for this network, which looks its timestep up in a "
        r"table, got fractional times in this run .* in row 0 of 10 .*; pass whole=True",
    ) as caught:
        fs.sample(model, 10, num_samples=2, **options)
    assert isinstance(caught.value.__cause__, RuntimeError)
    got = fs.sample(model, 10, num_samples=2, whole=True, **options)
    assert got.shape == (2, 6)


def test_another_tables_error_is_not_blamed_on_the_times():
    words = nn.Embedding(4, 6)

    def network(x, t):
        return x + words(t.new_full(t.shape, 9).long())

    with pytest.raises(IndexError, match="index out of range"):
        fs.sample(network, 3, shape=(6,), grid="karras")


def test_a_table_that_is_too_short_is_an_error_of_the_network():
    with pytest.raises(IndexError, match="index out of range") as caught:
        fs.sample(Table(500).eval(), 4, shape=(6,), grid="uniform")
    assert "timestep 999" in notes(caught.value)


# ---- networks without a time


@pytest.mark.parametrize("network", [nn.Linear(6, 6).eval(), lambda x: x], ids=["Linear", "x"])
def test_a_network_without_a_time_argument(network):
    with pytest.raises(
        TypeError,
        match=r"^Denoiser: model must take x and the network's timestep, got \w+, which does not "
        r"\(.*\); wrap a network without time: lambda x, t: network\(x\)$",
    ):
        fs.sample(network, 3, shape=(6,))


def test_another_type_error_is_the_networks_own():
    with pytest.raises(TypeError, match="unsupported operand"):
        fs.sample(lambda x, t: x + "a", 3, shape=(6,))


# ---- networks that write to x, outside of `sample`


def writes(x, t):
    return x.mul_(0.5).clone()


@pytest.mark.parametrize("inference", [False, True])
def test_measurements_refuse_a_network_that_writes_to_x(inference):
    model = AtTimes(denoiser(writes, 6), LINEAR.alpha([0.0]) * 500.0, function="profile")
    x = torch.ones(2, 6)
    with torch.inference_mode(inference):
        x = x.clone()
        with pytest.raises(ValueError, match=r"the model must not write to x, got a change at t ="):
            model.output(x, 0, Conditions("profile", batch=2))


MEASUREMENTS = {
    "profile": lambda model: fs.profile(model, torch.ones(4, 6), times=[1, 1000], trajectories=0),
    "trajectories": lambda model: fs.profile(model, torch.ones(4, 6), times=[1, 1000]),
    "bits_per_dim": lambda model: fs.bits_per_dim(model, torch.ones(4, 6), 3),
    "tune": lambda model: fs.tune(model, 3, samples=64, teacher_steps=12),
}


@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
def test_every_measurement_refuses_it(measure):
    with pytest.raises(ValueError, match="the model must not write to x, got a change"):
        measure(denoiser(writes, 6))
    measure(denoiser(halve, 6))


# ---- times per token


def test_times_per_token_reach_the_network_in_their_shape():
    told = []

    def network(x, t):
        told.append(t)
        return 0.5 * x

    model = denoiser(network, 3, 4)
    x = torch.ones(2, 3, 4)
    model(x, [[1, 500, 1000], [7, 8, 9]])
    assert told[-1].dtype == torch.int64
    assert told[-1].tolist() == [[0, 499, 999], [6, 7, 8]]
    model.at_time(x, torch.full((2, 3, 1), 1.5))
    assert told[-1].shape == (2, 3, 1)
    assert told[-1].dtype == torch.float32
    with pytest.raises(ValueError, match=r"t must be one time or one per sample \(2,\), or of a"):
        model(x, [[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match=r"t must be in \(0, 1000\], got 0 to 3"):
        model(x, [[0, 2, 3], [1, 2, 3]])


# ---- arguments that were not given


class Labelled(nn.Module):
    """As the UNetModel of guided-diffusion: labels have a default, which it refuses."""

    def __init__(self, text="must specify y if and only if the model is class-conditional"):
        super().__init__()
        self.num_classes, self.text = 10, text

    def forward(self, x, timesteps, y=None):
        assert (y is not None) == (self.num_classes is not None), self.text
        return 0.5 * x


def needs_y(x, t, y, *, scale=1.0):
    return 0.5 * x


def asserts_y(x, t, y=None):
    assert y is not None, "y must be given"
    return 0.5 * x


@pytest.mark.parametrize("network", [Labelled(), Labelled(""), needs_y, asserts_y])
def test_labels_that_were_not_given(network):
    model = denoiser(network, 6)
    message = (
        r"^Denoiser: cond must hold the network's argument 'y', got \[\]; pass "
        r"cond=\{'y': \.\.\.\}, with one entry per sample$"
    )
    with pytest.raises(TypeError, match=message) as caught:
        fs.sample(model, 3, num_samples=2)
    assert isinstance(caught.value.__cause__, AssertionError | TypeError)
    with pytest.raises(TypeError, match=message):
        fs.profile(model, torch.zeros(2, 6), times=[500], trajectories=0, bin_width=None)
    assert fs.sample(model, 3, cond={"y": torch.tensor([1, 2])}).shape == (2, 6)


def test_labels_are_not_blamed_for_other_failures():
    def fails(x, t, y=None):
        assert x.shape[0] == 7, "seven samples"
        return x

    def breaks(x, t, y=None):
        return x + "text"

    unlabelled = Labelled()
    unlabelled.num_classes = None
    for network, cond, error, match in (
        (fails, None, AssertionError, "seven samples"),
        (breaks, None, TypeError, "unsupported operand|must be Tensor"),
        (unlabelled, {"y": 1}, AssertionError, "must specify y"),
        (needs_y, {"y": 1, "other": 2}, TypeError, "unexpected keyword argument 'other'"),
    ):
        with pytest.raises(error, match=match) as caught:
            fs.sample(denoiser(network, 6), 3, cond=cond)
        assert "in row 0 of 3" in notes(caught.value)
