"""Conditions: any nesting, lists, shared values; sliced, repeated, doubled, dropped as a whole."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.normalise import batch_size_of
from tests.helpers.networks import LINEAR
from tests.helpers.refusals import check_refusal, refusals

CPU = torch.device("cpu")
TEXTS = [torch.arange(n, dtype=torch.float32) for n in (5, 2, 3, 7)]
TABLE = torch.arange(6.0).reshape(3, 2)


class Pair(NamedTuple):
    one: object
    two: object


def nested() -> dict:
    return {
        "added": {"text": torch.arange(8.0).reshape(4, 2), "sizes": ([1, 2, 3, 4], 0.5)},
        "texts": list(TEXTS),
        "pair": Pair(torch.arange(4), "mode"),
        "ids": fs.shared(TABLE),
        "scale": 3,
        "flag": True,
        "absent": None,
    }


def same(one, other) -> bool:
    """Equal trees, tensors by value and dtype."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return torch.is_tensor(one) and torch.is_tensor(other) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return one == other


def expected(rows: list[int]) -> dict:
    """What the network is passed for samples of these numbers, written out by hand."""
    n = len(rows)
    return {
        "added": {
            "text": torch.arange(8.0).reshape(4, 2)[rows],
            "sizes": (torch.tensor([1, 2, 3, 4])[rows], torch.full((n,), 0.5)),
        },
        "texts": [TEXTS[i] for i in rows],
        "pair": Pair(torch.arange(4)[rows], "mode"),
        "ids": TABLE,
        "scale": torch.full((n,), 3),
        "flag": True,
        "absent": None,
    }


def test_the_network_is_passed_what_was_given():
    conditions = Conditions("test", nested(), batch=4, device=CPU)
    assert same(conditions.arguments, expected([0, 1, 2, 3]))
    assert Conditions("test", nested()).batch == batch_size_of(nested()) == 4


@pytest.mark.parametrize(
    ("index", "rows"),
    [(slice(1, 3), [1, 2]), (np.array([3, 0, 3]), [3, 0, 3]), (slice(2, None), [2, 3])],
)
def test_parts_hold_the_entries_of_their_samples(index, rows):
    conditions = Conditions("test", nested(), batch=4)
    assert same(conditions.select(index).arguments, expected(rows))
    assert conditions.select(index).batch == len(rows)


def test_a_part_has_as_many_entries_as_samples():
    conditions = Conditions("test", nested())
    assert same(conditions.part(1, torch.zeros(2, 3)).arguments, expected([1, 2]))
    with pytest.raises(
        ValueError, match=r"cond\['added'\]\['text'\] must have one entry per.*\(3\)"
    ):
        conditions.part(2, torch.zeros(3, 3))
    conditions.check_count(4)
    with pytest.raises(ValueError, match=r"must have one entry per sample \(9\), got 4"):
        conditions.check_count(9)


def test_repeated_samples_come_all_of_them_each_time():
    conditions = Conditions("test", nested(), batch=4)
    assert same(conditions.repeat(2).arguments, expected([0, 1, 2, 3, 0, 1, 2, 3]))
    assert conditions.repeat(1) is conditions


def test_what_is_given_can_be_given_again():
    first = Conditions("test", nested(), batch=4)
    again = Conditions("test", first.select(slice(1, 3)).mapping, batch=2)
    assert same(again.arguments, expected([1, 2]))


def test_guidance_doubles_every_leaf_the_unconditional_half_first():
    absent = {
        "added": {"text": torch.full((4, 2), -1.0), "sizes": ([0, 0, 0, 0], 0.0)},
        "texts": [torch.zeros(1)],  # one entry stands for all
        "pair": Pair(torch.full((1,), 9), "mode"),
        "scale": 0,
        "flag": True,
        "absent": None,
    }  # "ids" is shared, and may be left out
    conditions = Conditions("test", nested(), absent, batch=4, device=CPU)
    got = conditions.select(slice(1, 3)).arguments
    assert same(got["added"]["text"], torch.tensor([[-1.0, -1], [-1, -1], [2, 3], [4, 5]]))
    assert same(got["added"]["sizes"][1], torch.tensor([0.0, 0.0, 0.5, 0.5]))
    assert same(got["texts"], [torch.zeros(1), torch.zeros(1), TEXTS[1], TEXTS[2]])
    assert same(got["pair"], Pair(torch.tensor([9, 9, 1, 2]), "mode"))
    assert same(got["ids"], TABLE)
    assert same(conditions.conditional.arguments, expected([0, 1, 2, 3]))
    assert conditions.guided
    assert not conditions.conditional.guided


