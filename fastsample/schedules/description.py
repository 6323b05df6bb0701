"""Checks the dictionaries that `NoiseSchedule.to_dict` writes and `from_dict` reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_STEPS = 10**7  # A damaged description must not make `from_dict` allocate a huge table.
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "linear": ("num_steps", "beta_start", "beta_end"),
    "scaled_linear": ("num_steps", "beta_start", "beta_end"),
    "cosine": ("num_steps", "max_beta"),
    "from_betas": ("betas",),
    "from_alpha_bar": ("values",),
    "vdm": ("gamma_min", "gamma_max"),
    "flow": (),
    "exploding": ("sigma_max",),
}


def check_description(function: str, data: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return which class method of `NoiseSchedule` to call, and with which arguments.

    Raises:
        TypeError: `data` is no mapping.
        ValueError: an unknown method, other arguments than it takes, or too many steps.
    """
    if not isinstance(data, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{function}: data must be a mapping, got {type(data).__name__}")
    arguments = {key: value for key, value in data.items() if key != "kind"}
    method = data.get("kind")
    expected = _ARGUMENTS.get(str(method))
    if expected is None:
        raise ValueError(
            f'{function}: data["kind"] must be one of {sorted(_ARGUMENTS)}, got {method!r}'
        )
    if set(arguments) != set(expected):
        raise ValueError(
            f'{function}: data must hold {list(expected)} for kind "{method}", '
            f"got {sorted(map(str, arguments))}"
        )
    steps = arguments.get("num_steps")
    if isinstance(steps, int) and steps > MOST_STEPS:
        raise ValueError(f'{function}: data["num_steps"] must be at most {MOST_STEPS}, got {steps}')
    return str(method), arguments
