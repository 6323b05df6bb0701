"""The simple loss on every schedule and prediction, its weights, and the network's timesteps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastsample.denoiser.denoiser import Denoiser
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.training import DiffusionLoss
from fastsample.training.losses.weighting import output_weights
from tests.helpers.networks import Spy

SCHEDULES = {
    "linear": NoiseSchedule.linear(num_steps=200),
    "cosine": NoiseSchedule.cosine(num_steps=50),
    "vdm": NoiseSchedule.vdm(),
    "flow": NoiseSchedule.flow(),
}
PREDICTIONS = ["epsilon", "x0", "v", "flow"]
WEIGHTS = {
    "snr": lambda snr: snr,
    "snr+1": lambda snr: snr + 1.0,
    "truncated_snr": lambda snr: np.maximum(snr, 1.0),
    "min_snr": lambda snr: np.minimum(snr, 5.0),
}
NO_SIGNAL = NoiseSchedule.from_alpha_bar([0.9, 0.4, 0.0])


def times_of(schedule: NoiseSchedule, count: int = 40) -> torch.Tensor:
    """Evenly spread times, none of them without signal; real ones exact in float32."""
    if schedule.num_steps is None:
        return (torch.arange(count, dtype=torch.float64) + 0.5) / 64
    return torch.arange(count) * (schedule.num_steps - 1) // (count - 1) + 1


def data(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Some x0 and noise `(count, 2, 3)`, float64."""
    generator = torch.Generator().manual_seed(3)
    x0, noise = torch.randn(2, count, 2, 3, generator=generator, dtype=torch.float64)
    return x0, noise


def levels_of(schedule: NoiseSchedule, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    alpha, sigma = schedule.levels(t.double().numpy())
    return (torch.from_numpy(level).reshape(-1, 1, 1) for level in (alpha, sigma))


@pytest.mark.parametrize(
    ("schedule", "prediction", "weighting"),
    [
        pytest.param(schedule, prediction, weighting, id=f"{name}-{prediction}-{weighting}")
        for name, schedule in SCHEDULES.items()
        for prediction in PREDICTIONS
        for weighting in WEIGHTS
        # Straight paths end without signal, where these have no limit.
        if (name, prediction) != ("flow", "epsilon") or weighting in ("snr", "min_snr")
    ],
)
def test_weights_are_those_of_the_error_of_x0(schedule, prediction, weighting) -> None:
    (x0, noise), t = data(), times_of(schedule)
    alpha, sigma = levels_of(schedule, t)
    x_t = alpha * x0 + sigma * noise
    predicted = 0.5 * x0 + 0.1  # what the network believes x0 to be
    believed_noise = (x_t - alpha * predicted) / sigma
    output = {
        "epsilon": believed_noise,
        "x0": predicted,
        "v": alpha * believed_noise - sigma * predicted,
        "flow": believed_noise - predicted,
    }[prediction]
    snr = ((alpha / sigma) ** 2).flatten().numpy()
    expected = WEIGHTS[weighting](snr) * ((x0 - predicted) ** 2).flatten(1).mean(1).numpy()

    loss = DiffusionLoss(
        schedule, kind="simple", variance="small", prediction=prediction, weighting=weighting
    )
    terms = loss(lambda x, t: output, x0, t, noise)
    np.testing.assert_allclose(terms["loss"], expected, rtol=1e-7)
    plain = DiffusionLoss(schedule, kind="simple", variance="small", prediction=prediction)
    assert torch.equal(plain(lambda x, t: output, x0, t, noise)["loss"], terms["mse"])


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_target_is_the_prediction_of_a_perfect_network(schedule, prediction) -> None:
    (x0, noise), t = data(), times_of(schedule)
    alpha, sigma = levels_of(schedule, t)
    perfect = {
        "epsilon": noise,
        "x0": x0,
        "v": alpha * noise - sigma * x0,
        "flow": noise - x0,
    }[prediction]
    loss = DiffusionLoss(schedule, kind="simple", variance="small", prediction=prediction)
    assert float(loss(lambda x, t: perfect, x0, t, noise)["loss"].max()) < 1e-28


def test_gamma_bounds_the_ratio() -> None:
    alpha, sigma = NoiseSchedule.cosine(num_steps=50).levels(np.arange(1, 51))
    for gamma in (0.5, 20.0):
        weights = output_weights("f", "min_snr", "x0", alpha, sigma, gamma=gamma)
        np.testing.assert_allclose(weights, np.minimum((alpha / sigma) ** 2, gamma), rtol=1e-13)


@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_without_signal_a_weight_is_its_limit_or_refused(prediction, weighting) -> None:
    def build() -> DiffusionLoss:
        return DiffusionLoss(
            NO_SIGNAL, kind="simple", variance="small", prediction=prediction, weighting=weighting
        )

    if prediction == "epsilon" and weighting not in ("snr", "min_snr"):
        with pytest.raises(ValueError, match="weighting must have a limit where alpha = 0"):
            build()
        return
    x0 = torch.ones(1, 1, dtype=torch.float64)
    terms = build()(lambda x, t: torch.zeros_like(x), x0, torch.tensor([3]), 2 * x0)
    limit = {"epsilon": 1.0, "x0": WEIGHTS[weighting](0.0)}.get(
        prediction, {"snr": 0.0, "min_snr": 0.0}.get(weighting, 1.0)
    )
    assert float(terms["loss"] / terms["mse"]) == pytest.approx(limit, abs=1e-99)


def test_a_weight_without_limit_is_refused_on_straight_paths() -> None:
    with pytest.raises(ValueError, match=r"got 'snr\+1'; use 'snr', 'min_snr' or another"):
        DiffusionLoss(NoiseSchedule.flow(), kind="simple", variance="small", weighting="snr+1")


# ---- times


def test_uniform_numbers_become_times() -> None:
    steps = DiffusionLoss(NoiseSchedule.linear(num_steps=10), kind="simple", variance="small")
    u = np.array([[0.0, 0.0999], [0.1, np.nextafter(1.0, 0.0)]])
    got = steps.times(u)
    assert got.dtype == np.int64
    assert got.tolist() == [[1, 1], [2, 10]]
    for num_steps in (3, 7, 4000):
        loss = DiffusionLoss(NoiseSchedule.linear(num_steps), kind="simple", variance="small")
        assert loss.times(np.nextafter(1.0, 0.0)) == num_steps
    real = DiffusionLoss(NoiseSchedule.flow(), kind="simple", variance="small")
    assert real.times([0.0, 0.25]).tolist() == [1.0, 0.75]
    assert real.times(np.nextafter(1.0, 0.0)) > 0.0
    for bad in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"DiffusionLoss\.times: u must be in \[0, 1\), got"):
            real.times([0.5, bad])


