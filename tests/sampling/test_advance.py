"""`Sampler.advance` and `SamplerStack`: every sample at its own row gives what it gives alone."""

from __future__ import annotations

import copy
import pickle
import random

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.plans.rows import row_table
from tests.helpers.networks import LINEAR, Spy, denoiser, halve, per_sample
from tests.helpers.refusals import check_refusal, refusals
from tests.helpers.tensors import same_bits

SHAPE = (2, 3, 5)


def labelled(x, t, y):
    return halve(x, t) + 0.25 * per_sample(y, x)


def labelled_wide(x, t, y):
    return torch.cat((labelled(x, t, y), 0.25 * x), dim=1)


def jumping(*plans: fs.Plan) -> fs.Plan:
    """Plans one after the other, with a row without a call from each one's end to the next."""
    nodes, rows = [plans[0].nodes], [plans[0].rows]
    for plan in plans[1:]:
        low, high = nodes[-1][-1], plan.nodes[0]
        (alpha, above), (sigma, noisier) = LINEAR.levels(np.array([low, high]))
        a = above / alpha
        d = np.sqrt(noisier**2 - (a * sigma) ** 2)
        nodes.append(plan.nodes)
        rows += [row_table(1, a=a, d=d), plan.rows]
    times = np.concatenate(nodes)
    return fs.Plan(
        times,
        np.concatenate(rows),
        *LINEAR.levels(times),
        "epsilon",
        "jumping",
        "mean",
        LINEAR,
        times=np.where(times[:-1] > 0, times[:-1], 1.0),
    )


JUMPING = jumping(
    fs.dpm_solver(LINEAR, fs.Grid([900, 600, 300, 0]), order=2).until(300),
    fs.dpm_solver(LINEAR, fs.Grid([700, 450, 300, 0]), order=3),
)
GUIDED = {"guidance": 2.5, "uncond": {"y": 0.0}}
SAMPLERS = {
    "default": {"steps": 4},
    "default, longer": {"steps": 9},
    "one call": {"steps": 1},
    "ddim": {"steps": 3, "method": "ddim"},
    "eta": {"steps": 5, "eta": 0.7, "clip": 1.0},
    "raw": {"steps": 5, "rederive": False, "clip": 0.5},
    "ancestral": {"steps": 6, "method": "ancestral", "variance": "large"},
    "dpm++ 3": {"steps": 7, "method": "dpm++", "order": 3},
    "dpm++ sde": {"steps": 6, "method": "dpm++", "stochastic": True},
    "jumping": {"steps": JUMPING},
    "guided": {"steps": 5, **GUIDED},
    "guided in part": {"steps": 8, **GUIDED, "guidance_interval": (100, 600), "eta": 1.0},
}
LEARNED = {
    "learned": {"steps": 5, "method": "ancestral", "variance": "learned_range"},
    "learned, guided": {"steps": 3, "method": "ancestral", "variance": "learned_range", **GUIDED},
    "small": {"steps": 4, "method": "ancestral", "variance": "small"},
    "jumping": {"steps": JUMPING},
    "default": {"steps": 6},
}


def stack_of(samplers, network, **options):
    model = denoiser(network, *SHAPE, **options)
    made = [fs.Sampler(model, **arguments) for arguments in samplers.values()]
    return made, fs.SamplerStack(made)


def serve(stack, requests, slots, order, **options):
    """Results of requests (sampler, seed, index, y) that come and go at random, with rests."""
    lengths = [len(plan) for plan in stack.plans]
    results, waiting = [None] * len(requests), list(range(len(requests)))
    running, rows = [None] * slots, [-1] * slots
    x, history = stack.start(slots, seed=0).to(options.get("dtype", torch.float32)), fs.History()
    x = x * torch.nan  # what rests is not read
    while waiting or any(name is not None for name in running):
        for slot in range(slots):
            if running[slot] is None and waiting and order.random() < 0.7:
                running[slot], rows[slot] = waiting.pop(), 0
                which, seed, index, _ = requests[running[slot]]
                x[slot] = stack.start(sampler=which, seed=[seed], sample_index=[index])[0]
        resting = [order.random() < 0.1 for _ in range(slots)]
        each = [requests[0 if name is None else name] for name in running]
        x = stack.advance(
            x,
            [-1 if rest else row for rest, row in zip(resting, rows, strict=True)],
            sampler=[sampler for sampler, *_ in each],
            seed=[seed for _, seed, _, _ in each],
            sample_index=[index for _, _, index, _ in each],
            cond={"y": torch.tensor([y for *_, y in each])},
            history=history,
        )
        for slot, name in enumerate(running):
            if name is not None and not resting[slot]:
                rows[slot] += 1
                if rows[slot] == lengths[requests[name][0]]:
                    results[name] = x[slot].clone()
                    running[slot], rows[slot] = None, -1
        if order.random() < 0.1:  # samples move to other slots
            places = order.sample(range(slots), slots)
            x, history = x[places], history.select(places)
            running, rows = [running[p] for p in places], [rows[p] for p in places]
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("wide", [False, True], ids=["plain", "learned variance"])
def test_every_request_is_that_of_its_sampler_alone(wide, dtype):
    table = LEARNED if wide else SAMPLERS
    table = {name: {**arguments, "dtype": dtype} for name, arguments in table.items()}
    network, variance = (labelled_wide, "learned_range") if wide else (labelled, "small")
    samplers, stack = stack_of(table, network, variance=variance)
    order = random.Random(5)
    requests = [
        (n % len(samplers), order.randrange(2**64), order.randrange(2**40), order.uniform(-2, 2))
        for n in range(3 * len(samplers))
    ]
    results = serve(stack, requests, 5, order, dtype=dtype)
    for (sampler, seed, index, y), result in zip(requests, results, strict=True):
        alone = samplers[sampler](seed=[seed], sample_index=[index], cond={"y": torch.tensor([y])})
        assert same_bits(result, alone[0]), list(table)[sampler]


