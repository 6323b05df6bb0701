"""The bound of variational diffusion models: against plain NumPy, closed forms, differences."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from fastsample.bundled.datasets import swirl_data
from fastsample.bundled.swirl import SwirlNet
from fastsample.denoiser.denoiser import Denoiser
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.training import VDMLoss

LEVELS = torch.linspace(-1.5, 2.0, 8, dtype=torch.float64)
ENDS = (-4.0, 3.0)


class Smooth(nn.Module):
    """A smooth function of the sample and of the timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, shift: float = 0.0) -> torch.Tensor:
        timestep = timestep.reshape(-1, *[1] * (x.dim() - 1))
        return torch.tanh(self.slope * x + 0.1 * timestep) + 0.2 * timestep.sin() + shift


def smooth(**options) -> Denoiser:
    return Denoiser(Smooth(), NoiseSchedule.vdm(*ENDS), (2, 3), **{"time": "log_snr", **options})


def batch(count: int = 5) -> dict[str, torch.Tensor]:
    """x0 on the levels, times and both noises; float64."""
    generator = torch.Generator().manual_seed(11)
    pick = torch.randint(len(LEVELS), (count, 2, 3), generator=generator)
    noise, decoder_noise = torch.randn(
        2, count, 2, 3, generator=generator, dtype=torch.float64
    ).unbind(0)
    t = torch.rand(count, generator=generator, dtype=torch.float64)
    return {"x0": LEVELS[pick], "t": t, "noise": noise, "decoder_noise": decoder_noise}


def oracle(network, x0, t, noise, decoder_noise, ends=ENDS, levels=LEVELS, prediction="epsilon"):
    """The three terms in bits per dimension, sample by sample, written as the papers have them."""

    def level(gamma):
        return math.sqrt(1 / (1 + math.exp(gamma))), math.sqrt(1 / (1 + math.exp(-gamma)))

    x0, t, noise, decoder_noise = (v.double().numpy() for v in (x0, t, noise, decoder_noise))
    levels = np.broadcast_to(levels.double().numpy(), (x0[0].size, levels.shape[-1]))
    low, high = ends
    rows = []
    for x, u, eps, eps0 in zip(x0, t, noise, decoder_noise, strict=True):
        gamma = low + (high - low) * u
        alpha, sigma = level(gamma)
        z = alpha * x + sigma * eps
        output = network(torch.from_numpy(z[None]), torch.tensor([-gamma]))[0].detach().numpy()
        eps_hat = {
            "epsilon": output,
            "x0": (z - alpha * output) / sigma,
            "v": sigma * z + alpha * output,
            "flow": (z + alpha * output) / (alpha + sigma),
        }[prediction]
        diffusion = 0.5 * (high - low) * np.sum((eps - eps_hat) ** 2)
        alpha, sigma = level(high)
        prior = 0.5 * np.sum(alpha**2 * x**2 + sigma**2 - 1 - math.log(sigma**2))
        alpha, sigma = level(low)
        z = (alpha * x + sigma * eps0) / alpha
        nats = 0.0
        for value, centre, row in zip(x.ravel(), z.ravel(), levels, strict=True):
            logits = -((centre - row) ** 2) / (2 * math.exp(low))
            p = np.exp(logits - logits.max())
            nats -= math.log(p[np.argmin(np.abs(row - value))] / p.sum())
        rows.append((diffusion, prior, nats))
    bits = np.array(rows).T / (x0[0].size * math.log(2))
    return dict(zip(("diffusion", "prior", "reconstruction"), bits, strict=True))


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "flow"])
def test_terms_are_those_of_the_paper(prediction) -> None:
    model, given = smooth(prediction=prediction), batch()
    loss = VDMLoss(*ENDS, levels=LEVELS)
    terms = {name: value.detach() for name, value in loss(model, **given).items()}
    expected = oracle(model.model, **given, prediction=prediction)
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-10, err_msg=name)
    np.testing.assert_allclose(terms["loss"], sum(expected.values()), rtol=1e-10)