def test_dropped_conditions_are_the_unconditional_ones():
    given = {"y": [1, 2, 3], "added": {"text": torch.ones(3, 2)}, "texts": TEXTS[:3]}
    absent = {"y": 0, "added": {"text": torch.zeros(2)}, "texts": [torch.zeros(1)]}
    lost = torch.tensor([True, False, True])
    got = Conditions("test", given, batch=3).replaced(lost, absent).arguments
    assert got["y"].tolist() == [0, 2, 0]
    assert got["added"]["text"].tolist() == [[0, 0], [1, 1], [0, 0]]
    assert same(got["texts"], [torch.zeros(1), TEXTS[1], torch.zeros(1)])


def test_every_tensor_is_found():
    inner = torch.ones(3, requires_grad=True)
    given = {"a": {"b": (inner,)}, "c": [inner, inner], "d": fs.shared({"e": [inner]}), "f": "x"}
    conditions = Conditions("test", {**given, "c": [inner] * 3}, batch=3)
    assert sum(t is inner for t in conditions.tensors()) == 5


# ---- in use


def added(x, t, added_cond_kwargs):
    """SDXL's UNet takes ``added_cond_kwargs={"text_embeds": ..., "time_ids": ...}``."""
    return x * added_cond_kwargs["text_embeds"].mean(1).reshape(-1, 1, 1, 1)


def texts(x, t, texts):
    """Z-Image, Qwen and Lumina take one text per sample, of different lengths."""
    return x * torch.stack([value.mean() for value in texts]).reshape(-1, 1, 1, 1)


def embeds(value, count=3):
    return {
        "added_cond_kwargs": {
            "text_embeds": torch.full((count, 8), value),
            "time_ids": torch.zeros(count, 6),
        }
    }


@pytest.mark.parametrize("guidance", [None, 5.0])
def test_nested_conditions_are_sampled_with(guidance):
    model = fs.Denoiser(added, LINEAR, (4, 8, 8), uncond=embeds(0.1, 1))
    plain = fs.Denoiser(lambda x, t, s: x * s.reshape(-1, 1, 1, 1), LINEAR, (4, 8, 8))
    got = fs.sample(model, 4, num_samples=3, seed=0, cond=embeds(0.25), guidance=guidance)
    given = {"cond": {"s": torch.full((3,), 0.25)}}
    if guidance:
        given |= {"guidance": guidance, "uncond": {"s": torch.full((3,), 0.1)}}
    torch.testing.assert_close(got, fs.sample(plain, 4, num_samples=3, seed=0, **given))


@pytest.mark.filterwarnings("ignore:.* data must be on the decoder's bins:UserWarning")
@pytest.mark.parametrize("guidance", [None, 3.0])
def test_lists_of_different_lengths_are_sampled_and_profiled_with(guidance):
    flow = fs.NoiseSchedule.flow()
    model = fs.Denoiser(texts, flow, (2, 3, 3), prediction="flow", time="fraction", clip=1.0)
    cond = {"texts": [torch.randn(n, 4) for n in (9, 6, 2)]}
    absent = {"texts": [torch.zeros(1, 4)] * 3}
    options = {} if guidance is None else {"guidance": guidance, "uncond": absent}
    options["seed"] = 0
    whole = fs.sample(model, 4, cond=cond, **options)
    one = {"texts": cond["texts"][1:2]}
    if guidance:
        options["uncond"] = {"texts": absent["texts"][:1]}
    torch.testing.assert_close(
        fs.sample(model, 4, cond=one, sample_index=[1], **options), whole[1:2]
    )
    x0 = torch.rand(3, 2, 3, 3) * 2 - 1
    measure = {"times": [0.3, 0.8], "trajectories": 2, "cond": cond}
    parts = fs.profile(model, x0, batch_size=2, **measure)
    for name, value in fs.profile(model, x0, **measure).arrays().items():
        np.testing.assert_allclose(parts.arrays()[name], value, rtol=1e-6, atol=1e-9)


def test_shared_tables_are_the_same_for_every_sample():
    seen = []

    def network(x, t, ids, y):
        seen.append((len(x), tuple(ids.shape), y.tolist()))
        return x * 0.1

    model = fs.Denoiser(network, LINEAR, (2,), uncond={"y": 0})
    cond = {"ids": fs.shared(TABLE), "y": [1, 2]}
    fs.sample(model, 2, cond=cond, guidance=2.0)
    fs.tune(model, 2, samples=16, teacher_steps=4, max_runs=1, cond={**cond, "y": 3}, guidance=2.0)
    assert {shape for _, shape, _ in seen} == {(3, 2)}
    assert seen[0] == (4, (3, 2), [0, 0, 1, 2])


# ---- what is refused


def conditions(cond, uncond=None, batch=2):
    return lambda: Conditions("sample", cond, uncond, batch, CPU)


