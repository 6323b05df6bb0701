"""Profiles on disk: saved and loaded bit for bit; whatever is no whole profile is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

import fastsample as fs
from tests.helpers.networks import denoiser, halve, halve_wide
from tests.helpers.profile_cases import TIMES, assert_same, levels
from tests.helpers.refusals import check_refusal, refusals

DATA = levels(23, 3)
KEY, OLD_KEY = "fastsample", "fastsample_profile"


def measure(**changes):
    run = {"times": TIMES, "trajectories": 9, **changes}
    return fs.profile(denoiser(halve, 3), DATA, **run)


# ---- save and load ----


@pytest.mark.filterwarnings("ignore:.* data must be on the decoder's bins:UserWarning")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trajectories": 0},
        {"bin_width": None},
        {"clip": (-0.5, 0.75)},
        {"bin_width": 1},  # an integer is a real number, too
        {"bin_width": np.float32(0.125)},
        {"times": [500.0]},
    ],
    ids=str,
)
def test_round_trip_is_exact(tmp_path, changes):
    saved = measure(**changes)
    path = saved.save(tmp_path / "new" / "profile.safetensors")
    loaded = fs.Profile.load(path)
    assert_same(loaded, saved, tolerance=0.0)
    assert np.array_equal(loaded.times, saved.times)
    assert (loaded.trajectories is None) == (saved.trajectories is None)
    assert repr(loaded) == repr(saved)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half written


@pytest.mark.parametrize(
    "schedule",
    [fs.NoiseSchedule.from_betas(np.linspace(1e-3, 0.3, 30)), fs.NoiseSchedule.cosine(50)],
    ids=["betas", "cosine"],
)
def test_round_trip_of_a_learned_variance(tmp_path, schedule):
    model = denoiser(halve_wide, 3, schedule=schedule, variance="learned_range", clip=1.0)
    saved = fs.profile(model, DATA, trajectories=2, nodes=5, seed=2**64 - 1)
    loaded = fs.Profile.load(str(saved.save(str(tmp_path / "profile"))))
    assert_same(loaded, saved, tolerance=0.0)
    assert_same(loaded.merge(saved), saved.merge(loaded), tolerance=0.0)


# ---- files that are no profiles ----


def text(path):
    path.write_text("no profile\n" * 100)


def empty(path):
    path.write_bytes(b"")


def cut_off(share):
    def write(path):
        measure().save(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return write


def foreign(metadata):
    return lambda path: save_file({"weight": np.zeros(3)}, path, metadata=metadata)


def tampered(**changes):
    """Version 1, without checksum: entries replaced, or left out if None, or arrays changed."""

    def write(path):
        measure().save(path)
        with safe_open(path, framework="numpy") as file:
            header = {**json.loads(file.metadata()[KEY]), "format": 1}
            del header["version"], header["sha256"]
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, value in changes.items():
            target = arrays if name in arrays else header
            target[name] = value
            if value is None:
                del target[name]
        save_file(arrays, path, metadata={OLD_KEY: json.dumps(header)})

    return write


def change(name, **changes):
    """One entry of the header in part."""

    def write(path):
        measure().save(path)
        with safe_open(path, framework="numpy") as file:
            entry = json.loads(file.metadata()[KEY])[name]
        tampered(**{name: {**entry, **changes}})(path)

    return write


def bfloat16(path):
    header = json.dumps({"format": "fastsample.profile", "version": 2})
    save_torch_file({"w": torch.zeros(3, dtype=torch.bfloat16)}, path, metadata={KEY: header})


CUT_OFF = r"path must be a fastsample profile, got .* \(cut off, or no safetensors file: "
NO_PROFILE = r"must be a fastsample profile, got .* \(no .format.: .fastsample.profile. in it\)"
FILES = {
    "text": (text, "path must be a fastsample profile, got .*profile"),
    "empty": (empty, CUT_OFF),
    "a byte short": (cut_off(0.9999), CUT_OFF),
    "half": (cut_off(0.5), CUT_OFF),
    "half a header": (cut_off(0.01), CUT_OFF),
    "weights": (foreign(None), NO_PROFILE),
    "others' metadata": (foreign({"format": "pt"}), NO_PROFILE),
    "a header of words": (foreign({KEY: "profile"}), r"\(cut off, or no JSON: "),
    "a header that is a list": (foreign({KEY: "[1]"}), NO_PROFILE),
    "an old header that is a list": (foreign({OLD_KEY: "[1]"}), "must be a fastsample profile"),
    "a dtype that numpy lacks": (bfloat16, "must be a fastsample profile, got .*bfloat16"),
    "another format": (tampered(format=2), r"got .* \(damaged: its checksum is not that of its"),
    "a newer format": (tampered(format=3), r"got .* \(version 3, made by a newer fastsample; upgr"),
    "no format": (tampered(format=None), r"got .* \(version None\)"),
    "no schedule": (tampered(schedule=None), "must be a fastsample profile"),
    "schedule": (change("schedule", kind="quadratic"), "fastsample profile, got .*'quadratic'"),
    "schedule's arguments": (change("schedule", num_steps=-5), "must be a fastsample profile"),
    "schedule that is text": (tampered(schedule="linear"), "must be a fastsample profile"),
    "settings": (tampered(settings=[]), "must be a fastsample profile"),
    "a setting too many": (change("settings", more=1), "must be a fastsample profile"),
    "no clip": (change("settings", clip=None), "must be a fastsample profile"),
    "nodes that are not there": (
        change("settings", variance="learned_range", nodes=16),
        r"got .* \(excess of shape \(5, 0\), not \(5, 16\)\)",
    ),
    "scales that are not": (change("settings", bin_width=None), r"nll of shape \(5, 48\), not"),
    "count": (tampered(count="many"), "must be a fastsample profile"),
    "no shape": (tampered(shape=None), "must be a fastsample profile"),
    "no times": (tampered(times=None), "must be a fastsample profile"),
    "fewer times": (tampered(times=np.array([1.0, 2.0])), r"error of shape \(5,\), not \(2,\)"),
    "no errors": (tampered(error=None), "must be a fastsample profile"),
    "float32 errors": (tampered(error=np.zeros(5, np.float32)), "must be a fastsample profile"),
    "half the trajectories": (tampered(trajectory_states=None), "must be a fastsample profile"),
    "trajectories of other times": (
        tampered(trajectory_states=np.zeros((3, 3))),
        "must be a fastsample profile",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_no_profile(tmp_path, name):
    write, match = FILES[name]
    path = tmp_path / "profile"
    write(path)
    check_refusal(lambda: fs.Profile.load(path), ValueError, f"Profile.load: .*{match}")


@refusals(
    paths={
        "missing": (
            lambda: fs.Profile.load("nowhere.safetensors"),
            FileNotFoundError,
            r"Profile\.load: path must name a file, got nowhere\.safetensors",
        ),
        "a folder": (lambda: fs.Profile.load("."), FileNotFoundError, r"must name a file, got \."),
    }
)
def test_no_file(call, error, match):
    check_refusal(call, error, match)
