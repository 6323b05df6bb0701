"""``fastsample profile | plan | bpd``: the library's numbers, and files that can be used."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.cli.planning import _even_times
from tests.helpers.cli_cases import MEASURE, digits_file, run
from tests.helpers.diagonal import SMALL
from tests.helpers.networks import denoiser, halve
from tests.helpers.profile_cases import TIMES, assert_same, levels

DIGITS = fs.load("digits")
NULL = DIGITS.uncond


@pytest.fixture
def data(tmp_path):
    return digits_file(tmp_path)


@pytest.fixture(scope="module")
def digits():
    """The real images; scikit-learn takes its time to import."""
    pytest.importorskip("sklearn")
    from fastsample.bundled.datasets import digits_data

    return digits_data()


@pytest.fixture(scope="module")
def image():
    """Pillow, and matplotlib loaded."""
    pytest.importorskip("matplotlib.figure")
    return pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A profile on disk, with trajectories and without, and of continuous data."""
    folder, model = tmp_path_factory.mktemp("profiles"), denoiser(halve, 3, clip=1.0)
    for name, count in (("lines", 4), ("none", 0)):
        result = fs.profile(model, levels(8, 3), times=TIMES, trajectories=count)
        result.save(folder / name)
    SMALL.profile().save(folder / "small")
    return folder


# ---- profile ----

OPTIONS = {"times": [1, 501, 1000], "batch_size": 2, "trajectories": 1, "cond": NULL}


def test_profile_equals_the_library_call(data, tmp_path, capsys):
    path, x = data
    out = tmp_path / "folder" / "p"
    assert run(f"{MEASURE} --num 4 --seed 5 --nodes 4 --quiet", path, out) == 0
    expected = fs.profile(DIGITS, x[:4], **OPTIONS, bin_width=1 / 8, seed=5, nodes=4)
    assert_same(fs.Profile.load(out), expected, tolerance=0.0)
    printed = capsys.readouterr()
    # Two batches and one trajectory, at three times each.
    assert re.search(r"4 samples, 3 times, 10 network calls, [0-9.]+ s: ", printed.out)
    assert str(out.resolve()) in printed.out
    bits = expected.prior / (64 * np.log(2.0))
    assert f"1 trajectories, prior {bits:.4f} bits/dim" in printed.out
    for t, error in zip((1, 501, 1000), expected.error / 64, strict=True):
        assert re.search(rf"^ +{t}  {error:.4g} \+- ", printed.out, re.MULTILINE)
    assert printed.err == ""


def test_profile_goes_on_with_a_file(data, tmp_path, capsys):
    path, x = data
    out = tmp_path / "p"
    assert run(f"{MEASURE} --num 2 --quiet", path, out) == 0
    assert run(MEASURE, path, out) == 0
    printed = capsys.readouterr()
    assert "6 samples (2 of them from an earlier run), 3 times, 7 network calls" in printed.out
    assert "6/9" in printed.err  # the progress
    expected = fs.profile(DIGITS, x, **OPTIONS, bin_width=1 / 8)
    assert_same(fs.Profile.load(out), expected, tolerance=1e-12)


def test_an_interrupted_profile_keeps_its_batches(data, tmp_path, capsys, monkeypatch):
    path, x = data
    out, save = tmp_path / "p", fs.Profile.save

    def stopped(profile, target):
        save(profile, target)
        if profile.count == 4:
            raise KeyboardInterrupt
        return target

    with monkeypatch.context() as patch:
        patch.setattr(fs.Profile, "save", stopped)
        assert run(f"{MEASURE} --quiet", path, out) == 130
    assert "stopped" in capsys.readouterr().err
    assert fs.Profile.load(out).count == 4
    assert run(f"{MEASURE} --quiet", path, out) == 0
    expected = fs.profile(DIGITS, x, **OPTIONS, bin_width=1 / 8)
    assert_same(fs.Profile.load(out), expected, tolerance=1e-12)


@pytest.mark.parametrize(("name", "part"), [("digits", 0), ("digits-test", 2)])
def test_profile_of_the_digits(name, part, digits, tmp_path):
    out = tmp_path / "p"
    small = f"profile digits {name} --num 3 --times 2 --trajectories 0 --quiet --out {{0}}"
    assert run(small, out) == 0
    expected = fs.profile(
        DIGITS, digits[part][:3], times=[1, 1000], trajectories=0, bin_width=1 / 8, cond=NULL
    )
    assert_same(fs.Profile.load(out), expected, tolerance=0.0)


