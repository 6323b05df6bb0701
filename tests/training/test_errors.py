"""What the trainer and the fidelity loss refuse, and in which words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset

import fastsample as fs
from fastsample.training import FidelityLoss, FidelityTerm, Optimizer, VDMLoss
from tests.helpers.networks import LINEAR, denoiser, halve
from tests.helpers.refusals import check_refusal, refusals
from tests.helpers.training_cases import GRID, Tiny, points, tiny, trainer

DATA = points(8)
PLAN = fs.ddim(LINEAR, GRID)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(DATA)


def loss(steps=3, **options):
    return lambda: FidelityLoss(steps, **options)


def used(steps=3, *, model=None, data=DATA, cond=None, iteration=0, **options):
    """The loss of a batch."""
    model = tiny() if model is None else model
    return lambda: FidelityLoss(steps, **options)(model, data, iteration=iteration, cond=cond)


def train(model=None, data=None, run=1, **options):
    """Some iterations of training."""
    return lambda: trainer(model, data, **options).run(run)


def frozen():
    model = tiny()
    model.model.requires_grad_(False)
    return model


SETTINGS = {
    "mse from the prior": (
        loss(distance="mse"),
        ValueError,
        r'start must come from x0 with distance="mse", got "prior", where a sample has nothing to '
        r'do with the x0 that it is compared with: .*; use distance="energy"',
    ),
    "huber from the prior": (loss(distance="huber"), ValueError, 'with distance="huber"'),
    "chains of mse": (
        loss(distance="mse", start="paired", chains=2),
        ValueError,
        'chains must be 1 with distance="mse", got 2',
    ),
    "chains of an inversion": (
        loss(start="inverted", chains=2),
        ValueError,
        'chains must be 1 with start="inverted", got 2',
    ),
    "noised plan": (
        loss(PLAN, start="noised"),
        ValueError,
        'steps must be a number, or times, with start="noised", .*, got a Plan',
    ),
    "distance": (loss(distance="l2"), ValueError, r"distance must be one of .*, got 'l2'"),
    "start": (loss(start="noise"), ValueError, r"start must be one of .*, got 'noise'"),
    "gradient": (loss(gradient="none"), ValueError, r"gradient must be one of .*, got 'none'"),
    "features": (loss(features=3), TypeError, "features must be callable or None, got 3"),
    "last rows": (loss(last_rows=0), ValueError, "last_rows must be at least 1, got 0"),
    "checkpoint": (loss(checkpoint=1), TypeError, "checkpoint must be True or False, got 1"),
    "subset": (loss(subset=0), ValueError, "subset must be at least 1, got 0"),
    "chains": (loss(chains=0), ValueError, "chains must be at least 1, got 0"),
    "projections": (loss(projections=0), ValueError, "projections must be at least 1"),
    "seed": (loss(seed=-1), ValueError, r"seed must be in \[0, \d+\], got -1"),
}
USES = {
    "too many steps": (used(1001), ValueError, r"steps must be in \[1, 1000\], got 1001"),
    "one of several": (used((1001,)), ValueError, r"steps must be in \[1, 1000\], got 1001"),
    "steps as text": (used("10"), TypeError, "steps must be an integer, got '10'"),
    "method": (used(method="euler"), ValueError, r"method must be one of .*, got 'euler'"),
    "grid": (used(grid="linear"), ValueError, r"grid must be one of .*, got 'linear'"),
    "knob": (
        used(order=2),
        ValueError,
        r"method must be given with \['order'\], which several methods take",
    ),
    "no knob": (
        used(speed=2),
        TypeError,
        r"keyword arguments must be those of \w+(\.\w+)* or knobs of a method, got speed=2",
    ),
    "method of a plan": (used(PLAN, method="ancestral"), ValueError, "left out with a Plan"),
    "noised in one step": (
        used(1, start="noised"),
        ValueError,
        'steps must be at least 2 with start="noised", got 1',
    ),
    "chains without noise": (
        used(start="paired", chains=2),
        ValueError,
        r"chains must be 1 where they begin at one point and ddim.* of 3 steps adds no noise, "
        "got 2; pass eta=1.0",
    ),
    "inverted with noise": (
        used(start="inverted", eta=1.0),
        ValueError,
        r'method must be deterministic with start="inverted", got ddim\(eta=1.0\)',
    ),
    "denoiser": (used(model=halve), TypeError, "denoiser must be a Denoiser, got function"),
    "shape": (
        used(data=points(4)[:, :1]),
        ValueError,
        r"x0 must have shape \(4, 2\), got \(4, 1\)",
    ),
    "kind": (used(data=[1.0]), TypeError, r"x0 must be a tensor \(B, \*shape\), got \[1.0\]"),
    "iteration": (used(iteration=-1), ValueError, "iteration must be at least 0, got -1"),
    "subset of a batch": (
        used(subset=9),
        ValueError,
        "subset must be a multiple of the 1 processes and at most the batch of 8, got 9",
    ),
    "short cond": (
        used(model=tiny(labels=3), cond={"y": torch.zeros(7, dtype=torch.int64)}),
        ValueError,
        r"cond\['y'\] must have one entry per sample \(8\), got 7",
    ),
    "long cond": (
        used(model=tiny(labels=3), cond={"y": torch.zeros(9, dtype=torch.int64)}),
        ValueError,
        r"cond\['y'\] must have one entry per sample \(8\), got 9",
    ),
    "features of a number": (
        used(features=lambda x: x.mean()),
        ValueError,
        r"features must give a tensor \(8, ...\), got \(\)",
    ),
    "features of a list": (
        used(features=lambda x: [x]),
        ValueError,
        r"features must give a tensor \(8, ...\), got list",
    ),
    "features of half": (used(features=lambda x: x[::2]), ValueError, r"got \(4, 2\)"),
}
DATASETS = {
    "shape": (train(data=torch.zeros(8, 3)), ValueError, r"data must have shape \(8, 2\), got"),
    "integers": (train(data=torch.zeros(8, 2).int()), TypeError, "floating tensors, got torch.int"),
    "number": (train(data=torch.tensor(1.0)), ValueError, r"data must have shape \(N, \*shape\)"),
    "empty": (train(data=torch.zeros(0, 2)), ValueError, "at least one sample, got none"),
    "infinite": (train(data=torch.full((8, 2), torch.inf)), ValueError, "data must be finite"),
    "stream": (
        train(data=Stream()),
        TypeError,
        "data must be a tensor or a data set with a length .*, got Stream; a stream cannot be",
    ),
    "iterator": (train(data=iter(DATA)), TypeError, "got .*iterator; a stream"),
    "arrays": (train(data=np.zeros((8, 2))), TypeError, "data must have items that are tensors"),
    "no x0": (train(data=[{"x": DATA[0]}]), ValueError, r"items with \"x0\", got \['x'\]"),
    "cond of a data set": (
        train(data=list(DATA), cond={"y": 1}),
        ValueError,
        r'cond must be None with a data set, got \[\'y\'\]; its items hold it beside "x0"',
    ),
    "short cond": (
        train(tiny(labels=3), DATA, cond={"y": torch.zeros(7).long()}),
        ValueError,
        r"cond\['y'\] must have one entry per sample \(8\), got 7",
    ),
    "cond of no mapping": (train(cond=[1]), TypeError, "cond must be a mapping"),
    "dropout without uncond": (
        train(cond_dropout=0.1),
        ValueError,
        "cond_dropout must be 0 for a model without uncond, got 0.1",
    ),
}
TRAINING = {
    "no denoiser": (
        lambda: fs.training.Trainer(Tiny(), DATA),
        TypeError,
        "must be a Denoiser, got",
    ),
    "no module": (
        lambda: fs.training.Trainer(denoiser(halve, 2), DATA),
        TypeError,
        "denoiser must have a torch.nn.Module as its model, got function",
    ),
    "frozen": (
        lambda: fs.training.Trainer(frozen(), DATA),
        ValueError,
        "denoiser must have parameters that require grad, got none",
    ),
    "loss": (train(loss="simple"), TypeError, "loss must be a DiffusionLoss, a VDMLoss or None"),
    "loss of another": (train(loss=VDMLoss()), ValueError, "VDMLoss: denoiser must have"),
    "fidelity": (
        train(fidelity=10),
        TypeError,
        "fidelity must be a FidelityLoss or a FidelityTerm, got 10",
    ),
    "optimizer": (
        train(optimizer=torch.optim.SGD),
        TypeError,
        r"optimizer must be a fastsample.training.Optimizer, got <class .*; for another optimiser "
        r"pass Optimizer\(make=...\)",
    ),
    "ema": (train(ema=1.0), ValueError, r"ema must be in \[0, 0.999999\], got 1"),
    "batch": (train(batch_size=0), ValueError, "batch_size must be at least 1, got 0"),
    "parts": (train(accumulation=0), ValueError, "accumulation must be at least 1, got 0"),
    "saves": (train(save_every=0), ValueError, "save_every must be at least 1, got 0"),
    "workers": (train(workers=-1), ValueError, "workers must be at least 0, got -1"),
    "dropout": (train(cond_dropout=2), ValueError, r"cond_dropout must be in \[0, 1\], got 2"),
    "precision": (train(precision="half"), ValueError, 'precision must be "bfloat16" or None, got'),
    "progress": (train(progress=1), TypeError, "progress must be True or False, got 1"),
    "resume": (train(resume=True), ValueError, "folder must be given with resume, got None"),
    "iterations": (train(run=-1), ValueError, "iterations must be at least 0, got -1"),
    "subset": (
        train(fidelity=FidelityLoss(3, subset=17)),
        ValueError,
        "subset must be .* at most the batch of 16, got 17",
    ),
}


def optimizer(**options):
    return lambda: Optimizer(**options)


def term(loss=None, **options):
    return lambda: FidelityTerm(FidelityLoss(3) if loss is None else loss, **options)


OPTIMIZERS = {
    "lr": (optimizer(lr=-1.0), ValueError, "Optimizer: lr must be positive, got -1"),
    "lr of text": (optimizer(lr="a"), TypeError, "Optimizer: lr must be a real number, got 'a'"),
    "warmup": (optimizer(warmup=-1), ValueError, "Optimizer: warmup must be at least 0, got -1"),
    "decay": (optimizer(decay=0), ValueError, "Optimizer: decay must be at least 1, got 0"),
    "weight decay": (
        optimizer(weight_decay=-1.0),
        ValueError,
        r"Optimizer: weight_decay must be in \[0, inf\], got -1",
    ),
    "clip": (optimizer(clip=0.0), ValueError, "Optimizer: clip must be positive, got 0"),
    "make": (
        optimizer(make="sgd"),
        TypeError,
        "Optimizer: make must be callable or None, got 'sgd'",
    ),
    "weight decay of another": (
        optimizer(make=torch.optim.SGD, weight_decay=0.1),
        ValueError,
        "Optimizer: weight_decay must be 0 with make, got 0.1; make decides about it",
    ),
}
TERMS = {
    "loss": (term(10), TypeError, "FidelityTerm: loss must be a FidelityLoss, got 10"),
    "lr": (term(lr=0.0), ValueError, "FidelityTerm: lr must be positive, got 0"),
    "clip": (term(clip=-1.0), ValueError, "FidelityTerm: clip must be positive, got -1"),
    "no clip": (term(clip=None), TypeError, "FidelityTerm: clip must be a real number, got None"),
    "weight": (
        term(weight=np.nan),
        ValueError,
        r"FidelityTerm: weight must be in \[0, inf\], got nan",
    ),
    "negative weight": (term(weight=-1.0), ValueError, r"weight must be in \[0, inf\], got -1"),
    "every": (term(every=0), ValueError, "FidelityTerm: every must be at least 1, got 0"),
}


@refusals(
    settings=SETTINGS,
    uses=USES,
    data=DATASETS,
    training=TRAINING,
    optimizers=OPTIMIZERS,
    terms=TERMS,
)
def test_refusals(call, error, match):
    check_refusal(call, error, match)


def test_data_that_are_not_finite_are_found_at_once():
    data = points(64)
    data[5, 1] = torch.nan
    with pytest.raises(ValueError, match="Trainer: data must be finite, got NaN or infinity"):
        trainer(data=data)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="at least"):
        used(())()