@pytest.mark.parametrize("prediction", ["epsilon", "x0"])
def test_float32_keeps_the_published_ends(prediction) -> None:
    """At gamma = -13.3 alpha^2 is 1 - 1.7e-6: all terms must survive float32."""
    data = swirl_data(64)
    generator = torch.Generator().manual_seed(0)
    noise, decoder_noise = torch.randn(2, 64, 2, generator=generator)
    t = torch.arange(64) / 64
    options = {"time": "log_snr", "prediction": prediction}
    model = Denoiser(lambda x, timestep: 0.5 * x, NoiseSchedule.vdm(), (2,), **options)
    given = {"x0": data.x0, "t": t, "noise": noise, "decoder_noise": decoder_noise}
    for low in (-13.3, -8.0):  # the second with neighbouring levels within reach
        terms = VDMLoss(low, 5.0, levels=data.levels)(model, **given)
        expected = oracle(
            model.model, **given, ends=(low, 5.0), levels=data.levels, prediction=prediction
        )
        for name, value in expected.items():
            assert terms[name].dtype == torch.float32
            # 1e-6 bits: the prior is a difference of numbers near 1.
            np.testing.assert_allclose(
                terms[name].detach(), value, rtol=2e-5, atol=1e-6, err_msg=name
            )


@pytest.mark.parametrize("time", ["log_snr", "fraction"])
def test_gradients_of_the_ends_are_differences(time) -> None:
    model, given = smooth(time=time), batch()
    loss = VDMLoss(*ENDS, levels=LEVELS).double()

    def terms(w: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = functional_call(loss, {"w": w, "b": b}, (model,), given)
        return values["diffusion"], values["prior"], values["reconstruction"]

    for w in (7.0, -7.0):  # only |w| counts
        ends = (torch.tensor(value, dtype=torch.float64) for value in (w, -1.0))
        assert torch.autograd.gradcheck(terms, tuple(end.requires_grad_() for end in ends))


@pytest.mark.parametrize("prediction", ["x0", "v", "flow"])
def test_gradients_of_the_ends_in_other_predictions(prediction) -> None:
    model, given = smooth(prediction=prediction), batch()
    loss = VDMLoss(*ENDS).double()
    ends = tuple(
        torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (7.0, -1.0)
    )
    assert torch.autograd.gradcheck(
        lambda w, b: functional_call(loss, {"w": w, "b": b}, (model,), given)["diffusion"], ends
    )


def test_the_network_is_trained_and_carries_the_gradient_of_the_times() -> None:
    grads = {}
    for time in ("log_snr", "fraction"):
        loss, model = VDMLoss(*ENDS), smooth(time=time)
        loss(model, **batch())["loss"].mean().backward()
        assert model.model.slope.grad is not None
        assert model.model.slope.grad.abs() > 1e-3
        grads[time] = loss.b.grad
    assert grads["log_snr"] != grads["fraction"]
    fixed = VDMLoss(*ENDS, learn=False, levels=LEVELS)
    assert not any(parameter.requires_grad for parameter in fixed.parameters())
    model = smooth()
    fixed(model, **batch())["loss"].sum().backward()
    assert fixed.w.grad is None


# ---- closed forms


def test_the_bound_of_gaussian_data_under_its_best_network() -> None:
    """Data N(0, s^2): E|eps - eps_hat|^2 = s^2 / (s^2 + e^gamma), an integral in closed form."""
    s, (low, high), count = 0.6, ENDS, 400

    def best(x: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
        gamma = -log_snr.reshape(-1, 1)
        alpha2, sigma2 = torch.sigmoid(-gamma), torch.sigmoid(gamma)
        return sigma2.sqrt() * x / (alpha2 * s**2 + sigma2)

    # Four corners have the second moments of (x0, eps); midpoints integrate over time.
    t = ((torch.arange(count, dtype=torch.float64) + 0.5) / count).repeat(4)
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    x0, noise = signs.repeat_interleave(count, 0).T.unsqueeze(-1)
    model = Denoiser(best, NoiseSchedule.vdm(*ENDS), (1,), time="log_snr")
    terms = VDMLoss(*ENDS)(model, s * x0, t, noise)

    integral = 0.5 * (high - low - math.log((s**2 + math.exp(high)) / (s**2 + math.exp(low))))
    assert terms["diffusion"].mean().item() == pytest.approx(integral / math.log(2), rel=1e-4)
    signal, variance = 1 / (1 + math.exp(high)), 1 / (1 + math.exp(-high))
    prior = 0.5 * (signal * s**2 + variance - 1 - math.log(variance))
    assert terms["prior"].mean().item() == pytest.approx(prior / math.log(2), rel=1e-12)
    assert not terms["reconstruction"].any()
    # With a Gaussian decoder N(z_0 / alpha_0, e^gamma_0) the bound lies just above the entropy.
    decoder = 0.5 * (math.log(2 * math.pi) + low + 1)
    entropy = 0.5 * (math.log(2 * math.pi * s**2) + 1)
    gap = integral + prior + decoder - entropy
    # What separates them: KL(q(z_1) || N(0, 1)) and the decoder's own uncertainty.
    marginal = signal * s**2 + variance
    expected = 0.5 * (marginal - 1 - math.log(marginal)) + 0.5 * math.log1p(math.exp(low) / s**2)
    assert gap == pytest.approx(expected, rel=1e-9)


def test_reconstruction_of_two_levels_is_a_logistic_function() -> None:
    levels = torch.tensor([-0.5, 0.5], dtype=torch.float64)
    gamma, eps = 1.2, torch.tensor([[0.3], [-1.1], [2.0]], dtype=torch.float64)
    x0 = torch.full_like(eps, 0.5)
    loss = VDMLoss(gamma, 5.0, levels=levels).double()
    model = Denoiser(lambda x, timestep: x, NoiseSchedule.vdm(*ENDS), (1,), time="log_snr")
    got = loss(model, x0, decoder_noise=eps)["reconstruction"]
    # The logits differ by distance z / e^gamma, with z = x0 + e^(gamma / 2) eps.
    z = 0.5 + math.exp(loss.b.item() / 2) * eps[:, 0]
    expected = torch.log1p(torch.exp(-z / math.exp(loss.b.item()))) / math.log(2)
    np.testing.assert_allclose(got.detach(), expected, rtol=1e-12)


def test_levels_of_each_element_and_in_many_parts(monkeypatch) -> None:
    table = torch.stack([LEVELS * (1 + i) for i in range(6)])
    given = batch(9)
    pick = torch.arange(54).reshape(9, 6) % 8
    given["x0"] = table[torch.arange(6), pick].reshape(9, 2, 3)
    model = smooth()
    loss = VDMLoss(*ENDS, levels=table).double()
    whole = loss(model, **given)["reconstruction"]
    (slope,) = torch.autograd.grad(whole.sum(), loss.b)
    np.testing.assert_allclose(
        whole.detach(), oracle(model.model, **given, levels=table)["reconstruction"], rtol=1e-10
    )
    monkeypatch.setattr("fastsample.training.losses.level_decoder._CHUNK", 100)
    parts = loss(model, **given)["reconstruction"]
    assert torch.equal(whole, parts)
    assert torch.autograd.grad(parts.sum(), loss.b)[0] == slope


# ---- the loss as an object


def test_the_schedule_follows_the_parameters() -> None:
    loss, model = VDMLoss(), Denoiser(SwirlNet(8), NoiseSchedule.vdm(), (2,), time="log_snr")
    assert loss.schedule().arguments == (
        ("gamma_min", pytest.approx(-13.3, rel=1e-7)),
        ("gamma_max", pytest.approx(5.0, rel=1e-6)),
    )
    with torch.no_grad():
        loss.w.fill_(-10.0)
        loss.b.fill_(-6.0)
    current = loss.current(model)
    assert current.schedule == NoiseSchedule.vdm(-6.0, 4.0)
    assert model.schedule == NoiseSchedule.vdm()
    assert current.model is model.model
    assert (current.profile, current.plans) == (None, {})
    assert loss.gamma(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-6.0, -1.0, 4.0]
    assert VDMLoss.of(current).schedule() == current.schedule


def test_the_state_holds_the_ends_only() -> None:
    loss = VDMLoss(*ENDS, levels=LEVELS)
    assert set(loss.state_dict()) == {"w", "b"}
    other = VDMLoss(levels=LEVELS)
    other.load_state_dict(loss.state_dict())
    assert other.schedule() == loss.schedule()
    assert torch.equal(copy.deepcopy(loss).levels, LEVELS)


def test_times_are_the_uniform_numbers() -> None:
    assert VDMLoss().times([0.0, 0.25, 0.75]).tolist() == [0.0, 0.25, 0.75]
    with pytest.raises(ValueError, match=r"VDMLoss\.times: u must be in \[0, 1\), got 1"):
        VDMLoss().times([1.0])


def test_spread_times_lower_the_variance() -> None:
    loss, model, values = VDMLoss(), smooth(), {}
    x0, noise = torch.zeros(2, 64, 2, 3, dtype=torch.float64)
    for spread in (False, True):
        generator, means = torch.Generator().manual_seed(2), []
        for _ in range(30):
            u = torch.rand(64, generator=generator)
            t = torch.from_numpy(loss.times((torch.arange(64) + u) / 64)) if spread else u
            means.append(loss(model, x0, t, noise)["diffusion"].mean().item())
        values[spread] = np.std(means)
    assert values[True] < 0.2 * values[False]


def test_what_is_drawn_follows_the_generator() -> None:
    model, x0 = smooth(), batch()["x0"]
    loss = VDMLoss(*ENDS, levels=LEVELS)
    first, again, other = (
        loss(model, x0, generator=torch.Generator().manual_seed(seed)) for seed in (4, 4, 5)
    )
    for name in ("diffusion", "reconstruction"):
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
    assert torch.equal(first["prior"], other["prior"])
    bare = VDMLoss(*ENDS)(model, x0, generator=torch.Generator().manual_seed(4))
    assert torch.equal(bare["diffusion"], first["diffusion"])


def test_conditions_reach_the_network() -> None:
    loss, model, given = VDMLoss(*ENDS), smooth(), batch()
    assert not torch.equal(loss(model, **given, shift=0.5)["loss"], loss(model, **given)["loss"])


def test_an_empty_batch_costs_nothing() -> None:
    terms = VDMLoss(*ENDS, levels=LEVELS)(smooth(), torch.zeros(0, 2, 3, dtype=torch.float64))
    assert all(value.shape == (0,) for value in terms.values())


def test_a_short_training_lowers_the_bound() -> None:
    data = swirl_data()
    torch.manual_seed(0)
    net = SwirlNet()
    model = Denoiser(net, NoiseSchedule.vdm(), (2,), time="log_snr")
    loss = VDMLoss.of(model, levels=data.levels)
    parameters = [*net.parameters(), *loss.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=1e-4)
    generator, values = torch.Generator().manual_seed(0), []
    for _ in range(60):
        x0 = data.x0[torch.randperm(len(data.x0), generator=generator)[:256]]
        value = loss(model, x0, generator=generator)["loss"].mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    # By 2.6 to 5.6 with other seeds.
    assert np.mean(values[-10:]) < np.mean(values[:3]) - 1.5
    assert loss.schedule() != model.schedule


# ---- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"schedule": NoiseSchedule.flow()},
            r"must have a NoiseSchedule\.vdm, got NoiseSchedule\.flow",
        ),
        ({"time": lambda t: t}, "must have time='log_snr' or 'fraction', got <function"),
        ({"variance": "learned_range"}, "must have a fixed variance, got 'learned_range'"),
    ],
)
def test_denoisers_that_do_not_fit(options, message) -> None:
    given = {"schedule": NoiseSchedule.vdm(), "time": "log_snr", **options}
    model = Denoiser(Smooth(), shape=(2, 3), **given)
    for use in (lambda: VDMLoss()(model, batch()["x0"]), lambda: VDMLoss().current(model)):
        with pytest.raises(ValueError, match=f"VDMLoss: denoiser {message}"):
            use()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"t": torch.tensor([0.5])}, ValueError, r"t must have the shape \(5,\), got \(1,\)"),
        ({"t": torch.full((5,), 1.5)}, ValueError, r"t must be in \[0, 1\], got 1\.5\.\.1\.5"),
        ({"noise": torch.zeros(5, 2)}, ValueError, r"noise must have the shape of x0 \(5, 2, 3\)"),
        ({"decoder_noise": torch.zeros(5)}, ValueError, "decoder_noise must have the shape of x0"),
        ({"x0": torch.zeros(5, 2, 3).half()}, TypeError, "x0 must be float32 or float64, got"),
        ({"x0": batch()["x0"] + 0.25}, ValueError, "x0 must hold values of levels, got "),
    ],
)
def test_wrong_batches(changes, error, message) -> None:
    with pytest.raises(error, match=f"VDMLoss: {message}"):
        VDMLoss(*ENDS, levels=LEVELS)(smooth(), **{**batch(), **changes})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gamma_min": 5.0}, ValueError, "gamma_max must be above gamma_min = 5, got 5"),
        ({"levels": [0.0, 1.0]}, TypeError, "levels must be a floating tensor, got list"),
        ({"levels": torch.arange(4)}, TypeError, "levels must be a floating tensor, got torch.int"),
        ({"levels": torch.zeros(2, 2, 2)}, ValueError, r"levels must have the shape \(V,\) or"),
    ],
)
def test_wrong_settings(options, error, message) -> None:
    with pytest.raises(error, match=f"VDMLoss: {message}"):
        VDMLoss(**options)


def test_wrong_models_and_levels_of_other_data() -> None:
    with pytest.raises(TypeError, match=r"denoiser must be a fastsample\.Denoiser, got Smooth"):
        VDMLoss()(Smooth(), batch()["x0"])
    with pytest.raises(ValueError, match="a row for each of the 6 elements of a sample, got 2"):
        VDMLoss(*ENDS, levels=LEVELS.expand(2, -1))(smooth(), batch()["x0"])
