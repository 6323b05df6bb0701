"""The operand `draw`: which numbered noise of a sample a step draws, whatever its row."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastsample import ops
from fastsample.ops import launch, reference
from tests.helpers.tensors import OPERANDS, laid_out, operands, same_bits

DRAWS = (0, 5, 2**31 + 9, ops.START_DRAW)
SHAPE = (3, 4, 5, 7)
NOISY = 2
"""A row of the table that draws noise."""


@pytest.fixture(params=["kernel", "emulated threads"])
def kernel(request, monkeypatch):
    """Runs the kernels of the CPU, or the code of a GPU's threads on the host."""
    if request.param != "kernel":
        monkeypatch.setattr(launch, "device_arguments", lambda tensor: (-2, 0, 0))


def without(given, *names):
    return {name: t for name, t in given.items() if name not in names}


def explicit(given, draws):
    """The operands with each sample's generated noise as a tensor."""
    x = given["x"]
    noises = [
        ops.noise(
            given["seeds"] if given["seeds"].numel() == 1 else given["seeds"][i : i + 1],
            given["index"][i : i + 1],
            x.shape[1:],
            draw=draw,
            dtype=x.dtype,
        )
        for i, draw in enumerate(draws)
    ]
    return {**without(given, "seeds", "index", "draw"), "noise": torch.cat(noises)}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("combination", ["seeds", "one seed per sample", "learned, seeds"])
def test_a_row_gives_the_noise_of_the_draw(kernel, combination, draw):
    given = operands(SHAPE, OPERANDS[combination], row=NOISY)
    expected = ops.step(**explicit(given, [draw] * 3))
    for layout in ("contiguous", "channels_last"):
        moved = laid_out(given, layout)
        for number in (torch.tensor(draw), torch.tensor([draw]), torch.tensor([[draw]])):
            assert same_bits(ops.step(**moved, draw=number), expected)
        assert same_bits(ops.step_x0(**moved, draw=torch.tensor([draw] * 3))[0], expected)


def test_draws_per_sample(kernel):
    draws = [DRAWS[1], DRAWS[3], DRAWS[2]]
    for combination in ("seeds", "one seed per sample", "row per sample"):
        given = operands(SHAPE, OPERANDS[combination], row=1)
        expected = ops.step_x0(**explicit(given, draws))
        found = ops.step_x0(**given, draw=torch.tensor(draws))
        assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))
        spread = torch.tensor([n for draw in draws for n in (draw, -77)])[::2]
        assert same_bits(ops.step(**given, draw=spread), expected[0])


def test_by_default_it_is_the_row_number(kernel):
    given = operands(SHAPE, {"seeds", "row per sample"}, row=1)
    expected = ops.step(**given)
    assert same_bits(ops.step(**given, draw=given["row"]), expected)
    assert not torch.equal(ops.step(**given, draw=given["row"] + 1), expected)


def test_stacked_tables_draw_what_each_plan_would():
    """Rows 0..3 of two plans in one table of eight: the draw is the row number in its own plan."""
    given = operands(SHAPE, {"seeds"}, row=NOISY)
    stacked = {**given, "rows": torch.cat((given["rows"] * 0.5, given["rows"]))}
    stacked["row"] = given["row"] + len(given["rows"])
    assert not torch.equal(ops.step(**stacked), ops.step(**given))
    assert same_bits(ops.step(**stacked, draw=given["row"]), ops.step(**given))


@pytest.mark.parametrize("combination", ["draw", "draw per sample", "everything, generated"])
def test_reference_and_kernel_draw_alike(kernel, combination):
    given = operands(SHAPE, OPERANDS[combination], torch.float64, row=NOISY)
    for ours, theirs in zip(ops.step_x0(**given), reference.step_x0(**given), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-5)  # the noise is float32
    other = {**given, "draw": given["draw"] + 1}
    assert not torch.allclose(ops.step(**other), ops.step(**given), atol=0.1)


def test_draws_count_modulo_32_bits(kernel):
    given = operands(SHAPE, {"seeds"}, row=NOISY)
    last = ops.step(**given, draw=torch.tensor(ops.START_DRAW))
    assert same_bits(ops.step(**given, draw=torch.tensor(-1)), last)
    torch.testing.assert_close(reference.step(*given_in_order(given, torch.tensor(-1))), last)


def given_in_order(given, draw):
    order = ("x", "out", "rows", "row", "uncond", "seeds", "index")
    return (*(given.get(name) for name in order), draw)


def test_without_generated_noise_it_says_nothing(kernel):
    for names in (set(), {"noise"}):
        given = operands(SHAPE, names)
        expected = ops.step(**given)
        for draw in (torch.tensor(9), torch.arange(3)):
            assert same_bits(ops.step(**given, draw=draw), expected)
    given = operands(SHAPE, {"seeds", "noise"}, row=NOISY)  # explicit noise overrides it
    expected = ops.step(**without(given, "seeds", "index"))
    assert same_bits(ops.step(**given, draw=torch.tensor(9)), expected)


@pytest.mark.parametrize("combination", ["learned, seeds", "everything, generated"])
def test_gradients_draw_the_same_noise(kernel, combination):
    """Of the variance output, and of the row: their noise is generated a second time."""
    names = OPERANDS[combination] - {"draw per sample"}
    given = operands((3, 4, 11), names, torch.float64, row=1)
    draws = [7, 2**32 - 3, 8]
    pairs = []
    for case in ({**given, "draw": torch.tensor(draws)}, explicit(given, draws)):
        out, rows = (case[name].clone().requires_grad_() for name in ("out", "rows"))
        x_next = ops.step(**{**case, "out": out, "rows": rows})
        pairs.append(torch.autograd.grad(x_next.square().sum(), (out, rows)))
    for found, expected in zip(*pairs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert pairs[0][0][:, 4:].abs().max() > 0  # the half that predicts the variance


@pytest.mark.parametrize("per_sample", [False, True])
def test_fake_tensors(per_sample):
    given = operands(SHAPE, {"seeds", "draw per sample" if per_sample else "draw"})
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(t) for name, t in given.items()}
        assert [t.shape for t in ops.step_x0(**fakes)] == [SHAPE] * 2
        assert ops.step(**fakes).shape == SHAPE


@pytest.mark.parametrize("per_sample", [False, True])
def test_twenty_draws_are_one_graph(per_sample):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def one_step(x, draw):
        return ops.step(x, torch.tanh(x), rows, row, seeds=seeds, index=index, draw=draw)

    given = operands((2, 3, 8), {"seeds"}, row=NOISY)
    rows, row, seeds, index = (given[name] for name in ("rows", "row", "seeds", "index"))
    compiled = torch.compile(one_step, fullgraph=True, backend=backend)
    draws = torch.arange(40).reshape(20, 2) if per_sample else torch.arange(20)
    x = y = given["x"].clone()
    for draw in draws:
        x, y = compiled(x, draw), one_step(y, draw)
        assert torch.equal(x, y)
    assert len(graphs) == 1
    torch._dynamo.reset()
