"""Two processes of `torch.distributed` on one machine."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


@contextmanager
def meeting(rank: int, folder: str) -> Iterator[None]:
    """This process, as one of two that meet in a file of the folder."""
    torch.set_num_threads(1)
    if sys.platform == "linux":
        # A host name that nobody resolves must not matter to two processes of one machine.
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()
