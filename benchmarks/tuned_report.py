"""The tables of the tuned plans' benchmark, from its JSON alone."""

from __future__ import annotations

import math
import statistics
from typing import Any

import scipy.stats

from benchmarks.quality_results import METRICS

UNLABELLED = "digits-labels"  # labelled digits use plans that were tuned without labels

_GROUPS = {
    "deterministic": "the best deterministic peer",
    "any": "the best of all peers",
}


def markdown(result: dict[str, Any]) -> str:
    """All tables."""
    lines = [
        "# Tuned plans against diffusers",
        "",
        "Made by `python -m benchmarks.bench_tuned` from `tuned.json`, on noise and seeds that no "
        "tuning has seen. Less is better everywhere.",
        "",
        *_errors(result),
        "",
        *_distances(result),
        "",
        *_facts(result),
    ]
    return "\n".join(lines) + "\n"


def best_peer(cell: dict[str, Any], metric: str, K: int) -> dict[str, Any]:
    """The deterministic peer of at most K calls with the least mean over the seeds."""
    rows = [
        row
        for row in cell["peers"]
        if metric in row and row["calls"] <= K and not row["stochastic"]
    ]
    return min(rows, key=lambda row: statistics.fmean(row[metric]))


def best_line(cell: dict[str, Any], K: int) -> str:
    """The RMSEs of one cell as text, ``tuned / peer = ratio``."""
    mine = statistics.fmean(cell["tuned"]["rmse"])
    peer = statistics.fmean(best_peer(cell, "rmse", K)["rmse"])
    return f"{mine:.3g} / {peer:.3g} = {mine / peer:.2f}"


def _errors(result: dict[str, Any]) -> list[str]:
    first = next(iter(result.values()))
    columns = list(first["cells"])
    lines = [
        "## Error",
        "",
        f"RMSE to the {first['limit_steps']}-step DDIM result of the same noise, mean of "
        f"{len(first['seeds'])} seeds: `fs.tune` / best deterministic scheduler of diffusers = "
        "ratio. The best of each cell is chosen by the very figure that is shown, of all "
        "settings.",
        "",
        f"| model | {' | '.join(f'{K} calls' for K in columns)} |",
        "|---|" + "---|" * len(columns),
    ]
    for model in result.values():
        cells = [best_line(cell, int(K)) for K, cell in model["cells"].items()]
        lines.append(f"| {model['title']} | {' | '.join(cells)} |")
    lines.append("")
    lines += [
        f"- {name}: {_summary([m for key, m in result.items() if wanted(key)])}"
        for name, wanted in (
            ("without labels", lambda key: key != UNLABELLED),
            ("all", lambda key: True),
        )
    ]
    lines += [
        "",
        "The plans of the digits were tuned without labels; with labels they are used as they are.",
        "",
        "The best schedulers at these calls:",
        "",
        *(
            f"- {model['title']}: "
            + ", ".join(_who(cell, int(K)) for K, cell in model["cells"].items())
            for model in result.values()
        ),
    ]
    return lines


def _summary(models: list[dict[str, Any]]) -> str:
    """The geometric mean of the ratios and how many of them are below 1, as text."""
    means, singles = [], []
    for model in models:
        for K, cell in model["cells"].items():
            mine, peer = cell["tuned"]["rmse"], best_peer(cell, "rmse", int(K))["rmse"]
            means.append(statistics.fmean(mine) / statistics.fmean(peer))
            singles += [a / b for a, b in zip(mine, peer, strict=True)]
    average = math.exp(statistics.fmean(math.log(ratio) for ratio in means))
    return (
        f"geometric mean of the {len(means)} ratios **{average:.2f}**, the largest "
        f"{max(means):.2f}; below 1 in **{sum(r < 1.0 for r in means)} of {len(means)}** cells "
        f"and in {sum(r < 1.0 for r in singles)} of {len(singles)} single seeds"
    )


