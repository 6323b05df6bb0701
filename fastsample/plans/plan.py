"""The class `Plan`: a sampler compiled to a table, one row of coefficients per step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt

from fastsample._support.checks import FloatArray, check_array, frozen
from fastsample.grids.sigmas import Convention
from fastsample.plans.checks import (
    check_landing,
    check_laws,
    check_levels,
    check_order,
    check_shapes,
)
from fastsample.plans.rows import (
    COLUMNS,
    Check,
    Clip,
    Prediction,
    calls_network,
    check_columns,
    check_prediction,
    clip_bounds,
    history_length,
)
from fastsample.plans.sigmas import sigma_list, timestep_list
from fastsample.plans.text import ARRAYS, PLAN, decode, encode, origin, shown, table
from fastsample.schedules.schedule import NoiseSchedule

__all__ = ["COLUMNS", "Check", "Clip", "Plan", "Prediction"]

_NODES = cast("FloatArray", None)  # None as `times` means the nodes, and becomes an array


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """A sampler as a table of rows, which run in order with at most one network call each.

    `fastsample.plans.rows` explains what a row computes and `fastsample.plans.laws` which equations
    it obeys; a plan checks them when it is built. K, the number of network calls, is `calls`; K' is
    ``len(plan)``, the number of rows. The two differ where rows make no call (`calls_network`).

    A sampling plan ends at node 0 (data), where its last row draws no noise and returns x0, or part
    way at a noisier node. Its nodes fall, but may rise in rows without a call, which return to a
    noisier time. A plan whose nodes all rise carries data to noise (`inverts`).

    Args:
        nodes: `(K' + 1,)` times before the first row and after each.
        rows: `(K', 15)` float64 coefficients, columns as `COLUMNS`.
        alphas: `(K' + 1,)` signal levels at the nodes: the schedule's, if there is one.
        sigmas: `(K' + 1,)` noise levels at the nodes: the schedule's, if there is one.
        prediction: the quantity that the network predicts: "epsilon", "x0", "v" or "flow".
        method: name of the sampler, for people.
        check: the laws that the rows must obey: "all", "mean" (all but the variance law, for
            samplers with another variance on purpose) or "none" (for tuned rows).
        schedule: the noise schedule that the plan was compiled for, or None.
        provenance: how a tuned plan was made, as a mapping that fits in JSON. Plans that differ
            in nothing else are equal.
        times: `(K',)` the times in (0, T] that the network takes in each row; None is the node
            before the row. Another program's rounded times and tuned ones differ from the nodes.

    Raises:
        TypeError: for an array that is not float64 (or integer).
        ValueError: for a wrong shape, order or range, a broken law, or levels that are not the
            schedule's.
    """

    nodes: FloatArray
    rows: FloatArray
    alphas: FloatArray
    sigmas: FloatArray
    prediction: Prediction = "epsilon"
    method: str = "custom"
    check: Check = "all"
    schedule: NoiseSchedule | None = None
    provenance: Mapping[str, Any] | None = None
    times: FloatArray = _NODES

    def __post_init__(self) -> None:
        if cast(Any, self.times) is None:
            object.__setattr__(self, "times", np.asarray(self.nodes)[:-1])
        for name in ARRAYS:
            array = np.asarray(getattr(self, name))
            if array.dtype.kind == "f" and array.dtype.itemsize != 8:
                raise TypeError(
                    f"Plan: {name} must be float64, got {array.dtype}; "
                    "coefficients rounded to less break the laws"
                )
            checked = check_array("Plan", name, array, infinite=name == "rows")
            object.__setattr__(self, name, frozen(checked))
        check_prediction("Plan", self.prediction)
        if self.check not in get_args(Check):
            raise ValueError(
                f"Plan: check must be one of {list(get_args(Check))}, got {self.check!r}"
            )
        if not isinstance(self.method, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"Plan: method must be a string, got {self.method!r}")
        if not isinstance(self.schedule, NoiseSchedule | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"Plan: schedule must be a NoiseSchedule, got {self.schedule!r}")
        if self.provenance is not None:
            try:
                # Copy through JSON: the caller cannot change the copy, and it reads back equal.
                note = json.loads(json.dumps(dict(self.provenance), allow_nan=False))
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"Plan: provenance must be a mapping that fits in JSON, got {error}"
                ) from None
            object.__setattr__(self, "provenance", note)
        check_shapes(self.nodes, self.rows, self.alphas, self.sigmas, self.times)
        check_columns(self.rows)
        check_order(self.nodes, self.rows, self.times)
        check_levels(self.nodes, self.alphas, self.sigmas, self.times, self.schedule)
        if not self.inverts:
            check_landing(self.nodes, self.rows, self.alphas, self.sigmas, self.check)
        check_laws(self.rows, self.prediction, self.alphas, self.sigmas, self.check)

    # ---- properties

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def calls_network(self) -> npt.NDArray[np.bool_]:
        """The mask `(K',)` of the rows that call the network; no other row does."""
        return calls_network(self.rows)

    @property
    def calls(self) -> int:
        """The number K of network calls."""
        return int(np.count_nonzero(self.calls_network))

    def column(self, name: str) -> FloatArray:
        """Return the column `(K',)` of the rows with this name; ValueError for an unknown name."""
        if name not in COLUMNS:
            raise ValueError(f"Plan.column: name must be one of {list(COLUMNS)}, got {name!r}")
        return self.rows[:, COLUMNS.index(name)]

    @property
    def inverts(self) -> bool:
        """Whether the plan runs from data to noise, the reverse of sampling."""
        return bool(self.nodes[0] < self.nodes[-1])

    @property
    def is_stochastic(self) -> bool:
        """Whether any row draws noise."""
        return bool(np.any(self.column("d") > 0))

    @property
    def is_guided(self) -> bool:
        """Whether any row uses the unconditional output (w is not 1)."""
        return bool(np.any(self.column("w") != 1.0))

    @property
    def learns_variance(self) -> bool:
        """Whether any row reads a learned variance from the second half of the output."""
        return bool(np.any((self.column("lv_lo") < self.column("lv_hi")) & (self.column("d") > 0)))

    @property
    def needs_history(self) -> int:
        """The number of x0 estimates from earlier rows that a row reads, 0 to 4."""
        return history_length(self.rows)

    @property
    def order(self) -> int:
        """The largest number of x0 estimates that a row combines, its own included: 1 to 5."""
        return self.needs_history + 1

    # ---- variants

    def with_guidance(self, w: npt.ArrayLike) -> Plan:
        """Return the same plan with classifier-free guidance ``u + w (c - u)``.

        Ho and Salimans 2022 (arXiv:2207.12598).

        Args:
            w: scale, dimensionless, a number or `(K',)`; 1 is the conditional output alone.
        """
        scale = check_array("Plan.with_guidance", "w", w)
        if scale.shape not in ((), (len(self),)):
            raise ValueError(
                f"Plan.with_guidance: w must be a number or have shape ({len(self)},), "
                f"got shape {scale.shape}"
            )
        return self._with_columns(w=scale)

    def with_clip(self, clip: Clip) -> Plan:
        """Return the same plan with x0 clamped to a range.

        Args:
            clip: bound on |x0| in data units, a pair (lo, hi), or None for no bound.
        """
        low, high = clip_bounds("Plan.with_clip", clip)
        return self._with_columns(lo=low, hi=high)

    def with_times(self, times: npt.ArrayLike) -> Plan:
        """Return the same plan with other times for the network, at the same noise levels.

        ``plan.with_times(np.rint(plan.times))`` passes the whole steps next to the nodes, as other
        programs do with Karras and other spacings of sigma.

        Args:
            times: `(K',)` in (0, T], or None for the nodes.
        """
        return replace(self, times=cast(Any, times))

    def until(self, node: float) -> Plan:
        """Return the plan's first rows, up to the row that first arrives at a node.

        Args:
            node: one of `nodes` after the first.

        Raises:
            ValueError: another time.
        """
        visits = np.flatnonzero(self.nodes[1:] == node)
        if not len(visits):
            raise ValueError(
                f"Plan.until: node must be one of {self.nodes[1:].tolist()}, got {node}"
            )
        rows = int(visits[0]) + 1
        nodes, alphas, sigmas = (a[: rows + 1] for a in (self.nodes, self.alphas, self.sigmas))
        return replace(
            self,
            nodes=nodes,
            rows=self.rows[:rows],
            alphas=alphas,
            sigmas=sigmas,
            times=self.times[:rows],
        )

    def with_provenance(self, provenance: Mapping[str, Any] | None) -> Plan:
        """Return the same plan with its record of origin replaced (a mapping) or removed."""
        return replace(self, provenance=provenance)

    def _with_columns(self, **columns: npt.ArrayLike) -> Plan:
        """Return the same plan with new values in the named columns of its rows."""
        rows: FloatArray = np.array(self.rows)
        for name, values in columns.items():
            rows[:, COLUMNS.index(name)] = values
        return replace(self, rows=rows)

    # ---- lists for other programs

    def to_sigmas(self, convention: Convention | None = None) -> FloatArray:
        """Return the sigmas `(K + 1,)` at the nodes, for a program that takes only such a list.

        It carries the noise levels alone, neither the rows (the method) nor `times`: the other
        program runs its own sampler on it, and tells the network what it thinks right.
        `grids.from_sigmas` is the way back. A plan that ends part way ends above 0.

        Args:
            convention: "ratio" is sigma / alpha, for k-diffusion, ComfyUI and diffusers' Euler;
                "flow" is sigma / (alpha + sigma), the time of flow matching. None is "flow" for a
                plan on `NoiseSchedule.flow` and "ratio" for every other one.

        Raises:
            ValueError: an unknown convention, or a plan without such a list: one that inverts, has
                rows without a network call, or starts where "ratio" is infinite.
        """
        levels = (self.alphas, self.sigmas)
        return sigma_list(self.nodes, self.rows, *levels, self.schedule, convention)

    def to_timesteps(self) -> npt.NDArray[np.int64]:
        """Return the 0-based timesteps `(K,)` of the rows, for a program that takes ``timesteps=``.

        They are `times` minus 1. Such a program puts the noise levels at them too, so that a plan
        whose nodes lie elsewhere loses its own. Neither are the rows carried (see `to_sigmas`).

        Raises:
            ValueError: a plan without such a list: on a continuous schedule, with times that are
                not whole or do not fall, that inverts, or with rows without a network call.
        """
        return timestep_list(self.nodes, self.rows, self.times, self.schedule)

    # ---- copies, comparison and text

    def __reduce__(self) -> tuple[type[Plan], tuple[object, ...]]:
        # Copy through the constructor: it makes the arrays read-only.
        arrays = (self.nodes, self.rows, self.alphas, self.sigmas)
        names = (self.prediction, self.method, self.check, self.schedule, self.provenance)
        return Plan, (*arrays, *names, self.times)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        """Return what ``==`` and `hash` use: all fields but the provenance."""
        arrays = tuple(getattr(self, name).tobytes() for name in ARRAYS)
        return (*arrays, self.prediction, self.method, self.check, self.schedule)

    def __repr__(self) -> str:
        noise = "stochastic" if self.is_stochastic else "deterministic"
        rows = "" if len(self) == self.calls else f" in {len(self)} rows"
        title = f"Plan {self.method}: {self.calls} network calls{rows}, {self.prediction}, {noise}"
        return f"{title}\n{table(self.nodes, self.rows, self.times)}"

    def describe(self) -> str:
        """Return the plan's table as text, and below it how the plan was made, if that is known."""
        if self.provenance is None:
            return repr(self)
        note = json.dumps(self.provenance, indent=1)
        return f"{self!r}\n{origin(self.provenance) or note}"

    def to_json(self) -> str:
        """Return the plan as strict JSON, which `from_json` reads back bit for bit."""
        return encode(
            {
                "method": self.method,
                "prediction": self.prediction,
                "check": self.check,
                "schedule": None if self.schedule is None else self.schedule.to_dict(),
                **{name: getattr(self, name) for name in ARRAYS},
                **({} if self.provenance is None else {"provenance": self.provenance}),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Return the plan that `to_json` wrote; it is checked like any other plan.

        Raises:
            TypeError: the text is not a string.
            ValueError: the text is no plan, damaged, cut off or from a newer version.
        """
        fields = decode(text)
        with PLAN.reading(shown(text)):
            schedule = fields.pop("schedule")
            return cls(schedule=schedule and NoiseSchedule.from_dict(schedule), **fields)
