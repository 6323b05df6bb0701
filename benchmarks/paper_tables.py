"""The likelihood table of Watson et al. 2021 (arXiv:2106.03802) for models trained on digits.

    python -m benchmarks.paper_tables --device cuda        # trains three models first
    python -m benchmarks.paper_tables --render             # the tables again from the JSON

Rows: a model trained with L_simple, L_vlb or L_hybrid (`examples/train_digits.py`), times even,
quadratic or chosen by the dynamic program. Columns: network calls. Figures: bits/dim on held-out
digits. Grids and the decoder's variance at each time are chosen on the training digits alone; the
test figures are read off a second profile. L_simple uses the posterior's variance, as the paper
does, the others their learned one. The last step's variance is the best single one of its time
(the paper does not say what it uses).

Also: what 32 steps lose against all of them (the paper: "at most 0.1 bits/dim"), what choosing on
128 images instead of all costs, and one grid measured again by `fastsample.bits_per_dim`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

import fastsample as fs
from benchmarks.timing import RESULTS, facts, write
from fastsample import grids
from fastsample.bundled.datasets import DIGITS_BIN_WIDTH, digits_data

ROOT = Path(__file__).resolve().parent.parent
LOSSES = {"simple": "small", "vlb": "learned_range", "hybrid": "learned_range"}
BUDGETS = (8, 16, 32, 64, 128, 256)
FEW = 128
GRIDS = {"even": grids.uniform, "quadratic": grids.quadratic}
UNLABELLED = 10


def train(loss: str, path: Path, steps: int, device: str) -> subprocess.Popen[bytes]:
    """Start training; the three models train side by side."""
    command = [sys.executable, str(ROOT / "examples" / "train_digits.py"), "--loss", loss]
    command += ["--steps", str(steps), "--out", str(path), "--device", device]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def measure(model: fs.Denoiser, loss: str, train_set, test_set) -> dict[str, object]:
    """All results of one model."""
    variance, bin_width = LOSSES[loss], DIGITS_BIN_WIDTH
    whole = int(model.schedule.num_steps or 0)

    def profiled(x):
        cond = {"y": torch.full((len(x),), UNLABELLED)}
        return fs.profile(
            model, x, batch_size=500, bin_width=bin_width, trajectories=0, cond=cond, progress=True
        )

    seen, few, unseen = (profiled(x) for x in (train_set, train_set[:FEW], test_set))
    chosen = seen.costs(variance=variance)
    # The decoder's variance is a part of the sampler, as the grid is: it comes from training data.
    test = unseen.costs(variance=variance, decoder=chosen.decoder_variance)
    best = chosen.best_grids(BUDGETS)
    rows = {
        name: {k: test.bits_per_dim(make(whole, k)) for k in BUDGETS}
        for name, make in GRIDS.items()
    }
    rows["DP"] = {k: test.bits_per_dim(grid) for k, grid in best.items()}
    everything = fs.Grid(range(whole, -1, -1))
    free = chosen.best_grid(whole, at_most=True)

    sparse = few.costs(variance=variance)
    scant = unseen.costs(variance=variance, decoder=sparse.decoder_variance)
    ablation = {
        k: {
            "grid from 128": test.bits_per_dim(grid),
            "grid and decoder from 128": scant.bits_per_dim(grid),
        }
        for k, grid in sparse.best_grids(BUDGETS).items()
    }

    grid = best[32]
    last = int(grid.times[-2]) - 1
    checked = fs.bits_per_dim(
        model,
        test_set,
        grid,
        variance=variance,
        bin_width=bin_width,
        decoder_variance=float(chosen.decoder_variance[last]),
        cond={"y": torch.full((len(test_set),), UNLABELLED)},
        seed=1,
    )
    return {
        "variance": variance,
        "rows": rows,
        "all": test.bits_per_dim(everything),
        "free": {"steps": len(free), "bits_per_dim": test.bits_per_dim(free)},
        "train": {
            "DP": {k: chosen.bits_per_dim(g) for k, g in best.items()},
            "all": chosen.bits_per_dim(everything),
        },
        "ablation": ablation,
        "measured_again": {
            "steps": 32,
            "table": rows["DP"][32],
            "bits_per_dim": checked.total,
            "standard_error": checked.standard_error,
        },
        "times": {k: g.times.astype(int).tolist() for k, g in best.items() if k <= 16},
    }


def render(result: dict) -> str:
    """The tables as Markdown."""
    ks = [str(k) for k in BUDGETS]
    lines = [
        "# Bits per dimension on held-out digits, by network calls",
        "",
        f"Models trained {result['steps']} steps on 1500 digits of 8 x 8 pixels and 17 grey levels;"
        " 297 to test. Made by `python -m benchmarks.paper_tables`; what is measured stands there.",
        "",
        "| training loss | times | " + " | ".join(ks) + " | all 1000 |",
        "|---" * (len(ks) + 3) + "|",
    ]
    for loss, figures in result["models"].items():
        for name, row in figures["rows"].items():
            cells = " | ".join(f"{row[k]:.3f}" for k in ks)
            whole = f"{figures['all']:.3f}" if name == "DP" else ""
            lines.append(f"| L_{loss} ({figures['variance']}) | {name} | {cells} | {whole} |")
    lines += [
        "",
        "What 32 chosen steps lose, in bits/dim (the paper: at most 0.1 against all). All 1000"
        " steps are not the best here: the first ones resolve far less than a grey level, and are"
        " paid for.",
        "",
        "| training loss | against all 1000 | against the best of any number | within 0.1 |",
        "|---|---|---|---|",
    ]
    for loss, figures in result["models"].items():
        lost = figures["rows"]["DP"]["32"] - figures["all"]
        free = figures["free"]
        most = figures["rows"]["DP"]["32"] - free["bits_per_dim"]
        verdict = "yes" if max(lost, most) <= 0.1 else "**no**"
        lines.append(
            f"| L_{loss} | {lost:+.3f} | {most:+.3f} ({free['steps']} steps) | {verdict} |"
        )
    lines += [
        "",
        "Bits/dim lost on held-out digits when the grid is chosen on 128 images instead of 1500,"
        " and when the decoder's variances are as well:",
        "",
        "| training loss | chosen on 128 | " + " | ".join(ks) + " |",
        "|---" * (len(ks) + 2) + "|",
    ]
    for loss, figures in result["models"].items():
        for name in ("grid from 128", "grid and decoder from 128"):
            row = [figures["ablation"][k][name] - figures["rows"]["DP"][k] for k in ks]
            cells = " | ".join(f"{value:+.4f}" for value in row)
            lines.append(f"| L_{loss} | {name.removesuffix(' from 128')} | {cells} |")
    lines += ["", "The table's figure and `fastsample.bits_per_dim` (fresh noise), 32 steps:", ""]
    for loss, figures in result["models"].items():
        again = figures["measured_again"]
        lines.append(
            f"- L_{loss}: {again['table']:.4f}, measured {again['bits_per_dim']:.4f} "
            f"± {again['standard_error']:.4f}"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train the models that do not exist yet, measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=4000, help="training steps")
    parser.add_argument("--models", type=Path, default=ROOT / "out" / "paper_tables")
    parser.add_argument("--render", action="store_true", help="only the tables, from the JSON")
    options = parser.parse_args()
    if not options.render:
        options.models.mkdir(parents=True, exist_ok=True)
        paths = {loss: options.models / f"{loss}-{options.steps}.safetensors" for loss in LOSSES}
        runs = [
            train(loss, path, options.steps, options.device)
            for loss, path in paths.items()
            if not path.exists()
        ]
        if any(run.wait() for run in runs):
            raise SystemExit("paper_tables: training failed")
        x, _, held_out, _ = digits_data()
        models = {}
        for loss, path in paths.items():
            print(loss)
            models[loss] = measure(fs.load(path, device=options.device), loss, x, held_out)
        result = {
            "benchmark": "paper_tables",
            "facts": facts(torch.device(options.device)),
            "steps": options.steps,
            "models": models,
        }
        print(write("paper-tables", result))
    text = render(json.loads((RESULTS / "paper-tables.json").read_text()))
    (RESULTS / "paper-tables.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
