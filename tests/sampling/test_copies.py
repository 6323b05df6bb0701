"""Samplers that are copied, deep-copied and pickled."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import fastsample as fs
from tests.helpers.networks import LINEAR, denoiser, halve, per_sample
from tests.helpers.tensors import same_bits

SHAPE = (2, 3)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)

    def forward(self, x, t, y=None):
        output = self.layer(x) + per_sample(t, x) * 2.0**-10
        return output if y is None else output + per_sample(y, x)


class Pipeline(torch.nn.Module):
    """A module that holds a sampler."""

    def __init__(self, sampler):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
        self.sampler = sampler


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda sampler: pickle.loads(pickle.dumps(sampler)),
    "inside a module": lambda sampler: copy.deepcopy(Pipeline(sampler)).sampler,
    "of a copy": lambda sampler: copy.deepcopy(pickle.loads(pickle.dumps(sampler))),
}
CASES = {
    "default": {},
    "noise": {"eta": 1.0, "clip": 1.0},
    "history": {"method": "dpm++", "order": 3},
    "guided": {"guidance": [2.0, 1.0, 3.0, 1.0], "uncond": {"y": 0.0}},
    "corrected": {
        "guidance": 2.0,
        "uncond": {"y": 0.0},
        "guidance_rescale": 0.5,
        "threshold": 0.9,
        "clip": 1.0,
    },
    "batches": {"batch_size": 2, "dtype": torch.float64},
}

each_copy = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


@each_copy
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("network", [halve, Network().eval()], ids=["function", "module"])
def test_a_copy_gives_equal_samples(network, options, copied):
    sampler = fs.Sampler(denoiser(network, *SHAPE), 4, **options)
    given = {"num_samples": 3, "seed": 1}
    if "guidance" in options:
        given["cond"] = {"y": [1.0, 2.0, 3.0]}
    early = copied(sampler)
    expected = [sampler(**given), sampler(**given, stop=333.3)]
    late = copied(sampler)
    for other in (early, late):
        assert other.plan == sampler.plan
        assert other.seed is None
        assert same_bits(other(**given), expected[0])
        assert same_bits(other(**given, stop=333.3), expected[1])
        assert other.seed == 1
    assert same_bits(sampler(**given), expected[0])


@pytest.mark.parametrize("name", ["deepcopy", "pickle"])
def test_a_deep_copy_has_a_network_of_its_own(name):
    network = Network().eval()
    sampler = fs.Sampler(network, 4, shape=SHAPE)
    expected = sampler(3, seed=1)
    other = COPIES[name](sampler)
    with torch.no_grad():
        network.layer.weight.zero_()
    assert same_bits(other(3, seed=1), expected)
    assert not torch.equal(sampler(3, seed=1), expected)


@each_copy
def test_a_copy_refuses_what_the_sampler_does(copied):
    sampler = copied(fs.Sampler(halve, fs.ddim(LINEAR, fs.Grid([900, 500, 0])), shape=SHAPE))
    with pytest.raises(ValueError, match=r"^Sampler: stop must be a node of the plan"):
        sampler(stop=300.0)
    graph = copied(fs.Sampler(halve, 4, shape=SHAPE, graph=True))
    with pytest.raises(ValueError, match=r"^Sampler: graph must be False on cpu, got True"):
        graph()
