"""Tiny pipelines of diffusers with random weights, which need no text encoder and no download."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.helpers.diffusers_networks import (
    BLOCKS,
    dit,
    flux,
    made,
    normal,
    sd3,
    text_unet,
    unet,
    wan,
    z_image,
)

SD_BETAS: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""The scheduler config of Stable Diffusion 1.x and 2.x."""


def vae(scale: int = 2) -> Any:
    return made(
        "AutoencoderKL",
        block_out_channels=(8,) * scale,
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * scale,
        up_block_types=("UpDecoderBlock2D",) * scale,
        sample_size=16,
    )


@dataclass
class Case:
    """A pipeline and a run of it.

    Attributes:
        pipe: the pipeline with a scheduler of diffusers.
        run: runs it with a number of samples and a generator, and returns latents or pictures.
    """

    pipe: Any
    run: Callable[[int, torch.Generator], Tensor]


def made_pipeline(name: str, **parts: Any) -> Any:
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = getattr(diffusers, name)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe: Any, **arguments: Any) -> Any:
    """The pipeline's result; deprecations inside diffusers are none of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = pipe(**arguments)
    return result[0] if isinstance(result, tuple) else next(iter(result.values()))


def _scheduler(name: str, **config: Any) -> Any:
    import diffusers

    return getattr(diffusers, name)(**config)


def _pixels(pictures: Any) -> Tensor:
    return torch.as_tensor(pictures)


def ddpm(learned: bool = False) -> Case:
    kind = {"variance_type": "learned_range"} if learned else {}
    pipe = made_pipeline(
        "DDPMPipeline",
        unet=unet(3, 6 if learned else 3),
        scheduler=_scheduler("DDPMScheduler", **kind),
    )
    return Case(
        pipe,
        lambda n, g: _pixels(
            call(pipe, batch_size=n, generator=g, num_inference_steps=8, output_type="np")
        ),
    )


def ddim() -> Case:
    pipe = made_pipeline("DDIMPipeline", unet=unet(), scheduler=_scheduler("DDIMScheduler"))
    return Case(
        pipe,
        lambda n, g: _pixels(
            call(pipe, batch_size=n, generator=g, num_inference_steps=8, output_type="np")
        ),
    )


_SD_PARTS: dict[str, Any] = {
    "text_encoder": None,
    "tokenizer": None,
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}


def _texts(n: int) -> dict[str, Any]:
    one, none = normal(1, 7, 16, seed=3), normal(1, 7, 16, seed=4)
    return {
        "prompt_embeds": one.expand(n, -1, -1),
        "negative_prompt_embeds": none.expand(n, -1, -1),
        "output_type": "latent",
        "num_inference_steps": 8,
    }


def sd(scheduler: Any = None) -> Case:
    pipe = made_pipeline(
        "StableDiffusionPipeline",
        unet=text_unet(),
        vae=vae(),
        scheduler=scheduler or _scheduler("DDIMScheduler", **SD_BETAS),
        **_SD_PARTS,
    )
    return Case(pipe, lambda n, g: call(pipe, generator=g, height=16, width=16, **_texts(n)))


def sd_img2img(scheduler: Any = None) -> Case:
    pipe = made_pipeline(
        "StableDiffusionImg2ImgPipeline",
        unet=text_unet(),
        vae=vae(),
        scheduler=scheduler or _scheduler("DDIMScheduler", **SD_BETAS),
        **_SD_PARTS,
    )
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    return Case(
        pipe,
        lambda n, g: call(
            pipe, image=image.expand(n, -1, -1, -1), strength=0.6, generator=g, **_texts(n)
        ),
    )


def sd_inpaint() -> Case:
    pipe = made_pipeline(
        "StableDiffusionInpaintPipeline",
        unet=text_unet(),
        vae=vae(),
        scheduler=_scheduler("DDIMScheduler", **SD_BETAS),
        **_SD_PARTS,
    )
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1.0
    return Case(
        pipe,
        lambda n, g: call(
            pipe,
            image=image.expand(n, -1, -1, -1),
            mask_image=mask.expand(n, -1, -1, -1),
            height=16,
            width=16,
            generator=g,
            **_texts(n),
        ),
    )


def sd_controlnet() -> Case:
    control = made(
        "ControlNetModel",
        in_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        conditioning_embedding_out_channels=(8, 16),
        **BLOCKS,
    )
    pipe = made_pipeline(
        "StableDiffusionControlNetPipeline",
        unet=text_unet(),
        vae=vae(),
        controlnet=control,
        scheduler=_scheduler("DDIMScheduler", **SD_BETAS),
        **_SD_PARTS,
    )
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    return Case(
        pipe,
        lambda n, g: call(
            pipe,
            image=image.expand(n, -1, -1, -1),
            height=16,
            width=16,
            generator=g,
            **_texts(n),
        ),
    )


def dit_case() -> Case:
    pipe = made_pipeline(
        "DiTPipeline", transformer=dit(), vae=vae(1), scheduler=_scheduler("DDIMScheduler")
    )
    return Case(
        pipe,
        lambda n, g: _pixels(
            call(
                pipe,
                class_labels=[3] * n,
                guidance_scale=4.0,
                generator=g,
                num_inference_steps=8,
                output_type="np",
            )
        ),
    )


def sd3_case() -> Case:
    pipe = made_pipeline(
        "StableDiffusion3Pipeline",
        transformer=sd3(),
        vae=vae(),
        scheduler=_scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0),
        **dict.fromkeys(
            (
                *("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
                *("text_encoder_3", "tokenizer_3"),
            )
        ),
    )

    def run(n: int, g: torch.Generator) -> Tensor:
        return call(
            pipe,
            prompt_embeds=normal(1, 7, 16, seed=3).expand(n, -1, -1),
            negative_prompt_embeds=normal(1, 7, 16, seed=4).expand(n, -1, -1),
            pooled_prompt_embeds=normal(1, 16, seed=5).expand(n, -1),
            negative_pooled_prompt_embeds=normal(1, 16, seed=6).expand(n, -1),
            height=16,
            width=16,
            generator=g,
            num_inference_steps=6,
            output_type="latent",
        )

    return Case(pipe, run)


def flux_case() -> Case:
    pipe = made_pipeline(
        "FluxPipeline",
        transformer=flux(),
        vae=None,
        scheduler=_scheduler("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True),
        **dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),
    )

    def run(n: int, g: torch.Generator) -> Tensor:
        return call(
            pipe,
            prompt_embeds=normal(1, 7, 32, seed=3).expand(n, -1, -1),
            pooled_prompt_embeds=normal(1, 32, seed=5).expand(n, -1),
            height=64,
            width=64,
            generator=g,
            num_inference_steps=6,
            output_type="latent",
        )

    return Case(pipe, run)


def wan_case() -> Case:
    pipe = made_pipeline(
        "WanPipeline",
        transformer=wan(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        scheduler=_scheduler(
            "UniPCMultistepScheduler",
            use_flow_sigmas=True,
            prediction_type="flow_prediction",
            flow_shift=3.0,
        ),
    )

    def run(n: int, g: torch.Generator) -> Tensor:
        return call(
            pipe,
            prompt_embeds=normal(1, 7, 16, seed=3).expand(n, -1, -1),
            negative_prompt_embeds=normal(1, 7, 16, seed=4).expand(n, -1, -1),
            latents=normal(n, 4, 2, 4, 4, seed=int(g.initial_seed())),
            height=32,
            width=32,
            num_frames=5,
            num_inference_steps=6,
            output_type="latent",
        )

    return Case(pipe, run)


def z_image_case() -> Case:
    pipe = made_pipeline(
        "ZImagePipeline",
        transformer=z_image(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        scheduler=_scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0),
    )

    def run(n: int, g: torch.Generator) -> Tensor:
        return call(
            pipe,
            prompt_embeds=[normal(9, 16, seed=3)] * n,
            negative_prompt_embeds=[normal(6, 16, seed=4)] * n,
            height=64,
            width=64,
            generator=g,
            num_inference_steps=6,
            output_type="latent",
        )

    return Case(pipe, run)


CASES: dict[str, Callable[[], Case]] = {
    "ddpm": ddpm,
    "ddpm-learned": lambda: ddpm(learned=True),
    "ddim": ddim,
    "sd": sd,
    "sd-img2img": sd_img2img,
    "sd-inpaint": sd_inpaint,
    "sd-controlnet": sd_controlnet,
    "dit": dit_case,
    "sd3": sd3_case,
    "flux": flux_case,
    "wan": wan_case,
    "z-image": z_image_case,
}
