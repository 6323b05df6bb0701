"""Tuned plans among known samplers: whose errors, on which noise, and how they are drawn."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import plots
from fastsample.evaluation import diffusers_schedulers
from fastsample.evaluation.compare import Comparison, Entry, compare
from fastsample.plots.comparison import family_bests, spread
from tests.helpers.mixture import mixture
from tests.helpers.networks import LINEAR, denoiser, halve
from tests.helpers.refusals import check_refusal, refusals

SMALL = {"samples": 64, "teacher_steps": 32, "max_runs": 4}
PREDICTIONS = ["epsilon", "x0", "v"]
DDIM = fs.ddim(LINEAR, fs.grids.uniform(1000, 3))


def tuned(model, steps=(4,), **options):
    return {K: fs.tune(model, K, **SMALL, **options) for K in steps}


def rmse(a, b):
    return float((a - b).double().square().mean().sqrt())


@pytest.fixture(scope="module")
def compared():
    model = mixture()
    return compare(model, tuned(model, (3, 5)), samples=50)


# ---- the errors ----


def test_errors_are_those_of_fresh_samples():
    model = mixture()
    plans = tuned(model, seed=0)
    comparison = compare(model, plans, samples=40)
    assert comparison.seed == 1
    assert compare(model, tuned(model, seed=3), samples=2).seed == 0
    fine = fs.sample(
        model, fs.grids.quadratic(1000, 200), method="dpm++", order=3, corrected=True,
        num_samples=40, seed=1,
    )  # fmt: skip
    known = {entry.name: entry.errors[4] for entry in comparison.entries}
    for name, steps, options in (
        ("tuned plan", plans[4], {}),
        ("ddim, uniform", 4, {"method": "ddim", "grid": "uniform"}),
        ("unipc(order=2), karras", 4, {"method": "unipc", "grid": "karras"}),
    ):
        x = fs.sample(model, steps, num_samples=40, seed=1, **options)
        assert known[name] == pytest.approx(rmse(x, fine), rel=1e-4), name


def test_every_method_and_scheduler_takes_part(compared):
    pytest.importorskip("diffusers")
    assert compared.missing is None or "scipy" in compared.missing.lower()  # for one kind of times
    assert {entry.family for entry in compared.of("fastsample")} == {
        "DDIM", "DPM-Solver++ 2M", "DPM-Solver++ 3M", "UniPC",
    }  # fmt: skip
    names = {entry.name for entry in compared.of("diffusers")}
    expected = {f"{p.short_label}, {p.grid}" for p in diffusers_schedulers.deterministic_samplers()}
    assert names >= {name for name in expected if "beta" not in name}  # those need SciPy
    assert names <= expected
    for entry in compared.entries:
        assert sorted(entry.errors) == [3, 5], entry.name
    assert compared.best("tuned", 5).errors[5] < compared.best("diffusers", 5).errors[5]


def test_conditions_reach_every_sampler():
    model = mixture()
    cond = {"y": torch.linspace(0.0, 1.0, 300)}
    plans = tuned(model, cond={"y": 1.0})
    with_them = compare(model, plans, samples=300, cond=cond)  # two batches
    without = compare(model, plans, samples=300)
    for one, other in zip(with_them.entries, without.entries, strict=True):
        assert one.name == other.name
        assert one.errors != other.errors


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (mixture("flow"), "the model must predict one of .* for diffusers, got 'flow'"),
        (
            mixture("v", fs.NoiseSchedule.flow(), time="fraction"),
            "the model must have a schedule of whole steps for diffusers",
        ),
        (mixture(clip=(-1.0, 2.0)), "DiffusersSampler: clip must be a bound on .x0., got"),
    ],
)
def test_where_diffusers_cannot_it_is_said(model, message):
    pytest.importorskip("diffusers")
    comparison = compare(model, tuned(model), samples=8)
    assert comparison.of("diffusers") == []
    assert re.search(message, comparison.table().splitlines()[-1])


def test_without_diffusers_the_rest_is_compared(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)  # importing it would raise
    monkeypatch.setattr(diffusers_schedulers, "is_installed", lambda: False)
    model = mixture()
    comparison = compare(model, tuned(model), samples=8)
    table = comparison.table()
    assert table.endswith("diffusers is not installed: without its schedulers")
    assert "best of diffusers" not in table
    assert len(comparison.of("fastsample")) > 10


def test_short_schedules_and_few_calls():
    model = mixture(schedule=fs.NoiseSchedule.linear(10))
    comparison = compare(model, tuned(model, (2,)), samples=8)
    assert comparison.fine_steps == 10
    assert not [entry for entry in comparison.of("fastsample") if "order=3" in entry.name]


@refusals(
    compare={
        "none": (lambda: compare(mixture(), {}), ValueError, "plans must hold at least one, got"),
        "samples": (
            lambda: compare(mixture(), tuned(mixture()), samples=0),
            ValueError,
            "compare: samples must be at least 1, got 0",
        ),
        "guided": (
            lambda: compare(
                mixture(), [fs.ddim(LINEAR, fs.grids.uniform(1000, 3)).with_guidance(2)]
            ),
            ValueError,
            "plans must be unguided",
        ),
        "conditions": (
            lambda: compare(mixture(), tuned(mixture()), cond={"y": torch.ones(3)}),
            ValueError,
            r"compare: cond\['y'\] must have one entry per sample",
        ),
        "drawing": (
            lambda: plots.tuned_errors({}),
            TypeError,
            "tuned_errors: comparison must be a Comparison, got dict",
        ),
    }
)
def test_refused(call, error, match):
    check_refusal(call, error, match)


# ---- schedulers as they are run ----


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_peers_reach_the_limit_in_many_steps(prediction):
    pytest.importorskip("diffusers")
    model = mixture(prediction)
    start = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    fine = fs.sample(model, 300, start=start, method="dpm++")
    for name in ("DDIM", "DPM-Solver++ 2M", "UniPC", "DEIS"):
        peer = next(
            p
            for p in diffusers_schedulers.deterministic_samplers()
            if p.family == name and p.grid == "trailing"
        )
        assert rmse(peer.run(model, 200, start), fine) < 0.02, name


def test_peers_tell_the_network_its_own_times():
    pytest.importorskip("diffusers")
    timesteps = []

    def network(x, t):
        timesteps.append(t[0].item())
        return 0.5 * x

    peer = diffusers_schedulers.DiffusersSampler(
        "DDIM", "DDIMScheduler", diffusers_schedulers.TIMES["leading"]
    )
    peer.run(denoiser(network, 2), 4, torch.randn(3, 2))
    peer.run(denoiser(network, 2, time="fraction"), 4, torch.randn(3, 2))
    assert timesteps[:4] == [750, 500, 250, 0]
    np.testing.assert_allclose(timesteps[4:], [0.751, 0.501, 0.251, 0.001], rtol=1e-6)


def test_peers_clip_as_the_model_says():
    pytest.importorskip("diffusers")
    model = denoiser(halve, 2, clip=1.0)
    start = 4.0 * torch.randn(20, 2)
    for peer in diffusers_schedulers.deterministic_samplers():
        # The last step of DEIS adds noise that it thinks left to the clipped x0.
        if peer.grid == "linspace" and peer.family != "DEIS":
            assert float(peer.run(model, 5, start).abs().max()) <= 1.0, peer.label
    wide = denoiser(halve, 2, clip=2.0)
    for peer in diffusers_schedulers.deterministic_samplers()[:4]:
        if peer.family == "DDIM":
            assert float(peer.run(wide, 5, start).abs().max()) <= 2.0
        else:
            with pytest.raises(ValueError, match="DiffusersSampler: clip must be 1, got 2"):
                peer.make(wide)


# ---- the picture ----


def test_the_picture_holds_every_line(compared):
    pytest.importorskip("matplotlib")
    pytest.importorskip("diffusers")
    panels = plots.tuned_errors(compared).axes
    for axes, side in zip(panels, ("fastsample", "diffusers"), strict=True):
        bests = family_bests(compared, side)
        drawn = {line.get_label(): line.get_xydata() for line in axes.lines}
        for family, errors in (*bests.items(), ("tuned plan", compared.entries[0].errors)):
            np.testing.assert_allclose(drawn[family], sorted(errors.items()))
        several = [line for line in axes.lines if line.get_alpha() is not None]
        assert len(several) == len(compared.of(side))
        texts = [text.get_text() for text in axes.texts]
        assert {*bests, "tuned plan"} <= set(texts)
        gain = compared.best(side, 5).errors[5] / compared.entries[0].errors[5]
        assert f"{gain:.1f} x" in texts
        assert axes.get_xscale() == axes.get_yscale() == "log"


def test_one_number_of_calls_and_one_side_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    entries = (
        Entry("tuned", "tuned", "tuned plan", {5: 0.1}),
        Entry("fastsample", "DDIM", "ddim, uniform", {5: 0.05}),
    )
    comparison = Comparison(entries, (5,), 8, 0, 200, "none here")
    figure = plots.tuned_errors(comparison)
    assert len(figure.axes) == 1
    assert not [text for text in figure.axes[0].texts if text.get_text().endswith(" x")]
    assert plots.save(figure, tmp_path / "one.png").stat().st_size > 5_000
    assert "2.00" in comparison.table()


def test_labels_are_moved_apart_no_farther_than_needed():
    assert spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.50, 0.52, 0.9], 0.1) == pytest.approx([0.46, 0.56, 0.9])
    close = spread([0.3, 0.3, 0.38, 0.4], 0.1)
    assert np.diff(close) == pytest.approx([0.1] * 3)
    assert np.mean(close) == pytest.approx(0.345)
