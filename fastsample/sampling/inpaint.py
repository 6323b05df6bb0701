"""The function `inpaint`, which fills in what is missing of given data (RePaint)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from fastsample import ops
from fastsample._support.checks import check_integer
from fastsample._support.tensors import check_tensor
from fastsample.denoiser.denoiser import Denoiser
from fastsample.denoiser.threshold import Threshold
from fastsample.denoiser.wrap import as_denoiser
from fastsample.ops.draws import INPAINT_DRAW
from fastsample.ops.dtypes import DTYPE_CODES, history_dtype
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Clip
from fastsample.sampling.first_node import warn_of_signal
from fastsample.sampling.jumps import with_jumps
from fastsample.sampling.loop import Step
from fastsample.sampling.noise import Identity, agreed_batch, as_seed, make_identity
from fastsample.sampling.resolve import PlanRequest, Steps, resolve, threshold_for
from fastsample.sampling.sampler import Sampler
from fastsample.schedules.schedule import NoiseSchedule


def inpaint(
    model: Any,
    known: Tensor,
    mask: Tensor,
    steps: Steps = 50,
    *,
    jumps: tuple[int, int] | None = None,
    num_samples: int | None = None,
    method: str = "auto",
    grid: str = "auto",
    grid_seed: int | None = None,
    whole: bool = False,
    seed: int | Sequence[int] | torch.Generator | None = None,
    sample_index: int | Sequence[int] | Tensor | None = None,
    start: Tensor | None = None,
    shape: Sequence[int] | None = None,
    schedule: NoiseSchedule | None = None,
    clip: Clip | Literal["auto"] = "auto",
    guidance: float | Sequence[float] | None = None,
    guidance_interval: tuple[float, float] | None = None,
    guidance_rescale: float = 0.0,
    threshold: Threshold | Literal["auto"] | None = "auto",
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    progress: bool = False,
    callback: Callable[[Step], object] | None = None,
    batch_size: int | None = None,
    **knobs: Any,
) -> Tensor:
    """Draw samples that agree with given data where a mask says so.

    RePaint (Lugmayr et al. 2022, arXiv:2201.09865). After each row of the sampler the known region
    is overwritten by the known data with the noise of that time, ``alpha known + sigma z`` (eq.
    8a), and after the last row by the known data themselves, bit for bit. A network that was not
    trained for this makes the rest fit the known region better if it sees both again and again:
    ``jumps=(length, repeats)`` returns to the node `length` rows before, with the noise of the
    forward process (section 4.2), and comes down again, `repeats` times at every `length`-th node.
    The paper's setting is ``inpaint(model, known, mask, 250, jumps=(10, 9), eta=1.0)``: its r = 10
    counts the first pass too.

    K steps with jumps make ``K + length repeats floor((K - 1) / length)`` network calls.

    Sample i is the same in any batch, as in `sample`. The noise of the known region is the sample's
    own (seed, sample index), independent of all other noise. No gradient flows through this.

    Args:
        model: as for `sample`.
        known: data ``(B, *shape)``, floating, on the model's device; with a single sample
            ``(1, *shape)`` for all samples. Only the known region is read.
        mask: 1 or True where the data are known, 0 or False where they are to be filled in; in a
            shape that broadcasts to ``(B, *shape)``, such as ``(H, W)`` or ``(B, 1, H, W)``.
        steps: the number of rows of the sampler without jumps, or its times, or a `Plan`.
        jumps: (length, repeats), the rows of a jump and how often it is made, each at least 1; None
            is no jumps. The length must be below the number of rows.
        num_samples: the number of samples B for a single sample of `known`.
        method: the sampler, one of `fastsample.samplers.registry.METHODS`. "auto" is the method
            that takes the knobs, else DDIM, never a tuned plan. ``eta=1.0``, or "ancestral", is the
            paper's. A multistep method begins anew after each jump, at first order.
        grid: as for `sample`.
        grid_seed: as for `sample`.
        whole: as for `sample`.
        seed: as for `sample`.
        sample_index: as for `sample`.
        start: x at the plan's first node ``(B, *shape)``, whose known region is overwritten; None
            is generated noise. It is not modified.
        shape: shape of one sample, for a bare callable; None is that of `known`.
        schedule: as for `sample`.
        clip: as for `sample`.
        guidance: as for `sample`; one scale, or one per row with the rows of the jumps.
        guidance_interval: as for `sample`.
        guidance_rescale: as for `sample`.
        threshold: as for `sample`.
        cond: as for `sample`.
        uncond: as for `sample`.
        progress: show a progress bar of the network calls.
        callback: called with a `Step` after each row, when the known region is in place.
        batch_size: samples per run; more are drawn in several runs, with the same results.
        **knobs: further keyword arguments of the method, such as ``eta=1.0``.

    Returns:
        ``(B, *shape)`` in the dtype of `known`.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, shapes that do not fit, jumps in a plan that cannot
            have them, or a network that returns NaN.
    """
    name = "inpaint"
    if not isinstance(known, Tensor) or known.dtype not in DTYPE_CODES:  # pyright: ignore[reportUnnecessaryIsInstance]
        got = known.dtype if isinstance(known, Tensor) else type(known).__name__  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{name}: known must be a floating tensor, got {got}")
    if known.dim() < 2:
        raise ValueError(f"{name}: known must have shape (B, *shape), got {tuple(known.shape)}")
    if callback is not None and not callable(callback):
        raise TypeError(f"{name}: callback must be callable, got {callback!r}")
    shape = shape if isinstance(model, Denoiser) else shape or known.shape[1:]
    denoiser = as_denoiser(model, shape, schedule, name)
    check_tensor(
        "known", known, (known.shape[0], *denoiser.shape), known.dtype, denoiser.device, name
    )
    request = PlanRequest(
        *(steps, method, grid, clip, knobs, grid_seed),
        default="ddim",
        whole=whole,
        models_last=True,
    )
    untuned = denoiser.with_plans([])
    base = resolve(name, untuned, request)
    plan = with_jumps(untuned, request, base, jumps)
    sampler = Sampler.from_request(
        name,
        denoiser,
        PlanRequest(
            plan,
            guidance=guidance,
            guidance_interval=guidance_interval,
            guidance_rescale=guidance_rescale,
            # The sampler below is given a plan, for which "auto" would mean none.
            threshold=threshold_for(denoiser, replace(request, threshold=threshold), base.method),
        ),
        *(None, None, uncond, None, None, False, batch_size),
    )
    sizes = _sizes(known, mask, num_samples)
    batch = agreed_batch(name, sizes, start, None, cond, sample_index, seed)
    seed = as_seed(name, seed)
    identity = make_identity(name, seed, sample_index, batch, known.device)
    check_tensor("start", start, (batch, *denoiser.shape), known.dtype, known.device, name)
    with torch.no_grad():
        if start is None:
            warn_of_signal(name, denoiser.schedule, plan)
            start = ops.noise(*identity, denoiser.shape, dtype=known.dtype)
            start = start * denoiser.schedule.start_scale(float(plan.nodes[0]))
        region = _KnownRegion(plan, known.detach(), _checked_mask(mask, known, batch), identity)

        def after_row(step: Step) -> None:
            region.after_row(step.row, step.x)
            if callback:
                callback(step)

        return sampler(
            batch,
            seed=seed,
            sample_index=sample_index,
            start=region.at_start(start),
            cond=cond,
            progress=progress,
            callback=after_row,
        )


class _KnownRegion:
    """Puts the known data into the samples of a run, with the noise of each node.

    Args:
        plan: the rows of the run.
        known: data `(B, *shape)` or `(1, *shape)`.
        mask: True where they are known, `(B, *shape)`.
        identity: seeds and indices of all samples.
    """

    def __init__(self, plan: Plan, known: Tensor, mask: Tensor, identity: Identity) -> None:
        self._levels = list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))
        self._known, self._mask, self._identity = known, mask, identity
        self._first = 0  # the first sample of this run: samples may be drawn in several runs

    def at_start(self, x: Tensor) -> Tensor:
        """Return the samples at the first node `(B, *shape)` with the known region in place."""
        # Its noise has the number after those of the rows.
        noised = self._noised(0, len(self._levels) - 1, slice(0, x.shape[0]))
        return torch.where(self._mask, noised, x)

    def after_row(self, row: int, x: Tensor) -> None:
        """Overwrite the known region of a run's samples `(n, *shape)` after a row."""
        part = slice(self._first, self._first + x.shape[0])
        last = row == len(self._levels) - 2
        value = self._part(part) if last else self._noised(row + 1, row, part)
        x.copy_(torch.where(self._mask[part], value, x))
        if last:
            self._first = part.stop

    def _part(self, part: slice) -> Tensor:
        """Return the known data of some samples, `(n, *shape)` or `(1, *shape)`."""
        return self._known if self._known.shape[0] == 1 else self._known[part]

    def _noised(self, node: int, draw: int, part: slice) -> Tensor:
        """Return the known data of some samples with the noise of a node, `(n, *shape)`."""
        alpha, sigma = self._levels[node]
        known, (seeds, index) = self._part(part), self._identity
        seeds = seeds if seeds.shape[0] == 1 else seeds[part]
        dtype = history_dtype(known)
        shape = tuple(known.shape[1:])
        noise = ops.noise(seeds, index[part], shape, draw=INPAINT_DRAW + draw, dtype=dtype)
        return (alpha * known.to(dtype) + sigma * noise).to(known.dtype)


