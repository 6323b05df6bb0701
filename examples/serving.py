"""Serve requests with continuous batching: a request joins the running batch when a slot is free.

    python examples/serving.py                            # a few seconds on one core
    python examples/serving.py --requests 100 --rates 20

Requests arrive at random times. Each asks for one image in 4 to 20 network calls, by UniPC, which
looks back at earlier steps, or by stochastic DDIM, which draws noise in every step. Three servers
do the same work:

- continuous: `fs.SamplerStack.advance` runs all slots, each at its own row, and refills a slot as
  soon as its image is done;
- batches: the same, but slots are refilled only when the whole batch is done;
- equal: one `fs.Sampler` call at a time, for the waiting requests that ask for the same method and
  number of calls as the oldest one.

Every image is compared with `fs.sample` of its request alone: they are equal to the last bit,
because this network rounds alike in every batch. The network is a toy; the clock of the servers
adds to the measured time of the rest what a call of a real one would take, a fixed part and a part
per sample. Prints images per second, and percentiles of the latency from arrival to result.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

import fastsample as fs

SHAPE = (4, 32, 32)
METHODS: dict[str, dict[str, float]] = {"unipc": {}, "ddim": {"eta": 1.0}}
CALLS = range(4, 21)


@dataclass
class Network:
    """An elementwise network with labels that counts the samples it was given."""

    samples: list[int] = field(default_factory=list)  # of each call

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the output for samples `(B, *shape)` at timesteps and labels `(B,)`."""
        self.samples.append(len(x))
        shift = (t.to(x.dtype) * 2.0**-12 + y.to(x.dtype) * 2.0**-4).reshape(-1, 1, 1, 1)
        return 0.5 * x + shift


@dataclass
class Request:
    """One image: its sampler, seed and label, and when it was asked for and done (in s)."""

    sampler: int  # its number in the list of samplers
    seed: int
    label: int
    arrival: float
    done: float = 0.0
    image: Tensor | None = None


@dataclass
class Clock:
    """The time of a server in s: what its own code takes, and what a network would take."""

    network: Network
    fixed: float  # s per network call
    per_sample: float  # s per sample of a call
    now: float = 0.0

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """Do some work, and let its time pass."""
        before, start = len(self.network.samples), time.perf_counter()
        result = work()
        self.now += time.perf_counter() - start
        for samples in self.network.samples[before:]:
            self.now += self.fixed + self.per_sample * samples
        return result


def serve_rows(
    stack: fs.SamplerStack, requests: list[Request], slots: int, clock: Clock, refill: bool
) -> None:
    """Serve requests row by row; `refill` fills free slots while the others go on."""
    waiting, running = list(requests), [None] * slots
    lengths = [len(plan) for plan in stack.plans]
    x, rows, history = torch.zeros(slots, *SHAPE), [-1] * slots, fs.History()
    while waiting or any(running):
        if not any(running):
            clock.now = max(clock.now, waiting[0].arrival)
        if refill or not any(running):
            for slot in range(slots):
                if running[slot] is None and waiting and waiting[0].arrival <= clock.now:
                    running[slot], rows[slot] = waiting.pop(0), 0
                    new = running[slot]
                    x[slot] = stack.start(sampler=new.sampler, seed=new.seed)[0]
        # A slot without a request rests (row -1): the network is not run for it.
        each = [request or requests[0] for request in running]
        given = {
            "sampler": [request.sampler for request in each],
            "seed": [request.seed for request in each],
            "cond": {"y": torch.tensor([request.label for request in each])},
            "history": history,
        }
        x = clock.run(lambda x=x, given=given: stack.advance(x, rows, **given))
        for slot, request in enumerate(running):
            if request is not None:
                rows[slot] += 1
                if rows[slot] == lengths[request.sampler]:
                    request.image, request.done = x[slot].clone(), clock.now
                    running[slot], rows[slot] = None, -1


def serve_equal(
    samplers: list[fs.Sampler], requests: list[Request], slots: int, clock: Clock
) -> None:
    """Serve requests in whole runs of one sampler."""
    waiting = list(requests)
    while waiting:
        clock.now = max(clock.now, waiting[0].arrival)
        oldest = waiting[0].sampler
        ready = [r for r in waiting if r.arrival <= clock.now and r.sampler == oldest][:slots]
        given = {
            "seed": [request.seed for request in ready],
            "cond": {"y": torch.tensor([request.label for request in ready])},
        }
        images = clock.run(lambda oldest=oldest, given=given: samplers[oldest](**given))
        for request, image in zip(ready, images, strict=True):
            request.image, request.done = image, clock.now
            waiting.remove(request)


def make_requests(count: int, rate: float, samplers: int, seed: int) -> list[Request]:
    """Return requests at `rate` per second, with random samplers and labels."""
    random = np.random.default_rng(seed)
    arrivals = np.cumsum(random.exponential(1.0 / rate, count))
    chosen, labels = random.integers(samplers, size=count), random.integers(10, size=count)
    return [
        Request(int(chosen[i]), seed + i, int(labels[i]), float(arrivals[i])) for i in range(count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=400, help="number of requests (400)")
    parser.add_argument("--slots", type=int, default=16, help="most samples in a batch (16)")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[15, 30, 1000], help="arrivals per second"
    )
    parser.add_argument("--fixed", type=float, default=10.0, help="ms per network call (10)")
    parser.add_argument("--per-sample", type=float, default=1.0, help="ms per sample in it (1)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    network = Network()
    model = fs.Denoiser(network, fs.NoiseSchedule.linear(), SHAPE)
    settings = [(steps, method) for method in METHODS for steps in CALLS]
    samplers = [fs.Sampler(model, k, method=method, **METHODS[method]) for k, method in settings]
    stack = fs.SamplerStack(samplers)

    print(f"{'arrivals':>10}  {'server':<10}  {'images/s':>8}  latency in s: 50%    90%    99%")
    unequal = 0
    for rate in options.rates:
        for server in ("continuous", "batches", "equal"):
            requests = make_requests(options.requests, rate, len(samplers), options.seed)
            clock = Clock(network, options.fixed / 1000, options.per_sample / 1000)
            if server == "equal":
                serve_equal(samplers, requests, options.slots, clock)
            else:
                serve_rows(stack, requests, options.slots, clock, refill=server == "continuous")
            latencies = [request.done - request.arrival for request in requests]
            throughput = len(requests) / (clock.now - requests[0].arrival)
            percentiles = "  ".join(f"{p:5.2f}" for p in np.percentile(latencies, (50, 90, 99)))
            print(f"{rate:>8g}/s  {server:<10}  {throughput:>8.1f}  {'':12} {percentiles}")
            for request in requests:
                steps, method = settings[request.sampler]
                alone = fs.sample(
                    model,
                    steps,
                    method=method,
                    **METHODS[method],
                    seed=request.seed,
                    cond={"y": [request.label]},
                )
                unequal += not torch.equal(request.image, alone[0])
    print(f"images that differ from fs.sample of their request alone: {unequal}")


if __name__ == "__main__":
    main()
