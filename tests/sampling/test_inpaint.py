"""RePaint: the known region, the jumps, the batch, the true conditional, and what is refused."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import ops
from fastsample.ops.draws import INPAINT_DRAW
from fastsample.sampling.jumps import with_jumps
from fastsample.sampling.resolve import PlanRequest, resolve
from tests.helpers.networks import LINEAR, Gaussian, Spy, denoiser, halve, per_sample
from tests.helpers.refusals import check_refusal, refusals

SHAPE = (2, 4, 4)
MODEL = denoiser(halve, *SHAPE)
KNOWN = torch.linspace(-1.0, 1.0, 96).reshape(3, *SHAPE)
MASK = torch.zeros(4, 4)
MASK[:2] = 1
METHODS = {
    "ddim": {},
    "ddim eta=1": {"eta": 1.0},
    "ancestral": {"method": "ancestral"},
    "large": {"variance": "large"},  # the knob selects the method
    "shortcut": {"method": "shortcut"},
    "fastdpm": {"method": "fastdpm"},
    "dpm++ 3": {"method": "dpm++", "order": 3, "corrected": True},
    "sde": {"method": "dpm++", "stochastic": True},
    "unipc": {"method": "unipc"},
    "first": {"method": "ddim", "last": "first"},
}
each_method = pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
each_jump = pytest.mark.parametrize("jumps", [None, (1, 1), (3, 2)], ids=str)


# ---- the known region


@each_jump
@each_method
def test_it_is_exact_at_the_end_and_the_rest_is_new(options, jumps):
    before = KNOWN.clone()
    x = fs.inpaint(MODEL, KNOWN, MASK, 7, jumps=jumps, seed=0, **options)
    assert torch.equal(x[:, :, :2], KNOWN[:, :, :2])
    assert (x[:, :, 2:] != KNOWN[:, :, 2:]).all()
    assert torch.equal(KNOWN, before)
    assert not x.is_inference()
    assert not x.requires_grad


def test_after_each_row_it_has_the_noise_of_the_node():
    seen = []
    x = fs.inpaint(
        MODEL,
        KNOWN,
        MASK,
        6,
        jumps=(2, 1),
        eta=1.0,
        seed=5,
        sample_index=[7, 1, 4],
        callback=lambda step: seen.append(step.x.clone()),
    )
    base = resolve("inpaint", MODEL, PlanRequest(6, "ddim", knobs={"eta": 1.0}))
    plan = with_jumps(MODEL, PlanRequest(6, "ddim", knobs={"eta": 1.0}), base, (2, 1))
    assert len(seen) == len(plan) == 6 + 2 * (1 + 2)
    index, seeds = torch.tensor([7, 1, 4]), torch.tensor([5])
    for row, state in enumerate(seen[:-1]):
        noise = ops.noise(seeds, index, SHAPE, draw=INPAINT_DRAW + row)
        expected = plan.alphas[row + 1] * KNOWN + plan.sigmas[row + 1] * noise
        torch.testing.assert_close(state[:, :, :2], expected[:, :, :2])
    assert torch.equal(seen[-1], x)
    # The network's first input holds it too, with the noise of the number after the rows.
    spy = Spy(halve)
    fs.inpaint(
        denoiser(spy, *SHAPE), KNOWN, MASK, 6, jumps=(2, 1), eta=1.0, seed=5, sample_index=[7, 1, 4]
    )
    noise = ops.noise(seeds, index, SHAPE, draw=INPAINT_DRAW + len(plan))
    expected = plan.alphas[0] * KNOWN + plan.sigmas[0] * noise
    torch.testing.assert_close(spy.inputs[0][:, :, :2], expected[:, :, :2])
    started = ops.noise(seeds, index, SHAPE)
    assert torch.equal(spy.inputs[0][:, :, 2:], started[:, :, 2:])


def test_without_a_known_region_it_is_sampling():
    nothing, everything = torch.zeros(1), torch.ones(1)
    for options in METHODS.values():
        x = fs.inpaint(MODEL, KNOWN, nothing, 7, seed=2, **options)
        expected = fs.sample(MODEL, 7, num_samples=3, seed=2, **(options or {"method": "ddim"}))
        assert torch.equal(x, expected)
    assert torch.equal(fs.inpaint(MODEL, KNOWN, everything, 3, seed=2), KNOWN)


@pytest.mark.parametrize(
    "mask",
    [
        MASK.bool(),
        MASK.long(),
        MASK.expand(4, 4),
        MASK.expand(1, 4, 4),
        MASK.expand(2, 4, 4),
        MASK.expand(3, 1, 4, 4),
        MASK.expand(1, 2, 4, 4),
        MASK.expand(3, 2, 4, 4),
    ],
    ids=lambda mask: f"{mask.dtype} {tuple(mask.shape)}",
)
def test_masks_broadcast(mask):
    expected = fs.inpaint(MODEL, KNOWN, MASK, 4, seed=1)
    assert torch.equal(fs.inpaint(MODEL, KNOWN, mask, 4, seed=1), expected)


def test_a_mask_per_sample_and_data_for_all():
    masks = torch.stack([MASK, 1 - MASK, MASK.T])[:, None]
    x = fs.inpaint(MODEL, KNOWN[:1], masks, 4, seed=1)
    assert x.shape == (3, *SHAPE)
    for i, mask in enumerate(masks):
        where = mask.bool().expand(SHAPE)
        assert torch.equal(x[i][where], KNOWN[0][where])
    alone = fs.inpaint(MODEL, KNOWN[:1], masks[2:], 4, seed=1, sample_index=2)
    assert torch.equal(alone, x[2:])


def test_what_is_not_known_is_not_read():
    hidden = torch.where(MASK.bool(), KNOWN, torch.nan)
    expected = fs.inpaint(MODEL, KNOWN, MASK, 4, jumps=(1, 2), seed=1)
    assert torch.equal(fs.inpaint(MODEL, hidden, MASK, 4, jumps=(1, 2), seed=1), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    known = KNOWN.to(dtype)
    x = fs.inpaint(MODEL, known, MASK, 4, jumps=(2, 1), seed=0)
    assert x.dtype == dtype
    assert torch.equal(x[:, :, :2], known[:, :, :2])


# ---- samples belong to themselves


@each_jump
@each_method
def test_a_sample_is_the_same_in_any_batch(options, jumps):
    x = fs.inpaint(MODEL, KNOWN, MASK, 6, jumps=jumps, seed=3, **options)
    parts = fs.inpaint(MODEL, KNOWN, MASK, 6, jumps=jumps, seed=3, batch_size=2, **options)
    assert torch.equal(parts, x)
    alone = fs.inpaint(MODEL, KNOWN[2:], MASK, 6, jumps=jumps, seed=3, sample_index=2, **options)
    assert torch.equal(alone, x[2:])


def test_seeds():
    first = fs.inpaint(MODEL, KNOWN[:1], MASK, 4, num_samples=2, seed=[8, 9])
    assert torch.equal(first[1:], fs.inpaint(MODEL, KNOWN[:1], MASK, 4, seed=[9]))
    torch.manual_seed(0)
    one = fs.inpaint(MODEL, KNOWN, MASK, 4)
    two = fs.inpaint(MODEL, KNOWN, MASK, 4)
    torch.manual_seed(0)
    assert torch.equal(fs.inpaint(MODEL, KNOWN, MASK, 4), one)
    assert not torch.equal(one, two)
    generator = torch.Generator().manual_seed(1)
    made = fs.inpaint(MODEL, KNOWN, MASK, 4, seed=generator)
    generator.manual_seed(1)
    assert torch.equal(fs.inpaint(MODEL, KNOWN, MASK, 4, seed=generator), made)
    assert fs.inpaint(MODEL, KNOWN[:0], MASK, 4).shape == (0, *SHAPE)


def test_conditions_and_guidance():
    def labelled(x, t, y):
        return halve(x, t) + 0.25 * per_sample(y, x)

    spy = Spy(labelled)
    model = denoiser(spy, *SHAPE, uncond={"y": 0.0})
    cond = {"y": [1.0, 2.0, -1.0]}
    options = {"jumps": (2, 1), "seed": 0, "guidance": 3.0, "guidance_interval": (100, 700)}
    x = fs.inpaint(model, KNOWN, MASK, 6, cond=cond, **options)
    guided = [float(t[0]) + 1 for t, size in zip(spy.told, spy.batches, strict=True) if size == 6]
    assert guided
    assert all(100 < t <= 700 for t in guided)
    plain = denoiser(lambda x, t, y: labelled(x, t, 3.0 * y), *SHAPE)  # u + 3 (c - u), everywhere
    everywhere = fs.inpaint(model, KNOWN, MASK, 6, cond=cond, seed=0, guidance=3.0)
    torch.testing.assert_close(everywhere, fs.inpaint(plain, KNOWN, MASK, 6, cond=cond, seed=0))
    alone = fs.inpaint(model, KNOWN[1:2], MASK, 6, cond={"y": [2.0]}, sample_index=1, **options)
    torch.testing.assert_close(alone, x[1:2])


def test_a_start_part_way():
    start = torch.full((3, *SHAPE), 0.5)
    x = fs.inpaint(MODEL, KNOWN, MASK, [600, 300, 0], seed=0, start=start)
    assert (start == 0.5).all()
    spy = Spy(halve)
    fs.inpaint(denoiser(spy, *SHAPE), KNOWN, MASK, [600, 300, 0], seed=0, start=start)
    assert torch.equal(spy.inputs[0][:, :, 2:], start[:, :, 2:])
    assert (spy.inputs[0][:, :, :2] != 0.5).all()
    assert torch.equal(x[:, :, :2], KNOWN[:, :, :2])


# ---- the jumps


def jumping(steps, jumps, **knobs):
    request = PlanRequest(steps, knobs.pop("method", "ddim"), knobs=knobs)
    return with_jumps(MODEL, request, resolve("inpaint", MODEL, request), jumps)


def repaint_schedule(t_T, jump_length, jump_n_sample):
    """The authors' `get_schedule_jump`: states from t_T - 1 down to 0, then -1."""
    jumps = dict.fromkeys(range(0, t_T - jump_length, jump_length), jump_n_sample - 1)
    t, times = t_T, []
    while t >= 1:
        t -= 1
        times.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump_length):
                t += 1
                times.append(t)
    return [*times, -1]


