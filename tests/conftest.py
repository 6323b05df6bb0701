"""Fixtures of every test: devices, seeds, threads, instruction sets, exact matmuls."""

from __future__ import annotations

import pytest
import torch

import fastsample as fs


def missing_for_cuda() -> str | None:
    """Why tests marked `cuda` cannot run here, or None."""
    if not fs.build_info()["cuda"]:
        return "this build has no CUDA kernels"
    if not torch.cuda.is_available():
        return "no NVIDIA GPU, or a torch without CUDA"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = missing_for_cuda()
    if reason is None:
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that a kernel exists for; a GPU by its number, as tensors report it."""
    return torch.device("cuda", 0) if request.param == "cuda" else torch.device("cpu")


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(20240)
    # Tensors here are small: a second thread gains nothing, and on a busy machine it is waited for.
    # Tests about threads ask for them.
    torch.set_num_threads(1)
    # TensorFloat-32 keeps 10 bits of a float32 product: comparisons with the CPU would fail.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture
def threads():
    """Sets torch's thread count for one test."""
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.fixture
def isa():
    """Chooses the CPU instruction set for one test."""
    from fastsample import _native

    before = fs.build_info()["cpu"]
    yield _native.use_isa
    _native.use_isa(before)
