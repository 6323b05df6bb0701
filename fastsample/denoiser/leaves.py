"""Functions on one value (leaf) of the conditions, which often has one entry per sample."""

# Values have any type; after isinstance, pyright does not know the types of their elements.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastsample.denoiser.trees import Shared, leaves, map_leaves

Index: TypeAlias = slice | npt.NDArray[np.int64]


def entry_count(leaf: Any) -> int | None:
    """Return the number of entries of a leaf that has one per sample; None for other leaves."""
    if isinstance(leaf, Tensor):
        return leaf.size(0) if leaf.dim() else None
    return len(leaf) if isinstance(leaf, list) else None


def select_entries(leaf: Any, index: Index) -> Any:
    """Return the entries of some samples; a leaf that applies to all samples is returned as is."""
    if entry_count(leaf) is None:
        return leaf
    if isinstance(leaf, list):
        return leaf[index] if isinstance(index, slice) else [leaf[i] for i in index]
    return leaf[index if isinstance(index, slice) else torch.from_numpy(index).to(leaf.device)]


def broadcast_entry(leaf: Any, batch: int | None) -> Any:
    """Expand a leaf with a single entry to `batch` entries; return other leaves as they are."""
    if batch is None or entry_count(leaf) != 1:
        return leaf
    return leaf * batch if isinstance(leaf, list) else leaf.expand(batch, *leaf.shape[1:])


def repeated(leaf: Any, count: int) -> Any:
    """Return a leaf with its entries tiled `count` times (a b a b, not a a b b)."""
    if entry_count(leaf) is None:
        return leaf
    return leaf * count if isinstance(leaf, list) else repeat(leaf, count)


def repeat(x: Tensor, count: int) -> Tensor:
    """Return a batch `(B, ...)` tiled `count` times (a b a b, not a a b b): `(count B, ...)`."""
    return x if count == 1 else x.repeat(count, *[1] * (x.dim() - 1))


def to_device(leaf: Any, device: torch.device | None) -> Any:
    """Return the leaf with its tensors moved to a device; None leaves them where they are."""
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
    """Return the leaf as the network takes it: the value inside a `Shared`, else the leaf."""
    return leaf.value if isinstance(leaf, Shared) else leaf


def cloned(leaf: Any) -> Any:
    """Return the leaf with every tensor in it copied to memory of its own."""
    if isinstance(leaf, Tensor):
        return leaf.contiguous().clone()
    if isinstance(leaf, list):
        return [map_leaves(cloned, entry) for entry in leaf]
    return leaf


def fingerprint(value: Any) -> object:
    """Return the shapes and dtypes of all tensors in a value, and the values of all else, hashable.

    Objects that are no numbers, strings or arrays are distinguished by identity.
    """
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.dtype)
    if isinstance(value, Shared):
        return fingerprint(value.value)
    if isinstance(value, Mapping):
        return tuple((name, fingerprint(inner)) for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return (type(value), *(fingerprint(inner) for inner in value))
    if isinstance(value, np.ndarray):
        return (value.shape, value.dtype.str, value.tobytes())
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return (type(value), value)
    return (type(value), id(value))


def tensors_in(leaf: Any) -> Iterator[Tensor]:
    """Yield every tensor in a leaf."""
    if isinstance(leaf, Tensor):
        yield leaf
    elif isinstance(leaf, (list, Shared)):
        for value in leaf if isinstance(leaf, list) else [leaf.value]:
            for _, inner in leaves(value, ""):
                yield from tensors_in(inner)


def doubled(function: str, path: str, conditional: Any, unconditional: Any) -> Any:
    """Join two leaves for a guided batch of 2 B samples, the unconditional entries first."""
    if isinstance(unconditional, Tensor) and isinstance(conditional, Tensor):
        if unconditional.shape[1:] != conditional.shape[1:]:
            raise ValueError(
                f"{function}: {path} must have the entries of uncond "
                f"{tuple(unconditional.shape[1:])}, got {tuple(conditional.shape[1:])}"
            )
        return torch.cat((_in_dtype_of(function, path, conditional, unconditional), conditional))
    if isinstance(unconditional, list) and isinstance(conditional, list):
        return [*unconditional, *conditional]
    if not equal_leaves(conditional, unconditional):
        raise ValueError(
            f"{function}: {path} must be a tensor, or equal in cond and uncond, under guidance, "
            f"got {conditional!r:.40} and {unconditional!r:.40}; both halves of the batch share "
            "one call"
        )
    return conditional


def _in_dtype_of(function: str, path: str, conditional: Tensor, unconditional: Tensor) -> Tensor:
    """Cast the unconditional entries to the conditional dtype; raise if an integer would change.

    Floating conditions may round: a number of Python stands for its nearest float.
    """
    cast = unconditional.to(conditional)
    if not conditional.is_floating_point() and not bool((cast == unconditional).all()):
        raise ValueError(
            f"{function}: {path} must have an uncond that {conditional.dtype} holds exactly, "
            f"got {unconditional.flatten()[:4].tolist()}"
        )
    return cast


def equal_leaves(one: Any, other: Any) -> bool:
    """Return whether two leaves are equal; tensors and arrays are compared by value."""
    if one is other:
        return True
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return type(one) is type(other) and np.array_equal(one, other)
    if isinstance(one, Shared) and isinstance(other, Shared):
        return equal_leaves(one.value, other.value)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(equal_leaves(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(equal_leaves, one, other))
    if isinstance(one, (Tensor, Mapping)) or isinstance(other, (Tensor, Mapping)):
        return False
    return type(one) is type(other) and bool(one == other)


def with_dropped(
    function: str, path: str, conditional: Any, unconditional: Any, dropped: Tensor
) -> Any:
    """Return the leaf with the entries of dropped samples replaced by the unconditional entry.

    Args:
        function: the caller's name, for messages.
        path: where the leaf is, for messages.
        conditional: the leaf with one entry per sample; other leaves stay as they are.
        unconditional: one entry, with or without a batch axis of 1, or a number.
        dropped: `(B,)` bool.
    """
    if isinstance(conditional, list):
        single = unconditional
        if isinstance(unconditional, list):
            if len(unconditional) != 1:
                raise ValueError(
                    f"{function}: {path} must hold one entry, which stands for no condition, "
                    f"got {len(unconditional)}"
                )
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
    entry = _in_dtype_of(function, path, conditional, unconditional)
    return torch.where(mask, entry, conditional)