@pytest.mark.parametrize(
    ("steps", "length", "r"), [(10, 3, 2), (10, 1, 3), (20, 10, 2), (25, 5, 4)]
)
def test_the_jumps_are_the_authors(steps, length, r):
    plan = jumping(steps, (length, r - 1))
    # State t of theirs is node steps - 1 - t of ours; their jumps go up in single steps.
    states = [steps - 1 - t for t in repaint_schedule(steps, length, r)]
    expected = [states[0]]
    for before, now in pairwise(states):
        if now < before and len(expected) > 1 and expected[-1] < expected[-2]:
            expected[-1] = now  # one rise instead of several
        else:
            expected.append(now)
    whole = fs.ddim(LINEAR, fs.grids.uniform(1000, steps)).nodes
    assert plan.nodes.tolist() == whole[expected].tolist()
    assert plan.calls == steps + length * (r - 1) * ((steps - 1) // length)
    assert len(plan) == plan.calls + (r - 1) * ((steps - 1) // length)


@pytest.mark.parametrize("method", ["ddim", "ancestral", "shortcut"])
def test_rows_are_copies_of_the_samplers(method):
    plain = resolve("inpaint", MODEL, PlanRequest(9, method)).plan
    plan = jumping(9, (2, 2), method=method)
    rows = {row.tobytes() for row in plain.rows}
    calls = plan.calls_network
    assert {row.tobytes() for row in plan.rows[calls]} == rows
    assert (plan.nodes[1:] > plan.nodes[:-1]).tolist() == (~calls).tolist()


def test_a_multistep_method_begins_anew_after_a_jump():
    plan = jumping(8, (3, 1), method="dpm++", order=3)
    after = np.flatnonzero(np.diff(plan.nodes) > 0) + 1
    assert (plan.column("c1")[after] == 0.0).all()
    assert plan.needs_history == 2


def test_a_plan_is_taken_as_it_is():
    plan = fs.restart(LINEAR, fs.grids.uniform(1000, 6), intervals=[(300, 700, 1)])
    x = fs.inpaint(MODEL, KNOWN, MASK, plan, seed=0)
    assert torch.equal(x[:, :, :2], KNOWN[:, :, :2])
    unipc = fs.unipc(LINEAR, fs.grids.uniform(1000, 6))
    named = fs.inpaint(MODEL, KNOWN, MASK, 6, method="unipc", grid="uniform", seed=0)
    assert torch.equal(fs.inpaint(MODEL, KNOWN, MASK, unipc, seed=0), named)


def test_the_bar_counts_all_calls(capsys):
    fs.inpaint(MODEL, KNOWN, MASK, 10, jumps=(3, 2), seed=0, progress=True)
    assert "28/28" in capsys.readouterr().err


# ---- the distribution


class Correlated:
    """The exact noise of two Gaussian numbers of variance 1 with a correlation."""

    def __init__(self, correlation):
        self.covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]]).double()

    def __call__(self, x, t):
        alpha, sigma = LINEAR.levels(float(t.reshape(-1)[0]) + 1.0)
        spread = float(alpha) ** 2 * self.covariance + float(sigma) ** 2 * torch.eye(2).double()
        return (float(sigma) * x.double() @ torch.linalg.inv(spread)).to(x.dtype)


