"""The gradient of the fidelity loss in the weights: not zero, exact, as truncated as asked for."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.func import functional_call

import fastsample as fs
from fastsample.distances import distances
from fastsample.training import FidelityLoss
from fastsample.training.fidelity.chain import starting_points
from fastsample.training.randomness import RandomStreams
from tests.helpers.networks import LINEAR
from tests.helpers.training_cases import (
    CHAINS,
    DISTANCES,
    GRID,
    chain_model,
    gradients,
    plain_chain,
    points,
    tiny,
)

DATA = points(6, dtype=torch.float64)
# Exact is not the same as useful: there is a test of the warning.
pytestmark = pytest.mark.filterwarnings("ignore:FidelityLoss. the jacobian_free gradient")
COUNT = len(DATA)


def loss_and_gradients(model, **options):
    """Loss and gradients of three steps, iteration 5."""
    result = FidelityLoss(options.pop("steps", GRID), **options)(model, DATA, iteration=5)
    return result, gradients(result.loss, model)


def looped(model, *, blind=0, jacobian_free=False, **options):
    """The same in plain torch: energy distance of the chain's end from the data."""
    loss = FidelityLoss(GRID, **options)
    streams = RandomStreams(0, 5)
    plan = loss.plan(model, streams)
    # From the prior for all x0, else for half of them, which the others are compared with.
    own, data = (DATA, DATA) if loss.start == "prior" else DATA.split(COUNT // 2)
    index = torch.arange(len(own))
    start = starting_points(model, plan, own, loss.start, index=index, streams=streams)
    end = plain_chain(model, plan, start, streams, blind=blind, jacobian_free=jacobian_free)
    value = distances.energy_distance(end, data)
    return value, gradients(value, model)


def assert_close(one, other, tolerance=1e-10):
    scale = max(float(g.abs().max()) for g in other)
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.0, atol=tolerance * scale)


# ---- it is there, and it is the derivative


@pytest.mark.parametrize(
    ("chain", "distance"),
    [
        (chain, distance)
        for chain, distance in itertools.product(CHAINS, DISTANCES)
        if distance != "score" or chain in ("eta", "ancestral", "learned", "shortcut")
    ],
)
def test_every_weight_has_a_gradient(chain, distance):
    """The published code's is exactly zero: its chain did not see the weights it trained."""
    options = {**DISTANCES[distance], **CHAINS[chain]}
    if "method" in options:
        options.pop("eta", None)
    _, grads = loss_and_gradients(chain_model(chain), **options)
    for gradient in grads:
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 1e-9


def differences(model, **options):
    """`gradcheck` over the weights."""
    loss, network = FidelityLoss(GRID, **options), model.model
    names = [name for name, _ in network.named_parameters()]

    def value(*weights):
        given = dict(zip(names, weights, strict=True))
        seen = fs.Denoiser(
            lambda x, t: functional_call(network, given, (x, t)),
            LINEAR,
            (2,),
            variance=model.variance,
        )
        return loss(seen, DATA, iteration=5).loss

    return torch.autograd.gradcheck(value, tuple(network.parameters()), fast_mode=False)


@pytest.mark.parametrize("distance", DISTANCES)
def test_finite_differences_of_distances(distance):
    assert differences(tiny(torch.float64, width=2), **DISTANCES[distance])


@pytest.mark.parametrize("chain", CHAINS)
def test_finite_differences_of_chains(chain):
    assert differences(chain_model(chain, width=2), **CHAINS[chain])


@pytest.mark.parametrize("start", ["prior", "paired", "noised"])
@pytest.mark.parametrize("chain", CHAINS)
def test_gradients_are_those_of_a_loop(chain, start):
    model = chain_model(chain)
    options = {**CHAINS[chain], "start": start}
    result, grads = loss_and_gradients(model, **options)
    value, expected = looped(model, **options)
    torch.testing.assert_close(result.loss, value, rtol=1e-12, atol=0.0)
    assert_close(grads, expected)


def test_clipping_stops_the_gradient_where_it_acts():
    model = tiny(torch.float64)
    options = {"clip": 0.5, "eta": 1.0}
    assert_close(loss_and_gradients(model, **options)[1], looped(model, **options)[1])


