"""The module that gives a network of diffusers the inputs that its own pipeline gives it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from fastsample.denoiser.outputs import unpacked
from fastsample.integrations.diffusers.families import Family

_TIME_NAMES = ("timestep", "timesteps", "t", "timestep_ratio")


class DiffusersNetwork(nn.Module):
    """Calls a network of diffusers as ``(x, timestep, **cond) -> output``.

    Args:
        network: the network.
        family: what its pipeline does between scheduler and network.

    Attributes:
        network: the network.
    """

    def __init__(self, network: nn.Module, family: Family) -> None:
        super().__init__()
        self.network = network
        self._family = family
        names = _parameters_of(network)
        self._input = names[0] if names else None
        self._time = next((name for name in _TIME_NAMES if name in names), None)
        self._options = {"return_dict": False} if "return_dict" in names else {}

    @property
    def training(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the network is in training mode; this module has no mode of its own."""
        network: Any = self._modules.get("network")  # None while the base class sets itself up
        return network is not None and network.training

    @training.setter
    def training(self, mode: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Take what `torch.nn.Module` sets here, which goes to the network by itself."""

    def forward(self, x: Tensor, timestep: Tensor, **cond: Any) -> Tensor:
        """Return the network's output for x ``(B, *shape)`` at timesteps ``(B,)``."""
        network: Any = self.network
        family = self._family
        told = family.told(timestep, x, unwrapped(network))
        # Z-Image takes videos of one frame, in a list.
        samples: Any = list(x.unsqueeze(2).unbind(0)) if family.lists else x
        if self._time is None or self._input is None:
            output = network(samples, told, **self._options, **cond)
        else:
            inputs = {self._input: samples, self._time: told}
            output = network(**inputs, **self._options, **cond)
        if family.lists:
            output = torch.stack(list(output[0])).squeeze(2)
        output = unpacked(output)
        return output if family.sign == 1.0 else family.sign * output


def unwrapped(network: Any) -> Any:
    """Return the network inside what `torch.compile` returns, or the network itself."""
    return getattr(network, "_orig_mod", network)


def _parameters_of(network: nn.Module) -> list[str]:
    """Return the names of the arguments of a network."""
    # Offloading replaces `forward` on the object, but not on the class.
    inner: Any = unwrapped(network)
    return list(inspect.signature(inner.__class__.forward).parameters)[1:]
