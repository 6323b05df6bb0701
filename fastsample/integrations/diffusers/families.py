"""How the pipelines of diffusers call their flow-matching networks, by the network's class.

A scheduler of flow matching counts in 1000 t, and every pipeline turns that into what its network
was trained with. The rules below are those of the pipelines of diffusers 0.42, with their casts:
FLUX in bfloat16 is told 0.9141 at t = 0.9172, because its pipeline casts 1000 t before it divides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

Told: TypeAlias = Callable[[Tensor, Tensor, Any], Tensor]
"""``(the scheduler's timesteps (B,), x (B, *shape), network) -> the network's timesteps (B,)``."""


@dataclass(frozen=True)
class Family:
    """What a pipeline does between its scheduler and its network.

    Attributes:
        told: makes the network's timesteps from the scheduler's.
        sign: -1 where the network's output is data minus noise.
        lists: whether the network takes and returns a list of samples with an axis of frames.
    """

    told: Told
    sign: float = 1.0
    lists: bool = False


def as_is(timestep: Tensor, x: Tensor, network: Any) -> Tensor:
    """Return the scheduler's timesteps."""
    return timestep


def _cast(timestep: Tensor, x: Tensor, network: Any) -> Tensor:
    return timestep.to(x.dtype)


def _cast_fraction(timestep: Tensor, x: Tensor, network: Any) -> Tensor:
    return timestep.to(x.dtype) / 1000


def _fraction_cast(timestep: Tensor, x: Tensor, network: Any) -> Tensor:
    return (timestep / 1000).to(x.dtype)


def _fraction(timestep: Tensor, x: Tensor, network: Any) -> Tensor:
    return timestep / 1000


def _reversed(timestep: Tensor, x: Tensor, network: Any) -> Tensor:
    return (1000 - timestep) / 1000


def _scaled(timestep: Tensor, x: Tensor, network: Any) -> Tensor:
    return timestep * network.config["timestep_scale"]


PLAIN = Family(as_is)
_FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        (
            *("SD3Transformer2DModel", "WanTransformer3DModel", "SkyReelsV2Transformer3DModel"),
            *("CogView4Transformer2DModel", "LTXVideoTransformer3DModel", "BriaTransformer2DModel"),
            *("SanaVideoTransformer3DModel", "DiTTransformer2DModel", "PixArtTransformer2DModel"),
            *("UNet1DModel", "UNet2DModel", "UNet2DConditionModel", "UNet3DConditionModel"),
        ),
        PLAIN,
    ),
    **dict.fromkeys(
        (
            *("HunyuanVideoTransformer3DModel", "HunyuanVideo15Transformer3DModel"),
            "HunyuanImageTransformer2DModel",
        ),
        Family(_cast),
    ),
    **dict.fromkeys(
        (
            *("FluxTransformer2DModel", "Flux2Transformer2DModel", "ChromaTransformer2DModel"),
            *("LongCatImageTransformer2DModel", "OvisImageTransformer2DModel"),
            "QwenImageTransformer2DModel",
        ),
        Family(_cast_fraction),
    ),
    **dict.fromkeys(
        ("AuraFlowTransformer2DModel", "Krea2Transformer2DModel"), Family(_fraction_cast)
    ),
    "PRXTransformer2DModel": Family(_fraction),
    "SanaTransformer2DModel": Family(_scaled),
    "HiDreamImageTransformer2DModel": Family(as_is, sign=-1.0),
    "Lumina2Transformer2DModel": Family(_reversed, sign=-1.0),
    "ZImageTransformer2DModel": Family(_reversed, sign=-1.0, lists=True),
}


def flow_family(network: Any) -> Family | None:
    """Return how a flow-matching network is called; None for a class that is not known here."""
    names = (base.__name__ for base in type(network).__mro__)
    return next((_FAMILIES[name] for name in names if name in _FAMILIES), None)
