"""Splitting a batch: what the sub-batch passes receive, how parts are weighted, what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from lightning_fisher import FisherRegularizer
from tests.callbacks.tiny import (
    Classifier,
    CountingClassifier,
    Ledger,
    conv_bn_net,
    image_batches,
    mlp,
    seeded,
    sgd,
)
from tests.reference.regularized_training import train

N, M = 8, 4
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 2
TABLE = torch.arange(5.0)  # a first size that is not N: class weights, anchors, ...


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@dataclasses.dataclass
class Sample:
    x: torch.Tensor
    y: torch.Tensor
    source: str = "a file"


class Spy(LightningModule):
    """Trains a linear map of whatever ``find_x`` takes out of the batch; keeps every batch it is given."""

    def __init__(self, find_x):
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.find_x = find_x
        self.received = Ledger()

    def training_step(self, batch, batch_idx):
        self.received.append(batch)
        return self.linear(self.find_x(batch)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def part_of(value, rows):
    """What a part of the batch must be: sample-sized tensors and lists cut, everything else whole."""
    if isinstance(value, torch.Tensor):
        return value[rows] if value.dim() and len(value) == N else value
    if dataclasses.is_dataclass(value):
        fields = {f.name: part_of(getattr(value, f.name), rows) for f in dataclasses.fields(value)}
        return type(value)(**fields)
    if isinstance(value, dict):
        return {key: part_of(item, rows) for key, item in value.items()}
    if isinstance(value, Pair):
        return Pair(*(part_of(item, rows) for item in value))
    if isinstance(value, list) and len(value) == N:
        return value[rows]
    if isinstance(value, (tuple, list)):
        return type(value)(part_of(item, rows) for item in value)
    return value


def same(a: Any, b: Any) -> bool:
    """Equal in type, structure and values."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(i, j) for i, j in zip(a, b, strict=True))
    return a == b


NESTED = {"images": {"x": X, "sizes": [(1, 2)] * N}, "labels": (Y, [Y, Y]), "table": TABLE}

BATCHES = {
    "tensor": (X, lambda batch: batch),
    "tuple": ((X, Y), lambda batch: batch[0]),
    "list": ([X, Y], lambda batch: batch[0]),
    "namedtuple": (Pair(X, Y), lambda batch: batch.x),
    "dict": ({"x": X, "y": Y}, lambda batch: batch["x"]),
    "dataclass": (Sample(X, Y), lambda batch: batch.x),
    "nested": (NESTED, lambda batch: batch["images"]["x"]),
    "names of samples": ({"x": X, "name": [f"image {i}" for i in range(N)]}, lambda batch: batch["x"]),
    "ragged samples": ({"x": X, "boxes": [torch.ones(i, 4) for i in range(N)]}, lambda batch: batch["x"]),
    "table, scalars, None": ((X, TABLE, torch.tensor(2.0), 3, 0.5, "text", None), lambda batch: batch[0]),
}


@pytest.mark.parametrize("name", BATCHES)
def test_parts_of_a_batch(fit, name):
    """Consecutive parts of equal structure, in order, each given twice; then the batch itself."""
    batch, find_x = BATCHES[name]
    module = Spy(find_x)
    fit(module, [batch], FisherRegularizer(1.0, num_sub_batches=M, start=0))
    *parts, whole = module.received
    assert same(whole, batch)
    expected = [part_of(batch, slice(i * 2, i * 2 + 2)) for i in range(M)]
    assert len(parts) == 2 * M
    for wanted in expected:
        assert sum(same(part, wanted) for part in parts) == 2, wanted


def test_two_samples_in_a_list_of_two_tensors(fit):
    """``[x, y]`` of default_collate with N = 2 is a batch of two tensors, not a list of two samples."""
    module = Spy(lambda batch: batch[0])
    batch = [X[:2], Y[:2]]
    fit(module, [batch], FisherRegularizer(1.0, num_sub_batches=2, start=0))
    parts = module.received[:-1]
    for i in range(2):
        assert sum(same(part, [X[i : i + 1], Y[i : i + 1]]) for part in parts) == 2