def filled(jumps, steps=50, eta=1.0, count=4000, value=1.5, correlation=0.8):
    """The second number, given the first one."""
    known = torch.tensor([[value, torch.nan]]).double()
    x = fs.inpaint(
        denoiser(Correlated(correlation), 2),
        known,
        torch.tensor([1, 0]),
        steps,
        jumps=jumps,
        eta=eta,
        num_samples=count,
        seed=0,
    )
    return x[:, 1]


def distance(x):
    """The Wasserstein-2 distance of two Gaussians in one dimension, to N(0.8 1.5, 1 - 0.64)."""
    return math.hypot(float(x.mean()) - 1.2, float(x.std()) - 0.6)


def test_jumps_lead_towards_the_true_conditional():
    """Given x1 = 1.5, x2 is N(0.8 1.5, 1 - 0.64)."""
    distances = [distance(filled(jumps, count=2000)) for jumps in (None, (2, 1), (2, 4), (2, 16))]
    assert all(after < before for before, after in pairwise(distances))
    assert distances[0] > 0.4  # the plain method adds the known number too late
    assert distances[-1] < 0.3 * distances[0]


@pytest.mark.slow
def test_finer_rows_and_jumps_have_the_true_conditional_as_their_limit():
    # What 50 rows leave is of first order in the step: four times as many rows leave a fourth. The
    # standard errors of 4000 samples, 0.0095 and 0.0067, come on top, three of each at most.
    coarse, fine = (distance(filled((2, 16), steps=steps)) for steps in (50, 200))
    assert fine < 0.25 * coarse + 3 * math.hypot(0.0095, 0.0067)


