"""Draws cost tables and grids on the figures of `fastsample.plots.figures`.

matplotlib is imported when a figure is made; pyplot is never imported.
"""

# matplotlib leaves many arguments and results of its functions without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsample._support.checks import FloatArray
from fastsample.grids.grid import Grid
from fastsample.grids.registry import GRIDS
from fastsample.planning.cost_table import CostTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

UNITS = {
    "elbo": "nats per sample",
    "mse": "squared error per sample, times (t - s) / T",
    "trajectory": "squared distance per element",
}
# The colours of Okabe and Ito (without the pale yellow) stay distinct for colour-blind readers.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MOST_CELLS = 500  # The heat map has no more per side; a figure has about as many pixels.
_MOST_DECADES = 8  # The colours span no more: steps between neighbouring times cost almost 0.


def make_figure(width: float, height: float) -> Figure:
    """Make an empty figure of a width and height in inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "plots: matplotlib must be installed to draw, got none; pip install 'fastsample[plot]'"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def draw_cost_map(figure: FigureBase, table: CostTable, grids: Mapping[str, Grid]) -> None:
    """Draw the heat map and the grids as staircases; "elbo" adds a panel of the last step."""
    from matplotlib.patheffects import withStroke

    costs, times = table.costs, table.times
    panels = figure.add_gridspec(1, 2, width_ratios=(1, 5)) if table.objective == "elbo" else None
    axes = figure.add_subplot() if panels is None else figure.add_subplot(panels[1])
    _draw_cells(figure, axes, table, costs, first=0 if panels is None else 1)
    effects = [withStroke(linewidth=3.6, foreground="white")]
    for i, (name, grid) in enumerate(grids.items()):
        # The lines are not clipped: the first and the last step lie on the edges of the axes.
        style: dict[str, Any] = {"color": _colour(i), "path_effects": effects, "clip_on": False}
        corners = np.repeat(grid.times, 2)
        axes.plot(corners[1:], corners[:-1], lw=1.8, label=name, **style)
        axes.plot(grid.times[1:], grid.times[:-1], ls="", marker="o", ms=4.5, **style)
    axes.plot([0.0, times[-1]], [0.0, times[-1]], color="0.6", lw=0.8, zorder=0)
    axes.set(xlim=(0.0, times[-1]), ylim=(0.0, times[-1]), xlabel="s, where the step ends")
    variance = "" if table.variance is None else f", variance {table.variance}"
    axes.set_title(f"Cost of every step ({table.objective}{variance})", fontsize=11)
    if grids:  # The legend lies below the diagonal, where no step is, since s < t.
        axes.legend(loc="lower right", frameon=False, fontsize=10, title="grids")
    axes.spines[["top", "right"]].set_visible(False)
    if panels is None:
        axes.set_ylabel("t, where the step begins")
        return
    axes.tick_params(labelleft=False)
    _draw_last(figure.add_subplot(panels[0], sharey=axes), table, costs[:, 0], grids)


def _draw_cells(
    figure: FigureBase, axes: Axes, table: CostTable, costs: FloatArray, first: int
) -> None:
    """Draw the cells of the heat map, in logarithmic colours if the costs span decades.

    Args:
        figure: gets the colour bar.
        axes: get the cells.
        table: gives times and units.
        costs: `(n, n)`, row t and column s.
        first: first column s to draw.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm, Normalize

    count = min(len(costs), _MOST_CELLS)
    shown = np.rint(np.linspace(0, len(costs) - 1, count)).astype(int)
    cells = costs[np.ix_(shown, shown)]
    cells[~np.isfinite(cells)] = np.nan
    cells[:, :first] = np.nan
    finite = cells[np.isfinite(cells)]
    positive = finite[finite > 0.0]
    high = float(positive.max(initial=0.0)) or 1.0
    low = max(float(positive.min(initial=high)), high / 10.0**_MOST_DECADES)
    decades = high > 30.0 * low
    least = float(finite.min(initial=low))
    # Coloured lines stand out on light to medium greys.
    greys = ListedColormap(colormaps["Greys"](np.linspace(0.12, 0.75, 256)))
    edges = np.concatenate(([0.0], (table.times[shown][1:] + table.times[shown][:-1]) / 2))
    edges = np.append(edges, table.times[-1])
    image = axes.pcolormesh(
        edges,
        edges,
        np.ma.masked_invalid(cells),
        cmap=greys,
        # Without clip, costs of 0 would be blank like steps that do not exist.
        norm=LogNorm(low, high, clip=True) if decades else Normalize(min(least, low), high),
        rasterized=True,
    )
    figure.colorbar(
        image,
        ax=axes,
        label=f"cost of the step t -> s, {UNITS[table.objective]}",
        extend="min" if decades and least < low else "neither",
    )


def _draw_last(axes: Axes, table: CostTable, column: FloatArray, grids: Mapping[str, Grid]) -> None:
    """Draw the cost of the last step t -> 0 over t, which goes upwards as in the heat map."""
    axes.plot(column[1:], table.times[1:], color="0.35", lw=1.5)
    respaced = table.respaced
    for i, grid in enumerate(() if respaced else grids.values()):
        row = int(np.searchsorted(table.times, grid.times[-2]))
        size = max(4.0, 9.0 - 2.0 * i)  # Smaller dots keep grids with the same last step visible.
        axes.plot(column[row], grid.times[-2], ls="", marker="o", ms=size, color=_colour(i))
    axes.set(xlabel="nats", ylabel="t, where the step begins")
    axes.set_title("last two steps" if respaced else "last step", fontsize=11)
    _finish(axes)


