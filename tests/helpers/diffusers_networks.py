"""Tiny networks of diffusers with random weights, and what their pipelines give them."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor


def made(name: str, seed: int = 0, **config: Any) -> Any:
    """A network of diffusers of this class, in evaluation mode, with outputs of order 1."""
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        network = getattr(diffusers, name)(**config).eval()
    # Last layers that start at zero would make every output zero.
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return network.requires_grad_(False)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


BLOCKS = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}


def unet(channels: int = 3, out: int | None = None, **config: Any) -> Any:
    """An unconditional UNet of 8 x 8 pixels."""
    return made(
        "UNet2DModel",
        sample_size=8,
        in_channels=channels,
        out_channels=channels if out is None else out,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        **BLOCKS,
        **config,
    )


def text_unet(**config: Any) -> Any:
    """A UNet with texts (7, 16), as Stable Diffusion's."""
    return made(
        "UNet2DConditionModel",
        **{
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 16,
            "attention_head_dim": 4,
            **BLOCKS,
            **config,
        },
    )


def dit() -> Any:
    """A class-conditional transformer with a learned variance."""
    return made(
        "DiTTransformer2DModel",
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )


def sd3() -> Any:
    return made(
        "SD3Transformer2DModel",
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=8,
    )


def flux(guidance: bool = True) -> Any:
    return made(
        "FluxTransformer2DModel",
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance,
    )


def wan() -> Any:
    return made(
        "WanTransformer3DModel",
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
    )


def z_image() -> Any:
    return made(
        "ZImageTransformer2DModel",
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[64, 16, 16],
    )


def cogvideox() -> Any:
    return made(
        "CogVideoXTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=1,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=7,
    )


def unet_1d() -> Any:
    return made(
        "UNet1DModel",
        sample_size=32,
        in_channels=2,
        out_channels=2,
        extra_in_channels=64,
        time_embedding_type="fourier",
        block_out_channels=(32, 32),
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D"),
        up_block_types=("UpBlock1D", "UpBlock1DNoSkip"),
    )


def stable_audio() -> Any:
    return made(
        "StableAudioDiTModel",
        sample_size=16,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        out_channels=4,
        cross_attention_dim=8,
        time_proj_dim=16,
        global_states_input_dim=16,
        cross_attention_input_dim=8,
    )


def run_loop(scheduler: Any, predict: Any, x: Tensor, generator: Any = None) -> Tensor:
    """A pipeline's loop: ``predict(scaled x, t) -> what the scheduler steps with``."""
    options = {} if generator is None else {"generator": generator}
    with torch.no_grad():
        for t in scheduler.timesteps:
            scale = getattr(scheduler, "scale_model_input", None)
            output = predict(x if scale is None else scale(x, t), t)
            x = scheduler.step(output, t, x, **options, return_dict=False)[0]
    return x
