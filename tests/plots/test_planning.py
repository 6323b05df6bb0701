"""Pictures of cost tables and grids: what is drawn where, read off the figures' artists."""

from __future__ import annotations

import numpy as np
import pytest

import fastsample as fs
from fastsample import grids, plots
from fastsample.plots.planning import nearest_times
from tests.helpers.diagonal import SMALL
from tests.helpers.networks import denoiser, halve
from tests.helpers.profile_cases import TIMES, levels

matplotlib = pytest.importorskip("matplotlib")

WHOLE = SMALL.profile()  # 20 times, continuous data: its decoder is a density
SPARSE = fs.profile(denoiser(halve, 3, clip=1.0), levels(8, 3), times=TIMES, trajectories=4)
CHOSEN = {"even": fs.Grid([20, 10, 0]), "late": fs.Grid([20, 3, 2, 1, 0])}


def lines(axes):
    """The lines by their labels."""
    return {line.get_label(): line for line in axes.get_lines()}


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def mesh(axes):
    return next(c for c in axes.collections if isinstance(c, matplotlib.collections.QuadMesh))


# ---- the map of costs ----


@pytest.mark.parametrize("objective", ["mse", "trajectory"])
def test_cost_map_draws_every_cost_and_the_best_grids(objective):
    table = SPARSE.costs(objective)
    axes, bar = plots.cost_map(table, [2, 4]).axes
    cells = mesh(axes).get_array().filled(np.nan)
    expected = np.where(np.isfinite(table.costs), table.costs, np.nan)
    np.testing.assert_array_equal(cells, expected)
    edges = [0.0, 0.5, 20.5, 170.0, 500.0, 850.0, 1000.0]  # half way between the times
    np.testing.assert_allclose(mesh(axes).get_coordinates()[0, :, 0], edges)
    assert legend(axes) == ["2 steps", "4 steps"]
    for steps in (2, 4):
        times = table.best_grid(steps).times
        path = lines(axes)[f"{steps} steps"].get_xydata()
        # From the diagonal to the step at (s, t), and down to the diagonal again.
        np.testing.assert_array_equal(path[::2], np.stack([times, times], 1))
        np.testing.assert_array_equal(path[1::2], np.stack([times[1:], times[:-1]], 1))
    assert "squared" in bar.get_ylabel()
    assert (axes.get_xlabel()[0], axes.get_ylabel()[0]) == ("s", "t")


def test_colours_are_logarithmic_only_over_decades():
    assert isinstance(
        mesh(plots.cost_map(WHOLE.costs("elbo"), [2]).axes[0]).norm, matplotlib.colors.LogNorm
    )
    costs = np.where(np.tri(4, k=-1, dtype=bool), 2.0, np.inf)
    costs[3, 1] = -1.0
    flat = fs.CostTable(SMALL.schedule, np.arange(4.0), costs, objective="mse", dims=1)
    norm = mesh(plots.cost_map(flat, []).axes[0]).norm
    assert not isinstance(norm, matplotlib.colors.LogNorm)
    assert (norm.vmin, norm.vmax) == (-1.0, 2.0)


def test_costs_of_next_to_nothing_do_not_stretch_the_colours():
    costs = np.where(np.tri(4, k=-1, dtype=bool), 1.0, np.inf)
    costs[1, 0], costs[2, 1], costs[3, 2] = 0.0, 1e-30, -1e-9
    table = fs.CostTable(SMALL.schedule, np.arange(4.0), costs, objective="trajectory", dims=1)
    axes, bar = plots.cost_map(table, [3]).axes
    norm = mesh(axes).norm
    assert (norm.vmin, norm.vmax) == (1e-8, 1.0)
    assert bar._colorbar.extend == "min"
    drawn = mesh(axes).to_rgba(mesh(axes).get_array())
    assert (drawn[2, 1] == drawn[3, 2]).all()  # below 0 like next to nothing,
    assert drawn[3, 2, 3] == 1.0  # visible,
    assert drawn[1, 3, 3] == 0.0  # unlike steps that do not exist


def test_the_last_step_of_a_bound_has_its_own_panel():
    table = WHOLE.costs("elbo")
    assert table.costs[1, 0] < 0.0  # a density's
    axes, _, panel = plots.cost_map(table, [2, 5]).axes
    cells = mesh(axes).get_array()
    assert cells.mask[:, 0].all()
    np.testing.assert_array_equal(cells[5, 1:5], table.costs[5, 1:5])
    curve, *dots = panel.get_lines()
    np.testing.assert_array_equal(curve.get_xdata(), table.costs[1:, 0])
    np.testing.assert_array_equal(curve.get_ydata(), table.times[1:])
    for steps, dot in zip((2, 5), dots, strict=True):
        t = int(table.best_grid(steps).times[-2])
        assert dot.get_xydata().tolist() == [[table.costs[t, 0], t]]
    assert panel.get_xlabel() == "nats"


def test_a_respaced_decoder_is_of_two_steps():
    figure = plots.cost_map(SPARSE.costs("elbo", decoder="respaced"), [3])
    assert figure.axes[2].get_title() == "last two steps"
    assert len(figure.axes[2].get_lines()) == 1


def test_a_thousand_times_are_thinned_for_the_eye():
    n = 1001
    costs = np.where(np.tri(n, k=-1, dtype=bool), 1.0, np.inf)
    table = fs.CostTable(SMALL.schedule, np.arange(n) / 1.0, costs, objective="mse", dims=1)
    drawn = mesh(plots.cost_map(table, []).axes[0])
    assert drawn.get_array().shape == (500, 500)
    assert drawn.get_coordinates()[-1, -1].tolist() == [1000.0, 1000.0]


