"""The operators: registered as torch asks, and equal to the reference for every operand."""

from __future__ import annotations

import inspect
import textwrap

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastsample import _native, ops
from fastsample.ops import reference
from fastsample.plans.rows import COLUMNS
from tests.helpers.step_oracle import assert_within, truth, widened
from tests.helpers.tensors import (
    CASES,
    DTYPES,
    HISTORY,
    OPERANDS,
    ROWS,
    SHAPES,
    channels_last,
    laid_out,
    operands,
    positional,
    runnable,
    table,
)

# ---- registration ----


@pytest.mark.parametrize("combination", OPERANDS)
@pytest.mark.parametrize("name", ["step", "step_x0", "step_into", "step_backward"])
def test_opcheck(device, name, combination):
    given = operands((2, 3, 5), OPERANDS[combination], device=device)
    arguments = positional(given)
    if name == "step_into":
        arguments = (torch.empty_like(given["x"]), *arguments)
    if name == "step_backward":
        grad_x0 = torch.ones_like(given["x"]) if "h1" in given else None
        arguments = (torch.ones_like(given["x"]), grad_x0, *arguments)
    torch.library.opcheck(getattr(torch.ops.fastsample, name).default, arguments)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", ["step_x0", "step_into", "step_backward"])
def test_opcheck_channels_last(device, name, dtype):
    given = operands((2, 3, 4, 5), OPERANDS["learned, guidance"], dtype, device)
    arguments = positional(laid_out(given, "channels_last"))
    x = arguments[0]
    extra = {"step_into": (torch.empty_like(x),), "step_backward": (x.clone(), None)}
    torch.library.opcheck(
        getattr(torch.ops.fastsample, name).default, (*extra.get(name, ()), *arguments)
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck_noise(device, channels_last):
    index = torch.arange(3, device=device)
    for seeds in (index[:1], index):
        arguments = (seeds, index, [3, 2, 5, 4], 7, torch.bfloat16, channels_last)
        torch.library.opcheck(torch.ops.fastsample.noise.default, arguments)


def test_meta_and_fake_tensors_only_have_shapes():
    given = operands((2, 3, 4, 5), OPERANDS["everything"])
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(t) for name, t in given.items()}
        results = ops.step_x0(**fakes)
        drawn = ops.noise(fakes["row"], fakes["row"], (7,))
    metas = ops.step_x0(**{name: t.to("meta") for name, t in given.items()})
    assert [t.shape for t in results] == [t.shape for t in metas] == [(2, 3, 4, 5)] * 2
    assert drawn.shape == (2, 7)


def test_a_null_pointer_is_an_error():
    # (device, stream, threads, dtype, batch, size, channels, pixels, channels_last), then pointers.
    layout = (-1, 0, 1, 0, 1, 4, 1, 4, False)
    # Nine addresses, the count of rows, its number; then those of seeds, index and draw.
    step = (*layout, False, *[0] * 9, 1, 0, False, 0, False, 0, 0, False)
    with pytest.raises(ValueError, match="without storage"):
        _native.step(*step, 0, 0)
    with pytest.raises(ValueError, match="without storage"):
        _native.step_backward(*step, *[0] * 10)
    with pytest.raises(ValueError, match="without storage"):
        _native.fill_noise(*layout, 0, False, 0, 5, 0)
    empty = (*layout[:5], 0, *layout[6:], *step[9:])
    _native.step(*empty, 0, 0)
    _native.step_backward(*empty, *[0] * 10)


# ---- values ----


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("shape", "layout"), CASES)
def test_equals_the_reference(device, shape, layout, dtype):
    for combination, names in OPERANDS.items():
        given = laid_out(operands(SHAPES[shape], names, dtype, device), layout)
        expected = truth(given)
        x_next, x0 = ops.step_x0(**given)
        assert_within(x_next, expected.next, expected.next_bound, combination)
        assert_within(x0, expected.x0, expected.x0_bound, combination)
        assert torch.equal(ops.step(**given), x_next), combination


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("combination", OPERANDS)
def test_equals_the_reference_in_every_row(device, combination, dtype):
    for row in runnable(OPERANDS[combination]):
        given = operands((4, 3, 11, 5), OPERANDS[combination], dtype, device, row)
        expected = truth(given)
        results = ops.step_x0(**given)
        assert results[0].dtype == dtype
        assert results[1].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        in_its_own_dtype = reference.step_x0(**given)
        for i, (ours, theirs) in enumerate(zip(results, in_its_own_dtype, strict=True)):
            assert theirs.dtype == ours.dtype
            assert_within(ours, expected[i], expected[i + 2], f"row {row}")
            assert_within(theirs, expected[i], expected[i + 2], f"reference, row {row}")


def test_keeps_the_memory_format(device):
    given = operands((2, 3, 4, 5), set(), device=device)
    moved = laid_out(given, "channels_last")
    last = {"memory_format": torch.channels_last}
    assert ops.step(**moved).is_contiguous(**last)
    assert all(t.is_contiguous(**last) for t in ops.step_x0(**moved))
    assert ops.step(**given).is_contiguous()
    assert ops.step(**{**given, "x": moved["x"]}).is_contiguous()  # operands that disagree


