"""Implements `Trainer`: a diffusion loss, and optionally a fidelity loss, on one network."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from fastsample._support.checks import check_bool, check_integer, check_real
from fastsample._support.distributed import check_agreement, process, summed
from fastsample.denoiser.denoiser import Denoiser
from fastsample.training.fidelity.loss import FidelityLoss, FidelityResult
from fastsample.training.losses.diffusion import DiffusionLoss
from fastsample.training.randomness import RandomStreams
from fastsample.training.trainer.checkpoints import Checkpoint
from fastsample.training.trainer.data import Batch, Batches
from fastsample.training.trainer.fidelity_term import FidelityTerm, as_term
from fastsample.training.trainer.objective import (
    DiffusionObjective,
    Loss,
    Precision,
    check_losses,
    network_of,
)
from fastsample.training.trainer.optimizer import Optimizer
from fastsample.training.trainer.record import MAX_FAILURES, RunRecord
from fastsample.training.trainer.run_folder import RunFolder
from fastsample.training.trainer.session import deferred_interrupts, evaluating, training
from fastsample.training.trainer.settings import run_settings
from fastsample.training.trainer.weight_updates import WeightUpdater


class Trainer:
    """Trains or fine-tunes a network, resumable bit for bit, in one process or under torchrun.

    An iteration draws a batch, computes the gradients of the diffusion loss (under torchrun with
    `DistributedDataParallel`) and of the fidelity loss (summed over processes), changes the
    weights, and updates a moving average of them. All random numbers are functions of (seed,
    iteration, sample): a resumed run equals an uninterrupted one, and up to rounding the number of
    processes does not matter, except for dropout masks.

    If the diffusion loss's gradient is not finite, the iteration changes nothing; if only the
    fidelity loss's is not, the iteration goes on without it.

    The network of `denoiser` is trained in place. Chains of the fidelity loss run it in evaluation
    mode, as samplers do.

    Args:
        denoiser: the model; its network must be a `torch.nn.Module`.
        data: tensor `(N, *shape)`, or a data set with a length and numbered items: tensors
            `(*shape)`, or mappings with "x0" and the network's keyword arguments. If items are
            random (augmented, say), a resumed run sees the same ones only if they are functions of
            their number.
        loss: `DiffusionLoss` or `VDMLoss` (whose end points of the schedule are trained too); None
            is ``DiffusionLoss.of(denoiser)``.
        fidelity: a `FidelityLoss`, or a `FidelityTerm` with its weight, learning rate and how
            often it is used; None trains with the diffusion loss alone.
        optimizer: learning rate, weight decay, gradient clipping and the optimiser's class.
        folder: folder for checkpoints and the log ``log.jsonl``; None writes nothing.
        resume: go on from the folder's newest checkpoint, if it has one.
        cond: with a tensor of data: keyword arguments of the network, N entries or a number each.
        cond_dropout: share of samples, in [0, 1], that are trained without their condition, for
            classifier-free guidance.
        batch_size: samples of an iteration, all processes together.
        accumulation: number of parts that the diffusion loss sees one after the other, to save
            memory.
        ema: decay of the weights' moving average per iteration, in [0, 0.999999]; it is less in
            the first iterations.
        precision: "bfloat16" runs the network under autocast; weights and all other arithmetic
            keep their dtype. None uses the network's own.
        find_unused_parameters: under `torch.distributed`, for a network with parameters that no
            output depends on.
        workers: processes that load items of a data set; 0 loads them in this process.
        save_every: iterations between checkpoints; the last iteration always has one.
        seed: 64-bit seed of all random numbers.
        progress: show a progress bar.

    Attributes:
        iteration: number of iterations made.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: data of another shape, a folder with another model's checkpoints, checkpoints
            without `resume`, or an argument out of its range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        data: Tensor | Dataset[Any],
        *,
        loss: Loss | None = None,
        fidelity: FidelityLoss | FidelityTerm | None = None,
        optimizer: Optimizer = Optimizer(),  # noqa: B008  # it is immutable
        folder: str | Path | None = None,
        resume: bool = False,
        cond: Mapping[str, Any] | None = None,
        cond_dropout: float = 0.0,
        batch_size: int = 128,
        accumulation: int = 1,
        ema: float = 0.999,
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
        self.fidelity = as_term(fidelity)
        check_losses(denoiser, self.loss, self.fidelity)
        if not isinstance(optimizer, Optimizer):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                "Trainer: optimizer must be a fastsample.training.Optimizer, "
                f"got {optimizer!r:.60}; for another optimiser pass Optimizer(make=...)"
            )
        if isinstance(self.loss, nn.Module):
            self.loss.to(denoiser.device)
        self.save_every = check_integer("Trainer", "save_every", save_every, 1)
        self.progress = check_bool("Trainer", "progress", progress)
        self.batches = Batches(
            denoiser,
            data,
            cond,
            cond_dropout=check_real("Trainer", "cond_dropout", cond_dropout, 0.0, 1.0),
            batch_size=check_integer("Trainer", "batch_size", batch_size, self.world),
            seed=self.seed,
            workers=check_integer("Trainer", "workers", workers, 0),
            process=(self.rank, self.world),
        )
        if precision not in (None, "bfloat16"):
            raise ValueError(f'Trainer: precision must be "bfloat16" or None, got {precision!r}')
        self.objective = DiffusionObjective(
            denoiser,
            self.loss,
            precision=precision,
            parts=check_integer("Trainer", "accumulation", accumulation, 1),
            process=(self.rank, self.world),
            find_unused_parameters=check_bool(
                "Trainer", "find_unused_parameters", find_unused_parameters
            ),
        )
        trained = [self.network, *([self.loss] if isinstance(self.loss, nn.Module) else [])]
        self.updater = WeightUpdater(trained, optimizer=optimizer, fidelity=self.fidelity, ema=ema)
        if self.fidelity is not None:  # Fail now rather than in the first iteration.
            current = self.loss.current(denoiser)
            self.fidelity.loss.check(current, self.batches.batch_size, self.world)
        self.iteration = 0
        self.record = RunRecord(self.world)
        self.folder = RunFolder(
            None if folder is None else Path(folder),
            run_settings(
                denoiser,
                self.batches,
                self.loss,
                self.fidelity,
                self.updater.optimizer.optimizer,
            ),
            resume=check_bool("Trainer", "resume", resume),
            restore=self._restore,
            writes=self.rank == 0,
        )
        for name, value in (("data", self.batches.count), ("iteration", self.iteration)):
            check_agreement("Trainer", name, value, denoiser.device)

    # ---- results

    @property
    def history(self) -> list[dict[str, Any]]:
        """Return the newest lines of the log (at most 10,000), oldest first."""
        return self.record.history

    @property
    def averaged(self) -> Denoiser:
        """Return the model with averaged weights, from which samples should be drawn.

        ``fs.sample(model, K)`` then runs the chain of K steps that the fidelity loss trained, if
        that chain is deterministic and the same in every iteration. The network is the trainer's,
        which further training changes: `copy.deepcopy` keeps it as it is.
        """
        return self._with_network(self.updater.averages[0], self.averaged_loss)

    @property
    def averaged_loss(self) -> Loss:
        """Return the diffusion loss with averaged values of its trained parameters, if any."""
        return cast("Loss", next(iter(self.updater.averages[1:]), self.loss))

    @property
    def current(self) -> Denoiser:
        """Return the model with the latest weights, and the schedule as learned so far.

        Its network is the one in training: `copy.deepcopy` keeps it as it is.
        """
        return self._with_network(self.network, self.loss)

    def _with_network(self, network: nn.Module, loss: Loss) -> Denoiser:
        """Return the model with another network and the loss's schedule."""
        source = loss.current(self.denoiser)
        chains = [] if self.fidelity is None else self.fidelity.loss.plans.fixed_plans(source)
        model = copy.copy(source)
        model.model = network
        # Drop profile and tuned plans, which belong to the weights that they were made with.
        model.profile, model.plans = None, {}
        return model.with_plans({plan.calls: plan for plan in chains})

    # ---- the loop

    def run(self, iterations: int) -> Denoiser:
        """Train until `iterations` have been made in all, including those before a resumption.

        Ctrl-C and SIGTERM wait for the end of the iteration and a checkpoint, then stop.

        Args:
            iterations: total number of iterations.

        Returns:
            `averaged`.

        Raises:
            RuntimeError: a gradient was not finite in 20 iterations in a row.
        """
        last = check_integer("Trainer.run", "iterations", iterations, 0)
        batches = self.batches.starting_at(self.iteration)
        hidden = not self.progress or self.rank > 0
        bar = tqdm(total=last, initial=self.iteration, disable=hidden, unit="it", desc="train")
        with bar, training(self.network), deferred_interrupts() as interrupt:
            while self.iteration < last:
                line = self._iterate(next(batches))
                self.iteration += 1
                bar.update()
                bar.set_postfix_str(f"loss={line['loss']:.4g}", refresh=False)
                # All processes must stop at the same iteration, or some would wait for ever.
                flag = torch.tensor([float(interrupt.is_set)])
                stops = bool(summed(flag, self.denoiser.device) > 0)
                failed = self.record.failed_loss()
                due = self.iteration == last or self.iteration % self.save_every == 0
                if due or failed is not None or stops:
                    self.save()
                if stops:
                    interrupt.stop()
                if failed is not None:
                    raise RuntimeError(
                        f"Trainer: the gradient of the {failed} must be finite, got none that is "
                        f"in {MAX_FAILURES} iterations up to {self.iteration}: NaN, or an overflow "
                        "of the data, the loss or the network; look for large values in the data, "
                        "try precision=None, or try a lower rate if the loss grew before"
                    )
        return self.averaged

    def _iterate(self, batch: Batch) -> dict[str, Any]:
        """Make one iteration, and return its line of the log."""
        streams = RandomStreams(self.seed, self.iteration)
        device = batch.x0.device
        cuda = [device] if device.type == "cuda" else []
        # The ignored pyright errors arise because torch lacks types for these arguments.
        with torch.random.fork_rng(devices=cuda), torch.enable_grad():  # pyright: ignore[reportUnknownMemberType]
            # Seed dropout, differently in every process.
            torch.manual_seed(streams.key("network") ^ self.rank)  # pyright: ignore[reportUnknownMemberType]
            self.updater.zero_gradients()
            loss = self.objective.backward(batch, streams)
            result, gradients = None, None
            if self.fidelity is not None and self.iteration % self.fidelity.every == 0:
                # The gradient needs this mode too: checkpointing runs the network again there.
                with evaluating(self.network):
                    result = self._run_chain(self.fidelity.loss, batch)
                    gradients = self.updater.fidelity_gradients(result.loss)
        norms = self.updater.step(self.iteration, gradients)
        line = self.record.add(self.iteration, loss, result, norms)
        self.folder.log(line)
        return line

    def _run_chain(self, fidelity: FidelityLoss, batch: Batch) -> FidelityResult:
        denoiser = self.loss.current(self.objective.denoiser)
        return fidelity(denoiser, batch.x0, iteration=self.iteration, cond=batch.cond.mapping)

    # ---- checkpoints

    def save(self) -> Path | None:
        """Write a checkpoint now.

        Returns:
            The path of the file; None without a folder, and in all processes but the first.
        """
        notes = {**self.record.state(), "optimizers": self.updater.changed_settings()}
        return self.folder.save(self.iteration, self.updater.tensors, notes)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.updater.load(checkpoint.tensors, checkpoint.notes["optimizers"])
        self.record.load_state(checkpoint.notes)
        self.iteration = checkpoint.iteration
