"""The config of `FastSampleScheduler`: made from another scheduler, saved, loaded and copied."""

# diffusers' configs are untyped.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from diffusers.configuration_utils import ConfigMixin, FrozenDict
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin

from fastsample.integrations.diffusers.choices import Choices
from fastsample.integrations.diffusers.conventions import Conventions, conventions
from fastsample.integrations.diffusers.source import (
    check_unchanged,
    defaults_of,
    make_source,
    name_of,
    source_class,
    source_of,
)
from fastsample.plans.plan import Plan
from fastsample.samplers.registry import methods_with

Compat = Literal["diffusers"] | None
_PRIVATE = "_fastsample"
_CHOICES = ("method", "grid", "seed", "plan", "compat", "knobs")
_Self = TypeVar("_Self", bound="ConfiguredScheduler")


class ConfiguredScheduler(SchedulerMixin, ConfigMixin):
    """A scheduler whose config holds another one's arguments, and the choices of its user.

    The base of `FastSampleScheduler`, where the arguments are described.
    """

    order = 1
    _compatibles: ClassVar[list[str]] = [e.name for e in KarrasDiffusionSchedulers]

    def __init__(
        self,
        *,
        source: str = "DDIMScheduler",
        method: str = "auto",
        grid: str = "auto",
        seed: int | list[int] | None = None,
        plan: Any = None,
        compat: Compat = None,
        knobs: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> None:
        defaults = defaults_of(source_class("FastSampleScheduler", source))
        unknown = sorted(config.keys() - defaults.keys())
        if unknown:
            raise TypeError(
                f"FastSampleScheduler: arguments must be those of {source}, got {unknown[0]}="
                f"{config[unknown[0]]!r}; source= names the scheduler that takes it"
            )
        self._choices = Choices.checked(source, method, grid, seed, plan, compat, knobs or {})
        # Other classes are to take every value but those that only mean "not given".
        unset = [name for name in defaults if defaults[name] is config.get(name) is None]
        values = make_source(source, {**defaults, **config}).config  # it may correct some
        self.register_to_config(
            **{name: values[name] for name in defaults if name in values},
            **{_PRIVATE: self._choices.as_config(), "_use_default_values": unset},
        )
        self._set_up()

    @classmethod
    def from_scheduler(
        cls: type[_Self],
        scheduler: Any,
        *,
        method: str = "auto",
        grid: str = "auto",
        seed: int | list[int] | None = None,
        plan: Plan | str | Path | Iterable[Plan] | Mapping[int, Plan] | None = None,
        compat: Compat = None,
        **knobs: Any,
    ) -> _Self:
        """Make a scheduler that replaces a pipeline's.

        Args:
            scheduler: the scheduler to replace, such as ``pipe.scheduler``.
            method: "auto" computes what the replaced scheduler computes, with its own times and
                last level; "fastsample" is this package's default method; or a method's name
                (`fastsample.sample`), such as "dpm++".
            grid: how the times are spread: a name as for `fastsample.sample`; "source" is the
                replaced scheduler's own list. "auto" is the method's own grid, and the replaced
                scheduler's list for ``method="auto"`` and for flow-matching models, whose lists
                depend on the resolution.
            seed: seed of the noise that stochastic methods add, or a list of one per sample: noise
                that belongs to the sample, the same in every batch and on every device. None draws
                from the pipeline's generator, as the schedulers of diffusers do.
            plan: a plan (`fastsample.tune`), a file of one (`Plan.to_json`) or of several
                (`fastsample.save_plans`), or several plans, of which the number of steps chooses
                one. Instead of method and grid.
            compat: "diffusers" repeats `DDIMScheduler` to the letter: its steps go from t to t - T
                // n even where its list of timesteps does not.
            **knobs: further keyword arguments of the method, such as ``eta=1.0``.

        Returns:
            The scheduler. `set_timesteps` and `step` are called by the pipeline.

        Raises:
            TypeError: no scheduler, or a knob that no method takes.
            ValueError: a scheduler or setting that has no counterpart in this package (the message
                names it), or choices that contradict each other.
        """
        if isinstance(scheduler, ConfiguredScheduler):
            source, config = scheduler._choices.source, scheduler._source_config()
        else:
            conventions("from_scheduler", scheduler)  # refuses other objects and kinds of models
            source = source_of(scheduler, exact=method == "auto" and plan is None)
            known = defaults_of(source_class("from_scheduler", source))
            config = {key: scheduler.config[key] for key in known if key in scheduler.config}
        made = cls(
            source=source, method=method, grid=grid, seed=seed, plan=plan, compat=compat,
            knobs=knobs, **config,
        )  # fmt: skip
        made._check_source("from_scheduler")
        if not isinstance(scheduler, ConfiguredScheduler):
            check_unchanged(scheduler, made.replaced_scheduler)
        return made

    @classmethod
    def from_config(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Make a scheduler from a config, one of its own or of a scheduler of diffusers.

        The config of a scheduler in memory does not name the class; it is recognised by its
        arguments. `from_scheduler` needs no guess.

        Args:
            config: the config, as of ``scheduler.config`` or of a file.
            return_unused_kwargs: return (scheduler, {}) as diffusers' loading expects.
            **kwargs: choices of `from_scheduler`, and values that replace those of the config.

        Raises:
            TypeError: no config.
            ValueError: a config that no scheduler of diffusers has.
        """
        own = config.get(_PRIVATE) if isinstance(config, Mapping) else None
        given = {k: kwargs.pop(k) for k in _CHOICES if k in kwargs}
        knobs = {k: kwargs.pop(k) for k in list(kwargs) if methods_with(k)}
        if knobs or "method" in given:  # knobs of another method would not do
            given["knobs"] = {**given.get("knobs", {}), **knobs}
        choices = {**own, **given} if own is not None else given
        if own is None:
            exact = given.get("method", "auto") == "auto" and given.get("plan") is None
            choices["source"] = name_of("from_config", config, exact=exact)
        known = defaults_of(source_class("from_config", choices["source"]))
        arguments = {key: config[key] for key in known if key in config}
        arguments |= {key: kwargs.pop(key) for key in list(kwargs) if key in known}
        for name in ("dtype", "torch_dtype"):
            kwargs.pop(name, None)
        if kwargs and not return_unused_kwargs:
            name = next(iter(kwargs))
            raise TypeError(
                f"from_config: {name} must be an argument of from_scheduler or of "
                f"{choices['source']}, got {kwargs[name]!r:.60}"
            )
        made = cls(**choices, **arguments)
        if own is None:
            made._check_source("from_config")
        else:
            # A saved config does not tell which values were defaults, and may hold further keys.
            kept = {k: v for k, v in made.config.items() if k != "_use_default_values"}
            made._internal_dict = FrozenDict({**config, **kept})
        return (made, kwargs) if return_unused_kwargs else made

    def _check_source(self, function: str) -> None:
        """Raise ValueError now for what `set_timesteps` would refuse later."""
        self._choices.check(function, self.replaced_scheduler, self._conventions())

    def _source_config(self) -> dict[str, Any]:
        """Return the source's arguments as they stand in the config, which pipelines may change."""
        known = defaults_of(source_class("FastSampleScheduler", self._choices.source))
        return {key: self.config[key] for key in known if key in self.config}

    @property
    def replaced_scheduler(self) -> Any:
        """A new scheduler of the class that was replaced, with the arguments of the config."""
        return make_source(self._choices.source, self._source_config())

    def _conventions(self) -> Conventions:
        """Return the conventions of the network according to the config."""
        return conventions("FastSampleScheduler", self.replaced_scheduler)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        other = type(self).from_config(copy.deepcopy(dict(self.config), memo))
        other._internal_dict = copy.deepcopy(self._internal_dict, memo)
        other._repeat_request(self._last_request())
        return other

    def __reduce__(self) -> Any:
        return _loaded, (type(self), dict(self.config), self._last_request())

    def _last_request(self) -> Any:
        """Return what `_repeat_request` needs for the same list of timesteps; None for none."""
        return None

    def _repeat_request(self, request: Any) -> None:
        """Choose the timesteps of another scheduler's `_last_request`."""

    @property
    def seed(self) -> int | list[int] | None:
        """The seed of the noise that stochastic steps add; see `from_scheduler`. It may be set."""
        return self._choices.seed

    @seed.setter
    def seed(self, value: int | list[int] | None) -> None:
        choices: dict[str, Any] = {**self._choices.as_config(), "seed": value}
        self._choices = Choices.checked(**choices)
        self.register_to_config(**{_PRIVATE: self._choices.as_config()})


def _loaded(kind: type[ConfiguredScheduler], config: dict[str, Any], request: Any) -> Any:
    """Return the scheduler of a config and a list of timesteps, for pickle."""
    made = kind.from_config(config)
    made._repeat_request(request)
    return made