# ---- callbacks that change x


@pytest.mark.parametrize("method", ["ddim", "unipc", "ancestral"])
def test_a_callback_may_change_x(method):
    """What it writes is what the next row, the result and the kept states have."""
    spy = Spy(halve)

    def half_zero(step):
        step.x[:, :1] = 0.0

    options = {"method": method, "seed": 0, "num_samples": 2, "callback": half_zero}
    states = fs.sample(denoiser(spy, *SHAPE), 5, return_states=True, **options)
    assert (states[1:, :, :1] == 0.0).all()
    assert (states[1:, :, 1:] != 0.0).all()
    assert torch.equal(torch.stack(spy.inputs), states[:-1])
    assert torch.equal(fs.sample(MODEL, 5, **options), states[-1])


def test_gradients_flow_through_what_a_callback_left():
    def change(step):
        step.x[:, :1] = 0.0

    start = torch.linspace(-1, 1, 32).double().reshape(1, *SHAPE).requires_grad_()
    options = {"method": "ddim", "callback": change}
    fs.sample(MODEL, 3, start=start, **options).sum().backward()
    assert start.grad is not None
    step, grad = 1e-6, start.grad.clone()
    for place in ((0, 0, 1, 1), (0, 1, 2, 3)):
        moved = start.detach().clone()
        moved[place] += step
        rise = (
            fs.sample(MODEL, 3, start=moved, **options)
            - fs.sample(MODEL, 3, start=start.detach(), **options)
        ).sum()
        assert float(grad[place]) == pytest.approx(float(rise) / step, rel=1e-5, abs=1e-8)
    assert (grad[:, 0] == 0.0).all()
    assert (grad[:, 1] != 0.0).all()


# ---- what is refused


def call(known=KNOWN, mask=MASK, steps=4, model=MODEL, **options):
    return lambda: fs.inpaint(model, known, mask, steps, **{"seed": 0, **options})


