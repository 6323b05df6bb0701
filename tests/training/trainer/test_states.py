"""What a run carries along besides weights: buffers, optimisers' own numbers, modes of modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastsample as fs
from fastsample.training import FidelityTerm, Optimizer
from fastsample.training.trainer import checkpoints
from tests.helpers.networks import LINEAR
from tests.helpers.training_cases import Tiny, assert_same_run, fidelity, points, state, trainer


def assert_resumes(make, folder):
    """Three pieces of a run are the whole, bit for bit; the whole."""
    whole = make()
    whole.run(7)
    for last in (3, 4, 7):
        part = make(folder=folder, resume=True)
        part.run(last)
    assert_same_run(part, whole)
    return whole


# ---- buffers


class Counted(nn.Module):
    """A picture's network with a batch norm that counts, and an embedding of its pixels."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.last = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 1, 1)
            self.embedding = nn.Embedding(4, 1)
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("position_ids", torch.arange(4))
        self.register_buffer("seen", torch.zeros(2, dtype=torch.int32))

    def forward(self, x, t):
        if self.training:
            self.seen += 1
        offsets = self.embedding(self.position_ids).reshape(1, 1, 2, 2)
        return self.last(torch.tanh(self.norm(self.first(x + offsets))))


def pictured(**options):
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(64, 1, 2, 2, generator=generator)
    return trainer(fs.Denoiser(Counted(), LINEAR, (1, 2, 2)), data, **options)


@pytest.mark.parametrize("decay", [0.0, 0.9])
@pytest.mark.parametrize("term", [None, fidelity(subset=8)], ids=["alone", "with fidelity"])
def test_whole_numbers_are_trained_averaged_and_resumed(tmp_path, decay, term):
    whole = assert_resumes(lambda **o: pictured(ema=decay, fidelity=term, **o), tmp_path)
    average = whole.averaged.model
    for network in (whole.network, average):
        assert network.position_ids.tolist() == [0, 1, 2, 3]
        assert network.seen.tolist() == [7, 7]  # chains are not counted
        assert (network.norm.num_batches_tracked, network.seen.dtype) == (7, torch.int32)
    same = torch.equal(average.norm.running_mean, whole.network.norm.running_mean)
    assert same == (decay == 0.0)
    assert fs.sample(whole.averaged, 3, num_samples=2).isfinite().all()


# ---- optimisers


class Counting(torch.optim.AdamW):
    """Slower in every step, by a counter among its settings, as some optimisers have it."""

    def __init__(self, parameters, lr) -> None:
        super().__init__(parameters, lr=lr)
        for group in self.param_groups:
            group["k"] = 0

    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
            group["lr"] /= group["k"]
        return super().step(closure)


@pytest.mark.parametrize("rate", [None, 1e-2])
def test_counters_of_an_optimiser_are_resumed(tmp_path, rate):
    def make(**options):
        return trainer(
            optimizer=Optimizer(lr=1e-3, make=Counting),
            fidelity=FidelityTerm(fidelity(), lr=rate),
            **options,
        )

    whole = assert_resumes(make, tmp_path)
    names = ["optimizer"] if rate is None else ["optimizer", "fidelity_optimizer"]
    notes = checkpoints.newest(tmp_path).notes["optimizers"]
    assert notes == {name: [{"k": 7}] for name in names} == whole.updater.changed_settings()


def test_optimisers_without_counters_note_nothing():
    run = trainer()
    run.run(2)
    assert run.updater.changed_settings() == {"optimizer": [{}]}


@pytest.mark.parametrize("relative", [True, False])
def test_groups_keep_the_proportion_of_their_rates(tmp_path, relative):
    """Also in the warm-up, and where a group's rate is a number of its own."""
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            seen.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    def grouped(parameters, lr):
        slow = {"params": parameters[:2], "lr": 0.1 * lr if relative else 0.2}
        return Watched([slow, {"params": parameters[2:]}], lr=lr)

    run = trainer(optimizer=Optimizer(lr=2.0, warmup=4, clip=1e-3, make=grouped))
    run.run(5)
    for i, (slow, other) in enumerate(seen):
        assert other == pytest.approx(2.0 * min((i + 1) / 4, 1.0))
        assert slow == pytest.approx(0.1 * other)
    slow = Optimizer(lr=1e-2, warmup=5, make=grouped)
    assert_resumes(lambda **o: trainer(optimizer=slow, **o), tmp_path)


# ---- modes


class Normed(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x, t, y=None):
        return super().forward(self.norm(x), t)


def modes(network):
    return [module.training for module in network.modules()]


@pytest.mark.parametrize("start", ["training", "evaluation", "frozen part", "part in training"])
def test_modes_are_restored(start):
    network = Normed()
    network.train(start in ("training", "frozen part"))
    if start == "frozen part":
        network.norm.eval()
    if start == "part in training":
        network.norm.train()
    before, mean = modes(network), network.norm.running_mean.clone()
    run = trainer(fs.Denoiser(network, LINEAR, (2,)), fidelity=fidelity())
    run.run(2)
    assert modes(network) == before
    assert network.modes == [True, *[False] * 3] * 2
    # Of a network in training mode a part may be frozen; one in evaluation mode is all switched.
    assert torch.equal(network.norm.running_mean, mean) == (start == "frozen part")
    assert not any(modes(run.averaged.model))


def test_modes_are_restored_after_a_failure():
    network = Normed()
    network.norm.eval()
    before = modes(network)
    run = trainer(fs.Denoiser(network, LINEAR, (2,)), fidelity=fidelity(features=broken))
    with pytest.raises(ZeroDivisionError):
        run.run(1)
    assert modes(network) == before


def broken(x):
    raise ZeroDivisionError


# ---- defaults


def test_the_default_loss_trains_a_learned_variance():
    network = Tiny(outputs=2)
    learned = fs.Denoiser(network, LINEAR, (2,), variance="learned_range")
    run = trainer(learned, points(64).tanh())
    before = network.second.weight.detach().clone()
    run.run(1)
    assert (run.loss.kind, trainer().loss.kind) == ("hybrid", "simple")
    assert ((network.second.weight - before).abs().amax(1) > 0).all()  # variances' rows as well
    assert state(run)["optimizer.0.step"] == 1