def _sizes(known: Tensor, mask: Any, num_samples: Any) -> Any:
    """Return the number of samples that the data, the mask and `num_samples` ask for, or None."""
    sizes = {"known": known.shape[0]}
    if isinstance(mask, Tensor) and mask.dim() == known.dim():
        sizes["mask"] = mask.shape[0]
    asked = {name: size for name, size in sizes.items() if size != 1}
    if num_samples is not None:
        asked["num_samples"] = check_integer("inpaint", "num_samples", num_samples, 0)
    if len(set(asked.values())) > 1:
        raise ValueError(f"inpaint: num_samples must be one number, got {asked}")
    return next(iter(asked.values()), None)


def _checked_mask(mask: Any, known: Tensor, batch: int) -> Tensor:
    """Return the mask as True and False in the shape `(B, *shape)`, without a copy of it.

    Raises:
        TypeError: no tensor.
        ValueError: other values than 0 and 1, another shape or device, or data that are not finite
            where they are known.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"inpaint: mask must be a tensor, got {type(mask).__name__}")
    if mask.device != known.device:
        raise ValueError(f"inpaint: mask must be on {known.device}, got {mask.device}")
    size = (batch, *known.shape[1:])
    known_here = mask != 0
    if mask.dtype != torch.bool and not bool(((mask == 1) | ~known_here).all()):
        other = mask[(mask != 1) & known_here][0].item()
        raise ValueError(f"inpaint: mask must hold 0 (to fill in) and 1 (known) alone, got {other}")
    try:
        known_here = known_here.expand(size)
    except RuntimeError:
        raise ValueError(
            f"inpaint: mask must have a shape that broadcasts to {size}, got {tuple(mask.shape)}"
        ) from None
    if not bool((torch.isfinite(known) | ~known_here).all()):
        raise ValueError("inpaint: known must be finite where the mask is 1, got NaN or infinity")
    return known_here
