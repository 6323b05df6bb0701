"""The class `SamplerStack`: one network call for a batch in which every sample is at its own row.

Servers call this continuous batching: a request joins the running batch when a place is free, and
leaves when its last row is done, while the others go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fastsample import ops
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.denoiser.leaves import equal_leaves
from fastsample.denoiser.training_mode import warn_of_training_mode
from fastsample.plans.plan import Plan
from fastsample.sampling.first_node import warn_of_signal
from fastsample.sampling.history import History, earlier_x0s
from fastsample.sampling.mixed_rows import RowTable, check_samples, numbers_of
from fastsample.sampling.noise import agreed_batch, as_seed, make_identity


class Part(NamedTuple):
    """What a `SamplerStack` needs to know of a sampler."""

    denoiser: Denoiser
    plan: Plan
    uncond: Mapping[str, Any] | None
    """The conditions that mean "no condition"; None without guidance."""
    corrects: bool
    """Whether guidance rescaling or dynamic thresholding changes the network's outputs."""
    device: torch.device | None
    dtype: torch.dtype | None


class HasPart(Protocol):
    """The property of `fastsample.Sampler` that is read here.

    It is a protocol, because the module of `Sampler` imports this one.
    """

    @property
    def part(self) -> Part:
        """What a stack needs to know of the sampler."""
        ...


