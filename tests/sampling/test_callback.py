"""What a user can see of a run while it goes on: callback and progress bar."""

from __future__ import annotations

import pytest
import torch

import fastsample as fs
from tests.helpers.networks import LINEAR, Gaussian, Spy, halve


def test_the_callback_sees_every_row():
    seen = []
    model = Gaussian(LINEAR, 0.3, 0.5).denoiser(2)
    options = {"num_samples": 2, "seed": 0}
    got = fs.sample(model, [1000, 300, 20.5, 0], eta=0.5, callback=seen.append, **options)
    assert [(s.row, s.time) for s in seen] == [(0, 1000.0), (1, 300.0), (2, 20.5)]
    assert all(type(s.row) is int and type(s.time) is float for s in seen)
    assert torch.equal(seen[-1].x, got)
    kept = [(s.x.clone(), s.x0.clone()) for s in seen]
    plan = fs.ddim(LINEAR, fs.Grid([1000, 300, 20.5, 0]), eta=0.5)
    for k in range(1, 3):
        m = model(seen[k - 1].x, plan.times[k])
        x0 = plan.column("p")[k] * seen[k - 1].x + plan.column("q")[k] * m
        torch.testing.assert_close(seen[k].x0, x0, atol=1e-5, rtol=1e-5)
    # Watching changes nothing, and what was seen stays as it was.
    assert torch.equal(fs.sample(model, plan, **options), got)
    for step, (x, x0) in zip(seen, kept, strict=True):
        assert torch.equal(step.x, x)
        assert torch.equal(step.x0, x0)
    assert len({s.x.data_ptr() for s in seen} | {s.x0.data_ptr() for s in seen}) == 6


def test_the_callback_may_keep_and_change_what_it_sees():
    options = {"shape": (2,), "seed": 0, "method": "ddim"}
    expected = fs.sample(halve, 3, **options)
    fs.sample(halve, 3, callback=lambda step: step.x0.zero_(), **options)
    got = fs.sample(halve, 3, callback=lambda step: step.x0.fill_(torch.nan), **options)
    assert torch.equal(got, expected)


def test_an_exception_in_the_callback_stops_the_run():
    spy = Spy(halve)

    def stop(step):
        if step.row == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fs.sample(spy, 9, shape=(2,), callback=stop)
    assert len(spy) == 2


def test_progress_is_shown_only_when_asked_for(capsys):
    fs.sample(halve, 5, shape=(2,))
    fs.invert(halve, torch.ones(1, 2), 5)
    assert capsys.readouterr() == ("", "")
    fs.sample(halve, 5, shape=(2,), progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "5/5" in shown.err
    assert "sampling" in shown.err
    fs.invert(halve, torch.ones(1, 2), 5, progress=True)
    assert "4/4" in capsys.readouterr().err
