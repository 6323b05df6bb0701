"""``fastsample train``: from nothing, fine-tuning for few steps, going on; and its files."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fastsample as fs
from fastsample.bundled.checkpoint import load_checkpoint
from fastsample.bundled.digits import DigitsUNet
from fastsample.bundled.recipes import recipe_of
from fastsample.bundled.swirl import SwirlNet
from fastsample.cli.main import main
from fastsample.training import FidelityLoss, Trainer
from fastsample.training.trainer import checkpoints
from tests.helpers.training_cases import lines


def train(model, out, *options):
    arguments = ["--out", str(out), "--quiet", *map(str, options)]
    return main(["train", str(model), *arguments])


@pytest.fixture(scope="module")
def swirl(tmp_path_factory):
    """A folder with a swirl model of three iterations."""
    folder = tmp_path_factory.mktemp("swirl")
    assert train("swirl", folder, "--iterations", 3, "--batch-size", 64) == 0
    return folder


def test_a_model_from_nothing(swirl, capsys):
    assert [line["iteration"] for line in lines(swirl)] == [0, 1, 2]
    model = fs.load(swirl / "model.safetensors")
    assert isinstance(model.model, SwirlNet)
    assert not model.model.training
    assert model.time == "log_snr"
    recipe = recipe_of("swirl")
    assert model.schedule != recipe.denoiser.schedule  # it has learned its ends
    assert model.schedule.kind == "vdm"
    run = Trainer(
        recipe.denoiser, recipe.data, loss=recipe.loss, optimizer=recipe.optimizer, batch_size=64
    )
    expected = run.run(3)
    assert model.schedule == expected.schedule
    mine, theirs = model.model.state_dict(), expected.model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    samples = fs.sample(model, 4, num_samples=3, seed=0)
    assert torch.equal(samples, fs.sample(expected, 4, num_samples=3, seed=0))
    assert samples.isfinite().all()


def test_going_on(swirl, tmp_path, capsys):
    options = ["--batch-size", 64, "--save-every", 2]
    assert train("swirl", tmp_path, "--iterations", 2, *options) == 0
    assert "2 iterations (" in capsys.readouterr().out
    assert train("swirl", tmp_path, "--iterations", 3, "--resume", *options) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("3 iterations (")
    assert "s for 1)" in printed
    assert str(tmp_path / "model.safetensors") in printed
    one, other = (load_checkpoint(path / "model.safetensors") for path in (swirl, tmp_path))
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    assert one[1] == other[1]
    assert lines(tmp_path) == lines(swirl)
    assert train("swirl", tmp_path, "--iterations", 1, "--resume", *options) == 0  # nothing to do
    assert "3 iterations (0 s for 0)" in capsys.readouterr().out


def test_fine_tuning_for_few_steps(swirl, tmp_path):
    model = swirl / "model.safetensors"
    options = ["--steps", 4, "--iterations", 2, "--batch-size", 32, "--subset", 16]
    assert train(model, tmp_path, *options) == 0
    result = lines(tmp_path)
    assert [len(line["times"]) for line in result] == [4, 4]
    assert all(line["fidelity"] > 0 for line in result)
    assert checkpoints.newest(tmp_path).notes["detector"]["updates"] == 2
    tuned = fs.load(tmp_path / "model.safetensors")
    assert fs.sample(tuned, 4, num_samples=2).shape == (2, 2)
    before = fs.load(model)
    assert not torch.equal(tuned.model.dense1.weight, before.model.dense1.weight)
    # Drawn from: the command line's own sampler takes the file as well.
    picture = tmp_path / "x.npy"
    arguments = ["--num", "3", "--steps", "4", "--out", str(picture), "--quiet"]
    assert main(["sample", str(tmp_path / "model.safetensors"), *arguments]) == 0
    assert picture.exists()


def test_every_option_reaches_the_term(swirl, tmp_path, monkeypatch):
    seen = []

    class Watched(Trainer):
        def __init__(self, *args, **options):
            seen.append(options)
            super().__init__(*args, **options)

    monkeypatch.setattr("fastsample.bundled.recipes.Trainer", Watched)
    text = """--steps 2,3 --method ancestral --grid random --distance mmd --start paired
    --gradient last --last-rows 2 --checkpoint --subset 8 --fidelity-lr 0.01 --seed 5
    --iterations 1 --batch-size 16 --lr 0.5 --ema 0.5 --precision bfloat16 --save-every 9"""
    assert train(swirl / "model.safetensors", tmp_path, *text.split()) == 0
    (options,) = seen
    recipe = recipe_of(swirl / "model.safetensors")
    term = options["fidelity"]
    assert term.lr == 0.01
    assert options["optimizer"] == replace(recipe.optimizer, lr=0.5)
    assert repr(term.loss) == (
        "FidelityLoss((2, 3), method='ancestral', grid='random', distance='mmd', start='paired', "
        "gradient='last', subset=8, chains=1, seed=5, last_rows=2)"
    )
    assert term.loss.path == ("last", 2, True)
    wanted = {"seed": 5, "batch_size": 16, "ema": 0.5}
    wanted |= {"precision": "bfloat16", "save_every": 9, "resume": False, "progress": False}
    assert {name: options[name] for name in wanted} == wanted
    train(swirl / "model.safetensors", tmp_path / "2", "--steps", 3, "--iterations", 0)
    assert repr(seen[1]["fidelity"].loss) == repr(FidelityLoss(3, **recipe.fidelity))
    assert seen[1]["fidelity"].lr == recipe.fidelity_lr
    assert seen[1]["optimizer"] == recipe.optimizer


@pytest.mark.parametrize(
    ("options", "subset"),
    [
        ([], 32),
        (["--start", "paired"], 16),  # the other half is what they are compared with
        (["--start", "noised", "--distance", "mse"], 32),
        (["--subset", "8"], 8),
    ],
)
def test_the_recipe_s_subset_fits_a_small_batch(swirl, tmp_path, monkeypatch, options, subset):
    seen = []
    original = FidelityLoss.__call__

    def watched(self, *args, **given):
        seen.append(self.subset)
        return original(self, *args, **given)

    monkeypatch.setattr(FidelityLoss, "__call__", watched)
    arguments = ["--steps", 3, "--iterations", 1, "--batch-size", 32, *options]
    assert train(swirl / "model.safetensors", tmp_path, *arguments) == 0
    assert seen == [subset]


def test_the_digits_model(tmp_path):
    options = ["--steps", 2, "--iterations", 1, "--batch-size", 8, "--subset", 4]
    assert train("digits", tmp_path, *options) == 0
    model = fs.load(tmp_path / "model.safetensors")
    assert isinstance(model.model, DigitsUNet)
    start = fs.load("digits")
    for name in ("schedule", "shape", "prediction", "variance", "clip", "uncond"):
        assert getattr(model, name) == getattr(start, name), name
    assert model.profile is None
    # The chain that it was trained for: DDIM on the best times of the model's profile.
    assert model.plans == {2: fs.ddim(model.schedule, start.profile.best_grid(2), clip=model.clip)}
    images = fs.sample(model, 3, num_samples=2, cond={"y": torch.tensor([1, 2])}, guidance=2.0)
    assert images.shape == (2, 1, 8, 8)
    # Pixels beside labels do not fit a paired distance; it sees the pixels.
    paired = ["--distance", "mse", "--start", "noised"]
    assert train("digits", tmp_path / "paired", *options, *paired) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--subset", "8"], "--steps must be given with --subset, got none"),
        (["--subset", "0"], "--steps must be given with --subset, got none"),
        (["--distance", "mmd"], "--steps must be given with --distance, got none"),
        (["--last-rows", "2"], "--steps must be given with --last-rows, got none"),
        (["--checkpoint"], "--steps must be given with --checkpoint, got none"),
        (["--fidelity-lr", "1"], "--steps must be given with --fidelity-lr, got none"),
        (["--steps", "3", "--distance", "mse"], "start must come from x0"),
        (["--steps", "0"], "steps must be"),
        (["--steps", "3", "--fidelity-lr", "-1"], "FidelityTerm: lr must be positive, got -1"),
        (["--lr", "-1"], "Optimizer: lr must be positive, got -1"),
        (["--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["--device", "abacus"], "device must be"),
    ],
)
def test_wrong_combinations(options, message, tmp_path, capsys):
    assert train("swirl", tmp_path, "--iterations", 1, *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastsample train: error: ")
    assert message in error
    assert list(tmp_path.glob("*.safetensors")) == []


@pytest.mark.parametrize(
    "options",
    [["--steps", "a"], ["--steps", "3,"], ["--distance", "l2"], ["--precision", "float32"]],
)
def test_options_that_cannot_be_read(options, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        train("swirl", tmp_path, *options)
    assert stopped.value.code == 2
    assert "usage: fastsample train" in capsys.readouterr().err


def test_models_and_folders_that_do_not_fit(swirl, tmp_path, capsys):
    assert train("none", tmp_path) == 1
    assert 'model must be "swirl", "digits" or a file, got \'none\'' in capsys.readouterr().err
    (tmp_path / "foreign").write_bytes(b"nothing")
    assert train(tmp_path / "foreign", tmp_path) == 2
    options = ["--iterations", 4, "--batch-size", 64]
    assert train("swirl", swirl, *options) == 2
    assert "pass resume=True to go on" in capsys.readouterr().err
    assert train("swirl", swirl, *options, "--resume", "--seed", 1) == 2
    assert "with seed 0 instead of 1" in capsys.readouterr().err


def test_resuming_nothing_is_told(tmp_path, capsys):
    options = ["--iterations", 2, "--batch-size", 8]
    assert train("swirl", tmp_path / "new", *options, "--resume") == 0
    message = f"train: {tmp_path / 'new'} must hold a checkpoint for --resume, got none; training"
    assert message in capsys.readouterr().err
    assert train("swirl", tmp_path / "new", *options, "--resume") == 0
    assert "must hold a checkpoint" not in capsys.readouterr().err
