r"""Classifier guidance: the `cond_fn` of guided-diffusion, which pulls samples towards a class.

Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis" (arXiv:2105.05233). With
the gradient ``g`` of ``log p(y | x_t)``, the guided noise is ``eps - sigma_t g`` (algorithm 2), so
that the guided estimate of the data is::

    x0' = x0 + (sigma_t^2 / alpha_t) g

Ancestral sampling adds ``V g`` to the mean instead, with the variance V that it draws (algorithm
1). Its mean is ``a x + b x0``, so that this is ``x0' = x0 + (V / b) g``. For the variance "large",
``V = beta`` and ``b = alpha_s beta / sigma_t^2``, the two shifts of the mean differ by the factor
``sqrt(1 - beta)`` alone, and for "small" by ``sigma_s^2 / sigma_t^2`` besides: algorithm 1 guides
less in long strides. In both, guided-diffusion clamps x0 before g is added and not again after.

Both are one row of a plan with the gradient in the place of the noise, as `fastsample.plans.rows`
writes it. The result is a network that predicts x0', which every sampler takes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample._support.checks import FloatArray
from fastsample.denoiser.denoiser import Denoiser
from fastsample.denoiser.wrap import check_denoiser
from fastsample.grids.grid import Grid
from fastsample.integrations.openai.guided import ClassifierGuided, TimesAndRows
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Prediction, clip_bounds, row_table, x0_terms
from fastsample.samplers.ancestral import ancestral
from fastsample.sampling.sampler import Sampler
from fastsample.schedules.transition import transition


def classifier_guided(
    denoiser: Denoiser, cond_fn: Callable[..., Tensor], *, classifier_only: Collection[str] = ()
) -> Denoiser:
    """Return a model guided by a classifier, for any sampler: algorithm 2 of arXiv:2105.05233.

    With ``method="ddim"`` this is guided-diffusion's `ddim_sample` with `cond_fn` and
    `condition_score`. For its ancestral sampling see `classifier_ancestral`.

    Args:
        denoiser: the model. Its clip range holds for x0 before guidance.
        cond_fn: ``(x, timesteps, **cond) -> gradient``, as in guided-diffusion: the gradient of
            ``log p(y | x_t)`` with respect to ``x (B, *shape)``, times the classifier's scale. The
            timesteps are those of the network. It is called outside of inference mode and may
            compute gradients; no gradient flows through what it returns.
        classifier_only: names of conditions that `cond_fn` takes and the network does not, such as
            ``["y"]`` for an unconditional network.

    Returns:
        A model that predicts x0, without a clip range.

    Raises:
        TypeError: no `Denoiser`, or a `cond_fn` that cannot be called.
        ValueError: in a run, a gradient of another shape, or a time without any signal.
    """
    name = "classifier_guided"
    _check(name, denoiser, cond_fn, classifier_only)

    def rows_at(times: FloatArray) -> FloatArray:
        alpha, sigma = denoiser.schedule.levels(times)
        if not np.all(alpha):
            raise ValueError(
                f"{name}: times must have alpha above 0, where the noise determines x0, got "
                f"{times[alpha == 0.0][0]:g}; pass a grid that starts below T"
            )
        return _rows(name, denoiser, alpha, sigma, d=sigma**2 / alpha)

    return _guided(name, denoiser, cond_fn, classifier_only, rows_at, lambda times: None)


def classifier_ancestral(
    denoiser: Denoiser,
    cond_fn: Callable[..., Tensor],
    grid: Grid,
    *,
    classifier_only: Collection[str] = (),
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
) -> Sampler:
    """Return the ancestral sampler guided by a classifier: algorithm 1 of arXiv:2105.05233.

    It is guided-diffusion's `p_sample` with `cond_fn` and `condition_mean`, whose guidance depends
    on the variance and so on the steps: the model inside runs on this grid only. ::

        grid = fs.integrations.openai.grid("250", diffusion_steps=1000)  # the model's T
        sampler = classifier_ancestral(model, cond_fn, grid)
        images = sampler(num_samples=16, cond={"y": labels}, seed=0)

    Args:
        denoiser: the model. Its variance is drawn; its clip range holds for x0 before guidance.
        cond_fn: as for `classifier_guided`.
        grid: at least 2 times, and 0.
        classifier_only: as for `classifier_guided`.
        device: device of the samples; None is the model's.
        dtype: dtype of the samples; None is the model's.
        batch_size: samples per run; None runs all samples at once.

    Raises:
        TypeError: no `Denoiser`, no `Grid`, or a `cond_fn` that cannot be called.
        ValueError: a grid of one step, or in a run what `classifier_guided` raises.
    """
    name = "classifier_ancestral"
    _check(name, denoiser, cond_fn, classifier_only)
    plan = ancestral(
        denoiser.schedule, grid, variance=denoiser.variance, prediction=denoiser.prediction
    )
    if len(grid) < 2:
        raise ValueError(f"{name}: grid must hold at least 2 times, got {grid.times[0]:g}")
    columns = _variances(plan, learned=denoiser.variance == "learned_range")
    columns["d"] = columns["d"] / plan.column("b")
    rows = _rows(name, denoiser, plan.alphas[:-1], plan.sigmas[:-1], **columns)
    nodes = plan.nodes[:-1]

    def rows_at(times: FloatArray) -> FloatArray:
        return rows[np.argmin(np.abs(nodes[None] - times[:, None]), axis=1)]

    def check(times: FloatArray) -> None:
        # The whole grid, a part of it (a run that stops early), or one of its times for all.
        asked = np.ravel(times)
        first = int(np.argmin(np.abs(nodes - asked[0]))) if asked.size else 0
        parts = (nodes[first : first + asked.size], np.full(asked.size, nodes[first]))
        if not any(np.array_equal(asked, part) for part in parts):
            raise ValueError(
                f"{name}: times must be those of the sampler's grid, got {asked.tolist()!r:.80}"
            )

    model = _guided(name, denoiser, cond_fn, classifier_only, rows_at, check)
    return Sampler(
        model, grid, method="ancestral", device=device, dtype=dtype, batch_size=batch_size
    )


def _check(name: str, denoiser: Any, cond_fn: Any, classifier_only: Any) -> None:
    """Raise TypeError for arguments of the wrong type."""
    check_denoiser(name, denoiser)
    if not callable(cond_fn):
        raise TypeError(f"{name}: cond_fn must be callable, got {type(cond_fn).__name__}")
    if isinstance(classifier_only, str):
        raise TypeError(
            f"{name}: classifier_only must be a list of names, got {classifier_only!r}; pass "
            f"[{classifier_only!r}]"
        )


def _variances(plan: Plan, *, learned: bool) -> dict[str, FloatArray]:
    """Return the variance of each row as (d, lv_lo, lv_hi), with which the kernel scales g.

    guided-diffusion does not draw noise in the last row, but guides it: there it takes the
    posterior variance of the row before for that of its own, which is 0 ("small" keeps the 0).
    The kernel computes a deviation ``exp(lv / 2)``: twice the log variance gives the variance.
    """
    pair = transition(plan.alphas[1:], plan.sigmas[1:], plan.alphas[:-1], plan.sigmas[:-1])
    posterior, variance = pair.posterior_variance, np.array(pair.variance, np.float64)
    positive = np.append(posterior[:-1], posterior[-2])
    if learned:
        logs = {"lv_lo": 2.0 * np.log(positive), "lv_hi": 2.0 * np.log(variance)}
        return {"d": np.ones_like(variance), **logs}
    if plan.method == 'ancestral(variance="small")':
        return {"d": posterior}
    variance[-1] = positive[-1]
    return {"d": variance}


def _rows(
    name: str, denoiser: Denoiser, alpha: FloatArray, sigma: FloatArray, **columns: FloatArray
) -> FloatArray:
    """Return rows `(T, 15)` that give ``x0 + sd g``, with x0 clamped to the model's range."""
    prediction: Prediction = denoiser.prediction
    p, q = x0_terms(name, prediction, alpha, sigma)
    low, high = clip_bounds(name, denoiser.clip)
    return row_table(len(alpha), p=p, q=q, lo=low, hi=high, b=1.0, **columns)


def _guided(
    name: str,
    denoiser: Denoiser,
    cond_fn: Callable[..., Tensor],
    classifier_only: Collection[str],
    rows_at: Callable[[FloatArray], FloatArray],
    check: Callable[[FloatArray], object],
) -> Denoiser:
    """Return the model that predicts the guided x0."""
    rows = TimesAndRows(denoiser, rows_at, check)
    return Denoiser(
        ClassifierGuided(name, denoiser, cond_fn, classifier_only, rows),
        denoiser.schedule,
        denoiser.shape,
        prediction="x0",
        variance=denoiser.variance,
        time=rows,
        uncond=denoiser.uncond,
    )
