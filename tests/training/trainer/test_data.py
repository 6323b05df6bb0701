"""Batches by number: every sample once per epoch, the same for any number of processes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

import fastsample as fs
from fastsample.training.trainer.data import Batches
from tests.helpers.networks import LINEAR
from tests.helpers.training_cases import tiny

# A worker is forked, which Python 3.12 and later find worth a warning.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def numbered(count):
    """Sample i is (i, -i)."""
    i = torch.arange(float(count))
    return torch.stack([i, -i], dim=1)


def batches_of(count=10, *, data=None, cond=None, model=None, **options):
    given = {"cond_dropout": 0.0, "batch_size": 4, "seed": 0, "workers": 0, "process": (0, 1)}
    data = numbered(count) if data is None else data
    return Batches(model or tiny(), data, cond, **{**given, **options})


def batches(feed, count, first=0):
    return list(itertools.islice(feed.starting_at(first), count))


def numbers(feed, count, first=0):
    return [b.x0[:, 0].long().tolist() for b in batches(feed, count, first)]


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize(("count", "size"), [(12, 4), (10, 4), (7, 8), (3, 20), (1, 4)])
def test_every_epoch_visits_every_sample_once(count, size, world):
    """Across batches and processes, also where a batch is larger than the data."""
    epochs, length = 4, 4 * count // size
    ranks = [
        numbers(batches_of(count, batch_size=size, process=(rank, world)), length + 1)
        for rank in range(world)
    ]
    order = []
    for shares in zip(*ranks, strict=True):
        assert {len(share) for share in shares} == {size // world}
        order += np.stack(shares, axis=1).ravel().tolist()
    for epoch in range(epochs):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))
    if count > 6:
        assert len({tuple(order[e * count : (e + 1) * count]) for e in range(epochs)}) == epochs
    alone = numbers(batches_of(count, batch_size=size), length + 1)
    assert order == list(itertools.chain(*alone))


def test_the_order_is_the_seed_s_and_needs_no_past():
    one, again, other = (numbers(batches_of(50, seed=seed), 20) for seed in (0, 0, 1))
    assert one == again != other
    assert numbers(batches_of(50), 5, first=15) == one[15:]


class Items(Dataset):
    def __init__(self, form, count=10) -> None:
        self.x0, self.form = numbered(count), form

    def __len__(self):
        return len(self.x0)

    def __getitem__(self, i):
        x0 = self.x0[i]
        return {"x": x0, "xy": {"x0": x0, "y": i, "z": x0 / 2}, "pair": (x0, i)}[self.form]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("form", ["x", "xy"])
def test_data_sets_give_what_tensors_give(form, workers):
    labels = {"y": torch.arange(10), "z": numbered(10) / 2} if form == "xy" else None
    expected = batches(batches_of(cond=labels), 6, first=2)
    got = batches(batches_of(data=Items(form), workers=workers), 6, first=2)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one.x0, other.x0)
        mine, theirs = one.cond.arguments, other.cond.arguments
        assert mine.keys() == theirs.keys() == (labels or {}).keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


class Texts(Dataset):
    """Items with a string, tensors of different lengths, and a nested number."""

    def __len__(self):
        return 10

    def __getitem__(self, i):
        text = torch.arange(float(i % 3 + 1))
        return {"x0": numbered(10)[i], "name": f"n{i}", "text": text, "more": {"y": i, "z": (i,)}}


def test_items_may_hold_any_conditions():
    for batch in batches(batches_of(data=Texts()), 3):
        numbers = batch.x0[:, 0].long().tolist()
        cond = batch.cond.arguments
        assert cond["name"] == [f"n{i}" for i in numbers]
        assert [len(text) for text in cond["text"]] == [i % 3 + 1 for i in numbers]
        assert cond["more"]["y"].tolist() == cond["more"]["z"][0].tolist() == numbers


@pytest.mark.parametrize("process", [(0, 1), (1, 2)])
def test_conditions_follow_their_sample(process):
    many = {"y": torch.arange(10), "z": np.arange(10.0), "w": list(range(10)), "one": 3}
    for batch in batches(batches_of(cond=many, process=process), 6):
        own = batch.x0[:, 0]
        assert torch.equal(batch.cond.arguments["y"], own.long())
        assert torch.equal(batch.cond.arguments["z"], own.double())
        assert torch.equal(batch.cond.arguments["w"], own.long())
        assert torch.equal(batch.cond.arguments["one"], torch.full_like(own.long(), 3))


def test_a_share_of_the_conditions_is_dropped():
    model = tiny(labels=11)  # 10 means none
    options = {"cond": {"y": torch.arange(10)}, "model": model, "batch_size": 10}
    whole = batches(batches_of(cond_dropout=0.3, **options), 200)
    share = torch.cat([batch.cond.arguments["y"] == 10 for batch in whole]).float().mean()
    assert float(share) == pytest.approx(0.3, abs=0.04)
    for batch in whole:
        kept = batch.cond.arguments["y"] != 10
        assert torch.equal(batch.cond.arguments["y"][kept], batch.x0[kept, 0].long())
    # The same samples lose it in two processes, and in a run that is taken up again.
    for rank in (0, 1):
        part = batches(batches_of(cond_dropout=0.3, process=(rank, 2), **options), 5, first=7)
        for own, batch in zip(part, whole[7:], strict=False):
            assert torch.equal(own.cond.arguments["y"], batch.cond.arguments["y"][rank::2])
    everything = batches(batches_of(cond_dropout=1.0, **options), 3)
    assert all(bool((batch.cond.arguments["y"] == 10).all()) for batch in everything)


EMBEDDED = torch.arange(30.0).reshape(10, 3)


def vectors(uncond):
    return fs.Denoiser(lambda x, t, y: x, LINEAR, (2,), uncond={"y": uncond})


@pytest.mark.parametrize(
    "uncond",
    [
        torch.full((3,), -1.0),
        torch.full((1, 3), -1.0),
        -1,
        np.float32(-1),
        np.full(3, -1),
        [-1.0] * 3,
    ],
    ids=["entry", "batch of one", "number", "scalar", "array", "list"],
)
def test_dropped_conditions_of_several_numbers(uncond):
    """What stands for none is one entry, of a sample or of a batch of one."""
    feed = batches_of(cond={"y": EMBEDDED}, model=vectors(uncond), cond_dropout=0.5)
    lost = []
    for batch in batches(feed, 5):
        own = 3 * batch.x0[:, :1] + torch.arange(3.0)
        lost.append((batch.cond.arguments["y"] == -1).all(1))
        assert torch.equal(batch.cond.arguments["y"][~lost[-1]], own[~lost[-1]])
    assert 0 < torch.cat(lost).sum() < 20


@pytest.mark.parametrize("shape", [(4, 3), (2,), (3, 1), (1, 1, 3)])
def test_what_stands_for_none_has_the_shape_of_an_entry(shape):
    with pytest.raises(
        ValueError, match=r"uncond\['y'\] must have the shape of one .* \(3,\), got"
    ):
        batches_of(cond={"y": EMBEDDED}, model=vectors(torch.zeros(shape)), cond_dropout=0.5)


@pytest.mark.parametrize("form", ["tensor", "items"])
def test_names_of_dropped_conditions_are_checked_at_once(form):
    items = {"data": Items("xy")} if form == "items" else {"cond": {"y": EMBEDDED, "z": 1}}
    message = r"cond must have the names of the model's uncond \['y'\] with .*, got \['y', 'z'\]"
    with pytest.raises(ValueError, match=message):
        batches_of(model=vectors(0), cond_dropout=0.5, **items)
    batches_of(model=vectors(0), **items)  # without dropping they do not matter
    with pytest.raises(ValueError, match=r"with cond_dropout, got \[\]"):
        batches_of(model=vectors(0), cond_dropout=0.5)
    with pytest.raises(TypeError, match=r"uncond\['y'\] must hold numbers .*, got None"):
        batches_of(model=vectors(None), cond_dropout=0.5, cond={"y": EMBEDDED})


class Arrays(Dataset):
    """Items with NumPy arrays."""

    def __len__(self):
        return 10

    def __getitem__(self, i):
        return {"x0": np.array([i, -i], dtype=np.float32), "y": np.int64(i)}


def test_tensor_data_sets_and_arrays():
    for data in (TensorDataset(numbered(10)), Arrays()):
        got, expected = (batches(feed, 4) for feed in (batches_of(data=data), batches_of()))
        assert all(torch.equal(one.x0, other.x0) for one, other in zip(got, expected, strict=True))
    assert all(torch.equal(batch.cond.arguments["y"], batch.x0[:, 0].long()) for batch in got)


def test_pairs_are_refused_with_a_word_on_mappings():
    message = 'data must have items that are tensors or mappings with "x0", got tuple'
    for data in (Items("pair"), TensorDataset(numbered(10), torch.arange(10))):
        with pytest.raises(TypeError, match=message):
            batches_of(data=data)