@pytest.mark.filterwarnings("ignore:.* data must be on the decoder's bins:UserWarning")
@pytest.mark.parametrize(("text", "width"), [("none", None), ("0.25", 0.25), (None, None)])
def test_bin_widths_of_a_file(text, width, data, tmp_path):
    given = "" if text is None else f"--bin-width {text}"
    command = f"profile digits {{0}} --out {{1}} --times 2 --num 1 --trajectories 0 {given} --quiet"
    assert run(command, data[0], tmp_path / "p") == 0
    assert fs.Profile.load(tmp_path / "p").settings.bin_width == width


def test_even_times():
    schedule = fs.NoiseSchedule.linear(1000)
    assert _even_times(schedule, None) is None
    for count in range(2, 1001):
        times = _even_times(schedule, count)
        assert (len(times), times[0], times[-1]) == (count, 1.0, 1000.0)
        assert np.all(np.diff(times) >= np.floor(999 / (count - 1)))
    assert _even_times(fs.NoiseSchedule.flow(), 4).tolist() == [0.25, 0.5, 0.75, 1.0]


# ---- plan ----


@pytest.mark.parametrize(
    ("file", "options", "objective", "arguments"),
    [
        ("lines", "", "trajectory", {}),
        ("none", "", "mse", {}),
        ("lines", "--objective mse", "mse", {}),
        ("small", "--variance large", "elbo", {"variance": "large"}),
        ("lines", "--objective elbo --decoder respaced", "elbo", {"decoder": "respaced"}),
    ],
)
def test_plan_prints_and_writes_the_best_grids(
    file, options, objective, arguments, stored, tmp_path, capsys
):
    out = tmp_path / "folder" / "grids.json"
    assert run(f"plan {{0}} --steps 2 4 {options} --out {{1}}", stored / file, out) == 0
    profile = fs.Profile.load(stored / file)
    table = profile.costs(objective, **arguments)
    printed = capsys.readouterr().out
    result = json.loads(out.read_text())
    assert result["objective"] == objective
    assert fs.NoiseSchedule.from_dict(result["schedule"]) == profile.schedule
    assert list(result["grids"]) == ["2", "4"]
    for steps in (2, 4):
        grid = table.best_grid(steps)
        assert fs.Grid(result["grids"][str(steps)]) == grid
        bound = ""
        if objective == "elbo":  # "small" has no bins.
            bound = f", {table.nats_per_dim(grid):.4f} nats/dim"
            if file != "small":
                bound = f", {table.bits_per_dim(grid):.4f} bits/dim"
        times = " ".join(f"{t:g}" for t in grid)
        assert f"{steps} steps: cost {table.cost(grid):.6g}{bound}\n  {times}\n" in printed
    assert repr(profile) in printed
    assert str(out.resolve()) in printed


def test_planned_times_are_steps_for_sample(tmp_path):
    out = tmp_path / "grids.json"
    assert run("plan digits --steps 3 --out {0}", out) == 0
    times = json.loads(out.read_text())["grids"]["3"]
    assert fs.Grid(times) == DIGITS.profile.costs("trajectory").best_grid(3)
    x = fs.sample(DIGITS, steps=times, method="ddim", seed=0)
    assert torch.equal(x, fs.sample(DIGITS, 3, method="ddim", grid="auto", seed=0))


def test_plan_at_most_says_how_many(stored, capsys):
    assert run("plan {0} --steps 2 20 --at-most --objective elbo", stored / "small") == 0
    table = SMALL.profile().costs("elbo")
    printed = capsys.readouterr().out
    for steps in (2, 20):
        taken = len(table.best_grid(steps, at_most=True))
        assert f"at most {steps} steps ({taken} taken): cost" in printed


@pytest.mark.parametrize("file", ["lines", "small"])
def test_plan_draws(file, image, stored, tmp_path, capsys):
    picture = tmp_path / "folder" / "plan.png"
    assert run("plan {0} --steps 2 3 --picture {1}", stored / file, picture) == 0
    assert str(picture) in capsys.readouterr().out
    pixels = np.asarray(image.open(picture).convert("L"))
    assert pixels.shape[1] >= 1000
    assert np.ptp(pixels) > 200


