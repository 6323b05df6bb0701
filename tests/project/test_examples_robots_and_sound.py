"""The examples of sound and of robots run as their first lines say."""

from __future__ import annotations

import wave

import pytest

from fastsample.plans.plan import Plan
from tests.project.test_examples import run

pytestmark = pytest.mark.slow


def test_diffwave_writes_sounds(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    arguments = ("--iterations", 3, "--sounds", 2, "--runs", 1, "--teacher-steps", 12)
    printed = run("diffwave", monkeypatch, capsys, *arguments, "--out", tmp_path)
    rows = [line for line in printed if line.endswith("%")]
    assert len(rows) == 8
    # The measures know the truth: no distance, and the right pitches.
    assert "  0.00 dB" in rows[0]
    assert rows[0].endswith("pitch right 100%")
    assert all(float(row.split(" dB")[0].split()[-1]) > 1.0 for row in rows[1:])
    sounds = sorted(tmp_path.glob("*.wav"))
    assert len(sounds) == 2 * len(rows)
    with wave.open(str(sounds[0])) as file:
        assert file.getparams()[:4] == (1, 2, 8000, 4096)
    assert (tmp_path / "spectrograms.png").stat().st_size > 1000
    assert Plan.from_json((tmp_path / "plan.json").read_text()).calls == 6


def test_diffusion_policy_takes_the_scheduler_as_it_takes_its_own(monkeypatch, capsys):
    pytest.importorskip("diffusers")
    arguments = ("--iterations", 5, "--scenes", 8, "--chunks", 2, "--runs", 1)
    printed = run("diffusion_policy", monkeypatch, capsys, *arguments)
    distances = {
        line[:34].rstrip(): float(line.split("distance")[1].split()[0])
        for line in printed
        if "distance" in line
    }
    assert len(distances) == 7
    assert distances["DDIM, 100 calls"] == 0.0
    # diffusers' loop, the scheduler in it and the sampler give one result, and the tuned plan too.
    own = distances["diffusers' DDIM, 10 calls"]
    assert own > 0.0
    assert distances["FastSampleScheduler, 10 calls"] == pytest.approx(own, abs=2e-4)
    assert distances["the same list in fs.Sampler, 10"] == pytest.approx(own, abs=2e-4)
    tuned = distances["fs.Sampler, tuned 5 calls"]
    assert distances["FastSampleScheduler, tuned 5 calls"] == pytest.approx(tuned, abs=2e-4)
