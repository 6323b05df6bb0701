"""The tables of the quality benchmark, from its JSON alone."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np

from benchmarks.quality_results import (
    FAMILIES,
    METRICS,
    VERDICT_AT,
    best_of_family,
    candidates,
    metrics,
    verdict,
)

SHOWN = 10
TUNED_AT = (5, 8, 10, 20)


def markdown(result: dict[str, Any]) -> str:
    """All tables."""
    lines = [
        "# Quality against network calls",
        "",
        "Made by `python -m benchmarks.bench_quality` from `quality.json`. Less is better "
        f"everywhere. Tables of {VERDICT_AT} calls give mean and standard deviation of the seeds; "
        "the others are of the first seed. Bold is the best of a column. A row is of all grids and "
        "settings the best at each K.",
        "",
        "![Quality against network calls](quality.png)",
        "",
        f"## At {VERDICT_AT} calls",
        "",
        "The best of all settings of each side, once more with seeds that did not choose it, since "
        "the best of many noisy figures is too good. Both sides start from the same noise and are "
        "judged by the same true samples, so that their difference is surer than their spreads: "
        "its ± is half the 95% interval over the seeds (Student's t). Stochastic methods draw "
        "their own noise on either side.",
        "",
        "| model | distance | best here | best of diffusers | difference | here is |",
        "|---|---|---|---|---|---|",
    ]
    for model in result.values():
        for metric in metrics(model) if "finals" in model else ():
            outcome = verdict(model, metric)
            ours, peer = outcome["ours"], outcome["peer"]
            lines.append(
                f"| {model['title']} | {METRICS[metric]} | {_named(ours)}: {_spread(ours[metric])} "
                f"| {_named(peer)}: {_spread(peer[metric])} | {outcome['difference']:+.2g} ± "
                f"{outcome['noise']:.1g} | **{outcome['words']}** |"
            )
    lines += ["", *_tuned(result), "", *_chosen_times(result)]
    for model in result.values():
        lines += ["", *_section(model)]
    return "\n".join(lines) + "\n"


def _tuned(result: dict[str, Any]) -> list[str]:
    """Tuned plans against the best scheduler of diffusers, by model and calls."""
    head = " | ".join(f"{K} calls" for K in TUNED_AT)
    lines = [
        "## Tuned plans",
        "",
        "Root mean square difference to the many-step result of the same noise, which no tuning "
        "has seen: `fs.tune`, the best of all schedulers and settings of diffusers here, the "
        "ratio. First seed.",
        "",
        f"| model | {head} |",
        "|---|" + "---|" * len(TUNED_AT),
    ]
    logs: list[float] = []
    for model in result.values():
        runs = next((row["runs"] for row in model["rows"] if row["method"] == "fs.tune"), None)
        if runs is None:
            continue
        cells = []
        for K in TUNED_AT:
            peers = [row["rmse"] for row in candidates(model, K, peer=True) if "rmse" in row]
            mine, best_peer = runs[str(K)]["rmse"], min(peers)
            logs.append(math.log(mine / best_peer))
            cells.append(f"{mine:.3g} / {best_peer:.3g} = {mine / best_peer:.2f}")
        lines.append(f"| {model['title']} | {' | '.join(cells)} |")
    if logs:
        mean = math.exp(statistics.fmean(logs))
        below = sum(value < 0.0 for value in logs)
        lines += ["", f"Geometric mean of the ratios {mean:.2f}; {below} of {len(logs)} below 1."]
    return lines


def _chosen_times(result: dict[str, Any]) -> list[str]:
    """DDIM on even times and on the times of `grid="auto"`."""
    lines = [
        "## DDIM on chosen times",
        "",
        '`grid="auto"` takes the times of least squared error of DDIM steps against fine '
        'trajectories (`Profile.costs("trajectory")`). RMSE is to the many-step result of the '
        "same noise; bold is better than uniform.",
        "",
        "| model | calls | figure | uniform | auto | best of the other grids |",
        "|---|---|---|---|---|---|",
    ]
    for model in result.values():
        rows = {row["grid"]: row["runs"] for row in model["rows"] if row["method"] == "ddim"}
        if "auto" not in rows:
            continue
        for steps in ("5", "10"):
            for figure in ("rmse", *metrics(model)):
                figures = {
                    grid: statistics.fmean(np.atleast_1d(runs[steps][figure]))
                    for grid, runs in rows.items()
                    if figure in runs[steps] and runs[steps]["calls"] <= int(steps)
                }
                even, auto = figures.pop("uniform"), figures.pop("auto")
                other = min(figures, key=lambda grid: figures[grid])
                mark = "**" if auto < even else ""
                name = METRICS.get(figure, "RMSE")
                lines.append(
                    f"| {model['title']} | {steps} | {name} | {even:.3g} | {mark}{auto:.3g}{mark} "
                    f"| {figures[other]:.3g} {other} |"
                )
    return lines


def _section(model: dict[str, Any]) -> list[str]:
    main, *others = metrics(model)
    known = "; ".join(
        f"{METRICS[metric]} of true samples {_spread(model['floor'][metric])}, of "
        f"{model['limit_steps']}-step DDIM {model['limit'][metric][0]:.3g} (one seed)"
        for metric in (main, *others)
    )
    names = [METRICS[metric] for metric in (main, *others)]
    lines = [
        f"## {model['title'][0].upper()}{model['title'][1:]}",
        "",
        f"{model['count']} samples. {known[0].upper()}{known[1:]}. {_facts(model)}",
        "",
        f"| of {VERDICT_AT} calls the best {SHOWN} | grid | {' | '.join(names)} "
        f"| RMSE to {model['limit_steps']} steps | calls |",
        "|---|---|" + "---|" * (len(names) + 2),
    ]
    rows = sorted(candidates(model, VERDICT_AT), key=lambda row: statistics.fmean(row[main]))
    best_peer = next(row for row in rows if row["peer"])
    for row in [*rows[:SHOWN], *([] if best_peer in rows[:SHOWN] else [best_peer])]:
        values = " | ".join(_spread(row[metric]) for metric in (main, *others))
        mark = " (best of diffusers)" if row is best_peer else ""
        error = f"{row['rmse']:.3g}" if "rmse" in row else ""
        lines.append(f"| {_who(row)}{mark} | {row['grid']} | {values} | {error} | {row['calls']} |")
    columns = list(model["rows"][0]["runs"])
    for metric in (main, *others):
        lines += ["", *_by_calls(model, metric, columns)]
    return lines


def _facts(model: dict[str, Any]) -> str:
    known = model["facts"]
    return (
        f"Measured {known['date']} at commit {known['commit']}, torch {known['torch']}, diffusers "
        f"{known['diffusers']}, on {known['threads']} threads of an {known['cpu']}, in "
        f"{model['seconds'] / 60:.0f} minutes."
    )


def _by_calls(model: dict[str, Any], metric: str, columns: list[str]) -> list[str]:
    """The best grid of each family at each K, of the first seed."""
    table = {
        (family, peer): [best_of_family(model, family, metric, int(K), peer=peer) for K in columns]
        for family in FAMILIES
        for peer in (False, True)
    }
    table = {key: row for key, row in table.items() if any(row)}
    least = [
        min(row[i][metric][0] for row in table.values() if row[i]) for i in range(len(columns))
    ]
    head = " | ".join(f"K = {K}" for K in columns)
    lines = [f"| {METRICS[metric]}, best grid | {head} |", "|---|" + "---|" * len(columns)]
    for (family, peer), row in table.items():
        cells = []
        for entry, low in zip(row, least, strict=True):
            value = f"{entry[metric][0]:.3g}" if entry else "none"
            bold = f"**{value}**" if entry and entry[metric][0] == low else value
            cells.append(f"{bold} {entry['grid']}" if entry else value)
        name = f"diffusers {family}" if peer else family
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _who(row: dict[str, Any]) -> str:
    return f"diffusers `{row['method']}`" if row["peer"] else f"`{row['method']}`"


def _named(row: dict[str, Any]) -> str:
    return f"{_who(row)} on {row['grid']}"


def _spread(values: list[float]) -> str:
    mean = f"{statistics.fmean(values):.3g}"
    return f"{mean} ± {statistics.stdev(values):.1g}" if len(values) > 1 else mean