class SamplerStack:
    """Several samplers of one model whose samples share network calls, for servers.

    One call of `advance` carries every sample of a batch over one row of its own plan, with at most
    one network call. The samples may be at different rows of different samplers: other numbers of
    steps, other methods, other guidance scales::

        stack = fs.SamplerStack([fs.Sampler(model, steps) for steps in (4, 10, 20)])
        history = fs.History()
        x = stack.start(seed=[3, 14, 15])
        x = stack.advance(x, [0, 0, 0], sampler=[0, 1, 2], seed=[3, 14, 15], history=history)

    The result of a sample is that of its own sampler alone, bit for bit where the network's output
    for a sample does not depend on the batch. `examples/serving.py` is a whole server loop.

    Args:
        samplers: the samplers, of the same network, shape and kind of variance. Their plans are
            those of construction; `graph` and `batch_size` have no effect here.

    Attributes:
        plans: the plans of the samplers.

    Raises:
        TypeError: other things than samplers.
        ValueError: no sampler, samplers of different models or unconditional values, or one with
            `guidance_rescale` or `threshold`.
    """

    def __init__(self, samplers: Sequence[HasPart]) -> None:
        for sampler in samplers:
            if not isinstance(getattr(sampler, "part", None), Part):
                raise TypeError(
                    f"SamplerStack: samplers must be Samplers, got {type(sampler).__name__}"
                )
        self._set_up("SamplerStack", [sampler.part for sampler in samplers])

    @classmethod
    def of_part(cls, part: Part) -> SamplerStack:
        """Return the stack of a single sampler."""
        stack = cls.__new__(cls)
        stack._set_up("advance", [part])
        return stack

    def _set_up(self, function: str, parts: list[Part]) -> None:
        """Check that the samplers go together."""
        if not parts:
            raise ValueError(f"{function}: samplers must be at least one Sampler, got none")
        first = parts[0].denoiser
        self._uncond: Mapping[str, Any] | None = None
        for part in parts:
            other = part.denoiser
            if (
                other.model is not first.model
                or other.shape != first.shape
                or (other.variance == "learned_range") != (first.variance == "learned_range")
            ):
                raise ValueError(
                    f"{function}: samplers must be of one network, shape and kind of variance, "
                    f"got {first!r} and {other!r}"
                )
            if part.corrects:
                raise ValueError(
                    f"{function}: guidance_rescale and threshold must be off, got a sampler with "
                    "one; they are applied by whole runs only"
                )
            if part.uncond is not None:
                if self._uncond is not None and not equal_leaves(self._uncond, part.uncond):
                    raise ValueError(
                        f"{function}: samplers must have the same uncond, got {self._uncond!r:.80} "
                        f"and {part.uncond!r:.80}"
                    )
                self._uncond = part.uncond
        self._parts = parts
        self.plans = tuple(part.plan for part in parts)
        self._tables: dict[torch.device, RowTable] = {}
        self._started: set[int] = set()  # samplers whose first node `start` has looked at
        # For each plan, the number of earlier x0's that its rows read.
        self._histories = np.array([plan.needs_history for plan in self.plans], np.int64)
        self._scales = np.array(
            [part.denoiser.schedule.start_scale(float(part.plan.nodes[0])) for part in parts]
        )

    def __repr__(self) -> str:
        return f"SamplerStack of {len(self.plans)} plans for {self._parts[0].denoiser!r}"

    def start(
        self,
        num_samples: int | None = None,
        *,
        sampler: int | Sequence[int] | Tensor = 0,
        seed: int | Sequence[int] | torch.Generator | None = None,
        sample_index: int | Sequence[int] | Tensor | None = None,
    ) -> Tensor:
        """Return x before row 0: the noise with which `fastsample.sample` starts.

        Args:
            num_samples: the number of samples; None takes it from `seed` and `sample_index`.
            sampler: the number of each sample's sampler in the stack, which matters for schedules
                whose noise is not of deviation 1 (`NoiseSchedule.start_scale`).
            seed: seed of the noise, one per sample, or a generator; None draws a fresh one.
            sample_index: global index of each sample, or of the first one.

        Returns:
            ``(B, *shape)`` in the device and dtype of the first sampler.

        Raises:
            TypeError: samplers, seeds or indices that are no integers.
            ValueError: samplers, seeds or indices out of range, or for different numbers of
                samples.
        """
        part = self._parts[0]
        seed = as_seed("start", seed)
        size = agreed_batch("start", num_samples, None, None, None, sample_index, seed)
        device, dtype = part.denoiser.device_and_dtype("start", part.device)
        identity = make_identity("start", seed, sample_index, size, device)
        which = numbers_of("start", "sampler", sampler, size)
        self._table(device).numbers("start", np.zeros_like(which), which)  # checks `which`
        for number, one in enumerate(self._parts):
            if number not in self._started and np.any(which == number):
                self._started.add(number)
                warn_of_signal("start", one.denoiser.schedule, one.plan)
        x = ops.noise(*identity, part.denoiser.shape, dtype=part.dtype or dtype)
        scales = self._scales[which]
        # A number of Python is not rounded to the samples' dtype before the product, a tensor is.
        for scale in set(scales[scales != 1.0].tolist()):
            of_scale = torch.as_tensor(np.flatnonzero(scales == scale), device=device)
            x[of_scale] = x[of_scale] * scale
        return x

    def advance(
        self,
        x: Tensor,
        row: int | Sequence[int] | Tensor,
        *,
        sampler: int | Sequence[int] | Tensor = 0,
        seed: int | Sequence[int] | None = None,
        sample_index: int | Sequence[int] | Tensor | None = None,
        cond: Mapping[str, Any] | None = None,
        history: History | None = None,
    ) -> Tensor:
        """Carry every sample over one row of its own plan, with at most one network call.

        The network is given the samples whose rows call it (`Plan.calls_network`) and no others;
        where no row does, it is not called. If a row of any of these samples is guided (its scale
        is not 1), the call runs each of them twice, unconditional half first. No gradient flows
        through this: `fastsample.log_prob` is made for that.

        What is run is decided on the host: pass `row` and `sampler` as integers or tensors on the
        CPU, because reading them from a GPU waits for it. Nothing checks the result for NaN, which
        would wait as well: check a sample when it is done.

        Args:
            x: samples ``(B, *shape)``.
            row: the row that each sample is to take, from 0 (noisiest) to ``len(plan) - 1``; -1
                lets a sample rest: neither it nor its history changes, at no cost in the network.
            sampler: the number of each sample's sampler in the stack.
            seed: seed of the noise, one for all or one per sample; needed if any row draws noise.
                With those of the start, a sample is that of ``fs.sample`` with this seed.
            sample_index: global index of each sample, or of the first one. None counts from 0 with
                one seed, and is 0 for every sample with one seed per sample.
            cond: keyword arguments of the network, one entry per sample.
            history: the earlier x0's, which rows of multistep plans read; updated in place.

        Returns:
            x after the rows, ``(B, *shape)``, new memory.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: an argument out of range, a row that draws noise without a seed, or one that
                looks back without its earlier x0's.
        """
        name, denoiser = "advance", self._parts[0].denoiser
        x = check_samples(name, "x", x, denoiser).detach()
        warn_of_training_mode(name, denoiser.model)
        batch = x.shape[0]
        table = self._table(x.device)
        own = numbers_of(name, "row", row, batch)
        which = numbers_of(name, "sampler", sampler, batch)
        numbers = table.numbers(name, own, which, rests=True)
        multistep = bool(np.any(self._histories[which[own >= 0]]))
        if multistep and history is None:
            raise ValueError(
                f"{name}: history must be given for a plan whose rows look back, got None; pass "
                "the same fs.History() in every call"
            )
        if history is not None:
            if not isinstance(history, History):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"{name}: history must be a History, got {type(history).__name__}")
            history.begin(name, x, int(self._histories.max()), own == 0)
        earlier = earlier_x0s(name, history, x, table.looks_back[numbers])
        seeds, index = None, None
        if table.noisy[numbers].any():
            if seed is None:
                raise ValueError(f"{name}: seed must be given for rows that draw noise, got None")
            seeds, index = make_identity(name, seed, sample_index, batch, x.device)
        guided = bool(table.guided[numbers].any())
        conditions = Conditions(name, cond, self._uncond if guided else None, batch, x.device)
        with torch.no_grad():
            with torch.inference_mode():
                output, uncond = table.call(denoiser, x, numbers, conditions)
            # The kernel runs outside of inference mode, whose tensors callers could not train with.
            place, draw = torch.as_tensor(np.stack([numbers, own]), device=x.device).unbind()
            operands = {
                **{"uncond": uncond, "seeds": seeds, "index": index, "draw": draw},
                **dict(zip(("h1", "h2", "h3", "h4"), earlier, strict=True)),
            }
            if history is None or not multistep:
                return ops.step(x, output, table.rows, place, **operands)
            x, x0 = ops.step_x0(x, output, table.rows, place, **operands)
            history.push(x0, table.calls[numbers], table.returns[numbers])
            return x

    def _table(self, device: torch.device) -> RowTable:
        """Return the rows of all plans on a device."""
        table = self._tables.get(device)
        if table is None:
            table = RowTable.of(self.plans, [part.denoiser for part in self._parts], device)
            if ops.is_plain(table.rows, table.timesteps):  # fake tensors would fail in later calls
                self._tables[device] = table
        return table
