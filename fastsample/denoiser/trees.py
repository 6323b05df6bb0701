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
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Index: TypeAlias = slice | npt.NDArray[np.int64]


@dataclass(frozen=True)
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


def batch_size_of(cond: Mapping[str, Any] | None) -> int | None:
    """The number of samples that the conditions are for; None when no entry determines it."""
    if not isinstance(cond, Mapping):  # `Conditions` raises the error for anything else
        return None
    for _, leaf in leaves(cond, "cond"):
        size = len(leaf) if isinstance(leaf, np.ndarray) and leaf.ndim else entry_count(leaf)
        if size is not None:
            return size
    return None


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with every leaf replaced by a function of it."""
    if isinstance(tree, dict):
        return {name: map_leaves(function, value) for name, value in tree.items()}
    if isinstance(tree, tuple):
        return _tuple_like(tree, [map_leaves(function, value) for value in tree])
    return function(tree)


def _tuple_like(like: tuple[Any, ...], values: list[Any]) -> tuple[Any, ...]:
    """A tuple of the same class, which may be a named tuple."""
    return type(like)(*values) if hasattr(like, "_fields") else tuple(values)


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
                f"got {sorted(one)} and {sorted(other)}"
            )
        return {
            name: map_pairs(function, f"{path}[{name!r}]", combine, one[name], other[name])
            for name in one
        }
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return _tuple_like(
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


def normalised(function: str, path: str, tree: Any, device: torch.device | None) -> Any:
    """The tree with numbers and arrays as tensors on a device; other leaves as they are.

    Args:
        function: the caller's name, for messages.
        path: where the tree is, for messages: "cond" and "uncond" must be mappings.
        tree: what the user passed.
        device: where tensors are moved to; None leaves them where they are.

    Raises:
        TypeError: conditions that are no mapping, or a list that mixes numbers with other things.
    """
    if path in ("cond", "uncond") and not isinstance(tree, Mapping):
        raise TypeError(
            f"{function}: {path} must be a mapping of keyword arguments, got {type(tree).__name__}"
        )
    if isinstance(tree, Mapping):
        return {
            name: normalised(function, f"{path}[{name!r}]", value, device)
            for name, value in tree.items()
        }
    if isinstance(tree, tuple):
        parts = enumerate(tree)
        return _tuple_like(
            tree, [normalised(function, f"{path}[{i}]", value, device) for i, value in parts]
        )
    if isinstance(tree, list) and not all(map(_is_numeric, tree)):
        if any(map(_is_numeric, tree)) and not all(map(_is_array, tree)):
            raise TypeError(
                f"{function}: {path} must hold numbers or none in a list, got {tree!r:.80}"
            )
        entries = [torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in tree]
        if all(isinstance(value, Tensor) and value.dim() == 0 for value in entries):
            return to_device(torch.stack(entries), device)
        return to_device(entries, device)
    return to_device(_as_tensor(function, path, tree), device)


def _is_numeric(value: Any) -> bool:
    """Whether the value is a number or nested lists of numbers, which become one tensor."""
    if isinstance(value, list):
        return all(map(_is_numeric, value))
    return isinstance(value, (bool, int, float, np.number))


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, Tensor))


def _as_tensor(function: str, path: str, value: Any) -> Any:
    """Numbers and arrays as a tensor; anything else as it is.

    Arrays are copied, since the caller may write to them later.
    """
    if not isinstance(value, (int, float, list, np.ndarray, np.number)) or isinstance(value, bool):
        return value
    try:
        return torch.tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{function}: {path} must hold numbers, got {value!r:.80} ({error})"
        ) from None


def to_device(leaf: Any, device: torch.device | None) -> Any:
    """The leaf with its tensors on a device; None leaves them where they are."""
    if device is None:
        return leaf
    if isinstance(leaf, Tensor):
        return leaf.to(device)
    if isinstance(leaf, Shared):
        return Shared(map_leaves(lambda value: to_device(value, device), leaf.value))
    if isinstance(leaf, list):
        return [map_leaves(lambda value: to_device(value, device), entry) for entry in leaf]
    return leaf


def unwrapped(leaf: Any) -> Any:
    """The leaf as the network takes it: shared values without their mark."""
    return leaf.value if isinstance(leaf, Shared) else leaf


def broadcast_entry(leaf: Any, batch: int | None) -> Any:
    """A leaf of a single entry with that entry for every sample; other leaves as they are."""
    if batch is None or entry_count(leaf) != 1:
        return leaf
    return leaf * batch if isinstance(leaf, list) else leaf.expand(batch, *leaf.shape[1:])


def tensors_in(leaf: Any) -> Iterator[Tensor]:
    """Every tensor in a leaf."""
    if isinstance(leaf, Tensor):
        yield leaf
    elif isinstance(leaf, (list, Shared)):
        for value in leaf if isinstance(leaf, list) else [leaf.value]:
            for _, inner in leaves(value, ""):
                yield from tensors_in(inner)


def entry_count(leaf: Any) -> int | None:
    """The number of entries of a leaf with one per sample; None for other leaves."""
    if isinstance(leaf, Tensor):
        return leaf.shape[0] if leaf.dim() else None
    return len(leaf) if isinstance(leaf, list) else None


def select_entries(leaf: Any, index: Index) -> Any:
    """The entries of some samples; a leaf that applies to every sample as it is."""
    if entry_count(leaf) is None:
        return leaf
    if isinstance(leaf, list):
        return leaf[index] if isinstance(index, slice) else [leaf[i] for i in index]
    return leaf[index if isinstance(index, slice) else torch.from_numpy(index).to(leaf.device)]


def repeated(leaf: Any, count: int) -> Any:
    """All entries of a leaf, `count` times in a row."""
    if entry_count(leaf) is None:
        return leaf
    return leaf * count if isinstance(leaf, list) else repeat(leaf, count)


def repeat(x: Tensor, count: int) -> Tensor:
    """All samples of a batch `(B, ...)`, `count` times in a row: `(count B, ...)`."""
    return x if count == 1 else x.repeat(count, *[1] * (x.dim() - 1))


def doubled(function: str, path: str, conditional: Any, unconditional: Any) -> Any:
    """One leaf for both halves of a guided batch, the unconditional half first."""
    if isinstance(unconditional, Tensor) and isinstance(conditional, Tensor):
        if unconditional.shape[1:] != conditional.shape[1:]:
            raise ValueError(
                f"{function}: {path} must have the entries of uncond "
                f"{tuple(unconditional.shape[1:])}, got {tuple(conditional.shape[1:])}"
            )
        return torch.cat((unconditional, conditional))
    if isinstance(unconditional, list) and isinstance(conditional, list):
        return [*unconditional, *conditional]
    if not _equal(conditional, unconditional):
        raise ValueError(
            f"{function}: {path} must be a tensor, or equal in cond and uncond, under guidance, "
            f"got {conditional!r:.40} and {unconditional!r:.40}; both halves of the batch share "
            "one call"
        )
    return conditional


def _equal(one: Any, other: Any) -> bool:
    """Whether two leaves are the same, tensors by value."""
    if isinstance(one, Shared) and isinstance(other, Shared):
        return _equal(one.value, other.value)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and bool(torch.equal(one, other)))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, (Tensor, Mapping)) or isinstance(other, (Tensor, Mapping)):
        return False
    return type(one) is type(other) and bool(one == other)


def with_dropped(
    function: str, path: str, conditional: Any, unconditional: Any, dropped: Tensor
) -> Any:
    """The leaf with the entries of dropped samples replaced by the unconditional entry.

    Args:
        function: the caller's name, for messages.
        path: where the leaf is, for messages.
        conditional: the leaf with one entry per sample; other leaves stay as they are.
        unconditional: one entry, with or without a batch axis of 1, or a number.
        dropped: `(B,)` bool.
    """
    if isinstance(conditional, list):
        single = unconditional
        if isinstance(unconditional, list) and len(unconditional) == 1:
            single = unconditional[0]
        pairs = zip(conditional, dropped.tolist(), strict=True)
        return [single if drop else entry for entry, drop in pairs]
    if not isinstance(conditional, Tensor):
        return conditional
    if not isinstance(unconditional, Tensor):
        raise TypeError(
            f"{function}: {path} must hold numbers with cond_dropout, got {unconditional!r:.80}"
        )
    if unconditional.shape not in ((), conditional.shape[1:], (1, *conditional.shape[1:])):
        raise ValueError(
            f"{function}: {path} must have the shape of one entry of cond "
            f"{tuple(conditional.shape[1:])}, got {tuple(unconditional.shape)}"
        )
    mask = dropped.reshape(-1, *[1] * (conditional.dim() - 1))
    return torch.where(mask, unconditional.to(conditional), conditional)
