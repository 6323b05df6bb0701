"""The collapse detector: what it measures, when it warns, that it resumes bit for bit."""

from __future__ import annotations

import itertools
import json
import math
import warnings

import numpy as np
import pytest
import torch

from fastsample.training.fidelity.collapse import CollapseDetector, CollapseWarning


def batches(scales, *, count: int = 64, size: int = 2, seed: int = 0):
    """Normal samples of the given standard deviations, each with a batch of data of sd 1."""
    generator = torch.Generator().manual_seed(seed)
    for scale in scales:
        both = torch.randn(2, count, size, generator=generator)
        yield scale * both[0], both[1]


def warned(scales, detector: CollapseDetector | None = None, **knobs: int) -> list[int]:
    """Numbers of the updates that warned."""
    detector = detector or CollapseDetector()
    result = []
    for i, (samples, data) in enumerate(batches(scales, **knobs)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            detector.update(samples, data)
        result += [i] * len(caught)
    return result


FALLING = np.concatenate([np.linspace(0.86, 0.8, 100), np.full(150, 0.8)])


# ---- when it warns


@pytest.mark.parametrize("scale", [1.0, 1.3])
@pytest.mark.parametrize("count", [8, 64])
def test_samples_as_wide_as_the_data_are_no_collapse(count: int, scale: float) -> None:
    """No false alarm in 10 runs of 300 updates each."""
    runs = [warned(np.full(300, scale), count=count, seed=seed) for seed in range(10)]
    assert runs == [[]] * 10


@pytest.mark.parametrize("seed", range(5))
def test_a_chain_that_starts_too_narrow_and_stays_is_no_collapse(seed: int) -> None:
    assert warned(np.full(300, 0.86), count=128, seed=seed) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_chain_that_narrows_is_one_collapse(seed: int) -> None:
    result = warned(FALLING, count=256, seed=seed)
    assert len(result) == 1
    assert 60 <= result[0] < 250


def test_most_narrowing_chains_are_seen_with_small_batches() -> None:
    runs = [warned(FALLING, count=64, seed=seed) for seed in range(20)]
    assert sum(map(bool, runs)) >= 15
    assert max(map(len, runs)) == 1


def test_a_deep_collapse_is_seen_soon() -> None:
    """The measured fall of a paired loss: .86 to .56 of the data."""
    scales = np.concatenate([np.full(20, 0.86), np.linspace(0.86, 0.56, 75)])
    (result,) = warned(scales)
    assert result < 75


def test_samples_that_were_too_wide_may_narrow_to_the_data() -> None:
    assert warned([1.5] * 40 + [1.02] * 200) == []


def test_a_sudden_collapse_to_a_point_is_seen() -> None:
    (result,) = warned([1.0] * 30 + [0.0] * 30)
    assert result < 40


def test_a_second_collapse_warns_again() -> None:
    scales = [1.0] * 40 + [0.6] * 100 + [1.0] * 150 + [0.6] * 100
    first, second = warned(scales, count=128)
    assert 40 <= first < 60
    assert 290 <= second < 310


def test_shorter_distances_alone_are_seen() -> None:
    """Equal standard deviation, shorter mean distance: 1 sample in 16 far out, the rest close."""
    detector, messages = CollapseDetector(), []
    generator = torch.Generator().manual_seed(0)
    for i in range(100):
        samples, data = torch.randn(2, 512, 2, generator=generator)
        if i >= 30:
            far = torch.rand(512, 1, generator=generator) < 1 / 16
            samples = 4 * samples * far
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = detector.update(samples, data)
        messages += [str(warning.message) for warning in caught]
    assert len(messages) == 1
    assert "got a mean pairwise distance that fell from 1.0" in messages[0]
    assert result["sd_ratio"] == pytest.approx(1.0, abs=0.05)
    assert result["diversity_ratio"] < 0.6


def test_the_message_says_what_from_what_to_what_and_the_remedy() -> None:
    detector = CollapseDetector()
    message = (
        r"CollapseDetector: samples must keep the spread of the data, got a standard deviation "
        r"that fell from 0\.\d\d to 0\.\d\d of the data's in \d+ updates; "
        r'use distance="energy", start="prior" or a lower learning rate'
    )
    pairs = list(batches(FALLING, count=256))
    with pytest.warns(CollapseWarning, match=message) as caught:
        _ = [detector.update(*pair) for pair in pairs]
    assert issubclass(CollapseWarning, UserWarning)
    assert caught[0].filename == __file__


def test_a_wild_first_batch_does_not_blind_the_detector() -> None:
    assert len(warned([1000.0] + [1.0] * 60 + [0.3] * 200)) == 1


# ---- what it measures


def test_ratios_are_those_of_a_loop() -> None:
    """Weights 1 - 1/memory per update, ten times the memory for the data."""
    detector, memory = CollapseDetector(memory=4), 4
    seen = []
    for i, (x, y) in enumerate(batches([1.0, 0.7, 1.3, 1.1, 0.9, 1.0], count=5, size=3)):
        result = detector.update(x.reshape(5, 1, 3), y.reshape(5, 1, 3))
        rows = []
        for points in (x.double().numpy(), y.double().numpy()):
            sd = math.sqrt(points.var(axis=0, ddof=1).mean())
            pairs = itertools.combinations(points, 2)
            rows.append((sd, np.mean([np.linalg.norm(a - b) for a, b in pairs])))
        seen.append(rows)
        values = np.array(seen)  # (update, set, statistic)
        age = np.arange(i, -1, -1)[:, None]
        fast, slow = (1 - 1 / memory) ** age, (1 - 1 / (10 * memory)) ** age
        levels = (fast * values[:, 0]).sum(0) / fast.sum()
        known = (slow * values[:, 1]).sum(0) / slow.sum()
        assert result["sd_ratio"] == pytest.approx(levels[0] / known[0], rel=1e-5)
        assert result["diversity_ratio"] == pytest.approx(levels[1] / known[1], rel=1e-5)


def test_noise_of_the_start_is_its_standard_error() -> None:
    """Margin: the error of a smoothed level against the start's, as measured over many runs."""
    memory, runs = 5, 4000
    generator = np.random.default_rng(0)
    values = 1 + 0.1 * generator.standard_normal((runs, 80))
    decay = 1 - 1 / memory

    def smoothed(part: np.ndarray) -> np.ndarray:
        weights = decay ** np.arange(part.shape[1] - 1, -1, -1)
        return part @ weights / weights.sum()

    error = (smoothed(values) - smoothed(values[:, :memory])).std()
    margins = []
    for row in values[:400]:
        detector = CollapseDetector(memory=memory)
        track = detector._tracks["sd"]
        for i, value in enumerate(row[:memory]):
            track.add(float(value), 1.0, i + 1, memory)
        margins.append(track.margin**2)
    # Scatter around an average of few values is below the true one by their effective number.
    share = (1 - decay) / (1 + decay) * (1 + decay**memory) / (1 - decay**memory)
    assert math.sqrt(np.mean(margins) / (1 - share)) == pytest.approx(error, rel=0.05)


def test_images_and_unequal_counts() -> None:
    detector = CollapseDetector()
    result = detector.update(torch.randn(40, 3, 8, 8).bfloat16(), torch.randn(64, 3, 8, 8))
    assert result["sd_ratio"] == pytest.approx(1, abs=0.1)
    assert result["diversity_ratio"] == pytest.approx(1, abs=0.1)
    assert result["collapsed"] == result["ignored"] == 0


def test_no_graph_is_kept() -> None:
    x = torch.randn(8, 2, requires_grad=True)
    assert all(type(v) is float for v in CollapseDetector().update(x, torch.randn(8, 2)).values())


# ---- samples that are not finite


def test_samples_that_are_not_finite_are_left_out() -> None:
    one, other = CollapseDetector(), CollapseDetector()
    for samples, data in batches([1.0] * 5):
        broken = torch.cat([samples, torch.tensor([[math.nan, 0.0], [0.0, math.inf]])])
        got, expected = one.update(broken, data), other.update(samples, data)
        assert {**got, "ignored": 0.0} == expected
    assert got["ignored"] == 10


@pytest.mark.parametrize("value", [math.nan, 1e30])
def test_a_batch_without_a_finite_spread_changes_nothing(value: float) -> None:
    detector = CollapseDetector()
    (first, data), (second, other) = batches([1.0, 1.0], count=8)
    assert math.isnan(detector.update(value * first, data)["sd_ratio"])
    before = detector.update(first, data)
    after = detector.update(value * second, other)
    assert {**after, "ignored": before["ignored"]} == before
    assert after["ignored"] == 16


# ---- resuming


@pytest.mark.parametrize("cut", [0, 7, 60, 140])
def test_a_resumed_run_goes_on_bit_for_bit(cut: int) -> None:
    scales = [1.0] * 40 + [0.6] * 120
    whole, resumed = CollapseDetector(), CollapseDetector()
    together = list(batches(scales))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        expected = [whole.update(*pair) for pair in together]
        got = [resumed.update(*pair) for pair in together[:cut]]
        saved = json.loads(json.dumps(resumed.state(), allow_nan=False))
        resumed = CollapseDetector()
        resumed.load_state(saved)
        got += [resumed.update(*pair) for pair in together[cut:]]
    assert got == expected
    assert resumed.state() == whole.state()
    assert len(caught) == 2  # one each


def test_a_state_is_a_copy() -> None:
    detector = CollapseDetector()
    before = detector.state()
    (pair,) = batches([1.0])
    detector.update(*pair)
    assert before == CollapseDetector().state() != detector.state()


# ---- errors


def test_a_collapse_that_is_made_an_error_is_raised_once() -> None:
    detector = CollapseDetector()
    raised = 0
    for pair in batches([1.0] * 30 + [0.3] * 60):
        try:
            detector.update(*pair)
        except CollapseWarning:
            raised += 1
    assert raised == 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: CollapseDetector(tolerance=1.5), ValueError, r"tolerance must be in \[0, 1\]"),
        (lambda: CollapseDetector(memory=1), ValueError, "memory must be at least 2, got 1"),
        (lambda: CollapseDetector(memory=2.5), TypeError, "memory must be an integer, got 2.5"),
        (
            lambda: CollapseDetector().update(torch.zeros(1, 2), torch.randn(4, 2)),
            ValueError,
            r"update: samples must hold at least 2 samples, got shape \(1, 2\)",
        ),
        (
            lambda: CollapseDetector().update(torch.randn(4, 2), torch.full((4, 2), 0.1)),
            ValueError,
            "update: data must vary over the batch, got the same sample 4 times",
        ),
        (
            lambda: CollapseDetector().update(torch.randn(4, 2), torch.randn(4, 3)),
            ValueError,
            r"update: data must have the sample shape of samples \(2,\), got \(3,\)",
        ),
        (
            lambda: CollapseDetector().load_state({"updates": 3}),
            ValueError,
            r"load_state: state must have the entries of state\(\), got \{'updates': 3\}",
        ),
        (
            lambda: CollapseDetector().load_state({**CollapseDetector().state(), "sd": {"a": 1}}),
            ValueError,
            "load_state: state must have the entries of state",
        ),
    ],
)
def test_errors(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
