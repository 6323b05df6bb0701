"""The class `FastSampleScheduler`: this package's samplers inside the pipelines of diffusers."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import (
    randn_tensor,  # pyright: ignore[reportUnknownVariableType]
)
from torch import Tensor

from fastsample.integrations.diffusers.conventions import Conventions
from fastsample.integrations.diffusers.forward import ForwardProcess
from fastsample.integrations.diffusers.lists import course_of
from fastsample.integrations.diffusers.output import StepOutput
from fastsample.integrations.diffusers.request import Request, checked_request
from fastsample.integrations.diffusers.run import Run
from fastsample.integrations.diffusers.single import single_course
from fastsample.integrations.diffusers.stepper import MakeNoise, Stepper
from fastsample.sampling.noise import Identity, make_identity

__all__ = ["FastSampleScheduler", "SchedulerMixin"]  # Loading a pipeline looks up the mixin here.

_MOST_RUNS = 16  # kept per scheduler, since programs ask for the same few lists again and again
_MOST_SINGLES = 64


class FastSampleScheduler(ForwardProcess):
    """A scheduler for pipelines of diffusers that runs the samplers of this package.

    It replaces the scheduler of a pipeline, of images, latents, video or sound, diffusion or flow::

        pipe.scheduler = FastSampleScheduler.from_scheduler(pipe.scheduler, method="fastsample")

    Every step is one fused kernel with coefficients computed in float64. The network's conventions
    (betas, prediction, clipping, thresholding, last level, shift of flow models) are those of the
    scheduler that it replaces, its source. The config holds all of the source's arguments, and
    the choices of `from_scheduler` under a private key: pipelines save and load with it.

    Several threads may share a scheduler. Steps keep no state but the x0 estimates that multistep
    methods look back at, one set for each thread.

    Args:
        source: class name of the scheduler that is replaced.
        method: see `from_scheduler`.
        grid: see `from_scheduler`.
        seed: see `from_scheduler`.
        plan: see `from_scheduler`.
        compat: see `from_scheduler`.
        knobs: keyword arguments of the method.
        **config: arguments of the source.

    Raises:
        TypeError: an argument that the source does not take, or one of the wrong type.
        ValueError: a choice that does not go with the source.
    """

    def _set_up(self) -> None:
        super()._set_up()
        self._lock = threading.Lock()
        self._runs: dict[Any, Run] = {}
        self._singles: dict[Any, Run] = {}
        self._traced: tuple[Run | None, Stepper] = (None, Stepper())

    # ---- the list of timesteps

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: list[float] | Tensor | None = None,
        sigmas: list[float] | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """Choose the steps of the next run; pipelines call it.

        Args:
            num_inference_steps: the number K of network calls.
            device: where the timesteps go; None is the CPU.
            timesteps: falling timesteps of the network instead of a number.
            sigmas: falling sigmas instead of a number: t of flow-matching models, sigma / alpha of
                others; a final 0 may be there or not.
            mu: shift of the list of flow-matching models, which their pipelines compute from the
                resolution.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: both lists or none, one that does not fall or is out of range, a number of
                steps for which there is no plan.
        """
        with self._lock:
            config, found = self._present()
            request = checked_request(
                *(num_inference_steps, timesteps, sigmas, mu, found.is_flow),
                int(config["num_train_timesteps"]),
            )
            key = (id(config), request, torch.device("cpu" if device is None else device))
            run = self._runs.get(key)
            if run is None:
                while len(self._runs) >= _MOST_RUNS:
                    del self._runs[next(iter(self._runs))]
                run = self._runs[key] = self._new_run(config, found, request, key[-1])
                run.request = (request, key[-1])
            self._latest = run
        local = self._local
        local.run, local.begin, local.timesteps, local.stepper.next = run, None, None, None
        self._traced[1].next = None
        self._traced = (run, self._traced[1])

    def _new_run(
        self, config: Any, found: Conventions, request: Request, device: torch.device
    ) -> Run:
        """Compile a run."""
        source = self.replaced_scheduler
        course = course_of("set_timesteps", source, found, self._choices.settings, request)
        run = Run(course, device, config, found.threshold)
        if self._choices.settings.method == "auto" and type(source).__name__.startswith("Euler"):
            # Euler's own samples are larger by the root of 1 + sigma^2.
            spread = float(np.hypot(course.sigmas[0] / course.alphas[0], 1.0))
            run.start_scale = float(source.init_noise_sigma) / spread
        return run

    @property
    def num_inference_steps(self) -> int | None:
        """The number of steps of the run; None before `set_timesteps`."""
        return None if self._run is None else len(self._run)

    @property
    def init_noise_sigma(self) -> float:
        """The factor of the noise that a run starts from: 1, but slightly less for some of Euler's.

        Samples have the scale of the trained process here, also for Euler's scheduler, whose own
        samples are larger by the root of 1 + sigma^2.
        """
        return 1.0 if self._run is None else self._run.start_scale

    @property
    def timesteps(self) -> Tensor:
        """The network's timesteps in the order of the run `(K,)`; before one, the trained ones.

        A pipeline may put a part of them, or a copy, in their place; the steps stay what they are.
        """
        if self._local.timesteps is not None:
            return self._local.timesteps
        return self._trained if self._run is None else self._run.timesteps

    @timesteps.setter
    def timesteps(self, value: Tensor) -> None:
        self._local.timesteps = value

    @property
    def step_index(self) -> int | None:
        """The number of the step that follows; None before the first."""
        return self._local.stepper.next

    @property
    def begin_index(self) -> int | None:
        """The step with which the pipeline said that its run begins."""
        return self._local.begin

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say with which step the run begins, as image-to-image pipelines do."""
        self._traced[1].next = begin_index
        if not torch.compiler.is_compiling():
            self._local.begin = begin_index

    def previous_timestep(self, timestep: int | Tensor) -> Any:
        """Return the timestep that follows this one in the run; -1 after the last."""
        run = self._run
        if run is None:
            return timestep - 1
        k = self._number(run, timestep)
        if k is None:
            return timestep - self._scale // len(run)
        return run.timesteps[k + 1] if k + 1 < len(run) else torch.tensor(-1)

    def __len__(self) -> int:
        return self._scale

    def _last_request(self) -> Any:
        return None if self._run is None else self._run.request

    def _repeat_request(self, request: Any) -> None:
        if request is not None:
            asked, device = request
            lists = {"timesteps": asked.timesteps, "sigmas": asked.sigmas}
            given = {k: None if v is None else list(v) for k, v in lists.items()}
            self.set_timesteps(asked.steps, device, mu=asked.mu, **given)

    # ---- the step

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the sample itself: the network takes it as it is."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: int | float | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        per_token_timesteps: Tensor | None = None,
    ) -> StepOutput | tuple[Tensor]:
        """Return the samples at the next timestep; pipelines call it after the network.

        Timesteps taken from `timesteps` are recognised without a look at their values, so that the
        host does not wait for the device. Others cost such a wait; one that is not in the list is
        a single step to the next timestep below it.

        Args:
            model_output: the network's output `(B, C, ..)`, or `(B, 2 C, ..)` with a learned
                variance, which samplers that do not use it leave aside.
            timestep: the timestep that the network was given.
            sample: the samples before the step `(B, C, ..)`.
            eta: DDIM's eta, in [0, 1]; 0 is the scheduler's own.
            use_clipped_model_output: whether DDIM takes epsilon from the clipped x0; None is the
                scheduler's own.
            generator: source of the noise, one or one per sample, unless the scheduler has a seed.
            variance_noise: the noise itself `(B, C, ..)`.
            return_dict: return an object with `prev_sample` and `pred_original_sample`; False
                returns the tuple ``(prev_sample,)``.
            s_churn: must be 0, like all that follow at their defaults: Euler's churn is not built.
            s_tmin: see `s_churn`.
            s_tmax: see `s_churn`.
            s_noise: see `s_churn`.
            per_token_timesteps: must be None.

        Returns:
            The result, in the dtype of `sample`.

        Raises:
            TypeError: tensors of another type.
            ValueError: shapes or devices that do not fit, or an argument that the method does not
                know.
        """
        if s_churn or s_noise != 1.0 or per_token_timesteps is not None:
            _refuse(
                s_churn=(s_churn, 0.0),
                s_noise=(s_noise, 1.0),
                per_token_timesteps=(per_token_timesteps, None),
            )
        output = model_output
        # The kernel reads memory by address: shapes and devices must fit.
        fits = output.shape == sample.shape and output.device == sample.device
        if not (fits and sample.is_floating_point()):
            _check_output(output, sample)
        if output.dtype != sample.dtype:
            output = output.to(sample.dtype)
        if torch.compiler.is_compiling():
            run, stepper = self._traced
            k = stepper.next
            if run is None or k is None:
                raise RuntimeError(
                    "step: set_timesteps and set_begin_index(0) must be called before a compiled "
                    "loop, which cannot look up its timesteps"
                )
        else:
            run, stepper = self._local.run or self._latest, self._local.stepper
            k = None if run is None else run.number_of_view(timestep)
            if run is not None and run.shown_sigmas is not None and run.shown_sigmas._version:
                raise ValueError(
                    "step: sigmas of the scheduler must not be written to, got a change, which the "
                    "steps do not see; pass sigmas= or timesteps= to set_timesteps"
                )
        if run is None or k is None:
            run, k = self._found(run, timestep)
        identity: Identity | None = None
        make_noise: MakeNoise | None = None
        if not (run.is_stochastic or eta):
            pass
        elif self._choices.seed is not None and variance_noise is None:
            identity = self._identity(sample)
        else:

            def make_noise_as_diffusers() -> Tensor:
                return _noise(variance_noise, generator, model_output, sample)

            make_noise = make_noise_as_diffusers
        x = stepper.step(
            *(run, k, output, sample),
            eta=eta or None,
            rederive=use_clipped_model_output or None,
            identity=identity,
            make_noise=make_noise,
        )
        if not return_dict:
            return (x,)
        return StepOutput(x, sample, output, run.terms(k), run.threshold)

    def _found(self, run: Run | None, timestep: Any) -> tuple[Run, int]:
        """Return the run and number of a timestep that is no view of the thread's own list."""
        for other in list(self._runs.values()):
            number = other.number_of_view(timestep)
            if number is not None:
                return other, number
        if isinstance(timestep, Tensor) and timestep.numel() != 1:
            raise ValueError(
                f"step: timestep must be one number, got shape {tuple(timestep.shape)}"
            )
        if run is not None:
            number = run.number_of_value(timestep, self._local.stepper.next)
            if number is not None:
                return run, number
        elif self._choices.settings.plans:
            raise ValueError("step: set_timesteps must be called before a step of a plan")
        value = float(timestep)  # waits for the device
        config, found = self._present()
        key = (id(run), id(config), value)
        single = self._singles.get(key)
        if single is None:
            course = single_course(
                "step", self.replaced_scheduler, found, self._choices.settings, run, value
            )
            single = Run(course, torch.device("cpu"), (run, config), found.threshold)
            if len(self._singles) >= _MOST_SINGLES:
                del self._singles[next(iter(self._singles))]
            self._singles[key] = single
        return single, 0

    def _number(self, run: Run, timestep: Any) -> int | None:
        """Return the number of a timestep in a run, or None."""
        number = run.number_of_view(timestep)
        return run.number_of_value(timestep, None) if number is None else number

    def _identity(self, sample: Tensor) -> Identity:
        """Return the seeds and indices of the samples of a batch, made once per size and device."""
        seed, batch = self._choices.seed, sample.shape[0]
        key = (str(seed), batch, sample.device)
        local = self._local
        if local.identity is None or local.identity[0] != key:
            local.identity = (key, make_identity("step", seed, None, batch, sample.device))
        return local.identity[1]


