"""The tables of the fidelity benchmark, from its JSON alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

_HEAD = """# What the fidelity loss does

Made by `python -m benchmarks.bench_fidelity` from `fidelity.json`. Less is better everywhere but
for the deviation, which is 1 for the data.

Rates, batch and label dropout of the fine-tuning were chosen (about a dozen settings on the
swirl, nine on the digits) with the same judges and training seeds, and partly the same
sampling seeds, as are shown here: the figures are a little too good. On two training seeds
that chose nothing, with other fresh points and sampling seeds, the swirl in 10 calls came to
an energy distance of 0.0044 and 0.0024 (diffusion loss alone 0.0072 and 0.0045, UniPC
untrained 0.0033 and 0.0028), sliced W2 0.089 and 0.071, deviation 0.971 and 0.981, and 0.025
and 0.019 bits/dim more than the diffusion loss alone. The digits in 4 calls, a third training
seed and two other sampling seeds: 4.23 (fs.tune) to 2.51 with labels, 22.0 to 13.6 without.
"""


def markdown(result: dict[str, Any]) -> str:
    """The tables of all parts that have results."""
    parts = [_HEAD]
    if "swirl" in result:
        parts += [_summary(result["swirl"]), _swirl(result["swirl"]), _free(result["swirl"])]
    if "digits" in result:
        parts.append(_digits(result["digits"]))
    if "cost" in result:
        parts.append(_cost(result["cost"]))
    return "\n".join(parts)


def _summary(results: dict[str, Any]) -> str:
    """The table of means over the seeds, which the documentation shows too."""
    seeds = list(results["seeds"].values())

    def mean(get: Callable[[dict[str, Any]], float], form: str, name: str) -> str:
        return f"{statistics.fmean(get(seed['arms'][name]) for seed in seeds):{form}}"

    lines = [
        "## In short",
        "",
        "| 300 more iterations with | bits/dim | energy distance, 10 calls | sliced W2 | deviation "
        "| energy distance, 5 calls | 200 calls |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, arm in seeds[0]["arms"].items():
        cells = (
            mean(lambda one: one["bits"], ".3f", name),
            mean(lambda one: one["ddim10"]["ed"], ".4f", name),
            mean(lambda one: one["ddim10"]["sw2"], ".3f", name),
            mean(lambda one: one["ddim10"]["sd"], ".2f", name),
            mean(lambda one: one["ddim5"]["ed"], ".4f", name),
            mean(lambda one: one["ancestral200"]["ed"], ".4f", name),
        )
        label = "nothing: the model before" if name == "start" else arm["label"]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    for model, text in (("start", "the model before"), ("control", "the diffusion loss alone")):
        best = {
            K: statistics.fmean(seed["free"][model][K]["ed"]["ed"] for seed in seeds)
            for K in ("10", "5")
        }
        sw2 = statistics.fmean(seed["free"][model]["10"]["sw2"]["sw2"] for seed in seeds)
        lines.append(
            f"| {text}, best sampler instead of DDIM | | {best['10']:.4f} | {sw2:.3f} | "
            f"| {best['5']:.4f} | |"
        )
    return "\n".join([*lines, ""])


def _swirl(results: dict[str, Any]) -> str:
    seeds = list(results["seeds"].values())
    names = list(seeds[0]["arms"])
    columns: list[tuple[str, Callable[[dict[str, Any]], float], str]] = [
        ("bits/dim", lambda arm: arm["bits"], ".3f"),
        ("energy distance, 10 calls", lambda arm: arm["ddim10"]["ed"], ".4f"),
        ("sliced W2", lambda arm: arm["ddim10"]["sw2"], ".3f"),
        ("deviation", lambda arm: arm["ddim10"]["sd"], ".3f"),
        ("to the nearest data", lambda arm: arm["ddim10"]["precision"], ".3f"),
        ("energy distance, 5 calls", lambda arm: arm["ddim5"]["ed"], ".4f"),
        ("200 calls, DDIM", lambda arm: arm["ddim200"]["ed"], ".4f"),
        ("200 calls, ancestral", lambda arm: arm["ancestral200"]["ed"], ".4f"),
        ("eq. (8), 11 random times", lambda arm: arm["shortcut11"]["ed"], ".3f"),
        ("its deviation", lambda arm: arm["shortcut11"]["sd"], ".2f"),
        ("collapse seen", lambda arm: float(arm["collapsed"]), "count"),
    ]
    lines = [
        "## Swirl",
        "",
        f"Mean over {len(seeds)} training seeds, in brackets their range; {results['fine_tuned']} "
        f"iterations from a model of {results['trained']}. Samples by DDIM on even times unless "
        "said: 1024 against 4096 fresh points, mean of 3 sampling seeds, the same for all.",
        "",
        "| further training | " + " | ".join(label for label, _, _ in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for name in names:
        cells = [
            _cell([get(seed["arms"][name]) for seed in seeds], form) for _, get, form in columns
        ]
        lines.append(f"| {seeds[0]['arms'][name]['label']} | " + " | ".join(cells) + " |")
    large = {
        name: statistics.fmean(seed["arms"][name]["ddim10_large"]["ed"] for seed in seeds)
        for name in names
    }
    lines += [
        "",
        "With 10,000 samples against 10,000 fresh points the energy distance in 10 calls is "
        + ", ".join(f"{large[name]:.4f} ({seeds[0]['arms'][name]['label']})" for name in names)
        + ".",
        "",
    ]
    return "\n".join(lines)


def _free(results: dict[str, Any]) -> str:
    lines = [
        "Without training the term, the best sampler of this package at as many calls, chosen by "
        "the figure shown:",
        "",
        "| seed | model | calls | energy distance | sliced W2 "
        "| `fs.tune`: energy distance, sliced W2 |",
        "|---|---|---|---|---|---|",
    ]
    for seed, one in results["seeds"].items():
        for model, by_calls in one["free"].items():
            label = one["arms"][model]["label"]
            for K, best in by_calls.items():
                ed, sw2, tuned = best["ed"], best["sw2"], best["tuned"]
                lines.append(
                    f"| {seed} | {label} | {K} | {ed['ed']:.4f} ({ed['label']}) | "
                    f"{sw2['sw2']:.3f} ({sw2['label']}) | {tuned['ed']:.4f}, {tuned['sw2']:.3f} |"
                )
    return "\n".join([*lines, ""])


def _digits(results: dict[str, Any]) -> str:
    lines = [
        "## Digits",
        "",
        f"Frechet distance of {results['samples']} samples to all 1797 digits in the features of a "
        f"small classifier, mean over {len(results['seeds'])} sampling seeds, the same for all. "
        "Training-free: the best of every method and grid of this package and `fs.tune`. "
        "Fine-tuned: one line per training seed, moving average of the weights.",
        "",
        "| calls | labels | training-free | fine-tuned | ratio | its 50 calls of DDIM |",
        "|---|---|---|---|---|---|",
    ]
    for K, one in results["calls"].items():
        for conditioning, text in (("labels", "even"), ("free", "none")):
            best = one["free"][conditioning]
            before = statistics.fmean(best["frechet"])
            for tuned in one["fine_tuned"]:
                after = statistics.fmean(tuned[conditioning])
                lines.append(
                    f"| {K} | {text} | {before:.2f} ({best['label']}, of {best['of']}) | "
                    f"{after:.2f} (seed {tuned['seed']}, {tuned['iterations']} iterations, "
                    f"{tuned['seconds']:.0f} s) | {after / before:.2f} | "
                    f"{statistics.fmean(tuned[f'{conditioning}_ddim50']):.2f} |"
                )
    return "\n".join([*lines, ""])


def _cost(results: dict[str, Any]) -> str:
    cpu, wall = results["cpu_ms"], results["wall_ms"]
    return "\n".join(
        [
            "## Cost",
            "",
            "An iteration on the swirl network with the term (10 calls, a quarter of the batch of "
            f"1024) and without, {results['threads']} threads: {cpu['energy']:.1f} and "
            f"{cpu['control']:.1f} ms of CPU time ({results['cpu_ratio']:.2f}x), "
            f"{wall['energy']:.1f} and {wall['control']:.1f} ms by the clock "
            f"({results['wall_ratio']:.2f}x).",
            "",
        ]
    )


def _cell(values: Sequence[float], form: str) -> str:
    """The mean with the range; or for the form "count", how many values are positive."""
    if form == "count":
        return f"{sum(value > 0 for value in values)} of {len(values)}"
    ends = (statistics.fmean(values), min(values), max(values))
    mean, low, high = (f"{value:{form}}" for value in ends)
    return mean if low == high else f"{mean} ({low} to {high})"
