"""Fixtures of every test: devices, seeds, threads, instruction sets, exact matmuls."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import fastsample as fs

LEFT_OUT = pytest.StashKey[Counter[str]]()


def missing_for_cuda() -> str | None:
    """Why tests marked `cuda` cannot run here, or None."""
    if not fs.build_info()["cuda"]:
        return "this build has no CUDA kernels"
    if not torch.cuda.is_available():
        return "no NVIDIA GPU, or a torch without CUDA"
    return None


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = Counter()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the tests of a GPU out where there is none: one line for all of them, not one each."""
    reason = missing_for_cuda()
    if reason is None:
        return
    without = [item for item in items if item.get_closest_marker("cuda")]
    if without:
        items[:] = [item for item in items if not item.get_closest_marker("cuda")]
        config.hook.pytest_deselected(items=without)
        config.stash[LEFT_OUT][reason] = len(without)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # a worker of pytest-xdist
        session.config.workeroutput["left out"] = dict(session.config.stash[LEFT_OUT])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    # Every worker has collected all tests and leaves the same ones out.
    node.config.stash[LEFT_OUT] |= Counter(getattr(node, "workeroutput", {}).get("left out", {}))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for reason, count in config.stash[LEFT_OUT].items():
        terminalreporter.write_line(f"{count} tests marked cuda left out: {reason}")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that a kernel exists for; a GPU by its number, as tensors report it."""
    return torch.device("cuda", 0) if request.param == "cuda" else torch.device("cpu")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """What fixtures of a module compute is computed with as many threads as in its tests."""
    torch.set_num_threads(1)


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
