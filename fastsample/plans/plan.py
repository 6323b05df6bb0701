"""The class `Plan`: a sampler compiled to a table, one row of coefficients per step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from fastsample._support.checks import FloatArray, check_array, frozen
from fastsample.plans.checks import check_landing, check_laws, check_shapes
from fastsample.plans.rows import (
    COLUMNS,
    Check,
    Clip,
    Prediction,
    check_columns,
    check_prediction,
    clip_bounds,
)
from fastsample.plans.text import ARRAYS, PLAN, decode, encode, origin, shown, table
from fastsample.schedules.schedule import NoiseSchedule

__all__ = ["COLUMNS", "Check", "Clip", "Plan", "Prediction"]


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """A sampler as a table of rows, which run in order with one network call each.

    `fastsample.plans.rows` explains what a row computes and which laws it obeys; a plan checks
    them when it is built. The last row of a sampling plan draws no noise and lands on x0. A plan
    whose nodes increase carries data to noise (`inverts`), and may stop anywhere.

    Args:
        nodes: `(K + 1,)` times before the first row and after each: strictly decreasing to 0, or
            strictly increasing.
        rows: `(K, 13)` float64 coefficients, columns as `COLUMNS`.
        alphas: `(K + 1,)` signal levels at the nodes.
        sigmas: `(K + 1,)` noise levels at the nodes.
        prediction: the quantity that the network predicts: "epsilon", "x0", "v" or "flow".
        method: name of the sampler, for people.
        check: the laws that the rows must obey: "all", "mean" (all but the variance law, for
            samplers with another variance on purpose) or "none" (for tuned rows).
        schedule: the noise schedule that the plan was compiled for, or None.
        provenance: how a tuned plan was made, as a mapping that fits in JSON. Plans that differ
            in nothing else are equal.

    Raises:
        TypeError: for an array that is not float64 (or integer).
        ValueError: for a wrong shape, order or range, or a broken law.
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

    def __post_init__(self) -> None:
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
        check_shapes(self.nodes, self.rows, self.alphas, self.sigmas)
        check_columns(self.rows)
        if not self.inverts:
            check_landing(self.rows, self.alphas, self.sigmas, self.check)
        check_laws(self.rows, self.prediction, self.alphas, self.sigmas, self.check)

    # ---- properties

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def times(self) -> FloatArray:
        """The times `(K,)` at which the network is called."""
        return self.nodes[:-1]

    def column(self, name: str) -> FloatArray:
        """Return the column `(K,)` of the rows with this name; ValueError for an unknown name."""
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
        """The number of x0 estimates from earlier rows that a row reads: 0, 1 or 2."""
        return 2 if np.any(self.column("c2")) else int(np.any(self.column("c1")))

    @property
    def order(self) -> int:
        """The largest number of x0 estimates that a row combines, its own included: 1, 2 or 3."""
        return self.needs_history + 1

    # ---- variants

    def with_guidance(self, w: npt.ArrayLike) -> Plan:
        """Return the same plan with classifier-free guidance ``u + w (c - u)``.

        Ho and Salimans 2022 (arXiv:2207.12598).

        Args:
            w: scale, dimensionless, a number or `(K,)`; 1 is the conditional output alone.
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

    def with_provenance(self, provenance: Mapping[str, Any] | None) -> Plan:
        """Return the same plan with its record of origin replaced (a mapping) or removed."""
        return replace(self, provenance=provenance)

    def _with_columns(self, **columns: npt.ArrayLike) -> Plan:
        """Return the same plan with new values in the named columns of its rows."""
        rows: FloatArray = np.array(self.rows)
        for name, values in columns.items():
            rows[:, COLUMNS.index(name)] = values
        return replace(self, rows=rows)

    # ---- copies, comparison and text

    def __reduce__(self) -> tuple[type[Plan], tuple[object, ...]]:
        # Copy through the constructor: it makes the arrays read-only.
        arrays = (self.nodes, self.rows, self.alphas, self.sigmas)
        names = (self.prediction, self.method, self.check, self.schedule, self.provenance)
        return Plan, (*arrays, *names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        """Return what ``==`` and `hash` use: all fields but the provenance."""
        arrays = tuple(a.tobytes() for a in (self.nodes, self.rows, self.alphas, self.sigmas))
        return (*arrays, self.prediction, self.method, self.check, self.schedule)

    def __repr__(self) -> str:
        noise = "stochastic" if self.is_stochastic else "deterministic"
        title = f"Plan {self.method}: {len(self)} network calls, {self.prediction}, {noise}"
        return f"{title}\n{table(self.nodes, self.rows)}"

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
                "nodes": self.nodes,
                "alphas": self.alphas,
                "sigmas": self.sigmas,
                "rows": self.rows,
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