def test_a_sampler_advances_a_batch_as_it_samples():
    sampler = fs.Sampler(denoiser(halve, *SHAPE), 6, method="dpm++", order=3)
    x, history = sampler.start(4, seed=3, sample_index=7), fs.History()
    for row in range(6):
        x = sampler.advance(x, row, seed=3, sample_index=7, history=history)
    assert same_bits(x, sampler(4, seed=3, sample_index=7))
    assert history.depth.tolist() == [2] * 4


def test_rows_at_a_time_of_their_own_reach_the_network():
    spy = Spy(halve)
    model = denoiser(spy, *SHAPE)
    whole = fs.Sampler(model, [1000, 400, 7, 0], method="ddim")
    stack = fs.SamplerStack([whole, fs.Sampler(model, [900, 300.5, 0], method="ddim")])
    x = torch.zeros(3, *SHAPE)
    whole.advance(x, [0, 2, 1])
    assert spy.told[-1].tolist() == [999, 6, 399]
    assert spy.told[-1].dtype == torch.int64
    stack.advance(x, [0, 1, 1], sampler=[0, 1, 0])
    assert spy.told[-1].tolist() == [999.0, 299.5, 399.0]
    assert spy.told[-1].dtype == torch.float32  # one dtype for all


def test_the_network_runs_for_samples_whose_rows_call_it_and_no_others():
    spy = Spy(labelled)
    model = denoiser(spy, *SHAPE)
    stack = fs.SamplerStack([fs.Sampler(model, JUMPING), fs.Sampler(model, 4, **GUIDED)])
    (jump,) = np.flatnonzero(~JUMPING.calls_network)
    x, y = torch.ones(4, *SHAPE), torch.tensor([1.0, 2.0, 3.0, 4.0])
    given = {"seed": 1, "cond": {"y": y}, "history": fs.History()}
    stack.advance(x, [0, -1, int(jump), 0], sampler=0, **given)
    assert spy.batches == [2]
    assert spy.conditions[-1]["y"].tolist() == [1.0, 4.0]
    rest = stack.advance(x, -1, **given)
    jumped = stack.advance(x, [-1, -1, int(jump), -1], **given)
    assert spy.batches == [2]
    assert same_bits(rest, x)
    assert torch.equal(
        jumped == x, torch.tensor([True, True, False, True])[:, None, None, None] | (x == 0)
    )
    stack.advance(x, [0, 0, -1, 0], sampler=[0, 1, 1, 1], **given)
    assert spy.batches[-1] == 6
    assert spy.conditions[-1]["y"].tolist() == [0.0, 0.0, 0.0, 1.0, 2.0, 4.0]
    assert spy.modes[-1] == (False, True)


def test_a_refilled_slot_does_not_see_the_sample_before_it():
    sampler = fs.Sampler(denoiser(halve, *SHAPE), 5, method="dpm++", order=3)
    x, history = sampler.start(2, seed=0), fs.History()
    x[0] = torch.nan
    for row in range(3):
        x = sampler.advance(x, [row, row], history=history)
    assert torch.isnan(history.x0s[0][0]).all()
    x[0] = sampler.start(seed=9)[0]
    x = sampler.advance(x, [0, 3], history=history)
    x = sampler.advance(x, [1, 4], history=history)
    for row in (2, 3, 4):
        x = sampler.advance(x, [row, -1], history=history)
    assert same_bits(x[0], sampler(seed=9)[0])
    assert same_bits(x[1], sampler(2, seed=0)[1])


