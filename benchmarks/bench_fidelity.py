"""Measures the fidelity loss: the swirl over three seeds, digits in few calls, and the cost.

    python -m benchmarks.bench_fidelity                 # all of it, about an hour on two cores
    python -m benchmarks.bench_fidelity --parts swirl   # keeps the JSON's results of other parts
    python -m benchmarks.bench_fidelity --quick         # a minute, writes nothing
    python -m benchmarks.bench_fidelity --render        # only the tables, from the JSON

The swirl is trained for 3000 iterations, then for 300 more in several ways, called arms
(`benchmarks.swirl.arms`). All arms of a seed start with the same weights, see the same batches, and
are sampled with the moving average of their weights and the same noise. They are compared with
samplers that need no training: every method and grid of this package and a plan of `fs.tune`, of
which the tables show the best by the figure in question. Writes benchmarks/results/fidelity.json
and .md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import fastsample as fs
from benchmarks import fidelity_digits, fidelity_report, swirl
from benchmarks.timing import RESULTS, facts
from fastsample.bundled.recipes import recipe_of

NAME = "fidelity.json"
PARTS = ("cost", "swirl", "digits")


def cost(iterations: int = 40) -> dict[str, Any]:
    """CPU and wall time of an iteration with and without the term, measured in turns."""
    recipe, base = swirl.trained(0, 10)
    fine = _fine_recipe(recipe, base)
    known = swirl.arms(fine, 1.0)
    trainers = {
        name: swirl.trainer_of(fine, base, known[name], 0) for name in ("control", "energy")
    }
    spent: dict[str, list[list[float]]] = {name: [] for name in trainers}
    for _ in range(5):
        for name, trainer in trainers.items():
            trainer.run(trainer.iteration + 2)
            cpu, wall = time.process_time(), time.perf_counter()
            trainer.run(trainer.iteration + iterations // 5)
            spent[name].append([time.process_time() - cpu, time.perf_counter() - wall])
    costs: dict[str, Any] = {"threads": torch.get_num_threads()}
    for clock, column in (("cpu", 0), ("wall", 1)):
        per = {
            name: sorted(part[column] for part in parts)[2] / (iterations // 5) * 1e3
            for name, parts in spent.items()
        }
        costs[f"{clock}_ms"] = {name: round(value, 2) for name, value in per.items()}
        costs[f"{clock}_ratio"] = round(per["energy"] / per["control"], 2)
        print(f"{clock}: {per['control']:.1f} ms, with the term {per['energy']:.1f} ms", flush=True)
    return costs


def one_swirl(seed: int, ratio: float, *, trained: int, fine_tuned: int) -> dict[str, Any]:
    """All results of one training seed."""
    recipe, base = swirl.trained(seed, trained)
    fine = _fine_recipe(recipe, base)
    judge, large = swirl.Judge(), swirl.Judge(swirl.LARGE)
    results: dict[str, Any] = {"arms": {}, "free": {}}
    for name, arm in {"start": None, **swirl.arms(fine, ratio)}.items():
        begin = time.perf_counter()
        if arm is None:
            start = swirl.trainer_of(fine, base, swirl.Arm("start"), seed)
            model, loss, history = base, start.loss, []
        else:
            trainer = swirl.trainer_of(fine, base, arm, seed)
            model = trainer.run(round(fine_tuned * arm.compute))
            loss, history = trainer.averaged_loss, trainer.history
        one: dict[str, Any] = {"label": "the model before" if arm is None else arm.label}
        one["seconds"] = round(time.perf_counter() - begin, 1)
        one["bits"] = swirl.bits_per_dim(model, loss)  # type: ignore[arg-type]
        one["collapsed"] = bool(history and history[-1].get("collapsed"))
        for K in swirl.CALLS:
            one[f"ddim{K}"] = swirl.judged(judge, model, K, method="ddim")
        one["shortcut11"] = swirl.judged(judge, model, 11, method="shortcut", grid="random")
        for method in ("ddim", "ancestral"):
            one[f"{method}{swirl.MANY}"] = swirl.judged(judge, model, swirl.MANY, method=method)
        many = fs.sample(model, 10, method="ddim", num_samples=swirl.LARGE, seed=104)
        one["ddim10_large"] = large(many)
        results["arms"][name] = one
        _show(seed, name, one)
        if name in ("start", "control"):
            results["free"][name] = _training_free(judge, model)
    return results


def _training_free(judge: swirl.Judge, model: fs.Denoiser) -> dict[str, Any]:
    """The best sampler without training at each number of calls, for each distance."""
    best_samplers: dict[str, Any] = {}
    for K in swirl.CALLS:
        entries = swirl.known_samplers(model, K)
        plan = fs.tune(model, K, samples=1024)
        entries.append(("fs.tune", plan, {}))
        rows = {
            label: swirl.judged(judge, model, steps, **options) for label, steps, options in entries
        }
        best_samplers[str(K)] = {
            name: {"label": best, **rows[best]}
            for name in ("ed", "sw2")
            for best in [min(rows, key=lambda label, name=name: rows[label][name])]
        }
        best_samplers[str(K)]["tuned"] = {"label": "fs.tune", **rows["fs.tune"]}
    return best_samplers


def _fine_recipe(recipe: Any, base: fs.Denoiser) -> Any:
    """The recipe for training a model further, which is read from a file as users do."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        recipe.save(path, base)
        return recipe_of(path)


def _show(seed: int, name: str, one: dict[str, Any]) -> None:
    ten = one["ddim10"]
    print(
        f"seed {seed} {name:9} {one['seconds']:5.0f} s  bits {one['bits']:.3f}  10 calls: "
        f"ED {ten['ed']:.4f} SW2 {ten['sw2']:.3f} sd {ten['sd']:.3f}  5 calls: "
        f"ED {one['ddim5']['ed']:.4f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    calls = {"type": int, "nargs": "+", "default": fidelity_digits.CALLS, "metavar": "K"}
    parser.add_argument("--calls", help="of the digits (4 8)", **calls)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="a minute; writes nothing")
    parser.add_argument("--render", action="store_true", help="only render what is in the JSON")
    options = parser.parse_args()
    path = options.out / NAME
    result: dict[str, Any] = {}
    if path.exists() and not options.quick:
        result = json.loads(path.read_text())
    length = {"trained": 30, "fine_tuned": 4} if options.quick else {}
    seeds = options.seeds[:1] if options.quick else options.seeds
    known = facts(torch.device("cpu"))
    for part in () if options.render else options.parts:
        if part == "cost":
            result["cost"] = {"facts": known, **cost(10 if options.quick else 40)}
        elif part == "swirl":
            ratio = result["cost"]["cpu_ratio"]
            length = length or {"trained": swirl.TRAINED, "fine_tuned": swirl.FINE_TUNED}
            result["swirl"] = {"facts": known, **length, "seeds": {}}
            for seed in seeds:
                result["swirl"]["seeds"][str(seed)] = one_swirl(seed, ratio, **length)
        else:
            digits = fidelity_digits.run(calls=options.calls, quick=options.quick)
            before = result.get("digits", {}).get("calls", {})
            result["digits"] = {"facts": known, **digits, "calls": {**before, **digits["calls"]}}
        if not options.quick:
            path.write_text(json.dumps(result, indent=1) + "\n")
    text = fidelity_report.markdown(result)
    if options.quick:
        print(text)
    else:
        (options.out / "fidelity.md").write_text(text)


if __name__ == "__main__":
    main()
