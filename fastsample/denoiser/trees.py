"""Trees of conditions: dictionaries and tuples are structure, everything else is a leaf.

A leaf is a tensor with one entry per sample, a list with one entry per sample, a tensor without
axes that applies to every sample, a `Shared` value, or anything else, which is passed as it is.
"""

# Leaves have any type: isinstance narrows them to containers whose elements are unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Shared:
    """A condition that is the same for every sample; made by `shared`."""

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
    """The tree with every leaf replaced by a function of it."""
    if isinstance(tree, dict):
        return {name: map_leaves(function, value) for name, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple_like(tree, [map_leaves(function, value) for value in tree])
    return function(tree)


def tuple_like(like: tuple[Any, ...], values: list[Any]) -> tuple[Any, ...]:
    """A tuple of the same class, which may be a named tuple."""
    return type(like)(*values) if hasattr(like, "_fields") else tuple(values)


def with_shared(tree: Any, other: Any) -> Any:
    """`other` with the shared leaves of `tree` that it leaves out, at any depth of dictionaries."""
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
    """Two trees combined leaf by leaf.

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
    """Every leaf with its path, for messages."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from leaves(value, f"{path}[{name!r}]")
    elif isinstance(tree, tuple):
        for i, value in enumerate(tree):
            yield from leaves(value, f"{path}[{i}]")
    else:
        yield path, tree
