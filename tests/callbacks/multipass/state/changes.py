# ruff: noqa: E501
"""What a `training_step` may change besides its weights: one attribute of each common kind."""

from __future__ import annotations

import array
import collections
import copy
import ctypes
import dataclasses
import enum
import functools
import io
import itertools
import multiprocessing
import random
import threading
import types
import weakref
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.utils.prune
from torch import nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from tests.callbacks.tiny import Tick


@dataclasses.dataclass
class Meter:
    total: float = 0.0
    seen: list = dataclasses.field(default_factory=list)


class Slotted:
    __slots__ = ("count", "late")

    def __init__(self):
        self.count = 0


class Nested:
    def __init__(self):
        self.inner = types.SimpleNamespace(counts=collections.Counter(), table=np.zeros(3), rng=random.Random(0))


class Counts:
    n = 0


TABLE = {"n": 0}  # a global variable that is changed
NUMBER = 0  # and one that is set


def count_globally():
    global NUMBER
    TABLE["n"] += 1
    NUMBER += 1
    return TABLE["n"]


def reset_globals(module):
    global NUMBER
    TABLE["n"] = NUMBER = 0


def closure():
    n, seen = 0, []

    def count():
        nonlocal n
        n += 1
        seen.append(n)
        return n, len(seen)

    return count


def replacing_closure():
    """One whose variable is set to another list."""
    seen = []

    def count():
        nonlocal seen
        seen = [*seen, 1]
        return len(seen)

    return count


def with_default(item, seen=[]):  # noqa: B006
    seen.append(item)
    return len(seen)


def remembers(function):
    """A cache of one's own."""
    found = {}

    @functools.wraps(function)
    def cached(key):
        if key not in found:
            found[key] = function(key)
        return found[key]

    cached.found = found
    return cached


def add_global_count(module, batch):
    batch[0].add_(0.01 * count_globally())


def every_third_step(module, batch):
    """A target network that is copied now and then, for the first time after the first steps."""
    module.steps = getattr(module, "steps", 0) + 1
    if module.steps % 3 == 0:
        module.it.load_state_dict(module.net.state_dict())


