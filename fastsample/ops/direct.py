"""The short way to the kernels, around torch's dispatcher, for plain tensors outside of tracing.

The dispatcher costs half of an operator's time on the host. It is needed only for gradients,
transforms such as vmap, modes, subclasses of Tensor, tracing and compilation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastsample import _native
from fastsample.ops.dtypes import DTYPE_CODES, history_dtype
from fastsample.ops.launch import CHANNELS_LAST, device_arguments
from fastsample.plans.history import HistorySlots

_C = torch._C  # pyright: ignore[reportPrivateUsage]  # these states have no public names
_num_dispatch_modes = _C._len_torch_dispatch_stack  # pyright: ignore[reportPrivateUsage]
_num_function_modes = _C._len_torch_function_stack  # pyright: ignore[reportPrivateUsage]
_tracing = _C._get_tracing_state  # pyright: ignore[reportPrivateUsage]  # of torch.jit.trace
_STRIDED = torch.strided  # looked up only once
_transform = _C._functorch.peek_interpreter_stack  # pyright: ignore


def is_plain(*tensors: Tensor | None) -> bool:
    """Return whether kernels may be called on these tensors without torch's dispatcher.

    The caller has seen to it that no gradient is asked for.
    """
    if torch.compiler.is_compiling():  # first, since dynamo cannot trace what follows
        return False
    for tensor in tensors:
        if tensor is not None and not _is_dense(tensor):
            return False
    modes = _num_dispatch_modes() or _num_function_modes()
    return not modes and _transform() is None and not _tracing()


def _is_dense(tensor: Tensor) -> bool:
    """Return whether the memory of a tensor holds its values, one after the other or strided."""
    return (
        type(tensor) is Tensor
        and (tensor.is_cpu or tensor.is_cuda)
        and tensor.layout is _STRIDED
        and not tensor.is_neg()  # a view of the opposite of what the memory holds
    )


def _dense(tensor: Tensor) -> Tensor:
    """Return the values of a network's output as a plain tensor, without a copy if possible.

    Raises:
        TypeError: a sparse tensor, or a subclass of Tensor that has no memory of its own.
    """
    if tensor.layout is _STRIDED:
        try:
            plain = tensor.detach().as_subclass(Tensor).resolve_neg()
            if plain.data_ptr() or not plain.numel():
                return plain
        except RuntimeError:  # such a subclass has no address
            pass
    raise TypeError(
        "Denoiser: the model's output must be a dense tensor with memory of its own, got "
        f"{type(tensor).__name__} of layout {tensor.layout}"
    )


class DirectSteps:
    """Runs the rows of a plan on one batch, with kernel arguments made once per run.

    Every row overwrites the samples; the first one may read them from another tensor.

    Args:
        x: samples `(B, *shape)` for which `can_run` holds.
        in_place: whether the rows overwrite `x` itself; otherwise they have a tensor of their own.
        spare: buffers of an earlier run, which are used if they fit and replaced if not: on a CPU
            the page faults of a large new buffer cost more than a row.
        rows: plan table `(K', 15)`.
        numbers: row numbers `(K',)`, int64.
        slots: where the rows keep the x0 estimates that later rows read.
        seeds: seeds of generated noise, or None.
        index: sample indices `(B,)`, with `seeds`.
        noise: explicit noise `(K', B, *shape)` in the dtype of `x`, or None.

    Attributes:
        x: the samples after the last row that was run.
    """

    def __init__(
        self,
        x: Tensor,
        rows: Tensor,
        numbers: Tensor,
        slots: HistorySlots,
        seeds: Tensor | None = None,
        index: Tensor | None = None,
        noise: Tensor | None = None,
        *,
        in_place: bool = True,
        spare: list[Tensor] | None = None,
    ) -> None:
        self.x, self._noise, self._slots = x, noise, slots
        self._target = x
        if not in_place:
            # A tensor made in inference mode would not count the writes of a network to it.
            if torch.is_inference_mode_enabled():
                with torch.inference_mode(False):
                    self._target = torch.empty_like(x)
            else:
                self._target = torch.empty_like(x)
        self._buffers = _history_buffers(x, slots.count, [] if spare is None else spare)
        self._kept = (rows, numbers, seeds, index)  # their addresses are used
        shape = x.shape
        batch, channels = shape[0], shape[1]
        size = x.numel() // batch if batch else 0
        contiguous = x.is_contiguous()
        self._channels = channels
        self._format = torch.contiguous_format if contiguous else CHANNELS_LAST[x.dim()]
        self._half = batch * size * x.element_size()  # bytes of the output for B samples
        self._from, self._to = x.data_ptr(), self._target.data_ptr()
        self._shape = (
            *(DTYPE_CODES[x.dtype], batch, size, channels),
            *(size // channels if channels else 0, not contiguous),
        )
        self._prefix = (*device_arguments(x), *self._shape)
        self._table = (rows.data_ptr(), rows.shape[0])
        self._first_number = numbers.data_ptr()
        self._identity = (0, False, 0, 0, False)
        if seeds is not None and index is not None:
            self._identity = (seeds.data_ptr(), seeds.numel() != 1, index.data_ptr(), 0, False)
        addresses = [*(buffer.data_ptr() for buffer in self._buffers), 0]  # the last is slot -1
        self._history = None
        if self._buffers:
            self._history = [
                (addresses[h1], addresses[h2], addresses[h3], addresses[h4], addresses[write])
                for (h1, h2, h3, h4), write in zip(slots.reads, slots.writes, strict=True)
            ]

    @staticmethod
    def can_run(x: Tensor, *, plain: bool = False) -> bool:
        """Return whether the kernel may be called directly on these samples.

        The caller has seen to it that no gradient is asked for.

        Args:
            x: samples `(B, *shape)`.
            plain: whether the caller knows that `is_plain` holds for them.
        """
        if not plain and not is_plain(x):
            return False
        if x.is_contiguous():
            return True
        fmt = CHANNELS_LAST.get(x.dim())
        return fmt is not None and x.is_contiguous(memory_format=fmt)

    @property
    def history(self) -> list[Tensor]:
        """The buffers of x0 estimates, which `HistorySlots` numbers."""
        return self._buffers

    def move(self, x: Tensor, target: Tensor) -> None:
        """Let the next row read its samples from a tensor, and write them to another one.

        Both have the shape, dtype, strides and device of the samples before.
        """
        self.x, self._from = x, x.data_ptr()
        self._target, self._to = target, target.data_ptr()
        self._prefix = (*device_arguments(x), *self._shape)  # The CUDA stream may have changed.

    def release(self) -> None:
        """Forget the tensors of `move`, so that their memory can be used again."""
        del self.x, self._target

    def step(
        self,
        k: int,
        out: Tensor,
        uncond: Tensor | None = None,
        guided: bool = False,
        noise: Tensor | None = None,
    ) -> None:
        """Run row k on the samples.

        Args:
            k: number of the row.
            out: checked output of the network in the samples' dtype: for B samples, or, `guided`,
                for 2 B, unconditional half first.
            uncond: unconditional output, if it is a tensor of its own.
            guided: whether `out` holds both halves.
            noise: explicit noise of this row, shape and dtype of `x`, instead of that of the run.
        """
        if not _is_dense(out):
            out = _dense(out)
        if not out.is_contiguous(memory_format=self._format):
            out = out.contiguous(memory_format=self._format)
        conditional, unconditional, given = out.data_ptr(), 0, 0
        learned = out.shape[1] != self._channels
        if guided:
            unconditional = conditional
            conditional += 2 * self._half if learned else self._half
        elif uncond is not None:
            uncond = _dense(uncond).contiguous(memory_format=self._format)
            unconditional = uncond.data_ptr()
        if noise is None and self._noise is not None:
            noise = self._noise[k]
        if noise is not None:
            noise = _dense(noise).contiguous(memory_format=self._format)
            given = noise.data_ptr()
        h1, h2, h3, h4, x0 = self._history[k] if self._history else (0, 0, 0, 0, 0)
        _native.step(
            *self._prefix,
            learned,
            *(self._from, conditional, unconditional, given, h1, h2, h3, h4),
            *self._table,
            self._first_number + 8 * k,
            False,
            *self._identity,
            self._to,
            x0,
        )
        self.x, self._from = self._target, self._to


def _history_buffers(x: Tensor, count: int, spare: list[Tensor]) -> list[Tensor]:
    """Return tensors for x0 estimates of `x`, and leave them in `spare`."""
    dtype = history_dtype(x)
    buffers = [
        t
        for t in spare
        if t.shape == x.shape
        and t.dtype == dtype
        and t.stride() == x.stride()
        and t.device == x.device
    ]
    buffers = buffers[:count]
    while len(buffers) < count:
        buffers.append(torch.empty_like(x, dtype=dtype))
    spare[:] = buffers
    return buffers
