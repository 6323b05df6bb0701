"""The drawings that `fastsample.plots` puts on figures, one function per kind.

matplotlib is imported when a figure is made, and pyplot never.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsample._checks import FloatArray
from fastsample.costs import CostTable
from fastsample.grid import Grid
from fastsample.methods import GRIDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

UNITS = {
    "elbo": "nats per sample",
    "mse": "squared error per sample, times (t - s) / T",
    "trajectory": "squared distance per element",
}
# Okabe and Ito's colours, told apart with any colour vision, without their yellow: too pale.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MOST_CELLS = 500  # a side of the heat map: about what a figure has pixels for
_MOST_DECADES = 8  # of its colours: neighbouring times cost next to nothing


def make_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches; ImportError with the remedy without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "plots: matplotlib must be installed to draw, got none; pip install 'fastsample[plot]'"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def draw_cost_map(figure: FigureBase, table: CostTable, grids: Mapping[str, Grid]) -> None:
    """The heat map and the staircases; for "elbo" the decoder's panel to its left."""
    from matplotlib.patheffects import withStroke

    costs, times = table.costs, table.times
    panels = figure.add_gridspec(1, 2, width_ratios=(1, 5)) if table.objective == "elbo" else None
    axes = figure.add_subplot() if panels is None else figure.add_subplot(panels[1])
    _draw_cells(figure, axes, table, costs, first=0 if panels is None else 1)
    effects = [withStroke(linewidth=3.6, foreground="white")]
    for i, (name, grid) in enumerate(grids.items()):
        style: dict[str, Any] = {"color": colour(i), "path_effects": effects}
        corners = np.repeat(grid.times, 2)
        axes.plot(corners[1:], corners[:-1], lw=1.8, label=name, **style)
        axes.plot(grid.times[1:], grid.times[:-1], ls="", marker="o", ms=4.5, **style)
    axes.plot([0.0, times[-1]], [0.0, times[-1]], color="0.6", lw=0.8, zorder=0)
    axes.set(xlim=(0.0, times[-1]), ylim=(0.0, times[-1]), xlabel="s, where the step ends")
    variance = "" if table.variance is None else f", variance {table.variance}"
    axes.set_title(f"Cost of every step ({table.objective}{variance})", fontsize=11)
    if grids:  # nothing is below the diagonal: a step goes towards the data
        axes.legend(loc="lower right", frameon=False, fontsize=10, title="cheapest grids")
    axes.spines[["top", "right"]].set_visible(False)
    if panels is None:
        axes.set_ylabel("t, where the step begins")
        return
    axes.tick_params(labelleft=False)
    _draw_last(figure.add_subplot(panels[0], sharey=axes), table, costs[:, 0], grids)


def _draw_cells(
    figure: FigureBase, axes: Axes, table: CostTable, costs: FloatArray, first: int
) -> None:
    """One cell per step into s >= `first`; logarithmic colours where the costs span decades."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm, Normalize

    few = min(len(costs), _MOST_CELLS)
    shown = np.rint(np.linspace(0, len(costs) - 1, few)).astype(int)
    cells = costs[np.ix_(shown, shown)]
    cells[~np.isfinite(cells)] = np.nan
    cells[:, :first] = np.nan
    known = cells[np.isfinite(cells)]
    positive = known[known > 0.0]
    high = float(positive.max(initial=0.0)) or 1.0
    low = max(float(positive.min(initial=high)), high / 10.0**_MOST_DECADES)
    decades = high > 30.0 * low
    least = float(known.min(initial=low))
    # Light to middling greys, on which coloured lines stand out.
    greys = ListedColormap(colormaps["Greys"](np.linspace(0.04, 0.75, 256)))
    greys.set_under(greys(0))
    edges = np.concatenate(([0.0], (table.times[shown][1:] + table.times[shown][:-1]) / 2))
    edges = np.append(edges, table.times[-1])
    image = axes.pcolormesh(
        edges,
        edges,
        np.ma.masked_invalid(cells),
        cmap=greys,
        norm=LogNorm(low, high) if decades else Normalize(min(least, low), high),
        rasterized=True,
    )
    figure.colorbar(
        image,
        ax=axes,
        label=f"cost of the step t -> s, {UNITS[table.objective]}",
        extend="min" if decades and least < low else "neither",
    )


def _draw_last(
    axes: Axes, table: CostTable, column: FloatArray, grids: Mapping[str, Grid]
) -> None:
    """The last step's cost from each time, sideways: time goes up, as in the map beside it."""
    axes.plot(column[1:], table.times[1:], color="0.35", lw=1.5)
    respaced = _is_respaced(table)
    for i, grid in enumerate(() if respaced else grids.values()):
        at = int(np.searchsorted(table.times, grid.times[-2]))
        axes.plot(column[at], grid.times[-2], ls="", marker="o", ms=6, color=colour(i))
    axes.set(xlabel="nats", ylabel="t, where the step begins")
    axes.set_title("last two steps" if respaced else "last step", fontsize=11)
    finish(axes)


def draw_bits(
    figure: FigureBase,
    chosen: CostTable,
    measured: CostTable | None,
    steps: Sequence[int] | None,
) -> None:
    """Bits per dimension of even, quadratic and best times against the number of steps."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    table, most = chosen if measured is None else measured, len(chosen.times) - 1
    powers = [2**i for i in range(1, most.bit_length())]
    budgets = sorted({*powers, most} if steps is None else set(steps))
    best = chosen.best_grids(budgets)
    lines: dict[str, list[Grid]] = {}
    for name, kind, power in (("even", "uniform", 1), ("quadratic", "quadratic", 2)):
        near = [nearest_times(chosen.times, k, power) for k in budgets]
        exact = all(_same(grid, GRIDS[kind](chosen.schedule, len(grid))) for grid in near)
        lines[f"{name} times" + ("" if exact else f" (nearest of the table's {most})")] = near
    lines["best times"] = [best[k] for k in budgets]
    styles = (("s", "--"), ("^", "-."), ("o", "-"))
    found: list[float] = []
    for i, ((name, grids), (marker, line)) in enumerate(zip(lines.items(), styles, strict=True)):
        bits = [table.bits_per_dim(grid) for grid in grids]
        found += bits
        axes_style: dict[str, Any] = {"ls": line, "marker": marker, "color": colour(i)}
    axes = figure.add_subplot()
