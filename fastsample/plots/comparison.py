"""Draws a `Comparison`: errors over network calls, a panel each for fastsample and diffusers."""

# matplotlib leaves many arguments and results of its functions without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastsample.evaluation.compare import Comparison, Side

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES: dict[Side, str] = {
    "fastsample": "every deterministic method here",
    "diffusers": "every deterministic scheduler of diffusers",
}
# The colours of Okabe and Ito stay distinct for colour-blind readers.
_COLOURS = {
    "DDIM": "#0072B2",
    "DPM-Solver++ 2M": "#009E73",
    "DPM-Solver++ 3M": "#CC79A7",
    "UniPC": "#D55E00",
    "DEIS": "#E69F00",
}
_TUNED = "#000000"
_LABEL_DISTANCE = 0.052  # Labels are this far apart, as a share of the height.
# The y axis spans the best errors of the solvers, widened by this factor at both ends. It does not
# span all settings, since settings that fail would squeeze the others.
_MARGIN = 1.6


class LineEnd(NamedTuple):
    """Stores where a labelled line ends, and how its label looks."""

    error: float
    """The error at the largest number of network calls."""
    colour: str
    bold: bool


def draw_comparison(figure: Figure, comparison: Comparison) -> None:
    """Draw one panel for this package's samplers and one for those of diffusers, if it has any.

    Every setting is a faint line; a full line has a solver's best setting at each number of calls.
    """
    sides: list[Side] = [side for side in TITLES if comparison.of(side)]
    panels = figure.subplots(1, len(sides), sharex=True, sharey=True, squeeze=False)[0]
    tuned = comparison.of("tuned")[0].errors
    for axes, side in zip(panels, sides, strict=True):
        _draw_side(axes, comparison, side, tuned)
    best = [
        errors for side in sides for errors in family_bests(comparison, side).values() if errors
    ]
    values = [error for errors in (*best, tuned) for error in errors.values() if error > 0.0]
    panels[0].set_ylim(min(values) / _MARGIN, max(values) * _MARGIN)
    panels[0].set_ylabel(f"error per element, RMSE to a run of {comparison.fine_steps} calls")
    for axes, side in zip(panels, sides, strict=True):
        _label_ends(axes, _ends(comparison, side, tuned))
    figure.suptitle(
        f"Error of {comparison.samples} samples whose noise no plan was tuned with", fontsize=12
    )
    meanings = (
        "faint: each setting and grid; full: the best of them at each number of calls",
        "dotted: how many times smaller the tuned plan's error is than the best",
    )
    caption = ("; " if len(sides) > 1 else "\n").join(meanings)
    figure.supxlabel(caption, fontsize=9, color="0.35")


def family_bests(comparison: Comparison, side: Side) -> dict[str, dict[int, float]]:
    """Return the least error of each solver over its settings, by number of network calls.

    Args:
        comparison: errors of all samplers.
        side: "fastsample" or "diffusers".

    Returns:
        Errors by number of calls, keyed by solver ("DDIM", ...) in the order of the colours.
    """
    bests: dict[str, dict[int, float]] = {name: {} for name in _COLOURS}
    for entry in comparison.of(side):
        errors = bests[entry.family]
        for steps, error in sorted(entry.errors.items()):
            errors[steps] = min(error, errors.get(steps, error))
    return {name: errors for name, errors in bests.items() if errors}


def _draw_side(axes: Axes, comparison: Comparison, side: Side, tuned: Mapping[int, float]) -> None:
    for entry in comparison.of(side):
        style: dict[str, Any] = {"color": _COLOURS[entry.family], "lw": 0.8, "alpha": 0.22}
        axes.plot(*_points(entry.errors), marker="o", ms=2, **style)
    for family, errors in family_bests(comparison, side).items():
        style = {"color": _COLOURS[family], "lw": 1.9, "marker": "o", "ms": 4.5}
        axes.plot(*_points(errors), label=family, zorder=3, **style)
    axes.plot(*_points(tuned), color=_TUNED, lw=3.2, marker="o", ms=7, zorder=4, label="tuned plan")
    _draw_gain(axes, comparison, side, tuned)
    _finish(axes, comparison.steps)
    axes.set_title(TITLES[side], fontsize=11)


def _draw_gain(axes: Axes, comparison: Comparison, side: Side, tuned: Mapping[int, float]) -> None:
    """Write how many times larger the panel's best error is than the tuned plan's, between both."""
    for steps, error in tuned.items():
        best = comparison.best(side, steps)
        if best is None or not 0.0 < error < best.errors[steps]:
            continue
        other = best.errors[steps]
        axes.plot([steps, steps], [error, other], color="0.45", lw=1, ls=":", zorder=2)
        middle = (steps, float(np.sqrt(error * other)))
        box = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"}
        text = f"{other / error:.1f} x"
        axes.annotate(
            text, middle, ha="center", va="center", fontsize=9, bbox=box, color="0.25", zorder=5
        )


def _ends(comparison: Comparison, side: Side, tuned: Mapping[int, float]) -> dict[str, LineEnd]:
    """Return the last error and the label style of each labelled line, keyed by its name."""
    last = comparison.steps[-1]
    ends = {
        name: LineEnd(errors[last], _COLOURS[name], bold=False)
        for name, errors in family_bests(comparison, side).items()
        if last in errors
    }
    if last in tuned:
        ends["tuned plan"] = LineEnd(tuned[last], _TUNED, bold=True)
    return ends


def _label_ends(axes: Axes, ends: Mapping[str, LineEnd]) -> None:
    """Write names to the right of the lines, moved apart where lines end close together."""
    low, high = np.log(axes.get_ylim())
    names = sorted(ends, key=lambda name: ends[name].error)
    heights = [(np.log(ends[name].error) - low) / (high - low) for name in names]
    for name, height in zip(names, spread(heights, _LABEL_DISTANCE), strict=True):
        _, colour, bold = ends[name]
        axes.annotate(
            name,
            (1.02, height),
            xycoords="axes fraction",
            va="center",
            fontsize=10,
            color=colour,
            fontweight="bold" if bold else "normal",
            annotation_clip=False,
        )


def spread(heights: Sequence[float], distance: float) -> list[float]:
    """Return the heights, moved apart so that neighbours are at least `distance` apart.

    Heights that are too close form a group, which is spread evenly about their mean.

    Args:
        heights: in rising order.
        distance: smallest distance of two neighbours.
    """
    groups: list[list[float]] = []
    for height in heights:
        groups.append([float(height)])
        while len(groups) > 1 and _overlap(groups[-2], groups[-1], distance):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_lowest(group, distance) + distance * i for group in groups for i in range(len(group))]


def _overlap(group: Sequence[float], above: Sequence[float], distance: float) -> bool:
    """Return whether a group of labels, once spread, reaches into the group above it."""
    return _lowest(above, distance) < _lowest(group, distance) + distance * len(group)


def _lowest(group: Sequence[float], distance: float) -> float:
    """Return the lowest height of a group after it is spread evenly about its mean."""
    return sum(group) / len(group) - distance * (len(group) - 1) / 2


def _points(errors: Mapping[int, float]) -> tuple[list[int], list[float]]:
    steps = sorted(errors)
    return steps, [errors[K] for K in steps]


def _finish(axes: Axes, steps: Sequence[int]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set(xscale="log", yscale="log", xlabel="network calls")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(steps, [str(K) for K in steps])
    axes.set_xlim(steps[0] / 1.06, steps[-1] * 1.05)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
