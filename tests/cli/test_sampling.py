"""The command line as a person uses it: what it prints, writes and refuses."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.cli.main import main
from fastsample.plots.images import save_grid

Image = pytest.importorskip("PIL.Image")


def test_demo_writes_a_picture_of_digits_and_says_where(tmp_path, capsys):
    target = tmp_path / "folder" / "demo.png"
    assert main(["demo", "--out", str(target), "--quiet"]) == 0
    printed = capsys.readouterr()
    assert "100 digits, 10 network calls" in printed.out
    assert str(target) in printed.out
    assert printed.err == ""
    pixels = np.asarray(Image.open(target))
    assert pixels.shape == (10 * (8 * 6 + 2) + 2,) * 2
    assert np.ptp(pixels) > 200  # strokes on a background, not one grey


def test_sample_equals_the_library_call(tmp_path, capsys):
    target = tmp_path / "x.npy"
    arguments = (
        "sample digits --steps 3 --num 4 --seed 7 --index 2 --label 5 --guidance 1.5 --quiet"
    )
    assert main([*arguments.split(), "--out", str(target)]) == 0
    expected = fs.sample(
        fs.load("digits"),
        3,
        num_samples=4,
        seed=7,
        sample_index=2,
        cond={"y": 5},
        guidance=1.5,
    )
    assert np.array_equal(np.load(target), expected.numpy())
    assert "4 samples, 3 network calls" in capsys.readouterr().out


def test_progress_goes_to_stderr(tmp_path, capsys):
    assert main(["sample", "digits", "--steps", "2", "--out", str(tmp_path / "x.png")]) == 0
    assert "2/2" in capsys.readouterr().err


def test_info_and_module_entry_point(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "fastsample", "info"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    for fact in (fs.__version__, torch.__version__, fs.build_info()["cpu"]):
        assert fact in run.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sample nothing", 'name must be "digits", "mnist" or a file'),
        ("sample digits --steps 0", "steps must be in"),
        ("sample digits --steps 1001", "steps must be in"),
        ("sample digits --out x.txt", "out must end in"),
        ("sample digits --eta 2", "eta must be in"),
        ("sample digits --num 0", "num must be"),
        ("sample digits --knob eta=1 --knob eta=0", "knob eta must be given once, got the values"),
        (
            "sample digits --eta 0.5 --knob eta=1",
            "eta must be given once, got 0.5 as --eta and 1 as",
        ),
        ("sample digits --guidance 2", "label must be"),
        ("sample digits --device gpu", "device must be"),
        ("sample digits --seed -1", "seed must be in"),
    ],
)
def test_bad_arguments_are_one_clear_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments.split(), "--quiet"]) != 0
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", ["draw", "sample digits --label 11", "sample", ""])
def test_wrong_usage_is_told(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments.split())
    assert exit_info.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_grid_places_samples_row_by_row(tmp_path):
    samples = torch.linspace(-1, 1, 6).reshape(6, 1, 1, 1)
    path = save_grid(samples, tmp_path / "g.png", columns=3, scale=1, gap=0)
    pixels = np.asarray(Image.open(path))
    assert pixels.tolist() == [[0, 51, 102], [153, 204, 255]]


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (2, 2, 8, 8), (2, 8)])
def test_grid_refuses_what_is_no_image(shape, tmp_path):
    with pytest.raises(ValueError, match="save_grid: samples must be"):
        save_grid(torch.zeros(shape), tmp_path / "g.png")
