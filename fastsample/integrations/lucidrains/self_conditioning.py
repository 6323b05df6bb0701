"""Sampling of networks that are given their last x0, and where a run keeps it.

Chen et al. 2022, "Analog Bits" (arXiv:2208.04202), section 3.2. What such a network is given
depends on the rows before, so it belongs to the run, not to the network: a run passes an object
along, to the network as a condition and to the loop as a callback. Several threads may so sample
from one network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fastsample.denoiser.wrap import check_denoiser
from fastsample.sampling.loop import Step
from fastsample.sampling.resolve import Steps
from fastsample.sampling.sampler import Sampler

_NAME = "lucidrains.sample"


class Memory:
    """Keeps the last x0 of one run.

    Attributes:
        x0: `(B, *shape)`; None before the first network call.
    """

    def __init__(self, rows: int, callback: Callable[[Step], object] | None) -> None:
        self.x0: Tensor | None = None
        self._rows, self._callback = rows, callback

    def __call__(self, step: Step) -> None:
        """Keep a row's x0; forget it after the last row, since the next samples begin anew."""
        if self._callback is not None:
            self._callback(step)
        self.x0 = step.x0 if step.row + 1 < self._rows else None


class SelfConditioned(nn.Module):
    """A network that is given its last x0 from the `Memory` of a run.

    Args:
        network: ``(x, t, x_self_cond) -> output``; without a last x0 the third is None.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = False  # a network inside that is in training mode is still warned of

    def forward(self, x: Tensor, t: Tensor, memory: Memory | None = None) -> Tensor:
        """Return the network's output."""
        if memory is None:
            raise ValueError(
                "lucidrains.denoiser: a network that conditions on itself must be run by "
                "fs.integrations.lucidrains.sample, got a call without its last x0; to run it "
                "without, pass denoiser(diffusion, self_condition=False)"
            )
        last = memory.x0
        return self.network(x, t, None if last is None else last.to(x.dtype))


def sample(
    denoiser: Any,
    steps: Steps = 10,
    num_samples: int | None = None,
    *,
    seed: Any = None,
    sample_index: Any = None,
    start: Tensor | None = None,
    noise: Tensor | None = None,
    progress: bool = False,
    callback: Callable[[Step], object] | None = None,
    **options: Any,
) -> Tensor:
    """Draw samples from a network that conditions on itself, as `fastsample.sample` does otherwise.

    Each row gives the network the x0 of the row before, clamped to the model's range.

    Args:
        denoiser: what `denoiser` of this module returned for such a network.
        steps: as for `fastsample.sample`, like all the arguments that follow.
        num_samples: number of samples.
        seed: seed of the noise; None draws a fresh one.
        sample_index: global index of each sample, or of the first one.
        start: x at the first time.
        noise: the noise of the rows.
        progress: show a progress bar.
        callback: called after each row with a `Step`.
        **options: the arguments of `fastsample.Sampler`: method, grid, knobs, batch_size, ...

    Returns:
        ``(B, *shape)``.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a network that does not condition on itself, or an argument out of range.
    """
    check_denoiser(_NAME, denoiser)
    if not isinstance(denoiser.model, SelfConditioned):
        raise ValueError(
            f"{_NAME}: denoiser must have a network that conditions on itself, got "
            f"{type(denoiser.model).__name__}; fs.sample takes it"
        )
    sampler = Sampler(denoiser, steps, **options)
    memory = Memory(len(sampler.plan), callback)
    return sampler(
        num_samples,
        seed=seed,
        sample_index=sample_index,
        start=start,
        noise=noise,
        progress=progress,
        cond={"memory": memory},
        callback=memory,
    )