def images(n):
    return list(torch.randn(n, 3, 5, 5, generator=torch.Generator().manual_seed(0)))


def boxes(n):
    return [{"boxes": torch.ones(1 + i % 3, 4), "labels": torch.ones(1 + i % 3)} for i in range(n)]


# uncollated batches of n samples, and how their inputs are found
LISTS = {
    "images": (images, torch.stack),
    "pairs": (lambda n: list(zip(X[:n], Y[:n], strict=True)), lambda b: torch.stack([x for x, _ in b])),
    "dicts": (lambda n: [{"x": x} for x in X[:n]], lambda b: torch.stack([sample["x"] for sample in b])),
    "images and boxes": (lambda n: (images(n), boxes(n)), lambda b: torch.stack(b[0])),
    "dict of lists": (lambda n: {"x": images(n), "boxes": boxes(n)}, lambda b: torch.stack(b["x"])),
}


@pytest.mark.parametrize(("name", "n"), [(name, 8) for name in LISTS] + [("images and boxes", 2), ("dict of lists", 2)])
def test_lists_of_samples_are_never_cut_across(fit, name, n):
    """Parts of whole samples, or an error that says ``split_fn``; never slices of every sample."""
    make, find_x = LISTS[name]
    module, batch = Spy(lambda batch: find_x(batch).flatten(1)[:, :3]), make(n)
    try:
        fit(module, [batch], FisherRegularizer(1.0, num_sub_batches=2, start=0))
    except Exception as error:
        assert "split_fn" in str(error), error  # noqa: PT017
        return
    for rows in (slice(0, n // 2), slice(n // 2, n)):
        if isinstance(batch, dict):
            wanted = {key: value[rows] for key, value in batch.items()}
        else:
            wanted = tuple(value[rows] for value in batch) if isinstance(batch, tuple) else batch[rows]
        assert sum(same(part, wanted) for part in module.received) == 2, module.received[0]


@pytest.mark.parametrize("net", [mlp, conv_bn_net])
@pytest.mark.parametrize("sizes", [[16, 13], [7]])
def test_unequal_parts_are_weighted_by_their_size(fit, assert_close_states, net, sizes):
    """A last smaller batch: parts of ``ceil`` and ``floor`` N/M samples, R the mean over samples."""
    batches = image_batches(sizes)
    regularizer = FisherRegularizer(5.0, num_sub_batches=3, start=0)
    got = fit(Classifier(seeded(net)), batches, regularizer, max_epochs=2, precision="64-true")
    expected = train(seeded(net), batches, epochs=2, optimizer=sgd, beta=5.0, start=0, num_sub_batches=3)
    assert_close_states(got.states, expected.states)


def test_the_last_of_equal_batches_is_split_like_the_others(fit, assert_close_states):
    """12 samples in 8 parts, in every batch of the epoch."""
    batches = image_batches([12] * 3)
    regularizer = FisherRegularizer(5.0, start=0)
    got = fit(Classifier(seeded(mlp)), batches, regularizer, precision="64-true")
    expected = train(seeded(mlp), batches, epochs=1, optimizer=sgd, beta=5.0, start=0, num_sub_batches=8)
    assert_close_states(got.states, expected.states)


@pytest.mark.parametrize(("last", "parts"), [(5, [3, 2]), (3, [3]), (2, [2]), (1, [1])])
def test_a_last_batch_too_small_for_the_parts(fit, last, parts):
    """The end of an epoch is no reason to stop: fewer parts, of two samples at least (batch-norm)."""
    module = CountingClassifier(seeded(mlp))
    fit(module, image_batches([16, last]), FisherRegularizer(1.0, num_sub_batches=4, start=0))
    assert module.calls[0] == [4] * 8 + [16]
    assert sorted(module.calls[1][:-1]) == sorted(parts * 2)
    assert module.calls[1][-1] == last


def test_split_fn_decides(fit, assert_close_states):
    """``split_fn(batch, num_sub_batches)`` gives the parts; here interleaved ones."""
    (x, y), asked = image_batches([16])[0], []

    def split_fn(batch, num_sub_batches):
        asked.append((len(batch[1]), num_sub_batches))
        return [(batch[0][i::num_sub_batches], batch[1][i::num_sub_batches]) for i in range(num_sub_batches)]

    regularizer = FisherRegularizer(5.0, num_sub_batches=4, start=0, split_fn=split_fn)
    got = fit(Classifier(seeded(mlp)), [(x, y)], regularizer, precision="64-true")
    order = torch.cat([torch.arange(16)[i::4] for i in range(4)])
    expected = train(seeded(mlp), [(x[order], y[order])], epochs=1, optimizer=sgd, beta=5.0, start=0)
    assert asked == [(16, 4)] * 2  # once to see that it works
    assert_close_states(got.states, expected.states)


class OnPacked(LightningModule):
    """A recurrent net on packed sequences of different lengths."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.rnn = nn.RNN(3, 4)
        self.received = Ledger()

    def training_step(self, batch, batch_idx):
        sequences, y = batch
        self.received.append(batch)
        _, last = self.rnn(sequences)
        return F.cross_entropy(last[0], y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_packed_sequences_are_repacked_or_refused(fit):
    """Cutting the packed data itself would give other sequences: the right parts, or an error with the remedy."""
    sequences = [X[: 1 + i % 4] + i for i in range(N)]
    module = OnPacked()
    batch = (pack_sequence(sequences, enforce_sorted=False), Y)
    try:
        fit(module, [batch], FisherRegularizer(1.0, num_sub_batches=M, start=0))
    except Exception as error:
        assert "split_fn" in str(error)  # noqa: PT017
        return
    *parts, _ = module.received
    seen = set()
    for packed, y in parts:
        assert isinstance(packed, PackedSequence)
        padded, lengths = pad_packed_sequence(packed)
        assert len(lengths) == len(y) == N // M
        seen.update((int(n), round(float(padded[0, j].sum()), 4)) for j, n in enumerate(lengths))
    assert seen == {(len(s), round(float(s[0].sum()), 4)) for s in sequences}


@pytest.mark.parametrize("size", [1, 3])
def test_fewer_samples_than_parts_is_refused(fit, size):
    """Never empty parts, never a silently different M."""
    module = Classifier(seeded(mlp))
    before = [parameter.clone() for parameter in module.parameters()]
    with pytest.raises(Exception, match="num_sub_batches") as caught:
        fit(module, image_batches([size]), FisherRegularizer(1.0, num_sub_batches=4, start=0))
    assert str(size) in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


class Opaque:
    def __init__(self, x):
        self.x = x


@pytest.mark.parametrize(
    ("batch", "find_x"),
    [
        (Opaque(X), lambda batch: batch.x),
        ({"path": "a file"}, lambda batch: X),
        (torch.tensor(1.0), lambda batch: X),
        ((X, Opaque(Y)), lambda batch: batch[0] * len(batch[1].x)),
    ],
    ids=["object", "no tensor", "scalar", "object inside"],
)
def test_what_cannot_be_split_is_refused(fit, batch, find_x):
    """One line that names the remedy, ``split_fn``, instead of a regularizer of something else."""
    with pytest.raises(Exception, match="split_fn") as caught:
        fit(Spy(find_x), [batch], FisherRegularizer(1.0, num_sub_batches=M, start=0))
    assert "\n" not in str(caught.value).strip()
    module = Spy(find_x)
    fit(module, [batch])
    assert len(module.received) == 1  # fine without the callback
