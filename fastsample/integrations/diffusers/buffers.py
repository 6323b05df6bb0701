"""Reuses the memory of samples that nobody holds any more."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

_LEAST_BYTES = 1 << 18
"""Smaller tensors come from memory that the process has already."""
_MOST = 3
"""Two tensors take turns in a pipeline's loop; one more may be held by a callback."""

_C = torch._C  # pyright: ignore[reportPrivateUsage]
_storage_count = getattr(_C, "_storage_Use_Count", None)  # used by torch's own CUDA graph trees


class Buffers:
    """Gives out tensors, and gives one out again once nobody else holds it or a view of it.

    The operating system maps the memory of a large new tensor on a CPU page by page when it is
    first written, which takes longer than a sampler's step. CUDA memory has torch's own cache. A
    tensor is free when this object has its only reference: from Python, from C++ (autograd, DLPack)
    and, through its storage, from views of it. Not for use from several threads.
    """

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        # The counts of a tensor that only this object holds depend on the version of Python.
        self._example = [torch.empty(1)]
        for tensor in self._example:
            self._alone = _counts(tensor)

    def empty_like(self, x: Tensor) -> Tensor:
        """Return an uninitialised tensor with the shape, strides, dtype and device of `x`."""
        if not x.is_cpu or _storage_count is None or x.numel() * x.element_size() < _LEAST_BYTES:
            return torch.empty_like(x)
        inference = torch.is_inference_mode_enabled()
        free = None
        for position in range(len(self._tensors)):  # `enumerate` would hold a reference of its own
            tensor = self._tensors[position]
            if _counts(tensor) == self._alone:
                free = position
                if (
                    tensor.shape == x.shape
                    and tensor.dtype == x.dtype
                    and tensor.stride() == x.stride()
                    and tensor.is_inference() == inference
                ):
                    return tensor
        new = torch.empty_like(x)
        if free is not None:
            self._tensors[free] = new
        elif len(self._tensors) < _MOST:
            self._tensors.append(new)
        return new


def _counts(tensor: Tensor) -> tuple[int, int, int, int]:
    """Return how often a tensor and its storage are referred to, from Python and from C++."""
    storage = tensor.untyped_storage()
    uses = 0 if _storage_count is None else _storage_count(storage._cdata)  # pyright: ignore
    count = int(tensor._use_count())  # pyright: ignore
    return sys.getrefcount(tensor), count, sys.getrefcount(storage), int(uses)
