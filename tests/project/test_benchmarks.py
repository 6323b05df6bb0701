"""The benchmarks still run; no time is looked at."""

import importlib.util
import shutil
import sys

import pytest
import torch

# diffusers 0.42 converts tensors in a way that NumPy 2 warns about.
diffusers_warns = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_bench_step_measures_every_kind(capsys):
    pytest.importorskip("diffusers")
    from benchmarks import bench_step

    results = bench_step.run(
        torch.device("cpu"), torch.float32, [(2, 3, 4, 4)], compiled=False, seconds=0.0
    )
    assert [r["kind"] for r in results] == ["deterministic", "noisy", "learned"]
    for result in results:
        assert {"fused", "plain torch", "torch.add(out=)"} <= set(result["times"])
        assert any(name.startswith("diffusers") for name in result["ratio"])
    assert "x fused" in capsys.readouterr().out


@diffusers_warns
def test_bench_loop_measures_every_method(capsys):
    pytest.importorskip("diffusers")
    from benchmarks import bench_loop

    results = bench_loop.run(torch.device("cpu"), [(1, 4, 2)], seconds=0.0)
    assert [r["method"] for r in results] == list(bench_loop.METHODS)
    for result in results:
        assert {"fs.Sampler", "fs.sample"} < set(result["times"])
        assert len(result["ratio_sampler"]) >= 1
    assert "over sampler" in capsys.readouterr().out


@diffusers_warns
def test_bench_models_runs_both_networks():
    from benchmarks import bench_models

    results = bench_models.run(torch.device("cpu"), (1,), seconds=0.0)
    assert [r["model"] for r in results] == ["digits", "DiT"]


def test_bytes_are_those_a_step_must_move():
    from benchmarks.bench_step import moved_bytes

    assert moved_bytes("deterministic", (2, 3), torch.float32) == 2 * 3 * 12
    assert moved_bytes("learned", (2, 3), torch.bfloat16) == 2 * 3 * 8


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.skipif(
    shutil.which("nvdisasm") is None and importlib.util.find_spec("nvidia") is None,
    reason="needs nvdisasm",
)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_cuda_kernels_keep_everything_in_registers(arch, monkeypatch, capsys):
    from benchmarks import sass

    monkeypatch.setattr(sys, "argv", ["sass", "--arch", arch])
    sass.main()  # exits with a message when a kernel spills
    printed = capsys.readouterr().out
    # 32 step kernels and 4 for channels_last, 12 for the backward pass, 12 for noise.
    assert len(printed.splitlines()) == 1 + 36 + 12 + 12


@diffusers_warns
def test_bench_scheduler_measures_every_source(capsys):
    pytest.importorskip("diffusers")
    from benchmarks import bench_scheduler

    results = bench_scheduler.run(torch.device("cpu"), [(1, 4, 2, 2)], seconds=0.0)
    assert [r["source"] for r in results] == list(bench_scheduler.SOURCES)
    assert capsys.readouterr().out.count("ratio") == len(results)


@pytest.mark.slow
def test_bench_exploding_measures_every_list():
    from benchmarks import bench_exploding

    table = bench_exploding.ratios(bench_exploding.run(["8 modes in 2-D"], (80.0,)))
    assert list(table) == list(bench_exploding.METHODS)
    assert all(list(row) == list(bench_exploding.LISTS) for row in table.values())
