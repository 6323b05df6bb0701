"""The training loop: what one iteration does to the weights, and what it leaves alone."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import fastsample as fs
from fastsample.bundled.datasets import swirl_data
from fastsample.bundled.swirl import SwirlNet
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.training import FidelityTerm, Optimizer, VDMLoss
from fastsample.training.trainer.scheduled_optimizer import LearningRate
from tests.helpers.networks import LINEAR
from tests.helpers.training_cases import (
    fidelity,
    points,
    state,
    tiny,
    trainer,
    unsaturated,
    weights,
)

SGD = Optimizer(lr=1.0, clip=None, make=torch.optim.SGD)


def moved(iterations=1, **options):
    """What iterations of gradient descent add to the weights, and the trainer."""
    dtype = options.pop("dtype", torch.float64)
    run = trainer(tiny(dtype), points(64, dtype=dtype), **{"optimizer": SGD, **options})
    before = weights(run)
    run.run(iterations)
    return weights(run) - before, run


# ---- gradients


def test_accumulation_is_one_batch_to_rounding():
    whole, run = moved()
    for parts in (2, 3, 16, 50):
        split, other = moved(accumulation=parts)
        torch.testing.assert_close(split, whole, rtol=1e-10, atol=1e-13)
        assert other.history[0]["loss"] == pytest.approx(run.history[0]["loss"], rel=1e-12)


def test_terms_are_clipped_one_by_one_and_logged_before():
    one, run = moved()
    both, with_term = moved(fidelity=FidelityTerm(unsaturated(), clip=1e9))
    two, line = both - one, with_term.history[0]
    assert line["norm"] == pytest.approx(float(one.norm()), rel=1e-10)
    assert line["fidelity_norm"] == pytest.approx(float(two.norm()), rel=1e-10)
    assert run.history[0]["norm"] == line["norm"]
    clipped, run = moved(
        fidelity=FidelityTerm(unsaturated(), weight=0.5, clip=line["fidelity_norm"] / 3),
        optimizer=replace(SGD, clip=line["norm"] / 4),
    )
    torch.testing.assert_close(clipped, one / 4 + 0.5 * two / 3, rtol=1e-9, atol=1e-12)
    assert run.history[0]["norm"] == pytest.approx(line["norm"], rel=1e-12)
    assert run.history[0]["fidelity_norm"] == pytest.approx(line["fidelity_norm"], rel=1e-12)


def test_an_optimiser_of_its_own_leaves_the_moments_of_the_main_one():
    """In the first iteration, where both see the same weights."""
    plain = trainer()
    own = trainer(fidelity=FidelityTerm(unsaturated(), lr=1e-3))
    summed = trainer(fidelity=unsaturated())
    states = []
    for run in (plain, own, summed):
        run.run(1)
        states.append(state(run))
    names = [name for name in states[0] if name.startswith("optimizer.")]
    assert len(names) == 12
    assert all(torch.equal(states[0][name], states[1][name]) for name in names)
    assert not all(torch.equal(states[0][name], states[2][name]) for name in names)
    assert sum(name.startswith("fidelity_optimizer.") for name in states[1]) == 12
    assert not torch.equal(weights(plain), weights(own))
    # The weight of the term has no meaning there.
    heavy = trainer(fidelity=FidelityTerm(unsaturated(), lr=1e-3, weight=7.0))
    heavy.run(1)
    assert torch.equal(weights(heavy), weights(own))


def test_the_term_comes_every_nth_iteration():
    run = trainer(fidelity=FidelityTerm(fidelity(), every=3))
    run.run(7)
    assert [line["iteration"] for line in run.history if "fidelity" in line] == [0, 3, 6]
    calls = trainer(fidelity=FidelityTerm(fidelity(steps=(2, 5)), every=3))
    calls.run(7)
    terms = [line for line in calls.history if "fidelity" in line]
    assert calls.network.calls == 7 + sum(len(line["times"]) for line in terms)


def test_frozen_parameters_stay():
    model = tiny()
    model.model.first.requires_grad_(False)
    before = model.model.first.weight.clone()
    run = trainer(model, fidelity=fidelity(), optimizer=Optimizer(lr=1e-3, weight_decay=0.1))
    run.run(3)
    assert torch.equal(model.model.first.weight, before)
    assert not torch.equal(model.model.second.weight, tiny().model.second.weight)


def test_training_lowers_the_loss_and_the_distance():
    model = tiny(width=32)
    term = fidelity(steps=5, start="prior")
    before = term(model, points(256)).loss
    run = trainer(
        model,
        fidelity=FidelityTerm(term, lr=1e-3),
        optimizer=Optimizer(lr=3e-3),
        batch_size=64,
        ema=0.95,
    )
    result = run.run(150)
    first, last = run.history[:10], run.history[-10:]
    assert sum(line["loss"] for line in last) < 0.8 * sum(line["loss"] for line in first)
    assert term(result, points(256), iteration=1).loss < 0.3 * before
    assert term(run.current, points(256), iteration=1).loss < 0.3 * before


def test_ends_of_a_learned_schedule_are_trained_by_the_bound_alone():
    data = swirl_data(64)
    result = []
    for term in (None, FidelityTerm(fidelity(clip=None), lr=1e-3)):
        model = fs.Denoiser(SwirlNet(8), NoiseSchedule.vdm(), (2,), time="log_snr")
        loss = VDMLoss.of(model, levels=data.levels)
        run = trainer(model, data.x0, loss=loss, fidelity=term)
        run.run(1)
        result.append((loss.w.item(), loss.b.item()))
        assert run.current.schedule == loss.schedule() != model.schedule
        assert run.averaged.schedule == run.averaged_loss.schedule() != model.schedule
    assert result[0] == result[1] != (pytest.approx(18.3, abs=1e-5), pytest.approx(-13.3, abs=1e-5))


# ---- rates and averages


def test_rates():
    assert [LearningRate(2.0, 4, None)(i) for i in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    falling = LearningRate(2.0, 0, 10)
    assert [falling(i) for i in (0, 5, 10, 11)] == pytest.approx([2.0, 1.0, 0.0, 0.0], abs=1e-15)
    both = LearningRate(2.0, 4, 10)
    assert both(1) == pytest.approx(0.5 * falling(1))
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    trainer(optimizer=Optimizer(lr=2.0, warmup=4, decay=10, make=Watched)).run(5)
    assert seen == [both(i) for i in range(5)]


@pytest.mark.parametrize("decay", [0.0, 0.4, 0.999])
def test_the_average_has_a_short_memory_at_first(decay):
    """After the first update a copy; then a decay of min(decay, (1 + n) / (10 + n))."""
    run = trainer(ema=decay, optimizer=Optimizer(lr=0.1))
    expected = None
    for n in range(6):
        run.run(n + 1)
        rate = min(decay, (1 + n) / (10 + n))
        now = weights(run).double()
        expected = now if expected is None else rate * expected + (1 - rate) * now
        average = torch.cat([p.flatten() for p in run.averaged.model.parameters()])
        torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-7)
    assert not any(p.requires_grad for p in run.averaged.model.parameters())


def test_averages_forget_what_was_measured_of_other_weights():
    model = tiny()
    model = model.with_profile(fs.profile(model, points(8).tanh(), times=[500.0, 1000.0]))
    model = model.with_plans([fs.ddim(LINEAR, fs.grids.uniform(1000, 3))])
    run = trainer(model)
    for result in (run.averaged, run.current, run.run(1)):
        assert result.profile is None
        assert result.plans == {}
    assert model.profile is not None
    assert set(model.plans) == {3}
    assert run.averaged.model is not model.model
    assert run.current.model is model.model


def test_results_share_the_weights_of_the_trainer():
    run = trainer(optimizer=Optimizer(lr=0.1))
    results = run.run(1), run.current
    kept = copy.deepcopy(results)
    assert run.averaged_loss is run.loss
    run.run(3)
    for result, copied, now in zip(results, kept, (run.averaged, run.current), strict=True):
        assert result.model is now.model
        assert not torch.equal(result.model.first.weight, copied.model.first.weight)


def test_there_is_nothing_to_do_for_fewer_iterations():
    run = trainer()
    run.run(3)
    before = state(run)
    result = run.run(2)
    assert result.model is run.averaged.model
    assert (run.iteration, len(run.history)) == (3, 3)
    assert all(torch.equal(value, before[name]) for name, value in state(run).items())


# ---- modes and randomness


@pytest.mark.parametrize("checkpoint", [False, True])
def test_chains_see_the_network_in_evaluation_mode(checkpoint):
    """Also where the backward pass runs it again."""
    model = tiny(dropout=0.5)
    run = trainer(model, fidelity=fidelity(checkpoint=checkpoint))
    run.run(2)
    chain = [False] * (6 if checkpoint else 3)
    assert model.model.modes == [True, *chain, True, *chain]
    assert model.model.training


def test_dropout_does_not_reach_the_chain():
    one, two = (
        trainer(tiny(dropout=0.5), fidelity=FidelityTerm(fidelity(checkpoint=on), lr=1e-3))
        for on in (False, True)
    )
    one.run(3)
    two.run(3)
    assert torch.equal(weights(one), weights(two))
    other = trainer(tiny(), fidelity=fidelity())
    other.run(1)
    assert one.history[0]["fidelity"] == other.history[0]["fidelity"]
    assert one.history[0]["loss"] != other.history[0]["loss"]


def test_the_caller_s_random_numbers_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    trainer(tiny(dropout=0.5), fidelity=fidelity()).run(2)
    assert torch.equal(torch.rand(2), expected)


def test_seeds_and_iterations_draw_anew():
    still = Optimizer(lr=1e-12, make=torch.optim.SGD)
    runs = [trainer(seed=seed, optimizer=still) for seed in (0, 0, 1)]
    for run in runs:
        run.run(3)
    one, again, other = ([line["loss"] for line in run.history] for run in runs)
    assert one == again
    assert len(set(one + other)) == 6
