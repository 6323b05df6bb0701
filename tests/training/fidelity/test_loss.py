"""The fidelity loss: its times and noise, its starts, what it compares, and when it collapses."""

from __future__ import annotations

import warnings

import pytest
import torch

import fastsample as fs
from fastsample import ops
from fastsample.bundled.datasets import swirl_data
from fastsample.bundled.swirl import SwirlNet
from fastsample.distances import distances
from fastsample.sampling.noise import make_identity
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.training import (
    CollapseWarning,
    FidelityLoss,
    FidelityTerm,
    Optimizer,
    Trainer,
    VDMLoss,
)
from fastsample.training.fidelity.chain import GradientPath, run_chain, starting_points
from fastsample.training.randomness import RandomStreams
from tests.helpers.networks import LINEAR, model_a
from tests.helpers.training_cases import CHAINS, GRID, chain_model, plain_chain, points, tiny

DATA = points(12, dtype=torch.float64)


def times_of(loss, model, iteration):
    return tuple(loss.plan(model, RandomStreams(loss.seed, iteration)).times.tolist())


# ---- what is random


def test_times_are_drawn_anew_in_every_iteration():
    """The published code drew them once, when it was compiled."""
    loss, model = FidelityLoss((4, 8), grid="random"), tiny()
    drawn = [times_of(loss, model, i) for i in range(40)]
    assert len(set(drawn)) == 40
    assert {len(times) for times in drawn} == {4, 8}
    assert all(times[0] == 1000 and list(times) == sorted(times)[::-1] for times in drawn)
    assert len({time for times in drawn for time in times}) > 150
    assert drawn == [times_of(loss, model, i) for i in range(40)]
    other = FidelityLoss((4, 8), grid="random", seed=1)
    assert not set(drawn) & {times_of(other, model, i) for i in range(40)}


def test_the_same_iteration_gives_the_same_bits():
    loss, model = FidelityLoss((4, 8), grid="random", method="ancestral"), tiny(torch.float64)
    one, again, other = (loss(model, DATA, iteration=i) for i in (7, 7, 8))
    assert torch.equal(one.samples, again.samples)
    assert torch.equal(one.loss, again.loss)
    assert not torch.equal(one.loss, other.loss)


def noises(count, iteration, seed=0, index=None):
    """The noise that a chain of the shortcut sampler adds: a network that says x0 = 0."""
    inputs = []

    def silent(x, t):
        inputs.append(x)
        return torch.zeros_like(x)

    model = fs.Denoiser(silent, LINEAR, (500,), prediction="x0")
    plan = fs.shortcut(LINEAR, fs.Grid([900, 600, 300, 0]), prediction="x0")
    index = torch.arange(count) if index is None else index
    streams, x0 = RandomStreams(seed, iteration), torch.zeros(len(index), 500)
    start = starting_points(model, plan, x0, "prior", index=index, streams=streams)
    run_chain(model, plan, start, index=index, streams=streams, path=GradientPath())
    sigma = torch.from_numpy(LINEAR.sigma([600.0, 300.0])).float()
    return torch.stack([inputs[0], inputs[1] / sigma[0], inputs[2] / sigma[1]])


def test_noise_differs_between_rows_samples_iterations_and_seeds():
    """The published code used one key: the same noise in every row, that of z_T."""
    drawn = [noises(4, 0), noises(4, 1), noises(4, 0, seed=1)]
    every = torch.cat(drawn).flatten(0, 1)
    assert len(every) == 36
    off = torch.corrcoef(every) - torch.eye(36)
    assert off.abs().max() < 5.5 / 500**0.5
    torch.testing.assert_close(every.std(), torch.tensor(1.0), rtol=0.03, atol=0.0)


def test_noise_belongs_to_the_sample_whatever_its_batch():
    whole = noises(6, 3)
    torch.testing.assert_close(noises(0, 3, index=torch.tensor([4, 1])), whole[:, [4, 1]])


def test_a_sample_is_the_same_in_a_smaller_subset():
    model = tiny(torch.float64)
    results = [FidelityLoss(3, eta=1.0, subset=n)(model, DATA).samples for n in (None, 5)]
    assert torch.equal(results[0][:5], results[1])


