"""Training where numbers are not finite, in lower precision, and when samples lose spread."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

import fastsample as fs
from fastsample.training import CollapseWarning, FidelityTerm, Optimizer
from tests.helpers.networks import LINEAR
from tests.helpers.training_cases import (
    Sometimes,
    Tiny,
    fidelity,
    points,
    state,
    trainer,
    unsaturated,
    weights,
)

NOT_FINITE = r"gradient of the diffusion loss was not finite in iteration [14]; it is left out"

# ---- what is not finite


def test_an_iteration_that_is_not_finite_is_skipped():
    run = trainer(loss=Sometimes({1, 2, 4}), fidelity=FidelityTerm(fidelity(), lr=1e-3))
    states = [state(run)]
    for n in range(6):
        # One warning per row of failures.
        warns = pytest.warns(UserWarning, match=NOT_FINITE) if n in (1, 4) else nullcontext()
        with warns:
            run.run(n + 1)
        states.append(state(run))
    assert [line["skipped"] for line in run.history] == [False, True, True, False, True, False]
    for line, (old, new) in zip(run.history, itertools.pairwise(states), strict=True):
        same = old.keys() == new.keys() and all(torch.equal(new[name], old[name]) for name in old)
        assert same == line["skipped"]
        assert math.isnan(line["norm"]) == math.isnan(line["loss"]) == line["skipped"]
    assert weights(run).isfinite().all()


class Fragile(Tiny):
    """NaN in evaluation mode in the chains of these numbers, of three calls each."""

    def __init__(self, bad) -> None:
        super().__init__()
        self.bad, self.chained = bad, 0

    def forward(self, x, t, y=None):
        out = super().forward(x, t, y)
        if self.training:
            return out
        self.chained += 1
        return out * float("nan") if (self.chained - 1) // 3 in self.bad else out


@pytest.mark.parametrize("rate", [None, 1e-3])
def test_a_chain_that_is_not_finite_loses_its_term_alone(rate):
    fragile = trainer(
        fs.Denoiser(Fragile({0}), LINEAR, (2,)), fidelity=FidelityTerm(fidelity(), lr=rate)
    )
    plain = trainer()
    with pytest.warns(UserWarning, match="of the fidelity loss was not finite in iteration 0"):
        fragile.run(1)
    plain.run(1)
    line = fragile.history[0]
    assert (line["skipped"], line["fidelity_skipped"], line["ignored"]) == (False, True, 16.0)
    assert fragile.record.failures == {"diffusion loss": 0, "fidelity loss": 1}
    assert math.isnan(line["fidelity"])
    assert math.isnan(line["fidelity_norm"])
    assert torch.equal(weights(fragile), weights(plain))
    fragile.run(3)
    assert weights(fragile).isfinite().all()
    assert math.isfinite(fragile.history[-1]["fidelity"])
    assert [line["fidelity_skipped"] for line in fragile.history] == [True, False, False]
    assert fragile.record.failures["fidelity loss"] == 0
    assert fragile.history[-1]["ignored"] == 16.0


@pytest.mark.parametrize("every", [1, 2])
def test_twenty_chains_in_a_row_that_are_not_finite(tmp_path, every):
    """The main loss's steps are made meanwhile; whoever goes on begins with a warning anew."""
    options = {"fidelity": FidelityTerm(fidelity(), every=every)}
    model = fs.Denoiser(Fragile(range(99)), LINEAR, (2,))
    run = trainer(model, folder=tmp_path, **options)
    message = "Trainer: the gradient of the fidelity loss must be finite, got none .* in 20 iter"
    with (
        pytest.warns(UserWarning, match="fidelity loss was not finite in iteration 0;") as caught,
        pytest.raises(RuntimeError, match=message),
    ):
        run.run(60)
    assert len(caught) == 1
    assert run.iteration == 19 * every + 1
    plain = trainer()
    plain.run(run.iteration)
    assert torch.equal(weights(run), weights(plain))
    resumed = trainer(folder=tmp_path, resume=True, **options)
    assert resumed.record.failures == {"diffusion loss": 0, "fidelity loss": 20}
    resumed.run(run.iteration + 2)
    assert resumed.record.failures["fidelity loss"] == 0


def test_a_term_that_is_not_finite_beside_a_loss_that_is_not():
    run = trainer(
        fs.Denoiser(Fragile({1}), LINEAR, (2,)), fidelity=fidelity(), loss=Sometimes({1, 2})
    )
    with pytest.warns(UserWarning, match="not finite in iteration 1") as caught:
        run.run(4)
    assert len(caught) == 2
    assert [line["skipped"] for line in run.history] == [False, True, True, False]
    assert [line["fidelity_skipped"] for line in run.history] == [False, True, True, False]


# ---- precision


def test_bfloat16_is_the_network_s_alone():
    runs = [trainer(fidelity=unsaturated(), precision=p) for p in (None, "bfloat16")]
    outputs = []
    hook = runs[1].network.second.register_forward_hook(lambda *call: outputs.append(call[2].dtype))
    samples = (
        runs[1]._run_chain(runs[1].fidelity.loss, next(runs[1].batches.starting_at(0))).samples
    )
    assert samples.dtype == torch.float32
    assert not torch.equal(samples, samples.bfloat16().float())
    for run in runs:
        run.run(1)
    hook.remove()
    assert set(outputs) == {torch.bfloat16}
    wide, narrow = (run.history[0] for run in runs)
    for name in ("loss", "norm", "fidelity", "fidelity_norm"):
        assert narrow[name] == pytest.approx(wide[name], rel=0.05)
        assert narrow[name] != wide[name]
    runs[1].run(20)
    assert {p.dtype for p in runs[1].network.parameters()} == {torch.float32}
    assert weights(runs[1]).isfinite().all()
    assert runs[1].averaged.model is not runs[1].network
    assert type(runs[1].averaged.model) is Tiny


def test_collapse_warns_with_the_line_of_the_iteration():
    run = trainer(fidelity=fidelity(), optimizer=Optimizer(lr=1e-12))
    run.run(25)
    run.network.second.weight.data.zero_()
    run.network.second.bias.data.zero_()
    loss = run.fidelity.loss
    loss.plans = replace(loss.plans, clip=(-0.01, 0.01))
    with pytest.warns(CollapseWarning, match="samples must keep the spread"):
        run.run(45)
    assert run.history[-1]["collapsed"] == 1.0


def test_a_single_sample_has_no_spread_to_lose():
    term = fidelity(distance="mse", start="paired", subset=1)
    run = trainer(data=points(1), fidelity=term, batch_size=1)
    run.run(2)
    assert "sd_ratio" not in run.history[0]


def test_copies_of_a_sample_have_no_spread_to_lose():
    run = trainer(data=points(1).expand(16, 2).clone(), fidelity=fidelity())
    run.run(3)
    for line in run.history:
        assert math.isfinite(line["fidelity"])
        assert not line.keys() & {"sd_ratio", "diversity_ratio", "collapsed", "ignored"}
    assert run.record.detector.state()["updates"] == 0