def draw_bits(
    figure: FigureBase,
    chosen: CostTable,
    measured: CostTable | None,
    steps: Sequence[int] | None,
) -> None:
    """Draw bits per dimension of even, quadratic and best times against the number of steps.

    Args:
        figure: gets the axes.
        chosen: "elbo" table on which the best times are chosen.
        measured: "elbo" table that gives the bounds; None is `chosen`.
        steps: numbers of steps; None is powers of two and all times.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    table, most = chosen if measured is None else measured, len(chosen.times) - 1
    powers = (2**i for i in range(1, most.bit_length()))
    # The powers of two stop where their labels would overlap the label of all times.
    default = {*(k for k in powers if 1.4 * k < most), most}
    budgets = sorted(default if steps is None else set(steps))
    best = chosen.best_grids(budgets)
    lines: dict[str, list[Grid]] = {}
    for name, maker, power in (("even", "uniform", 1), ("quadratic", "quadratic", 2)):
        near = [nearest_times(chosen.times, k, power) for k in budgets]
        exact = all(_same_times(grid, GRIDS[maker](chosen.schedule, len(grid))) for grid in near)
        lines[f"{name} times" + ("" if exact else f" (nearest of the table's {most})")] = near
    lines["best times"] = [best[k] for k in budgets]
    axes = figure.add_subplot()
    bound = table.nats_per_dim if table.density else table.bits_per_dim
    bits = {name: [bound(grid) for grid in grids] for name, grids in lines.items()}
    for i, (name, values) in enumerate(bits.items()):
        style: dict[str, Any] = {
            "ls": ("--", "-.", "-")[i],
            "marker": "s^o"[i],
            "color": _colour(i),
        }
        axes.plot(budgets, values, lw=2, ms=5.5, label=name, **style)
    least, largest = (pick(map(pick, bits.values())) for pick in (min, max))
    if least > 0.0 and largest > 8.0 * least:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(budgets, [str(k) for k in budgets])
    unit = "nats" if table.density else "bits"
    axes.set(xlabel="steps (network calls)", ylabel=f"{unit} per dimension")
    if measured is not None:
        axes.set_title("times chosen on one table, bound of another", fontsize=11)
    _finish(axes)
    axes.legend(frameon=False, fontsize=10)


def draw_strips(figure: FigureBase, grids: Mapping[str, Grid], end: float) -> None:
    """Draw the times of each grid as marks on a line, on an axis from 0 to `end`."""
    axes = figure.add_subplot()
    for row, grid in enumerate(grids.values()):
        axes.plot(grid.times[[0, -1]], [row, row], color="0.8", lw=1, zorder=1)
        marks: dict[str, Any] = {"ls": "", "marker": "|", "ms": 14, "mew": 1.8}
        axes.plot(grid.times, np.full(len(grid.times), row), color=_colour(row), **marks)
    axes.set_yticks(range(len(grids)), list(grids))
    axes.set(ylim=(len(grids) - 0.4, -0.6))
    _label_time(axes, end)
    _finish(axes)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def draw_terms(figure: FigureBase, table: CostTable, grids: Mapping[str, Grid]) -> None:
    """Draw the cost of each grid's steps over the time that they span."""
    axes = figure.add_subplot()
    terms = {name: table.terms(grid) for name, grid in grids.items()}
    for i, (name, grid) in enumerate(grids.items()):
        label = f"{name}: {terms[name].sum():.4g}"
        style: dict[str, Any] = {"color": _colour(i), "lw": 2, "label": label}
        axes.stairs(terms[name][::-1], grid.times[::-1], baseline=None, **style)
    values = np.concatenate(list(terms.values()))
    positive = values[values > 0.0]
    if len(positive) == len(values):
        axes.set_yscale("log")
    elif len(positive):  # For continuous data the decoder's cost may be negative.
        axes.set_yscale("symlog", linthresh=float(positive.min()))
    _label_time(axes, float(table.times[-1]))
    axes.set(ylabel=f"cost of the step, {UNITS[table.objective]}")
    _finish(axes)
    above: dict[str, Any] = {
        "loc": "lower left",
        "bbox_to_anchor": (0.0, 1.0),
        "borderaxespad": 0.2,
    }
    axes.legend(
        frameon=False, fontsize=9, ncols=4, title="cost of all steps", alignment="left", **above
    )


def nearest_times(times: FloatArray, num_steps: int, power: float) -> Grid:
    """Return the grid of K steps on `times` that is nearest to ``times[-1] (k / K)^power``.

    Of two times that are equally near, the later one is taken; no time is taken twice.

    Args:
        times: `(n + 1,)`, rising from 0.
        num_steps: K, at most n.
        power: 1 for even times, 2 for quadratic ones.
    """
    wanted = times[-1] * (np.arange(num_steps + 1) / num_steps) ** power
    nearest = np.searchsorted((times[1:] + times[:-1]) / 2, wanted, side="right")
    chosen = [0]
    for k in range(1, num_steps + 1):
        largest = len(times) - 1 - (num_steps - k)  # Leave a time for each later step.
        chosen.append(min(max(int(nearest[k]), chosen[-1] + 1), largest))
    return Grid(times[chosen[::-1]])


def _colour(i: int) -> str:
    """Return the colour of line i; the colours repeat."""
    return _COLOURS[i % len(_COLOURS)]


def _label_time(axes: Axes, end: float) -> None:
    axes.set(xlabel="time (0: data)", xlim=(-0.02 * end, 1.02 * end))


def _finish(axes: Axes) -> None:
    """Add a faint grid, and remove the frame above and on the right."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _same_times(one: Grid, other: Grid) -> bool:
    """Return whether two grids hold the same times, up to rounding."""
    return len(one) == len(other) and np.allclose(one.times, other.times, rtol=1e-9, atol=0.0)
