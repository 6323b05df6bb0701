"""What ``fastsample profile | plan | bpd`` refuse: one clear line, and no file harmed."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from fastsample.cli.main import main
from tests.helpers.cli_cases import MEASURE, digits_file, run


@pytest.fixture
def data(tmp_path):
    return digits_file(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("profile nothing {0} --out {1}/p", 'load: name must be "digits", "mnist" or a file'),
        ("profile digits nothing.npy --out {1}/p", 'profile: data must be "digits", "digits-test"'),
        ("profile digits {1} --out {1}/p", "or a .npy or .pt file, got"),
        ("profile digits {0} --out {1}/p --num 7", r"profile: num must be in [1, 6], got 7"),
        ("profile digits {0} --out {1}/p --num 0", r"profile: num must be in [1, 6], got 0"),
        ("profile digits {0} --out {1}/p --times 1", r"profile: times must be in [2, 1000], got 1"),
        ("profile digits {0} --out {1}/p --batch-size 0", "batch_size must be at least 1"),
        ("profile digits {0} --out {1}/p --bin-width 0", "bin_width must be in (0, 2]"),
        ("profile digits {0} --out {1}/p --device gpu", "device must be"),
        ("profile digits {0} --out {1}", "Profile.load: path must name a file"),
        ("plan {1}/none", "Profile.load: path must name a file"),
        ("plan {0}", "Profile.load: path must be a fastsample profile"),
        ("plan digits --steps 130", r"steps must be in [1, 129], got 130"),
        ("plan digits --out {1}/p.txt", "plan: out must end in .json"),
        (
            "plan digits --objective trajectory --decoder forward",
            'left out with objective="trajectory"',
        ),
        ("plan digits --objective elbo --variance tiny", "variance must be"),
        ("plan digits --picture {1}/p.txt", "save: path must end in"),
        ("bpd digits {0} --steps 0", r"bits_per_dim: steps must be in [1, 1000], got 0"),
        ("bpd digits {0} --steps 3 --grid even", "bits_per_dim: grid must be one of"),
        ("bpd digits {0} --steps 3 --bin-width 3", "bin_width must be in (0, 2], got 3"),
    ],
)
def test_bad_arguments_are_one_clear_line(arguments, message, data, tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    quiet = "" if arguments.startswith("plan") else " --quiet"
    assert run(arguments + quiet, data[0], folder) in (1, 2)
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 1, 8, 8), np.uint8), "must be floats (N, *shape), got uint8"),
        (np.zeros(4), "got float64 (4,)"),
        (
            np.full((2, 1, 8, 8), 1.5),
            "data must be in [-1, 1], where the decoder's bins lie, got 1.5",
        ),
        (np.zeros((2, 1, 4, 4)), "data must have shape (2, 1, 8, 8), got (2, 1, 4, 4)"),
        (np.full((2, 1, 8, 8), None), "must be a .npy file of numbers"),
        (None, "must be a .npy file of numbers"),
    ],
    ids=["bytes", "one number", "range", "shape", "objects", "empty"],
)
def test_wrong_files_of_data(array, message, tmp_path, capsys):
    path = tmp_path / "x.npy"
    path.write_bytes(b"") if array is None else np.save(path, array)
    assert run("bpd digits {0} --steps 2 --quiet", path) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (b"no archive", "must be a .pt file of numbers"),
        (
            {"x0": torch.zeros(2, 1, 8, 8)},
            "must be a .pt file of numbers, got {0} (holds a dict, no",
        ),
        # An array would need a pickle of any code.
        (np.zeros(3), "must be a .pt file of numbers, got {0}, which needs the code of numpy."),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "must be floats (N, *shape), got uint8"),
    ],
    ids=["text", "dict", "array", "bytes"],
)
def test_wrong_tensor_files(stored, message, tmp_path, capsys):
    path = tmp_path / "x.pt"
    path.write_bytes(stored) if isinstance(stored, bytes) else torch.save(stored, path)
    assert run("bpd digits {0} --steps 2 --quiet", path) == 2
    printed = capsys.readouterr().err
    assert message.format(path) in printed
    assert len(printed.splitlines()) == 1
    assert "\x1b" not in printed


def test_another_run_is_not_added_to_a_file(data, tmp_path, capsys):
    path, out = data[0], tmp_path / "p"
    assert run(f"{MEASURE} --num 2 --quiet", path, out) == 0
    before = out.read_bytes()
    assert run(f"{MEASURE} --num 4 --seed 1 --quiet", path, out) == 2
    assert "save must be a file of the same run" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_digits_without_scikit_learn(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert run("bpd digits digits --steps 2") == 1
    assert "pip install 'fastsample[train]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        "profile digits digits",
        "profile digits digits --out p --bin-width wide",
        "profile digits digits --out p --bin-width 1/0",
        "plan",
        "plan digits --objective beauty",
        "plan digits --steps",
        "bpd digits digits --steps some",
    ],
)
def test_wrong_usage_is_told(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments.split())
    assert exit_info.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_a_picture_without_matplotlib(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    command = "plan {0} --steps 2 --picture {1}/p.png --out {1}/g.json"
    assert run(command, "digits", tmp_path) == 1
    printed = capsys.readouterr()
    assert "pip install 'fastsample[plot]'" in printed.err
    assert printed.out == ""
    assert not list(tmp_path.iterdir())
