from __future__ import annotations

import numpy as np
import pytest

from fastsample import grids
from fastsample.grids.grid import Grid
from fastsample.plans.rows import output_terms
from fastsample.samplers.ancestral import ancestral
from fastsample.samplers.ddim import ddim, ddim_inversion
from fastsample.schedules.schedule import NoiseSchedule
from tests.helpers import oracles
from tests.helpers.cases import PREDICTIONS, SCHEDULES

T = 1000
BETAS = np.linspace(1e-4, 0.02, T)
COSINE_BETAS = 1 - np.exp(np.diff(np.log(SCHEDULES["cosine"].alpha_bar(np.arange(T + 1)))))
CHAINS = {
    "linear": (NoiseSchedule.linear(), BETAS),
    "cosine": (NoiseSchedule.cosine(), COSINE_BETAS),
}
LISTS = {
    "ddim": list(range(0, 1000, 100)),
    "quad": [0, 9, 39, 88, 158, 246, 355, 483, 632, 800],
    # Not up to 999: improved-diffusion re-derives beta = 1 - abar_t / abar_s, which loses eight
    # digits at the cosine schedule's last level.
    "respaced": [0, 111, 222, 333, 444, 555, 666, 777, 888, 998],
    "neighbours": [0, 1, 2, 3, 700, 701],
}

chains = pytest.mark.parametrize("chain", CHAINS)
lists = pytest.mark.parametrize("kept", LISTS.values(), ids=LISTS.keys())


def network_of(model):
    """The project's time for a network that takes the 0-based index."""
    return lambda x, t: model(x, t - 1)


def assert_close(got, expected):
    assert np.all(np.abs(got - expected) <= 1e-10 * np.maximum(1, np.abs(expected)))


def run(plan, model):
    noise = oracles.noise_formula(len(plan))
    return oracles.execute(plan, network_of(model), oracles.X_T, noise)


@chains
@lists
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("rederive", [True, False])
def test_ddim_is_generalized_steps(chain, kept, eta, rederive):
    schedule, betas = CHAINS[chain]
    plan = ddim(schedule, Grid.from_indices(kept), eta=eta, rederive=rederive)
    model, noise = oracles.model_b(T), oracles.noise_formula(len(kept))
    expected = oracles.generalized_steps(oracles.X_T, kept, model, betas, eta, noise)
    assert_close(run(plan, model), expected)


@chains
@lists
@pytest.mark.parametrize("clip", [None, 1.0, 0.4])
def test_sigma_hat_is_ddpm_steps(chain, kept, clip):
    schedule, betas = CHAINS[chain]
    plan = ddim(schedule, Grid.from_indices(kept), sigma_hat=True, clip=clip)
    model, noise = oracles.model_b(T), oracles.noise_formula(len(kept))
    expected = oracles.ddpm_steps(oracles.X_T, kept, model, betas, noise, clip)
    assert_close(run(plan, model), expected)


@chains
@lists
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_ddim_sample_loop(chain, kept, clip, eta):
    schedule, betas = CHAINS[chain]
    plan = ddim(schedule, Grid.from_indices(kept), eta=eta, clip=1.0 if clip else None)
    model, noise = oracles.model_b(T), oracles.noise_formula(len(kept))
    spaced = oracles.SpacedDiffusion(betas, kept)
    expected = spaced.ddim_sample_loop(oracles.X_T, model, noise, clip, eta)
    assert_close(run(plan, model), expected)


@chains
@lists
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("variance", ["small", "large", "learned_range"])
def test_ancestral_is_p_sample_loop(chain, kept, clip, variance):
    schedule, betas = CHAINS[chain]
    bound = 1.0 if clip else None
    plan = ancestral(schedule, Grid.from_indices(kept), variance=variance, clip=bound)
    model = oracles.model_a2(T) if variance == "learned_range" else oracles.model_b(T)
    spaced = oracles.SpacedDiffusion(betas, kept)
    noise = oracles.noise_formula(len(kept))
    expected = spaced.p_sample_loop(oracles.X_T, model, noise, clip, variance)
    assert_close(run(plan, model), expected)


@chains
@pytest.mark.parametrize("kept", [LISTS["respaced"], LISTS["quad"]])
def test_inversion_is_ddim_reverse_sample(chain, kept):
    schedule, betas = CHAINS[chain]
    x0, model = 0.4 * oracles.X_T, oracles.model_b(T)
    plan = ddim_inversion(schedule, Grid.from_indices(kept))
    assert len(plan) == len(kept) - 1
    assert plan.times.tolist() == [i + 1.0 for i in kept[:-1]]
    expected = oracles.SpacedDiffusion(betas, kept).ddim_reverse(x0, model)
    got = oracles.execute(plan, network_of(model), x0, np.zeros((len(plan), 8)))
    assert_close(got, expected)


