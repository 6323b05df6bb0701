"""The bundled digits model and the checkpoint format."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from fastsample._support import files
from fastsample.bundled.checkpoint import load_checkpoint, save_checkpoint
from fastsample.bundled.digits import DigitsUNet, load_digits_model
from fastsample.schedules.schedule import NoiseSchedule
from tests.helpers.stored import stored

# Ten images that the model never saw (one per digit, in the test split of
# examples/train_digits.py) and the mean image of each digit in the training split, levels 0..16;
# from scikit-learn's copy of the UCI "Optical Recognition of Handwritten Digits" data (CC BY 4.0).
DATA = stored("digits")
IMAGES = torch.tensor(DATA["unseen"]).reshape(10, 1, 8, 8) / 8 - 1
MEANS = torch.tensor(DATA["means"]).reshape(10, 1, 8, 8) / 8 - 1
LABELS = torch.arange(10)
CUT_OFF = r"must be a file of save_checkpoint, got .* \(cut off, or no safetensors file: "
BOUNDS = {10: 0.23, 100: 0.56, 300: 0.24, 500: 0.11, 700: 0.042}  # time -> mean squared error


@pytest.fixture(scope="module")
def loaded() -> tuple[DigitsUNet, dict]:
    """The bundled model and its metadata."""
    return load_digits_model()


@pytest.fixture(scope="module")
def digits(loaded: tuple[DigitsUNet, dict]) -> DigitsUNet:
    """The bundled model."""
    return loaded[0]


@pytest.fixture(scope="module")
def bundled() -> bytes:
    """The bundled file."""
    return (resources.files("fastsample.bundled") / "digits.safetensors").read_bytes()


@pytest.fixture(scope="module")
def schedule(loaded: tuple[DigitsUNet, dict]) -> NoiseSchedule:
    """The schedule that the model was trained with."""
    return NoiseSchedule.from_dict(loaded[1]["schedule"])


# ---- the network


@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shape_dtype_and_layout(batch: int, dtype: torch.dtype, layout: torch.memory_format):
    model = DigitsUNet(16).eval().to(dtype=dtype, memory_format=layout)
    x = torch.zeros(batch, 1, 8, 8, dtype=dtype).to(memory_format=layout)
    out = model(x, torch.tensor(3), torch.zeros(batch, dtype=torch.int64))
    assert out.shape == (batch, 2, 8, 8)
    assert out.dtype == dtype
    assert out.isfinite().all()


def test_bfloat16_stays_near_float32(digits: DigitsUNet) -> None:
    low = load_digits_model()[0].to(torch.bfloat16)
    t = torch.full((10,), 500)
    with torch.inference_mode():
        difference = low(IMAGES.bfloat16(), t, LABELS).float() - digits(IMAGES, t, LABELS)
    assert difference.square().mean().sqrt() < 0.05


def test_none_is_the_null_class(digits: DigitsUNet) -> None:
    t = torch.full((10,), 400)
    with torch.inference_mode():
        free = digits(IMAGES, t)
        assert torch.equal(free, digits(IMAGES, t, torch.full((10,), digits.null_class)))
        assert not torch.allclose(free, digits(IMAGES, t, LABELS), atol=1e-2)


def test_one_time_or_label_serves_all_samples(digits: DigitsUNet) -> None:
    with torch.inference_mode():
        many = digits(IMAGES, torch.full((10,), 77), torch.full((10,), 4))
        assert torch.equal(many, digits(IMAGES, torch.tensor(77), torch.tensor(4)))
        assert torch.equal(many, digits(IMAGES, 77, 4))


def test_times_are_not_rounded(digits: DigitsUNet) -> None:
    with torch.inference_mode():
        whole = digits(IMAGES, torch.full((10,), 50))
        assert torch.equal(whole, digits(IMAGES, torch.full((10,), 50.0)))
        half = digits(IMAGES, torch.full((10,), 50.5))
        after = digits(IMAGES, torch.full((10,), 51))
    near, far = (half - whole).norm(), (after - whole).norm()
    assert 0.2 * far < near < 0.8 * far


def test_a_sample_does_not_depend_on_its_batch(digits: DigitsUNet) -> None:
    t = torch.arange(10) * 100
    with torch.inference_mode():
        together = digits(IMAGES, t, LABELS)
        alone = digits(IMAGES[3:4], t[3:4], LABELS[3:4])
    torch.testing.assert_close(together[3:4], alone, rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training_only() -> None:
    model = DigitsUNet(16, dropout=0.5)
    for block in (model.low2, model.leave):
        torch.nn.init.normal_(block.conv2.weight if block is model.low2 else block[2].weight)
    assert not torch.equal(model(IMAGES, 9), model(IMAGES, 9))
    model.eval()
    assert torch.equal(model(IMAGES, 9), model(IMAGES, 9))


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((torch.zeros(2, 8, 8), 1), ValueError, r"x must have the shape \(B, 1, 8, 8\)"),
        ((torch.zeros(2, 1, 9, 8), 1), ValueError, r"x must .*, got \(2, 1, 9, 8\)"),
        ((torch.zeros(2, 1, 8, 8), torch.zeros(3)), ValueError, r"t must .* \(2,\) or \(\), got"),
        ((torch.zeros(2, 1, 8, 8), 1, torch.zeros(1, dtype=torch.int64)), ValueError, "y must"),
        ((torch.zeros(2, 1, 8, 8), 1, torch.zeros(2)), TypeError, "y must be integer labels"),
    ],
)
def test_wrong_inputs(args: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"DigitsUNet: {message}"):
        DigitsUNet(8)(*args)


@pytest.mark.parametrize("knobs", [{"channels": 20}, {"channels": 0}, {"embedding": 7}])
def test_wrong_widths(knobs: dict) -> None:
    with pytest.raises(ValueError, match=r"DigitsUNet: (channels|embedding) must be"):
        DigitsUNet(**knobs)


# ---- the bundled weights


def test_size(digits: DigitsUNet, bundled: bytes) -> None:
    assert 300_000 < sum(p.numel() for p in digits.parameters()) <= 1_000_000
    assert len(bundled) <= 2_500_000
    assert not digits.training
    assert {p.dtype for p in digits.parameters()} == {torch.float32}


def test_metadata(loaded: tuple[DigitsUNet, dict], schedule: NoiseSchedule) -> None:
    model, metadata = loaded
    expected = {
        "model": "DigitsUNet",
        "shape": [1, 8, 8],
        "data_range": [-1.0, 1.0],
        "clip": 1.0,
        "prediction": "epsilon",
        "variance": "learned_range",
        "num_classes": 10,
        "null_class": 10,
        "bin_width": 0.125,
    }
    assert {key: metadata[key] for key in expected} == expected
    assert metadata["config"] == model.config
    assert schedule.num_steps == 1000


def test_weights_tell_noise_from_unseen_digits(digits: DigitsUNet, schedule: NoiseSchedule) -> None:
    """Without training the error is 1; the bounds leave a fifth above what was measured."""
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((10, 1, 8, 8))).float()
    for t, bound in BOUNDS.items():
        x_t = float(schedule.alpha(t)) * IMAGES + float(schedule.sigma(t)) * noise
        index = torch.full((10,), t - 1)
        with torch.inference_mode():
            right, wrong = (
                float((digits(x_t, index, y)[:, :1] - noise).square().mean())
                for y in (LABELS, LABELS.roll(1))
            )
        assert right < bound, t
        assert t < 300 or right < wrong, t


def test_ten_steps_make_the_digit_that_was_asked_for(
    digits: DigitsUNet, schedule: NoiseSchedule
) -> None:
    """DDIM with 10 even steps; the mean image nearest to a sample names its digit."""
    labels = LABELS.repeat(10)
    times = np.linspace(1000, 0, 11)
    alpha, sigma = (f(times).tolist() for f in (schedule.alpha, schedule.sigma))
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((100, 1, 8, 8))).float()
    with torch.inference_mode():
        for k, t in enumerate(times[:-1]):
            noise = digits(x, torch.tensor(t - 1), labels)[:, :1]
            x0 = ((x - sigma[k] * noise) / alpha[k]).clamp(-1, 1)
            noise = (x - alpha[k] * x0) / sigma[k]
            x = alpha[k + 1] * x0 + sigma[k + 1] * noise
    nearest = torch.cdist(x.flatten(1), MEANS.flatten(1)).argmin(1)
    # Nearest-mean names 9 in 10 real digits correctly, so more cannot be asked of samples.
    assert (nearest == labels).float().mean() > 0.85


def test_loads_without_scikit_learn(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from fastsample.bundled.digits import load_digits_model\n"
        "print(load_digits_model()[1]['model'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "DigitsUNet"


# ---- checkpoint files


def test_round_trip(tmp_path: Path) -> None:
    model, path = DigitsUNet(8), tmp_path / "model.safetensors"
    save_checkpoint(path, model, {"a": [1, 2.5, None]}, dtype=torch.float32)
    state, metadata = load_checkpoint(str(path))
    assert metadata == {"a": [1, 2.5, None]}
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value)


def test_half_precision_and_integers(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weights = {"w": torch.tensor([1.0, 1 / 3]), "n": torch.tensor(7), "none": torch.zeros(0, 3)}
    save_checkpoint(path, weights, {})
    state, _ = load_checkpoint(path)
    assert state["w"].dtype == torch.float32
    assert torch.equal(state["w"], weights["w"].half().float())
    assert torch.equal(state["n"], weights["n"])
    assert state["none"].shape == (0, 3)


def test_the_same_weights_make_the_same_file(tmp_path: Path) -> None:
    model = DigitsUNet(8)
    for name in ("a", "b"):
        save_checkpoint(tmp_path / name, model, {"x": 1, "y": 2})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, {"w": torch.ones(2)}, {"old": True})

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {"w": torch.zeros(2)}, {"old": False})
    assert load_checkpoint(path)[1] == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("value", [{"a": object()}, {"a": float("nan")}])
def test_metadata_must_fit_into_json(tmp_path: Path, value: dict) -> None:
    with pytest.raises(TypeError, match="save_checkpoint: metadata must fit into JSON"):
        save_checkpoint(tmp_path / "x", {"w": torch.ones(1)}, value)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5000, -1])
def test_truncated_file(bundled: bytes, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(bundled[:keep])
    with pytest.raises(ValueError, match=CUT_OFF):
        load_digits_model(path)


def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "flip.safetensors"
    save_checkpoint(path, {"w": torch.arange(5.0), "b": torch.ones(2, 2)}, {"key": "value"})
    data = path.read_bytes()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="load_checkpoint: "):
            load_checkpoint(path)


def test_a_flipped_weight_is_noticed(bundled: bytes, tmp_path: Path) -> None:
    path = tmp_path / "flip.safetensors"
    damaged = bytearray(bundled)
    damaged[-1000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"got .*flip.safetensors \(damaged: its checksum is not"):
        load_digits_model(path)


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    torch.save({"w": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=CUT_OFF):
        load_checkpoint(path)
    safetensors.torch.save_file({"w": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r'save_checkpoint, got .* \(no "format": "fastsample.che'):
        load_checkpoint(path)
    header = {"fastsample-checkpoint": '{"version": 3, "metadata": {}, "sha256": ""}'}
    safetensors.torch.save_file({"w": torch.ones(1)}, path, header)
    with pytest.raises(ValueError, match=r"\(version 3, made by a newer fastsample; upgr"):
        load_checkpoint(path)
    safetensors.torch.save_file({"w": torch.ones(1)}, path, {"fastsample-checkpoint": "[]"})
    with pytest.raises(ValueError, match="path must be a file of save_checkpoint"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "missing")


def test_another_model(loaded: tuple[DigitsUNet, dict], tmp_path: Path) -> None:
    path, (model, metadata) = tmp_path / "other.safetensors", loaded
    save_checkpoint(path, model, {**metadata, "prediction": "v"})
    with pytest.raises(ValueError, match=r"metadata\['prediction'\] must be 'epsilon', got 'v'"):
        load_digits_model(path)
    save_checkpoint(path, model, {**metadata, "schedule": None})
    with pytest.raises(ValueError, match=r"metadata\['schedule'\] must be a dict, got None"):
        load_digits_model(path)
    save_checkpoint(path, model, {**metadata, "config": {**model.config, "channels": 8}})
    with pytest.raises(ValueError, match="path must hold weights that fit their config"):
        load_digits_model(path)
