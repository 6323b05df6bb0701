"""Profiles saved while they are measured: interruptions cost one batch, other runs are refused."""

from __future__ import annotations

import pytest
import torch

import fastsample as fs
from fastsample.profiling import measure as measuring
from fastsample.profiling import resume
from tests.helpers.networks import Spy, denoiser, halve
from tests.helpers.profile_cases import TIMES, assert_same, levels
from tests.helpers.refusals import check_refusal

DATA = levels(23, 3)
RUN = {"times": TIMES, "batch_size": 4, "trajectories": 9}


def measure(network=halve, data=DATA, **changes):
    return fs.profile(denoiser(network, 3), data, **{**RUN, **changes})


class Interrupted:
    """Raises in the n-th call."""

    def __init__(self, call: int, error: type[BaseException]) -> None:
        self.left, self.error = call, error

    def __call__(self, x, t):
        self.left -= 1
        if self.left == 0:
            raise self.error("stop")
        return halve(x, t)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize(
    ("call", "done", "left"),
    [
        # The first call of every run finds out whose file it is.
        (2, 0, 6 * 5 + 3 * 5),
        (11, 0, 6 * 5 + 3 * 5),  # the last trajectory call of the first batch
        (12, 4, 5 * 5 + 2 * 5),
        (39, 16, 2 * 5),  # three batches with trajectories (8, 9: one only), one without
        (46, 20, 5),
    ],
)
def test_an_interruption_costs_one_batch(tmp_path, error, call, done, left):
    path = tmp_path / "profile"
    with pytest.raises(error, match="stop"):
        measure(Interrupted(call, error), save=path)
    assert fs.Profile.load(path).count == done
    spy = Spy(halve)
    assert_same(measure(spy, save=path), measure(), tolerance=0.0)
    assert len(spy) == left + 1
    assert_same(fs.Profile.load(path), measure(), tolerance=0.0)


def test_a_finished_run_measures_nothing(tmp_path):
    spy, path = Spy(halve), tmp_path / "profile"
    measure(save=path)
    before = path.read_bytes()
    assert_same(measure(spy, save=path), measure(), tolerance=0.0)
    assert (len(spy), path.read_bytes()) == (1, before)


@pytest.mark.parametrize("size", [1, 3, 5, 64])
def test_resuming_in_other_batches_and_with_more_data(tmp_path, size):
    """8 samples of the file end within a batch of the second run."""
    path = tmp_path / "profile"
    measure(data=DATA[:8], save=path)
    data = iter(DATA.split(5)) if size == 5 else DATA
    resumed = measure(data=data, batch_size=size, save=path)
    assert_same(resumed, measure())


def test_resuming_with_conditions_and_an_index(tmp_path):
    def network(x, t, y):
        return halve(x, t) + 0.25 * y[:, None]

    y = torch.arange(23.0) / 23
    path = tmp_path / "profile"
    measure(network, DATA[:8], save=path, sample_index=5, cond={"y": y[:8]})
    run = {"sample_index": 5, "cond": {"y": y}}
    assert_same(measure(network, save=path, **run), measure(network, **run))


def resumed(first, **second):
    """A run into the file of another one."""

    def call(path):
        measure(**{"save": path, **first})
        return measure(**{"save": path, **second})

    return call


OTHER_RUNS = {
    "seed": (
        resumed({}, seed=1),
        r"profile: save must be a file of the same run, got .*settings must be .*seed=1.* got",
    ),
    "clip": (resumed({}, clip=1.0), "file of the same run, got .*settings must be"),
    "bin_width": (resumed({}, bin_width=0.5), "file of the same run, got .*settings must be"),
    "times": (resumed({}, times=[3, 4]), "file of the same run, got .*times must be the same 2"),
    "shape": (resumed({"data": DATA}, data=levels(4, 3), times=[1]), "times must be the same 1"),
    "no trajectories": (
        resumed({}, trajectories=0),
        "profile: trajectories must be as in .*, which has 9 for its 23 samples, got 0",
    ),
    "more trajectories": (
        resumed({}, trajectories=12),
        "trajectories must be as in .*, which has 9 for its 23 samples, got 12",
    ),
    "less data": (
        resumed({}, data=DATA[:9]),
        "profile: data must hold the 23 samples that the file already counts, got 9",
    ),
    "no data": (resumed({}, data=[]), "data must hold at least one sample, got none"),
    "other data": (resumed({}, data=DATA.flip(0)), "file of the same data, got .*; remove it"),
    "sample_index": (
        resumed({}, sample_index=3),
        "file of the same sample_index, got .* of 0 for 3; remove it to begin again",
    ),
    "model": (
        resumed({}, network=lambda x, t: 0.55 * x),
        "file of the same model, got .*; remove it to begin again",
    ),
    "an unwritable place": (
        lambda path: measure(save="/proc/nowhere/profile"),
        "profile: save must be writable, got /proc/nowhere/profile",
    ),
    "no profile": (
        lambda path: (path.write_text("text"), measure(save=path)),
        "profile: save must be a file of the same run, got .*no|profile",
    ),
}


@pytest.mark.parametrize("name", OTHER_RUNS)
def test_a_file_of_another_run(tmp_path, name):
    call, match = OTHER_RUNS[name]
    check_refusal(lambda: call(tmp_path / "profile"), ValueError, match)


def test_more_trajectories_than_samples_may_grow(tmp_path):
    """The file has a trajectory for each of its samples, so that any larger number goes on."""
    path = tmp_path / "profile"
    measure(data=DATA[:8], trajectories=9, save=path)
    assert_same(measure(trajectories=20, save=path), measure(trajectories=20))


@pytest.mark.parametrize("named", [True, False], ids=["named", "not named"])
def test_a_file_with_noise_of_another_version(tmp_path, monkeypatch, named):
    path = tmp_path / "profile"
    with monkeypatch.context() as patch:
        patch.setattr(resume, "NOISE_VERSION", 1)
        if not named:  # as files of version 1 were
            original = resume.run_origin

            def run_origin(*arguments, **options):
                found = original(*arguments, **options)
                del found["noise"]
                return found

            patch.setattr(measuring, "run_origin", run_origin)
        measure(data=DATA[:8], save=path)
    before = path.read_bytes()
    check_refusal(
        lambda: measure(save=path),
        ValueError,
        r"profile: save must be a file with noise of version 2, got .* with version 1, of an",
    )
    assert path.read_bytes() == before
    path.unlink()
    assert_same(measure(save=path), measure())
