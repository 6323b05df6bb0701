"""The plot of the quality benchmark, from its JSON alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.quality_results import FAMILIES, METRICS, best_of_family, metrics

_COLOURS = (
    "#e0a800",
    "#4c72b0",
    "#17a2b8",
    "#dd8452",
    "#c44e52",
    "#55a868",
    "#937860",
    "#8172b3",
    "#da8bc3",
    "#8c8c8c",
)


def plot(result: dict[str, Any], path: Path) -> None:
    """Plot one panel per model: the best grid of each family by the main distance."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    models = list(result.values())
    width = min(2, len(models))
    height = -(-len(models) // width)
    tall = 4.0 * height + (0.0 if len(models) % width else 1.0)
    figure, axes = pyplot.subplots(height, width, figsize=(5.8 * width, tall), squeeze=False)
    for axis, model in zip(axes.flat, models, strict=False):
        _panel(axis, model)
    spare = axes.flat[len(models) :]
    for axis in spare:
        axis.axis("off")
    handles = [
        Line2D([], [], color=colour, lw=2.5, label=name)
        for name, colour in zip(FAMILIES, _COLOURS, strict=True)
    ]
    black = {"color": "black", "ms": 4}
    handles += [
        Line2D([], [], label="fastsample", **black, **_STYLES[False]),
        Line2D([], [], label="diffusers", **black, **_STYLES[True]),
        Line2D([], [], label=f"DDIM, {models[0]['limit_steps']} steps", **black, **_LIMIT),
        pyplot.Rectangle((0, 0), 1, 1, label="true samples, least to most", **_FLOOR),
    ]
    if len(spare):
        spare[0].legend(handles=handles, loc="center", ncols=2, frameon=False, fontsize=10)
    else:
        figure.legend(handles=handles, loc="lower center", ncols=5, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0 if len(spare) else 0.85 / tall, 1, 1))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


_STYLES: dict[bool, dict[str, Any]] = {
    False: {"ls": "-", "marker": "o", "lw": 1.7},
    True: {"ls": "--", "marker": "x", "lw": 1.2},
}
_LIMIT: dict[str, Any] = {"ls": "-.", "lw": 1.0}
_FLOOR: dict[str, Any] = {"color": "black", "alpha": 0.12, "lw": 0}


def _panel(axis: Any, model: dict[str, Any]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    metric = metrics(model)[0]
    floor, limit = model["floor"][metric], model["limit"][metric][0]
    columns = [int(K) for K in model["rows"][0]["runs"]]
    highest = max(floor)
    for peer in (True, False):
        for family, colour in zip(FAMILIES, _COLOURS, strict=True):
            best = [best_of_family(model, family, metric, K, peer=peer) for K in columns]
            points = [(row["calls"], row[metric][0]) for row in best if row]
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, ms=4, **_STYLES[peer])
                highest = max(highest, *(value for _, value in points))
    axis.axhspan(min(floor), max(floor), **_FLOOR)
    axis.axhline(limit, color="black", **_LIMIT)
    axis.set(xscale="log", yscale="log", xlabel="network calls", ylabel=METRICS[metric])
    axis.set_title(model["title"], fontsize=11)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(columns, [str(K) for K in columns])
    axis.set_ylim(top=min(1.15 * highest, 30 * limit))
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
