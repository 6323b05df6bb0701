"""Lists the fidelity loss's names for where chains start and how gradients flow through them."""

from typing import Literal, TypeAlias, get_args

Start: TypeAlias = Literal["prior", "paired", "noised", "inverted"]
Gradient: TypeAlias = Literal["full", "last", "jacobian_free"]
STARTS, GRADIENTS = get_args(Start), get_args(Gradient)
