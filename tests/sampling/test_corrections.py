"""Guidance in an interval, rescaled guidance, dynamic thresholding: against plain torch."""

from __future__ import annotations

from functools import partial
from itertools import combinations

import pytest
import torch

import fastsample as fs
from fastsample import grids
from fastsample.grids.registry import GRIDS
from fastsample.plans.rows import COLUMNS
from fastsample.samplers.registry import METHODS
from fastsample.sampling.guidance import dynamic_threshold
from tests.helpers.cases import PREDICTIONS
from tests.helpers.networks import LINEAR, Spy, denoiser, halve, per_sample
from tests.helpers.refusals import check_refusal, refusals, sample

SHAPE = (2, 3, 4)
COND, ABSENT = torch.tensor([1.0, -2.0, 5.0]).double(), torch.tensor([0.5, 0.0, -1.0]).double()
GUIDED = {"cond": {"y": COND}, "uncond": {"y": ABSENT}}
NAN = float("nan")


def labelled(x, t, y):
    return 0.6 * torch.tanh(x) + per_sample(t, x) * 2.0**-11 + 0.2 * per_sample(y, x) * x.sin()


def labelled_wide(x, t, y):
    return torch.cat((labelled(x, t, y), torch.cos(x + per_sample(y, x))), dim=1)


MODEL = denoiser(labelled, *SHAPE)


TIMES = (1000, 750, 500, 250)
ENDS = [*combinations((0, 249.9, 250, 250.1, 750, 1000, 5000), 2)]
HIT = {ends: [ends[0] < t <= ends[1] for t in TIMES] for ends in ENDS}


@pytest.mark.parametrize("interval", [ends for ends in ENDS if any(HIT[ends])], ids=str)
@pytest.mark.parametrize("scales", [[3.0] * 4, [2.0, -1.0, 0.0, 4.0]], ids=str)
def test_rows_outside_the_interval_have_scale_1_and_cost_B(interval, scales):
    def guided(network, guidance, interval=None):
        options = {
            "guidance": guidance,
            "guidance_interval": interval,
            "eta": 1.0,
            **GUIDED,
            "seed": 0,
        }
        return fs.sample(denoiser(network, *SHAPE), [*TIMES, 0], **options)

    spy, rows = Spy(labelled), HIT[interval]
    got = guided(spy, 3.0 if scales[0] == 3.0 else scales, interval)
    assert spy.batches == [6 if row else 3 for row in rows]
    each = [w if row else 1.0 for w, row in zip(scales, rows, strict=True)]
    assert torch.equal(got, guided(labelled, each))
    assert torch.equal(got, guided(labelled, scales)) == all(rows)


def test_an_interval_replaces_the_scales_of_a_plan_if_given_with_another():
    plan = fs.ddim(LINEAR, grids.uniform(1000, 4)).with_guidance(9.0)
    got = fs.sample(MODEL, plan, guidance=2.0, guidance_interval=(300, 600), seed=0, **GUIDED)
    options = {"guidance": [1.0, 1.0, 2.0, 1.0], "method": "ddim", "seed": 0, **GUIDED}
    assert torch.equal(got, fs.sample(MODEL, 4, **options))
    with pytest.raises(ValueError, match="guidance_interval must be left out with a guided Plan"):
        fs.sample(MODEL, plan, guidance_interval=(300, 600), **GUIDED)


# ---- loops in plain torch


def by_hand(plan, network, x, noise, mix=None, imagen=None):
    """A plan's rows in float64; `mix(c, u, w)` and `imagen(x0)` replace guidance and clipping."""
    old = older = torch.zeros_like(x)
    for k, (row, t) in enumerate(zip(plan.rows.tolist(), plan.times.tolist(), strict=True)):
        r = dict(zip(COLUMNS, row, strict=True))
        told = torch.full((len(x),), t - 1.0, dtype=torch.float64)
        c, u = network(x, told, COND), network(x, told, ABSENT)
        m, v = c[:, :2], c[:, 2:] if c.shape[1] > 2 else -torch.ones_like(x)
        if mix and r["w"] != 1.0:
            m = mix(m, u[:, :2], r["w"])
        x0 = r["p"] * x + r["q"] * m
        x0 = imagen(x0) if imagen else x0.clamp(r["lo"], r["hi"])
        sd = r["d"] * torch.exp((r["lv_lo"] + (v + 1) / 2 * (r["lv_hi"] - r["lv_lo"])) / 2)
        x = r["a"] * x + r["b"] * x0 + r["e"] * m + r["c1"] * old + r["c2"] * older + sd * noise[k]
        old, older = x0, old
    return x


