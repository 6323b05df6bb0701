"""Seeds: fresh by default, governed by torch, and with noise of its own for every purpose."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import ops
from fastsample.ops import draws
from tests.helpers.networks import LINEAR, Spy, denoiser, halve, halve_wide
from tests.helpers.refusals import MODEL, START, check_refusal, refusals, sample

# ---- the default


def test_a_thousand_default_calls_have_distinct_seeds_that_torch_governs():
    sampler = fs.Sampler(halve, 1, shape=(1,))

    def seeds(count):
        found = []
        for _ in range(count):
            sampler()
            found.append(sampler.seed)
        return found

    torch.manual_seed(7)
    first = seeds(1000)
    assert len(set(first)) == 1000
    assert all(type(seed) is int and 0 <= seed < 2**63 for seed in first)
    assert max(first) > 2**62  # all bits are used
    torch.manual_seed(7)
    assert seeds(10) == first[:10]
    torch.manual_seed(7)
    assert [fs.new_seed() for _ in range(10)] == first[:10]


@pytest.mark.parametrize("function", ["sample", "Sampler", "diffuse"])
def test_two_default_calls_differ_and_a_seed_repeats_one(function):
    def call(**options):
        if function == "diffuse":
            return fs.diffuse(START, LINEAR, 500, **options)
        if function == "Sampler":
            return fs.Sampler(MODEL, 3)(2, **options)
        return fs.sample(MODEL, 3, num_samples=2, **options)

    torch.manual_seed(1)
    one, other = call(), call()
    assert not torch.equal(one, other)
    torch.manual_seed(1)
    assert torch.equal(call(), one)
    torch.manual_seed(1)
    assert torch.equal(call(seed=fs.new_seed()), one)
    assert torch.equal(call(seed=None), other)


def test_the_default_draws_under_inference_mode_and_no_grad():
    for mode in (torch.inference_mode, torch.no_grad):
        torch.manual_seed(4)
        expected = fs.sample(MODEL, 2)
        torch.manual_seed(4)
        with mode():
            assert torch.equal(fs.sample(MODEL, 2), expected)


def test_the_seed_of_a_sampler_repeats_its_last_call():
    sampler = fs.Sampler(MODEL, 4, method="ancestral")
    assert sampler.seed is None
    got = sampler(3)
    assert torch.equal(sampler(3, seed=sampler.seed), got)
    seeds = [3, 5, 3]
    sampler(seed=seeds)
    assert sampler.seed == seeds
    sampler(1, seed=9)
    assert sampler.seed == 9


# ---- generators


def test_a_generator_gives_a_seed_and_moves_on():
    def generator():
        return torch.Generator().manual_seed(11)

    one = generator()
    first, second = (fs.sample(MODEL, 3, num_samples=2, seed=one) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(fs.sample(MODEL, 3, num_samples=2, seed=generator()), first)
    state = torch.get_rng_state()
    sampler = fs.Sampler(MODEL, 3)
    assert torch.equal(sampler(2, seed=generator()), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(fs.sample(MODEL, 3, num_samples=2, seed=sampler.seed), first)
    noisy = fs.diffuse(START, LINEAR, 300, seed=generator())
    assert torch.equal(noisy, fs.diffuse(START, LINEAR, 300, seed=sampler.seed))


# ---- no seed where none is needed

NOISE = torch.ones(3, 2, 2, 3)
UNNEEDED = {
    "deterministic": {"start": START},
    "explicit noise": {"start": START, "noise": NOISE, "method": "ancestral"},
    "empty": {"start": START[:0]},
}


@pytest.mark.parametrize("options", UNNEEDED.values(), ids=UNNEEDED)
def test_no_random_numbers_are_consumed_where_none_are_needed(options):
    state, generator = torch.get_rng_state(), torch.Generator().manual_seed(3)
    untouched = generator.get_state()
    got = fs.sample(MODEL, 3, **options)
    assert torch.equal(fs.sample(MODEL, 3, **options), got)
    assert torch.equal(fs.sample(MODEL, 3, seed=generator, **options), got)
    assert torch.equal(generator.get_state(), untouched)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_sampler_forgets_its_seed_after_a_call_that_needed_none():
    sampler = fs.Sampler(MODEL, 3)
    sampler(2, seed=4)
    sampler(start=START)
    assert sampler.seed is None


@pytest.mark.parametrize(
    "options",
    [{}, {"start": START, "eta": 1.0}, {"noise": NOISE, "eta": 1.0}, {"seed": None}],
    ids=list,
)
def test_one_number_is_consumed_where_noise_is_drawn(options):
    torch.manual_seed(5)
    fs.new_seed()
    state = torch.get_rng_state()
    torch.manual_seed(5)
    fs.sample(MODEL, 3, **options)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.filterwarnings("ignore:.* data must be on the decoder's bins:UserWarning")
def test_diffuse_consumes_nothing_with_explicit_noise():
    state = torch.get_rng_state()
    fs.diffuse(START, LINEAR, 300, noise=START)
    fs.profile(MODEL, START, times=[5, 500])
    fs.bits_per_dim(MODEL, START / 2, 3)
    assert torch.equal(torch.get_rng_state(), state)


# ---- noise of its own for every purpose


def test_draws_of_different_purposes_never_overlap():
    most = 2**20 - 1  # calls of a run, times of a bound
    blocks = {
        "rows": range(most),
        "start": range(draws.START_DRAW, draws.START_DRAW + 1),
        **{
            name: range(first, first + most)
            for name, first in vars(draws).items()
            if name.endswith("_DRAW") and name != "START_DRAW"
        },
    }
    assert len(blocks) >= 7
    for (one, a), (other, b) in itertools.combinations(blocks.items(), 2):
        assert a.stop <= b.start or b.stop <= a.start, (one, other)
    assert all(block.start >= 0 and block.stop <= 2**32 for block in blocks.values())


def test_the_draws_are_those_of_the_contract():
    """Stored results depend on them: they stay as they are."""
    names = ("DIFFUSE", "PROFILE", "BITS_PER_DIM", "TUNE", "INPAINT")
    found = [getattr(draws, f"{name}_DRAW") for name in names]
    assert found == [2**32 - (n + 1) * 2**20 for n in range(1, 6)]
    assert draws.START_DRAW == 2**32 - 1
    assert draws.NOISE_VERSION == 2


WIDTH = 20_000


def drawn(monkeypatch, run):
    """All noise that a function generates through `ops.noise`, in rows `(n, WIDTH)`."""
    kept, original = [], ops.noise

    def noise(*arguments, **options):
        found = original(*arguments, **options)
        kept.append(found.double().reshape(-1, WIDTH))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(ops, "noise", noise)
        run()
    assert kept
    return torch.cat(kept)


@pytest.mark.filterwarnings("ignore:.* data must be on the decoder's bins:UserWarning")
def test_purposes_are_not_correlated_under_equal_seeds(monkeypatch):
    model = denoiser(lambda x, t: 0.1 * x, WIDTH, clip=1.0)
    data = torch.zeros(2, WIDTH)
    rows = ops.noise(torch.tensor([0]), torch.tensor([0]), (WIDTH,), draw=0)
    few = {"samples": 20, "gradient_steps": 0, "rows": False, "methods": ["ddim"], "max_runs": 2}
    runs = {
        "sample": lambda: fs.sample(model, 2, num_samples=2, seed=0),
        "diffuse": lambda: fs.diffuse(data, LINEAR, 500, seed=0),
        "profile": lambda: fs.profile(model, data, times=[10, 500], trajectories=2, seed=0),
        "bits_per_dim": lambda: fs.bits_per_dim(model, data, 3, seed=0),
        "tune": lambda: fs.tune(model, 2, **few, seed=0),
    }
    found = {"rows": rows.double()}
    for name, run in runs.items():
        found[name] = torch.unique(drawn(monkeypatch, run), dim=0)[:8]
    every = torch.cat(list(found.values()))
    correlation = torch.corrcoef(every) - torch.eye(len(every))
    assert correlation.abs().max() < 0.04  # 5.5 deviations
    assert (every.std(dim=1) - 1.0).abs().max() < 0.03


def test_noise_of_a_run_and_of_diffuse_are_not_correlated_in_the_rows_either():
    seen = []
    still = denoiser(lambda x, t: torch.zeros_like(x), WIDTH)
    plan = fs.ancestral(LINEAR, fs.Grid([900, 500, 100, 0]))
    fs.sample(still, plan, start=torch.zeros(1, WIDTH), seed=0, callback=seen.append)
    eps = fs.diffuse(torch.zeros(1, WIDTH), LINEAR, 500, seed=0)
    both = torch.corrcoef(torch.cat((seen[0].x, eps)))
    assert abs(float(both[0, 1])) < 0.04


@pytest.mark.filterwarnings("ignore:.* data must be on the decoder's bins:UserWarning")
def test_renoising_own_samples_adds_independent_noise():
    """Once every default seed shared one noise stream: this correlation was 1."""
    schedule = fs.NoiseSchedule.cosine(1000)
    levels = schedule.levels(np.arange(1, 1001.0))
    alphas, sigmas = (torch.as_tensor(level) for level in levels)
    model = fs.Denoiser(
        lambda x, t: (x.double() * sigmas[t.long()][:, None]).to(x.dtype), schedule, (32,)
    )
    for seed in ({}, {"seed": 0}):
        x0 = fs.sample(model, 25, num_samples=3000, method="ddim", **seed)
        x = fs.diffuse(x0, schedule, 450, **seed)
        eps = (x - float(alphas[449]) * x0) / float(sigmas[449])
        correlation = torch.corrcoef(torch.stack((x0.flatten(), eps.flatten())))[0, 1]
        assert abs(float(correlation)) < 0.03
        variance = float(alphas[449] ** 2 * x0.var() + sigmas[449] ** 2)
        assert float(x.var()) == pytest.approx(variance, abs=0.02)
    for seed in ({}, {"seed": 0}):
        own = fs.sample(model, 20, num_samples=2000, method="ancestral", **seed).clamp(-2, 2) / 2
        default, other = (
            fs.bits_per_dim(model, own, 20, bin_width=1 / 16, **options).total
            for options in ({}, {"seed": 1})
        )
        assert default == pytest.approx(other, abs=0.05)


def test_learned_variance_and_guidance_draw_from_the_same_seed():
    model = denoiser(halve_wide, 3, variance="learned_range")
    torch.manual_seed(2)
    got = fs.sample(model, 3, method="ancestral", guidance=2.0, uncond={})
    torch.manual_seed(2)
    seed = fs.new_seed()
    again = fs.sample(model, 3, method="ancestral", guidance=2.0, uncond={}, seed=seed)
    assert torch.equal(got, again)


def test_the_network_may_consume_random_numbers_of_its_own():
    spy = Spy(lambda x, t: halve(x, t) + 0.0 * torch.rand(()))
    torch.manual_seed(9)
    first = fs.sample(spy, 3, shape=(2,))
    torch.manual_seed(9)
    assert torch.equal(fs.sample(halve, 3, shape=(2,)), first)


# ---- what is refused

INTEGER = r"seed must be an integer, got "
SEEDS = {
    repr(seed): (sample(seed=seed), error, f"sample: {match}")
    for seed, error, match in (
        (1.0, TypeError, INTEGER + "1.0"),
        (True, TypeError, INTEGER + "True"),
        ("7", TypeError, INTEGER + "'7'"),
        ([1.5], TypeError, INTEGER + r"1\.5"),
        ([None], TypeError, INTEGER + "None"),
        ({}, TypeError, INTEGER),
        (-1, ValueError, r"seed must be in \[0, 18446744073709551615\], got -1"),
        ([[1]], ValueError, "seed must be a number or a vector, got 2 dims"),
    )
}
SEEDS["generators"] = (
    sample(seed=[torch.Generator()]),
    TypeError,
    "sample: seed must be an integer, got <torch",
)
SEEDS["diffuse"] = (
    lambda: fs.diffuse(START, LINEAR, 5, seed="7"),
    TypeError,
    "diffuse: seed must be an integer, got '7'",
)


@refusals(seeds=SEEDS)
def test_refused(call, error, match):
    check_refusal(call, error, match)
