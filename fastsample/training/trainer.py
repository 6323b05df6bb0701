"""The training loop: a diffusion loss, and if wanted a fidelity loss, on one network."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import Dataset
from tqdm import tqdm

from fastsample._checks import check_bool, check_integer, check_real
from fastsample.collective import check_agreement, gathered, process, summed
from fastsample.denoiser import Denoiser
from fastsample.training.archive import Archive
from fastsample.training.checkpoints import Checkpoint
from fastsample.training.collapse import CollapseDetector
from fastsample.training.draws import Draws
from fastsample.training.feeding import Batch, Feeding
from fastsample.training.fidelity import Fidelity, FidelityLoss
from fastsample.training.interrupts import deferred_interrupts
from fastsample.training.losses import DiffusionLoss
from fastsample.training.objective import Loss, Objective, Precision, network_of
from fastsample.training.updates import MakeOptimizer, Norms, Rate, Updates
from fastsample.training.vdm import VDMLoss

_PATIENCE = 20  # skipped iterations in a row, after which training has failed


class Trainer:
    """Trains or fine-tunes a network, resumable bit for bit, in one process or under torchrun.

    An iteration draws a batch, adds the gradients of the diffusion loss (under torchrun with
    `DistributedDataParallel`) and of the fidelity loss (summed over processes), takes one step and
    updates a moving average of the weights. Whatever is random in it is a function of
    (seed, iteration, sample), so that nothing depends on interruptions or, but for rounding, on
    the number of processes. Iterations whose diffusion gradient is not finite are skipped.

    The network of `denoiser` is trained in place. Chains of the fidelity loss see it in evaluation
    mode, as samplers do.

    Args:
        denoiser: the model; its network must be a `torch.nn.Module`.
        data: tensor `(N, *shape)`, or a data set with numbered items: tensors, or mappings with
            "x0" and the network's keyword arguments. Items that are random (augmented, say) are
            only repeated in a resumed run if they are a function of their number.
        loss: `DiffusionLoss` or `VDMLoss` (whose end points are trained too); None is
            ``DiffusionLoss.of(denoiser, kind="simple")``.
        fidelity: the second term, or None.
        folder: of checkpoints and the log ``log.jsonl``; None writes nothing.
        resume: go on from the folder's newest checkpoint, if it has one.
        cond: keyword arguments of the network, for a tensor of data: N entries or a number each.
        cond_dropout: share of samples trained without condition.
        batch_size: of an iteration, all processes together.
        accumulation: parts that the diffusion loss sees one after the other.
        lr: learning rate.
        warmup: iterations in which it rises from 0.
        decay: iterations in which it falls to 0 along a cosine; None keeps it.
        weight_decay: of AdamW (not of the fidelity term's own).
        optimizer: ``(parameters, lr=...) -> Optimizer`` instead of AdamW.
        clip: largest norm of the diffusion loss's gradient; None is no bound.
        ema: decay of the moving average, in [0, 1).
        fidelity_weight: of the fidelity loss in the sum.
        fidelity_lr: a learning rate of its own gives it an optimiser of its own; its weight then
            does not matter. None adds the terms.
        fidelity_every: iterations from one fidelity term to the next.
        fidelity_clip: largest norm of its gradient.
        precision: of the network's arithmetic (autocast); weights and everything else stay as they
            are.
        workers: processes that load items of a data set.
        save_every: iterations between checkpoints; the last iteration has one in any case.
        seed: of all draws.
        progress: show a progress bar.

    Attributes:
        iteration: iterations made.
        history: the log's lines of this process, oldest first.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: data of another shape, a folder that holds another model's checkpoints, or
            checkpoints without `resume`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        data: Tensor | Dataset[Any],
        *,
        loss: Loss | None = None,
        fidelity: FidelityLoss | None = None,
        folder: str | Path | None = None,
        resume: bool = False,
        cond: Mapping[str, Any] | None = None,
        cond_dropout: float = 0.0,
        batch_size: int = 128,
        accumulation: int = 1,
        lr: float = 1e-4,
        warmup: int = 0,
        decay: int | None = None,
        weight_decay: float = 0.0,
        optimizer: MakeOptimizer | None = None,
        clip: float | None = 1.0,
        ema: float = 0.999,
        fidelity_weight: float = 1.0,
        fidelity_lr: float | None = None,
        fidelity_every: int = 1,
        fidelity_clip: float = 1.0,
        precision: Precision = "float32",
        workers: int = 0,
        save_every: int = 1000,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        self.denoiser, self.network = denoiser, network_of(denoiser)
        self.rank, self.world = process()
        self.seed = check_integer("Trainer", "seed", seed, 0, 2**64 - 1)
        self.loss = DiffusionLoss.of(denoiser, kind="simple") if loss is None else loss
        if not isinstance(self.loss, DiffusionLoss | VDMLoss):
            raise TypeError(
                f"Trainer: loss must be a DiffusionLoss, a VDMLoss or None, got {loss!r:.60}"
            )
        if isinstance(self.loss, nn.Module):
            self.loss.to(denoiser.device)
        if fidelity is not None and not isinstance(fidelity, FidelityLoss):
            raise TypeError(f"Trainer: fidelity must be a FidelityLoss, got {fidelity!r}")
        self.fidelity = fidelity
        self.fidelity_every = check_integer("Trainer", "fidelity_every", fidelity_every, 1)
        self.save_every = check_integer("Trainer", "save_every", save_every, 1)
        self.progress = check_bool("Trainer", "progress", progress)
        rises = check_integer("Trainer", "warmup", warmup, 0)
        falls = None if decay is None else check_integer("Trainer", "decay", decay, 1)
        if fidelity is None and fidelity_lr is not None:
            raise ValueError(
                f"Trainer: fidelity_lr must be None without fidelity, got {fidelity_lr}"
            )
        self.feeding = Feeding(
            denoiser,
            data,
            cond,
            dropped=check_real("Trainer", "cond_dropout", cond_dropout, 0.0, 1.0),
            batch_size=check_integer("Trainer", "batch_size", batch_size, self.world),
            seed=self.seed,
            workers=check_integer("Trainer", "workers", workers, 0),
            process=(self.rank, self.world),
        )
        if precision not in ("float32", "bfloat16"):
            raise ValueError(
                f'Trainer: precision must be "float32" or "bfloat16", got {precision!r}'
            )
        self.objective = Objective(
            denoiser,
            self.loss,
            precision=precision,
            parts=check_integer("Trainer", "accumulation", accumulation, 1),
            process=(self.rank, self.world),
        )
        decays = _not_negative("weight_decay", weight_decay)
        self.updates = Updates(
            [self.network, *([self.loss] if isinstance(self.loss, nn.Module) else [])],
            rate=Rate(_positive("lr", lr), rises, falls),
            second_rate=None
            if fidelity_lr is None
            else Rate(_positive("fidelity_lr", fidelity_lr), rises, falls),
            weight=check_real("Trainer", "fidelity_weight", fidelity_weight),
            clip=math.inf if clip is None else _positive("clip", clip),
            second_clip=_positive("fidelity_clip", fidelity_clip),
            decay=check_real("Trainer", "ema", ema, 0.0, 0.999999),
            make=optimizer or partial(AdamW, weight_decay=decays),
            make_second=optimizer or partial(AdamW, weight_decay=0.0),  # once is enough
        )
        self.detector = CollapseDetector()
        self.iteration, self.skipped = 0, 0
        self.history: list[dict[str, Any]] = []
        settings = {
            "prediction": denoiser.prediction,
            "shape": list(denoiser.shape),
            "data": self.feeding.count,
            "batch_size": self.feeding.batch_size,
            "seed": self.seed,
            "loss": type(self.loss).__name__,
            "optimizer": type(self.updates.optimizer).__name__,
        }
        self.archive = Archive(
            None if folder is None else Path(folder),
            settings,
            resume=check_bool("Trainer", "resume", resume),
            restore=self._restore,
            writes=self.rank == 0,
        )
        for name, value in (("data", self.feeding.count), ("iteration", self.iteration)):
            check_agreement("Trainer", name, value, denoiser.device)

    # ---- what comes out

    @property
    def averaged(self) -> Denoiser:
        """The model with the moving average of the weights: what samples should be drawn from.

        ``fs.sample(model, K)`` then runs the chain of K steps that the fidelity loss was given,
        where that is deterministic and the same in every iteration.
        """
        network, *loss = self.updates.averages
        return self._bare(network, loss[0] if loss else self.loss)

    @property
    def current(self) -> Denoiser:
        """The model with the weights of the last step, and the schedule as it is learned now."""
        return self._bare(self.network, self.loss)

    def _bare(self, network: Any, loss: Any) -> Denoiser:
        source = loss.current(self.denoiser)
        chains = [] if self.fidelity is None else self.fidelity.plans.fixed(source)
        found = copy.copy(source)
        found.model = network
        # Measured, and tuned, with other weights; the chains are what these were trained for.
        found.profile, found.plans = None, {}
        return found.with_plans({len(plan): plan for plan in chains})

    # ---- the loop

    def run(self, iterations: int) -> Denoiser:
        """Train until so many iterations have been made, those before a resumption counted.

        Returns:
            `averaged`.

        Raises:
            RuntimeError: the gradient was not finite in 20 iterations in a row.
        """
        last = check_integer("Trainer.run", "iterations", iterations, self.iteration)
        stream = self.feeding.stream(self.iteration)
        hidden = not self.progress or self.rank > 0
        bar = tqdm(total=last, initial=self.iteration, disable=hidden, unit="it", desc="train")
        self.network.train()
        try:
            with bar, deferred_interrupts() as interrupt:
                while self.iteration < last:
                    line = self._iterate(next(stream))
                    self.iteration += 1
                    bar.update()
                    bar.set_postfix(loss=f"{line['loss']:.4g}", refresh=False)
                    # All processes stop at the same iteration: each would wait for the others.
                    asked = torch.tensor([float(interrupt.asked)])
                    stops = bool(summed(asked, self.denoiser.device) > 0)
                    failed = self.skipped >= _PATIENCE
                    due = self.iteration == last or self.iteration % self.save_every == 0
                    if due or failed or stops:
                        self.save()
                    if stops:
                        raise KeyboardInterrupt
                    if failed:
                        raise RuntimeError(
                            "Trainer: the gradient must be finite, got none that is in "
                            f"{self.skipped} iterations up to {self.iteration}; the weights are "
                            "those before them. Try a lower lr"
                        )
                interrupt.check()
        finally:
            self.network.eval()
        return self.averaged

    def _iterate(self, batch: Batch) -> dict[str, Any]:
        draws = Draws(self.seed, self.iteration)
        device = batch.x0.device
        cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), torch.enable_grad():
            # For dropout; every process its own.
            torch.manual_seed(draws.key("network") ^ self.rank)
            self.updates.zero()
            loss = self.objective.backward(batch, draws)
            found, gradients = None, None
            if self.fidelity is not None and self.iteration % self.fidelity_every == 0:
                with _evaluating(self.network):  # with checkpoints the gradient runs it again
                    found = self._fidelity(batch)
                    gradients = self.updates.gradients(found.loss)
        norms = self.updates.step(self.iteration, gradients)
        return self._noted(loss, found, norms)

    def _fidelity(self, batch: Batch) -> Fidelity:
        assert self.fidelity is not None
        denoiser = self.loss.current(self.objective.denoiser)
        return self.fidelity(denoiser, batch.x0, iteration=self.iteration, cond=batch.cond)

    def _noted(self, loss: Tensor, found: Fidelity | None, norms: Norms) -> dict[str, Any]:
        own = summed(loss.double().cpu().reshape(1), loss.device)
        line: dict[str, Any] = {
            "iteration": self.iteration,
            "loss": float(own[0]) / self.world,
            "norm": norms.diffusion,
            "skipped": norms.skipped,
        }
        if found is not None:
            line |= {"fidelity": float(found.loss.detach()), "fidelity_norm": norms.fidelity}
            samples, data = gathered(found.samples), gathered(found.data)
            if len(samples) > 1 and len(data) > 1:  # one sample has no spread
                line |= self.detector.update(samples, data)
            line["times"] = found.plan.times.tolist()
        self.history.append(line)
        self.archive.add(line)
        self.skipped = self.skipped + 1 if norms.skipped else 0
        return line

    # ---- files

    def save(self) -> Path | None:
        """Write a checkpoint now (process 0 does); None without a folder."""
        notes = {"detector": self.detector.state(), "skipped": self.skipped}
        return self.archive.save(self.iteration, self.updates.tensors, notes)

    def _restore(self, found: Checkpoint) -> None:
        self.updates.load(found.tensors)
        self.detector.load_state(found.notes["detector"])
        self.iteration, self.skipped = found.iteration, found.notes["skipped"]


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, as samplers see a network; training mode afterwards."""
    network.eval()
    try:
        yield
    finally:
        network.train()


def _positive(name: str, value: Any) -> float:
    found = check_real("Trainer", name, value)
    if found <= 0.0:
        raise ValueError(f"Trainer: {name} must be positive, got {found:g}")
    return found


def _not_negative(name: str, value: Any) -> float:
    return 0.0 if value == 0 else _positive(name, value)
