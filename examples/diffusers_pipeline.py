"""A pipeline of diffusers with this package's samplers, plans and seeds.

    python examples/diffusers_pipeline.py [--model FOLDER_OR_HUB_ID] [--steps 8] [--out FILE]

Without --model a tiny pipeline with random weights runs, to show the calls and the time of the
samplers. With one, such as google/ddpm-cifar10-32, pictures of the pipeline's own scheduler, of the
default method and of a plan that is tuned for it are drawn in rows.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import fastsample as fs
from fastsample.integrations.diffusers import FastSampleScheduler, denoiser
from fastsample.plots.images import save_grid


def tiny_pipeline() -> Any:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        layers_per_block=1,
    )
    return DDPMPipeline(unet.eval(), DDPMScheduler())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="folder or hub id of an unconditional pipeline")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--samples", type=int, default=64, help="samples to tune with")
    parser.add_argument("--out", type=Path, default=Path("out/diffusers_pipeline.png"))
    options = parser.parse_args()
    if options.model is None:
        pipe = tiny_pipeline()
    else:
        from diffusers import DiffusionPipeline

        pipe = DiffusionPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    original = pipe.scheduler

    teacher = 6 * options.steps
    plan = fs.tune(denoiser(pipe), options.steps, samples=options.samples, teacher_steps=teacher)
    print(plan.describe())
    schedulers = {
        "the pipeline's own": original,
        "the same, one kernel a step": FastSampleScheduler.from_scheduler(original),
        "fastsample's default": FastSampleScheduler.from_scheduler(original, method="fastsample"),
        "tuned plan": FastSampleScheduler.from_scheduler(original, plan=plan),
    }
    rows = []
    for name, scheduler in schedulers.items():
        pipe.scheduler = scheduler
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pictures = pipe(
                batch_size=8,
                num_inference_steps=options.steps,
                generator=torch.Generator().manual_seed(0),
                output_type="np",
            ).images
        print(f"{name:30} {options.steps} calls in {time.perf_counter() - begin:.2f} s")
        rows.append(torch.as_tensor(pictures).permute(0, 3, 1, 2) * 2 - 1)

    save_grid(torch.cat(rows), options.out, columns=8)
    print(f"rows in this order: {options.out}")


if __name__ == "__main__":
    main()
