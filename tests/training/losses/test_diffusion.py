"""Losses and bound terms against improved-diffusion's own code run in float64 (golden cases)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastsample.likelihood.bound import (
    discretized_gaussian_log_likelihood,
    normal_kl,
    posterior_table,
    prior_bits_per_dim,
    vlb_terms,
)
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.training import DiffusionLoss
from tests.helpers.stored import stored

GOLDEN = stored("losses")["cases"]


def cases(kind: str) -> list:
    """The golden cases of a kind as pytest parameters."""
    result = [case for case in GOLDEN if case["kind"] == kind]
    assert result
    return [pytest.param(case, id=case["id"]) for case in result]


def f64(values: object) -> torch.Tensor:
    """A float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def close(got: torch.Tensor, expected: object, tolerance: float = 1e-8) -> None:
    """Relative comparison in float64."""
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, f64(expected), rtol=tolerance, atol=0.0)


def schedule_of(inputs: dict) -> NoiseSchedule:
    """The golden case's schedule; linear and cosine as in improved-diffusion."""
    return getattr(NoiseSchedule, inputs["noise_schedule"])(num_steps=inputs["T"])


def model_of(inputs: dict):
    """Golden model B, or A2 = B and a raw variance; the index is 0-based."""

    def model(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        noise = torch.tanh(x) * (0.3 + index.to(x.dtype).reshape(-1, 1) / inputs["T"])
        return torch.cat([noise, torch.tanh(0.5 * x)], 1) if inputs["model"] == "A2" else noise

    return model


@pytest.mark.parametrize("case", cases("normal_kl"))
def test_normal_kl(case: dict) -> None:
    got = normal_kl(*(f64(case["inputs"][k]) for k in ("mean1", "logvar1", "mean2", "logvar2")))
    close(got, case["expected"], 1e-12)


@pytest.mark.parametrize("case", cases("discretized_gaussian_log_likelihood"))
def test_discretized_gaussian(case: dict) -> None:
    got = discretized_gaussian_log_likelihood(
        *(f64(case["inputs"][k]) for k in ("x", "means", "log_scales"))
    )
    # The reference takes differences of probabilities near 1: 2^-52 of 1, not of the difference.
    expected = f64(case["expected"])
    noise = 4 * torch.finfo(torch.float64).eps * torch.exp(-expected)
    assert torch.all((got - expected).abs() <= 1e-10 * expected.abs() + noise)


@pytest.mark.parametrize("levels", [17, 256])
@pytest.mark.parametrize("scale", [0.02, 0.3, 2.0])
def test_bins_of_a_decoder_sum_to_one(levels: int, scale: float) -> None:
    """Whatever the number of grey levels, their bins share all the probability."""
    x = torch.linspace(-1, 1, levels, dtype=torch.float64)
    log_p = discretized_gaussian_log_likelihood(
        x, f64(0.31), f64(math.log(scale)), bin_width=2 / (levels - 1)
    )
    # Each of the bins may have been raised to the floor of 1e-12.
    assert abs(float(log_p.exp().sum()) - 1.0) < levels * 1e-12 + 1e-14


@pytest.mark.parametrize("case", cases("improved_losses"))
def test_losses_equal_improved_diffusion(case: dict) -> None:
    inputs, expected = case["inputs"], case["expected"]["losses"]
    schedule, num_steps = schedule_of(inputs), inputs["T"]
    x0, noise = f64([inputs["x_start"]]), f64([inputs["noise"]])
    t = torch.tensor([inputs["t_index"] + 1])

    def run(**knobs: object) -> dict[str, torch.Tensor]:
        return DiffusionLoss(schedule, **knobs)(model_of(inputs), x0, t, noise)

    hybrid = run(kind="hybrid")
    close(hybrid["loss"], [expected["RESCALED_MSE"]["loss"]])
    close(hybrid["mse"], [expected["RESCALED_MSE"]["mse"]])
    close(hybrid["vb"], [expected["MSE"]["vb"]])
    close(hybrid["vb"], [expected["KL"]["loss"]])
    # Plain MSE of improved-diffusion, mse + vb, is the hybrid loss with lambda = 1/T.
    close(run(kind="hybrid", vlb_weight=1 / num_steps)["loss"], [expected["MSE"]["loss"]])
    close(run(kind="vlb")["loss"], [expected["RESCALED_KL"]["loss"]])
    close(run(kind="simple")["loss"], [expected["MSE"]["mse"]])


@pytest.mark.parametrize("case", cases("improved_losses"))
def test_prediction_of_x0(case: dict) -> None:
    inputs, expected = case["inputs"], case["expected"]
    x_t = f64([expected["x_t"]])
    rows = torch.from_numpy(posterior_table(schedule_of(inputs)))[[-1 - inputs["t_index"]]]
    output = model_of(inputs)(x_t, torch.tensor([inputs["t_index"]]))
    _, predicted = vlb_terms(output, f64([inputs["x_start"]]), x_t, rows)
    close(predicted[0], expected["pred_xstart"])


@pytest.mark.parametrize("case", cases("improved_calc_bpd_loop"))
def test_bound_of_a_respaced_chain(case: dict) -> None:
    inputs, expected = case["inputs"], case["expected"]
    schedule, (num_steps,) = schedule_of(inputs), inputs["section_counts"]
    kept = [round(k * (inputs["T"] - 1) / (num_steps - 1)) + 1 for k in range(num_steps)]
    times = np.array([0, *kept])[::-1]
    x0 = f64([inputs["x_start"]]).expand(num_steps, -1)
    k = torch.arange(num_steps, dtype=torch.float64)[:, None]
    noise = math.sqrt(2) * torch.sin(8 * k + torch.arange(1.0, 9.0, dtype=torch.float64))

    rows = torch.from_numpy(posterior_table(schedule, times))
    alpha, sigma = rows[:, :1], rows[:, 1:2]
    x_t = alpha * x0 + sigma * noise
    output = model_of(inputs)(x_t, torch.from_numpy(times[:-1] - 1))
    variance = inputs["model_var_type"].lower().removeprefix("fixed_")
    vb, predicted = vlb_terms(output, x0, x_t, rows, variance=variance, clip=1.0)
    prior = prior_bits_per_dim(schedule, x0[:1], float(times[0]))

    close(vb, expected["vb"])
    close(((predicted - x0) ** 2).mean(1), expected["xstart_mse"])
    clipped_noise = (x_t - alpha * predicted) / sigma
    close(((clipped_noise - noise) ** 2).mean(1), expected["mse"])
    # The prior is a difference of numbers near 1e-9 here: absolute, against the rounding of 1.
    torch.testing.assert_close(prior, f64(expected["prior_bpd"]), rtol=1e-8, atol=1e-15)
    close(vb.sum() + prior, expected["total_bpd"])


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_a_perfect_prediction_costs_nothing(prediction: str) -> None:
    schedule = NoiseSchedule.cosine(num_steps=50)
    x0 = torch.linspace(-1, 1, 50 * 6, dtype=torch.float64).reshape(50, 6)
    noise = x0.roll(7).cos()
    t = torch.arange(1, 51)
    alpha, sigma = (
        torch.from_numpy(f(t.numpy().astype(float)))[:, None]
        for f in (schedule.alpha, schedule.sigma)
    )
    perfect = {"epsilon": noise, "x0": x0, "v": alpha * noise - sigma * x0}[prediction]
    loss = DiffusionLoss(schedule, kind="vlb", variance="small", prediction=prediction)
    terms = loss(lambda x, index: perfect, x0, t, noise)
    assert float(terms["mse"].max()) < 1e-20
    assert float(terms["vb"][1:].abs().max()) < 1e-12


def test_bound_trains_only_the_variance_in_the_hybrid_loss() -> None:
    schedule = NoiseSchedule.linear(num_steps=100)
    output = torch.full((4, 2, 3), 0.1, dtype=torch.float64, requires_grad=True)
    x0, noise = torch.zeros(4, 1, 3, dtype=torch.float64), torch.ones(4, 1, 3, dtype=torch.float64)
    t = torch.tensor([1, 2, 50, 100])
    grads = {}
    for weight in (0.0, 1.0):
        loss = DiffusionLoss(schedule, kind="hybrid", vlb_weight=weight)
        total = loss(lambda x, index: output, x0, t, noise)["loss"].sum()
        (grads[weight],) = torch.autograd.grad(total, output)
    torch.testing.assert_close(grads[0.0][:, :1], grads[1.0][:, :1])
    assert not grads[0.0][:, 1:].any()
    assert grads[1.0][:, 1:].abs().min() > 0


def test_the_network_gets_the_index_and_the_conditions() -> None:
    seen = {}

    def model(x: torch.Tensor, index: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.update(index=index, y=y)
        return x

    loss = DiffusionLoss(NoiseSchedule.linear(num_steps=100), kind="simple", variance="small")
    t, y = torch.tensor([1, 100]), torch.tensor([3, 4])
    terms = loss(model, torch.zeros(2, 1, 2, 2), t, y=y)
    assert terms["loss"].shape == (2,)
    assert seen["index"].tolist() == [0, 99]
    assert seen["y"] is y


def test_drawn_times_cover_all_steps_and_follow_the_generator() -> None:
    seen = []

    def model(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        seen.append(index)
        return x

    loss = DiffusionLoss(NoiseSchedule.linear(num_steps=30), kind="simple", variance="small")
    x0 = torch.zeros(2000, 1)
    first, again = (loss(model, x0, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert seen[0].unique().tolist() == list(range(30))
    assert torch.equal(first["loss"], again["loss"])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"kind": "mse"}, r"DiffusionLoss: kind must be one of \(.*\), got 'mse'"),
        ({"variance": "fixed"}, "DiffusionLoss: variance must be one of"),
        ({"prediction": "score"}, "DiffusionLoss: prediction must be one of"),
        ({"kind": "hybrid", "variance": "small"}, "variance must be 'learned_range' with kind"),
    ],
)
def test_unknown_choices(knobs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionLoss(NoiseSchedule.linear(num_steps=100), **knobs)


@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        (torch.tensor([0, 5]), ValueError, r"t must be in 1\.\.100, got 0\.\.5"),
        (torch.tensor([1, 101]), ValueError, r"t must be in 1\.\.100, got 1\.\.101"),
        (torch.tensor([1.0, 2.0]), TypeError, "t must be integer times, got torch.float32"),
        (torch.tensor([1]), ValueError, r"t must have the shape \(2,\), got \(1,\)"),
    ],
)
def test_wrong_times(t: torch.Tensor, error: type[Exception], message: str) -> None:
    loss = DiffusionLoss(NoiseSchedule.linear(num_steps=100), kind="simple", variance="small")
    with pytest.raises(error, match=f"DiffusionLoss: {message}"):
        loss(lambda x, index: x, torch.zeros(2, 1, 2, 2), t)


