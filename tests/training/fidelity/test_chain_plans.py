"""Which chains the fidelity loss takes, when it says so, and what sets of samples are held to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.distances import distances
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.training import DiffusionLoss, FidelityLoss, VDMLoss
from fastsample.training.randomness import RandomStreams
from tests.helpers.networks import LINEAR
from tests.helpers.training_cases import GRID, fidelity, points, tiny, trainer

DATA = points(12, dtype=torch.float64)
PLAN = fs.ddim(LINEAR, GRID)


def lengths(loss, model, count=40):
    return {len(loss.plan(model, RandomStreams(loss.seed, i))) for i in range(count)}


# ---- numbers of steps


@pytest.mark.parametrize("chains", [2, 3])
@pytest.mark.parametrize("knobs", [{"eta": 1.0}, {"method": "ancestral"}], ids=str)
def test_late_chains_keep_a_row_that_adds_noise(knobs, chains):
    """The last row adds none: chains of one point would all be the same."""
    loss, model = FidelityLoss(5, start="noised", chains=chains, **knobs), tiny(torch.float64)
    assert lengths(loss, model) == {2, 3, 4}
    for i in range(40):
        samples = loss(model, DATA[:4], iteration=i).samples.unflatten(0, (chains, 4))
        assert not torch.equal(samples[0], samples[1])
    for steps in (2, (2, 5)):
        short = FidelityLoss(steps, start="noised", chains=chains, **knobs)
        message = 'steps must be at least 3 with start="noised" and several chains, got 2'
        with pytest.raises(ValueError, match=message):
            short.check(model, 16)
        with pytest.raises(ValueError, match=message):
            lengths(short, model)
    assert lengths(FidelityLoss(2, start="noised", eta=1.0), model) == {1}


@pytest.mark.parametrize(
    "steps",
    [
        (4, 8),
        [4, 8],
        np.array([4, 8]),
        np.array([4, 8], dtype=np.uint8),
        [np.int64(4), np.int64(8)],
        torch.tensor([4, 8]),
    ],
    ids=["tuple", "list", "array", "uint8", "scalars", "tensor"],
)
def test_several_numbers_of_steps(steps):
    loss, model = FidelityLoss(steps), tiny()
    assert lengths(loss, model) == {4, 8}
    assert [len(plan) for plan in loss.plans.check(model)] == [4, 8]
    assert sorted(trainer(model, fidelity=loss).run(0).plans) == [4, 8]


def test_one_number_and_times():
    model = tiny()
    for steps in (4, np.int64(4), (4,), np.array([4])):
        assert lengths(FidelityLoss(steps), model) == {4}
    for times in ((600, 300, 0), np.array([600, 300, 0]), [600.5, 300, 0], GRID):
        (plan,) = FidelityLoss(times).plans.check(model)
        assert plan.nodes[-1] == 0
        assert len(plan) == len(times) - (not isinstance(times, fs.Grid))


@pytest.mark.parametrize(
    "steps", [(8, 4), (4, 4), np.array([8, 4], dtype=np.uint8), [[4, 8]], [0, 4]]
)
def test_lists_that_are_neither(steps):
    with pytest.raises(ValueError, match="must"):
        FidelityLoss(steps).check(tiny(), 16)


def test_check_gives_every_plan_of_a_fixed_loss():
    model = tiny()
    loss = FidelityLoss((2, 5), method="dpm++", order=2)
    assert [plan.method for plan in loss.plans.check(model)] == [
        loss.plans.plan_for(model, RandomStreams(0, i)).method for i in (0, 0)
    ]
    with pytest.raises(ValueError, match="at most the batch of 16, got 17"):
        FidelityLoss(3, subset=17).check(model, 16)
    with pytest.raises(ValueError, match="multiple of the 2 processes"):
        FidelityLoss(3, subset=7).check(model, 16, 2)
    # Also what only one of the numbers has: a single step adds no noise.
    with pytest.raises(ValueError, match="of 1 steps adds no noise, got 2"):
        FidelityLoss((1, 4), eta=1.0, start="paired", chains=2).check(model, 16)


# ---- at once, and without a trace

LEARNING = fs.Denoiser(tiny().model, NoiseSchedule.vdm(), (2,), time="log_snr")
EARLY = {
    "method": ({"fidelity": FidelityLoss(method="euler")}, "method must be one of"),
    "knob": ({"fidelity": FidelityLoss(order=2)}, "method must be given with"),
    "steps": ({"fidelity": FidelityLoss(1001)}, r"steps must be in \[1, 1000\], got 1001"),
    "one of several": ({"fidelity": FidelityLoss((4, 1001))}, r"in \[1, 1000\], got 1001"),
    "subset": ({"fidelity": FidelityLoss(subset=17)}, "at most the batch of 16, got 17"),
    "no others": (
        {"fidelity": FidelityLoss(subset=16, start="paired")},
        'subset must leave samples to compare with for start="paired" and a batch of 16, got 16',
    ),
    "a batch of one": (
        {"fidelity": FidelityLoss(start="noised"), "batch_size": 1},
        "subset must leave samples to compare with",
    ),
    "chains": ({"fidelity": FidelityLoss(start="paired", chains=2)}, "chains must be 1"),
    "inverted": ({"fidelity": FidelityLoss(start="inverted", eta=1.0)}, "must be deterministic"),
    "plan of another": (
        {"fidelity": FidelityLoss(fs.ddim(NoiseSchedule.cosine(), GRID))},
        "steps must fit the model's schedule NoiseSchedule.linear",
    ),
    "schedule": (
        {"loss": DiffusionLoss(NoiseSchedule.cosine(), kind="simple", variance="small")},
        "model must have the loss's schedule",
    ),
    "prediction": (
        {"loss": DiffusionLoss(LINEAR, kind="simple", variance="small", prediction="v")},
        "model must have the loss's prediction 'v', got 'epsilon'",
    ),
    "learned schedule": ({"loss": VDMLoss()}, "VDMLoss: denoiser must have"),
    "plan that stays": (
        {
            "model": LEARNING,
            "loss": VDMLoss.of(LEARNING),
            "fidelity": FidelityLoss(fs.ddim(LEARNING.schedule, fs.Grid([1.0, 0.5, 0.0]))),
        },
        "fidelity must not have a Plan with VDMLoss, whose schedule moves away",
    ),
    "precision": ({"precision": "float32"}, "\"bfloat16\" or None, got 'float32'"),
}


@pytest.mark.parametrize("with_term", [False, True])
@pytest.mark.parametrize("name", EARLY)
def test_refused_before_anything_is_written(tmp_path, name, with_term):
    options, message = EARLY[name]
    if with_term and name != "plan that stays":
        options = {"fidelity": fidelity(), **options}
    with pytest.raises(ValueError, match=message):
        trainer(folder=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_combinations_without_meaning():
    with pytest.raises(ValueError, match="steps must be an unguided Plan, got a guided one"):
        FidelityLoss(PLAN.with_guidance(2.0))
    with pytest.raises(ValueError, match='method must not be "fastdpm" with start="noised"'):
        FidelityLoss(5, method="fastdpm", start="noised")


# ---- what sets are held to


@pytest.mark.parametrize("start", ["prior", "paired", "noised", "inverted"])
def test_sets_from_x0_are_compared_with_the_others(start):
    model, labels = tiny(torch.float64, labels=5), torch.arange(12) % 5
    seen = []

    def features(x, y):
        seen.append((len(x), y.tolist()))
        return x

    for subset in (None, 4):
        loss = FidelityLoss(4, start=start, subset=subset, features=features)
        result = loss(model, DATA, cond={"y": labels}, iteration=1)
        count = 4 if subset else 12 if start == "prior" else 6
        first = 0 if start == "prior" else count
        assert len(result.samples) == count
        assert torch.equal(result.data, DATA[first:])
        assert seen[-2:] == [
            (count, labels[:count].tolist()),
            (12 - first, labels[first:].tolist()),
        ]
        expected = distances.energy_distance(result.samples, DATA[first:])
        torch.testing.assert_close(result.loss.detach(), expected)


def test_pairs_take_the_whole_batch():
    model = tiny(torch.float64)
    for options in ({"distance": "mse"}, {"distance": "huber"}, {"chains": 2, "eta": 1.0}):
        result = FidelityLoss(3, start="paired", **options)(model, DATA)
        assert torch.equal(result.data, DATA)
        assert len(result.samples) == 12 * options.get("chains", 1)
    # Chains of another distance are a set.
    result = FidelityLoss(3, start="paired", chains=2, eta=1.0, distance="mmd")(model, DATA)
    assert (len(result.samples), len(result.data)) == (12, 6)


@pytest.mark.parametrize("distance", ["energy", "mmd", "sliced_wasserstein"])
@pytest.mark.parametrize("start", ["paired", "noised", "inverted"])
def test_copies_are_no_better_than_other_samples(distance, start):
    """Held to a set with their own x0 in it, copies scored 0.11 below the truth."""
    memory = []
    model = fs.Denoiser(lambda x, t: memory[-1], LINEAR, (2,), prediction="x0")
    loss = FidelityLoss(3, start=start, distance=distance)
    gains = []
    for i in range(150):
        x0, scores = points(16, seed=i, dtype=torch.float64), []
        for known in (x0[:8], points(8, seed=1000 + i, dtype=torch.float64)):
            memory.append(known)
            result = loss(model, x0, iteration=i)
            torch.testing.assert_close(result.samples, known)
            scores.append(float(result.loss))
        gains.append(scores[1] - scores[0])
    assert np.mean(gains) < 3 * np.std(gains) / math.sqrt(len(gains))


def test_one_sample_is_no_set():
    with pytest.raises(ValueError, match="subset must be at least 2 to compare sets, got 1"):
        FidelityLoss(3).check(tiny(), 1)
    FidelityLoss(3, distance="mse", start="paired").check(tiny(), 1)


def test_a_run_with_other_features_is_another_run():
    def doubled(x):
        return 2.0 * x.flatten(1)

    texts = [repr(FidelityLoss(3, features=seen)) for seen in (None, doubled, torch.nn.Flatten())]
    assert len(set(texts)) == 3
    assert texts[1].endswith("doubled')")
    assert texts[2].endswith("features='Flatten')")
