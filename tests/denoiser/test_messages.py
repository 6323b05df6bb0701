"""Messages that name the remedy, for mistakes that users make."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch

import fastsample as fs
from tests.helpers.networks import LINEAR, denoiser
from tests.helpers.refusals import START, bare, check_refusal, refusals, sample, wrap

PLAN = fs.ddim(LINEAR, fs.grids.uniform(1000, 3))
labelled = denoiser(lambda x, t, y: 0.5 * x, 2, 3)


def nested():
    return torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(2, 3)])


TABLE = {
    "num_samples beyond any memory": (
        sample(num_samples=2**63),
        ValueError,
        r"sample: num_samples must be at most 2\^48, .*, got 9223372036854775808; draw many",
    ),
    "sparse start": (
        sample(start=START.to_sparse()),
        TypeError,
        r"sample: start must be a dense tensor, got torch\.sparse_coo; pass start\.to_dense\(\)",
    ),
    "nested start": (
        lambda: sample(start=nested())(),
        TypeError,
        r"sample: start must be a dense tensor, got a nested tensor; pass start\.to_padded_tensor",
    ),
    "sparse condition": (
        sample(labelled, cond={"y": torch.eye(2).to_sparse()}),
        TypeError,
        r"sample: cond\['y'\] must be a dense tensor, got torch\.sparse_coo; pass a list of one "
        r"tensor per sample, or fs\.shared\(value\)",
    ),
    "nested condition": (
        lambda: sample(labelled, cond={"y": nested()})(),
        TypeError,
        r"sample: cond\['y'\] must be a dense tensor, got a nested tensor; pass a list",
    ),
    "betas as a schedule": (
        wrap(schedule=np.linspace(1e-4, 0.02, 50)),
        TypeError,
        r"Denoiser: schedule must be a NoiseSchedule, got array\(.*; of betas pass "
        r"NoiseSchedule\.from_betas\(betas\)",
    ),
    "betas of torch": (bare(schedule=torch.ones(3) / 9), TypeError, r"from_betas\(betas\)"),
    "a schedule by name": (wrap(schedule="cosine"), TypeError, r"such as NoiseSchedule\.linear"),
    "a dtype by name": (
        sample(dtype="float32"),
        TypeError,
        r"sample: dtype must be one of .*, got float32; pass torch\.float32",
    ),
    "times as a grid": (
        sample(grid=[1000, 500, 0]),
        ValueError,
        r"sample: grid must be one of .*, got \[1000, 500, 0\]; pass times as steps= instead",
    ),
    "a Grid as a grid": (sample(grid=fs.Grid([9, 0])), ValueError, r"pass times as steps= instead"),
    "an unknown keyword": (
        sample(guide=2.0),
        TypeError,
        r"sample: keyword arguments must be those of sample or knobs of a method, got guide=2",
    ),
    "swapped arguments of save_plans": (
        lambda: fs.save_plans([PLAN], "plans.json"),
        TypeError,
        r"save_plans: path must be a path, got list; the path comes first: save_plans\(path, plans",
    ),
    "a path that is none": (lambda: fs.save_plans(3, [PLAN]), TypeError, r"be a path, got int$"),
    "too many steps": (
        lambda: fs.NoiseSchedule.cosine(10**12),
        ValueError,
        r"NoiseSchedule\.cosine: num_steps must be in \[1, 10000000\], got 1000000000000",
    ),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@refusals(table=TABLE)
def test_refused(call, error, match):
    check_refusal(call, error, match)


def test_plans_of_too_many_steps_are_refused_before_memory_is_taken():
    """A plan of any origin whose schedule asks for 10^12 steps; the checksum covers it."""
    schedule = fs.NoiseSchedule.scaled_linear(100)
    text = fs.ddim(schedule, fs.grids.uniform(100, 3)).to_json()
    with pytest.raises(
        ValueError, match=r"Plan\.from_json: text must be a plan written by to_json"
    ):
        fs.Plan.from_json(text.replace('"num_steps": 100', '"num_steps": 1000000000000'))
    data = {**schedule.to_dict(), "num_steps": 10**12}
    with pytest.raises(ValueError, match="must be at most 10000000, got 1000000000000"):
        fs.NoiseSchedule.from_dict(data)


@pytest.mark.parametrize("save", [torch.save, safetensors.torch.save_file])
def test_a_file_of_ones_own_is_no_model_file(save, tmp_path):
    path = tmp_path / "mine"
    save({"w": torch.ones(1)}, path)
    with pytest.raises(
        ValueError,
        match=r'^load: name must be "digits" or a model file that `fastsample train` wrote, got '
        r".*mine.*; load the weights of your own network into it, and pass fs\.Denoiser\(network",
    ):
        fs.load(path)


@pytest.mark.parametrize("label", [-1, 11])
def test_labels_out_of_range(label):
    model = fs.load("digits")
    with pytest.raises(
        ValueError, match=rf"^DigitsUNet: y must be in \[0, 10\], got {label}; 10 means no label"
    ):
        fs.sample(model, 3, cond={"y": [3, label]})
