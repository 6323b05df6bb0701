"""`log_prob`: the closed form, what a run drew, finite differences, and what has no density."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import fastsample as fs
from fastsample import ops
from tests.helpers.networks import LINEAR, denoiser, halve, halve_wide, per_sample
from tests.helpers.refusals import check_refusal, refusals

SHAPE = (2, 3)
GRID = fs.Grid([900, 600, 300, 40, 0])


def network(x, t, y):
    return halve(x, t) + 0.25 * per_sample(y, x)


def network_wide(x, t, y):
    return torch.cat((network(x, t, y), torch.tanh(0.5 * x)), dim=1)


def case(name):
    """(denoiser, plan, conditions) of a policy."""
    wide = "learned" in name
    model = denoiser(
        *(network_wide if wide else network, *SHAPE),
        variance="learned_range" if wide else "small",
        uncond={"y": 0.0},
    )
    plan = {
        "eta": lambda: fs.ddim(LINEAR, GRID, eta=1.0),
        "clipped": lambda: fs.ddim(LINEAR, GRID, eta=0.5, clip=0.7),
        "raw": lambda: fs.ddim(LINEAR, GRID, eta=1.0, clip=0.7, rederive=False),
        "large": lambda: fs.ancestral(LINEAR, GRID, variance="large"),
        "learned": lambda: fs.ancestral(LINEAR, GRID, variance="learned_range"),
        "guided": lambda: fs.ddim(LINEAR, GRID, eta=1.0).with_guidance(2.5),
        "guided in part": lambda: fs.ddim(LINEAR, GRID, eta=1.0).with_guidance([1, 3, 1, 1]),
        "learned, guided": lambda: fs.ancestral(
            LINEAR, GRID, variance="learned_range"
        ).with_guidance(2.5),
        "history": lambda: fs.dpm_solver(LINEAR, GRID, stochastic=True),
    }[name]()
    return model, plan, {"y": torch.tensor([1.0, -0.5, 2.0])}


CASES = [
    *("eta", "clipped", "raw", "large", "learned", "guided", "guided in part"),
    *("learned, guided", "history"),
]
NOISY = [0, 1, 2]


def run(name, dtype=torch.float64):
    """(denoiser, plan, conditions, states (K' + 1, 3, ..), the x0 of every row)."""
    model, plan, cond = case(name)
    x0s = []
    sampler = fs.Sampler(model, plan, dtype=dtype)
    states = sampler(
        cond=cond, seed=5, return_states=True, callback=lambda step: x0s.append(step.x0.clone())
    )
    return model, plan, cond, states, x0s


def earlier(x0s, row):
    return x0s[:row][::-1]


# ---- values


def normals(row, dtype=torch.float64):
    """The noise that the row of that run drew."""
    return ops.noise(torch.tensor([5]), torch.arange(3), SHAPE, draw=row, dtype=dtype)


@pytest.mark.parametrize("row", NOISY)
@pytest.mark.parametrize("name", CASES)
def test_a_drawn_step_has_the_density_of_its_noise(name, row):
    model, plan, cond, states, x0s = run(name)
    given = fs.log_prob(model, plan, states[row], states[row + 1], row, cond, earlier(x0s, row))
    log_sd = torch.full((3, *SHAPE), math.log(plan.column("d")[row]), dtype=torch.float64)
    if "learned" in name:
        v = torch.tanh(0.5 * states[row])
        low, high = plan.column("lv_lo")[row], plan.column("lv_hi")[row]
        log_sd = log_sd + (low + (v + 1) / 2 * (high - low)) / 2
    wanted = -(0.5 * normals(row) ** 2 + log_sd + 0.5 * math.log(2 * math.pi)).sum((1, 2))
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-9)
    assert given.dtype == torch.float64


def test_ancestral_steps_have_the_density_of_the_posterior():
    # Ho et al. 2020 (arXiv:2006.11239), eq. 7, with alpha_bar of the two ends of the step.
    model, plan = denoiser(halve, *SHAPE), fs.ancestral(LINEAR, GRID)
    generator = torch.Generator().manual_seed(0)
    x, x_next = torch.randn(2, 4, *SHAPE, generator=generator, dtype=torch.float64)
    for row in NOISY:
        t, s = (float(LINEAR.alpha_bar(GRID.times[row + n])) for n in (0, 1))
        beta = 1 - t / s
        eps = halve(x, torch.full((4,), GRID.times[row] - 1))
        x0 = (x - math.sqrt(1 - t) * eps) / math.sqrt(t)
        mean = (math.sqrt(s) * beta * x0 + math.sqrt(t / s) * (1 - s) * x) / (1 - t)
        normal = torch.distributions.Normal(mean, math.sqrt((1 - s) / (1 - t) * beta))
        wanted = normal.log_prob(x_next).sum((1, 2))
        given = fs.log_prob(model, plan, x, x_next, row)
        torch.testing.assert_close(given, wanted, rtol=1e-10, atol=1e-8)


def test_the_density_integrates_to_one():
    model = denoiser(halve_wide, 1, variance="learned_range")
    plan = fs.ancestral(LINEAR, GRID, variance="learned_range")
    line = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    x = torch.full((len(line), 1), 0.3, dtype=torch.float64)
    density = fs.log_prob(model, plan, x, line[:, None], 1).exp()
    assert float(density.sum()) * 16 / 4000 == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_rows_may_differ_between_samples(name):
    model, plan, cond, states, x0s = run(name)
    each = torch.arange(3)
    history = fs.History()
    sampler, x = fs.Sampler(model, plan, dtype=torch.float64), states[0]
    for step in range(2):  # sample 1 runs one row, sample 2 runs two
        rows = [-1, step if step < 1 else -1, step]
        x = sampler.advance(x, rows, seed=5, cond=cond, history=history)
    x_next = states[each + 1, each]
    given = fs.log_prob(model, plan, x, x_next, [0, 1, 2], cond, history)
    for n in range(3):
        torch.testing.assert_close(x[n], states[n, n], rtol=0, atol=0)
        alone = fs.log_prob(
            *(model, plan, states[n, n : n + 1], x_next[n : n + 1], n),
            cond={"y": cond["y"][n : n + 1]},
            history=[x0[n : n + 1] for x0 in earlier(x0s, n)],
        )
        torch.testing.assert_close(given[n], alone[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["eta", "learned", "history"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_compute_in_float32(name, dtype):
    model, plan, cond, states, x0s = run(name, dtype)
    history = earlier(x0s, 1)
    given = fs.log_prob(model, plan, states[1], states[2], 1, cond, history)
    # The network rounds its output to the samples' dtype: the same one in float64 is compared.
    rounded = denoiser(
        lambda x, t, y: model.model(x.to(dtype), t, y).to(x.dtype),
        *SHAPE,
        variance=model.variance,
    )
    wanted = fs.log_prob(
        *(rounded, plan, states[1].double(), states[2].double(), 1, cond),
        [x0.double() for x0 in history],
    )
    assert given.dtype == torch.float64
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=2e-4)


def test_a_row_without_a_call_has_a_density_and_costs_none():
    nodes = np.array([900.0, 300.0, 600.0, 0.0])
    alphas, sigmas = LINEAR.levels(nodes)
    rows = np.concatenate(
        [fs.ddim(LINEAR, fs.Grid([t, s, 0])).rows[:1] for t, s in ((900, 300), (600, 10))]
        + [fs.ddim(LINEAR, fs.Grid([600, 0])).rows]
    )
    a = alphas[2] / alphas[1]
    d = math.sqrt(sigmas[2] ** 2 - (a * sigmas[1]) ** 2)
    rows[1] = fs.plans.rows.row_table(1, a=a, d=d)[0]
    plan = fs.Plan(nodes, rows, alphas, sigmas, "epsilon", "jump", "mean", LINEAR)

    def refusing(x, t):
        raise AssertionError("the row calls no network")

    x = torch.randn(4, *SHAPE, dtype=torch.float64)
    x_next = torch.randn(4, *SHAPE, dtype=torch.float64)
    given = fs.log_prob(denoiser(refusing, *SHAPE), plan, x, x_next, 1)
    wanted = torch.distributions.Normal(a * x, d).log_prob(x_next).sum((1, 2))
    torch.testing.assert_close(given, wanted, rtol=1e-12, atol=1e-12)


# ---- gradients


class Small(nn.Module):
    """A network with weights, for all that a row can read."""

    def __init__(self, wide: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        shape = (SHAPE[0] * (1 + wide), SHAPE[0])
        self.weight = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        self.label = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x, t, y):
        mixed = torch.einsum("oc,bcn->bon", self.weight, x)
        return torch.tanh(0.3 * mixed + (self.label * y + 1e-3 * t)[:, None, None])


@pytest.mark.parametrize("row", [1, [0, 1, 2]], ids=["one row", "each its own"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_finite_differences(name, row):
    _, plan, cond = case(name)
    small = Small("learned" in name)
    model = fs.Denoiser(
        *(small, LINEAR, SHAPE),
        variance="learned_range" if "learned" in name else "small",
        uncond={"y": 0.0},
    )
    generator = torch.Generator().manual_seed(2)
    x, x_next, h = torch.randn(3, 3, *SHAPE, generator=generator, dtype=torch.float64)
    d = torch.from_numpy(plan.column("d").copy())[torch.tensor(row)].reshape(-1, 1, 1)
    x_next = x + d * x_next  # near the mean
    y = cond["y"].double()

    def value(weight, label, x, x_next, h, y):
        small_with = {"weight": weight, "label": label}
        call = lambda *a, **k: torch.func.functional_call(small, small_with, a, k)  # noqa: E731
        other = fs.Denoiser(call, LINEAR, SHAPE, variance=model.variance, uncond={"y": 0.0})
        history = [h] if name == "history" else None
        return fs.log_prob(other, plan, x, x_next, row, {"y": y}, history)

    inputs = [small.weight, small.label, x, x_next, h, y]
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-5, rtol=1e-5)


def test_the_score_has_mean_zero_and_follows_a_reward():
    # E[d log p / d theta] = 0, and its product with a reward is the gradient of the mean reward.
    shift = nn.Parameter(torch.zeros((), dtype=torch.float64))
    model = denoiser(lambda x, t: halve(x, t) + shift, 1)
    plan = fs.ddim(LINEAR, GRID, eta=1.0)
    x = torch.full((20000, 1), 0.4, dtype=torch.float64)
    x_next = fs.Sampler(model, plan, dtype=torch.float64)(start=x, seed=3, return_states=True)[1]
    density = fs.log_prob(model, plan, x, x_next, 0)
    (score,) = torch.autograd.grad(density.mean(), shift, retain_graph=True)
    (policy,) = torch.autograd.grad((density * x_next[:, 0]).mean(), shift)
    coefficients = dict(zip(fs.plans.rows.COLUMNS, plan.rows[0], strict=True))
    exact = coefficients["b"] * coefficients["q"] + coefficients["e"]
    error = 4 * abs(exact) / math.sqrt(20000) / coefficients["d"]
    assert abs(float(score)) < error
    assert float(policy) == pytest.approx(exact, abs=2 * error)


def test_no_graph_is_made_where_grad_mode_is_off():
    shift = nn.Parameter(torch.zeros(()))
    model = denoiser(lambda x, t: halve(x, t) + shift, *SHAPE)
    x = torch.zeros(2, *SHAPE)
    plan = fs.ddim(LINEAR, GRID, eta=1.0)
    with torch.no_grad():
        assert not fs.log_prob(model, plan, x, x, 0).requires_grad
    assert fs.log_prob(model, plan, x, x, 0).requires_grad
    assert fs.log_prob(model, plan, x[:0], x[:0], 0).shape == (0,)


# ---- errors

MODEL = denoiser(network, *SHAPE)
X = torch.zeros(2, *SHAPE)
Y = {"y": torch.zeros(2)}
ETA = fs.ddim(LINEAR, GRID, eta=1.0)
SDE = fs.dpm_solver(LINEAR, GRID, stochastic=True)


def call(model=MODEL, plan=ETA, x=X, x_next=X, row=0, cond=Y, history=None, **options):
    return lambda: fs.log_prob(model, plan, x, x_next, row, cond, history, **options)


@refusals(
    log_prob={
        "model": (call(model=halve), TypeError, "denoiser must be a Denoiser"),
        "plan": (call(plan=4), TypeError, "plan must be a Plan"),
        "other plan": (
            call(plan=fs.ddim(LINEAR, GRID, prediction="v", eta=1.0)),
            ValueError,
            "plan must fit the model's prediction",
        ),
        "inverting": (
            call(plan=fs.ddim_inversion(LINEAR, GRID)),
            ValueError,
            "plan must end at 0",
        ),
        "x": (call(x=X[0]), ValueError, "x must have shape"),
        "x_next": (call(x_next=X[:1]), ValueError, "x_next must have the shape and device of x"),
        "x_next dtype": (call(x_next=X.int()), TypeError, "x_next must be one of"),
        "last row": (call(row=3), ValueError, r"row must draw noise, got row 3.*\[0, 1, 2\]"),
        "deterministic": (call(plan=fs.ddim(LINEAR, GRID)), ValueError, "row must draw noise"),
        "below": (call(row=-1), ValueError, r"row must be in \[0, 3\]"),
        "above": (call(row=[0, 4]), ValueError, "got 4 for sample 1"),
        "real row": (call(row=0.5), TypeError, "row must be an integer"),
        "history": (
            call(plan=SDE, row=[0, 1]),
            ValueError,
            "history must hold the 1 earlier x0's that the row of sample 1 reads, got 0",
        ),
        "history shape": (
            call(plan=SDE, row=1, history=[X[:1]]),
            ValueError,
            "history must hold tensors of shape",
        ),
        "history type": (call(plan=SDE, row=1, history=X[0, 0, 0]), TypeError, "history must be a"),
        "other history": (
            call(plan=SDE, row=1, history=fs.History()),
            ValueError,
            "history must be of the batch of 2 samples, got one of 0",
        ),
        "uncond": (
            call(plan=ETA.with_guidance(2.0)),
            ValueError,
            "uncond must be given with guidance",
        ),
        "unguided uncond": (call(uncond={"y": 0.0}), ValueError, "uncond must be left out"),
    },
)
def test_refused(call, error, match):
    check_refusal(call, error, match)


@pytest.mark.cuda
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu_as_on_the_cpu(name):
    model, plan, cond, states, x0s = run(name)
    wanted = fs.log_prob(model, plan, states[1], states[2], 1, cond, earlier(x0s, 1))
    there = [x0.cuda() for x0 in earlier(x0s, 1)]
    given = fs.log_prob(model, plan, states[1].cuda(), states[2].cuda(), 1, cond, there)
    torch.testing.assert_close(given.cpu(), wanted, rtol=1e-10, atol=1e-8)