def test_wrong_output_shape() -> None:
    loss = DiffusionLoss(NoiseSchedule.linear(num_steps=100))
    with pytest.raises(ValueError, match=r"output must have the shape \(2, 2, 4, 4\)"):
        loss(lambda x, index: x, torch.zeros(2, 1, 4, 4))


@pytest.mark.parametrize("build", [DiffusionLoss, posterior_table])
def test_a_continuous_schedule_has_no_steps(build) -> None:
    with pytest.raises(ValueError, match="schedule must have integer steps, got"):
        build(NoiseSchedule.vdm())


@pytest.mark.parametrize(
    "times",
    [[5.0, 3.0], [3.0, 3.0, 0.0], [1.0, 2.0, 0.0], [math.nan, 1.0, 0.0], [0.0], [[2.0, 0.0]]],
)
def test_posterior_table_wants_a_chain_down_to_zero(times: list) -> None:
    with pytest.raises(ValueError, match="posterior_table: times must decrease strictly to 0"):
        posterior_table(NoiseSchedule.linear(num_steps=100), times)


def test_the_last_step_has_a_variance_of_choice() -> None:
    schedule = NoiseSchedule.linear(num_steps=100)
    with pytest.raises(ValueError, match=r"2 steps or more, .* a single step needs decoder_var"):
        posterior_table(schedule, [60.0, 0.0])
    with pytest.raises(ValueError, match=r"decoder_variance must be positive, got 0\.0"):
        posterior_table(schedule, [60.0, 0.0], decoder_variance=0.0)
    (row,) = posterior_table(schedule, [60.0, 0.0], decoder_variance=0.01)
    alpha, sigma = schedule.levels(60.0)
    logs = np.log([0.01, 0.01, sigma**2])
    expected = [alpha, sigma, 1, *logs, 1, 1 / alpha, -sigma / alpha]
    np.testing.assert_allclose(row, expected, rtol=1e-12)
