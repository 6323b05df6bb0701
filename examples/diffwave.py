"""Train a tiny DiffWave on synthetic tones, and sample sounds from their mel spectrograms.

    python examples/diffwave.py                   # about 3 minutes on two cores; .wav files
    python examples/diffwave.py --iterations 20 --sounds 4 --runs 1 --teacher-steps 12 --out quick

The network is DiffWave's (Kong et al. 2021, arXiv:2009.09761) in small: dilated convolutions with
gates, a table of step embeddings that is interpolated for fractional steps, and a mel spectrogram
as the condition. The sounds are harmonic tones of half a second at 8 kHz, with an envelope and
vibrato. After training, the same held-out spectrograms are turned into sounds in all 50 steps and
in 6 network calls: with the variances that DiffWave published, with DDIM, and with a tuned plan.

Prints, per sampler, the log-spectral distance to the true sound (in dB, over time and frequency),
the distance to the sounds of DDIM in all steps, which a tuned plan approximates, and the share of
sounds whose pitch is within 50 cents of the true one. Writes sounds as .wav files and, where
matplotlib is installed, spectrograms.png.
"""

from __future__ import annotations

import argparse
import math
import time
import wave
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastsample as fs

RATE, LENGTH, HOP, BANDS, PIECE = 8000, 4096, 64, 40, 8
SCHEDULE = fs.NoiseSchedule.linear(50, 1e-4, 0.05)  # DiffWave's for 50 steps
PUBLISHED = [0.0001, 0.001, 0.01, 0.05, 0.2, 0.5]  # its variances for 6 network calls
LOWEST, HIGHEST = 130.0, 520.0  # Hz


# ---- sounds


