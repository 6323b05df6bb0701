"""The edges of the arithmetic and of the operators: faults once found, kept from coming back."""

import pytest
import torch
from torch.autograd import forward_ad

import fastsample as fs
from fastsample import ops
from fastsample.ops import launch, reference
from tests.helpers.tensors import HISTORY, table

ROW = torch.tensor(0)


def deviation(v: torch.Tensor) -> torch.Tensor:
    """What the kernel multiplies unit noise by: exp(v / 2) for lv = [-1, 1] and d = 1."""
    x = torch.zeros_like(v)
    row = table(d=1.0, lv_lo=-1.0, lv_hi=1.0)
    return ops.step(x, torch.cat((x, v), 1), row, ROW, noise=torch.ones_like(v))


@pytest.mark.parametrize("emulated", [False, True])
def test_exponential_from_underflow_to_overflow(emulated, monkeypatch):
    if emulated:
        monkeypatch.setattr(launch, "device_arguments", lambda tensor: (-2, 0, 0))
    far = torch.tensor([87.0, 88.0, 88.8, 104.0, 130.0, 150.0, 176.0, 200.0, 289.0, 1e4, torch.inf])
    x = torch.cat((-far, torch.linspace(-90, 90, 100001), far, torch.tensor([torch.nan])))
    found, expected = deviation(2 * x[None])[0].double(), torch.exp(x.double())
    expected = expected.float().double()  # 0 and infinity where float32 has nothing else
    exact = (expected == 0) | expected.isinf() | expected.isnan()
    assert torch.equal(found[exact].nan_to_num(), expected[exact].nan_to_num())
    normal = ~exact & (expected > 2.0**-126)
    # 1.5 ulp of the polynomial, and of x/2 rounded before it.
    bound = expected * 2.0**-23 * (2 + x.abs().double() / 2)
    assert ((found - expected).abs() <= bound)[normal].all()


@pytest.mark.parametrize("function", [ops.step, lambda *a, **k: reference.step_x0(*a, **k)[0]])
def test_variance_that_a_row_does_not_use_is_not_touched(function):
    x = torch.ones(2, 3)
    out = torch.cat((x, torch.full_like(x, torch.inf)), 1)
    noise = torch.ones_like(x)
    plain = function(
        x, x, table(a=1.0, d=0.5), ROW, uncond=None, seeds=None, index=None, noise=noise
    )
    wide = function(
        x, out, table(a=1.0, d=0.5), ROW, uncond=None, seeds=None, index=None, noise=noise
    )
    assert torch.equal(plain, wide)


@pytest.mark.parametrize("emulated", [False, True])
@pytest.mark.parametrize("missing", HISTORY)
def test_history_that_is_missing_shows(missing, emulated, monkeypatch):
    if emulated:
        monkeypatch.setattr(launch, "device_arguments", lambda tensor: (-2, 0, 0))
    x = torch.ones(1, 2)
    row = table(a=1.0, **{missing.replace("h", "c"): 0.5})
    others = {name: x for name in HISTORY if name != missing}
    for function in (ops.step_x0, reference.step_x0):
        for given in ({}, others):
            x_next, x0 = function(x, x, row, ROW, **given)
            assert x_next.isnan().all()
            assert not x0.isnan().any()  # it does not depend on earlier ones
        assert torch.equal(function(x, x, row, ROW, **{missing: x})[0], torch.full_like(x, 1.5))
        assert function(x, x, row, torch.tensor(1))[0].isnan().all()  # outside the table


def test_reference_gradient_does_not_see_the_noise_of_a_quiet_row():
    x, out = torch.randn(2, 3), torch.randn(2, 6)
    row = table(p=1.0, q=-0.5, a=0.3, b=0.6)
    arguments = (torch.ones(2, 3), None, x, out, row, ROW)
    for mine, theirs in zip(
        ops.library.step_backward_op(*arguments), reference.step_backward(*arguments), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


# torch 2.13 compiles its own forward-mode decompositions with what it calls deprecated.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_forward_mode_goes_through_plain_torch():
    x, out, tangent = (torch.randn(2, 3, dtype=torch.float64) for _ in range(3))
    row = table(p=1.5, q=-0.5, a=0.25, b=0.5)
    with forward_ad.dual_level():
        dual = ops.step(forward_ad.make_dual(x, tangent), out, row, ROW)
        found = forward_ad.unpack_dual(dual).tangent
    assert found is not None
    torch.testing.assert_close(found, tangent * (0.25 + 0.5 * 1.5))


def test_functional_gradient():
    x, out = torch.randn(2, 3), torch.randn(2, 3)
    row = table(p=1.5, q=-0.5, a=0.25, b=0.5)
    gradient = torch.func.grad(lambda a: ops.step(a, out, row, ROW).sum())(x)
    torch.testing.assert_close(gradient, torch.full_like(x, 0.25 + 0.5 * 1.5))


def test_refused_operands():
    memory = torch.zeros(40)
    x, out = memory[:16].view(2, 8), torch.zeros(2, 8)
    with pytest.raises(ValueError, match="step: target must be x or share no memory"):
        ops.step(x, out, table(a=1.0), ROW, target=memory[4:20].view(2, 8))


def test_second_derivatives_are_refused_not_zero():
    x, out = torch.randn(2, 3), torch.randn(2, 3)
    row = table(p=1.5, q=-0.5, a=0.25, b=0.5)

    def first(a):
        return torch.func.grad(lambda b: (ops.step(b, out, row, ROW) ** 2).sum())(a)

    with pytest.raises(RuntimeError, match="step: derivatives must be of first order"):
        torch.func.grad(lambda a: (first(a) ** 2).sum())(x)


def test_forward_mode_does_not_ignore_a_target():
    x = torch.randn(2, 3)
    with forward_ad.dual_level():
        plain = ops.step(x, x, table(a=0.5), ROW, target=torch.empty_like(x))
        assert torch.equal(plain, 0.5 * x)
        dual = forward_ad.make_dual(x, x)
        with pytest.raises(ValueError, match="step: target must be None in forward mode"):
            ops.step(dual, x, table(a=0.5), ROW, target=torch.empty_like(x))
        model = fs.Denoiser(lambda x, t: x, fs.NoiseSchedule.linear(), (3,))
        with pytest.raises(ValueError, match="must have no forward-mode tangent"):
            fs.sample(model, 2, start=dual)


def test_every_operand_is_looked_at_for_overlap():
    memory = torch.zeros(3, 8)
    x, out = torch.zeros(2, 8), torch.zeros(2, 8)
    with pytest.raises(ValueError, match="share no memory with the operands"):
        ops.step(x, out, table(a=1.0), ROW, uncond=memory[:2], target=memory[1:])
