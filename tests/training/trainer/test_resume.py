"""Runs that were stopped, killed or damaged go on as if nothing had happened, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import fastsample as fs
from fastsample.bundled.datasets import swirl_data
from fastsample.bundled.swirl import SwirlNet
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.training import DiffusionLoss, FidelityTerm, Optimizer, VDMLoss
from fastsample.training.trainer import checkpoints
from tests.helpers.networks import LINEAR
from tests.helpers.training_cases import (
    Sometimes,
    Tiny,
    assert_same_run,
    fidelity,
    lines,
    points,
    state,
    tiny,
    trainer,
)

# A worker is forked, which Python 3.12 and later find worth a warning.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class Labelled(Dataset):
    """Points with a label each, as mappings."""

    def __init__(self) -> None:
        self.x0 = points(40)

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return {"x0": self.x0[i], "y": i % 5}


def swirled(**options):
    data = swirl_data(64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = fs.Denoiser(SwirlNet(8), NoiseSchedule.vdm(), (2,), time="log_snr")
    loss = VDMLoss.of(model, levels=data.levels)
    term = fidelity(gradient="jacobian_free", method="shortcut")
    return trainer(model, data.x0, loss=loss, fidelity=term, **options)


def labelled(**options):
    return trainer(tiny(labels=6), Labelled(), cond_dropout=0.3, fidelity=fidelity(), **options)


def made_by(make):
    return Optimizer(lr=1e-3, make=make)


RUNS = {
    "plain": trainer,
    "dropout": lambda **o: trainer(tiny(dropout=0.5), accumulation=3, **o),
    "conditions": lambda **o: trainer(
        tiny(labels=6), cond={"y": torch.arange(64) % 5}, cond_dropout=0.5, **o
    ),
    "summed": lambda **o: trainer(
        fidelity=fidelity(eta=1.0), optimizer=Optimizer(lr=1e-3, warmup=4, decay=9), **o
    ),
    "separate": lambda **o: trainer(
        tiny(dropout=0.2),
        fidelity=FidelityTerm(
            fidelity(steps=(2, 4), grid="random", method="ancestral", subset=8), lr=1e-3, every=2
        ),
        optimizer=Optimizer(lr=1e-3, weight_decay=0.1),
        **o,
    ),
    "vdm": swirled,
    "items": lambda **o: labelled(workers=0, **o),
    "worker": lambda **o: labelled(workers=1, **o),
    "bfloat16": lambda **o: trainer(precision="bfloat16", fidelity=fidelity(), **o),
    "momentum": lambda **o: trainer(
        optimizer=made_by(lambda p, lr: torch.optim.SGD(p, lr, 0.9)), **o
    ),
    "adagrad": lambda **o: trainer(optimizer=made_by(torch.optim.Adagrad), **o),
}
if hasattr(torch.optim, "Adafactor"):  # moments of other shapes than their parameters
    RUNS["adafactor"] = lambda **o: trainer(optimizer=made_by(torch.optim.Adafactor), **o)


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, name):
    whole = RUNS[name](folder=tmp_path / "whole")
    whole.run(7)
    for last in (3, 4, 7):
        part = RUNS[name](folder=tmp_path / "parts", resume=True)
        part.run(last)
    assert part.history[0]["iteration"] == 4
    assert_same_run(part, whole)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert len(lines(tmp_path / "parts")) == 7
    files = [
        sorted(p.name for p in (tmp_path / n).glob("*-000000007*")) for n in ("parts", "whole")
    ]
    assert files[0] == files[1]
    for file in files[0]:
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_going_on_without_a_file_is_the_same_too():
    whole, steps = trainer(fidelity=fidelity()), trainer(fidelity=fidelity())
    whole.run(5)
    for n in range(6):
        steps.run(n)
    assert_same_run(steps, whole)


def test_tied_weights_are_saved(tmp_path):
    class Tied(Tiny):
        def __init__(self) -> None:
            super().__init__(size=2, width=3)
            self.second = nn.Linear(3, 3)
            self.second.weight = self.first.weight = nn.Parameter(torch.eye(3))

        def forward(self, x, t, y=None):
            return super().forward(x, t)[:, :2]

    def run(last):
        model = fs.Denoiser(Tied(), LINEAR, (2,))
        result = trainer(model, folder=tmp_path, resume=True)
        result.run(last)
        return result

    torch.manual_seed(0)
    run(2)
    again = run(2)
    assert again.network.first.weight is again.network.second.weight
    assert state(run(4))["optimizer.0.step"] == 4


# ---- kills and interrupts

KILLED = """
import os, random, signal, sys, time
import torch, torch._dynamo  # before the forks: an optimiser imports it, which takes a second
torch.set_num_threads(1)
from fastsample.training import FidelityTerm
from tests.helpers.training_cases import fidelity, trainer

