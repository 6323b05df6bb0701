"""Conditions: what a network is given besides x and the timestep, for a batch of samples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastsample.denoiser.trees import (
    Index,
    Shared,
    doubled,
    entries_of,
    entry_count,
    for_all,
    leaves,
    map_leaves,
    map_pairs,
    mixed,
    moved,
    normalised,
    repeated,
    tensors_in,
    unwrapped,
)


class Conditions:
    """The network's extra keyword arguments for a batch: sliced, repeated, doubled as a whole.

    What is given is a mapping from argument names to values:

    - a tensor or array holds one entry per sample along its first axis; so does a list, of numbers
      (which becomes a tensor) or of anything else, such as tensors of different lengths;
    - a number, or a tensor without axes, stands for every sample; so does an unconditional tensor
      or list of a single entry;
    - dictionaries and tuples are structure, to any depth; their leaves follow these rules;
    - `shared(value)` is passed as it is, and so is anything else (flags, strings, None).

    Under guidance (Ho & Salimans 2022, arXiv:2207.12598) one call of the network runs the batch
    twice, unconditional half first, and `split` gives the halves of its output as views.

    Args:
        function: the caller's name, for messages.
        cond: the conditions; None is none.
        uncond: the same for "no condition"; None without guidance. Shared entries may be left out.
        batch: number of samples; None takes it from the conditions.
        device: where tensors go; None leaves them where they are.

    Attributes:
        batch: number of samples, None if nothing says it.
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
        self._cond = normalised(function, "cond", {} if cond is None else cond, device)
        self._check_batch("cond", self._cond)
        self.guided = uncond is not None
        self._uncond = None
        if uncond is not None:
            absent = normalised(function, "uncond", uncond, device)
            self._uncond = map_leaves(lambda leaf: for_all(leaf, self.batch), absent)
            self._check_batch("uncond", self._uncond)
            if self.batch is not None:
                _ = self.arguments  # what does not fit together is refused now

    def _check_batch(self, label: str, tree: Any) -> None:
        """Every leaf that has one entry per sample must have as many as the others."""
        for where, leaf in leaves(tree, label):
            size = entry_count(leaf)
            if size is None:
                continue
            if self.batch is None:
                self.batch = size
            if size != self.batch:
                raise ValueError(
                    f"{self._function}: {where} must have one entry per sample ({self.batch}), "
                    f"got {size}"
                )

    def _with(self, cond: Any, uncond: Any, batch: int | None) -> Conditions:
        """Conditions of the same caller from trees that are normalised already."""
        made = copy.copy(self)
        made.__dict__.pop("arguments", None)
        made.__dict__.pop("conditional", None)
        made._cond, made._uncond, made.batch = cond, uncond, batch
        made.guided = uncond is not None
        return made

    def _mapped(self, function: Callable[[Any], Any], batch: int | None) -> Conditions:
        uncond = None if self._uncond is None else map_leaves(function, self._uncond)
        return self._with(map_leaves(function, self._cond), uncond, batch)

    # ---- parts of a batch

    def select(self, index: Index) -> Conditions:
        """The conditions of some samples: a slice, or their numbers."""
        batch = self.batch
        if batch is not None:
            batch = len(range(batch)[index]) if isinstance(index, slice) else len(index)
        return self._mapped(lambda leaf: entries_of(leaf, index), batch)

    def part(self, first: int, x: Tensor) -> Conditions:
        """The conditions of the samples ``x (n, ...)``, numbers `first` and on, on their device.

        Raises:
            ValueError: fewer entries than samples.
        """
        made = self.select(slice(first, first + len(x))).to(x.device)
        made = made._with(made._cond, made._uncond, len(x))
        made._check_batch("cond", made._cond)
        made._check_batch("uncond", made._uncond or {})
        return made

    def to(self, device: torch.device) -> Conditions:
        """The conditions with their tensors on a device."""
        return self._mapped(lambda leaf: moved(leaf, device), self.batch)

    def check_count(self, count: int) -> None:
        """ValueError unless the entries are for so many samples."""
        self._with(self._cond, self._uncond, count)._check_batch("cond", self._cond)

    @property
    def mapping(self) -> dict[str, Any]:
        """The conditions as a mapping that can be given as ``cond=`` again."""
        return self._cond

    def repeat(self, times: int) -> Conditions:
        """The conditions of the whole batch again and again, all samples each time."""
        batch = None if self.batch is None else self.batch * times
        return self if times == 1 else self._mapped(lambda leaf: repeated(leaf, times), batch)

    def replaced(self, lost: Tensor, uncond: Mapping[str, Any]) -> Conditions:
        """The conditions with those of some samples replaced by "no condition".

        Args:
            lost: `(B,)` bool, on the tensors' device: whose conditions are replaced.
            uncond: what stands for no condition: an entry of one sample, with or without a batch
                axis of 1, or a number.
        """

        def mix(where: str, given: Any, absent: Any) -> Any:
            return mixed(self._function, where, given, absent, lost)

        absent = normalised(self._function, "uncond", uncond, lost.device)
        given = map_pairs(self._function, "uncond", mix, self._expanded(self._cond), absent)
        return self._with(given, None, self.batch)

    # ---- one call of the network

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """What the network is passed; of both halves under guidance."""
        given = self._expanded(self._cond)
        if self._uncond is None:
            return map_leaves(unwrapped, given)
        absent = self._expanded(self._uncond)
        missing = {
            name: leaf
            for name, leaf in given.items()
            if name not in absent and isinstance(self._cond[name], Shared)
        }
        absent = {**absent, **missing}
        if given.keys() != absent.keys():
            raise ValueError(
                f"{self._function}: cond must have the names of uncond {sorted(absent)}, "
                f"got {sorted(given)}"
            )

        def both(where: str, conditional: Any, unconditional: Any) -> Any:
            return unwrapped(doubled(self._function, where, conditional, unconditional))

        return map_pairs(self._function, "cond", both, given, absent)

    @cached_property
    def conditional(self) -> Conditions:
        """The same without guidance, for rows that need none."""
        return self._with(self._cond, None, self.batch) if self.guided else self

    def doubled(self, x: Tensor) -> Tensor:
        """What the network is fed: x, or x twice."""
        return torch.cat((x, x)) if self.guided else x

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """(conditional output, unconditional output or None)."""
        if not self.guided:
            return output, None
        unconditional, conditional = output.chunk(2)
        return conditional, unconditional

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor in them, for those who look for gradients."""
        for tree in (self._cond, self._uncond or {}):
            for _, leaf in leaves(tree, ""):
                yield from tensors_in(leaf)

    def _expanded(self, tree: dict[str, Any]) -> dict[str, Any]:
        """With an entry per sample where a number stood for all; shared values stay marked."""

        def expanded(leaf: Any) -> Any:
            if isinstance(leaf, Tensor) and leaf.dim() == 0:
                assert self.batch is not None, "a part of known size is what the network sees"
                return leaf.expand(self.batch)
            return leaf

        return map_leaves(expanded, tree)
