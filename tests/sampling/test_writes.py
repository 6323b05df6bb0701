"""Networks that write to what they are given: to their timesteps at no cost, to x never."""

from __future__ import annotations

import pytest
import torch

import fastsample as fs
from fastsample.sampling import recent
from fastsample.sampling.recent import Recent
from tests.helpers.networks import Spy, halve
from tests.helpers.tensors import same_bits

SHAPE = (2, 3)


def discard(step):
    """A callback, with which rows are run the other way."""


@pytest.fixture(autouse=True)
def _empty_memory(monkeypatch):
    monkeypatch.setattr(recent, "_PREPARED", Recent(64))


# ---- timesteps


def subtracts(x, t):
    output = halve(x, t)
    t.sub_(7)  # torch refuses this for more than one sample
    return output


def zeroes_the_first(x, t):
    output = halve(x, t)
    t[0] = 0
    return output


WAYS = {
    "direct": {},
    "callback": {"callback": discard},
    "gradient": {"start": torch.ones(1, *SHAPE, requires_grad=True)},
    "guided": {"guidance": 2.0, "uncond": {}},
    "rows of scale 1": {"guidance": [1.0, 2.0, 1.0, 1.0], "uncond": {}},
}


CASES = {f"zeroes_the_first, {way}": (zeroes_the_first, WAYS[way]) for way in WAYS}
for way in ("direct", "callback", "gradient"):  # guided networks are told two timesteps
    CASES[f"subtracts, {way}"] = (subtracts, WAYS[way])


@pytest.mark.parametrize(("network", "options"), CASES.values(), ids=CASES)
def test_a_network_may_write_to_its_timestep(network, options):
    """No later run is told another time, be it of this network or of another."""
    options = {"shape": SHAPE, "seed": 3, **options}
    expected = fs.sample(halve, 4, **options)
    for _ in range(2):
        assert same_bits(fs.sample(network, 4, **options), expected)
    spy = Spy(halve)
    assert same_bits(fs.sample(spy, 4, **options), expected)
    told = [int(t[0]) + 1 for t in spy.told]
    assert told == fs.Sampler(halve, 4, shape=SHAPE).plan.times.tolist()


@pytest.mark.parametrize("samples", [2, 5])
def test_a_network_may_write_to_one_of_several_timesteps(samples):
    options = {"shape": SHAPE, "seed": 3, "num_samples": samples}
    expected = fs.sample(halve, 4, **options)
    for _ in range(2):
        assert same_bits(fs.sample(zeroes_the_first, 4, **options), expected)
    assert same_bits(fs.sample(halve, 4, **options), expected)
    sampler = fs.Sampler(zeroes_the_first, 4, shape=SHAPE)
    for _ in range(2):
        assert same_bits(sampler(samples, seed=3), expected)


# ---- x


def writes_at(time):
    """A network that scales x itself in the rows from this time on."""

    def network(x, t):
        return (x.mul_(0.5) if int(t[0]) + 1 <= time else 0.5 * x).clone()

    return network


X_WAYS = {
    "direct": {},
    "callback": {"callback": discard},
    "states": {"return_states": True},
    "start": {"start": torch.ones(2, *SHAPE)},
    "noise": {"eta": 1.0},
    "corrected": {"clip": 1.0, "threshold": 0.9},
    "history": {"method": "dpm++", "order": 3},
}


@pytest.mark.parametrize("options", X_WAYS.values(), ids=X_WAYS)
@pytest.mark.parametrize("row", [0, 1, 3])
def test_a_network_that_writes_to_x_is_refused(options, row):
    options = {"num_samples": 2, "seed": 1, "grid": "uniform", **options}
    message = (
        rf"^Denoiser: the model must not write to x, got a change in row {row}; copy x in the "
        "network before writing to it$"
    )
    network = writes_at(1000 - 250 * row)
    with pytest.raises(ValueError, match=message):
        fs.sample(network, 4, shape=SHAPE, **{**options, **copied(options)})


def copied(options):
    return {"start": options["start"].clone()} if "start" in options else {}


def test_a_gradient_refuses_it_too():
    start = torch.ones(2, *SHAPE, requires_grad=True)
    with pytest.raises(ValueError, match="the model must not write to x, got a change in row 1"):
        fs.sample(writes_at(750), 4, shape=SHAPE, start=start, grid="uniform")


def test_under_guidance_a_network_has_a_copy():
    """Both halves are joined for the call, so that what is written there reaches no sample."""
    options = {"guidance": 2.0, "uncond": {}, "num_samples": 2, "seed": 1, "shape": SHAPE}

    def writes(x, t):
        return x.mul_(0.5).clone()

    expected = fs.sample(lambda x, t: 0.5 * x, 4, **options)
    assert torch.equal(fs.sample(writes, 4, **options), expected)


def test_a_network_may_write_to_a_copy():
    def network(x, t):
        return x.clone().mul_(0.5)

    expected = fs.sample(lambda x, t: 0.5 * x, 4, shape=SHAPE, num_samples=2, seed=1)
    assert same_bits(fs.sample(network, 4, shape=SHAPE, num_samples=2, seed=1), expected)


def test_inference_mode_refuses_it_too():
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match="the model must not write to x, got a change in row 1"),
    ):
        fs.sample(writes_at(750), 4, shape=SHAPE, num_samples=2, seed=1, grid="uniform")
