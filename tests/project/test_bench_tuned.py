"""The benchmark of tuned plans: a run of a few peers, and what its tables say."""

import functools
import json
import sys

import pytest


@pytest.mark.slow
def test_bench_tuned_runs_and_renders(monkeypatch, tmp_path, capsys):
    for needed in ("diffusers", "sklearn", "torchmetrics", "scipy"):
        pytest.importorskip(needed)
    from benchmarks import bench_tuned, quality, tuned_report
    from benchmarks.contestants import Peer
    from benchmarks.models import MODELS
    from fastsample.evaluation.diffusers_schedulers import TIMES

    monkeypatch.setattr(
        bench_tuned, "train_classifier", functools.partial(quality.train_classifier, epochs=1)
    )
    monkeypatch.setattr(bench_tuned, "FINE_STEPS", 12)
    entries = [
        Peer("DDIM", "DDIMScheduler", TIMES["trailing"], "trailing"),
        Peer("UniPC", "UniPCMultistepScheduler", TIMES["linspace"], "linspace"),
        Peer("DDPM", "DDPMScheduler", TIMES["leading"], "leading"),
    ]
    monkeypatch.setattr(bench_tuned, "lineup", lambda model: entries)
    result = {
        name: bench_tuned.run_model(
            MODELS[name](),
            count=20,
            steps=(5,),
            seeds=(100, 101),
            final_seeds=(200, 201),
            limit_steps=12,
        )
        for name in ("digits", "digits-labels")
    }
    distances = {"sw2", "frechet"}
    for model in result.values():
        cell, final = model["cells"]["5"], model["finals"]["5"]
        assert len(cell["tuned"]["rmse"]) == 2
        assert [row["method"] for row in cell["peers"] if row["stochastic"]] == ["DDPMScheduler"]
        assert set(final) == {"tuned"} | {
            f"{metric} {kind}" for metric in distances for kind in ("deterministic", "any")
        }
        assert len(final["sw2 any"][0]["sw2"]) == 2
        assert set(model["limit"]) == set(model["floor"]) == distances
    bench_tuned.write(tmp_path, result)
    assert json.loads((tmp_path / "tuned.json").read_text()) == result
    text = (tmp_path / "tuned.md").read_text()
    monkeypatch.setattr(sys, "argv", ["bench_tuned", "--render", "--out", str(tmp_path)])
    bench_tuned.main()
    assert text == (tmp_path / "tuned.md").read_text() == tuned_report.markdown(result)
    assert text.count("| digits, no labels, 8 x 8 pixels, Frechet distance | ") == 1
    assert "geometric mean of the 1 ratios" in text  # those of the labels are not among them
    assert "digits-labels, 5 calls: " in capsys.readouterr().out


def test_the_best_peer_is_deterministic_and_no_longer_than_asked():
    pytest.importorskip("scipy")
    from benchmarks.tuned_report import best_line, best_peer

    def peer(method, errors, calls=5, stochastic=False):
        row = {"method": method, "grid": "leading", "calls": calls, "stochastic": stochastic}
        return {**row, "rmse": errors}

    cell = {
        "tuned": {"rmse": [0.1, 0.3]},
        "peers": [
            peer("one", [0.4, 0.6]),
            peer("two", [0.3, 0.5]),
            peer("long", [0.1, 0.1], calls=6),
            peer("noisy", [0.1, 0.1], stochastic=True),
            {"method": "none", "grid": "leading", "stochastic": False, "refused": "not finite"},
        ],
    }
    assert best_peer(cell, "rmse", 5)["method"] == "two"
    assert best_line(cell, 5) == "0.2 / 0.4 = 0.50"
