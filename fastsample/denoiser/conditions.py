"""The class `Conditions`: a network's inputs besides x and t, such as labels and text."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastsample.denoiser.leaves import (
    Index,
    broadcast_entry,
    cloned,
    doubled,
    entry_count,
    fingerprint,
    repeated,
    select_entries,
    tensors_in,
    to_device,
    unwrapped,
    with_dropped,
)
from fastsample.denoiser.normalise import normalised
from fastsample.denoiser.trees import leaves, map_leaves, map_pairs, with_shared


class Conditions:
    """Holds the network's extra keyword arguments for a batch; can slice, repeat and double them.

    Conditions are a mapping from argument names to values:

    - a tensor or array holds one entry per sample along its first axis; so does a list, of numbers
      (which becomes a tensor) or of anything else, such as tensors of different lengths;
    - a number, or a tensor without axes, applies to every sample; so does an unconditional tensor
      or list of a single entry;
    - dictionaries and tuples are structure, to any depth; their leaves follow these rules;
    - `shared(value)` is passed as it is, and so is anything else (flags, strings, None).

    Under guidance (Ho & Salimans 2022, arXiv:2207.12598) one call of the network runs the batch
    twice, unconditional half first, and `split` returns the halves of its output as views.

    Args:
        function: the caller's name, for messages.
        cond: the conditions; None is no conditions.
        uncond: the values that mean "no condition"; None without guidance. Shared entries may be
            left out.
        batch: number of samples; None takes it from the conditions.
        device: where tensors are moved to; None leaves them where they are.

    Attributes:
        batch: number of samples, None if no entry determines it.
        guided: whether a call runs the batch twice.

    Raises:
        TypeError: conditions that are no mapping, or a list that mixes numbers with other things.
        ValueError: entries that are not one per sample, or that differ between `cond` and `uncond`
            in name, structure or shape. The message names the key.
    """

    def __init__(
        self,
        function: str,
        cond: Mapping[str, Any] | None = None,
        uncond: Mapping[str, Any] | None = None,
        batch: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._function, self.batch = function, batch
        self._cond: Any = {}
        self._uncond: Any = None
        self.guided = uncond is not None
        if cond is None and uncond is None:  # the usual call
            self.__dict__["arguments"] = {}
            return
        self._cond = normalised(function, "cond", {} if cond is None else cond, device)
        self._check_batch("cond", self._cond)
        if uncond is not None:
            tree = normalised(function, "uncond", uncond, device)
            self._uncond = map_leaves(lambda leaf: broadcast_entry(leaf, self.batch), tree)
            self._check_batch("uncond", self._uncond)
            if self.batch is not None:
                _ = self.arguments  # raises if cond and uncond differ

    def _check_batch(self, label: str, tree: Any) -> None:
        """Raise ValueError unless all leaves with one entry per sample have `batch` entries.

        The first such leaf determines the batch where it is not known.
        """
        for path, leaf in leaves(tree, label):
            size = entry_count(leaf)
            if size is None:
                continue
            if self.batch is None:
                self.batch = size
            if size != self.batch:
                raise ValueError(
                    f"{self._function}: {path} must have one entry per sample ({self.batch}), "
                    f"got {size}; mark what is the same for all as fs.shared(value)"
                )

    def _with(self, cond: Any, uncond: Any, batch: int | None) -> Conditions:
        """Return a copy that holds other values, which must have gone through `normalised`."""
        other = copy.copy(self)
        other.__dict__.pop("arguments", None)
        other.__dict__.pop("conditional", None)
        other._cond, other._uncond, other.batch = cond, uncond, batch
        other.guided = uncond is not None
        return other

    def _mapped(self, function: Callable[[Any], Any], batch: int | None) -> Conditions:
        """Return the conditions with a function applied to every value of cond and uncond."""
        uncond = None if self._uncond is None else map_leaves(function, self._uncond)
        return self._with(map_leaves(function, self._cond), uncond, batch)

    # ---- conditions of other batches

    def select(self, index: Index) -> Conditions:
        """Return the conditions of some samples, given by a slice or by positions in the batch."""
        batch = self.batch
        if batch is not None:
            batch = len(range(batch)[index]) if isinstance(index, slice) else len(index)
        return self._mapped(lambda leaf: select_entries(leaf, index), batch)

    def part(self, first: int, x: Tensor) -> Conditions:
        """Return the conditions of samples `first` to `first + n`, on the device of ``x (n, ...)``.

        Raises:
            ValueError: fewer entries than samples.
        """
        part = self.select(slice(first, first + len(x))).to(x.device)
        part = part._with(part._cond, part._uncond, len(x))
        part._check_batch("cond", part._cond)
        part._check_batch("uncond", part._uncond or {})
        return part

    def to(self, device: torch.device) -> Conditions:
        """Return the conditions with their tensors moved to a device."""
        return self._mapped(lambda leaf: to_device(leaf, device), self.batch)

    def check_count(self, count: int) -> None:
        """Raise ValueError unless `cond` has entries for this number of samples."""
        self._with(self._cond, self._uncond, count)._check_batch("cond", self._cond)

    @property
    def mapping(self) -> dict[str, Any]:
        """The conditions as a dictionary that can be passed as ``cond=`` again."""
        return self._cond

    def repeat(self, count: int) -> Conditions:
        """Return the conditions of the whole batch tiled `count` times (a b a b, not a a b b)."""
        batch = None if self.batch is None else self.batch * count
        return self if count == 1 else self._mapped(lambda leaf: repeated(leaf, count), batch)

    def replaced(self, dropped: Tensor, uncond: Mapping[str, Any]) -> Conditions:
        """Return the conditions with those of some samples replaced by "no condition".

        Args:
            dropped: `(B,)` bool, on the tensors' device: whose conditions are replaced.
            uncond: the values that mean "no condition": an entry of one sample, with or without a
                batch axis of 1, or a number.
        """

        def replace(path: str, conditional: Any, unconditional: Any) -> Any:
            return with_dropped(self._function, path, conditional, unconditional, dropped)

        tree = normalised(self._function, "uncond", uncond, dropped.device)
        expanded = self._expanded(self._cond)
        tree = with_shared(expanded, tree)
        cond = map_pairs(self._function, "uncond", replace, expanded, tree)
        return self._with(cond, None, self.batch)

    # ---- one call of the network

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """The network's keyword arguments; under guidance for 2 B samples, unconditional first."""
        cond = self._expanded(self._cond)
        if self._uncond is None:
            return map_leaves(unwrapped, cond)
        uncond = with_shared(cond, self._expanded(self._uncond))
        if cond.keys() != uncond.keys():
            raise ValueError(
                f"{self._function}: cond must have the names of uncond {sorted(map(str, uncond))}, "
                f"got {sorted(map(str, cond))}"
            )

        def both(path: str, conditional: Any, unconditional: Any) -> Any:
            return unwrapped(doubled(self._function, path, conditional, unconditional))

        return map_pairs(self._function, "cond", both, cond, uncond)

    @cached_property
    def conditional(self) -> Conditions:
        """The same conditions without `uncond`, for rows whose guidance scale is 1."""
        return self._with(self._cond, None, self.batch) if self.guided else self

    def doubled(self, x: Tensor) -> Tensor:
        """Return the input of one network call: x, or under guidance x twice, ``(2 B, ...)``."""
        return torch.cat((x, x)) if self.guided else x

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return one call's output as (conditional half, unconditional half or None)."""
        if not self.guided:
            return output, None
        unconditional, conditional = output.chunk(2)
        return conditional, unconditional

    def signature(self) -> tuple[object, ...]:
        """Return what two batches must share for one CUDA graph to serve both.

        It holds the shapes and dtypes of tensors, and the values (or identities) of all else.
        """
        return (self.guided, fingerprint(self.arguments))

    def cloned(self) -> Conditions:
        """Return conditions whose `arguments` have memory of their own, for `copy_from`."""
        other = self._with(self._cond, self._uncond, self.batch)
        other.__dict__["arguments"] = map_leaves(cloned, self.arguments)
        return other

    def copy_from(self, other: Conditions) -> None:
        """Overwrite the tensors in `arguments` with those of conditions of equal `signature`."""
        pairs = zip(_argument_tensors(self), _argument_tensors(other), strict=True)
        for mine, theirs in pairs:
            mine.copy_(theirs)

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor in the conditions, to find out whether one requires grad."""
        if not self._cond and not self._uncond:
            return
        for tree in (self._cond, self._uncond):
            for _, leaf in leaves(tree, ""):
                yield from tensors_in(leaf)

    def _expanded(self, tree: dict[str, Any]) -> dict[str, Any]:
        """Return the conditions with 0-dimensional tensors expanded to one entry per sample."""

        def expanded(leaf: Any) -> Any:
            if isinstance(leaf, Tensor) and leaf.dim() == 0:
                assert self.batch is not None, "the batch is known before the network is called"
                return leaf.expand(self.batch)
            return leaf

        return map_leaves(expanded, tree)


def _argument_tensors(conditions: Conditions) -> Iterator[Tensor]:
    """Yield every tensor among the network's arguments."""
    for _, leaf in leaves(conditions.arguments, ""):
        yield from tensors_in(leaf)