def _refuse(**given: tuple[Any, Any]) -> None:
    """Raise ValueError for the first of several arguments that has another value than it must."""
    for name, (value, rule) in given.items():
        if value is not rule and value != rule:
            raise ValueError(f"step: {name} must be {rule}, got {value!r:.60}")


def _check_output(output: Tensor, sample: Tensor) -> None:
    """Raise unless an output has the shape of the samples, or twice the channels.

    Raises:
        TypeError: samples that are no floating tensor.
        ValueError: another shape.
    """
    if not sample.is_floating_point():
        raise TypeError(f"step: sample must be a floating tensor, got {sample.dtype}")
    if output.device != sample.device:
        raise ValueError(
            f"step: model_output must be on the device of sample {sample.device}, got "
            f"{output.device}"
        )
    doubled = (sample.shape[0], 2 * sample.shape[1], *sample.shape[2:])
    if output.shape not in (sample.shape, doubled):
        raise ValueError(
            f"step: model_output must have the shape of sample {tuple(sample.shape)}, or twice its "
            f"channels, got {tuple(output.shape)}"
        )


def _noise(
    given: Tensor | None,
    generator: torch.Generator | list[torch.Generator] | None,
    output: Tensor,
    sample: Tensor,
) -> Tensor:
    """Return noise for a step in the dtype of the samples, drawn as diffusers does.

    Raises:
        ValueError: given noise of another shape or on another device.
    """
    if given is not None and (given.shape != sample.shape or given.device != sample.device):
        raise ValueError(
            f"step: variance_noise must have the shape {tuple(sample.shape)} of sample and its "
            f"device, got {tuple(given.shape)} on {given.device}"
        )
    if given is None:
        given = randn_tensor(
            tuple(sample.shape), generator=generator, device=output.device, dtype=output.dtype
        )
    return given.to(sample.dtype)