def test_one_row_per_sample(device):
    names = OPERANDS["learned, guidance"] | {"h1", "h2", "h3", "h4", "draw per sample"}
    given = operands((7, 4, 33), names, device=device)
    together = ops.step_x0(**given)
    for i in range(7):
        one = {n: t if n in ("rows", "seeds") else t[i : i + 1] for n, t in given.items()}
        for mine, theirs in zip(ops.step_x0(**one), together, strict=True):
            assert torch.equal(mine[0], theirs[i])


def test_a_row_may_have_any_shape_of_one_element(device):
    given = operands((3, 8), {"seeds"}, device=device)
    expected = ops.step(**given)
    for row in (given["row"][0], given["row"].reshape(1, 1)):
        assert torch.equal(ops.step(**{**given, "row": row}), expected)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("number", [-1, len(ROWS), 2**40, -(2**63)])
def test_a_row_outside_the_table_gives_nan(device, number, dtype):
    for names in OPERANDS.values():
        given = operands((3, 4, 9), names, dtype, device)
        given["row"] = torch.tensor([number], device=device)
        assert all(t.isnan().all() for t in ops.step_x0(**given))
        assert ops.step(**given).isnan().all()
        given["row"] = torch.tensor([0, number, 2], device=device)
        x_next, x0 = ops.step_x0(**given)
        assert x_next[1].isnan().all()
        assert x0[1].isnan().all()
        assert not x_next[0].isnan().any()


@pytest.mark.parametrize(
    "names", [set(), {"uncond", "h1"}, {"learned"}], ids=lambda names: "+".join(sorted(names))
)
def test_a_row_that_wants_noise_and_gets_none_gives_nan(device, names):
    given = operands((3, 4, 9), names, device=device, row=1)
    assert ops.step(**given).isnan().all()
    given["row"] = torch.tensor([0, 1, 0], device=device)
    assert ops.step(**given).isnan().flatten(1).all(1).tolist() == [False, True, False]
    assert not ops.step_x0(**given)[1].isnan().any()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("bound", [1.0, torch.inf])
def test_nan_survives_the_clamp(device, dtype, bound):
    rows = table(p=1.0, q=1.0, lo=-bound, hi=bound, b=1.0).to(device)
    row = torch.zeros(1, dtype=torch.int64, device=device)
    x = torch.zeros(2, 45, dtype=dtype, device=device)
    out = x.clone()
    x[0, 3], x[1, 44], out[1, 0], out[0, 3] = torch.nan, torch.nan, torch.nan, 1.0
    for layout in (torch.Tensor.contiguous, channels_last):
        shaped = [layout(t.view(2, 5, 3, 3)) for t in (x, out)]
        for result in (ops.step(*shaped, rows, row), *ops.step_x0(*shaped, rows, row)):
            assert torch.equal(result.isnan().flatten(1), (x + out).isnan())


def test_clamp_at_infinity(device):
    x = torch.tensor([[-torch.inf, -3e38, 0.5, 3e38, torch.inf]], device=device)
    row = torch.zeros(1, dtype=torch.int64, device=device)
    out = torch.zeros_like(x)
    for lo, hi in [(-torch.inf, torch.inf), (-1.0, torch.inf), (-torch.inf, 1.0), (2.0, 3.0)]:
        rows = table(p=1.0, lo=lo, hi=hi, b=1.0).to(device)
        # x_next would be NaN: its row says 0 * infinity, and so does the reference's arithmetic.
        assert torch.equal(ops.step_x0(x, out, rows, row)[1], x.clamp(lo, hi))


# ---- where the result goes ----


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("shape", "layout"), CASES)
def test_target(device, shape, layout, dtype):
    for combination, names in OPERANDS.items():
        given = laid_out(operands(SHAPES[shape], names, dtype, device), layout)
        before = {name: t.clone() for name, t in given.items()}
        expected = ops.step(**given)
        other = torch.empty_strided(
            given["x"].shape, given["x"].stride(), dtype=dtype, device=device
        )
        for target in (other, given["x"]):
            assert ops.step(**given, target=target) is target
            assert torch.equal(target, expected), combination
        for name in given.keys() - {"x"}:
            assert torch.equal(given[name], before[name]), (combination, name)


# ---- documentation ----


def test_the_documented_equivalent_is_one(device):
    text = inspect.getdoc(ops.step)
    head, _, block = text.rpartition("::\n")
    assert head.rsplit("\n", 1)[-1].startswith("Equivalent to")
    lines = block.splitlines()
    assert all(line.startswith("    ") for line in lines if line)
    code = compile(textwrap.dedent(block), "the docstring of step", "exec")
    for combination in ("plain", "noise", "guidance", "everything"):
        names = OPERANDS[combination] - {"learned", *HISTORY, "row per sample"}
        for row in runnable(names):
            given = operands((3, 4, 9), names, torch.float64, device, row)
            scope = dict(zip(COLUMNS, given["rows"][row].tolist(), strict=True))
            scope |= {name: given.get(name) for name in ("x", "out", "uncond", "noise")}
            exec(code, {}, scope)
            expected = truth(given)
            assert_within(ops.step(**given), scope["x_next"].cpu(), 2 * expected.next_bound)
            assert_within(scope["x0"], expected.x0, expected.x0_bound)
            assert torch.equal(widened(given)["x"], given["x"].cpu())
