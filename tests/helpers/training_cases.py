"""What tests of training share: small networks, the chain as a loop, comparisons of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastsample as fs
from fastsample import ops
from fastsample.ops import reference
from fastsample.sampling.noise import make_identity
from fastsample.training import DiffusionLoss, FidelityLoss, Optimizer, Trainer
from fastsample.training.randomness import RandomStreams
from tests.helpers.networks import LINEAR

GRID = fs.Grid([600, 300, 100, 0])
CHAINS: dict[str, dict[str, Any]] = {
    "ddim": {},
    "eta": {"eta": 1.0},
    "ancestral": {"method": "ancestral"},
    "learned": {"method": "ancestral"},
    "shortcut": {"method": "shortcut"},
    "dpm++": {"method": "dpm++", "order": 2},
    "dpm++ 3": {"method": "dpm++", "order": 3},
}
DISTANCES: dict[str, dict[str, Any]] = {
    "energy": {},
    "mmd": {"distance": "mmd"},
    "sliced": {"distance": "sliced_wasserstein", "projections": 8},
    "mse": {"distance": "mse", "start": "paired"},
    "huber": {"distance": "huber", "start": "paired"},
    "score": {"start": "paired", "chains": 2, "eta": 1.0},
}


class Tiny(nn.Module):
    """Two dense layers that see x, t and perhaps a label; counts its calls."""

    def __init__(
        self,
        size: int = 2,
        width: int = 4,
        *,
        outputs: int = 1,
        dropout: float = 0.0,
        labels: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Linear(size + 1, width)
            self.second = nn.Linear(width, outputs * size)
            self.labels = nn.Embedding(labels, width) if labels else None
        self.dropout = nn.Dropout(dropout)
        self.calls = 0
        self.modes: list[bool] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.calls += 1
        self.modes.append(self.training)
        share = (t.to(x.dtype) / 1000).reshape(-1, 1)
        h = torch.tanh(self.first(torch.cat([x.flatten(1), share], dim=1)))
        if self.labels is not None and y is not None:
            h = h + self.labels(y)
        return self.second(self.dropout(h)).reshape(len(x), -1)


def tiny(dtype: torch.dtype = torch.float32, **options: Any) -> fs.Denoiser:
    """A small model on the linear schedule; ``outputs=2`` learns its variance."""
    uncond = {"y": options["labels"] - 1} if options.get("labels") else None
    variance = "learned_range" if options.get("outputs") == 2 else "small"
    return fs.Denoiser(Tiny(**options).to(dtype), LINEAR, (2,), variance=variance, uncond=uncond)


def chain_model(chain: str, dtype: torch.dtype = torch.float64, **options: Any) -> fs.Denoiser:
    """The model that a chain of `CHAINS` needs."""
    return tiny(dtype, outputs=2 if chain == "learned" else 1, **options)


def points(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Data of a mixture in the plane, `(count, 2)`."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randint(0, 2, (count, 1), generator=generator) * 2.0 - 1.0
    return (centre + 0.3 * torch.randn(count, 2, generator=generator)).to(dtype)


def gradients(value: Tensor, model: fs.Denoiser) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(model.model.parameters())))  # type: ignore[attr-defined]


def plain_chain(
    model: fs.Denoiser,
    plan: fs.Plan,
    x: Tensor,
    streams: RandomStreams,
    *,
    blind: int = 0,
    jacobian_free: bool = False,
) -> Tensor:
    """The chain in plain torch, with the noise of samples 0, 1, ... of the iteration."""
    seeds, index = make_identity("test", streams.key("chain noise"), 0, len(x), x.device)
    rows, timesteps = torch.from_numpy(plan.rows.copy()), model.network_times(plan.times)
    h1 = h2 = None
    for k in range(len(plan)):
        fed = x.detach() if jacobian_free else x
        out = model.model(fed, timesteps[k].expand(len(x)))
        noise = ops.noise(seeds, index, x.shape[1:], draw=k, dtype=x.dtype)
        out = out.detach() if k < blind else out
        x, x0 = reference.step_x0(x, out, rows, torch.tensor(k), noise=noise, h1=h1, h2=h2)
        h1, h2 = x0, h1
    return x


def trainer(model: fs.Denoiser | None = None, data: Any = None, **options: Any) -> Trainer:
    """A quick trainer of 64 points."""
    options = {"optimizer": Optimizer(lr=1e-3), "batch_size": 16, "ema": 0.9, **options}
    return Trainer(
        tiny() if model is None else model, points(64) if data is None else data, **options
    )


def fidelity(**options: Any) -> FidelityLoss:
    """A quick fidelity loss."""
    return FidelityLoss(options.pop("steps", 3), **{"clip": (-2.0, 2.0), **options})


def unsaturated() -> FidelityLoss:
    """A fidelity loss whose chain has gradients from the first iteration on.

    The network is untrained: between the bounds of `fidelity` nearly every sample ends at a bound.
    """
    return fidelity(clip=(-100.0, 100.0))


def state(run: Trainer) -> dict[str, Tensor]:
    """Weights, average and moments."""
    return {name: value.detach().clone() for name, value in run.updater.tensors().items()}


def weights(run: Trainer) -> Tensor:
    """All weights as one vector."""
    return torch.cat([p.detach().flatten() for p in run.network.parameters()])


def assert_same_run(one: Trainer, other: Trainer) -> None:
    """Bit for bit: weights, average, moments, detector, and the lines both have."""
    assert one.iteration == other.iteration
    mine, theirs = state(one), state(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name
    assert one.record.state() == other.record.state()
    count = min(len(one.history), len(other.history))
    last = [json.dumps(run.history[len(run.history) - count :]) for run in (one, other)]
    assert last[0] == last[1]


def lines(folder: Path) -> list[dict[str, Any]]:
    """The log; every line must be whole, strict JSON."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = (folder / "log.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


class Sometimes(DiffusionLoss):
    """A diffusion loss that is NaN in the calls of these numbers."""

    def __init__(self, bad: Any) -> None:
        super().__init__(LINEAR, kind="simple", variance="small")
        self.bad, self.number = bad, 0

    def __call__(self, *args: Any, **options: Any) -> dict[str, Tensor]:
        result = super().__call__(*args, **options)
        factor = float("nan") if self.number in self.bad else 1.0
        self.number += 1
        return {name: value * factor for name, value in result.items()}
