"""Names of what a chain of the fidelity loss starts from, and of how gradients leave it."""

from typing import Literal, TypeAlias, get_args

Start: TypeAlias = Literal["prior", "paired", "noised", "inverted"]
Gradient: TypeAlias = Literal["full", "last", "jacobian_free"]
STARTS, GRADIENTS = get_args(Start), get_args(Gradient)
