"""The classifier of MNIST digits that judges samples: labels read, and features for distances.

    python -m benchmarks.mnist_classifier    # trains it, two minutes on two cores

A small convolutional network, trained on the 4500 training images of `mnist_data` with shifts of up
to two pixels, and stored beside the results of the benchmarks. Its 64 features before the last
layer are those of the Frechet distance, and of precision and recall.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastsample.bundled.checkpoint import load_network, save_checkpoint
from fastsample.bundled.datasets import mnist_data

from .timing import RESULTS

PATH = RESULTS / "mnist-classifier.safetensors"


class MnistClassifier(nn.Module):
    """Returns 64 features of images `(B, 1, 28, 28)` in [-1, 1]; `logits` reads the digit."""

    num_features = 64  # torchmetrics asks for it

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.config = {"width": width}
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(36 * width, 64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features `(B, 64)`."""
        return self.body(images)

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits `(B, 10)` of the digits."""
        return self.head(self.body(images))


def load_classifier() -> MnistClassifier:
    """Return the trained classifier; it needs no data."""
    return load_network("load_classifier", PATH, MnistClassifier)[0]


def train(epochs: int = 25, seed: int = 0) -> tuple[MnistClassifier, float]:
    """Train a classifier, and return it with its accuracy on the 500 test images."""
    x, y, x_test, y_test = mnist_data()
    torch.manual_seed(seed)
    net = MnistClassifier()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = epochs * (len(x) // 64 + 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            padded = functional.pad(x[batch], (2, 2, 2, 2), value=-1.0)
            i, j = (int(v) for v in torch.randint(0, 5, (2,)))
            shifted = padded[:, :, i : i + 28, j : j + 28]
            loss = functional.cross_entropy(net.logits(shifted), y[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
    with torch.inference_mode():
        accuracy = (net.logits(x_test).argmax(1) == y_test).float().mean()
    return net, float(accuracy)


def main() -> None:
    torch.set_num_threads(2)
    net, accuracy = train()
    metadata = {"model": "MnistClassifier", "config": net.config, "test_accuracy": accuracy}
    save_checkpoint(PATH, net, metadata, dtype=torch.float16)
    print(f"{PATH}: reads {accuracy:.1%} of the 500 test images")


if __name__ == "__main__":
    main()
