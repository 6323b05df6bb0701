"""Plans: a compiled sampler, one row of coefficients per step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from fastsample._support.checks import FloatArray, check_array, frozen
from fastsample.plans.rows import (
    COLUMNS,
    TOLERANCE,
    Check,
    Clip,
    Prediction,
    broken_law,
    check_columns,
    check_prediction,
    clip_bounds,
)
from fastsample.plans.text import ARRAYS, PLAN, decode, encode, origin, shown, table
from fastsample.schedules.schedule import NoiseSchedule

__all__ = ["COLUMNS", "Check", "Clip", "Plan", "Prediction"]


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """A sampler as a table: the loop runs the rows in order, one network call each.

    `fastsample.plans.rows` says what a row computes and which laws it obeys; a plan checks them
    when it is built. The last row of a sampling plan draws no noise and lands on x0. A plan whose
    nodes increase carries data to noise (`inverts`), and may stop anywhere.

    Args:
        nodes: `(K + 1,)` times before the first row and after each: strictly decreasing to 0, or
            strictly increasing.
        rows: `(K, 13)` float64 coefficients, columns as `COLUMNS`.
        alphas: `(K + 1,)` signal levels at the nodes.
        sigmas: `(K + 1,)` noise levels at the nodes.
        prediction: what the network's output is: "epsilon", "x0", "v" or "flow".
        method: name of the sampler, for people.
        check: laws to hold the rows to: "all", "mean" (all but the variance law, for samplers with
            another variance on purpose) or "none" (for tuned rows).
        schedule: the schedule it was compiled for, if any.
        provenance: where a tuned plan comes from: whatever JSON can hold. Two plans that differ
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
            given = np.asarray(getattr(self, name))
            if given.dtype.kind == "f" and given.dtype.itemsize != 8:
                raise TypeError(
                    f"Plan: {name} must be float64, got {given.dtype}; "
                    "coefficients rounded to less break the laws"
                )
            array = check_array("Plan", name, given, infinite=name == "rows")
            object.__setattr__(self, name, frozen(array))
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
                # A copy that nobody else can change, and that JSON brings back the same.
                note = json.loads(json.dumps(dict(self.provenance), allow_nan=False))
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"Plan: provenance must be a mapping that fits in JSON, got {error}"
                ) from None
            object.__setattr__(self, "provenance", note)
        self._check_shapes()
        check_columns(self.rows)
        self._check_landing()
        broken = broken_law(self.rows, self.prediction, self.alphas, self.sigmas, self.check)
        if broken is not None:
            i, law, error = broken
            weaker = "mean" if law == "variance" else "none"
            raise ValueError(
                f"Plan: rows[{i}] breaks the {law} law by {error:.2g}; "
                f'pass check="{weaker}" if this sampler is meant to'
            )

    def _check_shapes(self) -> None:
        """Shapes, order of the nodes, range of the levels."""
        if self.nodes.ndim != 1 or len(self.nodes) < 2:
            raise ValueError(f"Plan: nodes must have shape (K + 1,), got {self.nodes.shape}")
        steps = len(self.nodes) - 1
        for name, shape in (
            ("rows", (steps, len(COLUMNS))),
            ("alphas", (steps + 1,)),
            ("sigmas", (steps + 1,)),
        ):
            array: FloatArray = getattr(self, name)
            if array.shape != shape:
                raise ValueError(
                    f"Plan: {name} must have shape {shape} for {steps + 1} nodes, got {array.shape}"
                )
        moves = np.diff(self.nodes)
        if not (np.all(moves < 0) or np.all(moves > 0)) or np.any(self.nodes < 0):
            raise ValueError(
                "Plan: nodes must be strictly decreasing to 0, or strictly increasing and not "
                f"negative, got {_short(self.nodes)}"
            )
        if not self.inverts and self.nodes[-1] != 0.0:
            raise ValueError(f"Plan: nodes must decrease to 0, got {self.nodes[-1]:g} at the end")
        for name in ("alphas", "sigmas"):
            if np.any(getattr(self, name) < 0):
                raise ValueError(
                    f"Plan: {name} must not be negative, got {_short(getattr(self, name))}"
                )

    def _check_landing(self) -> None:
        """The last row of a sampling plan must give x0 itself."""
        if self.inverts:
            return
        last = dict(zip(COLUMNS, self.rows[-1].tolist(), strict=True))
        if last["d"] != 0.0:
            raise ValueError(f"Plan: rows[-1] must draw no noise (d = 0), got d = {last['d']:g}")
        if self.check == "none":
            return
        if self.alphas[-1] != 1.0 or self.sigmas[-1] != 0.0:
            raise ValueError(
                "Plan: alphas and sigmas must end at 1 and 0 (clean data), got "
                f'{self.alphas[-1]:g} and {self.sigmas[-1]:g}; pass check="none" to land elsewhere'
            )
        if max(abs(last["a"]), abs(last["e"])) > TOLERANCE:
            raise ValueError(
                f"Plan: rows[-1] must land on x0 (a = e = 0), got a = {last['a']:g}, "
                f'e = {last["e"]:g}; pass check="none" if this sampler is meant to'
            )

    # ---- what it is

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def times(self) -> FloatArray:
        """`(K,)` times of the network calls."""
        return self.nodes[:-1]

    def column(self, name: str) -> FloatArray:
        """One column of the rows by name, `(K,)`."""
        if name not in COLUMNS:
            raise ValueError(f"Plan.column: name must be one of {list(COLUMNS)}, got {name!r}")
        return self.rows[:, COLUMNS.index(name)]

    @property
    def inverts(self) -> bool:
        """Whether it runs from data to noise."""
        return bool(self.nodes[0] < self.nodes[-1])

    @property
    def is_stochastic(self) -> bool:
        """Whether any row draws noise."""
        return bool(np.any(self.column("d") > 0))

    @property
    def is_guided(self) -> bool:
        """Whether any row mixes in an unconditional output."""
        return bool(np.any(self.column("w") != 1.0))

    @property
    def learns_variance(self) -> bool:
        """Whether any row reads a learned variance from the second half of the output."""
        return bool(np.any((self.column("lv_lo") < self.column("lv_hi")) & (self.column("d") > 0)))

    @property
    def needs_history(self) -> int:
        """Earlier x0's that the loop has to keep: 0, 1 or 2."""
        return 2 if np.any(self.column("c2")) else int(np.any(self.column("c1")))

    @property
    def order(self) -> int:
        """Steps that a row looks at: 1, 2 or 3."""
        return self.needs_history + 1

    # ---- variants

    def with_guidance(self, w: npt.ArrayLike) -> Plan:
        """The same plan under classifier-free guidance ``u + w (c - u)``.

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
        """The same plan with x0 held in a range.

        Args:
            clip: bound on |x0| in data units, a pair (lo, hi), or None for no bound.
        """
        low, high = clip_bounds("Plan.with_clip", clip)
        return self._with_columns(lo=low, hi=high)

    def with_provenance(self, provenance: Mapping[str, Any] | None) -> Plan:
        """The same plan with another note of where it comes from, a mapping that fits in JSON."""
        return replace(self, provenance=provenance)

    def _with_columns(self, **columns: npt.ArrayLike) -> Plan:
        """A plan with some columns replaced."""
        rows: FloatArray = np.array(self.rows)
        for name, values in columns.items():
            rows[:, COLUMNS.index(name)] = values
        return replace(self, rows=rows)

    # ---- as text

    def __reduce__(self) -> tuple[type[Plan], tuple[object, ...]]:
        # Through the constructor: a copy's arrays are read-only and checked like the original's.
        arrays = (self.nodes, self.rows, self.alphas, self.sigmas)
        names = (self.prediction, self.method, self.check, self.schedule, self.provenance)
        return Plan, (*arrays, *names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        """Everything that tells two plans apart."""
        arrays = tuple(a.tobytes() for a in (self.nodes, self.rows, self.alphas, self.sigmas))
        return (*arrays, self.prediction, self.method, self.check, self.schedule)

    def __repr__(self) -> str:
        kind = "stochastic" if self.is_stochastic else "deterministic"
        title = f"Plan {self.method}: {len(self)} network calls, {self.prediction}, {kind}"
        return f"{title}\n{table(self.nodes, self.rows)}"

    def describe(self) -> str:
        """The table, and below it where the plan comes from."""
        if self.provenance is None:
            return repr(self)
        note = json.dumps(self.provenance, indent=1)
        return f"{self!r}\n{origin(self.provenance) or note}"

    def to_json(self) -> str:
        """A strict JSON text that `from_json` reads back bit for bit."""
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
        """The plan that `to_json` wrote; checked again like any other.

        Raises:
            TypeError: if the text is not a string.
            ValueError: if the text is not a whole plan, or of a newer format.
        """
        fields = decode(text)
        with PLAN.reading(shown(text)):
            schedule = fields.pop("schedule")
            return cls(schedule=schedule and NoiseSchedule.from_dict(schedule), **fields)


def _short(values: FloatArray) -> str:
    """A few of the values, for messages."""
    return np.array2string(values, precision=6, threshold=8, edgeitems=3)
