"""Reads the flags with which improved-diffusion and guided-diffusion train a network."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, cast

from fastsample._support.checks import check_bool, check_integer
from fastsample.integrations.linear_betas import FEWEST_STEPS, linear_betas
from fastsample.schedules.schedule import NoiseSchedule

Project: TypeAlias = Literal["improved", "guided"]

NAME = "openai.denoiser"

_RESCALES: dict[str, bool] = {"improved": True, "guided": False}
"""The default of `rescale_timesteps` in each project, the only one in which they differ."""

_UNUSED = frozenset(
    {
        # How the network is built, which it tells itself.
        *("num_channels", "num_res_blocks", "num_heads", "num_heads_upsample"),
        *("num_head_channels", "attention_resolutions", "channel_mult", "dropout"),
        *("use_checkpoint", "use_scale_shift_norm", "resblock_updown", "use_fp16"),
        *("use_new_attention_order", "small_size"),
        # How it was trained.
        *("use_kl", "rescale_learned_sigmas"),
        # How the classifier beside it is built.
        *("classifier_use_fp16", "classifier_width", "classifier_depth"),
        *("classifier_attention_resolutions", "classifier_use_scale_shift_norm"),
        *("classifier_resblock_updown", "classifier_pool"),
    }
)
"""Keys of their dictionaries of defaults that do not matter to sampling."""


@dataclass(frozen=True)
class Settings:
    """The flags that matter to sampling, with the defaults that both projects share.

    Attributes:
        rescale_timesteps: whether the network takes timesteps in [0, 1000); no common default.
        diffusion_steps: T.
        noise_schedule: "linear" or "cosine".
        learn_sigma: whether the output has twice the channels, the second half a learned variance.
        sigma_small: the variance without `learn_sigma`: beta-tilde, or beta by default.
        predict_xstart: whether the network predicts x0.
        class_cond: whether the network takes labels `y`; None where nothing tells.
        clip_denoised: whether x0 is clamped to [-1, 1], as their sampling scripts do by default.
        image_size: height and width of the samples, if known.
    """

    rescale_timesteps: bool
    diffusion_steps: int = 1000
    noise_schedule: str = "linear"
    learn_sigma: bool = False
    sigma_small: bool = False
    predict_xstart: bool = False
    class_cond: bool | None = None
    clip_denoised: bool = True
    image_size: int | None = None

    @classmethod
    def of(
        cls,
        source: str | os.PathLike[str] | Mapping[str, Any] | None,
        project: Project | None,
        keywords: Mapping[str, Any],
    ) -> Settings:
        """Check the flags from a file or mapping and from keyword arguments, which win.

        Args:
            source: flags, the path of a JSON file of flags, or None.
            project: whose default `rescale_timesteps` has; None has no default.
            keywords: flags; those that are None count as not given.

        Raises:
            TypeError: a flag of the wrong type.
            FileNotFoundError: no such file.
            ValueError: an unknown flag, or a value out of range.
        """
        flags = {**_read(source), **{k: v for k, v in keywords.items() if v is not None}}
        if project is not None and project not in _RESCALES:
            raise ValueError(f"{NAME}: project must be one of {list(_RESCALES)}, got {project!r}")
        large_size = flags.pop("large_size", None)  # the super-resolution networks' image size
        flags.setdefault("image_size", large_size)
        known = {field.name for field in fields(cls)}
        respacing = flags.pop("timestep_respacing", "")
        unknown = sorted(flags.keys() - known - _UNUSED)
        if unknown:
            raise ValueError(
                f"{NAME}: settings must be those of model_and_diffusion_defaults(), got "
                f"{unknown[0]!r}; those that matter here are {sorted(known)}"
            )
        if respacing:
            steps = flags.get("diffusion_steps", cls.diffusion_steps)
            shown = repr(respacing)
            if steps not in (None, cls.diffusion_steps):
                shown += f", diffusion_steps={steps}"
            raise ValueError(
                f"{NAME}: timestep_respacing must be left out, got {respacing!r}; it chooses the "
                f"steps of a run: fs.sample(model, fs.integrations.openai.grid({shown}))"
            )
        if flags.get("rescale_timesteps") is None:
            if project is None:
                raise ValueError(
                    f"{NAME}: rescale_timesteps must be given, got None; it is True by default in "
                    'improved-diffusion and False in guided-diffusion: project="improved" or '
                    '"guided" takes that default'
                )
            flags["rescale_timesteps"] = _RESCALES[project]
        checked = cls(**{k: v for k, v in flags.items() if k in known and v is not None})
        for name in ("rescale_timesteps", "learn_sigma", "sigma_small", "predict_xstart"):
            check_bool(NAME, name, getattr(checked, name))
        check_bool(NAME, "clip_denoised", checked.clip_denoised)
        if checked.class_cond is not None:
            check_bool(NAME, "class_cond", checked.class_cond)
        if checked.image_size is not None:
            check_integer(NAME, "image_size", checked.image_size, 1)
        return checked

    def schedule(self) -> NoiseSchedule:
        """Return the noise schedule of `get_named_beta_schedule`.

        Its linear betas are those of Ho et al. 2020 (arXiv:2006.11239) times ``1000 / T``.

        Raises:
            TypeError: a number of steps that is no integer.
            ValueError: an unknown name, or too few steps for linear betas, which would exceed 1.
        """
        steps = check_integer(NAME, "diffusion_steps", self.diffusion_steps, 1)
        if self.noise_schedule == "cosine":
            return NoiseSchedule.cosine(steps)
        if self.noise_schedule != "linear":
            raise ValueError(
                f'{NAME}: noise_schedule must be "linear" or "cosine", got {self.noise_schedule!r}'
            )
        if steps < FEWEST_STEPS:
            raise ValueError(
                f"{NAME}: diffusion_steps must be above 20 with the linear schedule, whose last "
                f"beta is 20 / T, got {steps}"
            )
        return linear_betas(steps)


def _read(source: Any) -> dict[str, Any]:
    """Return the flags in a mapping or a JSON file."""
    if source is None:
        return {}
    shown = f"a mapping of {type(source).__name__}"
    if isinstance(source, (str, os.PathLike)):
        path = str(cast("str | os.PathLike[str]", source))
        shown = repr(path)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{NAME}: settings must be a JSON file of flags, got {shown}")
        try:
            with open(path, encoding="utf-8") as file:
                source = json.load(file)
        except ValueError as error:  # also bytes that are no UTF-8
            raise ValueError(
                f"{NAME}: settings must be a JSON file of flags, got {shown} ({error})"
            ) from None
    if not isinstance(source, Mapping):
        raise TypeError(
            f"{NAME}: settings must be a mapping of flags, or the path of a JSON file that holds "
            f"one, got {shown if isinstance(source, list) else type(source).__name__}"
        )
    return dict(cast("Mapping[str, Any]", source))
