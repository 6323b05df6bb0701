"""The training loop: a diffusion loss, and if wanted a fidelity loss, on one network."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from fastsample._support.checks import check_bool, check_integer, check_real, warn_user
from fastsample._support.distributed import check_agreement, gathered, process, summed
from fastsample.denoiser.denoiser import Denoiser
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.training.fidelity.collapse import CollapseDetector
from fastsample.training.fidelity.loss import Fidelity, FidelityLoss
from fastsample.training.losses.diffusion import DiffusionLoss
from fastsample.training.randomness import Draws
from fastsample.training.trainer.checkpoints import Checkpoint
from fastsample.training.trainer.data import Batch, Feeding
from fastsample.training.trainer.objective import (
    Loss,
    Objective,
    Precision,
    check_terms,
    network_of,
)
from fastsample.training.trainer.optimizer import MakeOptimizer
from fastsample.training.trainer.run_folder import Archive
from fastsample.training.trainer.session import deferred_interrupts, evaluating, training
from fastsample.training.trainer.updates import Norms, updates_of

_PATIENCE = 20  # failures in a row, after which training has failed
_REMEMBERED = 10_000  # lines of the history in memory


class Trainer:
    """Trains or fine-tunes a network, resumable bit for bit, in one process or under torchrun.

    An iteration draws a batch, adds the gradients of the diffusion loss (under torchrun with
    `DistributedDataParallel`) and of the fidelity loss (summed over processes), takes one step and
    updates a moving average of the weights. Whatever is random in it is a function of
    (seed, iteration, sample), so that nothing depends on interruptions or, but for rounding, on
    the number of processes (dropout masks do). A gradient that is not finite is left out: of the
    diffusion loss with the whole iteration, of the fidelity loss alone.

    The network of `denoiser` is trained in place. Chains of the fidelity loss see it in evaluation
    mode, as samplers do.

    Args:
        denoiser: the model; its network must be a `torch.nn.Module`.
        data: tensor `(N, *shape)`, or a data set with numbered items: tensors, or mappings with
            "x0" and the network's keyword arguments. Items that are random (augmented, say) are
            only repeated in a resumed run if they are a function of their number.
        loss: `DiffusionLoss` or `VDMLoss` (whose end points are trained too); None is
            ``DiffusionLoss.of(denoiser)``.
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
        weight_decay: of AdamW; the fidelity term's own has none, since once is enough.
        optimizer: ``(parameters, lr=...) -> Optimizer`` instead of AdamW, for both terms.
        clip: largest norm of the diffusion loss's gradient; None is no bound.
        ema: decay of the moving average, in [0, 1).
        fidelity_weight: of the fidelity loss in the sum.
        fidelity_lr: a learning rate of its own gives it an optimiser of its own; its weight then
            does not matter. None adds the terms.
        fidelity_every: iterations from one fidelity term to the next.
        fidelity_clip: largest norm of its gradient.
        precision: "bfloat16" runs the network under autocast; weights and everything else stay as
            they are. None is the network's own.
        find_unused_parameters: for a network with parameters that no output depends on, under
            `torch.distributed`.
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
        precision: Precision | None = None,
        find_unused_parameters: bool = False,
        workers: int = 0,
        save_every: int = 1000,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        self.denoiser, self.network = denoiser, network_of(denoiser)
        self.rank, self.world = process()
        self.seed = check_integer("Trainer", "seed", seed, 0, 2**64 - 1)
        self.loss = DiffusionLoss.of(denoiser) if loss is None else loss
        check_terms(denoiser, self.loss, fidelity, fidelity_lr)
        if isinstance(self.loss, nn.Module):
            self.loss.to(denoiser.device)
        self.fidelity = fidelity
        self.fidelity_every = check_integer("Trainer", "fidelity_every", fidelity_every, 1)
        self.save_every = check_integer("Trainer", "save_every", save_every, 1)
        self.progress = check_bool("Trainer", "progress", progress)
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
        if precision not in (None, "bfloat16"):
            raise ValueError(f'Trainer: precision must be "bfloat16" or None, got {precision!r}')
        self.objective = Objective(
            denoiser,
            self.loss,
            precision=precision,
            parts=check_integer("Trainer", "accumulation", accumulation, 1),
            process=(self.rank, self.world),
            find_unused_parameters=check_bool(
                "Trainer", "find_unused_parameters", find_unused_parameters
            ),
        )
        self.updates = updates_of(
            [self.network, *([self.loss] if isinstance(self.loss, nn.Module) else [])],
            lr=lr,
            second_lr=fidelity_lr,
            warmup=warmup,
            decay=decay,
            weight_decay=weight_decay,
            optimizer=optimizer,
            clip=clip,
            second_clip=fidelity_clip,
            weight=fidelity_weight,
            ema=ema,
        )
        if fidelity is not None:  # now rather than in the first iteration
            fidelity.check(self.loss.current(denoiser), self.feeding.batch_size, self.world)
        self.detector = CollapseDetector()
        self.iteration = 0
        self.failures = {"diffusion loss": 0, "fidelity loss": 0}
        self.history: list[dict[str, Any]] = []
        settings = {
            "prediction": denoiser.prediction,
            "shape": list(denoiser.shape),
            "data": self.feeding.count,
            "batch_size": self.feeding.batch_size,
            "seed": self.seed,
            "loss": repr(self.loss),
            "optimizer": type(self.updates.optimizer.optimizer).__name__,
            "schedule": _named(denoiser.schedule),
            "fidelity": repr(fidelity),
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
        where that is deterministic and the same in every iteration. Its network is the trainer's
        own, which further training changes: `copy.deepcopy` keeps it as it is.
        """
        return self._bare(self.updates.averages[0], self.averaged_loss)

    @property
    def averaged_loss(self) -> Loss:
        """The diffusion loss with the moving average of what it learns."""
        return next(iter(self.updates.averages[1:]), self.loss)  # type: ignore[return-value]

    @property
    def current(self) -> Denoiser:
        """The model with the weights of the last step, and the schedule as it is learned now.

        Its network is the one in training: `copy.deepcopy` keeps it as it is.
        """
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

        Ctrl-C and SIGTERM end the iteration, save, and then stop.

        Returns:
            `averaged`.

        Raises:
            RuntimeError: a gradient was not finite in 20 iterations in a row.
        """
        last = check_integer("Trainer.run", "iterations", iterations, 0)
        stream = self.feeding.stream(self.iteration)
        hidden = not self.progress or self.rank > 0
        bar = tqdm(total=last, initial=self.iteration, disable=hidden, unit="it", desc="train")
        with bar, training(self.network), deferred_interrupts() as interrupt:
            while self.iteration < last:
                line = self._iterate(next(stream))
                self.iteration += 1
                bar.update()
                bar.set_postfix(loss=f"{line['loss']:.4g}", refresh=False)
                # All processes stop at the same iteration: each would wait for the others.
                asked = torch.tensor([float(interrupt.asked)])
                stops = bool(summed(asked, self.denoiser.device) > 0)
                failed = max(self.failures, key=lambda name: self.failures[name])
                # A run that is taken up after it has failed may try again.
                hopeless = self.failures[failed] >= _PATIENCE and _has_failed(line)
                due = self.iteration == last or self.iteration % self.save_every == 0
                if due or hopeless or stops:
                    self.save()
                if stops:
                    interrupt.stop()
                if hopeless:
                    raise RuntimeError(
                        f"Trainer: the gradient of the {failed} must be finite, got none that is "
                        f"in {_PATIENCE} iterations up to {self.iteration}; try a lower rate"
                    )
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
                with evaluating(self.network):  # with checkpoints the gradient runs it again
                    found = self._fidelity(batch)
                    gradients = self.updates.gradients(found.loss)
        norms = self.updates.step(self.iteration, gradients)
        return self._noted(loss, found, norms)

    def _fidelity(self, batch: Batch) -> Fidelity:
        assert self.fidelity is not None
        denoiser = self.loss.current(self.objective.denoiser)
        return self.fidelity(denoiser, batch.x0, iteration=self.iteration, cond=batch.cond.mapping)

    def _noted(self, loss: Tensor, found: Fidelity | None, norms: Norms) -> dict[str, Any]:
        own = summed(loss.double().cpu().reshape(1), loss.device)
        line: dict[str, Any] = {
            "iteration": self.iteration,
            "loss": float(own[0]) / self.world,
            "norm": norms.diffusion,
            "skipped": norms.skipped,
        }
        self._count("diffusion loss", norms.skipped)
        if found is not None:
            line |= {
                "fidelity": float(found.loss.detach()),
                "fidelity_norm": norms.fidelity,
                "fidelity_skipped": norms.skipped or norms.dropped,
            }
            samples, data = gathered(found.samples), gathered(found.data)
            # One sample has no spread, nor have copies of one.
            if len(samples) > 1 and len(data) > 1 and bool((data != data[:1]).any()):
                line |= self.detector.update(samples, data)
            line["times"] = found.plan.times.tolist()
            self._count("fidelity loss", norms.dropped)
        self.history.append(line)
        del self.history[:-_REMEMBERED]
        self.archive.add(line)
        return line

    def _count(self, name: str, failed: bool) -> None:
        """Failures in a row."""
        self.failures[name] = self.failures[name] + 1 if failed else 0
        if self.failures[name] == 1:
            warn_user(
                f"Trainer: the gradient of the {name} was not finite in iteration "
                f"{self.iteration}; it is left out, and {_PATIENCE} in a row end the training"
            )

    # ---- files

    def save(self) -> Path | None:
        """Write a checkpoint now (process 0 does); None without a folder."""
        notes = {
            "detector": self.detector.state(),
            "failures": self.failures,
            "optimizers": self.updates.notes(),
        }
        return self.archive.save(self.iteration, self.updates.tensors, notes)

    def _restore(self, found: Checkpoint) -> None:
        self.updates.load(found.tensors, found.notes["optimizers"])
        self.detector.load_state(found.notes["detector"])
        self.iteration, self.failures = found.iteration, dict(found.notes["failures"])


def _has_failed(line: Mapping[str, Any]) -> bool:
    return line["skipped"] or line.get("fidelity_skipped", False)


def _named(schedule: NoiseSchedule) -> str:
    """A schedule with a digest, since tables print alike."""
    values = json.dumps(schedule.to_dict(), sort_keys=True)
    return f"{schedule!r}, {hashlib.sha256(values.encode()).hexdigest()[:8]}"
