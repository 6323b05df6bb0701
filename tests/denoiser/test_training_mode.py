"""Networks left in training mode: one warning each, from everything that runs them."""

from __future__ import annotations

import functools
import gc
import warnings
import weakref

import pytest
import torch
from torch import nn

import fastsample as fs
from fastsample.denoiser.training_mode import training_meant, warn_of_training_mode
from tests.helpers.networks import LINEAR, halve

SHAPE = (6,)
DATA = torch.zeros(4, *SHAPE) + 1.0
MATCH = r"^{}: model must be in evaluation mode, got Net in training mode.*; call model\.eval\(\)"


class Net(nn.Module):
    """With the layers that training mode changes."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x, t):
        return self.dropout(self.norm(self.layer(x)))


def wrapped(network):
    return fs.Denoiser(network, LINEAR, SHAPE, clip=1.0)


USES = {
    "sample": lambda model: fs.sample(model, 3, num_samples=4),
    "Sampler": lambda model: fs.Sampler(model, 3)(4),
    "invert": lambda model: fs.invert(model, DATA, 3),
    "profile": lambda model: fs.profile(model, DATA, times=[1, 500, 1000], trajectories=0),
    "bits_per_dim": lambda model: fs.bits_per_dim(model, DATA, 3),
}


def told(call):
    """The warnings about training mode that a call gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [w for w in caught if "evaluation mode" in str(w.message)]


@pytest.mark.parametrize("use", USES)
def test_one_warning_for_each_network(use):
    model = wrapped(Net())
    with pytest.warns(UserWarning, match=MATCH.format(use)):
        USES[use](model)
    assert not told(lambda: USES[use](model))
    assert not told(lambda: USES[use](wrapped(model.model)))
    assert len(told(lambda: USES[use](wrapped(Net())))) == 1


@pytest.mark.filterwarnings("ignore:tune. denoiser must be deterministic:UserWarning")
def test_tuning_warns():
    options = {"samples": 64, "teacher_steps": 12, "max_runs": 2}
    assert len(told(lambda: fs.tune(wrapped(Net()), 3, **options))) == 1


def test_the_warning_names_the_users_line():
    (warning,) = told(lambda: fs.sample(wrapped(Net()), 3, num_samples=4))
    assert warning.filename == __file__


@pytest.mark.parametrize("use", USES)
def test_none_in_evaluation_mode(use):
    network = Net().eval()
    before = network.norm.running_mean.clone()
    assert not told(lambda: USES[use](wrapped(network)))
    assert torch.equal(network.norm.running_mean, before)


def test_a_part_in_training_mode_is_named():
    network = Net().eval()
    network.dropout.train()
    with pytest.warns(UserWarning, match="in training mode in its part 'dropout'"):
        fs.sample(wrapped(network), 3, num_samples=4)


def test_a_sampler_looks_in_every_call():
    network = Net().eval()
    sampler = fs.Sampler(wrapped(network), 3)
    assert not told(lambda: sampler(4))
    network.train()
    assert len(told(lambda: sampler(4))) == 1


class Holder:
    def __init__(self, network):
        self.network = network

    def __call__(self, x, t):
        return self.network(x, t)

    def method(self, x, t):
        return self.network(x, t)


GLOBAL = Net()


def uses_the_global(x, t):
    return GLOBAL(x, t)


WAYS = {
    "closure": lambda network: lambda x, t: network(x, t),
    "method": lambda network: network.forward,
    "object": Holder,
    "method of an object": lambda network: Holder(network).method,
    "partial": lambda network: functools.partial(network.forward),
    "partial of it": functools.partial,
    "global": lambda network: uses_the_global,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_networks_inside_a_callable_are_seen(way):
    network = way(Net())
    assert len(told(lambda: fs.sample(network, 3, shape=SHAPE, num_samples=4))) == 1


def test_a_variable_without_a_value_is_no_network():
    def make():
        def call(x, t):
            return later(x, t)

        warn_of_training_mode("sample", call)
        later = halve
        return call

    assert not told(make)


def test_training_on_purpose_is_silent():
    def run():
        with training_meant():
            fs.sample(wrapped(network), 3, num_samples=4)

    network = Net()
    assert not told(run)
    assert len(told(lambda: fs.sample(wrapped(network), 3, num_samples=4))) == 1


def test_the_trainers_chains_are_silent():
    loss = fs.training.FidelityLoss(3, start="inverted", distance="mse")
    model = wrapped(Net())
    assert not told(lambda: loss(model, DATA + 0.1 * torch.randn(4, 6), iteration=0))


def test_networks_are_not_kept_alive():
    network = Net()
    reference = weakref.ref(network)
    assert len(told(USES["sample"].__get__(wrapped(network)))) == 1
    del network
    gc.collect()
    assert reference() is None
