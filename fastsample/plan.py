"""Plans: a compiled sampler, one row of coefficients per step."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt

from fastsample._checks import FloatArray, check_array, frozen
from fastsample.rows import (
    COLUMNS,
    NEUTRAL,
    TOLERANCE,
    Check,
    Clip,
    Prediction,
    broken_law,
    check_columns,
    check_prediction,
    clip_bounds,
)
from fastsample.schedule import NoiseSchedule

__all__ = ["COLUMNS", "Check", "Clip", "Plan", "Prediction"]

_FORMAT, _VERSION = "fastsample.plan", 1
_ARRAYS = ("nodes", "alphas", "sigmas", "rows")
_KEYS = ("method", "prediction", "check", "schedule", "columns", *_ARRAYS)


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """A sampler as a table: the loop runs the rows in order, one network call each.

    `fastsample.rows` says what a row computes and which laws it obeys; a plan checks them when it
    is built. The last row of a sampling plan draws no noise and lands on x0. A plan whose nodes
    increase carries data to noise (`inverts`), and may stop anywhere.

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

    def __post_init__(self) -> None:
        for name in _ARRAYS:
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

    def _with_columns(self, **columns: npt.ArrayLike) -> Plan:
        """A plan with some columns replaced."""
        rows: FloatArray = np.array(self.rows)
        for name, values in columns.items():
            rows[:, COLUMNS.index(name)] = values
        return replace(self, rows=rows)

    # ---- as text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        """Everything that tells two plans apart."""
        arrays = tuple(a.tobytes() for a in (self.nodes, self.rows, self.alphas, self.sigmas))
        return (*arrays, self.prediction, self.method, self.check, self.schedule)

    def __repr__(self) -> str:
        shown = [
            name
            for name in COLUMNS
            if name in ("p", "q", "a", "b") or np.any(self.column(name) != NEUTRAL[name])
        ]
        table = [["row", "time", *shown]]
        steps = range(len(self))
        for i in steps if len(self) <= 12 else [*steps[:5], None, *steps[-5:]]:
            if i is None:
                table.append(["...", *[""] * (len(shown) + 1)])
                continue
            move = f"{self.nodes[i]:.6g} -> {self.nodes[i + 1]:.6g}"
            table.append([str(i), move, *(f"{self.column(name)[i]:.5g}" for name in shown)])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.rjust, row, widths)).rstrip() for row in table]
        kind = "stochastic" if self.is_stochastic else "deterministic"
        title = f"Plan {self.method}: {len(self)} network calls, {self.prediction}, {kind}"
        return "\n".join([title, _formula(shown), *lines])

    def to_json(self) -> str:
        """A strict JSON text that `from_json` reads back bit for bit."""
        data = {
            "format": _FORMAT,
            "version": _VERSION,
            "method": self.method,
            "prediction": self.prediction,
            "check": self.check,
            "schedule": None if self.schedule is None else self.schedule.to_dict(),
            "columns": COLUMNS,
            "nodes": self.nodes.tolist(),
            "alphas": self.alphas.tolist(),
            "sigmas": self.sigmas.tolist(),
            # JSON has no infinity.
            "rows": [[x if math.isfinite(x) else str(x) for x in r] for r in self.rows.tolist()],
        }
        return json.dumps(data, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote; checked again like any other.

        Raises:
            ValueError: if the text is not a whole plan, or of a newer format.
        """
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"Plan.from_json: text must be a string, got {type(text).__name__}")
        rule = "Plan.from_json: text must be a plan written by to_json, got"
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{rule} no JSON ({error})") from error
        fields = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
        if fields.get("format") != _FORMAT:
            raise ValueError(f'{rule} JSON without "format": "{_FORMAT}"')
        if fields.get("version") != _VERSION:
            raise ValueError(
                f"Plan.from_json: text must be of format version {_VERSION}, got "
                f"{fields.get('version')!r}; a newer fastsample may read it"
            )
        try:
            return cls._from_dict(fields)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{rule} broken content: {error}") from error

    @classmethod
    def _from_dict(cls, data: dict[str, Any]) -> Plan:
        """The plan of parsed JSON."""
        missing = [name for name in _KEYS if name not in data]
        if missing:
            raise ValueError(f"{missing} missing")
        if tuple(data["columns"]) != COLUMNS:
            raise ValueError(f"columns must be {list(COLUMNS)}, got {data['columns']}")
        arrays = {name: np.array(data[name], float) for name in ("nodes", "alphas", "sigmas")}
        return cls(
            rows=np.array([[float(x) for x in row] for row in data["rows"]]),
            prediction=data["prediction"],
            method=data["method"],
            check=data["check"],
            schedule=data["schedule"] and NoiseSchedule.from_dict(data["schedule"]),
            **arrays,
        )


def _short(values: FloatArray) -> str:
    """A few of the values, for messages."""
    return np.array2string(values, precision=6, threshold=8, edgeitems=3)


def _formula(columns: list[str]) -> str:
    """What a row computes, with only the columns that are in use."""
    terms = {"a": "a x", "b": "b x0", "e": "e m", "c1": "c1 h1", "c2": "c2 h2", "d": "d z"}
    if "lv_hi" in columns:
        terms["d"] = "d exp((lv_lo + (v + 1)/2 (lv_hi - lv_lo))/2) z"
    x0 = "p x + q m"
    parts = ["m = u + w (c - u)"] if "w" in columns else []
    parts.append(f"x0 = clamp({x0}, lo, hi)" if {"lo", "hi"} & {*columns} else f"x0 = {x0}")
    parts.append("x_next = " + " + ".join(terms[name] for name in columns if name in terms))
    return ",  ".join(parts)
