"""The forward process of `FastSampleScheduler`: its noise levels, and noise added to samples."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample import ops
from fastsample.integrations.diffusers.configured import ConfiguredScheduler
from fastsample.integrations.diffusers.conventions import Conventions
from fastsample.integrations.diffusers.run import Run, ratios
from fastsample.integrations.diffusers.stepper import Stepper
from fastsample.sampling.noise import Identity, make_identity
from fastsample.schedules.transition import transition


class ThreadState(threading.local):
    """What a thread is doing with a scheduler."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.stepper = Stepper()
        self.begin: int | None = None
        self.timesteps: Tensor | None = None  # what a pipeline put in place of the list
        self.identity: tuple[Any, Identity] | None = None


class ForwardProcess(ConfiguredScheduler):
    """The attributes and methods of diffusers' schedulers that speak of noise levels.

    A timestep of the present run means the level of its step, also where the network is told a
    rounded number. Other timesteps mean the trained levels, between which levels are interpolated.
    """

    def _set_up(self) -> None:
        """Make what is not in the config."""
        found = self._conventions()
        self._known = (self._internal_dict, found)
        self._local = ThreadState()
        self._latest: Run | None = None
        self._tables: dict[torch.device, Tensor] = {}
        self._scale = int(self.config["num_train_timesteps"])
        if found.is_flow:
            self._trained = torch.arange(self._scale, 0, -1, dtype=torch.float32)
            return
        levels = found.schedule.alpha_bar(np.arange(1.0, self._scale + 1.0))
        ratio = levels / np.append(1.0, levels[:-1])
        self.alphas_cumprod = torch.as_tensor(levels.astype(np.float32))
        self.alphas = torch.as_tensor(ratio.astype(np.float32))
        self.betas = torch.as_tensor((1.0 - ratio).astype(np.float32))
        first = found.last == "first"
        self.final_alpha_cumprod = self.alphas_cumprod[0] if first else torch.tensor(1.0)
        self._trained = torch.arange(self._scale - 1, -1, -1)

    def _present(self) -> tuple[Any, Conventions]:
        """Return the config and the conventions that it says; pipelines may have replaced it."""
        if self._known[0] is not self._internal_dict:
            self._known = (self._internal_dict, self._conventions())
        return self._known

    @property
    def _run(self) -> Run | None:
        """The run that this thread asked for, else the last one that any thread asked for."""
        return self._local.run or self._latest

    @property
    def sigmas(self) -> Tensor:
        """The noise levels of the run `(K + 1,)`, float32: t for flow, sigma / alpha for others.

        They tell what the steps are; to write to them changes nothing, and `step` refuses it.
        """
        run, flow = self._run, self._known[1].is_flow
        if run is None:
            times = np.arange(self._scale, -1, -1) / (self._scale if flow else 1)
            alphas, sigmas = self._known[1].schedule.levels(times)
            return torch.as_tensor(ratios(alphas, sigmas, flow).astype(np.float32))
        if run.shown_sigmas is None:
            values = ratios(run.course.alphas, run.course.sigmas, flow)
            run.shown_sigmas = torch.as_tensor(values.astype(np.float32))
        return run.shown_sigmas

    def start_noise(
        self,
        shape: Sequence[int],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Return starting noise that belongs to the samples, for ``pipe(latents=...)``.

        Sample i of it is the same in a batch of any size, and on every device.

        Args:
            shape: `(B, C, ..)`.
            device: where the noise is to be; None is the CPU.
            dtype: its dtype; None is float32.

        Raises:
            ValueError: the scheduler has no seed.
        """
        if self._choices.seed is None:
            raise ValueError("start_noise: seed must be given to from_scheduler, got None")
        batch, *rest = shape
        place = torch.device("cpu" if device is None else device)
        identity = make_identity("start_noise", self.seed, None, batch, place)
        return ops.noise(*identity, rest, dtype=dtype or torch.float32)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """Return ``alpha x0 + sigma noise`` at timesteps, a number or `(B,)`.

        Args:
            original_samples: clean samples `(B, ..)`.
            noise: standard normal noise of the same shape.
            timesteps: timesteps of the network.
        """
        alpha, sigma = self._levels(timesteps, original_samples)
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """Return `add_noise` with the arguments in the order of the flow-matching schedulers."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """Return the target of v prediction, ``alpha noise - sigma x0``, at timesteps.

        For flow-matching models it is ``noise - x0``.
        """
        if self._known[1].is_flow:
            return noise - sample
        alpha, sigma = self._levels(timesteps, sample)
        return alpha * noise - sigma * sample

    def _get_variance(self, timestep: Any, prev_timestep: Any = None, **_: Any) -> Tensor:
        """Return the posterior variance between two timesteps, as some pipelines ask for it."""
        schedule = self._known[1].schedule
        if prev_timestep is None:
            prev_timestep = self.previous_timestep(timestep)
        later, earlier = (max(float(t) + 1.0, 0.0) for t in (timestep, prev_timestep))
        alphas, sigmas = schedule.levels(np.array([earlier, later]))
        pair = transition(alphas[:1], sigmas[:1], alphas[1:], sigmas[1:])
        return torch.tensor(float(pair.posterior_variance[0]))

    def _levels(self, timesteps: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma) at timesteps, in a shape that broadcasts against samples.

        Args:
            timesteps: a number, or a tensor `()` or `(B,)`.
            like: samples `(B, ..)`, whose device and dtype the levels get.
        """
        run, device = self._run, like.device
        steps = torch.as_tensor(timesteps, device=device).reshape(-1)
        alpha, sigma = self._trained_levels(steps, device)
        if run is not None:
            known = run.timesteps.to(device)
            same = steps[:, None] == known
            position = same.to(torch.uint8).argmax(1)
            among = same.any(1)
            alpha = torch.where(among, run.alphas.to(device)[position], alpha)
            sigma = torch.where(among, run.sigmas.to(device)[position], sigma)
        shape = (-1, *[1] * (like.dim() - 1))
        return alpha.to(like.dtype).reshape(shape), sigma.to(like.dtype).reshape(shape)

    def _trained_levels(self, steps: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the trained levels at timesteps, in float32."""
        if self._known[1].is_flow:
            time = steps.to(torch.float32) / self._scale
            return 1.0 - time, time
        if device not in self._tables:
            levels = self._known[1].schedule.levels(np.arange(1.0, self._scale + 1.0))
            with torch.inference_mode(False):
                table = torch.as_tensor(np.stack(levels).astype(np.float32), device=device)
            self._tables[device] = table
        alphas, sigmas = self._tables[device]
        if not steps.is_floating_point():
            index = steps.long().clamp(0, self._scale - 1)
            return alphas[index], sigmas[index]
        below = steps.floor().long().clamp(0, self._scale - 1)
        above = (below + 1).clamp(max=self._scale - 1)
        share = steps.to(torch.float32) - below
        return torch.lerp(alphas[below], alphas[above], share), torch.lerp(
            sigmas[below], sigmas[above], share
        )
