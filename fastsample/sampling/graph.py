"""Runs a plan as a CUDA graph: network and step are captured once and replayed for every row.

A row depends on no number of the host: the coefficients, the row number, the timestep, seeds and
indices lie on the device, and the graph itself advances the row number.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastsample import ops
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.ops.dtypes import history_dtype
from fastsample.plans.plan import Plan
from fastsample.sampling.loop import make_tables
from fastsample.sampling.noise import Identity

_WARMUP_CALLS = 2  # Libraries choose algorithms and allocate memory in these calls.


def run_graph(
    denoiser: Denoiser,
    plan: Plan,
    x: Tensor,
    *,
    identity: Identity | None,
    conditions: Conditions,
    after_row: Callable[[], object] = lambda: None,
) -> Tensor:
    """Run every row of a plan on ``x (B, *shape)``, which is overwritten with the result.

    As `fastsample.sampling.loop.run` without gradients, explicit noise or callbacks. The network
    must be capturable: fixed shapes and no synchronisation with the host. It is called
    `_WARMUP_CALLS` times before the capture and once during it.

    Args:
        denoiser: the model.
        plan: the rows.
        x: starting samples `(B, *shape)`.
        identity: seeds and indices for generated noise; may be None for deterministic plans.
        conditions: extra arguments of the network.
        after_row: called after each row is launched.

    Raises:
        ValueError: `x` is not on a CUDA device.
    """
    if x.device.type != "cuda":
        raise ValueError(
            f"sample: graph must be False on {x.device.type}, got True; CUDA graphs need a GPU"
        )
    with torch.no_grad(), torch.cuda.device(x.device):
        tables = make_tables(denoiser, plan, x.device)
        seeds, index = identity if identity and plan.is_stochastic else (None, None)
        batch = x.shape[0] * (2 if conditions.guided else 1)
        row = torch.zeros(1, dtype=torch.int64, device=x.device)
        length = plan.needs_history
        h1, h2 = (
            torch.zeros_like(x, dtype=history_dtype(x)) if length > n else None for n in range(2)
        )

        def one_row() -> None:
            timestep = tables.timesteps.index_select(0, row).expand(batch)
            output = denoiser.at_timestep(conditions.doubled(x), timestep, conditions.arguments)
            conditional, unconditional = conditions.split(output)
            operands = {"uncond": unconditional, "seeds": seeds, "index": index}
            if h1 is None:
                ops.step(x, conditional, tables.rows, row, target=x, **operands)
            else:
                x_next, x0 = ops.step_x0(x, conditional, tables.rows, row, h1=h1, h2=h2, **operands)
                x.copy_(x_next)
                if h2 is not None:
                    h2.copy_(h1)
                h1.copy_(x0)
            row.add_(1)

        start = x.clone()

        def rewind() -> None:
            x.copy_(start)
            row.zero_()
            for earlier_x0 in (h1, h2):
                if earlier_x0 is not None:
                    earlier_x0.zero_()

        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(_WARMUP_CALLS):
                row.zero_()
                one_row()
        torch.cuda.current_stream().wait_stream(side_stream)

        rewind()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            one_row()
        rewind()
        for _ in range(len(plan)):
            graph.replay()
            after_row()
    return x
