"""What says how many samples a batch has, and what of it is cut: no votes."""

from __future__ import annotations

import collections
import types

import attrs
import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fisher import FisherRegularizer
from lightning_fisher.callbacks.multipass.batches.cutting import fresh, split_batch
from lightning_fisher.callbacks.multipass.batches.reading import read_batch
from lightning_fisher.callbacks.multipass.batches.structure import BatchError
from tests.callbacks.tiny import Ledger

X, Y = torch.randn(8, 3), torch.arange(8) % 2
IMAGES = [torch.randn(3, 5, 5) for _ in range(8)]


def boxes(count):
    return [{"boxes": torch.ones(1 + i % 3, 4)} for i in range(count)]


@pytest.mark.parametrize(
    ("batch", "expected", "size", "in_lists"),
    [
        ({"a": [X, Y], "b": [X, Y]}, None, 8, False),
        ([[X, Y], [X, Y]], None, 8, False),
        ([[X, X.flip(0)], Y], None, 8, False),  # two views
        ({"labels": [Y.tolist()], "x": [X]}, None, 8, False),
        (IMAGES, None, 8, True),
        (IMAGES[:2], 2, 2, True),  # the loader says so: not three rows of two tensors
        ([X[:2], Y[:2]], 2, 2, False),
        (tuple(zip(*[(image, i) for i, image in enumerate(IMAGES)], strict=True)), None, 8, True),  # zip(*batch)
        ((IMAGES, boxes(8)), None, 8, True),
        ((X, torch.ones(5)), None, 8, False),
        ((torch.ones(5), X, Y), None, 8, False),
        ({"anchors": torch.ones(9, 4), "x": X, "y": Y}, 8, 8, False),
        ((np.zeros((8, 3)), np.zeros(8), np.float64(1), None), None, 8, False),
        ([X[:1], Y[:1]], None, 1, False),
        ([X, Y, torch.ones(5)], None, 8, False),  # fields, not three samples
        ([torch.randn(4, 3), X, torch.randn(5, 3)], None, 3, True),  # point clouds
        ([torch.randn(4, 3), X, torch.randn(5, 3)], 3, 3, True),
        ({"ids": {1, 2}, "x": X, "loss": torch.relu}, None, 8, False),
    ],
)
def test_how_a_batch_is_read(batch, expected, size, in_lists):
    reading = read_batch(batch, expected)
    assert (reading.size, reading.in_lists) == (size, in_lists)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ((torch.randn(5, 8, 3), Y), None),  # time before samples
        ([torch.randn(5, 8, 3), Y], None),
        ((torch.randn(5, 8, 3), torch.zeros(5, 8)), 8),
        ((X, torch.randn(16, 3)), None),  # two sizes in one loader
        ({"anchors": torch.ones(9, 4), "x": X, "y": Y}, None),
        ((X, torch.ones(10, 8)), 8),
    ],
)
def test_ambiguous_ones_are_refused(batch, expected):
    with pytest.raises(BatchError, match="split_fn") as caught:
        read_batch(batch, expected)
    assert "\n" not in str(caught.value)


def test_what_the_first_batch_has_shown_holds_for_a_last_one_of_a_size_by_accident():
    """Five samples are left, and there are five class weights."""
    weights = torch.ones(5)
    first = read_batch((X, Y, weights))
    last = (X[:5], Y[:5], weights)
    parts = split_batch(last, [3, 2], read_batch(last, previous=first))
    assert [len(part[0]) for part in parts] == [3, 2]
    assert all(part[2] is weights for part in parts)


class Encoding(collections.UserDict):
    """As Hugging Face's `BatchEncoding`."""


@pytest.mark.parametrize(
    "batch",
    [
        collections.defaultdict(list, x=X, y=Y),
        collections.OrderedDict(y=Y, x=X),
        collections.UserDict(x=X, y=Y),
        Encoding({"x": X, "y": Y, "ids": None}),
        {"x": X, "numpy": np.arange(8), "scalar": np.float32(3), "none": None, "path": torch.Size([8])},
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_mappings_of_every_class(batch):
    parts = split_batch(batch, [4, 4])
    for index, part in enumerate(parts):
        assert type(part) is type(batch)
        assert list(part) == list(batch)
        assert torch.equal(part["x"], X[4 * index :][:4])
    if isinstance(batch, collections.defaultdict):
        assert parts[0]["new"] == []
        assert "new" not in batch
    if "numpy" in batch:
        assert parts[1]["numpy"].tolist() == [4, 5, 6, 7]
        assert parts[1]["path"] == torch.Size([8])


class Spy(LightningModule):
    def __init__(self):
        super().__init__()
        self.linear, self.received = nn.Linear(3, 1), Ledger()

    def training_step(self, batch, batch_idx):
        self.received.append({key: value if value is None else len(value[0]) for key, value in batch.items()})
        return sum(self.linear(value[0]).square().mean() for value in batch.values() if value is not None)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("mode", ["max_size_cycle", "max_size"])
def test_loaders_of_several_sizes(make_trainer, mode):
    """Each loader's batch is cut by itself; one that is exhausted gives None."""
    data = TensorDataset(torch.randn(64, 3), torch.zeros(64))
    loaders = {"few": DataLoader(torch.utils.data.Subset(data, range(8)), 8), "many": DataLoader(data, 32)}
    module = Spy()
    make_trainer(callbacks=[FisherRegularizer(1.0, num_sub_batches=4, start=0)]).fit(
        module, CombinedLoader(loaders, mode)
    )
    assert module.received[:9] == [{"few": 2, "many": 8}] * 8 + [{"few": 8, "many": 32}]
    few = 2 if mode == "max_size_cycle" else None
    assert module.received[9] == {"few": few, "many": 8}


@attrs.frozen
class Pair:
    """A class of attrs, frozen and with slots."""

    x: torch.Tensor
    y: torch.Tensor
    name: str = "a"


@pytest.mark.parametrize(
    ("batch", "rows"),
    [
        (Pair(X, Y), lambda part: part.x),
        ((X.to_sparse(), Y), lambda part: part[0].to_dense()),
        ((torch.nested.nested_tensor(list(X)), Y), lambda part: torch.stack(part[0].unbind())),
        ({"x": X, "names": frozenset("ab")}, lambda part: part["x"]),
    ],
    ids=["attrs", "sparse", "nested", "set"],
)
def test_batches_of_other_kinds(batch, rows):
    parts = split_batch(batch, [3, 5])
    assert torch.equal(rows(fresh(parts[0])), X[:3])
    assert torch.equal(rows(fresh(parts[1])), X[3:])


def test_what_cannot_be_copied_is_refused():
    with pytest.raises(BatchError, match="can be copied, but a part of it can't be"):
        fresh({"x": X, "more": types.MappingProxyType({})})
