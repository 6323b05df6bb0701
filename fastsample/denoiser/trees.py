"""Functions on nested conditions: dictionaries and tuples nest, everything else is a leaf.

A leaf is a tensor with one entry per sample, a list with one entry per sample, a tensor without
axes that applies to every sample, a `Shared` value, or anything else, which is passed as it is.
"""

# Values have any type; after isinstance, pyright does not know the types of their elements.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Shared:
    """Marks a condition that is the same for every sample; the function `shared` makes it."""

    value: Any


def shared(value: Any) -> Shared:
    """Mark a condition as the same for every sample: it is passed to the network as it is.

    Unmarked tensors and lists hold one entry per sample. A shared value is neither sliced nor
    doubled for guidance; tensors in it are moved to the samples' device. Examples are the position
    tables of FLUX: ``cond={"img_ids": fs.shared(img_ids)}``.

    Args:
        value: a tensor of any shape, or anything else that the network takes; tensors inside
            dictionaries, tuples and lists are moved too.

    Returns:
        The marked value, for use in ``cond=`` and ``uncond=``.
    """
    return Shared(value)


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return the nested conditions with the function applied to every leaf."""
    if isinstance(tree, dict):
        return {name: map_leaves(function, value) for name, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple_like(tree, [map_leaves(function, value) for value in tree])
    return function(tree)


def tuple_like(like: tuple[Any, ...], values: list[Any]) -> tuple[Any, ...]:
    """Return the values as a tuple, or as a named tuple if `like` is one."""
    return type(like)(*values) if hasattr(like, "_fields") else tuple(values)


def with_shared(tree: Any, other: Any) -> Any:
    """Return `other` with the `Shared` leaves of `tree` added that it leaves out, at any depth."""
    if not (isinstance(tree, dict) and isinstance(other, dict)):
        return other
    missing = {
        name: leaf for name, leaf in tree.items() if name not in other and isinstance(leaf, Shared)
    }
    filled = {
        name: with_shared(tree[name], leaf) if name in tree else leaf
        for name, leaf in other.items()
    }
    return {**filled, **missing}


def map_pairs(
    function: str, path: str, combine: Callable[[str, Any, Any], Any], one: Any, other: Any
) -> Any:
    """Combine two nested conditions of equal structure leaf by leaf.

    Args:
        function: the caller's name, for messages.
        path: where the trees are, for messages, such as ``cond['text']``.
        combine: ``(path, leaf of one, leaf of other) -> leaf``.
        one: the first tree.
        other: the second tree.

    Raises:
        ValueError: the structures of the trees differ.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            raise ValueError(
                f"{function}: {path} must have the same names in cond and uncond, "
                f"got {sorted(map(str, one))} and {sorted(map(str, other))}"
            )
        return {
            name: map_pairs(function, f"{path}[{name!r}]", combine, one[name], other[name])
            for name in one
        }
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return tuple_like(
            one, [map_pairs(function, f"{path}[{i}]", combine, *pair) for i, pair in pairs]
        )
    if isinstance(one, (dict, tuple)) or isinstance(other, (dict, tuple)):
        raise ValueError(
            f"{function}: {path} must have the same structure in cond and uncond, "
            f"got {type(one).__name__} and {type(other).__name__}"
        )
    return combine(path, one, other)


def leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) for every leaf; the path, like ``cond['text']``, is for messages."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from leaves(value, f"{path}[{name!r}]")
    elif isinstance(tree, tuple):
        for i, value in enumerate(tree):
            yield from leaves(value, f"{path}[{i}]")
    else:
        yield path, tree
