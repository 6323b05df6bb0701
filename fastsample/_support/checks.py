"""Checks of arguments that several modules share, in the package's error grammar.

``<function>: <argument> must <rule>, got <value>``: TypeError for the kind, ValueError for the
value.
"""

from __future__ import annotations

import inspect
import math
import operator
import warnings
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]


def check_integer(
    function: str, name: str, value: object, low: int, high: int | None = None
) -> int:
    """The value as an int in [low, high]; bool does not count as an integer."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise TypeError(f"{function}: {name} must be an integer, got {value!r}") from None
    if number < low or (high is not None and number > high):
        rule = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"{function}: {name} must be {rule}, got {number}")
    return number


def check_real(
    function: str, name: str, value: object, low: float = -math.inf, high: float = math.inf
) -> float:
    """The value as a finite float in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{function}: {name} must be a real number, got {value!r}")
    number = float(value)
    if not (math.isfinite(number) and low <= number <= high):
        finite = math.isinf(low) and math.isinf(high)
        rule = "finite" if finite else f"in [{low:g}, {high:g}]"
        raise ValueError(f"{function}: {name} must be {rule}, got {number:g}")
    return number


def check_array(function: str, name: str, value: Any, *, infinite: bool = False) -> FloatArray:
    """The value as a float64 array of any shape without NaN."""
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        raise TypeError(f"{function}: {name} must hold real numbers, got {value!r:.80}") from None
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{function}: {name} must hold real numbers, got {array.dtype} data")
    array = array.astype(np.float64)
    bad = np.isnan(array) if infinite else ~np.isfinite(array)
    if np.any(bad):
        rule = "must not be NaN" if infinite else "must be finite"
        raise ValueError(f"{function}: {name} {rule}, got {array[bad].ravel()[0]}")
    return array


def check_vector(function: str, name: str, value: Any) -> FloatArray:
    """The value as a new finite float64 vector with at least one entry."""
    array = check_array(function, name, value)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"{function}: {name} must be a vector with at least one entry, got shape {array.shape}"
        )
    return array


def frozen(array: npt.NDArray[np.float64]) -> FloatArray:
    """A read-only copy: the values of an immutable object must not change under its users."""
    copy = np.array(array, np.float64)
    copy.setflags(write=False)
    return copy


def check_bool(function: str, name: str, value: object) -> bool:
    """True or False, nothing that merely counts as one ("false" does)."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{function}: {name} must be True or False, got {value!r}")
    return bool(value)


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning that points at the line outside the package which called into it."""
    depth, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("fastsample."):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, category, stacklevel=depth)
