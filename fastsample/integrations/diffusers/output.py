"""The result of a scheduler's step."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastsample.integrations.diffusers.stepper import x0_of

_NAMES = ("prev_sample", "pred_original_sample")


class StepOutput:
    """The result of `FastSampleScheduler.step`; it can be read like diffusers' own results.

    The estimate of the clean samples is computed when it is first asked for, since few pipelines
    do, and it costs more than the step itself. Until then the object keeps the tensors of the step.

    Args:
        prev_sample: the samples after the step.
        sample: the samples before it.
        output: the network's output.
        terms: (p, q, lo, hi) of the step's x0 estimate.
        threshold: (quantile, largest bound) of dynamic thresholding, or None.

    Attributes:
        prev_sample: the samples after the step.
    """

    __slots__ = ("_estimate", "_operands", "_versions", "prev_sample")

    def __init__(
        self,
        prev_sample: Tensor,
        sample: Tensor,
        output: Tensor,
        terms: tuple[float, float, float, float],
        threshold: tuple[float, float] | None,
    ) -> None:
        self.prev_sample = prev_sample
        self._operands: Any = (output, sample, terms, threshold)
        self._versions = _versions(output, sample)
        self._estimate: Tensor | None = None

    @property
    def pred_original_sample(self) -> Tensor:
        """The step's estimate x0 of the clean samples, in the dtype of the samples.

        Raises:
            RuntimeError: the samples or the output were written to since the step.
        """
        if self._estimate is None:
            output, sample, terms, threshold = self._operands
            if _versions(output, sample) != self._versions:
                raise RuntimeError(
                    "pred_original_sample: sample and model_output must be as they were in the "
                    "step, got a change; read the estimate before, or pass copies"
                )
            self._estimate = x0_of(output, sample, terms, threshold).to(sample.dtype)
            self._operands = None
        return self._estimate

    def keys(self) -> tuple[str, ...]:
        """Return the names of the results."""
        return _NAMES

    def values(self) -> tuple[Tensor, ...]:
        """Return the results."""
        return self.to_tuple()

    def items(self) -> tuple[tuple[str, Tensor], ...]:
        """Return pairs of name and result."""
        return tuple(zip(_NAMES, self.to_tuple(), strict=True))

    def to_tuple(self) -> tuple[Tensor, ...]:
        """Return the results as a tuple."""
        return self.prev_sample, self.pred_original_sample

    def get(self, name: str, default: Any = None) -> Any:
        """Return a result by its name, or the default for another name."""
        return getattr(self, name) if name in _NAMES else default

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            if key not in _NAMES:
                raise KeyError(key)
            return getattr(self, key)
        if key == 0:
            return self.prev_sample  # without the estimate
        return self.to_tuple()[key]

    def __len__(self) -> int:
        return len(_NAMES)

    def __contains__(self, name: object) -> bool:
        return name in _NAMES


def _versions(*tensors: Tensor) -> tuple[int, ...]:
    """Return how often tensors were written to; those of inference mode do not count it."""
    return tuple(-1 if tensor.is_inference() else tensor._version for tensor in tensors)
