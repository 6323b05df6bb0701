"""The operators under torch.compile: twenty rows are one graph, with the results of eager code."""

from __future__ import annotations

import pytest
import torch

import fastsample as fs
from fastsample import ops
from tests.helpers.networks import denoiser, halve
from tests.helpers.tensors import HISTORY, OPERANDS, operands, table

STEPS = 20

# Warnings of torch 2.13's own dynamo: it instantiates an autograd.Function that it traces, and
# looks at the .grad of every tensor it meets (hiding the warning, which does not help where it
# raises).
_instantiates_functions = pytest.mark.filterwarnings(
    "ignore:.*autograd.function.Function'> should not be instantiated:DeprecationWarning"
)
_looks_at_grad = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning"
)

# torch 2.11's own import, on a GPU machine.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"
)


class Counting:
    """One of torch's backends, counting its graphs."""

    def __init__(self, name: str) -> None:
        self.graphs = 0
        self.compile = torch._dynamo.lookup_backend(name)

    def __call__(self, graph, inputs):
        self.graphs += 1
        return self.compile(graph, inputs)


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=["eager", "aot_eager"])
def backend(request):
    return Counting(request.param)


def plan_rows(device):
    schedule = fs.NoiseSchedule.linear()
    plan = fs.ddim(schedule, fs.grids.uniform(1000, STEPS), eta=1.0, clip=1.0)
    assert len({tuple(row) for row in plan.rows.tolist()}) == STEPS
    return torch.tensor(plan.rows, device=device)


def run(step, given, rows):
    numbers = torch.arange(STEPS, device=rows.device)
    x = given["x"]
    for k in range(STEPS):
        x = step(x, torch.tanh(x), rows, numbers[k], given["seeds"], given["index"])
    return x


def one_step(x, out, rows, row, seeds, index):
    return ops.step(x, out, rows, row, seeds=seeds, index=index)


def test_twenty_rows_are_one_graph(device, backend):
    rows = plan_rows(device)
    given = operands((2, 3, 8, 8), {"seeds"}, device=device)
    step = torch.compile(one_step, fullgraph=True, backend=backend)
    assert torch.equal(run(step, given, rows), run(one_step, given, rows))
    assert backend.graphs == 1


def test_rows_per_sample_and_history_are_one_graph(device, backend):
    rows = plan_rows(device)
    given = operands((2, 3, 8), {"h1", "noise"}, device=device)

    def one_step(x, out, row, h1, noise):
        return ops.step_x0(x, out, rows, row, h1=h1, noise=noise)

    step = torch.compile(one_step, fullgraph=True, backend=backend)
    results = []
    for function in (step, one_step):
        x, h1 = given["x"], given["h1"]
        for k in range(STEPS):
            row = torch.tensor([k, STEPS - 1 - k], device=device)
            x, h1 = function(x, torch.tanh(x), row, h1, given["noise"])
        results.append((x, h1))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert backend.graphs == 1


def test_in_place(device, backend):
    rows = plan_rows(device)
    given = operands((2, 3, 8, 8), {"seeds"}, device=device)

    def into(x, out, rows, row, seeds, index):
        return ops.step(x, out, rows, row, seeds=seeds, index=index, target=x)

    expected = run(one_step, given, rows)
    step = torch.compile(into, fullgraph=True, backend=backend)
    with torch.no_grad():
        got = run(step, {**given, "x": given["x"].clone()}, rows)
    assert torch.equal(got, expected)
    assert backend.graphs == 1


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_model_and_step_together(device, backend, layout):
    rows = plan_rows(device)
    given = operands((2, 4, 8, 8), {"seeds"}, device=device)
    model = torch.nn.Conv2d(4, 4, 3, padding=1).to(device).requires_grad_(False)
    if layout == "channels_last":
        model = model.to(memory_format=torch.channels_last)
        given["x"] = given["x"].contiguous(memory_format=torch.channels_last)

    def both(x, _, rows, row, seeds, index):
        return one_step(x, model(x), rows, row, seeds, index)

    step = torch.compile(both, fullgraph=True, backend=backend)
    torch.testing.assert_close(run(step, given, rows), run(both, given, rows))
    assert backend.graphs == 1


def test_noise(device, backend):
    index = torch.arange(3, device=device)
    seeds = index[:1]

    def start(seeds, index):
        return ops.noise(seeds, index, (3, 5, 7))

    compiled = torch.compile(start, fullgraph=True, backend=backend)
    assert torch.equal(compiled(seeds, index), start(seeds, index))
    assert torch.equal(compiled(seeds + 1, index + 9), start(seeds + 1, index + 9))
    assert backend.graphs == 1


@_instantiates_functions
@pytest.mark.parametrize(
    "combination", ["plain", "guidance", "learned, seeds", "everything", "everything, generated"]
)
def test_backward(device, combination):
    given = operands((2, 3, 5), OPERANDS[combination], device=device)
    names = [n for n in ("x", "out", "uncond", "noise", *HISTORY) if n in given]

    def loss(**operands):
        x_next, x0 = ops.step_x0(**operands)
        return x_next.square().sum() + x0.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (loss, compiled):
        leaves = {n: given[n].clone().requires_grad_() for n in names}
        value = function(**{**given, **leaves})
        gradients.append((value, *torch.autograd.grad(value, list(leaves.values()))))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@_instantiates_functions
@_looks_at_grad
def test_backward_through_a_chain_is_one_graph(device):
    backend = Counting("aot_eager")
    rows = table(p=1.1, q=-0.3, lo=-2.0, hi=2.0, a=0.7, b=0.3, d=0.1).repeat(STEPS, 1).to(device)
    rows[:, 0] += torch.linspace(0, 0.1, STEPS, device=device)
    given = operands((2, 3, 5), {"seeds"}, device=device)
    step = torch.compile(one_step, fullgraph=True, backend=backend)
    gradients = []
    for function in (step, one_step):
        x = given["x"].clone().requires_grad_()
        run(function, {**given, "x": x}, rows).square().sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)
    assert backend.graphs == 1


def test_batch_size_may_change(device):
    # Dynamic from the second size on: two graphs, however many sizes follow.
    backend = Counting("aot_eager")
    rows = plan_rows(device)
    step = torch.compile(one_step, fullgraph=True, backend=backend)
    for batch in (2, 3, 5, 9):
        given = operands((batch, 3, 4), {"seeds"}, device=device)
        arguments = (given["x"], given["out"], rows, given["row"], given["seeds"], given["index"])
        assert torch.equal(step(*arguments), one_step(*arguments))
    assert backend.graphs == 2


@_instantiates_functions
@_looks_at_grad
@pytest.mark.parametrize(
    "options",
    [{}, {"method": "dpm++"}, {"guidance": 2.0, "uncond": {}, "clip": 1.0, "threshold": 0.9}],
    ids=["ddim", "dpm++", "guided and thresholded"],
)
def test_sample_itself_compiles(options):
    start = torch.linspace(-1.0, 1.0, 12).reshape(2, 6)
    model = denoiser(halve, 6)
    plain = fs.sample(model, 4, start=start, **options)
    compiled = torch.compile(lambda x: fs.sample(model, 4, start=x, **options), backend="eager")
    assert torch.equal(compiled(start), plain)