def test_eta_one_is_ancestral():
    for name in ("linear", "flow", "linear, zero SNR"):
        schedule = SCHEDULES[name]
        grid = grids.uniform(schedule.num_steps or 1.0, 10)
        one = ddim(schedule, grid, eta=1.0, prediction="v")
        other = ancestral(schedule, grid, prediction="v")
        np.testing.assert_allclose(one.rows, other.rows, rtol=1e-13, atol=1e-14)


def test_array_of_variances():
    schedule, grid = NoiseSchedule.linear(), grids.uniform(1000, 8)
    small, large = (ancestral(schedule, grid, variance=v) for v in ("small", "large"))
    for plan in (small, large):
        again = ancestral(schedule, grid, variance=plan.column("d") ** 2)
        np.testing.assert_allclose(again.rows, plan.rows, rtol=1e-15)
        assert again.check == "mean"
    assert not ancestral(schedule, grid, variance=np.zeros(8)).is_stochastic


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", ["linear", "cosine", "vdm", "flow"])
@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("rederive", [True, False])
def test_predictions_of_one_network_agree(prediction, name, clip, rederive):
    """The same x0 guess, reported in four ways, gives the same trajectory."""
    schedule = SCHEDULES[name]
    grid = Grid(schedule.T * np.array([0.9, 0.6, 0.3, 0.1, 0.0]))

    def network(kind):
        def call(x, t):
            alpha, sigma = schedule.levels(t)
            x0 = np.tanh(x) * (0.3 + t / schedule.T)
            mx, me = output_terms(kind, alpha, sigma)
            return mx * x0 + me * (x - alpha * x0) / sigma

        return call

    def result(kind):
        plan = ddim(schedule, grid, eta=0.4, clip=clip, rederive=rederive, prediction=kind)
        return oracles.execute(plan, network(kind), oracles.X_T, oracles.noise_formula(4))

    assert_close(result(prediction), result("x0"))


def test_repeated_indices_are_identity_steps():
    """Dropping them, as the grid does, changes nothing but the number of network calls."""
    seq = [int(v) for v in np.linspace(0, np.sqrt(800), 50) ** 2]
    grid = grids.ddim(T, 50, "quadratic")
    assert (len(seq), len(grid)) == (50, 49)
    model = oracles.model_b(T)
    expected = oracles.generalized_steps(oracles.X_T, seq, model, BETAS, 0.0, np.zeros((50, 8)))
    assert_close(run(ddim(NoiseSchedule.linear(), grid), model), expected)


@pytest.mark.parametrize("name", ["linear", "vdm"])
def test_ddim_converges_to_first_order(name):
    """Data from N(0, I): the exact network moves nothing, so x_0 should be x_T."""
    schedule = SCHEDULES[name]
    steps = np.array([40, 80, 160, 320])
    errors = []
    for K in steps:
        plan = ddim(schedule, grids.uniform(schedule.T, int(K)))
        x0 = oracles.execute(
            plan, lambda x, t: schedule.sigma(t) * x, oracles.X_T, np.zeros((K, 8))
        )
        errors.append(np.abs(x0 / oracles.X_T - 1).max())
    slope = np.polyfit(np.log2(1 / steps), np.log2(errors), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.1)


def test_inversion_and_sampling_meet_to_first_order():
    schedule, x0 = NoiseSchedule.linear(), np.linspace(-0.9, 0.9, 8)
    errors = []
    for K in (50, 100, 200):
        grid = grids.respaced(1000, K)
        encoded = oracles.execute(
            ddim_inversion(schedule, grid), network_of(oracles.model_b(T)), x0, np.zeros((K, 8))
        )
        decoded = oracles.execute(
            ddim(schedule, grid), network_of(oracles.model_b(T)), encoded, np.zeros((K, 8))
        )
        errors.append(np.abs(decoded - x0).max())
    assert errors[0] > 1.7 * errors[1] > 1.7 * 1.7 * errors[2]


def test_zero_snr_start_lands_on_what_the_network_says():
    schedule = SCHEDULES["from_alpha_bar, zero SNR"]
    for plan in (
        ddim(schedule, grids.uniform(30, 5), prediction="v"),
        ddim(schedule, grids.uniform(30, 5), prediction="v", rederive=False),
        ancestral(schedule, grids.uniform(30, 5), prediction="v"),
    ):
        # A v-network that knows the data are all 0.25.
        def network(x, t):
            alpha, sigma = schedule.levels(t)
            return alpha * (x - alpha * 0.25) / sigma - sigma * 0.25

        x = oracles.execute(plan, network, oracles.X_T, oracles.noise_formula(5))
        np.testing.assert_allclose(x, 0.25, rtol=1e-12)