# ---- bits against steps ----


def test_bits_of_even_quadratic_and_best_times():
    table = WHOLE.costs("elbo")
    (axes,) = plots.bits_against_steps(table, steps=[8, 2, 5]).axes
    drawn = lines(axes)
    assert legend(axes) == ["even times", "quadratic times", "best times"]
    expected = {
        "even times": [grids.uniform(20, k) for k in (2, 5, 8)],
        "quadratic times": [grids.quadratic(20, k) for k in (2, 5, 8)],
        "best times": [table.best_grid(k) for k in (2, 5, 8)],
    }
    for name, result in expected.items():
        assert drawn[name].get_xdata().tolist() == [2, 5, 8]
        nats = [table.nats_per_dim(grid) for grid in result]
        np.testing.assert_array_equal(drawn[name].get_ydata(), nats)
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "5", "8"]
    assert axes.get_ylabel() == "nats per dimension"  # of data without bins


def test_bits_of_data_on_bins():
    model, x0 = denoiser(halve, 3, clip=1.0), levels(8, 3)
    table = fs.profile(model, x0, times=[1, 500, 1000], trajectories=0).costs("elbo")
    (axes,) = plots.bits_against_steps(table, steps=[2]).axes
    bits = table.bits_per_dim(table.best_grid(2))
    assert lines(axes)["best times"].get_ydata().tolist() == [bits]
    assert axes.get_ylabel() == "bits per dimension"


def test_bits_default_to_powers_of_two_and_all_times():
    drawn = lines(plots.bits_against_steps(WHOLE.costs("elbo")).axes[0])
    assert drawn["best times"].get_xdata().tolist() == [2, 4, 8, 20]  # 16 is too near to 20


def test_bits_say_when_times_had_to_be_moved():
    names = legend(plots.bits_against_steps(SPARSE.costs("elbo"), steps=[2, 3]).axes[0])
    assert names[:2] == [
        f"{name} times (nearest of the table's 5)" for name in ("even", "quadratic")
    ]


def test_bits_measured_on_another_table():
    chosen, measured = WHOLE.costs("elbo"), WHOLE.costs("elbo", decoder="forward")
    (axes,) = plots.bits_against_steps(chosen, measured, steps=[3]).axes
    nats = measured.nats_per_dim(chosen.best_grid(3))
    assert lines(axes)["best times"].get_ydata().tolist() == [nats]
    assert "another" in axes.get_title()


@pytest.mark.parametrize("name", ["uniform", "quadratic"])
@pytest.mark.parametrize("steps", [1, 3, 7, 19, 20])
def test_nearest_times_are_the_grids_where_all_are_there(name, steps):
    near = nearest_times(np.arange(21.0), steps, {"uniform": 1, "quadratic": 2}[name])
    assert near == getattr(grids, name)(20, steps)


def test_nearest_times_are_distinct_and_within_the_table():
    times = np.array([0.0, 1.0, 2.0, 3.0, 1000.0])
    assert nearest_times(times, 4, 1) == fs.Grid(times[::-1])
    assert nearest_times(times, 3, 1) == fs.Grid([1000, 3, 2, 0])
    assert nearest_times(times, 2, 2) == fs.Grid([1000, 3, 0])


# ---- strips and terms ----


def test_strips_hold_the_times():
    (axes,) = plots.time_strips(CHOSEN).axes
    marks = [line for line in axes.get_lines() if line.get_marker() == "|"]
    for row, (line, grid) in enumerate(zip(marks, CHOSEN.values(), strict=True)):
        np.testing.assert_array_equal(line.get_xdata(), grid.times)
        assert set(line.get_ydata()) == {row}
    assert [label.get_text() for label in axes.get_yticklabels()] == list(CHOSEN)
    assert axes.yaxis_inverted()  # the first on top
    assert axes.get_xlabel() == "time (0: data)"


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("elbo", {}),
        ("elbo", {"decoder": "respaced"}),
        ("elbo", {"variance": "large"}),
        ("mse", {}),
        ("trajectory", {}),
    ],
)
def test_terms_sum_to_the_cost(objective, options):
    table = SPARSE.costs(objective, **options)
    grid = table.best_grid(3)
    (axes,) = plots.step_terms(table, {"best": grid}).axes
    values, edges, _ = axes.patches[0].get_data()
    np.testing.assert_array_equal(edges, grid.times[::-1])
    np.testing.assert_array_equal(values, table.terms(grid)[::-1])
    start = 0.0 if table.start is None else table.start[np.searchsorted(table.times, grid.times[0])]
    assert values.sum() + start == pytest.approx(table.cost(grid), rel=1e-12)
    assert values[-1] == table.costs[tuple(np.searchsorted(table.times, grid.times[:2]))]
    assert axes.get_yscale() == "log"
    assert legend(axes) == [f"best: {values.sum():.4g}"]


def test_terms_below_zero_are_drawn():
    (axes,) = plots.step_terms(WHOLE.costs("elbo"), CHOSEN).axes
    assert axes.patches[1].get_data()[0].min() < 0.0
    assert axes.get_yscale() == "symlog"


def test_overview_holds_the_parts():
    bound = plots.overview(WHOLE.costs("elbo"), CHOSEN)
    assert [axes.get_xlabel() for axes in bound.axes] == [
        "s, where the step ends",
        "",
        "nats",
        "time (0: data)",
        "steps (network calls)",
    ]
    table = SPARSE.costs("trajectory")
    other = plots.overview(table, {"K = 2": table.best_grid(2)})
    assert [axes.get_xlabel() for axes in other.axes][-2:] == ["time (0: data)"] * 2