# ---- bpd ----


def test_bpd_equals_the_library_call(data, capsys):
    path, x = data
    command = "bpd digits {0} --steps 4 --grid quadratic --variance small --bin-width 1/8 --num 5"
    assert run(f"{command} --seed 3 --batch-size 3 --terms --quiet", path) == 0
    expected = fs.bits_per_dim(
        DIGITS,
        x[:5],
        4,
        grid="quadratic",
        variance="small",
        bin_width=1 / 8,
        seed=3,
        batch_size=3,
        cond=NULL,
    )
    printed = capsys.readouterr()
    first, second, *terms, last = printed.out.splitlines()
    assert first == f"{expected.total:.4f} +- {expected.standard_error:.4f} bits/dim"
    parts = (expected.prior, expected.kl, expected.decoder)
    assert second == "prior {:.4f}, kl {:.4f}, decoder {:.4f}".format(*parts)
    rows = [re.split(r" -> | +", line.strip()) for line in terms]
    assert [float(t) for t, _, _ in rows] == expected.grid.times[:-1].tolist()
    assert [float(s) for _, s, _ in rows] == expected.grid.times[1:].tolist()
    np.testing.assert_allclose([float(term) for *_, term in rows], expected.terms, atol=5e-7)
    assert last.startswith("5 samples, 4 steps, 8 network calls, ")
    assert printed.err == ""


@pytest.mark.filterwarnings("ignore:.* data must be on the decoder's bins:UserWarning")
@pytest.mark.parametrize(("text", "steps"), [("", None), ("--steps all", None), ("--steps 3", 3)])
def test_bpd_takes_every_step_unless_told(text, steps, data, capsys, monkeypatch):
    real, asked = fs.bits_per_dim, []

    def few(model, x, steps, **options):
        asked.append(steps)
        return real(model, x, 2, **options)

    monkeypatch.setattr(fs, "bits_per_dim", few)
    assert run(f"bpd digits {{0}} {text} --num 1", data[0]) == 0
    assert asked == [steps]
    printed = capsys.readouterr()
    assert "->" not in printed.out  # the terms only when asked for
    assert "bits_per_dim" in printed.err  # the progress


def test_a_plan_of_all_times_is_no_choice(data, tmp_path, capsys):
    out = tmp_path / "p"
    assert run(f"{MEASURE} --num 2 --quiet", data[0], out) == 0
    capsys.readouterr()
    assert run("plan {0} --steps 3 --objective mse", out) == 0
    assert "no choice: these are all times of the profile; measure more" in capsys.readouterr().out
    assert run("plan {0} --steps 2 --objective mse", out) == 0
    assert "no choice" not in capsys.readouterr().out


# ---- data without bins ----


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".npy", torch.float32), (".pt", torch.float32), (".pt", torch.bfloat16)],
)
def test_files_of_latents(suffix, dtype, tmp_path, capsys):
    """Any range: the profile has no bins by itself, the bound in nats has to be asked for."""
    x = (5.0 * torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))).to(dtype)
    path, out = tmp_path / f"x{suffix}", tmp_path / "p"
    if suffix == ".npy":
        np.save(path, x.float().numpy())
    else:
        torch.save(x, path)
    options = "--times 3 --trajectories 1 --batch-size 2 --quiet"
    assert run(f"profile digits {{0}} --out {{1}} {options}", path, out) == 0
    expected = fs.profile(DIGITS, x.float(), **OPTIONS, bin_width=None)
    assert_same(fs.Profile.load(out), expected)
    nats = expected.prior / 64
    assert (
        f"1 trajectories, prior {nats:.4f} nats/dim; data without bins" in capsys.readouterr().out
    )
    assert run("plan {0} --steps 2 --objective elbo", out) == 0
    table = expected.costs("elbo")
    bound = f"{table.nats_per_dim(table.best_grid(2)):.4f} nats/dim"
    assert bound in capsys.readouterr().out

    assert run("bpd digits {0} --steps 3 --quiet", path) == 2
    assert "without bins need bin_width=None, for a bound in nats" in capsys.readouterr().err
    assert run("bpd digits {0} --steps 3 --bin-width none --quiet", path) == 0
    found = fs.bits_per_dim(DIGITS, x.float(), 3, bin_width=None, cond=NULL)
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"{found.total:.4f} +- {found.standard_error:.4f} nats/dim"
