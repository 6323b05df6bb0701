"""Makes figures of cost tables, time grids and sampling errors (needs matplotlib).

Every function makes a new `matplotlib.figure.Figure` without pyplot: no window opens, and no figure
or setting of the caller changes. A notebook shows the figure that a cell ends with; `save` writes
it to a file.
"""

# matplotlib leaves many arguments and results of its functions without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastsample.evaluation.compare import Comparison
from fastsample.grids.grid import Grid
from fastsample.planning.cost_table import CostTable
from fastsample.plots.comparison import draw_comparison
from fastsample.plots.planning import (
    draw_bits,
    draw_cost_map,
    draw_strips,
    draw_terms,
    make_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cost_map(table: CostTable, steps: Sequence[int]) -> Figure:
    """Make a heat map of the cost of every step t -> s, with the cheapest grids as staircases.

    A staircase comes down from the diagonal at T; each of its dots is a step. With an "elbo" table
    the last step is that of the decoder, whose cost may be negative. It has a panel of its own,
    with a dot for each grid.

    Args:
        table: costs for any objective.
        steps: numbers of steps, whose cheapest grids are drawn; may be empty.

    Returns:
        A figure of 8.6 x 7 inches.

    Raises:
        ImportError: matplotlib is not installed (as from every function here).
        ValueError: more steps than the table has times.
    """
    grids = {f"{k} steps": grid for k, grid in table.best_grids(steps).items()}
    figure = make_figure(8.6, 7.0)
    draw_cost_map(figure, table, grids)
    return figure


def bits_against_steps(
    chosen: CostTable, measured: CostTable | None = None, steps: Sequence[int] | None = None
) -> Figure:
    """Plot bits per dimension over the number of steps, for even, quadratic and the best times.

    Even and quadratic times are those of `grids.uniform` and `grids.quadratic` if the table has all
    of them. Otherwise they are the nearest times of the table, and the legend says so.

    Args:
        chosen: "elbo" table on which the best times are chosen.
        measured: "elbo" table over the same times that gives the bounds, such as one of held-out
            data; None is `chosen`.
        steps: numbers of steps; None is 2, 4, 8, ... and all times.

    Returns:
        A figure of 8.4 x 5.2 inches.

    Raises:
        ValueError: a table of another objective, more steps than times, or no steps.
    """
    for name, table in (("chosen", chosen), ("measured", measured)):
        if table is not None and table.objective != "elbo":
            raise ValueError(
                f'bits_against_steps: {name} must be an "elbo" table, got {table.objective!r}'
            )
    if steps is not None and not len(steps):
        raise ValueError("bits_against_steps: steps must hold at least one number, got none")
    figure = make_figure(8.4, 5.2)
    draw_bits(figure, chosen, measured, steps)
    return figure


def time_strips(grids: Mapping[str, Grid]) -> Figure:
    """Plot the times of some grids as marks, one line per grid, with the data on the left.

    Args:
        grids: grids by name, in the order from the top.

    Returns:
        A figure 8.4 inches wide.

    Raises:
        TypeError: a value that is not a grid.
        ValueError: no grids.
    """
    _check_grids("time_strips", grids)
    figure = make_figure(8.4, 0.9 + 0.42 * len(grids))
    draw_strips(figure, grids, max(float(grid.times[0]) for grid in grids.values()))
    return figure


def step_terms(table: CostTable, grids: Mapping[str, Grid]) -> Figure:
    """Plot the cost of each step of some grids, over the time that the step spans.

    Args:
        table: costs for any objective. The terms of an "elbo" table include the decoder but not the
            prior. The first term of a "trajectory" table includes the cost of starting there.
        grids: grids by name, on times of the table.

    Returns:
        A figure of 8.4 x 5.2 inches.

    Raises:
        TypeError: a value that is not a grid.
        ValueError: no grids, or a grid with times that the table does not have.
    """
    _check_grids("step_terms", grids)
    figure = make_figure(8.4, 5.2)
    draw_terms(figure, table, grids)
    return figure


def tuned_errors(comparison: Comparison) -> Figure:
    """Plot errors over network calls, of tuned plans and all other deterministic samplers.

    One panel shows the methods of this package, and one the schedulers of diffusers, if they were
    compared. Every setting is a faint line; a full line shows a solver's best setting at each
    number of calls. A number between the tuned plan and the best of a panel says how many
    times smaller the plan's error is.

    Args:
        comparison: result of `fastsample.evaluation.compare.compare`.

    Returns:
        A figure, 5 inches high.

    Raises:
        TypeError: an argument that is not a `Comparison`.
    """
    if not isinstance(comparison, Comparison):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"tuned_errors: comparison must be a Comparison, got {type(comparison).__name__}"
        )
    width = 11.6 if comparison.of("diffusers") else 7.0
    figure = make_figure(width, 5.0)
    draw_comparison(figure, comparison)
    return figure


def overview(table: CostTable, grids: Mapping[str, Grid]) -> Figure:
    """Show some grids in one figure: on the heat map of `cost_map`, and as `time_strips`.

    Below the lines are, with an "elbo" table, the bits of `bits_against_steps`, and otherwise the
    costs of `step_terms`.

    Args:
        table: costs for any objective.
        grids: grids by name, on times of the table.

    Returns:
        A figure 14 inches wide.

    Raises:
        TypeError: a value that is not a grid.
        ValueError: no grids, or a grid with times that the table does not have.
    """
    _check_grids("overview", grids)
    heights = (0.9 + 0.42 * len(grids), 3.6)
    figure = make_figure(14.0, max(6.6, sum(heights)))
    left, right = figure.subfigures(1, 2, width_ratios=(1.1, 1.0), squeeze=False)[0]
    draw_cost_map(left, table, grids)
    above, below = right.subfigures(2, 1, height_ratios=heights, squeeze=False)[:, 0]
    draw_strips(above, grids, float(table.times[-1]))
    if table.objective == "elbo":
        draw_bits(below, table, None, None)
    else:
        draw_terms(below, table, grids)
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure to a file at 130 dots per inch.

    Args:
        figure: the figure.
        path: the file, whose suffix decides the format (png, pdf, svg, ...); its folder is made.

    Returns:
        The absolute path.

    Raises:
        ValueError: a suffix that matplotlib cannot write.
    """
    known = sorted(figure.canvas.get_supported_filetypes())
    target = Path(path).resolve()
    if target.suffix.lower().removeprefix(".") not in known:
        raise ValueError(f"save: path must end in one of {known}, got {path}")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)
    return target


def _check_grids(function: str, grids: Mapping[str, Grid]) -> None:
    if not grids:
        raise ValueError(f"{function}: grids must hold at least one grid, got none")
    for name, grid in grids.items():
        if not isinstance(grid, Grid):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{function}: grids must hold Grids, got {grid!r} for {name!r}")
