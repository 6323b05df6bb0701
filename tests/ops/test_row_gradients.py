"""Gradients of a step with respect to its row: what tuning a sampler runs on."""

from __future__ import annotations

import pytest
import torch

import fastsample as fs
from fastsample import ops
from fastsample.ops import reference
from fastsample.plans.rows import COLUMNS
from tests.helpers.tensors import (
    CASES,
    DTYPES,
    HISTORY,
    OPERANDS,
    SHAPES,
    laid_out,
    operands,
    positional,
    runnable,
)

EVERY_COMBINATION = pytest.mark.parametrize("combination", OPERANDS)


def gradient(given, grad, grad_x0=None, step=ops.step_x0):
    rows = given["rows"].detach().clone().requires_grad_()
    x_next, x0 = step(**{**given, "rows": rows})
    cotangents = (grad, torch.zeros_like(x0) if grad_x0 is None else grad_x0)
    return torch.autograd.grad((x_next, x0), rows, cotangents)[0]


def cotangents(given):
    generator = torch.Generator().manual_seed(5)
    x = given["x"]
    high = torch.float64 if x.dtype == torch.float64 else torch.float32
    return tuple(
        torch.randn(x.shape, generator=generator).to(x.device, kind) for kind in (x.dtype, high)
    )


def wide(given):
    """The operands in float64, as the reference takes them."""
    return {n: t.double() if t.is_floating_point() else t for n, t in given.items()}


def smooth(given, number):
    """Columns in which the step is differentiable at that row, and moves."""
    row = dict(zip(COLUMNS, given["rows"][number].tolist(), strict=True))
    free = {"p", "q", "a", "b", "e"}
    free |= {n for n in ("lo", "hi") if abs(row[n]) < torch.inf}
    free |= {"w"} if "uncond" in given else set()
    free |= {f"c{n}" for n, name in enumerate(HISTORY, 1) if name in given}
    if row["d"] != 0:
        free.add("d")
        if given["out"].shape != given["x"].shape and (row["lv_lo"] or row["lv_hi"]):
            free |= {"lv_lo", "lv_hi"}
    return [i for i, name in enumerate(COLUMNS) if name in free]


def away_from_kinks(exact):
    """1 where rounding cannot carry x0 across a bound of its clamp, else 0."""
    free = exact["rows"].clone()
    free[:, COLUMNS.index("lo")], free[:, COLUMNS.index("hi")] = -torch.inf, torch.inf
    raw = reference.step_x0(**{**exact, "rows": free})[1]
    row = exact["rows"][exact["row"]].expand(len(raw), -1)
    bounds = (
        row[:, COLUMNS.index(name)].reshape(-1, *[1] * (raw.dim() - 1)) for name in ("lo", "hi")
    )
    near = torch.stack([(raw - bound).abs() < 1e-4 for bound in bounds]).any(0)
    return (~near).to(torch.float16)


@EVERY_COMBINATION
def test_finite_differences(device, combination):
    for number in runnable(OPERANDS[combination]):
        given = operands((2, 3, 5), OPERANDS[combination], torch.float64, device, number)
        if given["row"].numel() > 1:
            given["row"] = torch.full_like(given["row"], number)
        columns = smooth(given, number)
        base = given["rows"]

        def function(values, given=given, number=number, columns=columns, base=base):
            rows = base.clone()
            rows[number, columns] = values
            return ops.step_x0(**{**given, "rows": rows})

        values = base[number, columns].clone().requires_grad_()
        assert torch.autograd.gradcheck(function, values)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("shape", "layout"), CASES)
def test_against_the_reference(device, shape, layout, dtype):
    for combination, names in OPERANDS.items():
        given = operands(SHAPES[shape], names, dtype, device)
        exact = wide(given)
        smooth = away_from_kinks(exact)
        grads = [g * smooth.to(g.dtype) for g in cotangents(given)]
        found = gradient(laid_out(given, layout), *grads)
        assert found.dtype == torch.float64
        grads = [g.double() for g in grads]
        expected = gradient(exact, *grads, step=reference.step_x0)
        # Products in the arithmetic type, sums in float64: their size is that of the terms.
        size = gradient(
            {n: t.abs() if n != "rows" and t.is_floating_point() else t for n, t in exact.items()},
            *(g.abs() for g in grads),
            step=reference.step_x0,
        ).abs()
        # Generated noise is float32 in either, by different formulas.
        exact_noise = dtype == torch.float64 and "index" not in given
        eps = torch.finfo(torch.float64 if exact_noise else torch.float32).eps
        bound = 64 * eps * (size + expected.abs() + given["x"].numel())
        assert torch.all((found - expected).abs() <= bound), combination


