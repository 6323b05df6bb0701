"""Functions that check the arguments of the package's functions.

Every message reads ``<function>: <argument> must <rule>, got <value>``. A wrong type raises
TypeError, a wrong value ValueError.
"""

from __future__ import annotations

import inspect
import math
import operator
import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]


def check_integer(
    function: str, name: str, value: object, low: int, high: int | None = None
) -> int:
    """Return the value as an int if it lies in [low, high]; raise for a bool."""
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
    """Return the value as a float if it is finite and in [low, high]; raise for a bool.

    Arrays and tensors without axes are numbers too.
    """
    given, value = value, _number(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{function}: {name} must be a real number, got {given!r}")
    number = float(value)
    if not (math.isfinite(number) and low <= number <= high):
        finite = math.isinf(low) and math.isinf(high)
        rule = "finite" if finite else f"in [{low:g}, {high:g}]"
        raise ValueError(f"{function}: {name} must be {rule}, got {number:g}")
    return number


def check_array(function: str, name: str, value: Any, *, infinite: bool = False) -> FloatArray:
    """Return the value as a float64 array of any shape, without NaN.

    Tensors may have any floating or integer dtype, be on any device and require grad. Infinities
    pass only with `infinite=True`.
    """
    try:
        array = np.asarray(on_host(value))
    except (ValueError, TypeError, RuntimeError):  # lists of different lengths, meta tensors, ..
        shown = " ".join(repr(value).split())  # tensors have several lines
        raise TypeError(f"{function}: {name} must hold real numbers, got {shown:.80}") from None
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{function}: {name} must hold real numbers, got {array.dtype} data")
    array = array.astype(np.float64)
    bad = np.isnan(array) if infinite else ~np.isfinite(array)
    if np.any(bad):
        rule = "must not be NaN" if infinite else "must be finite"
        raise ValueError(f"{function}: {name} {rule}, got {array[bad].ravel()[0]}")
    return array


def check_vector(function: str, name: str, value: Any) -> FloatArray:
    """Return the value as a new finite float64 vector with at least one entry."""
    array = check_array(function, name, value)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"{function}: {name} must be a vector with at least one entry, got shape {array.shape}"
        )
    return array


def on_host(value: Any) -> Any:
    """Return a tensor, or a list that holds some, as what NumPy can read; else the value.

    This module does without torch, so a tensor is known by its methods.
    """
    if isinstance(value, (list, tuple)):
        entries: list[Any] = [on_host(entry) for entry in cast("Sequence[Any]", value)]
        return entries
    is_tensor = hasattr(value, "detach") and hasattr(value, "is_floating_point")
    # torch.compile lends arrays the methods of a tensor.
    if not is_tensor or isinstance(value, np.ndarray):
        return cast(Any, value)
    tensor = value.detach().cpu()
    # NumPy has no bfloat16, and float64 holds every value of the smaller dtypes.
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def _number(value: Any) -> Any:
    """Return the number in an array or a tensor without axes; else the value."""
    if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)):
        return value.item()
    return value


def frozen(array: npt.NDArray[np.float64]) -> FloatArray:
    """Return a read-only float64 copy of the array, to store in an immutable object."""
    copy: FloatArray = np.array(array, np.float64)
    copy.setflags(write=False)
    return copy


def check_bool(function: str, name: str, value: object) -> bool:
    """Return the value if it is True or False; raise otherwise: the string "false" is truthy."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{function}: {name} must be True or False, got {value!r}")
    return bool(value)  # pyright: ignore[reportUnknownArgumentType]  # np.bool_ is generic


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, and report the user's line that called into the package as the warning's source."""
    depth, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("fastsample."):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, category, stacklevel=depth)