def tones(count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return harmonic tones ``(count, length)`` in [-1, 1] and their pitches ``(count,)`` in Hz."""

    def uniform(low: float, high: float, columns: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(count, columns, generator=generator)

    pitch = LOWEST * (HIGHEST / LOWEST) ** uniform(0, 1)
    t = torch.arange(length) / RATE
    vibrato = uniform(0.0, 0.004) * torch.sin(2 * math.pi * (uniform(3, 7) * t + uniform(0, 1)))
    phase = 2 * math.pi * torch.cumsum(pitch * (1 + vibrato), 1) / RATE
    order, tilt, phases = torch.arange(1.0, 8.0), uniform(0.7, 1.7), uniform(0, 2 * math.pi, 7)
    sound = torch.zeros(count, length)
    for k, offset in zip(order, phases.T, strict=True):
        audible = k * pitch < 0.45 * RATE
        sound += audible * k**-tilt * torch.sin(k * phase + offset[:, None])
    envelope = (1 - torch.exp(-t / uniform(0.005, 0.04))) * torch.exp(-t / uniform(0.2, 1.0))
    sound *= envelope
    return 0.9 * sound / sound.abs().amax(1, keepdim=True), pitch[:, 0]


def mel_filters() -> Tensor:
    """Return triangular filters ``(BANDS, 129)``, evenly spaced on the mel scale."""
    mel = torch.linspace(0.0, 2595 * math.log10(1 + RATE / 2 / 700), BANDS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    f = torch.linspace(0, RATE / 2, 129)
    rise = (f - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - f) / (edges[2:] - edges[1:-1])[:, None]
    filters = torch.minimum(rise, fall).clamp(min=0)
    nearest = F.one_hot((f - edges[1:-1, None]).abs().argmin(1), 129)  # the low bands are narrow
    return torch.maximum(filters, nearest)


def spectrum(sound: Tensor) -> Tensor:
    """Return magnitudes ``(B, 129, LENGTH / HOP + 1)``."""
    return torch.stft(sound, 256, HOP, window=torch.hann_window(256), return_complex=True).abs()


def mel_of(sound: Tensor) -> Tensor:
    """Return the condition: log mel magnitudes ``(B, BANDS, length / HOP)``, about in [-1, 1]."""
    bands = mel_filters() @ spectrum(sound)[..., :-1]
    return torch.log10(bands.clamp(min=1e-3)) / 2 + 0.25


def pitch_of(sound: Tensor) -> Tensor:
    """Return pitches in Hz ``(B,)``: the first high peak of the autocorrelation."""
    power = torch.fft.rfft(sound, 2 * sound.shape[1]).abs().square()
    correlation = torch.fft.irfft(power)[:, : int(RATE / LOWEST * 1.2)]
    first = int(RATE / HIGHEST * 0.8)
    before, peak, after = (
        correlation[:, first + i : correlation.shape[1] - 2 + i] for i in range(3)
    )
    is_peak = (peak >= before) & (peak > after)
    high = is_peak & (peak > 0.85 * (peak * is_peak).amax(1, keepdim=True))
    index = high.int().argmax(1, keepdim=True)
    a, b, c = (part.gather(1, index)[:, 0] for part in (before, peak, after))
    shift = 0.5 * (a - c) / (a - 2 * b + c).clamp(max=-1e-9)
    return RATE / (index[:, 0] + first + 1 + shift.clamp(-0.5, 0.5))


def save_wav(path: Path, sound: Tensor) -> None:
    """Write a sound in [-1, 1] as 16-bit samples."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((sound.clamp(-1, 1) * 32767).short().numpy().tobytes())


# ---- network


class StepEmbedding(nn.Module):
    """Looks whole steps up in a table, and interpolates it for fractional ones."""

    def __init__(self, steps: int, width: int) -> None:
        super().__init__()
        angles = torch.arange(steps)[:, None] * 10.0 ** torch.linspace(0, -4, 16)
        self.register_buffer("table", torch.cat((angles.sin(), angles.cos()), 1), persistent=False)
        self.layers = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Return the embeddings ``(B, width)`` of steps ``(B,)``, int64 or float32."""
        low = t.floor().long() if t.is_floating_point() else t
        high = (low + 1).clamp(max=len(self.table) - 1)
        entries = torch.lerp(self.table[low], self.table[high], (t - low).float()[:, None])
        return F.silu(self.layers(entries))


class Block(nn.Module):
    """A dilated convolution with a gate, shifted by the step and by the spectrogram."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.step = nn.Linear(64, channels)
        self.mel = nn.Conv1d(BANDS, 2 * channels, 1)
        self.dilated = nn.Conv1d(channels, 2 * channels, 3, padding=dilation, dilation=dilation)
        self.out = nn.Conv1d(channels, 2 * channels, 1)

    def forward(self, x: Tensor, step: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input of the next block, and this block's part of the output."""
        local = F.interpolate(self.mel(mel), scale_factor=HOP // PIECE, mode="linear")
        value, gate = (self.dilated(x + self.step(step)[..., None]) + local).chunk(2, 1)
        residual, skip = self.out(torch.tanh(value) * torch.sigmoid(gate)).chunk(2, 1)
        return (x + residual) / math.sqrt(2), skip


class DiffWave(nn.Module):
    """Predicts the noise in sounds ``(B, 1, length)`` from the step and a mel spectrogram.

    The blocks work on pieces of `PIECE` samples, which makes the network fast enough to train here.
    """

    def __init__(self, channels: int = 64, layers: int = 6) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, channels, 3 * PIECE, stride=PIECE, padding=PIECE)
        self.embedding = StepEmbedding(50, 64)
        self.blocks = nn.ModuleList(Block(channels, 2**i) for i in range(layers))
        self.middle = nn.Sequential(nn.Conv1d(channels, 2 * channels, 1), nn.ReLU())
        self.last = nn.ConvTranspose1d(2 * channels, 1, 3 * PIECE, stride=PIECE, padding=PIECE)

    def forward(self, x: Tensor, t: Tensor, mel: Tensor) -> Tensor:
        """Return the predicted noise, in the shape of ``x``."""
        step, h, total = self.embedding(t), self.first(x), 0.0
        for block in self.blocks:
            h, skip = block(h, step, mel)
            total = total + skip
        return self.last(self.middle(total / math.sqrt(len(self.blocks))))


def trained(iterations: int, seed: int) -> DiffWave:
    """Train on fresh tones, with the squared error of the noise at random steps."""
    torch.manual_seed(seed)
    network, generator = DiffWave(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=max(iterations, 2))
    alpha = torch.tensor(SCHEDULE.alpha(range(1, 51)), dtype=torch.float32)
    sigma = torch.tensor(SCHEDULE.sigma(range(1, 51)), dtype=torch.float32)
    started, mean = time.perf_counter(), 1.0
    for i in range(iterations):
        crops = tones(8, LENGTH, generator)[0].unfold(1, 1024, 512)  # (8, 7, 1024)
        x0 = crops[range(8), torch.randint(7, (8,), generator=generator)]
        t = torch.randint(50, (8,), generator=generator)
        noise = torch.randn(8, 1, 1024, generator=generator)
        x = alpha[t, None, None] * x0[:, None] + sigma[t, None, None] * noise
        loss = F.mse_loss(network(x, t, mel_of(x0)), noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
        mean += (loss.item() - mean) / min(i + 1, 50)
        if (i + 1) % 100 == 0 or i + 1 == iterations:
            spent = time.perf_counter() - started
            print(f"iteration {i + 1}: loss {mean:.3f}, {spent:.0f} s", flush=True)
    return network.eval()


# ---- comparison


def report(name: str, sounds: Tensor, truth: Tensor, pitch: Tensor, fine: Tensor) -> None:
    """Print a sampler's log-spectral distance, share of right pitches, and distance to `fine`.

    The first two compare with the true sound; the last one is the root mean square difference from
    the sounds of DDIM in all steps, from the same noise, which deterministic samplers approximate.
    """
    logs = [20 * torch.log10(spectrum(each).clamp(min=0.3)) for each in (sounds, truth)]
    distance = (logs[0] - logs[1]).square().mean(1).sqrt().mean()
    cents = 1200 * torch.log2(pitch_of(sounds) / pitch)
    right = (cents.abs() < 50).float().mean()
    away = (sounds - fine).square().mean().sqrt()
    print(f"{name:30} {distance:6.2f} dB   from DDIM-50 {away:.4f}   pitch right {right:4.0%}")


def picture(path: Path, sounds: dict[str, Tensor]) -> None:
    """Draw the spectrogram of the first sound of every sampler."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(13, 5), layout="constrained")
    for ax, (name, sound) in zip(axes.flat, sounds.items(), strict=False):
        image = 20 * torch.log10(spectrum(sound[:1])[0].clamp(min=0.03))
        ax.imshow(
            image.numpy(), origin="lower", aspect="auto", extent=(0, 0.51, 0, 4), vmin=-30, vmax=35
        )
        ax.set_title(name, fontsize=9)
    for ax in axes.flat[len(sounds) :]:
        ax.axis("off")
    figure.supxlabel("seconds", fontsize=9)
    figure.supylabel("kHz", fontsize=9)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("diffwave"), help="folder (diffwave)")
    parser.add_argument("--iterations", type=int, default=1500, help="of training (1500)")
    parser.add_argument("--sounds", type=int, default=24, help="held-out sounds (24)")
    parser.add_argument("--runs", type=int, default=20, help="candidates of the tuning (20)")
    parser.add_argument("--teacher-steps", type=int, default=48, help="of the tuning (48)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    network = trained(options.iterations, options.seed)
    truth, pitch = tones(options.sounds, LENGTH, torch.Generator().manual_seed(options.seed + 1))
    cond = {"mel": mel_of(truth)}
    model = fs.Denoiser(network, SCHEDULE, (1, LENGTH))

    # Short clips serve to tune a plan for longer sounds. It remembers their length, and is refused
    # for another one until its provenance is removed.
    clips = tones(32, LENGTH, torch.Generator().manual_seed(options.seed + 2))[0][:, :1024]
    short = fs.Denoiser(network, SCHEDULE, (1, 1024))
    tuned = fs.tune(
        *(short, 6),
        samples=32,
        max_runs=options.runs,
        teacher_steps=options.teacher_steps,
        cond={"mel": mel_of(clips)},
    )
    tuned = tuned.with_provenance(None)
    (options.out / "plan.json").write_text(tuned.to_json())

    published = fs.fastdpm(SCHEDULE, variances=PUBLISHED, kappa=1.0)
    runs = {
        "DDIM, all 50 steps": {"steps": 50, "method": "ddim"},
        "ancestral, all 50 steps": {"steps": 50, "method": "ancestral"},
        "published variances, 6 calls": {"steps": published},
        "the same without noise": {"steps": 6, "variances": PUBLISHED, "kappa": 0.0},
        "DDIM, 6 calls": {"steps": 6, "method": "ddim"},
        "UniPC, 6 calls": {"steps": 6, "method": "unipc"},
        "tuned, 6 calls": {"steps": tuned},
    }
    drawn = {"the true sound": truth}
    for name, arguments in runs.items():
        drawn[name] = fs.sample(model, **arguments, cond=cond, seed=1)[:, 0].clamp(-1, 1)
    for name, sounds in drawn.items():
        report(name, sounds, truth, pitch, drawn["DDIM, all 50 steps"])
    for name, sounds in drawn.items():
        for i, sound in enumerate(sounds[:4]):
            save_wav(options.out / f"{i}-{name.replace(' ', '-').replace(',', '')}.wav", sound)
    try:
        picture(options.out / "spectrograms.png", drawn)
    except ImportError:
        print("no picture: matplotlib is not installed")
    print(f"wrote .wav files and the tuned plan in {options.out.resolve()}")


if __name__ == "__main__":
    main()
