"""Measures how far samples are from true data: sliced Wasserstein-2, Frechet distance, RMSE."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models import Model, generator

PROJECTIONS = 128  # There are 16 directions per dimension, but no more than this.


class SlicedWasserstein:
    """Computes the sliced Wasserstein-2 distance to a reference set over fixed random directions.

    In one dimension the distance of two sets of equal size is that of their sorted values. As the
    reference is projected and sorted only once, this takes a fifth of the time of POT's
    `ot.sliced_wasserstein_distance`, with the same result.

    Args:
        reference: `(N, *shape)`.
        seed: seed of the directions.
    """

    def __init__(self, reference: Tensor, seed: int = 0) -> None:
        source = generator("directions", seed)
        size = reference[0].numel()
        directions = torch.randn(min(PROJECTIONS, 16 * size), size, generator=source)
        self.directions = functional.normalize(directions)
        self._sorted = self._sort(reference)

    def __call__(self, samples: Tensor) -> float:
        """Return the distance of samples `(N, *shape)` to the reference set."""
        difference = self._sort(samples) - self._sorted
        return float(difference.square_().mean(dtype=torch.float64).sqrt())

    def _sort(self, samples: Tensor) -> Tensor:
        return (self.directions @ samples.flatten(1).T).sort(dim=1).values


def rmse(x: Tensor, y: Tensor) -> float:
    """Return the root mean square difference per element."""
    return float((x.double() - y.double()).square().mean().sqrt())


class Classifier(nn.Module):
    """Classifies 8 x 8 digits; the Frechet distance compares its features."""

    num_features = 32  # torchmetrics reads this attribute.

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 16, self.num_features),
        )
        self.head = nn.Linear(self.num_features, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features ``(B, 32)``, before any nonlinearity."""
        return self.features(images)

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of the ten labels ``(B, 10)``."""
        return self.head(functional.relu(self.features(images)))


def train_classifier(
    images: Tensor, labels: Tensor, *, epochs: int = 20, seed: int = 0
) -> tuple[Classifier, float]:
    """Train a classifier on four fifths of the digits; return it and its accuracy on the rest."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Classifier()
        order = torch.randperm(len(images))
        held, rest = order[: len(images) // 5], order[len(images) // 5 :]
        optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
        for _ in range(epochs):
            for batch in rest[torch.randperm(len(rest))].split(64):
                loss = functional.cross_entropy(net.logits(images[batch]), labels[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    net.eval()
    with torch.inference_mode():
        right = net.logits(images[held]).argmax(1) == labels[held]
    return net, float(right.float().mean())


class Judge:
    """Compares samples with the true data of one model and seed.

    Args:
        model: the model, which gives the true data.
        count: number of samples in the sets to compare.
        seed: seed of the choice of true samples.
        classifier: network for the Frechet distance of its features; None leaves that out.
    """

    def __init__(self, model: Model, count: int, seed: int, classifier: Classifier | None) -> None:
        reference, self.fresh = model.data(count, seed)
        self.sliced = SlicedWasserstein(reference[:count], seed)
        self.frechet = None
        if classifier is not None:
            from torchmetrics.image.fid import FrechetInceptionDistance

            self.frechet = FrechetInceptionDistance(classifier, reset_real_features=False)
            with torch.inference_mode():
                self.frechet.update(reference, real=True)

    def __call__(self, samples: Tensor) -> dict[str, float]:
        """Return the distances of a set of samples to the true data, by name."""
        distances = {"sw2": self.sliced(samples)}
        if self.frechet is not None:
            with torch.inference_mode():
                self.frechet.update(samples, real=False)
                distances["frechet"] = float(self.frechet.compute())
            self.frechet.reset()
        return distances

    def floor(self) -> dict[str, float]:
        """Return the distances of true samples, which samplers fall below only by chance."""
        return self(self.fresh)
