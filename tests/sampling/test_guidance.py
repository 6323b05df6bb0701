"""Classifier-free guidance: one call of 2B, u + w (c - u), per row, with any condition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids
from tests.helpers.networks import LINEAR, Spy, denoiser, per_sample

SHAPE = (2, 3)


def labelled(x, t, y):
    """An output that depends on x, t and one number per sample."""
    return 0.4 * x + per_sample(t, x) * 2.0**-10 + 0.25 * per_sample(y, x)


def labelled_wide(x, t, y):
    return torch.cat((labelled(x, t, y), 0.1 * x + 0.2 * per_sample(y, x)), dim=1)


def draw(network=labelled, steps=4, **options):
    variance = "learned_range" if network is labelled_wide else "small"
    model = network if isinstance(network, fs.Denoiser) else denoiser(network, *SHAPE)
    if variance != "small":
        model = denoiser(network, *SHAPE, variance=variance)
    return fs.sample(model, steps, seed=3, dtype=torch.float64, **options)


METHODS = {
    "ddim": {},
    "eta": {"eta": 0.8, "clip": 1.0},
    "ancestral": {"method": "ancestral"},
    "learned": {"network": labelled_wide, "method": "ancestral"},
    "learned, ddim": {"network": labelled_wide},
}


@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_scale_1_is_the_conditional_model(options):
    cond = {"y": [1.0, -2.0, 5.0]}
    guided = draw(guidance=1.0, cond=cond, uncond={"y": 0.0}, **options)
    torch.testing.assert_close(guided, draw(cond=cond, **options), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [v for k, v in METHODS.items() if k != "learned"])
def test_scale_0_is_the_unconditional_model(options):
    cond, absent = {"y": [1.0, -2.0, 5.0]}, {"y": 0.5}
    guided = draw(guidance=0.0, cond=cond, uncond=absent, **options)
    plain = draw(cond=absent, num_samples=3, **options)
    torch.testing.assert_close(guided, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("w", [2.5, -1.0, [0.0, 7.5, 1.0, 3.0]], ids=str)
@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_the_formula_row_by_row(w, options):
    """Against a model that does the mixing itself, with the variance of the conditional half."""
    cond, absent = torch.tensor([1.0, -2.0, 5.0]).double(), torch.tensor([0.5, 0.0, 1.0]).double()
    scales = iter(np.broadcast_to(w, 4).tolist())
    options = dict(options)
    network = options.pop("network", labelled)

    def mixing(x, t):
        c, u = network(x, t, cond), network(x, t, absent)
        m = u[:, :2] + next(scales) * (c[:, :2] - u[:, :2])
        return torch.cat((m, c[:, 2:]), dim=1)

    guided = draw(network, guidance=w, cond={"y": cond}, uncond={"y": absent}, **options)
    learned = "learned_range" if network is labelled_wide else "small"
    model = denoiser(mixing, *SHAPE, variance=learned)
    mixed = fs.sample(model, 4, seed=3, dtype=torch.float64, num_samples=3, **options)
    torch.testing.assert_close(guided, mixed, rtol=1e-12, atol=1e-12)


def test_one_call_with_the_unconditional_half_first():
    spy = Spy(labelled)
    draw(spy, steps=4, guidance=[2, 1, 3, 0], cond={"y": [4, 5]}, uncond={"y": [0, 1]})
    assert spy.batches == [4, 2, 4, 4]  # scale 1 is the conditional output alone
    assert spy.conditions.pop(1)["y"].tolist() == [4, 5]
    del spy.inputs[1], spy.told[1]
    for x, t, given in zip(spy.inputs, spy.told, spy.conditions, strict=True):
        assert torch.equal(x[:2], x[2:])
        assert len(set(t.tolist())) == 1
        assert given["y"].tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize(
    "scale", [3, 3.0, np.float32(3), np.full(4, 3.0), torch.tensor(3.0), [3.0] * 4]
)
def test_scales_of_any_kind(scale):
    options = {"cond": {"y": 1}, "uncond": {"y": 0}}
    assert torch.equal(draw(guidance=scale, **options), draw(guidance=3.0, **options))


@pytest.mark.parametrize(
    "value",
    [[2, 2], 2, torch.tensor([2, 2]), torch.tensor(2), np.array([2, 2]), np.int64(2)],
    ids=repr,
)
def test_conditions_as_number_list_or_tensor(value):
    spy = Spy(labelled)
    got = draw(spy, num_samples=2, cond={"y": value})
    assert [list(given["y"].shape) for given in spy.conditions] == [[2]] * 4
    assert torch.equal(got, draw(cond={"y": torch.tensor([2, 2])}))
    guided = draw(num_samples=2, guidance=2.0, cond={"y": value}, uncond={"y": 0})
    assert torch.equal(guided, draw(guidance=2.0, cond={"y": [2, 2]}, uncond={"y": [0, 0]}))


def test_conditions_of_any_shape_and_dtype():
    def network(x, t, text, mask, mode, scale):
        assert text.shape[1:] == (5, 4)
        assert mask.dtype == torch.bool
        assert (mode, scale) == ("exact", None)
        return x * per_sample(text.sum((1, 2)) + mask.sum(1), x)

    generator = torch.Generator().manual_seed(0)
    text = torch.randn(3, 5, 4, generator=generator)
    shared = {"mode": "exact", "scale": None}
    got = draw(
        network,
        guidance=2.0,
        cond={"text": text, "mask": torch.ones(3, 2, dtype=torch.bool), **shared},
        uncond={
            "text": torch.zeros(3, 5, 4),
            "mask": torch.zeros(3, 2, dtype=torch.bool),
            **shared,
        },
    )
    assert got.shape == (3, *SHAPE)


def test_the_models_own_uncond_is_the_default():
    model = denoiser(labelled, *SHAPE, uncond={"y": 7.0})
    given = {"cond": {"y": [1.0, 2.0]}, "seed": 0}
    own = fs.sample(model, 3, guidance=2.0, **given)
    assert torch.equal(own, fs.sample(model, 3, guidance=2.0, uncond={"y": 7.0}, **given))
    other = fs.sample(model, 3, guidance=2.0, uncond={"y": 0.0}, **given)
    assert not torch.equal(own, other)
    # Without guidance it is not used.
    assert torch.equal(
        fs.sample(model, 3, **given), fs.sample(denoiser(labelled, *SHAPE), 3, **given)
    )


def test_the_models_uncond_is_a_copy():
    absent = {"y": 7.0}
    model = denoiser(labelled, *SHAPE, uncond=absent)
    absent["y"] = 0.0
    assert model.uncond == {"y": 7.0}


def test_guidance_on_a_plan_overrides_its_scales():
    plan = fs.ddim(LINEAR, grids.uniform(1000, 4))
    options = {"cond": {"y": [1.0]}, "uncond": {"y": 0.0}}
    once = draw(steps=plan, guidance=3.0, **options)
    assert torch.equal(draw(steps=plan.with_guidance(9.0), guidance=3.0, **options), once)
    assert plan.column("w").tolist() == [1.0] * 4


def test_a_sample_keeps_its_identity_under_guidance():
    options = {"guidance": 2.0, "uncond": {"y": 0.0}, "eta": 1.0}
    whole = draw(cond={"y": [1.0, 2.0, 3.0]}, **options)
    one = draw(cond={"y": [3.0]}, sample_index=[2], **options)
    assert torch.equal(one[0], whole[2])


def test_an_empty_batch():
    assert draw(num_samples=0, guidance=2.0, cond={"y": 1}, uncond={"y": 0}).shape == (0, *SHAPE)


# ---- what does not fit

Y0, Y1 = {"y": 0.0}, {"y": 1.0}
WRONG = {
    "no uncond": (
        {"guidance": 2.0, "cond": Y1},
        ValueError,
        r"sample: uncond must be given with guidance, got None; it holds",
    ),
    "no guidance": (
        {"cond": Y1, "uncond": Y0},
        ValueError,
        r"sample: guidance must be given with uncond, got None",
    ),
    "no cond": (
        {"guidance": 2.0, "uncond": Y0},
        ValueError,
        r"sample: cond must have the names of uncond \['y'\], got \[\]",
    ),
    "other names": (
        {"guidance": 2.0, "cond": {"z": 1}, "uncond": Y0},
        ValueError,
        r"sample: cond must have the names of uncond \['y'\], got \['z'\]",
    ),
    "too many scales": (
        {"guidance": [1.0] * 5, "cond": Y1, "uncond": Y0},
        ValueError,
        r"sample: guidance must be one number or one per row \(4,\), got shape \(5,\)",
    ),
    "a scale that is no number": (
        {"guidance": "strong", "cond": Y1, "uncond": Y0},
        TypeError,
        r"sample: guidance must hold real numbers, got ",
    ),
    "a scale that is not finite": (
        {"guidance": float("nan"), "cond": Y1, "uncond": Y0},
        ValueError,
        r"sample: guidance must be finite, got nan",
    ),
    "cond no mapping": (
        {"cond": [1.0, 2.0]},
        TypeError,
        r"sample: cond must be a mapping of keyword arguments, got list",
    ),
    "cond a tensor": (
        {"cond": torch.ones(3)},
        TypeError,
        r"sample: cond must be a mapping of keyword arguments, got Tensor",
    ),
    "uncond no mapping": (
        {"guidance": 2.0, "cond": Y1, "uncond": [0.0]},
        TypeError,
        r"sample: uncond must be a mapping of keyword arguments, got list",
    ),
    "cond of another length": (
        {"cond": {"y": [1, 2], "z": [1, 2, 3]}},
        ValueError,
        r"sample: cond\['z'\] must have one entry per sample \(2\), got 3",
    ),
    "cond and num_samples": (
        {"cond": {"y": [1, 2]}, "num_samples": 3},
        ValueError,
        r"sample: num_samples must be one number, got \{'num_samples': 3, 'cond': 2\}",
    ),
    "uncond of another length": (
        {"guidance": 2.0, "cond": {"y": [1, 2]}, "uncond": {"y": [0, 0, 0]}},
        ValueError,
        r"sample: uncond\['y'\] must have one entry per sample \(2\), got 3",
    ),
    "entries of another shape": (
        {"guidance": 2.0, "cond": {"y": torch.ones(2, 4)}, "uncond": {"y": torch.ones(2, 5)}},
        ValueError,
        r"sample: cond\['y'\] must have the entries of uncond \(5,\), got \(4,\)",
    ),
    "different options": (
        {"guidance": 2.0, "cond": {"y": "cat"}, "uncond": {"y": ""}},
        ValueError,
        r"sample: cond\['y'\] must be a tensor, or equal in cond and uncond",
    ),
}


@pytest.mark.parametrize(("options", "error", "match"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused(options, error, match):
    with pytest.raises(error, match=match):
        fs.sample(lambda x, t, **_: 0.5 * x, 4, shape=SHAPE, **options)