def test_history_moves_with_samples_and_is_kept_by_a_copy():
    sampler = fs.Sampler(denoiser(halve, *SHAPE), 5)
    x, history = sampler.start(2, seed=0), fs.History()
    assert history.select([0, -1]).x0s == ()
    x = sampler.advance(x, [0, -1], history=history)
    kept = history.copy()
    assert history.depth.tolist() == [1, 0]
    moved = history.select([-1, 0, 1])
    assert moved.depth.tolist() == [0, 1, 0]
    assert same_bits(moved.x0s[0][1], history.x0s[0][0])
    assert not moved.x0s[0][0].any()
    before = kept.x0s[0].clone()
    sampler.advance(x, [1, 0], history=history)
    assert same_bits(kept.x0s[0], before)
    assert kept.depth.tolist() == [1, 0]
    assert len(history.select([]).x0s[0]) == 0
    assert history.select([]).select([-1]).depth.tolist() == [0]
    assert repr(kept) == "History(depth=[1, 0])"


def test_start_is_the_noise_that_sampling_starts_from():
    sampler = fs.Sampler(denoiser(halve, *SHAPE), 3, dtype=torch.float64)
    states = sampler(seed=[4, 5], sample_index=[1, 2], return_states=True)
    assert same_bits(sampler.start(seed=[4, 5], sample_index=[1, 2]), states[0])
    torch.manual_seed(3)
    fresh = sampler.start(2)
    torch.manual_seed(3)
    assert same_bits(fresh, sampler(2, return_states=True)[0])