def test_a_sample_alone_and_in_a_batch():
    given = operands((5, 3, 700), OPERANDS["row per sample"])
    grad, grad_x0 = cotangents(given)
    arguments = (given["out"], given["rows"], given["row"])
    rest = {n: given[n] for n in ("seeds", "index")}
    together = torch.ops.fastsample.row_gradients(grad, grad_x0, given["x"], *arguments, **rest)
    for i in range(5):
        alone = torch.ops.fastsample.row_gradients(
            *(grad[i : i + 1], grad_x0[i : i + 1], given["x"][i : i + 1], given["out"][i : i + 1]),
            *(given["rows"], given["row"][i : i + 1]),
            seeds=given["seeds"],
            index=given["index"][i : i + 1],
        )
        assert torch.equal(alone[0], together[i])


def test_threads_change_nothing(threads):
    given = operands((9, 3, 5000), OPERANDS["everything"])
    grads = cotangents(given)
    one = gradient(given, *grads)
    threads(3)
    assert torch.equal(gradient(given, *grads), one)


def test_every_instruction_set(isa):
    for combination, names in OPERANDS.items():
        given = operands((3, 4, 301), names)
        grads = cotangents(given)
        found = []
        for name in fs.build_info()["cpu_available"]:
            isa(name)
            found.append(gradient(given, *grads))
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-7, msg=combination)


@EVERY_COMBINATION
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_threads_of_a_gpu(dtype, layout, combination, monkeypatch):
    """The code of a CUDA thread, run on the host: another order of the same sums."""
    given = laid_out(operands((3, 4, 5, 7), OPERANDS[combination], dtype), layout)
    grads = cotangents(given)
    expected = gradient(given, *grads)
    monkeypatch.setattr(ops.launch, "device_arguments", lambda tensor: (-2, 0, 0))
    found = gradient(given, *grads)
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    size = given["x"].numel() + expected.abs()
    assert torch.all((found - expected).abs() <= 64 * eps * size)


def test_a_chain_of_steps():
    """Through three steps of a plan, to a row of the first."""
    plan = fs.dpm_solver(fs.NoiseSchedule.linear(), fs.grids.uniform(1000, 3), order=2)
    rows = torch.tensor(plan.rows, requires_grad=True)
    start = torch.randn(4, 6, dtype=torch.float64)

    def run(step, rows):
        x, h1 = start, torch.zeros_like(start)
        for k in range(3):
            x, h1 = step(x, torch.tanh(x) * 0.3, rows, torch.tensor([k]), h1=h1)
        return x.square().sum()

    found = torch.autograd.grad(run(ops.step_x0, rows), rows)[0]
    expected = torch.autograd.grad(run(reference.step_x0, rows), rows)[0]
    used = [COLUMNS.index(name) for name in ("p", "q", "a", "b", "e", "c1")]
    torch.testing.assert_close(found[:, used], expected[:, used], rtol=1e-10, atol=1e-10)
    assert (found[:, used[0]] != 0).all()


def test_rows_on_the_device_keep_their_dtype_and_zeros():
    given = operands((2, 5), set())
    found = gradient(given, *cotangents(given))
    assert found.shape == given["rows"].shape
    assert (found[1:] == 0).all()  # rows that the step did not take
    names = ("w", "c1", "c2", "c3", "c4", "d", "lv_lo", "lv_hi")
    unused = [COLUMNS.index(name) for name in names]
    assert (found[:, unused] == 0).all()


def test_a_row_outside_the_table_gives_nan():
    given = operands((2, 5), set())
    given["row"] = torch.tensor([7])
    assert gradient(given, *cotangents(given)).isnan().any()


@EVERY_COMBINATION
def test_opcheck(device, combination):
    given = operands((2, 3, 8), OPERANDS[combination], device=device)
    grad, grad_x0 = cotangents(given)
    arguments = (grad, grad_x0, *positional(given))
    torch.library.opcheck(torch.ops.fastsample.row_gradients.default, arguments)
