"""The fidelity loss and the trainer on a GPU: what the CPU finds, up to rounding."""

from __future__ import annotations

import pytest
import torch

from fastsample.training import FidelityLoss, FidelityTerm, Trainer
from tests.helpers.training_cases import CHAINS, DISTANCES, chain_model, points

pytestmark = pytest.mark.cuda

CUDA = torch.device("cuda", 0)


def gradients(model, x0, term):
    result = FidelityLoss(3, subset=16, **term)(model, x0, iteration=2)
    return result.loss, torch.autograd.grad(result.loss, list(model.model.parameters()))


def on_gpu_model(chain, *arguments, **options):
    model = chain_model(chain, *arguments, **options)
    model.model.to(CUDA)
    return model


def close(on_gpu, on_cpu):
    # The normals of a GPU differ from the CPU's by up to 2e-6.
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("chain", CHAINS)
def test_gradients_of_every_chain(chain):
    x0 = points(32).double()
    on_cpu = gradients(chain_model(chain), x0, CHAINS[chain])
    on_gpu = gradients(on_gpu_model(chain), x0.to(CUDA), CHAINS[chain])
    close(on_gpu[0], on_cpu[0])
    for mine, theirs in zip(on_gpu[1], on_cpu[1], strict=True):
        close(mine, theirs)


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_of_every_distance(distance):
    x0 = points(32).double()
    on_cpu = gradients(chain_model("ddim"), x0, DISTANCES[distance])
    on_gpu = gradients(on_gpu_model("ddim"), x0.to(CUDA), DISTANCES[distance])
    close(on_gpu[0], on_cpu[0])
    for mine, theirs in zip(on_gpu[1], on_cpu[1], strict=True):
        close(mine, theirs)


@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_a_run_goes_on_where_it_was_left(tmp_path, precision):
    def trainer(folder, resume=False):
        model = on_gpu_model("ddim", torch.float32, dropout=0.1)
        options = {"batch_size": 16, "precision": precision, "folder": folder, "resume": resume}
        term = FidelityTerm(FidelityLoss(3, gradient="jacobian_free"), lr=1e-3)
        return Trainer(model, points(64), fidelity=term, **options)

    whole = trainer(tmp_path / "whole")
    whole.run(6)
    assert all(torch.isfinite(p).all() for p in whole.network.parameters())
    trainer(tmp_path / "parts").run(3)
    parts = trainer(tmp_path / "parts", resume=True)
    parts.run(6)
    # Reductions of a GPU may be added in another order.
    for name, value in whole.updater.tensors().items():
        torch.testing.assert_close(parts.updater.tensors()[name], value, rtol=1e-4, atol=1e-6)