def test_samplers_that_have_advanced_can_be_copied():
    sampler = fs.Sampler(denoiser(halve, *SHAPE), 3, method="ddim")
    x = sampler.start(2, seed=0)
    after = sampler.advance(x, 0)
    for other in (copy.copy(sampler), copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert same_bits(other.advance(x, 0), after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_starts_have_the_deviation_of_their_schedule(dtype):
    wide = fs.NoiseSchedule.from_functions(alpha=lambda t: 1.0, sigma=lambda t: t, T=80.0)
    given = {"time": "log_snr", "prediction": "x0"}
    models = [denoiser(halve, *SHAPE, schedule=s, **given) for s in (wide, LINEAR)]
    samplers = [fs.Sampler(model, 4, method="ddim", dtype=dtype) for model in models]
    x = fs.SamplerStack(samplers).start(sampler=[0, 1, 0], seed=[1, 2, 3])
    for n, which in enumerate((0, 1, 0)):
        alone = samplers[which](seed=[n + 1], return_states=True)[0]
        assert same_bits(x[n], alone[0])
    assert float(x[0].abs().mean()) > 10


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_no_gradient_flows_and_any_mode_will_do(mode):
    weight = torch.nn.Parameter(torch.ones(()))
    sampler = fs.Sampler(denoiser(lambda x, t: weight * halve(x, t), *SHAPE), 4, eta=1.0)
    start = sampler.start(2, seed=1)
    with mode():
        x = start.clone().requires_grad_(mode is torch.enable_grad)
        for row in range(4):
            x = sampler.advance(x, row, seed=1)
    assert not x.requires_grad
    assert same_bits(x.clone(), sampler(2, seed=1))


def test_layouts_and_empty_batches():
    sampler = fs.Sampler(denoiser(halve, *SHAPE), 4)
    x = sampler.start(3, seed=1)
    wanted = sampler.advance(x, [0, 0, 0], history=fs.History())
    last = x.contiguous(memory_format=torch.channels_last)
    assert same_bits(sampler.advance(last, 0, history=fs.History()).contiguous(), wanted)
    assert sampler.advance(x[:0], [], history=fs.History()).shape == (0, *SHAPE)


MODEL = denoiser(labelled, *SHAPE)
X = torch.zeros(2, *SHAPE)
PLAIN = fs.Sampler(MODEL, 4, method="ddim")
MULTI = fs.Sampler(MODEL, 4)
NOISY = fs.Sampler(MODEL, 4, eta=1.0)
Y = {"cond": {"y": [1.0, 2.0]}}


def advance(sampler=PLAIN, x=X, row=0, **options):
    return lambda: sampler.advance(x, row, **{**Y, **options})


def stacked(*samplers):
    return lambda: fs.SamplerStack(samplers)


def writing(x, t):
    return x.mul_(2.0)


def other_batch():
    history = fs.History()
    MULTI.advance(X, 0, **Y, history=history)
    return MULTI.advance(X[:1], 0, cond={"y": [1.0]}, history=history)


@refusals(
    advance={
        "x": (advance(x=[1.0]), TypeError, "x must be a tensor"),
        "dtype": (advance(x=X.long()), TypeError, "x must be one of"),
        "shape": (advance(x=X[0]), ValueError, r"x must have shape \(B, 2, 3, 5\)"),
        "start": (
            lambda: fs.SamplerStack([PLAIN]).start(2, sampler=1),
            ValueError,
            r"sampler must be in \[0, 0\], got 1",
        ),
        "row": (advance(row=4), ValueError, r"row must be in \[-1, 3\].*got 4 for sample 0"),
        "below": (advance(row=[0, -2]), ValueError, "got -2 for sample 1"),
        "rows": (advance(row=[0]), ValueError, r"one per sample \(2,\), got 1"),
        "real": (advance(row=[0.0, 1.0]), TypeError, "row must be an integer"),
        "true": (advance(row=True), TypeError, "row must be an integer"),
        "sampler": (
            lambda: fs.SamplerStack([PLAIN]).advance(X, 0, sampler=1, **Y),
            ValueError,
            r"sampler must be in \[0, 0\], got 1",
        ),
        "seed": (advance(NOISY), ValueError, "seed must be given for rows that draw noise"),
        "seeds": (advance(NOISY, seed="a"), TypeError, "seed must be an integer"),
        "history": (advance(MULTI), ValueError, "history must be given.*fs.History"),
        "no history": (advance(MULTI, history=[X]), TypeError, "history must be a History"),
        "missing": (
            advance(MULTI, row=[0, 2], history=fs.History()),
            ValueError,
            "history must hold the 2 earlier x0's that the row of sample 1 reads, got 0",
        ),
        "another batch": (other_batch, ValueError, "history must be of the batch.*select"),
        "cond": (advance(cond={"y": [1.0]}), ValueError, "one entry per sample"),
        "writes": (
            lambda: fs.Sampler(denoiser(writing, *SHAPE), 2, method="ddim").advance(X, 0),
            ValueError,
            "the model must not write to x",
        ),
        "select": (
            lambda: fs.History().select([-2]),
            ValueError,
            r"samples must be in \[-1, -1\], got -2",
        ),
    },
    stack={
        "none": (stacked(), ValueError, "samplers must be at least one"),
        "a plan": (stacked(PLAIN.plan), TypeError, "samplers must be Samplers, got Plan"),
        "other model": (
            stacked(PLAIN, fs.Sampler(denoiser(halve, *SHAPE), 3)),
            ValueError,
            "samplers must be of one network",
        ),
        "rescaled": (
            stacked(fs.Sampler(MODEL, 4, **GUIDED, guidance_rescale=0.5)),
            ValueError,
            "guidance_rescale and threshold must be off",
        ),
        "uncond": (
            stacked(
                fs.Sampler(MODEL, 4, **GUIDED),
                fs.Sampler(MODEL, 4, guidance=2.0, uncond={"y": 1.0}),
            ),
            ValueError,
            "samplers must have the same uncond",
        ),
    },
)
def test_refused(call, error, match):
    check_refusal(call, error, match)


def test_equal_unconditional_values_may_be_other_objects():
    a, b = ({"y": torch.zeros(1), "s": (1, np.zeros(2))} for _ in range(2))
    made = [fs.Sampler(MODEL, 4, guidance=2.0, uncond=u) for u in (a, b)]
    assert "2 plans" in repr(fs.SamplerStack(made))


def test_a_network_in_training_mode_is_told_of():
    layer = torch.nn.Sequential(torch.nn.Dropout(0.5))
    sampler = fs.Sampler(denoiser(lambda x, t: layer(x), *SHAPE), 3, method="ddim")
    with pytest.warns(UserWarning, match="training mode"):
        sampler.advance(X, 0)


@pytest.mark.cuda
def test_on_a_gpu_as_alone():
    samplers, stack = stack_of(SAMPLERS, labelled, device="cuda")
    order = random.Random(7)
    seeds = range(len(samplers))
    lengths = [len(plan) for plan in stack.plans]
    x, history = stack.start(seed=list(seeds)), fs.History()
    y = torch.linspace(-1, 1, len(samplers))
    rows = [0] * len(samplers)
    while any(row < length for row, length in zip(rows, lengths, strict=True)):
        now = [
            row if row < length and order.random() < 0.8 else -1
            for row, length in zip(rows, lengths, strict=True)
        ]
        given = {"seed": list(seeds), "cond": {"y": y}, "history": history}
        x = stack.advance(x, now, sampler=list(seeds), **given)
        rows = [row + (step >= 0) for row, step in zip(rows, now, strict=True)]
    for n, sampler in enumerate(samplers):
        assert same_bits(x[n], sampler(seed=[n], cond={"y": y[n : n + 1]})[0])
