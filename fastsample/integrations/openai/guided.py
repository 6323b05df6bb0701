"""The network and the classifier as one network that predicts the guided x0."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from fastsample import ops
from fastsample._support.checks import FloatArray
from fastsample.denoiser.denoiser import Denoiser


class _Table(NamedTuple):
    """What a device knows of the times that were asked for, in rising order."""

    times: Tensor
    """`(n,)` float32."""
    rows: Tensor
    """`(n, 15)`."""
    timesteps: Tensor
    """`(n,)` the network's timesteps in runs with fractional times."""
    whole: Tensor
    """`(n,)` its timesteps in runs of whole times; of no meaning where a time is fractional."""


class TimesAndRows:
    """Gives the guided network its times, and keeps for each of them the row of the guided x0.

    As the `time` of a `Denoiser` it is called on the host with all times before they are used. The
    rows are found on the device by their times, so that a run does not wait for the host.

    Args:
        denoiser: the model without guidance, whose timesteps its network is given.
        rows_at: gives the rows `(n, 15)` at rising times `(n,)`.
        check: called with the times of a run, to refuse them.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        rows_at: Callable[[FloatArray], FloatArray],
        check: Callable[[FloatArray], object],
    ) -> None:
        self._denoiser, self._rows_at, self._check = denoiser, rows_at, check
        self._times: FloatArray = np.empty(0)
        self._tables: dict[torch.device, _Table] = {}
        self._lock = threading.Lock()

    def __call__(self, times: FloatArray) -> Any:
        """Return the times as the guided network takes them: int64 if all are whole."""
        self._check(times)
        # The network is given float32 times, so that rows are those of the rounded times.
        rounded = np.asarray(times, np.float32).astype(np.float64)
        asked = np.minimum(rounded, self._denoiser.schedule.T)
        with self._lock:
            known = np.union1d(self._times, asked)
            if len(known) > len(self._times):
                self._times, self._tables = known, {}
        whole = bool(np.all(asked == np.rint(asked)))
        return asked.astype(np.int64) if whole else asked

    def find(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (rows, row number of each sample, network's timestep of each) at times `(B,)`."""
        table = self._tables.get(t.device)
        if table is None:
            with self._lock, torch.inference_mode(False):
                table = self._tables[t.device] = self._made(t.device)
        number = torch.searchsorted(table.times, t.to(torch.float32).contiguous())
        of_run = table.timesteps if t.is_floating_point() else table.whole
        return table.rows, number, of_run[number]

    def _made(self, device: torch.device) -> _Table:
        """Return the rows and timesteps of all times that were asked for."""
        times = self._times
        is_whole = times == np.rint(times)
        whole = np.where(is_whole, times, times[is_whole][0]) if is_whole.any() else times
        return _Table(
            torch.as_tensor(times.astype(np.float32), device=device),
            torch.as_tensor(self._rows_at(times), dtype=ops.rows_dtype(device), device=device),
            self._denoiser.network_times(times, device).to(torch.float32),
            self._denoiser.network_times(whole, device),
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the lock and the tables, which a copy makes anew."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_tables")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock, self._tables = threading.Lock(), {}


class ClassifierGuided(nn.Module):
    """A network of ``(x, t, **cond)`` with project times t that returns the guided x0.

    Args:
        function: the public function that made it, for messages.
        denoiser: the model.
        cond_fn: gives the gradient.
        classifier_only: names of conditions that the network does not take.
        rows: the rows that compute x0' from x, the output and the gradient.
    """

    def __init__(
        self,
        function: str,
        denoiser: Denoiser,
        cond_fn: Callable[..., Tensor],
        classifier_only: Collection[str],
        rows: TimesAndRows,
    ) -> None:
        super().__init__()
        self.network = denoiser.model  # its parameters are then this module's, if it is a module
        # A wrapper has no mode of its own; a network in training mode is still warned of.
        self.training = False
        self._function, self._denoiser, self._cond_fn = function, denoiser, cond_fn
        self._classifier_only, self._rows = frozenset(classifier_only), rows

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Return x0' `(B, *shape)`, followed by v if the variance is learned."""
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            raise ValueError(
                f"{self._function}: graph must be False for a guided model, whose classifier runs "
                "outside of CUDA graphs, got True"
            )
        rows, number, timestep = self._rows.find(t)
        for_network = {k: v for k, v in cond.items() if k not in self._classifier_only}
        output = self._denoiser.at_timestep(x, timestep, for_network)
        gradient = self._gradient(x, timestep, cond)
        x0 = ops.step(x, output, rows, number, noise=gradient)
        channels = x.shape[1]
        return x0 if output.shape[1] == channels else torch.cat((x0, output[:, channels:]), dim=1)

    def _gradient(self, x: Tensor, timestep: Tensor, cond: dict[str, Any]) -> Tensor:
        """Return what `cond_fn` gives for copies of its arguments, in the dtype of x."""
        # A tensor made in inference mode cannot require a gradient, and its copy outside can.
        with torch.inference_mode(False):
            copies = {k: _plain(v) for k, v in cond.items()}
            given: Any = self._cond_fn(x.detach().clone(), timestep.clone(), **copies)
            rule = f"{self._function}: cond_fn must return the gradient, a tensor of the shape of x"
            if not isinstance(given, Tensor):
                raise TypeError(f"{rule} {tuple(x.shape)}, got {type(given).__name__}")
            if given.shape != x.shape or given.device != x.device:
                raise ValueError(
                    f"{rule} {tuple(x.shape)} on {x.device}, got {tuple(given.shape)} on "
                    f"{given.device}"
                )
            return given.detach().to(x.dtype)


def _plain(value: Any) -> Any:
    """Return a copy of a tensor that was made in inference mode, and anything else as it is."""
    if isinstance(value, Tensor) and value.is_inference():
        return value.clone()
    return cast("Any", value)