def _distances(result: dict[str, Any]) -> list[str]:
    first = next(iter(result.values()))
    lines = [
        "## Distance to true samples",
        "",
        f"Mean of {len(first['final_seeds'])} other seeds. The limit is the fine deterministic run "
        "that a plan without any error would give: where it is far from the data, no plan that "
        "follows it is nearer but by chance. The peer is the better of two finalists that the "
        f"first {len(first['seeds'])} seeds chose, once of the deterministic schedulers and once "
        "of all. Differences (tuned less the other) are paired: same starting noise, same true "
        "samples; ± half the 95% interval over the seeds (Student's t). True samples have their "
        "standard deviation over the seeds.",
        "",
        "| model, distance | calls | true samples | tuned | limit | tuned is "
        "| deterministic peer | tuned is | best of all peers | tuned is |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    counts: dict[str, dict[str, list[str]]] = {}
    small: dict[str, int] = {}
    for model in result.values():
        for metric in (m for m in METRICS if m in model["floor"]):
            for K, final in model["finals"].items():
                mine = final["tuned"][metric]
                others = {"its own limit": ("", model["limit"][metric])}
                for group, name in _GROUPS.items():
                    rows = final[f"{metric} {group}"]
                    peer = min(rows, key=lambda row: statistics.fmean(row[metric]))
                    others[name] = f" {_short(peer)}", peer[metric]
                cells = []
                for name, (text, values) in others.items():
                    difference, noise, word = _verdict(mine, values)
                    counts.setdefault(name, {}).setdefault(metric, []).append(word)
                    spread = statistics.stdev(model["floor"][metric])
                    if word == "worse" and difference < spread:
                        small[f"{name} {metric}"] = small.get(f"{name} {metric}", 0) + 1
                    known = f"{statistics.fmean(values):.3g}{text}"
                    cells.append(f"{known} | **{word}**, {difference:+.2g} ± {noise:.1g}")
                floor = model["floor"][metric]
                lines.append(
                    f"| {model['title']}, {METRICS[metric]} | {K} "
                    f"| {statistics.fmean(floor):.3g} ± {statistics.stdev(floor):.1g} "
                    f"| {statistics.fmean(mine):.3g} | {' | '.join(cells)} |"
                )
    lines.append("")
    for name, by_metric in counts.items():
        for metric, words in by_metric.items():
            parts = [f"{words.count(word)} {word}" for word in ("better", "alike", "worse")]
            noisy = small.get(f"{name} {metric}", 0)
            if noisy:
                parts[-1] += f" ({noisy} by less than true samples spread over the seeds)"
            lines.append(f"- {METRICS[metric]}, tuned against {name}: {', '.join(parts)}.")
    return lines


def _verdict(mine: list[float], peer: list[float]) -> tuple[float, float, str]:
    """Mean of the paired differences, half its 95% interval, and the word for it."""
    pairs = [a - b for a, b in zip(mine, peer, strict=True)]
    difference, noise = statistics.fmean(pairs), 0.0
    if len(pairs) > 1:
        quantile = float(scipy.stats.t.ppf(0.975, len(pairs) - 1))
        noise = quantile * statistics.stdev(pairs) / math.sqrt(len(pairs))
    if abs(difference) <= noise:
        return difference, noise, "alike"
    return difference, noise, "better" if difference < 0.0 else "worse"


def _facts(result: dict[str, Any]) -> list[str]:
    lines = ["## How it was measured", ""]
    for model in result.values():
        known = model["facts"]
        cell = next(iter(model["cells"].values()))
        drawn = sum(row["stochastic"] for row in cell["peers"])
        lines.append(
            f"- {model['title']}: {model['count']} samples a seed, {len(cell['peers']) - drawn} "
            f"deterministic and {drawn} stochastic settings of diffusers {known['diffusers']}; "
            f"{known['date']} at commit {known['commit']}, torch {known['torch']}, "
            f"threads: {known['threads']}, {known['cpu']}; {model['seconds'] / 60:.0f} min, a "
            "mixture's tuning included."
        )
    return lines


def _who(cell: dict[str, Any], K: int) -> str:
    return _short(best_peer(cell, "rmse", K))


def _short(row: dict[str, Any]) -> str:
    """The name of a scheduler without "Multistep" and "Scheduler", and its times."""
    for name in ("MultistepScheduler", "Scheduler"):
        row = {**row, "method": row["method"].replace(name, "")}
    return f"{row['method']} {row['grid']}"
