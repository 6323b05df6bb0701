"""Without a GPU or its driver the package imports and works, and says what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import fastsample as fs
from tests.helpers.networks import halve


def run_without_gpu(code: str) -> str:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env=environment,
        cwd=Path(__file__).parent,  # not the root, whose fastsample/ may have no kernels
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_imports_and_samples_without_a_driver():
    code = """
        import fastsample as fs
        x = fs.sample(lambda x, t: 0.5 * x, 3, shape=(2, 4), num_samples=2)
        print(tuple(x.shape), x.device, fs.build_info()["cuda"])
    """
    assert run_without_gpu(code).split("\n")[0] == f"(2, 2, 4) cpu {fs.build_info()['cuda']}"


def test_a_launch_without_a_driver_is_an_error():
    code = """
        import torch
        from fastsample import _native
        word = torch.zeros(4, dtype=torch.int64)
        p = word.data_ptr()
        try:
            _native.fill_noise(0, 0, 0, 0, 1, 4, 1, 4, False, p, False, p, 0, p)
        except RuntimeError as error:
            print(error)
    """
    missing = "CUDA error: " if fs.build_info()["cuda"] else "fastsample was built without CUDA"
    assert missing in run_without_gpu(code)


def test_graph_needs_a_gpu():
    message = r"^sample: graph must be False on cpu, got True; CUDA graphs need a GPU$"
    with pytest.raises(ValueError, match=message):
        fs.sample(halve, 3, shape=(2, 4), graph=True)