def test_float32_is_close_to_float64():
    model = tiny(torch.float64)
    _, expected = loss_and_gradients(model, eta=1.0)
    narrow = tiny()
    narrow.model.load_state_dict(model.model.state_dict())
    result = FidelityLoss(GRID, eta=1.0)(narrow, DATA.float(), iteration=5)
    assert result.loss.dtype == result.samples.dtype == torch.float32
    assert_close([g.double() for g in gradients(result.loss, narrow)], expected, 1e-4)


# ---- how much of it


@pytest.mark.parametrize("chain", CHAINS)
def test_checkpoints_change_no_bit(chain):
    model = chain_model(chain)
    for gradient in ("full", "last", "jacobian_free"):
        options = {**CHAINS[chain], "gradient": gradient, "last_rows": 2}
        one, grads = loss_and_gradients(model, **options)
        other, again = loss_and_gradients(model, **options, checkpoint=True)
        assert torch.equal(one.loss, other.loss)
        assert all(map(torch.equal, grads, again))


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
@pytest.mark.parametrize("chain", CHAINS)
def test_last_rows_alone(chain, rows):
    model = chain_model(chain)
    _, grads = loss_and_gradients(model, **CHAINS[chain], gradient="last", last_rows=rows)
    _, expected = looped(model, blind=max(3 - rows, 0), **CHAINS[chain])
    assert_close(grads, expected)


@pytest.mark.parametrize("chain", CHAINS)
def test_jacobian_free_detaches_the_network_s_input(chain):
    model = chain_model(chain)
    result, grads = loss_and_gradients(model, **CHAINS[chain], gradient="jacobian_free")
    value, expected = looped(model, jacobian_free=True, **CHAINS[chain])
    torch.testing.assert_close(result.loss, value, rtol=1e-12, atol=0.0)
    assert_close(grads, expected)


@pytest.mark.parametrize("gradient", ["full", "jacobian_free"])
def test_jacobian_free_multistep_chains_are_warned_of(recwarn, gradient):
    for chain in CHAINS:
        recwarn.clear()
        loss_and_gradients(chain_model(chain), **CHAINS[chain], gradient=gradient)
        texts = [str(warning.message) for warning in recwarn]
        assert len(texts) == (chain.startswith("dpm++") and gradient == "jacobian_free")
        assert all("jacobian_free gradient of the multistep dpm_solver" in text for text in texts)


def test_truncations_differ_from_the_whole():
    model = tiny(torch.float64)
    kinds = [{"gradient": "full"}, {"gradient": "jacobian_free"}]
    kinds += [{"gradient": "last", "last_rows": rows} for rows in (1, 2)]
    all_grads = [loss_and_gradients(model, **kind)[1][0] for kind in kinds]
    for one, other in itertools.combinations(all_grads, 2):
        assert not torch.allclose(one, other, rtol=1e-3)


# ---- what it costs


@pytest.mark.parametrize("gradient", ["full", "last", "jacobian_free"])
def test_network_calls(gradient):
    for steps, checkpoint in itertools.product((3, 5), (False, True)):
        model = tiny(torch.float64)
        loss = FidelityLoss(steps, gradient=gradient, checkpoint=checkpoint, clip=1.0, last_rows=2)
        result = loss(model, DATA)
        assert model.model.calls == steps
        assert result.calls == steps * COUNT
        gradients(result.loss, model)
        again = (2 if gradient == "last" else steps) if checkpoint else 0
        assert model.model.calls == steps + again


def test_checkpoints_keep_no_activations():
    """What autograd holds of the network between the passes."""
    held = {}
    for checkpoint in (False, True):
        model, kept = tiny(torch.float64, width=50), []

        def keep(x, kept=kept):
            kept.append(x)
            return x

        loss = FidelityLoss(8, clip=1.0, checkpoint=checkpoint)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            value = loss(model, DATA).loss
        held[checkpoint] = sum(x.numel() for x in kept if x.shape[-1:] == (50,))
        gradients(value, model)
    assert held[False] >= 8 * COUNT * 50
    assert held[True] == 0