def work():
    options = {"folder": sys.argv[1], "resume": True, "save_every": 1}
    term = FidelityTerm(fidelity(eta=1.0), lr=1e-3)
    trainer(fidelity=term, **options).run(10**6)

# The kills are counted, not the iterations: how many of these fit in is the machine's affair.
chance = random.Random(1)
for kill in range(8):
    child = os.fork()
    if not child:
        work()
        os._exit(1)
    time.sleep(chance.uniform(0.02, 0.25) * (1 + kill / 10))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the run ended by itself"
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_run_killed_again_and_again(tmp_path):
    """At moments that nobody chose, some of them within a write."""
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env=here,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    term = FidelityTerm(fidelity(eta=1.0), lr=1e-3)
    part = trainer(fidelity=term, folder=tmp_path, resume=True)
    last = part.iteration + 3
    part.run(last)
    whole = trainer(fidelity=term)
    whole.run(last)
    assert_same_run(part, whole)
    assert lines(tmp_path) == json.loads(json.dumps(whole.history))


class Interrupting(DiffusionLoss):
    """Somebody presses Ctrl-C, or ends the process, while the loss is made."""

    def __init__(self, number, times=1, number_of_signal=signal.SIGINT) -> None:
        super().__init__(LINEAR, kind="simple", variance="small")
        self.number, self.presses, self.calls, self.signal = number, times, 0, number_of_signal

    def __call__(self, *args, **options):
        self.calls += 1
        if self.calls == self.number:
            for _ in range(self.presses):
                signal.raise_signal(self.signal)
        return super().__call__(*args, **options)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_an_interrupt_waits_for_the_iteration_and_saves(tmp_path, number, error):
    before = signal.getsignal(number)
    run = trainer(
        loss=Interrupting(3, number_of_signal=number), fidelity=fidelity(), folder=tmp_path
    )
    with pytest.raises(error) as stopped:
        run.run(6)
    if number == signal.SIGTERM:
        assert stopped.value.code == 143
    assert signal.getsignal(number) is before
    assert run.iteration == 3
    assert run.network.training  # as it was
    assert len(lines(tmp_path)) == 3
    part = trainer(loss=Interrupting(0), fidelity=fidelity(), folder=tmp_path, resume=True)
    assert part.iteration == 3
    part.run(6)
    run.run(6)  # the same object may go on as well
    whole = trainer(fidelity=fidelity())
    whole.run(6)
    assert_same_run(part, whole)
    assert_same_run(run, whole)


def test_a_second_interrupt_does_not_wait(tmp_path):
    run = trainer(loss=Interrupting(3, times=2), folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.run(6)
    assert run.iteration == 2
    assert list(tmp_path.glob("*.safetensors")) == []


def test_twenty_gradients_in_a_row_that_are_not_finite(tmp_path):
    """The weights are the last good ones, on disk too; and it is counted across resumptions."""
    good = trainer()
    good.run(2)
    options = {"folder": tmp_path, "resume": True, "save_every": 7}
    run = trainer(loss=Sometimes(range(2, 99)), **options)
    with pytest.warns(UserWarning, match="diffusion loss was not finite in iteration 2;") as caught:
        run.run(14)
    assert len(caught) == 1
    run = trainer(loss=Sometimes(range(99)), **options)
    assert run.record.failures == {"diffusion loss": 12, "fidelity loss": 0}
    message = r"Trainer: the gradient of the diffusion loss must be finite, got none .* 20 "
    with pytest.raises(RuntimeError, match=message):
        run.run(50)
    assert run.iteration == 22
    result = checkpoints.newest(tmp_path)
    assert (result.iteration, result.notes["failures"]) == (22, run.record.failures)
    assert run.record.failures["diffusion loss"] == 20
    for name, value in state(good).items():
        assert torch.equal(result.tensors[name], value)
        assert torch.equal(state(run)[name], value)
    assert [line["skipped"] for line in lines(tmp_path)] == [False] * 2 + [True] * 20
    mended = trainer(loss=Sometimes({}), **options)
    mended.run(24)
    assert mended.record.failures["diffusion loss"] == 0
