"""The class `Sampler`: a sampler that is planned once and run many times."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fastsample._support.checks import check_bool, check_integer, check_real
from fastsample._support.tensors import make_device
from fastsample.denoiser.threshold import Threshold
from fastsample.denoiser.wrap import as_denoiser
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Clip
from fastsample.sampling.advance import Part, SamplerStack
from fastsample.sampling.batch import Batch, check_dtype
from fastsample.sampling.diagnosis import call_counter, raise_first_bad_row
from fastsample.sampling.graph import Graphs
from fastsample.sampling.history import History
from fastsample.sampling.loop import Step, run
from fastsample.sampling.noise import as_seed
from fastsample.sampling.program import Program
from fastsample.sampling.recent import Prepared, Recent, prepare
from fastsample.sampling.resolve import PlanRequest, Steps, unconditional
from fastsample.sampling.until import until
from fastsample.schedules.schedule import NoiseSchedule


class Sampler:
    """A sampler for one model, planned once and run many times, from several threads if need be.

    The constructor takes what does not depend on the batch, a call takes the rest::

        sampler = fs.Sampler(model, steps=10, guidance=3.0)
        images = sampler(num_samples=16, seed=0)

    `fastsample.sample` is this class in one call; its documentation describes the arguments. The
    plan is that of the moment of construction: a profile or plans that the model is given later do
    not change it. On a CPU a sampler keeps the buffers in which a multistep method looks back.

    Args:
        model: as for `sample`, like all the arguments that follow.
        steps: number of network calls, times, or a plan; None is 10, or the length of a list of
            variances or noise levels.
        method: the sampler.
        grid: how the times are spread.
        grid_seed: seed of the times of ``grid="random"``.
        whole: whether the network takes whole times only.
        shape: shape of one sample, for a bare callable.
        schedule: noise schedule for a bare callable.
        clip: range that x0 is clamped to.
        guidance: classifier-free guidance scale.
        guidance_interval: times between which rows are guided.
        guidance_rescale: weight of guidance rescaling.
        threshold: dynamic thresholding.
        uncond: conditions that mean "no condition".
        device: device of the samples.
        dtype: dtype of the samples.
        graph: replay CUDA graphs. A graph is captured in the first call with new shapes or dtypes
            of samples or conditions, which runs the network twice more than the plan says; later
            calls do not. The sampler keeps the memory of its graphs.
        batch_size: samples per run; more are drawn in several runs, with the same results. None
            runs all samples at once.
        **knobs: further keyword arguments of the method.

    Attributes:
        denoiser: the model.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, or a plan that does not fit the model.
    """

    def __init__(
        self,
        model: Any,
        steps: Steps | None = None,
        *,
        method: str = "auto",
        grid: str = "auto",
        grid_seed: int | None = None,
        whole: bool = False,
        shape: Sequence[int] | None = None,
        schedule: NoiseSchedule | None = None,
        clip: Clip | Literal["auto"] = "auto",
        guidance: float | Sequence[float] | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        threshold: Threshold | Literal["auto"] | None = "auto",
        uncond: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        graph: bool = False,
        batch_size: int | None = None,
        **knobs: Any,
    ) -> None:
        request = PlanRequest(
            steps,
            method,
            grid,
            clip,
            knobs,
            grid_seed,
            guidance,
            guidance_interval,
            guidance_rescale,
            threshold,
            whole=whole,
            models_last=True,
        )
        self._set_up(
            "Sampler", model, request, shape, schedule, uncond, device, dtype, graph, batch_size
        )

    @classmethod
    def from_request(cls, name: str, *arguments: Any) -> Sampler:
        """Return a sampler whose messages speak of the function `name`, for `sample`."""
        sampler = cls.__new__(cls)
        sampler._set_up(name, *arguments)
        return sampler

    def _set_up(
        self,
        name: str,
        model: Any,
        request: PlanRequest,
        shape: Sequence[int] | None,
        schedule: NoiseSchedule | None,
        uncond: Mapping[str, Any] | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        graph: bool,
        batch_size: int | None,
    ) -> None:
        """Check and resolve the arguments; `name` is the function that messages speak of."""
        self._name, self._request = name, request
        self.denoiser = as_denoiser(model, shape, schedule, name)
        self._prepared = _prepared(name, self.denoiser, request)
        self._uncond = unconditional(
            name, self.denoiser, self.plan, uncond, asked=request.guidance is not None
        )
        self._device = make_device(name, device)
        self._dtype = None if dtype is None else check_dtype(name, dtype)
        self._batch_size = (
            None if batch_size is None else check_integer(name, "batch_size", batch_size, 1)
        )
        self._make_memory(check_bool(name, "graph", graph))

    @property
    def plan(self) -> Plan:
        """The plan that a call without `stop` runs."""
        return self._prepared.resolved.plan

    @property
    def seed(self) -> Any:
        """The seed of this thread's last call: the one passed, or the fresh one that was drawn.

        None before the first call, and after one that needed no random numbers.
        """
        return getattr(self._last, "seed", None)

    def __repr__(self) -> str:
        return f"Sampler of {self.denoiser!r}\n{self.plan!r}"

    def __call__(
        self,
        num_samples: int | None = None,
        *,
        seed: int | Sequence[int] | torch.Generator | None = None,
        sample_index: int | Sequence[int] | Tensor | None = None,
        start: Tensor | None = None,
        noise: Tensor | None = None,
        cond: Mapping[str, Any] | None = None,
        stop: float | None = None,
        progress: bool = False,
        callback: Callable[[Step], object] | None = None,
        return_states: bool = False,
    ) -> Tensor:
        """Draw samples.

        Args:
            num_samples: as for `fastsample.sample`, like all the arguments that follow.
            seed: seed of the noise, one per sample, or a generator; None draws a fresh one.
            sample_index: global index of each sample, or of the first one.
            start: x at the plan's first node.
            noise: the noise of the rows.
            cond: keyword arguments of the network.
            stop: time above 0 at which to stop.
            progress: show a progress bar.
            callback: called after each row with a `Step`.
            return_states: return all states of the run.

        Returns:
            ``(B, *shape)``; with `return_states` ``(K' + 1, B, *shape)``.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: an argument out of range, shapes that do not fit, or a network that returns
                NaN or infinity (the message names the row and time).

        Warns:
            UserWarning: no `start`, and a plan whose first node is far from noise.
        """
        name = self._name
        if callback is not None and not callable(callback):
            raise TypeError(f"{name}: callback must be callable, got {callback!r}")
        check_bool(name, "return_states", return_states)
        prepared = self._prepared if stop is None else self._until(stop)
        plan, correct = prepared.resolved.plan, prepared.resolved.correct
        if start is None:
            self._prepared.warn_of_start(name)
        if start is None or (noise is None and prepared.is_stochastic):
            seed = as_seed(name, seed)
        elif isinstance(seed, torch.Generator):
            seed = None  # nothing is drawn, so the generator stays as it is
        batch = Batch.of(
            name,
            self.denoiser,
            len(plan),
            num_samples=num_samples,
            seed=seed,
            sample_index=sample_index,
            start=start,
            noise=noise,
            cond=cond,
            uncond=self._uncond,
            device=self._device,
            dtype=self._dtype,
            draws_noise=prepared.is_stochastic,
            start_scale=self.denoiser.schedule.start_scale(float(plan.nodes[0])),
        )
        self._last.seed = seed
        if self._graphs and (
            batch.needs_grad or callback or return_states or noise is not None or correct
        ):
            raise ValueError(
                f"{name}: graph must be False with gradients, a callback, return_states, explicit "
                "noise, guidance_rescale or threshold, got True"
            )
        program = prepared.program(self.denoiser, batch.device)
        parts = batch.parts(self._batch_size)
        if not progress:
            results = [
                self._run(prepared, program, part, callback, return_states) for part in parts
            ]
        else:
            with call_counter(len(parts) * plan.calls) as count_call:
                results = [
                    self._run(prepared, program, part, callback, return_states, count_call)
                    for part in parts
                ]
        return results[0] if len(results) == 1 else torch.cat(results, dim=int(return_states))

    def start(
        self,
        num_samples: int | None = None,
        *,
        seed: int | Sequence[int] | torch.Generator | None = None,
        sample_index: int | Sequence[int] | Tensor | None = None,
    ) -> Tensor:
        """Return the noise that a call starts from, ``(B, *shape)``; see `SamplerStack.start`."""
        return self._as_stack().start(num_samples, seed=seed, sample_index=sample_index)

    def advance(
        self,
        x: Tensor,
        row: int | Sequence[int] | Tensor,
        *,
        seed: int | Sequence[int] | None = None,
        sample_index: int | Sequence[int] | Tensor | None = None,
        cond: Mapping[str, Any] | None = None,
        history: History | None = None,
    ) -> Tensor:
        """Carry every sample of a batch over a row of its own, with at most one network call.

        A server can thus let samples join and leave a running batch. `SamplerStack.advance` does
        the same for samples of different samplers, and describes the arguments and errors.

        Args:
            x: samples ``(B, *shape)``.
            row: the row that each sample is to take, one for all or one per sample; -1 lets a
                sample rest.
            seed: seed of the noise, one for all or one per sample.
            sample_index: global index of each sample, or of the first one.
            cond: keyword arguments of the network.
            history: the earlier x0's, for multistep plans.

        Returns:
            x after the rows, ``(B, *shape)``.
        """
        return self._as_stack().advance(
            x, row, seed=seed, sample_index=sample_index, cond=cond, history=history
        )

    @property
    def part(self) -> Part:
        """What a `SamplerStack` needs to know of this sampler."""
        resolved = self._prepared.resolved
        corrects = resolved.correct is not None
        return Part(self.denoiser, resolved.plan, self._uncond, corrects, self._device, self._dtype)

    def _as_stack(self) -> SamplerStack:
        """Return the stack of this sampler alone."""
        if self._stack is None:
            self._stack = SamplerStack.of_part(self.part)
        return self._stack

    def _run(
        self,
        prepared: Prepared,
        program: Program,
        batch: Batch,
        callback: Callable[[Step], object] | None,
        return_states: bool,
        count_call: Callable[[], object] | None = None,
    ) -> Tensor:
        """Run the plan on one batch, and check that the result is finite."""
        correct = prepared.resolved.correct
        x = batch.make_start()
        states = [x] if return_states else None

        def after_row(step: Step) -> None:
            if states is not None:
                states.append(step.x)
            if callback:
                callback(step)

        if self._graphs:
            x = self._graphs.run(program, batch, x, count_call)
        else:
            spare = self._take_spare()
            x = run(
                self.denoiser,
                program,
                x,
                identity=batch.identity,
                noise=batch.noise,
                conditions=batch.conditions,
                in_place=batch.start is None and not batch.needs_grad,
                inference=not batch.needs_grad,
                callback=after_row if callback or return_states else None,
                correct=correct,
                count_call=count_call,
                spare=spare,
            )
            if x.is_cpu and spare:
                self._spare.append(spare)
        # The host waits for the device only here, after the loop.
        if not is_finite(x.detach()):
            raise_first_bad_row(
                self.denoiser,
                program.plan,
                batch.make_start,
                batch.identity,
                batch.noise,
                batch.conditions,
                correct,
                self._name,
            )
        return x if states is None else torch.stack(states)

    def _until(self, stop: float) -> Prepared:
        """Return the plan that ends at a time."""
        time = check_real(self._name, "stop", stop, 0.0)
        whole = self._prepared.resolved
        return self._stopped.get(
            time, lambda: Prepared(until(self._name, self.denoiser, self._request, whole, time))
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs: it plans anew what belongs to threads, runs and graphs."""
        state = dict(self.__dict__)
        for name in ("_prepared", "_stopped", "_last", "_spare", "_graphs", "_stack"):
            del state[name]
        return {**state, "resolved": self._prepared.resolved, "graph": self._graphs is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        resolved, graph = state.pop("resolved"), state.pop("graph")
        self.__dict__.update(state)
        self._prepared = Prepared.of(self.denoiser, resolved)
        self._make_memory(graph)

    def _make_memory(self, graph: bool) -> None:
        """Make what the sampler remembers between calls."""
        self._graphs = Graphs(self._name) if graph else None
        self._stack: SamplerStack | None = None
        self._stopped: Recent[Prepared] = Recent(8)
        self._last = threading.local()
        self._spare: list[list[Tensor]] = []  # history buffers, one list per concurrent run

    def _take_spare(self) -> list[Tensor]:
        """Return buffers of an earlier run, which no other run can use meanwhile."""
        try:
            return self._spare.pop()
        except IndexError:
            return []


def is_finite(x: Tensor) -> bool:
    """Return whether all elements are finite."""
    # A sum is finite only if all its terms are, and cheaper than a mask of all elements.
    dtype = x.dtype if x.dtype.itemsize > 2 else torch.float32
    return math.isfinite(x.sum(dtype=dtype).item()) or bool(torch.isfinite(x).all())


def _prepared(name: str, denoiser: Any, request: PlanRequest) -> Prepared:
    """Return the prepared plan of a request, also while torch.compile traces the caller."""
    # torch.compile cannot trace NumPy code. `prepare` is not disabled by a decorator, because that
    # would import torch's compiler, which takes 2 s, whenever this module is imported.
    untraced: Any = prepare
    if torch.compiler.is_compiling():
        untraced = torch.compiler.disable(prepare)  # pyright: ignore[reportUnknownMemberType]
    return untraced(name, denoiser, request)