WRONG = {
    "a list": (conditions([1, 2]), TypeError, "cond must be a mapping of keyword arg.*, got list"),
    "uncond": (conditions({}, 3), TypeError, "uncond must be a mapping of keyword .*, got int"),
    "nested count": (
        conditions({"a": {"b": torch.zeros(3)}}),
        ValueError,
        r"cond\['a'\]\['b'\] must have one entry per sample \(2\), got 3",
    ),
    "in a tuple": (
        conditions({"a": (torch.zeros(2), torch.zeros(5))}),
        ValueError,
        r"cond\['a'\]\[1\] must have one entry per sample \(2\), got 5",
    ),
    "list count": (
        conditions({"a": ["x", "y", "z"]}),
        ValueError,
        r"cond\['a'\] must have one entry per sample \(2\), got 3",
    ),
    "uncond count": (
        conditions({"a": [1, 2]}, {"a": [1, 2, 3]}),
        ValueError,
        r"uncond\['a'\] must have one entry per sample \(2\), got 3",
    ),
    "mixed list": (
        conditions({"a": [1, None]}),
        TypeError,
        r"cond\['a'\] must hold numbers or none in a list, got \[1, None\]",
    ),
    "ragged": (conditions({"a": [[1], [1, 2]]}), TypeError, r"cond\['a'\] must hold numbers, got"),
    "names": (conditions({"a": 1}, {"b": 1}), ValueError, r"names of uncond \['b'\], got \['a'\]"),
    "inner names": (
        conditions({"a": {"b": 1}}, {"a": {"c": 1}}),
        ValueError,
        r"cond\['a'\] must have the same names in cond and uncond, got \['b'\] and \['c'\]",
    ),
    "structure": (
        conditions({"a": {"b": 1}}, {"a": 1}),
        ValueError,
        r"cond\['a'\] must have the same structure in cond and uncond, got dict and Tensor",
    ),
    "shape": (
        conditions({"a": {"b": torch.zeros(2, 3)}}, {"a": {"b": torch.zeros(2, 4)}}),
        ValueError,
        r"cond\['a'\]\['b'\] must have the entries of uncond \(4,\), got \(3,\)",
    ),
    "flag": (
        conditions({"a": "x"}, {"a": "y"}),
        ValueError,
        r"cond\['a'\] must be a tensor, or equal in cond and uncond",
    ),
}


@refusals(wrong=WRONG)
def test_refused(call, error, match):
    check_refusal(call, error, match)


# ---- what no condition means


@pytest.mark.parametrize(
    ("labels", "absent"),
    [
        (np.arange(3, dtype=np.uint8), -1),
        (np.arange(3, dtype=np.uint8), 1000),
        ([1, 2, 3], -0.5),
        (np.array([True, False, True]), 2),
    ],
    ids=["negative", "too large", "fraction", "bool"],
)
def test_an_uncond_that_the_labels_dtype_cannot_hold_is_refused_everywhere(labels, absent):
    """Cast for training and promoted for sampling it would be two different values."""
    with pytest.raises(ValueError, match=r"\['y'\] must have an uncond that torch.* exactly"):
        _ = Conditions("test", {"y": labels}, {"y": absent}, batch=3).arguments
    with pytest.raises(ValueError, match=r"\['y'\] must have an uncond that torch.* exactly"):
        Conditions("test", {"y": labels}, batch=3).replaced(
            torch.tensor([True, False, True]), {"y": absent}
        )


def test_labels_keep_their_dtype_under_guidance():
    given = {"y": np.arange(3, dtype=np.uint8), "z": torch.zeros(3, dtype=torch.float16)}
    both = Conditions("test", given, {"y": 10.0, "z": 0.1}, batch=3).arguments
    assert both["y"].dtype == torch.uint8
    assert both["y"].tolist() == [10, 10, 10, 0, 1, 2]
    assert both["z"].dtype == torch.float16  # floating conditions round


def test_shared_values_may_be_left_out_of_uncond_at_any_depth():
    given = {"a": {"y": [1, 2], "table": fs.shared(np.arange(4))}, "b": fs.shared("x")}
    conditions = Conditions("test", given, {"a": {"y": 0}}, batch=2)
    assert conditions.arguments["a"]["y"].tolist() == [0, 0, 1, 2]
    assert conditions.arguments["b"] == "x"
    dropped = conditions.conditional.replaced(torch.tensor([True, False]), {"a": {"y": 0}})
    assert dropped.arguments["a"]["y"].tolist() == [0, 2]
    # The same array in both is the same value.
    array = fs.shared(np.arange(4))
    twice = Conditions("test", {"y": [1], "s": array}, {"y": 0, "s": array}, batch=1)
    assert twice.arguments["s"] is array.value


def test_arrays_in_lists_are_copies():
    entries = [np.arange(3.0), np.arange(2.0)[::-1]]
    got = Conditions("test", {"a": entries}, batch=2).arguments["a"]
    entries[0][:] = -1.0
    assert got[0].tolist() == [0, 1, 2]
    assert got[1].tolist() == [1, 0]