# ---- where chains begin, and end


def test_prior_is_the_noise_of_an_iteration():
    model, plan = tiny(torch.float64), fs.ddim(LINEAR, GRID)
    index, streams = torch.arange(12), RandomStreams(0, 2)
    identity = make_identity("test", streams.key("chain start"), index, 12, torch.device("cpu"))
    result = starting_points(model, plan, DATA, "prior", index=index, streams=streams)
    assert torch.equal(result, ops.noise(*identity, (2,), dtype=torch.float64))


@pytest.mark.parametrize("chain", CHAINS)
def test_samples_are_those_of_the_sampler(chain):
    """The chain is what `sample` runs: from the same start, with the same noise."""
    model, streams = chain_model(chain), RandomStreams(0, 4)
    result = FidelityLoss(GRID, start="paired", **CHAINS[chain])(model, DATA, iteration=4)
    start = fs.diffuse(DATA[:6], LINEAR, 600.0, seed=streams.key("chain start"))
    expected = fs.sample(model, result.plan, start=start, seed=streams.key("chain noise"))
    torch.testing.assert_close(result.samples, expected, rtol=1e-12, atol=1e-12)
    looped = plain_chain(model, result.plan, start, streams).detach()
    torch.testing.assert_close(result.samples, looped, rtol=1e-12, atol=1e-12)


def test_noised_begins_at_each_of_the_later_times():
    loss, model = FidelityLoss(5, start="noised", distance="mse"), tiny(torch.float64)
    whole = fs.ddim(LINEAR, fs.grids.uniform(1000, 5)).times.tolist()
    drawn = {times_of(loss, model, i) for i in range(60)}
    assert drawn == {tuple(whole[first:]) for first in range(1, 5)}
    result = loss(model, DATA, iteration=3)
    seed = RandomStreams(0, 3).key("chain start")
    start = fs.diffuse(DATA, LINEAR, float(result.plan.times[0]), seed=seed)
    expected = fs.sample(model, result.plan, start=start)
    torch.testing.assert_close(result.samples, expected, rtol=1e-12, atol=1e-12)


def test_inverted_begins_at_the_noise_that_leads_to_x0():
    model = tiny(torch.float64)
    model.model.second.weight.data.mul_(0.05)
    loss = FidelityLoss(50, start="inverted", distance="mse")
    assert loss(model, DATA).loss < 0.05 * DATA.square().mean()
    (gradient,) = torch.autograd.grad(loss(model, DATA).loss, model.model.second.weight)
    assert gradient.abs().max() > 1e-6


# ---- what is compared


def test_a_subset_is_compared_with_the_whole_batch():
    model = tiny(torch.float64)
    result = FidelityLoss(3, subset=4, clip=2.0)(model, DATA)
    assert (len(result.samples), len(result.data), result.calls) == (4, 12, 12)
    expected = distances.energy_distance(result.samples, DATA)
    torch.testing.assert_close(result.loss.detach(), expected)
    paired = FidelityLoss(3, subset=4, clip=2.0, distance="mse", start="paired")(model, DATA)
    assert torch.equal(paired.data, DATA[:4])
    torch.testing.assert_close(paired.loss.detach(), distances.paired_mse(paired.samples, DATA[:4]))


def test_chains_of_one_start_make_the_energy_score():
    model = tiny(torch.float64)
    loss = FidelityLoss(GRID, eta=1.0, start="paired", chains=3, subset=4)
    result = loss(model, DATA)
    assert result.samples.shape == (12, 2)
    chains = result.samples.unflatten(0, (3, 4))
    assert not torch.equal(chains[0], chains[1])
    expected = distances.energy_score(chains, DATA[:4])
    torch.testing.assert_close(result.loss.detach(), expected)
    # Chain after chain goes on in the numbering: the first is the one of a single chain.
    alone = FidelityLoss(GRID, eta=1.0, start="paired", distance="mse", subset=4)(model, DATA)
    assert torch.equal(alone.samples, chains[0])


