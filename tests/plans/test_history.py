"""The buffers of earlier x0's: every row finds what it reads, in as few as possible."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import fastsample as fs
from fastsample.plans.history import HistorySlots
from fastsample.plans.rows import COLUMNS, row_table
from tests.helpers.cases import SCHEDULES

LINEAR = SCHEDULES["linear"]


def random_plan(seed: int) -> fs.Plan:
    """Twelve rows, some without a call, some of which rise, which read some earlier x0's."""
    rng = np.random.default_rng(seed)
    rows, nodes, earlier = row_table(12, q=1.0, b=1.0), [500.0], 0
    for k in range(12):
        calls, rises = rng.random() < 0.75, False
        if not calls:
            rows[k] = row_table(1, a=0.5)
            rises = rng.random() < 0.3 and nodes[-1] < 480.0
        for n in range(1, earlier + 1):
            rows[k, COLUMNS.index(f"c{n}")] = float(rng.random() < 0.4)
        nodes.append(nodes[-1] + (10.0 if rises else -20.0))
        earlier = 0 if rises else min(earlier + calls, 4)
    levels = LINEAR.levels(np.array(nodes))
    return fs.Plan(np.array(nodes), rows, *levels, check="none", schedule=LINEAR)


def wanted(plan: fs.Plan) -> list[dict[int, int]]:
    """For each row the numbers n of the h_n that it reads, and the rows that those came from."""
    found, earlier = [], []
    for k, (t, s) in enumerate(pairwise(plan.nodes.tolist())):
        weights = [plan.column(f"c{n}")[k] for n in (1, 2, 3, 4)]
        found.append({n: earlier[n] for n in range(4) if weights[n] != 0.0})
        if plan.calls_network[k]:
            earlier = [k, *earlier]
        if s > t:
            earlier = []
    return found


@pytest.mark.parametrize("seed", range(40))
def test_every_row_finds_what_it_reads(seed):
    plan = random_plan(seed)
    slots, reads = HistorySlots.of(plan), wanted(plan)
    buffers: dict[int, int] = {}
    for k, row in enumerate(reads):
        for n in range(4):
            slot = slots.reads[k][n]
            assert (slot == -1) == (n not in row)
            if n in row:
                assert buffers[slot] == row[n]
        if slots.writes[k] >= 0:  # the kernel has read by now
            buffers[slots.writes[k]] = k
    read = {source for row in reads for source in row.values()}
    assert {k for k, slot in enumerate(slots.writes) if slot >= 0} == read
    # As many as are still wanted at once, after the row that makes the newest of them.
    alive = [
        sum(any(source in row.values() for row in reads[k + 1 :]) for source in range(k + 1))
        for k in range(len(plan))
    ]
    assert slots.count == max(alive)
    assert slots.count <= 4


def test_the_solvers():
    grid = fs.grids.uniform(1000, 10)
    for plan, count in (
        (fs.ddim(LINEAR, grid), 0),
        (fs.dpm_solver(LINEAR, grid, order=2), 1),
        (fs.dpm_solver(LINEAR, grid, order=3), 2),
        (fs.unipc(LINEAR, grid, order=2), 2),
    ):
        assert HistorySlots.of(plan).count == count == plan.needs_history