def test_drawn_real_times_follow_the_generator_and_are_told_exactly() -> None:
    loss = DiffusionLoss(NoiseSchedule.flow(), kind="simple", variance="small", prediction="flow")
    timesteps: list[torch.Tensor] = []

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        timesteps.append(t)
        return (1.0 - t.double()[:, None]) * 2.0 + t.double()[:, None] * noise - x

    x0, noise = torch.full((2, 4000, 1), 2.0, dtype=torch.float64)
    for _ in range(2):
        terms = loss(network, x0, noise=noise, generator=torch.Generator().manual_seed(1))
    assert torch.equal(*timesteps)
    assert timesteps[0].dtype == torch.float32
    assert 0.0 < timesteps[0].min() < 0.01
    assert 0.99 < timesteps[0].max() <= 1.0
    # From its timestep the network knew x_t: it put out 0, not noise - x0.
    assert float((terms["loss"] - ((noise - x0) ** 2)[:, 0]).abs().max()) < 1e-28


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (torch.tensor([0.5, 0.0]), r"t must be in \(0, 1\], got 0\.\.0\.5"),
        (torch.tensor([0.5, 1.5]), r"t must be in \(0, 1\], got 0\.5\.\.1\.5"),
        (torch.tensor([0.5]), r"t must have the shape \(2,\), got \(1,\)"),
    ],
)
def test_wrong_real_times(t, message) -> None:
    loss = DiffusionLoss(NoiseSchedule.vdm(), kind="simple", variance="small")
    with pytest.raises(ValueError, match=f"DiffusionLoss: {message}"):
        loss(lambda x, t: x, torch.zeros(2, 3), t)


# ---- denoisers


@pytest.mark.parametrize("time", ["index", "rescaled", "fraction", "log_snr"])
def test_a_denoiser_is_told_steps_by_its_own_convention(time) -> None:
    schedule = NoiseSchedule.linear(num_steps=200)
    spy = Spy(lambda x, t: torch.zeros_like(x))
    model = Denoiser(spy, schedule, (2, 3), time=time)
    loss, t = DiffusionLoss.of(model), torch.tensor([1, 7, 200])
    x0, noise = (part.float() for part in data(3))
    for _ in range(2):
        terms = loss(model, x0, t, noise)
    assert loss.kind == "simple"
    assert loss.current(model) is model
    expected = model.network_times(t.double().numpy())
    assert spy.told[0].dtype == expected.dtype
    assert torch.equal(spy.told[0], expected)
    assert torch.equal(spy.told[1], expected)
    np.testing.assert_allclose(terms["loss"], (noise**2).flatten(1).mean(1), rtol=1e-6)