def test_features_see_samples_and_data_with_their_conditions():
    seen = []

    def features(x, y):
        seen.append((len(x), y.tolist()))
        return torch.cat([3 * x, y[:, None].to(x)], dim=1)

    model, labels = tiny(torch.float64, labels=5), torch.arange(12) % 5
    loss = FidelityLoss(3, subset=4, clip=2.0, features=features)
    result = loss(model, DATA, cond={"y": labels})
    assert seen == [(4, labels[:4].tolist()), (12, labels.tolist())]
    columns = labels[:, None].double()
    expected = distances.energy_distance(
        torch.cat([3 * result.samples, columns[:4]], 1), torch.cat([3 * DATA, columns], 1)
    )
    torch.testing.assert_close(result.loss.detach(), expected)


def test_conditions_follow_their_sample_through_every_chain():
    model, labels = tiny(torch.float64, labels=5), torch.arange(12) % 5
    loss = FidelityLoss(GRID, eta=1.0, start="paired", chains=2, clip=2.0)
    whole = loss(model, DATA, cond={"y": labels}).samples
    number = loss(model, DATA, cond={"y": 3}).samples
    for i in (0, 7, 11):
        assert torch.equal(whole[[i, i + 12]], number[[i, i + 12]]) == (int(labels[i]) == 3)


def test_a_larger_distance_for_worse_samples():
    networks = model_a(LINEAR), lambda x, t: 0.2 * x  # the first is exact for N(0, 1)
    good, bad = (fs.Denoiser(network, LINEAR, (2,)) for network in networks)
    for distance in ("energy", "mmd", "sliced_wasserstein"):
        loss = FidelityLoss(5, distance=distance, clip=3.0)
        assert loss(good, DATA).loss < loss(bad, DATA).loss


def test_repr():
    assert repr(FidelityLoss((4, 8), grid="random", eta=1.0, start="paired", chains=2)) == (
        "FidelityLoss((4, 8), method='auto', grid='random', distance='energy', start='paired', "
        "gradient='full', subset=None, chains=2, seed=0, eta=1.0)"
    )
    assert repr(FidelityLoss(fs.ddim(LINEAR, GRID))).startswith(
        "FidelityLoss('ddim(eta=0.0)', method"
    )


# ---- the published loss collapses


@pytest.fixture(scope="module")
def swirl():
    """A network trained for a while on the swirl."""
    data = swirl_data()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SwirlNet(96)
    model = fs.Denoiser(network, NoiseSchedule.vdm(), (2,), time="log_snr")
    loss = VDMLoss(levels=data.levels)
    options = {"loss": loss, "batch_size": 256, "ema": 0.99}
    options["optimizer"] = Optimizer(lr=3e-3, clip=None)
    return data, Trainer(model, data.x0, **options).run(600)


def fine_tuned(swirl, **options):
    """Collapse warnings and the last ratio of spreads of 300 iterations.

    With other seeds the paired loss warns in iteration 39 to 103 and ends at 0.41 to 0.47 of the
    data's spread, from 0.59 to 0.66; the default ends at 1.00 to 1.01.
    """
    data, start = swirl
    model = fs.Denoiser(SwirlNet(96), start.schedule, (2,), time="log_snr")
    model.model.load_state_dict(start.model.state_dict())
    run = Trainer(
        model,
        data.x0,
        loss=VDMLoss.of(model, levels=data.levels),
        fidelity=FidelityTerm(FidelityLoss(11, gradient="jacobian_free", **options), lr=1e-3),
        optimizer=Optimizer(lr=3e-4),
        batch_size=256,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.run(300)
    assert {warning.category for warning in caught} <= {CollapseWarning}
    return len(caught), run.history[-1]["sd_ratio"]


@pytest.mark.slow
def test_the_paired_loss_of_the_paper_collapses(swirl):
    count, spread = fine_tuned(swirl, method="shortcut", start="paired", distance="mse")
    assert count == 1
    assert spread < 0.55


@pytest.mark.slow
def test_the_default_does_not_collapse(swirl):
    count, spread = fine_tuned(swirl)
    assert count == 0
    assert 0.9 < spread < 1.1
