"""Runs that start or end part way, with every method: handing over, refining, editing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.samplers.registry import METHODS
from tests.helpers.networks import LINEAR, Gaussian, Spy, denoiser, halve

MODEL = denoiser(halve, 2, 3)
TIMES = [1000, 800, 600, 400, 200, 0]
START = torch.linspace(-1.0, 1.0, 12).reshape(2, 2, 3)
WITH_GRIDS = [name for name, method in METHODS.items() if not method.chooses_times]
each_method = pytest.mark.parametrize("method", WITH_GRIDS)


@each_method
def test_a_run_stops_at_any_node(method):
    """The state at that time is returned, after no more calls than lead there."""
    states = fs.sample(MODEL, TIMES, method=method, start=START, seed=0, return_states=True)
    for row, node in enumerate(TIMES[1:], 1):
        spy = Spy(halve)
        options = {"method": method, "start": START, "seed": 0, "stop": node}
        x = fs.sample(denoiser(spy, 2, 3), TIMES, **options)
        assert torch.equal(x, states[row])
        assert len(spy) == row
    ends_early = [*TIMES[:4], 0]  # times that a list ends at with 0, and stop= leaves out
    x = fs.sample(MODEL, ends_early, method=method, start=START, seed=0, stop=400)
    assert x.shape == START.shape
    if method != "unipc":  # whose row before the last depends on what comes next
        assert torch.equal(x, states[3])


@each_method
def test_a_run_starts_at_any_time(method):
    spy = Spy(halve)
    x = fs.sample(denoiser(spy, 2, 3), [600, 400, 200, 0], method=method, start=START, seed=0)
    assert [float(t[0]) + 1 for t in spy.told] == [600, 400, 200]
    assert torch.equal(spy.inputs[0], START)
    plan = METHODS[method].make(LINEAR, fs.Grid([600, 400, 200, 0]))
    assert torch.equal(x, fs.sample(MODEL, plan, start=START, seed=0))


@pytest.mark.parametrize("method", ["ddim", "dpm++", "unipc"])
def test_handing_over(method):
    """Without noise and memory, two runs after each other are the whole run."""
    options = {"method": method, **({} if method == "ddim" else {"order": 1})}
    whole = fs.sample(MODEL, TIMES, start=START, **options)
    middle = fs.sample(MODEL, TIMES, start=START, stop=400, **options)
    rest = fs.sample(MODEL, [400, 200, 0], start=middle, **options)
    if method == "unipc":  # whose corrector looks back at order 1 too
        assert (rest - whole).abs().max() > 0
    else:
        torch.testing.assert_close(rest, whole, rtol=1e-6, atol=1e-5)


@each_method
def test_noised_data_come_back_as_samples(method):
    """SDEdit (Meng et al. 2022): noise of time t, then the rows from t on."""
    model = Gaussian(LINEAR, 0.3, 0.5).denoiser(4)
    source = torch.Generator().manual_seed(0)
    x0 = 0.3 + 0.5 * torch.randn(2000, 4, generator=source, dtype=torch.float64)
    grid = [t for t in fs.grids.uniform(1000, 1000) if t <= 300]
    x = fs.sample(model, grid, method=method, seed=1, start=fs.diffuse(x0, LINEAR, 300, seed=1))
    assert float(x.mean()) == pytest.approx(0.3, abs=0.03)  # five standard errors of 8000 numbers
    if method == "shortcut":  # which keeps at most half of the variance, however many rows
        assert float(x.std()) < 0.5 * np.sqrt(0.5)
    else:  # four standard errors, 0.016, and 0.01 for 300 rows of first order
        assert float(x.std()) == pytest.approx(0.5, abs=0.026)
        assert np.corrcoef(x0.flatten(), x.flatten())[0, 1] > 0.1  # and remember the data


def test_lists_that_do_not_end_at_data_name_the_remedy():
    for times in ([1000, 800, 600, 400], [600, 400]):
        with pytest.raises(ValueError, match="must end at 0"):
            fs.sample(MODEL, times, start=START)


def test_fastdpm_takes_no_times():
    with pytest.raises(ValueError, match='steps must be a number with method="fastdpm"'):
        fs.sample(MODEL, [600, 400, 0], method="fastdpm", start=START)