DATA = {
    "integers": (call(KNOWN.long()), TypeError, "known must be a floating tensor, got torch.int64"),
    "list": (call([1.0]), TypeError, "^inpaint: known must be a floating tensor, got list$"),
    "shape": (
        call(KNOWN[:, :1]),
        ValueError,
        r"^inpaint: known must have shape \(3, 2, 4, 4\), got \(3, 1, 4, 4\)$",
    ),
    "no batch": (call(KNOWN[0, 0, 0], model=halve), ValueError, r"must have shape \(B, \*shape\)"),
    "NaN": (
        call(KNOWN * torch.nan),
        ValueError,
        "^inpaint: known must be finite where the mask is 1, got NaN or infinity$",
    ),
    "soft mask": (
        call(mask=0.5 * MASK),
        ValueError,
        r"^inpaint: mask must hold 0 \(to fill in\) and 1 \(known\) alone, got 0\.5$",
    ),
    "NaN mask": (call(mask=MASK * torch.nan), ValueError, "alone, got nan$"),
    "mask of a list": (call(mask=[1]), TypeError, "^inpaint: mask must be a tensor, got list$"),
    "mask's shape": (
        call(mask=torch.ones(3, 4)),
        ValueError,
        r"^inpaint: mask must have a shape that broadcasts to \(3, 2, 4, 4\), got \(3, 4\)$",
    ),
    "mask's device": (
        call(mask=MASK.to("meta")),
        ValueError,
        "^inpaint: mask must be on cpu, got meta$",
    ),
    "samples": (
        call(num_samples=2),
        ValueError,
        r"^inpaint: num_samples must be one number, got \{'known': 3, 'num_samples': 2\}$",
    ),
    "masks and samples": (
        call(mask=MASK.expand(2, 1, 4, 4)),
        ValueError,
        r"^inpaint: num_samples must be one number, got \{'known': 3, 'mask': 2\}$",
    ),
    "start": (
        call(start=KNOWN[:, :1]),
        ValueError,
        r"^inpaint: start must have shape \(3, 2, 4, 4\), got",
    ),
    "callback": (call(callback=1), TypeError, "^inpaint: callback must be callable, got 1$"),
    "pipeline": (
        call(model=SimpleNamespace(unet=halve, scheduler=object())),
        TypeError,
        r"^inpaint: model must be a Denoiser .*, got the pipeline SimpleNamespace",
    ),
    "NaN model": (
        call(model=denoiser(lambda x, t: x * torch.nan, *SHAPE)),
        ValueError,
        r"^inpaint: the model's output must be finite, got NaN in row 0 of 4",
    ),
    "knob": (
        call(variance="large", method="ddim"),
        ValueError,
        '^inpaint: variance must be left out with method="ddim"',
    ),
}
JUMPS = {
    "a number": (
        call(jumps=3),
        TypeError,
        r"^inpaint: jumps must be \(length, repeats\) or None, got 3$",
    ),
    "three": (call(jumps=(1, 2, 3)), TypeError, r"None, got \(1, 2, 3\)$"),
    "length 0": (
        call(jumps=(0, 1)),
        ValueError,
        r"^inpaint: jumps\[0\] must be at least 1, got 0$",
    ),
    "repeats": (
        call(jumps=(1, 1.5)),
        TypeError,
        r"^inpaint: jumps\[1\] must be an integer, got 1\.5$",
    ),
    "too long": (
        call(jumps=(4, 1)),
        ValueError,
        "^inpaint: jumps must have a length below the number of rows 4, got 4$",
    ),
    "a plan with jumps": (
        call(
            steps=fs.restart(LINEAR, fs.grids.uniform(1000, 6), intervals=[(300, 700, 1)]),
            jumps=(1, 1),
        ),
        ValueError,
        r"^inpaint: jumps must be left out with a plan that returns to noisier nodes, got \(1",
    ),
    "a multistep plan": (
        call(steps=fs.unipc(LINEAR, fs.grids.uniform(1000, 6)), jumps=(1, 1)),
        ValueError,
        "^inpaint: jumps must be left out with a plan that reads earlier x0's, got unipc",
    ),
}


@refusals(data=DATA, jumps=JUMPS)
def test_refused(call, error, match):
    check_refusal(call, error, match)


def test_any_schedule():
    edm = fs.NoiseSchedule.from_functions(alpha=lambda t: 1.0, sigma=lambda t: t, T=80.0)
    for schedule in (edm, fs.NoiseSchedule.flow(), fs.NoiseSchedule.vdm()):
        model = Gaussian(schedule, 0.3, 0.5, "v").denoiser(*SHAPE)
        x = fs.inpaint(model, KNOWN, MASK, 8, jumps=(2, 2), eta=1.0, seed=0, grid="log_snr")
        assert torch.equal(x[:, :, :2], KNOWN[:, :, :2])
        assert x.abs().max() < 4.0
