"""Training under torch.distributed: two processes take the steps of one."""

from __future__ import annotations

import math
import os
import signal
import sys

import pytest
import torch

import fastsample as fs
from fastsample.bundled.swirl import SwirlNet
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.training import DiffusionLoss, FidelityLoss, FidelityTerm, VDMLoss
from fastsample.training.fidelity.chain import run_chain
from tests.helpers.networks import LINEAR
from tests.helpers.processes import meeting
from tests.helpers.training_cases import fidelity, lines, points, state, tiny, trainer

pytestmark = pytest.mark.slow

DATA = points(64, dtype=torch.float64)
LABELS = torch.arange(64) % 5
PAIRED = {"start": "paired", "subset": 8}
TERMS = {
    "energy": {},
    "random times": {"steps": (2, 4), "grid": "random", "eta": 1.0},
    "mmd": {"distance": "mmd", "subset": 8},
    "sliced": {"distance": "sliced_wasserstein"},
    "mse": {"distance": "mse", **PAIRED},
    "score": {"chains": 2, "eta": 1.0, **PAIRED},
}


def spare(*arguments):
    """A model whose embedding no output depends on, since nobody gives labels."""
    return tiny(*arguments, labels=6)


def vdm(lr=None, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SwirlNet(6).double()
    model = fs.Denoiser(network, NoiseSchedule.vdm(), (2,), time="log_snr")
    term = fidelity(gradient="jacobian_free", clip=None)
    return trainer(
        model, DATA, loss=VDMLoss.of(model), fidelity=FidelityTerm(term, lr=lr), **options
    )


RUNS = {
    "simple": lambda **o: trainer(tiny(torch.float64), DATA, **o),
    "parts": lambda **o: trainer(
        tiny(torch.float64), DATA, accumulation=2, fidelity=fidelity(), **o
    ),
    "labels": lambda **o: trainer(
        tiny(torch.float64, labels=6),
        DATA,
        cond={"y": LABELS},
        cond_dropout=0.3,
        fidelity=FidelityTerm(fidelity(subset=8, checkpoint=True), lr=1e-3),
        **o,
    ),
    "spare": lambda **o: trainer(spare(torch.float64), DATA, find_unused_parameters=True, **o),
    "spare twice": lambda **o: trainer(
        spare(torch.float64),
        DATA,
        find_unused_parameters=True,
        fidelity=FidelityTerm(fidelity(), lr=1e-3),
        **o,
    ),
    "float32": lambda **o: trainer(tiny(), DATA.float(), fidelity=fidelity(), **o),
    "vdm": vdm,
    "vdm apart": lambda **o: vdm(lr=1e-3, **o),
    **{
        name: lambda term=term, **o: trainer(
            tiny(torch.float64), DATA, fidelity=fidelity(**term), **o
        )
        for name, term in TERMS.items()
    },
}


def outcome(run):
    """Weights, average, moments, lines and detector after 3 iterations."""
    run.run(3)
    return {"state": state(run), "lines": run.history, "detector": run.record.detector.state()}


class Pressed(DiffusionLoss):
    """Ctrl-C reaches the second process only, in its third iteration."""

    def __init__(self, rank) -> None:
        super().__init__(LINEAR, kind="simple", variance="small")
        self.rank, self.calls = rank, 0

    def __call__(self, *args, **options):
        self.calls += 1
        if self.rank == 1 and self.calls == 3:
            signal.raise_signal(signal.SIGINT)
        return super().__call__(*args, **options)


def refusal(call):
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return str(error)
    return None


def work(rank, folder):
    """One process: all runs, because starting it is what takes the time."""
    with meeting(rank, folder):
        results = {name: outcome(make()) for name, make in RUNS.items()}
        both = os.path.join(folder, "both")
        for last in (2, 3):
            run = trainer(fidelity=fidelity(), folder=both, resume=True)
            run.run(last)
        stopped = trainer(loss=Pressed(rank), folder=os.path.join(folder, "stopped"))
        try:
            stopped.run(6)
        except KeyboardInterrupt:
            results["stopped"] = stopped.iteration
        own = os.path.join(folder, "own", str(rank))
        trainer(loss=Pressed(-1), folder=own).save()
        results["batch"] = refusal(lambda: trainer(batch_size=15))
        results["subset"] = refusal(lambda: trainer(fidelity=fidelity(subset=7)).run(1))
        results["data"] = refusal(lambda: trainer(data=points(60 + rank)))
        results["spare layer"] = refusal(lambda: trainer(spare()).run(3))
        drawn = []
        module = sys.modules["fastsample.training.fidelity.loss"]

        def watched(denoiser, plan, start, **options):
            drawn.append((plan.times.tolist(), options["index"].tolist(), start))
            return run_chain(denoiser, plan, start, **options)

        module.run_chain = watched
        FidelityLoss((2, 4), grid="random", clip=2.0)(tiny(), points(4), iteration=1)
        results["drawn"] = drawn
        torch.save(results, os.path.join(folder, f"results {rank}"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(work, (str(path),), nprocs=2)
    return path


@pytest.fixture(scope="module")
def results(folder):
    return [torch.load(folder / f"results {rank}", weights_only=False) for rank in (0, 1)]


def assert_close(one, other, tolerance):
    for name, value in one.items():
        if isinstance(value, dict):
            assert_close(value, other[name], tolerance)
        elif isinstance(value, (float, torch.Tensor)) and not (
            isinstance(value, float) and math.isnan(value)
        ):
            torch.testing.assert_close(
                torch.as_tensor(value),
                torch.as_tensor(other[name]),
                rtol=tolerance,
                atol=tolerance,
                msg=lambda text, name=name: f"{name}: {text}",
            )
        else:
            assert str(value) == str(other[name]), name


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_take_the_steps_of_one(results, name):
    """Loss, norms of the gradients, weights, moments and detector; times bit for bit."""
    alone = outcome(RUNS[name]())
    tolerance = {"float32": 2e-6, "vdm": 2e-6, "vdm apart": 2e-6}.get(name, 1e-11)
    for both in (results[0][name], results[1][name]):
        assert both["state"].keys() == alone["state"].keys()
        assert_close(both["state"], alone["state"], tolerance)
        assert_close(both["detector"], alone["detector"], max(tolerance, 1e-6))
        for one, other in zip(both["lines"], alone["lines"], strict=True):
            assert one.keys() == other.keys()
            assert one.get("times") == other.get("times")
            assert_close(one, other, 5e-5 if name == "float32" else max(tolerance, 1e-6))
            names = [n for n in ("loss", "norm", "fidelity", "fidelity_norm") if n in one]
            # Matrix products of half a batch may round otherwise than those of a whole one (MKL
            # chooses kernels by size), which the gradient through a chain of steps passes on.
            rounding = 5e-5 if name == "float32" else tolerance
            assert_close({n: one[n] for n in names}, other, rounding)
    # What both do at once they do alike to the last bit, or they would drift apart.
    mine, theirs = (both[name]["state"] for both in results)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_times_are_shared_and_noise_is_not(results):
    (one,), (other,) = (both["drawn"] for both in results)
    assert one[0] == other[0]
    assert (one[1], other[1]) == ([0, 2, 4, 6], [1, 3, 5, 7])
    assert len({tuple(row) for start in (one[2], other[2]) for row in start.tolist()}) == 8


def test_one_process_writes_and_all_of_them_resume(folder):
    whole = trainer(fidelity=fidelity())
    whole.run(3)
    assert [line["iteration"] for line in lines(folder / "both")] == [0, 1, 2]
    part = trainer(fidelity=fidelity(), folder=folder / "both", resume=True)
    assert part.iteration == 3
    assert_close(state(part), state(whole), 2e-6)


def test_an_interrupt_of_one_stops_all_at_the_same_iteration(results, folder):
    assert [both["stopped"] for both in results] == [3, 3]
    part = trainer(loss=Pressed(0), folder=folder / "stopped", resume=True)
    assert part.iteration == 3
    part.run(4)
    whole = trainer(loss=Pressed(0))
    whole.run(4)
    assert_close(state(part), state(whole), 2e-6)


def test_only_the_first_process_writes(folder):
    assert len(list((folder / "own" / "0").glob("*.safetensors"))) == 1
    assert not (folder / "own" / "1").exists()


def test_refusals(results):
    for both in results:
        assert "find_unused_parameters=True" in both["spare layer"]
        assert both["batch"] == (
            "Trainer: batch_size must be a multiple of the 2 processes, got 15"
        )
        assert both["subset"].startswith(
            "FidelityLoss: subset must be a multiple of the 2 processes and at most the batch of 16"
        )
        assert both["data"].startswith("Trainer: data must be the same in every process, got [60")