def rescaled(phi):
    theirs = pytest.importorskip("diffusers.guiders.guider_utils").rescale_noise_cfg
    return lambda c, u, w: theirs(u + w * (c - u), c, guidance_rescale=phi)


def quantile(q, bound):
    def squashed(x0):  # section 2.3 of the Imagen paper
        s = torch.quantile(x0.abs().flatten(1), q, dim=1).clamp(min=bound)
        s = s.reshape(-1, *[1] * (x0.dim() - 1))
        return torch.clamp(x0, -s, s) * bound / s

    return squashed


CASES = {
    "ddim": {"method": "ddim"},
    "eta": {"eta": 0.7},
    "ancestral": {"method": "ancestral"},
    "learned": {"method": "ancestral", "variance": "learned_range"},
    "fastdpm": {"method": "fastdpm", "kappa": 0.3},
    "shortcut": {"method": "shortcut"},
    **{f"dpm++ {order}": {"method": "dpm++", "order": order} for order in (1, 2, 3)},
    "dpm++ sde": {"method": "dpm++", "stochastic": True},
    "unipc": {"method": "unipc"},
    "raw": {"rederive": False, "eta": 0.5},
}


def compare(prediction, method, mix=None, guidance=None, imagen=None, clip=1.5, **options):
    """`sample` is the loop in plain torch."""
    kind = method.get("variance", "small")
    network = labelled if kind == "small" else labelled_wide
    model = denoiser(network, *SHAPE, prediction=prediction, variance=kind, clip=clip)
    start, noise = torch.randn(3, *SHAPE).double(), torch.randn(5, 3, *SHAPE).double()
    given = {"cond": {"y": COND}} if guidance is None else {"guidance": guidance, **GUIDED}
    knobs = {"clip": clip, "prediction": prediction, **method}
    chosen = METHODS[knobs.pop("method", "ddim")]
    times = 5 if chosen.chooses_times else GRIDS[chosen.grid](LINEAR, 5)
    plan = chosen.make(LINEAR, times, **knobs)
    drawn = {"noise": noise} if plan.is_stochastic else {}
    got = fs.sample(model, 5, start=start, **drawn, **given, **method, **options)
    plan = plan.with_guidance(1.0 if guidance is None else guidance)
    expected = by_hand(plan, network, start, noise, mix, imagen)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("phi", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("method", CASES.values(), ids=CASES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_rescaling_is_that_of_diffusers(prediction, method, phi):
    compare(prediction, method, rescaled(phi), [3.0, 1.0, 7.5, 0.0, 2.0], guidance_rescale=phi)


def test_constant_outputs_are_not_rescaled():
    network = denoiser(lambda x, t, y: torch.ones_like(x) * per_sample(y, x), *SHAPE)
    options = {"guidance": 2.0, "seed": 0, **GUIDED}
    once = fs.sample(network, 3, guidance_rescale=0.7, **options)
    assert torch.equal(once, fs.sample(network, 3, **options))


# ---- dynamic thresholding


@pytest.mark.parametrize("shape", [(1, 1), (4, 2), (3, 7), (2, 3, 5), (2, 3, 8, 8)], ids=str)
@pytest.mark.parametrize("q", [0.0, 1e-9, 0.3, 0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("bound", [0.3, 1.0, 2.5])
def test_the_quantile_is_torchs(shape, q, bound):
    for scale in (0.1, 1.0, 10.0):
        x0 = scale * torch.randn(shape, dtype=torch.float64)
        got, expected = dynamic_threshold(x0, bound, q), quantile(q, bound)(x0)
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=0.0)


def test_a_quantile_below_the_bound_leaves_a_clamp():
    x0 = torch.tensor([[0.1, -0.4, 0.2, 0.0, -9.0]])
    for bound in (0.5, 0.7, 3.0):
        got, clamped = dynamic_threshold(x0, bound, 0.75), x0.clamp(-bound, bound)
        torch.testing.assert_close(got, clamped, rtol=2e-7, atol=0.0)


def test_each_sample_for_itself_bit_for_bit():
    x0 = 3.0 * torch.randn(4, 3, 8, 8)
    x0[2] *= 100.0
    together = dynamic_threshold(x0, 1.0, 0.97)
    for i in range(4):
        assert torch.equal(together[i : i + 1], dynamic_threshold(x0[i : i + 1], 1.0, 0.97))


def test_nothing_low_precision_and_NaN():
    assert dynamic_threshold(torch.zeros(0, 3, 4), 1.0, 0.9).shape == (0, 3, 4)
    x0 = 3.0 * torch.randn(2, 50)
    low, expected = dynamic_threshold(x0.bfloat16(), 1.0, 0.9), quantile(0.9, 1.0)(x0).bfloat16()
    torch.testing.assert_close(low, expected, rtol=2e-2, atol=2e-2)
    x0[0, 7] = torch.nan
    assert dynamic_threshold(x0, 1.0, 0.9).isnan().nonzero().tolist() == [[0, 7]]


@pytest.mark.parametrize("method", [name for name in CASES if name != "raw"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_thresholding_alone_and_with_the_rest(prediction, method):
    alone = {"imagen": quantile(0.8, 0.4), "threshold": 0.8, "clip": 0.4}
    compare(prediction, CASES[method], **alone)
    compare(prediction, CASES[method], rescaled(0.7), 3.0, guidance_rescale=0.7, **alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_x0_is_within_the_bound(dtype):
    seen = []
    options = {"shape": (64,), "threshold": 0.9, "clip": 0.3, "eta": 1.0, "dtype": dtype, "seed": 0}
    got = fs.sample(halve, 4, num_samples=9, callback=seen.append, **options)
    assert got.dtype == dtype
    assert all(step.x0.abs().max() == torch.tensor(0.3) for step in seen)
    assert torch.equal(fs.sample(halve, 4, sample_index=[7], **options)[0], got[7])


def test_gradients_flow_through_the_statistics():
    x0 = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dynamic_threshold(x, 0.5, 0.8), x0)
    start = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    options = {"guidance": 2.0, "guidance_rescale": 0.6, "threshold": 0.8, "clip": 0.5, **GUIDED}
    model = denoiser(labelled, 2, 3, prediction="v")
    assert torch.autograd.gradcheck(lambda x: fs.sample(model, 3, start=x, **options), start)
    assert not fs.sample(model, 3, start=start.detach(), **options).requires_grad


# ---- what is refused

REAL, UNIT = r"must (be a|hold) real number", r"must be in \[0, 1\], got "
PAIR = r"must be two times \(low, high\) with 0 <= low < high, got "
NO_ENDS = ((5, 2), (5, 5), (-1, 5), (1, 2, 3), 7.0)
NO_ROW = "must hold a time of the run, 1000 to 333, got "
BAD = {
    "guidance_interval": {
        **dict.fromkeys(NO_ENDS, PAIR),
        **dict.fromkeys([(0, 9), (334, 600), (1000, 5000)], NO_ROW),
        (NAN, 5): "must be finite, got nan",
        "ab": REAL,
    },
    "guidance_rescale": {-0.1: UNIT, 1.5: UNIT, NAN: UNIT, "a": REAL},
    "threshold": {-0.1: UNIT, 1.5: UNIT, NAN: UNIT, 0.0: "must be above 0, got 0", True: REAL},
}
BOUND = r"sample: threshold must go with a clip bound on \|x0\|, the data's range, got "
GRAPH = r"graph must be False with .*guidance_rescale or threshold, got True"
steered = partial(sample, MODEL, method="ddim", guidance=2.0, **GUIDED)
VALUES = {
    f"{name}={value}": (
        steered(**{name: value}),
        TypeError if match is REAL else ValueError,
        f"sample: {name} {match}",
    )
    for name, table in BAD.items()
    for value, match in table.items()
}
TOGETHER = {
    "interval": (sample(guidance_interval=(0, 5)), ValueError, "guidance must be .* guidance_int"),
    "rescale": (sample(guidance_rescale=0.5), ValueError, "guidance must be .* guidance_rescale"),
    "no clip": (sample(threshold=0.9), ValueError, BOUND + r"\(-inf, inf\); pass clip=1\.0"),
    "one side": (sample(threshold=0.9, clip=(0.0, 1.0)), ValueError, BOUND + r"\(0, 1\)"),
    "raw": (sample(threshold=0.9, clip=1.0, rederive=False), ValueError, r"rows .* \(e = 0\), got"),
    # On the CPU too: this comes before the search for a GPU.
    "graph": (sample(threshold=0.9, clip=1.0, graph=True), ValueError, GRAPH),
    "graph, rescale": (steered(guidance_rescale=0.5, graph=True), ValueError, GRAPH),
}


@refusals(values=VALUES, together=TOGETHER)
def test_refused(call, error, match):
    check_refusal(call, error, match)
