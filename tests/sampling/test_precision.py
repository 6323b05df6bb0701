"""Arithmetic: float32 for float16 and bfloat16 models, float64 for float64."""

from __future__ import annotations

import pytest
import torch

import fastsample as fs
from fastsample.plans.rows import COLUMNS
from tests.helpers.loop_plans import PLANS, parts
from tests.helpers.networks import LINEAR, denoiser, halve


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["ddim", "eta", "raw", "learned"])
def test_one_step_rounds_to_the_samples_dtype_once(dtype, name):
    generator = torch.Generator().manual_seed(0)
    x, z = (torch.randn(4, 64, generator=generator).to(dtype) for _ in range(2))
    model, plan = parts(name, 64)
    c = dict(zip(COLUMNS, plan.rows[0].tolist(), strict=True))
    output = model(x, plan.times[0]).double()
    m, v = output[:, :64], output[:, 64:] if name == "learned" else torch.zeros(1)
    sd = c["d"] * torch.exp((c["lv_lo"] + (v + 1) / 2 * (c["lv_hi"] - c["lv_lo"])) / 2)
    raw = c["p"] * x.double(), c["q"] * m
    x0 = sum(raw).clamp(c["lo"], c["hi"])
    terms = c["a"] * x.double(), c["b"] * x0, c["e"] * m, sd * z.double()
    seen = []
    drawn = {"noise": torch.stack([z] * len(plan))} if plan.is_stochastic else {}
    fs.sample(model, plan, start=x, callback=seen.append, **drawn)
    assert seen[0].x.dtype == dtype
    assert seen[0].x0.dtype == torch.float32
    # A unit roundoff of float32 for each coefficient, product and sum on the way; p and q are the
    # large ones. Then one of the samples' dtype.
    size = sum(term.abs() for term in terms) + abs(c["b"]) * sum(term.abs() for term in raw)
    exact = sum(terms)
    allowed = 8 * 2.0**-24 * size + torch.finfo(dtype).eps / 2 * exact.abs() * 1.001
    assert ((seen[0].x.double() - exact).abs() <= allowed + torch.finfo(dtype).tiny).all()
    assert ((seen[0].x0 - x0).abs() <= 8 * 2.0**-24 * sum(term.abs() for term in raw)).all()


def test_half_precision_arithmetic_would_have_failed_that():
    """The first row multiplies by 157: rounded to float16 on the way, nothing of x0 is left."""
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)).half()[None]
    plan = fs.ddim(LINEAR, fs.Grid([1000, 0]))
    m = x * 0.99
    p, q = plan.column("p")[0], plan.column("q")[0]
    exact = p * x.double() + q * m.double()
    got = fs.sample(denoiser(lambda x, t: x * 0.99, 64), plan, start=x)
    coarse = (x * p) + (m * q)
    error = (got.double() - exact).abs().max()
    assert error <= torch.finfo(torch.float16).eps * exact.abs().max()
    assert (coarse.double() - exact).abs().max() > 4 * error


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_whole_runs_stay_near_float32(plan, dtype):
    model, plan = parts(plan, 64)
    start = torch.randn(4, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    got = fs.sample(model, plan, start=start, seed=0)
    exact = fs.sample(model, plan, start=start.float(), seed=0)
    # x and the output are rounded before each row, then stretched by p and q: all of it below 64.
    assert (got.float() - exact).abs().max() < 64 * torch.finfo(dtype).eps * exact.abs().max()
    assert got.dtype == dtype


def test_float64_is_float64_throughout():
    seen = []
    fs.sample(halve, 2, shape=(3,), dtype=torch.float64, callback=seen.append)
    assert {s.x.dtype for s in seen} | {s.x0.dtype for s in seen} == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_outputs_of_another_dtype_leave_the_samples_in_theirs(dtype):
    def autocast(x, t):
        assert x.dtype == torch.float32
        return (0.5 * x).to(dtype)

    seen = []
    got = fs.sample(autocast, 3, shape=(3,), seed=0, callback=seen.append)
    assert got.dtype == torch.float32
    as_rounded = fs.sample(lambda x, t: (0.5 * x).to(dtype).float(), 3, shape=(3,), seed=0)
    assert torch.equal(got, as_rounded)


def test_under_autocast():
    network = torch.nn.Linear(3, 3)
    model = denoiser(lambda x, t: network(x), 3)
    plain = fs.sample(model, 3, num_samples=4, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = fs.sample(model, 3, num_samples=4, seed=0)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, plain, rtol=0.1, atol=0.1 * float(plain.abs().max()))
