"""While the package is rebuilt: results on fixed seeds must stay equal to the bit.

`python tests/project/test_recorded.py` writes the record anew. Sampling uses networks of additions,
multiplications and divisions, which round alike on every machine; what goes through a matrix
product is compared on machines with the recorded one's instruction set only.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fastsample as fs
from fastsample.training import DiffusionLoss, FidelityLoss, Optimizer, Trainer

RECORD = Path(__file__).parents[1] / "data" / "recorded.json"
LINEAR = fs.NoiseSchedule.linear()
METHODS: dict[str, dict] = {
    "ddim": {"method": "ddim"},
    "ddim eta": {"method": "ddim", "eta": 0.7},
    "ddim raw": {"method": "ddim", "rederive": False, "clip": 0.5},
    "ancestral": {"method": "ancestral", "variance": "small"},
    "ancestral large": {"method": "ancestral", "variance": "large"},
    "ancestral learned": {"method": "ancestral", "variance": "learned_range"},
    "shortcut": {"method": "shortcut"},
    "dpm++ 1": {"method": "dpm++", "order": 1},
    "dpm++ 2": {"method": "dpm++"},
    "dpm++ 3": {"method": "dpm++", "order": 3, "corrected": True},
    "dpm++ sde": {"method": "dpm++", "stochastic": True},
    "unipc": {"method": "unipc"},
}
CHAINS: dict[str, dict] = {
    "steps": {"method": "fastdpm", "approximation": "steps", "kappa": 0.3},
    "var": {"method": "fastdpm", "approximation": "var", "extended": True},
}
GRIDS = [
    *("uniform", "quadratic", "log_snr", "karras", "leading", "trailing", "linspace"),
    *("respaced", "ddim", "ddim_quadratic", "random"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def network(x, t, scale=0.25):
    """Bounded, of exactly rounded operations only."""
    level = (t.to(x.dtype) / 1000) * torch.as_tensor(scale, dtype=x.dtype)
    return x / (1.0 + x * x) + level.reshape(-1, *[1] * (x.dim() - 1))


def learned(x, t):
    return torch.cat([network(x, t), x / (2.0 + x * x)], dim=1)


def model(shape=(3, 5, 7), **options) -> fs.Denoiser:
    uses = learned if options.get("variance") == "learned_range" else network
    return fs.Denoiser(uses, LINEAR, shape, **{"uncond": {"scale": 0.0}, "clip": 1.0, **options})


def samples(**options) -> torch.Tensor:
    learns = options.get("variance") == "learned_range"
    denoiser = model(variance="learned_range" if learns else "small")
    return fs.sample(denoiser, options.pop("steps", 7), num_samples=5, seed=11, **options)


def sampling() -> dict[str, Callable[[], object]]:
    cases: dict[str, Callable[[], object]] = {}
    for (name, knobs), grid in itertools.product(METHODS.items(), GRIDS):
        cases[f"{name} | {grid}"] = lambda k=knobs, g=grid: samples(grid=g, **k)
    for (name, knobs), dtype in itertools.product({**METHODS, **CHAINS}.items(), DTYPES):
        cases[f"{name} | {dtype}"] = lambda k=knobs, d=dtype: samples(dtype=d, **k)
        cases[f"{name} | {dtype} channels_last"] = lambda k=knobs, d=dtype: samples(
            start=torch.linspace(-2, 2, 525, dtype=d)
            .reshape(5, 3, 5, 7)
            .contiguous(memory_format=torch.channels_last),
            **k,
        )
    guided = {"cond": {"scale": 0.5}, "guidance": 2.5}
    for (name, knobs), extra in itertools.product(
        METHODS.items(),
        [{}, {"guidance_interval": (200, 700)}, {"guidance_rescale": 0.5}, {"threshold": 0.9}],
    ):
        if "learned" not in name and not ("raw" in name and "threshold" in extra):
            cases[f"{name} | guided {extra}"] = lambda k=knobs, e=extra: samples(**guided, **e, **k)
    for prediction in ("x0", "v", "flow"):
        cases[f"prediction {prediction}"] = lambda p=prediction: fs.sample(
            model(prediction=p), 6, num_samples=3, method="unipc", seed=3
        )
    cases["flow"] = lambda: fs.sample(
        fs.Denoiser(network, fs.NoiseSchedule.flow(), (4, 6), prediction="flow", time="fraction"),
        8,
        num_samples=3,
        seed=4,
    )
    cases["many seeds"] = lambda: (
        samples(method="ancestral", grid="uniform")
        + fs.sample(model(), 5, seed=[5, 6, 7, 8, 9], method="ddim", eta=1.0)
    )
    cases["invert"] = lambda: fs.invert(model(clip=None), samples(), 9)
    cases["invert tolerance"] = lambda: fs.invert(
        model(clip=None), samples().double(), 9, tolerance=1e-6
    )
    cases["diffuse"] = lambda: fs.diffuse(samples(), LINEAR, 450)
    return cases


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.layers = nn.Sequential(nn.Linear(9, 32), nn.SiLU(), nn.Linear(32, 16))

    def forward(self, x, t):
        time = (t.to(x.dtype) / 1000).expand(len(x)).reshape(-1, 1)
        return self.layers(torch.cat([x.flatten(1), time], 1)).reshape(len(x), 4, 4)[:, : self.wide]

    wide = 2


class Wide(Net):
    wide = 4


def mlp(learns: bool = False) -> fs.Denoiser:
    return fs.Denoiser(
        Wide() if learns else Net(),
        LINEAR,
        (2, 4),
        clip=1.0,
        variance="learned_range" if learns else "small",
    )


def data(count: int = 48) -> torch.Tensor:
    return torch.linspace(-1, 1, count * 8).sin().reshape(count, 2, 4)


def profiled(learns: bool) -> dict[str, object]:
    profile = fs.profile(
        mlp(learns), data(), times=range(25, 1001, 25), batch_size=20, trajectories=8, seed=2
    )
    arrays = {f"sum {name}": value for name, value in profile.sums.items()}
    for objective in ("elbo", "mse", "trajectory"):
        arrays[f"grid {objective}"] = profile.costs(objective).best_grid(6).times
    for objective in ("elbo", "mse"):
        arrays[f"costs {objective}"] = profile.costs(objective).costs
    arrays["auto"] = fs.sample(
        mlp(learns).with_profile(profile), 6, num_samples=4, method="dpm++", seed=1
    )
    return arrays


def trained(fidelity: bool) -> list[torch.Tensor]:
    denoiser = mlp(learns=True)
    run = Trainer(
        denoiser,
        data(),
        loss=DiffusionLoss.of(denoiser),
        fidelity=FidelityLoss(3, clip=(-2.0, 2.0)) if fidelity else None,
        batch_size=16,
        optimizer=Optimizer(lr=1e-3),
        ema=0.9,
        seed=3,
    )
    run.run(6)
    return [p.detach() for p in denoiser.model.parameters()]


def bound(learns: bool) -> np.ndarray:
    bits = fs.bits_per_dim(mlp(learns), data(), 20, seed=5)
    return np.array([bits.total, bits.prior, *bits.terms])


def tuned(**options) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = fs.tune(mlp(), 4, samples=64, teacher_steps=24, max_runs=8, seed=1, **options)
    return np.concatenate([plan.nodes, plan.rows.ravel()])


def machine() -> dict[str, Callable[[], object]]:
    cases: dict[str, Callable[[], object]] = {}
    for learns in (False, True):
        cases[f"profile learns={learns}"] = lambda v=learns: profiled(v)
        cases[f"bits learns={learns}"] = lambda v=learns: bound(v)
    for fidelity in (False, True):
        cases[f"trainer fidelity={fidelity}"] = lambda f=fidelity: trained(f)
    cases["tune"] = lambda: tuned()
    cases["tune polished"] = lambda: tuned(gradient_steps=60)
    cases["tune times only"] = lambda: tuned(rows=False)
    return cases


def digest(value: object) -> str:
    """SHA-256 of all numbers in a tensor, an array, or a list or dictionary of these."""
    total = hashlib.sha256()
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, torch.Tensor):
            part = part.detach().contiguous().flatten().view(torch.uint8).numpy()
        total.update(np.ascontiguousarray(part).tobytes())
    return total.hexdigest()


def capability() -> str:
    return f"{torch.backends.cpu.get_cpu_capability()} {torch.__version__}"


RECORDED = json.loads(RECORD.read_text()) if RECORD.exists() else {}


@pytest.mark.parametrize("name", sampling())
def test_samples_are_the_recorded_ones(name):
    assert digest(sampling()[name]()) == RECORDED["sampling"][name]


@pytest.mark.skipif(
    RECORDED.get("capability") != capability(), reason="recorded with other matrix products"
)
@pytest.mark.parametrize("name", machine())
def test_measurements_are_the_recorded_ones(name):
    assert digest(machine()[name]()) == RECORDED["machine"][name]


if __name__ == "__main__":
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = {
            "capability": capability(),
            "sampling": {name: digest(make()) for name, make in sampling().items()},
            "machine": {name: digest(make()) for name, make in machine().items()},
        }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