@pytest.mark.parametrize("time", ["fraction", "log_snr", lambda times: 1000.0 * times])
def test_a_denoiser_is_told_real_times_by_its_own_convention(time) -> None:
    spy = Spy(lambda x, t: torch.zeros_like(x))
    model = Denoiser(spy, NoiseSchedule.flow(), (2, 3), time=time, prediction="flow")
    t = torch.tensor([0.125, 0.5, 0.75])
    DiffusionLoss.of(model)(model, data(3)[0].float(), t)
    assert torch.equal(spy.told[0], model.network_times(t.double().numpy()))


def test_two_denoisers_of_one_loss_are_told_each_their_own() -> None:
    schedule = NoiseSchedule.linear(num_steps=200)
    spy = Spy(lambda x, t: torch.zeros_like(x))
    first, second = (Denoiser(spy, schedule, (2, 3), time=time) for time in ("index", "fraction"))
    loss = DiffusionLoss.of(first)
    for model in (first, second, first):
        loss(model, data(2)[0], torch.tensor([1, 200]))
    assert [t.tolist() for t in spy.told] == [[0, 199], [pytest.approx(0.005), 1], [0, 199]]


def test_conditions_and_a_learned_variance_pass_through_a_denoiser() -> None:
    spy = Spy(lambda x, t, y: torch.cat([0.1 * x, 0.2 * x], dim=1))
    schedule = NoiseSchedule.cosine(num_steps=50)
    model = Denoiser(spy, schedule, (2, 3), variance="learned_range")
    loss, y = DiffusionLoss.of(model), torch.tensor([4, 5])
    (x0, noise), t = data(2), torch.tensor([1, 50])
    x0 = x0.clamp(-1.0, 1.0)  # the bound's decoder has bins in [-1, 1] only
    assert loss.kind == "hybrid"
    terms = loss(model, x0, t, noise, y=y)
    assert spy.conditions[0]["y"] is y
    plain = DiffusionLoss(schedule)(spy, x0, t, noise, y=y)
    assert all(torch.equal(terms[name], plain[name]) for name in ("loss", "mse", "vb"))


def test_a_training_step_lowers_the_loss() -> None:
    net = torch.nn.Linear(3, 3)
    model = Denoiser(lambda x, t: net(x), NoiseSchedule.flow(), (3,), time="fraction")
    loss = DiffusionLoss.of(model, weighting="min_snr")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(256, 3, generator=generator)
    values = []
    for _ in range(30):
        value = loss(model, x0, generator=generator)["loss"].mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert np.mean(values[-5:]) < 0.8 * values[0]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"schedule": NoiseSchedule.linear(num_steps=100)}, "schedule NoiseSchedule.linear"),
        ({"prediction": "v"}, "prediction 'epsilon', got 'v'"),
        ({"variance": "large"}, "variance 'small', got 'large'; DiffusionLoss.of"),
    ],
)
def test_a_denoiser_of_another_kind_is_refused(knobs, message) -> None:
    loss = DiffusionLoss(NoiseSchedule.linear(num_steps=200), kind="simple", variance="small")
    options = {"schedule": NoiseSchedule.linear(num_steps=200), **knobs}
    model = Denoiser(lambda x, t: x, shape=(2, 3), **options)
    with pytest.raises(ValueError, match=f"DiffusionLoss: model must have the loss's {message}"):
        loss(model, data(2)[0])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"weighting": "p2"}, r"weighting must be one of \(None, 'snr', .*\), got 'p2'"),
        ({"weighting": "snr", "kind": "vlb"}, "weighting must be None with kind 'vlb', got 'snr'"),
        ({"weighting": "min_snr", "gamma": 0.0}, "gamma must be positive, got 0"),
    ],
)
def test_wrong_weightings(knobs, message) -> None:
    options = {"kind": "simple", "variance": "small", **knobs}
    with pytest.raises(ValueError, match=f"DiffusionLoss: {message}"):
        DiffusionLoss(NoiseSchedule.linear(num_steps=100), **options)
