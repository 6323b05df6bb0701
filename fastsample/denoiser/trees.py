"""Trees of conditions: dictionaries and tuples are structure, everything else is a leaf.

A leaf is a tensor with one entry per sample, a list with one entry per sample, a tensor without
axes that stands for every sample, a `Shared` value, or anything else, which is passed as it is.
"""

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
    """A condition that every sample shares; made by `shared`."""

    value: Any


def shared(value: Any) -> Shared:
    """Mark a condition as the same for every sample: it is passed to the network as it is.

    Unmarked tensors and lists hold one entry per sample. A shared value is neither sliced nor
    doubled for guidance; tensors in it are moved to the samples' device. Examples are the position
    tables of FLUX: ``cond={"img_ids": fs.shared(img_ids)}``.

    Args:
        value: a tensor, or anything that the network takes; dictionaries, tuples and lists of
            tensors are looked through.
    """
    return Shared(value)


def batch_of(cond: Mapping[str, Any] | None) -> int | None:
    """How many samples the conditions are for; None when they do not say."""
    if not isinstance(cond, Mapping):  # `Conditions` says what is wrong with anything else
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
    """A tuple of the same kind, also a named one."""
    return type(like)(*values) if hasattr(like, "_fields") else tuple(values)


def map_pairs(
    function: str, where: str, combine: Callable[[str, Any, Any], Any], one: Any, other: Any
) -> Any:
    """Both trees leaf by leaf; ValueError where their structures differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            raise ValueError(
                f"{function}: {where} must have the same names in cond and uncond, "
                f"got {sorted(one)} and {sorted(other)}"
            )
        return {
            name: map_pairs(function, f"{where}[{name!r}]", combine, one[name], other[name])
            for name in one
        }
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return _tuple_like(
            one, [map_pairs(function, f"{where}[{i}]", combine, *pair) for i, pair in pairs]
        )
    if isinstance(one, (dict, tuple)) or isinstance(other, (dict, tuple)):
        raise ValueError(
            f"{function}: {where} must have the same structure in cond and uncond, "
            f"got {type(one).__name__} and {type(other).__name__}"
        )
    return combine(where, one, other)


def leaves(tree: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Every leaf, and where it is, for messages."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from leaves(value, f"{where}[{name!r}]")
    elif isinstance(tree, tuple):
        for i, value in enumerate(tree):
            yield from leaves(value, f"{where}[{i}]")
    else:
        yield where, tree


def normalised(function: str, where: str, tree: Any, device: torch.device | None) -> Any:
    """Leaves as tensors, lists, `Shared` or whatever else; numbers as tensors without axes."""
    if where in ("cond", "uncond") and not isinstance(tree, Mapping):
        raise TypeError(
            f"{function}: {where} must be a mapping of keyword arguments, got {type(tree).__name__}"
        )
    if isinstance(tree, Mapping):
        return {
            name: normalised(function, f"{where}[{name!r}]", value, device)
            for name, value in tree.items()
        }
    if isinstance(tree, tuple):
        parts = enumerate(tree)
        return _tuple_like(
            tree, [normalised(function, f"{where}[{i}]", v, device) for i, v in parts]
        )
    if isinstance(tree, list) and not all(map(_is_numeric, tree)):
        if any(map(_is_numeric, tree)) and not all(map(_is_array, tree)):
            raise TypeError(
                f"{function}: {where} must hold numbers or none in a list, got {tree!r:.80}"
            )
        tensors = [torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in tree]
        if all(isinstance(value, Tensor) and value.dim() == 0 for value in tensors):
            return moved(torch.stack(tensors), device)
        return moved(tensors, device)
    return moved(_as_tensor(function, where, tree), device)


def _is_numeric(value: Any) -> bool:
    """Numbers, also in lists: a list of these is one tensor."""
    if isinstance(value, list):
        return all(map(_is_numeric, value))
    return isinstance(value, (bool, int, float, np.number))


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, Tensor))


def _as_tensor(function: str, where: str, value: Any) -> Any:
    """Numbers as a tensor, a copy since the caller may write to theirs; anything else as it is."""
    if not isinstance(value, (int, float, list, np.ndarray, np.number)) or isinstance(value, bool):
        return value
    try:
        return torch.tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{function}: {where} must hold numbers, got {value!r:.80} ({error})"
        ) from None


def moved(leaf: Any, device: torch.device | None) -> Any:
    """The leaf with its tensors on a device."""
    if device is None:
        return leaf
    if isinstance(leaf, Tensor):
        return leaf.to(device)
    if isinstance(leaf, Shared):
        return Shared(map_leaves(lambda value: moved(value, device), leaf.value))
    if isinstance(leaf, list):
        return [map_leaves(lambda value: moved(value, device), entry) for entry in leaf]
    return leaf


def unwrapped(leaf: Any) -> Any:
    """What the network is passed for a leaf."""
    return leaf.value if isinstance(leaf, Shared) else leaf


def for_all(leaf: Any, batch: int | None) -> Any:
    """An entry for every sample from a single one."""
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
    """Entries of a leaf that has one per sample; None for the others."""
    if isinstance(leaf, Tensor):
        return leaf.shape[0] if leaf.dim() else None
    return len(leaf) if isinstance(leaf, list) else None


def entries_of(leaf: Any, index: Index) -> Any:
    """The entries of some samples; what stands for all stays."""
    if entry_count(leaf) is None:
        return leaf
    if isinstance(leaf, list):
        return leaf[index] if isinstance(index, slice) else [leaf[i] for i in index]
    return leaf[index if isinstance(index, slice) else torch.from_numpy(index).to(leaf.device)]


def repeated(leaf: Any, times: int) -> Any:
    """The entries again and again, all of them each time."""
    if entry_count(leaf) is None:
        return leaf
    return leaf * times if isinstance(leaf, list) else repeat(leaf, times)


def repeat(x: Tensor, times: int) -> Tensor:
    """The samples again and again, all of them each time."""
    return x if times == 1 else x.repeat(times, *[1] * (x.dim() - 1))


def doubled(function: str, where: str, given: Any, absent: Any) -> Any:
    """One leaf of both halves, the unconditional one first."""
    if isinstance(absent, Tensor) and isinstance(given, Tensor):
        if absent.shape[1:] != given.shape[1:]:
            raise ValueError(
                f"{function}: {where} must have the entries of uncond {tuple(absent.shape[1:])}, "
                f"got {tuple(given.shape[1:])}"
            )
        return torch.cat((absent, given))
    if isinstance(absent, list) and isinstance(given, list):
        return [*absent, *given]
    if not _equal(given, absent):
        raise ValueError(
            f"{function}: {where} must be a tensor, or equal in cond and uncond, under guidance, "
            f"got {given!r:.40} and {absent!r:.40}; both halves of the batch share one call"
        )
    return given


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


def mixed(function: str, where: str, given: Any, absent: Any, lost: Tensor) -> Any:
    """The entry of "no condition" where `lost`, else the sample's own."""
    if isinstance(given, list):
        single = absent[0] if isinstance(absent, list) and len(absent) == 1 else absent
        return [single if gone else own for own, gone in zip(given, lost.tolist(), strict=True)]
    if not isinstance(given, Tensor):
        return given
    if not isinstance(absent, Tensor):
        raise TypeError(
            f"{function}: {where} must hold numbers with cond_dropout, got {absent!r:.80}"
        )
    if absent.shape not in ((), given.shape[1:], (1, *given.shape[1:])):
        raise ValueError(
            f"{function}: {where} must have the shape of one entry of cond "
            f"{tuple(given.shape[1:])}, got {tuple(absent.shape)}"
        )
    mask = lost.reshape(-1, *[1] * (given.dim() - 1))
    return torch.where(mask, absent.to(given), given)