class Gathering(torch.optim.SGD):
    """An optimizer that keeps statistics of its own, which hooks on layers would fill."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)
        self.gathered = {}


def gathered(module):
    return module.trainer.optimizers[0].gathered


def data(module):
    """What a curriculum would change: attributes of the sampler."""
    return module.trainer.train_dataloader.sampler


def prepare_data(module):
    vars(data(module)).update(
        mine=[],
        long=[0] * 5000,
        array=np.zeros(30_000),
        tensor=torch.zeros(30_000),
        nested={"a": [torch.zeros(2)]},
    )


def late(change):
    def later(module, batch):
        if module.global_step > 2:
            change(module, batch)

    return later


def fill_by_sample(module, batch):
    """One list a sample; there are thousands of them once the first steps are over."""
    if module.global_step > 1 and len(module.it) < 2000:
        module.it.update((key, [0]) for key in range(2000))
    module.it.setdefault(module.global_step, []).append(len(batch[1]))


def register_gradient_hook(module, batch):
    module.net[1].weight.register_hook(lambda gradient: 0.5 * gradient)


class Phase(enum.Enum):
    WARM = 1
    HOT = 2


class Averaged(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = copy.deepcopy(net)


class Change(NamedTuple):
    """How it is made, changed in the step, and read afterwards (``None``: it shows in the weights); what is refused."""

    make: Any
    change: Any
    read: Any
    refused: bool | str = False


def plus(name, amount=1):
    return lambda module, batch: setattr(module, name, getattr(module, name) + amount)


def value(module):
    return module.it


def call(method, *args):
    return lambda module, batch: getattr(module.it, method)(*args)


def lerp(target, source):
    with torch.no_grad():
        for a, b in zip(target.parameters(), source.parameters(), strict=True):
            a.lerp_(b, 0.1)


def through_data(target, source):
    for a, b in zip(target.parameters(), source.parameters(), strict=True):
        a.data = 0.9 * a.data + 0.1 * b.data


def weights(target):
    return [p.detach().clone() for p in target.parameters()]


def held_in_a_list(module):
    return [copy.deepcopy(module.net)]


def update_metric(module, batch):
    module.it[0].update(batch[0].mean())


CHANGES = {
    "int": Change(lambda m: 0, plus("it"), value),
    "float": Change(lambda m: 1.0, lambda m, b: setattr(m, "it", m.it * 0.9), value),
    "str": Change(lambda m: "", plus("it", "x"), value),
    "bool": Change(lambda m: True, lambda m, b: setattr(m, "it", not m.it), value),
    "complex": Change(lambda m: 1j, lambda m, b: setattr(m, "it", m.it * 1j), value),
    "bytes": Change(lambda m: b"", plus("it", b"x"), value),
    "None, then something": Change(lambda m: None, lambda m, b: setattr(m, "it", (m.it or 0) + 1), value),
    "enum": Change(lambda m: Phase.WARM, lambda m, b: setattr(m, "it", Phase(3 - m.it.value)), value),
    "numpy number": Change(lambda m: np.float64(1), lambda m, b: setattr(m, "it", m.it * np.float64(0.9)), value),
    "tuple": Change(lambda m: (), lambda m, b: setattr(m, "it", (*m.it, len(b[1]))), value),
    "list": Change(lambda m: [], call("append", 1), lambda m: list(m.it)),
    "nested list": Change(lambda m: [[], {}], lambda m, b: m.it[0].append(1), lambda m: copy.deepcopy(m.it)),
    "deque": Change(lambda m: collections.deque(maxlen=3), lambda m, b: m.it.append(len(m.it) + sum(m.it)), list_of := lambda m: list(m.it)),
    "list, popped": Change(lambda m: list(range(99)), call("pop"), list_of),
    "dict": Change(lambda m: {"n": 0}, lambda m, b: m.it.update(n=m.it["n"] + 1), lambda m: dict(m.it)),
    "defaultdict": Change(lambda m: collections.defaultdict(int), lambda m, b: m.it.__setitem__("n", m.it["n"] + 1), lambda m: dict(m.it)),
    "Counter": Change(lambda m: collections.Counter(), lambda m, b: m.it.update(b[1].tolist()), lambda m: dict(m.it)),
    "OrderedDict": Change(lambda m: collections.OrderedDict(a=0, b=1), lambda m, b: m.it.move_to_end(next(iter(m.it))), lambda m: list(m.it)),
    "UserDict": Change(lambda m: collections.UserDict(n=0), lambda m, b: m.it.update(n=m.it["n"] + 1), lambda m: dict(m.it)),
    "set": Change(lambda m: set(), lambda m, b: m.it.add(len(m.it)), lambda m: set(m.it)),
    "bytearray": Change(lambda m: bytearray(1), lambda m, b: m.it.__setitem__(0, (m.it[0] + 1) % 256), lambda m: bytes(m.it)),
    "array.array": Change(lambda m: array.array("i", [0]), lambda m, b: m.it.__setitem__(0, m.it[0] + 1), lambda m: m.it.tolist()),
    "numpy array": Change(lambda m: np.zeros(3), lambda m, b: np.add.at(m.it, b[1].numpy(), 1), lambda m: m.it.tolist()),
    "large numpy array": Change(lambda m: np.zeros(200_000), lambda m, b: m.it.__setitem__(0, m.it[0] + 1), lambda m: m.it[0]),
    "numpy array of objects": Change(lambda m: np.array([[], 0, None], dtype=object), lambda m, b: (m.it[0].append(1), m.it.__setitem__(1, m.it[1] + 1)), lambda m: m.it.tolist()),
    "dataclass": Change(lambda m: Meter(), lambda m, b: (setattr(m.it, "total", m.it.total + 1), m.it.seen.append(1)), lambda m: dataclasses.asdict(m.it)),
    "slots": Change(lambda m: Slotted(), lambda m, b: setattr(m.it, "count", m.it.count + 1), lambda m: m.it.count),
    "slot that is set in the step": Change(lambda m: Slotted(), lambda m, b: setattr(m.it, "late", getattr(m.it, "late", 0) + 1), lambda m: m.it.late),
    "nested object": Change(lambda m: Nested(), lambda m, b: (m.it.inner.counts.update("a"), m.it.inner.table.__iadd__(1)), lambda m: (dict(m.it.inner.counts), m.it.inner.table.tolist())),
    "namespace": Change(lambda m: types.SimpleNamespace(n=0), lambda m, b: setattr(m.it, "n", m.it.n + 1), lambda m: m.it.n),
    "class": Change(lambda m: type("Box", (), {"n": 0}), lambda m, b: setattr(m.it, "n", m.it.n + 1), lambda m: m.it.n),
    "new attribute": Change(lambda m: 0, lambda m, b: setattr(m, "new", getattr(m, "new", 0) + 1), lambda m: m.new),
    "hyperparameter": Change(lambda m: m.save_hyperparameters({"tau": 1.0}), lambda m, b: m.hparams.update(tau=m.hparams.tau * 0.9), lambda m: m.hparams.tau),
    "tensor, replaced": Change(lambda m: torch.zeros(3), lambda m, b: setattr(m, "it", m.it + 1), lambda m: m.it.tolist()),
    "tensor, in place": Change(lambda m: torch.zeros(3), call("add_", 1), lambda m: m.it.tolist()),
    "tensor in a list, in place": Change(lambda m: [torch.zeros(3)], lambda m, b: m.it[0].add_(1), lambda m: m.it[0].tolist()),
    "target network": Change(lambda m: copy.deepcopy(m.net), lambda m, b: lerp(m.it, m.net), lambda m: weights(m.it)),
    "frozen target network": Change(lambda m: copy.deepcopy(m.net).requires_grad_(False), lambda m, b: lerp(m.it, m.net), lambda m: weights(m.it)),
    "target network through .data": Change(lambda m: copy.deepcopy(m.net), lambda m, b: through_data(m.it, m.net), lambda m: weights(m.it)),
    "target network in a list": Change(held_in_a_list, lambda m, b: lerp(m.it[0], m.net), lambda m: weights(m.it[0])),
    "torch's AveragedModel": Change(lambda m: torch.optim.swa_utils.AveragedModel(m.net), lambda m, b: m.it.update_parameters(m.net), lambda m: weights(m.it)),
    "clamped weights": Change(lambda m: 0, lambda m, b: [p.data.clamp_(-0.2, 0.2) for p in m.net.parameters()], lambda m: weights(m.net)),
    "requires_grad": Change(lambda m: 0, lambda m, b: m.net[1].bias.requires_grad_(False), lambda m: m.net[1].bias.requires_grad),
    "training mode": Change(lambda m: nn.Dropout(0.5), lambda m, b: m.it.train(not m.it.training), lambda m: m.it.training),
    "buffer": Change(lambda m: m.register_buffer("buf", torch.zeros(())), lambda m, b: m.buf.add_(1), lambda m: m.buf.item()),
    "metric in a list": Change(lambda m: [MeanMetric()], update_metric, lambda m: m.it[0].update_count),
    "metric collection in a dict": Change(lambda m: {"a": MetricCollection([MulticlassAccuracy(3)])}, lambda m, b: m.it["a"].update(torch.eye(3)[b[1]], b[1]), lambda m: m.it["a"].compute()["MulticlassAccuracy"].item()),
    "metric in a list, through .data": Change(lambda m: [MeanMetric()], lambda m, b: m.it[0].mean_value.data.add_(1), lambda m: m.it[0].mean_value.item()),
    "buffer replaced, of a module in a list": Change(lambda m: [Tick()], lambda m, b: b[0].add_(0.01 * m.it[0](b[0]).mean()), lambda m: m.it[0].count.item()),
    "torch.Generator": Change(lambda m: torch.Generator().manual_seed(0), lambda m, b: b[0].add_(0.1 * torch.randn(b[0].shape, generator=m.it)), lambda m: m.it.get_state().tolist()),
    "random.Random": Change(lambda m: random.Random(0), lambda m, b: b[0].add_(m.it.random()), lambda m: m.it.getstate()),
    "numpy Generator": Change(lambda m: np.random.default_rng(0), lambda m, b: b[0].add_(float(m.it.random())), lambda m: m.it.bit_generator.state),
    "numpy RandomState": Change(lambda m: np.random.RandomState(0), lambda m, b: b[0].add_(float(m.it.rand())), lambda m: m.it.get_state()[1].tolist()),
    "generator in an object": Change(lambda m: Nested(), lambda m, b: b[0].add_(m.it.inner.rng.random()), lambda m: m.it.inner.rng.getstate()),
    "learning rate": Change(lambda m: 0, lambda m, b: m.optimizers().param_groups[0].update(lr=m.optimizers().param_groups[0]["lr"] * 0.99), lambda m: m.trainer.optimizers[0].param_groups[0]["lr"]),
    "own scheduler": Change(lambda m: {}, lambda m, b: m.it.setdefault("s", torch.optim.lr_scheduler.ExponentialLR(m.trainer.optimizers[0], 0.99)).step(), lambda m: m.it["s"].last_epoch),
    "the Trainer's end": Change(lambda m: 0, lambda m, b: setattr(m.trainer, "should_stop", m.global_step > 2), lambda m: m.global_step),
    "text in memory": Change(lambda m: io.StringIO(), call("write", "x"), lambda m: m.it.getvalue()),
    "function with an attribute": Change(lambda m: setattr(with_default, "n", 0), lambda m, b: setattr(with_default, "n", with_default.n + 1), lambda m: with_default.n),
    "closure": Change(lambda m: closure(), lambda m, b: b[0].add_(0.01 * m.it()[0]), lambda m: m.it()),
    "closure that replaces a list": Change(lambda m: replacing_closure(), lambda m, b: b[0].add_(0.01 * m.it()), lambda m: m.it()),
    "generator in a closure": Change(lambda m: (lambda g: lambda shape: torch.randn(shape, generator=g))(torch.Generator().manual_seed(0)), lambda m, b: b[0].add_(m.it(b[0].shape)), lambda m: m.it(3).tolist()),
    "generator in a partial": Change(lambda m: functools.partial(torch.randn, generator=torch.Generator().manual_seed(0)), lambda m, b: b[0].add_(m.it(b[0].shape)), lambda m: m.it(3).tolist()),
    "mutable default": Change(lambda m: with_default.__defaults__[0].clear(), lambda m, b: b[0].add_(0.01 * with_default(1)), None),
    "own cache": Change(lambda m: remembers(lambda key: float(torch.rand(()))), lambda m, b: b[0].add_(m.it(len(m.it.found) % 2)), lambda m: dict(m.it.found)),
    "global variables": Change(reset_globals, add_global_count, None),
    "attribute of the module's class": Change(lambda m: setattr(type(m), "seen", 0), lambda m, b: (setattr(type(m), "seen", type(m).seen + 1), b[0].add_(0.01 * type(m).seen)), None),
    "generator of the module's class": Change(lambda m: setattr(type(m), "noise", torch.Generator().manual_seed(0)), lambda m, b: b[0].add_(torch.randn(b[0].shape, generator=m.noise)), None),
    "dropout rate": Change(lambda m: m.net.insert(2, nn.Dropout(0.5)), lambda m, b: setattr(m.net[2], "p", m.net[2].p * 0.9), lambda m: m.net[2].p),
    "label smoothing": Change(lambda m: nn.CrossEntropyLoss(label_smoothing=0.5), lambda m, b: setattr(m.it, "label_smoothing", m.it.label_smoothing * 0.9), lambda m: m.it.label_smoothing),
    "forward hook": Change(lambda m: 0, lambda m, b: m.net[1].register_forward_hook(lambda net, x, y: 1.01 * y), lambda m: len(m.net[1]._forward_hooks)),
    "pruning": Change(lambda m: 0, lambda m, b: None if hasattr(m.net[1], "weight_mask") else torch.nn.utils.prune.l1_unstructured(m.net[1], "weight", 0.5), lambda m: m.net[1].weight_mask.tolist()),
    "submodule made in the step": Change(lambda m: None, lambda m, b: None if hasattr(m, "late") else setattr(m, "late", nn.Linear(1, len(b[1]))), lambda m: m.late.out_features),
    "state of the optimizer": Change(lambda m: 0, lambda m, b: m.trainer.optimizers[0].state[m.net[1].weight].update(n=m.trainer.optimizers[0].state[m.net[1].weight].get("n", 0) + 1), lambda m: m.trainer.optimizers[0].state[m.net[1].weight]["n"]),
    "parameter groups": Change(lambda m: 0, lambda m, b: m.trainer.optimizers[0].add_param_group({"params": [nn.Parameter(torch.ones(1))]}), lambda m: len(m.trainer.optimizers[0].param_groups)),
    "attribute of the Trainer": Change(lambda m: 0, lambda m, b: setattr(m.trainer, "mine", getattr(m.trainer, "mine", 0) + 1), lambda m: m.trainer.mine),
    "attribute of the dataset": Change(lambda m: 0, lambda m, b: setattr(m.trainer.train_dataloader, "mine", 1), lambda m: m.trainer.train_dataloader.mine),
    "array far down in a long list": Change(lambda m: [np.zeros(2) for _ in range(2000)], lambda m, b: np.add.at(m.it[1500], 0, 1), lambda m: m.it[1500][0]),
    "bytes far down in a long list": Change(lambda m: [bytearray(2) for _ in range(2000)], lambda m, b: m.it[1500].__setitem__(0, m.it[1500][0] + 1), lambda m: m.it[1500][0]),
    "list of the data": Change(lambda m: 0, lambda m, b: data(m).mine.append(1), lambda m: len(data(m).mine)),
    "list of the data, late": Change(lambda m: 0, late(lambda m, b: data(m).mine.append(1)), lambda m: len(data(m).mine)),
    "long list of the data": Change(lambda m: 0, lambda m, b: data(m).long.__setitem__(7, data(m).long[7] + 1), lambda m: data(m).long[7]),
    "array of the data": Change(lambda m: 0, lambda m, b: np.add.at(data(m).array, 7, 1), lambda m: data(m).array[7]),
    "tensor of the data": Change(lambda m: 0, lambda m, b: data(m).tensor.add_(1), lambda m: float(data(m).tensor.sum())),
    "tensor in a dictionary of the data": Change(lambda m: 0, lambda m, b: data(m).nested["a"][0].add_(1), lambda m: float(data(m).nested["a"][0].sum())),
    "number in an optimizer": Change(lambda m: 0, lambda m, b: gathered(m).__setitem__("n", gathered(m).get("n", 0) + 1), lambda m: gathered(m)["n"]),
    "tensor in an optimizer": Change(lambda m: 0, lambda m, b: gathered(m).__setitem__("t", gathered(m).get("t", 0) + torch.ones(2)), lambda m: gathered(m)["t"].tolist()),
    "c number": Change(lambda m: ctypes.c_int(0), lambda m, b: setattr(m.it, "value", m.it.value + 1), lambda m: m.it.value),
    "number of multiprocessing": Change(lambda m: multiprocessing.Value("i", 0), lambda m, b: setattr(m.it, "value", m.it.value + 1), lambda m: m.it.value),
    "memoryview": Change(lambda m: memoryview(bytearray(1)), lambda m, b: m.it.__setitem__(0, m.it[0] + 1), lambda m: m.it[0]),
    "attribute of a thread": Change(lambda m: threading.local(), lambda m, b: setattr(m.it, "n", getattr(m.it, "n", 0) + 1), lambda m: m.it.n),
    "weak dictionary": Change(lambda m: weakref.WeakKeyDictionary(), lambda m, b: m.it.__setitem__(m.net, m.it.get(m.net, 0) + 1), lambda m: list(m.it.values())),
    "chain of dictionaries": Change(lambda m: collections.ChainMap({"n": 0}), lambda m, b: m.it.__setitem__("n", m.it["n"] + 1), lambda m: m.it["n"]),
    "object far down in a long list": Change(lambda m: [Meter() for _ in range(2000)], lambda m, b: m.it[1500].seen.append(1), lambda m: len(m.it[1500].seen)),
    "number far down in a long list": Change(lambda m: [0] * 30_000, lambda m, b: m.it.__setitem__(15_000, m.it[15_000] + 1), lambda m: m.it[15_000]),
    "thousands of lists by sample": Change(lambda m: {}, fill_by_sample, lambda m: [len(m.it[key]) for key in range(4)]),
    "target network, copied now and then": Change(lambda m: copy.deepcopy(m.net), every_third_step, lambda m: weights(m.it)),
    "weights, set anew late": Change(lambda m: 0, late(lambda m, b: nn.init.constant_(m.net[1].bias, 0.1)), lambda m: weights(m.net)),
    "weights, clamped through .data late": Change(lambda m: 0, late(lambda m, b: m.net[1].weight.data.clamp_(-0.1, 0.1)), lambda m: weights(m.net)),
    "target network, moved through .data late": Change(lambda m: copy.deepcopy(m.net), late(lambda m, b: [p.data.mul_(0.9) for p in m.it.parameters()]), lambda m: weights(m.it)),
    "gradient hook": Change(lambda m: 0, register_gradient_hook, None, refused="registers gradient hooks"),
    "iterator": Change(lambda m: iter(range(10**6)), lambda m, b: next(m.it), None, refused=True),
    "itertools.count": Change(lambda m: itertools.count(), lambda m, b: next(m.it), None, refused=True),
    "python generator": Change(lambda m: (i for i in range(10**6)), lambda m, b: m.it.send(None), None, refused=True),
    "iterator in a dict": Change(lambda m: {"it": itertools.cycle("ab")}, lambda m, b: next(m.it["it"]), None, refused=True),
}  # fmt: skip