def test_names_and_checks():
    schedule, grid = NoiseSchedule.linear(), grids.uniform(1000, 4)
    for plan, method, check in (
        (ddim(schedule, grid), "ddim(eta=0.0)", "all"),
        (ddim(schedule, grid, eta=1), "ddim(eta=1.0)", "all"),
        (ddim(schedule, grid, rederive=False), "ddim(eta=0.0, rederive=False)", "all"),
        (ddim(schedule, grid, sigma_hat=True), "ddim(sigma_hat=True)", "mean"),
        (ddim_inversion(schedule, grid), "ddim_inversion", "all"),
        (ancestral(schedule, grid), 'ancestral(variance="small")', "all"),
        (ancestral(schedule, grid, variance="large"), 'ancestral(variance="large")', "mean"),
        (ancestral(schedule, grid, variance=[1, 1, 1, 0]), "ancestral(variance=array)", "mean"),
    ):
        assert (plan.method, plan.check) == (method, check)
    assert not ddim(schedule, grid, rederive=True, clip=1.0).column("e").any()
    assert ddim(schedule, grid, rederive=False, clip=1.0).column("e").any()


LINEAR, FLOW, TEN = NoiseSchedule.linear(), NoiseSchedule.flow(), grids.uniform(1000, 10)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ddim(LINEAR, TEN, eta=1.5), ValueError,
         r"^ddim: eta must be in \[0, 1\], got 1.5$"),
        (lambda: ddim(LINEAR, TEN, eta=-0.1), ValueError,
         r"ddim: eta must be in \[0, 1\], got -0.1"),
        (lambda: ddim(LINEAR, TEN, eta="1"), TypeError, "ddim: eta must be a real number, got '1'"),
        (lambda: ddim(LINEAR, TEN, eta=0.5, sigma_hat=True), ValueError,
         "ddim: eta must be 0 or 1 with sigma_hat=True, got 0.5"),
        (lambda: ddim(LINEAR, TEN, clip=-1), ValueError, "ddim: clip must be positive, got -1"),
        (lambda: ddim(LINEAR, TEN, prediction="eps"), ValueError,
         r"ddim: prediction must be one of \['epsilon', 'x0', 'v', 'flow'\], got 'eps'"),
        (lambda: ddim(LINEAR, grids.uniform(1500, 5)), ValueError,
         "ddim: grid must start at or below T = 1000, got 1500"),
        (lambda: ancestral(FLOW, TEN), ValueError,
         "ancestral: grid must start at or below T = 1, got 1000"),
        (lambda: ddim(LINEAR, [3, 2, 0]), TypeError, r"ddim: grid must be a Grid, got \[3, 2, 0\]"),
        (lambda: ddim("linear", TEN), TypeError,
         "ddim: schedule must be a NoiseSchedule, got 'linear'"),
        (lambda: ddim(FLOW, grids.uniform(1.0, 5)), ValueError,
         "ddim: prediction must determine x0 at every level, got 'epsilon' where alpha = 0 "
         r"\(row 0\); "
         r'a start without any signal needs prediction="v", "x0" or "flow"'),
        (lambda: ancestral(FLOW, grids.uniform(1.0, 5)), ValueError,
         "ancestral: prediction must determine x0 at every level, got 'epsilon'"),
        (lambda: ancestral(LINEAR, TEN, variance="medium"), ValueError,
         'variance must be "small", "large", "learned_range" or an array, got \'medium\''),
        (lambda: ancestral(LINEAR, TEN, variance=[1.0, 0.0]), ValueError,
         r"ancestral: variance must have shape \(10,\), got \(2,\)"),
        (lambda: ancestral(LINEAR, TEN, variance=-np.arange(10.0)[::-1]), ValueError,
         "ancestral: variance must not be negative, got -9"),
        (lambda: ancestral(LINEAR, TEN, variance=np.arange(10.0)), ValueError,
         "variance must be 0 in the last step, which lands on x0, got 9; order it noisiest first"),
        (lambda: ancestral(LINEAR, TEN, variance=None), TypeError,
         "ancestral: variance must hold real numbers, got object"),
        (lambda: ancestral(LINEAR, TEN, prediction="eps"), ValueError,
         "ancestral: prediction must be one of"),
        (lambda: ddim_inversion(LINEAR, grids.uniform(1000, 1)), ValueError,
         "ddim_inversion: grid must hold at least 2 steps, got 1"),
        (lambda: ddim_inversion(LINEAR, TEN, prediction="eps"), ValueError,
         "ddim_inversion: prediction must be one of"),
        (lambda: ddim_inversion(LINEAR, grids.uniform(2000, 2)), ValueError,
         "ddim_inversion: grid must start at or below T = 1000, got 2000"),
    ],
)  # fmt: skip
def test_messages(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_inversion_may_reach_a_level_without_signal():
    plan = ddim_inversion(FLOW, grids.uniform(1.0, 5))
    assert plan.alphas[-1] == 0.0
