# ruff: noqa: E501
"""What a `training_step` may change where no attribute of a module shows it, or torch doesn't count it."""

from __future__ import annotations

import contextvars
import csv
import functools
import io
import itertools
import logging
import queue
import random
import sqlite3
import sys
import tempfile
import threading
import types

import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torchmetrics import MetricTracker
from torchmetrics.classification import MulticlassAccuracy

from tests.callbacks.multipass.state import far_away
from tests.callbacks.multipass.state.changes import Change, call, data

ids = itertools.count()
depth = contextvars.ContextVar("depth", default=0)


class Descriptor:
    """Which holds the values itself, not in the objects."""

    def __init__(self):
        self.values = {}

    def __get__(self, owner, kind=None):
        return self if owner is None else self.values.get(id(owner), 0)

    def __set__(self, owner, value):
        self.values[id(owner)] = value


class Described:
    n = Descriptor()


@functools.cache
def drawn(size):
    """No function of its argument alone."""
    return float(torch.rand(()))


@functools.lru_cache
def settings(name):
    """Made once, and changed."""
    return {"n": 0}


@functools.cache
def generator_of(name):
    return random.Random(0)


def database(module):
    connection = sqlite3.connect(":memory:")
    connection.execute("create table seen (n int)")
    return connection


def draw_of_spawned(module, batch):
    batch[0].add_(float(module.it.spawn(1)[0].normal()))


def draw_of_the_data(module, batch):
    of_data = data(module)
    of_data.draws = getattr(of_data, "draws", None) or random.Random(0)
    batch[0].add_(0.01 * of_data.draws.random())


class Entry:
    __slots__ = ("before",)

    def __init__(self, before):
        self.before = before


def length_of(entry):
    return 0 if entry is None else 1 + length_of(entry.before)


class Rated:
    @functools.lru_cache(maxsize=2, typed=True)  # noqa: B019
    def rate(self, size):
        return float(torch.rand(()))


class Singleton(type):
    """Of which one instance is kept."""

    def __init__(cls, *args):
        super().__init__(*args)
        cls.made = []

    def __call__(cls):
        if not cls.made:
            cls.made.append(super().__call__())
        return cls.made[0]


class Registry(metaclass=Singleton):
    def __init__(self):
        self.n = 0


class Numbered:
    __slots__ = ("ids",)

    def __init__(self):
        self.ids = itertools.count()


class Gathers(logging.Handler):
    """Held by a logger of the standard library only."""

    def emit(self, record):
        sys._tests_lines = getattr(sys, "_tests_lines", 0) + 1


def log_to_a_handler(module):
    logger = logging.getLogger("tests.hidden")
    logger.propagate, logger.handlers, sys._tests_lines = False, [Gathers()], 0


def next_of_default(numbers=itertools.count()):  # noqa: B008
    return next(numbers)


def in_closure(numbers):
    return lambda: next(numbers)


def bump_far_away(module, batch):
    from tests.callbacks.multipass.state import far_away

    batch[0].add_(0.01 * far_away.bump())


def count_on_the_weight(module, batch):
    weight = module.net[1].weight
    weight.uses = getattr(weight, "uses", 0) + 1
    batch[0].add_(0.01 * weight.uses)


def state_of(module):
    return module.trainer.optimizers[0].state[module.net[1].weight]


def halve_in_the_state(module, batch):
    if "mine" in state_of(module):
        state_of(module)["mine"].mul_(0.5)
    else:
        state_of(module)["mine"] = torch.ones(2)


def halve_the_momentum(module, batch):
    if state_of(module).get("momentum_buffer") is not None:
        state_of(module)["momentum_buffer"].mul_(0.5)


def in_inference_mode(module):
    with torch.inference_mode():
        return torch.zeros(2)


def add_in_inference_mode(module, batch):
    with torch.inference_mode():
        module.it.add_(1)


def one_entry():
    return torch.sparse_coo_tensor([[0]], [1.0], (3,))


def append_to_file(module, batch):
    with open(module.it, "a") as file:
        file.write("x")


def write_by_pathlib(module, batch):
    import pathlib

    pathlib.Path(module.it).write_text("x")


def scale_the_gradient(module, batch):
    if module.net[1].weight.grad is not None:
        module.net[1].weight.grad.mul_(0.5)


def forget_the_gradient(module, batch):
    module.net[1].weight.grad = None


def count_in_metrics(module, batch):
    metrics = module.trainer.callback_metrics
    metrics["mine"] = metrics.get("mine", torch.zeros(())) + 1
    batch[0].add_(0.01 * metrics["mine"])


def add_parameter(module, batch):
    module.it[f"p{len(module.it)}"] = nn.Parameter(torch.zeros(1))


HIDDEN = {
    "generator's bound method": Change(lambda m: random.Random(0).random, lambda m, b: b[0].add_(m.it()), lambda m: m.it.__self__.getstate()),
    "list's bound method": Change(lambda m: [].append, lambda m, b: m.it(1), lambda m: len(m.it.__self__)),
    "settings in a cache": Change(lambda m: settings.cache_clear(), lambda m, b: (settings("a").update(n=settings("a")["n"] + 1), b[0].add_(0.01 * settings("a")["n"])), lambda m: settings("a")["n"]),
    "generator in a cache": Change(lambda m: generator_of.cache_clear(), lambda m, b: b[0].add_(0.01 * generator_of("a").random()), lambda m: generator_of("a").getstate()),
    "generators spawned of numpy's": Change(lambda m: np.random.Generator(np.random.SFC64(0)), draw_of_spawned, lambda m: m.it.bit_generator.seed_seq.n_children_spawned),
    "numpy's bit generator": Change(lambda m: np.random.PCG64(0), lambda m, b: b[0].add_(float(np.random.Generator(m.it).normal())), lambda m: m.it.state["state"]),
    "sampler with a generator": Change(lambda m: torch.utils.data.RandomSampler(range(6), generator=torch.Generator().manual_seed(0)), lambda m, b: b[0].add_(0.01 * list(m.it).pop()), lambda m: m.it.generator.get_state().tolist()),
    "loader with a generator": Change(lambda m: torch.utils.data.DataLoader(range(6), shuffle=True, generator=torch.Generator().manual_seed(0)), lambda m, b: b[0].add_(0.01 * next(iter(m.it))), lambda m: m.it.generator.get_state().tolist()),
    "generator of the operating system": Change(lambda m: random.SystemRandom(), call("random"), None),
    "quasi-random numbers": Change(lambda m: torch.quasirandom.SobolEngine(1), lambda m, b: b[0].add_(float(m.it.draw())), lambda m: m.it.num_generated),
    "generator of the data": Change(lambda m: None, draw_of_the_data, lambda m: data(m).draws.getstate()),
    "linked list": Change(lambda m: None, lambda m, b: setattr(m, "it", Entry(m.it)), lambda m: length_of(m.it)),
    "database": Change(database, lambda m, b: m.it.execute("insert into seen values (1)"), None, refused=True),
    "tracker of metrics": Change(lambda m: MetricTracker(MulticlassAccuracy(3)), lambda m, b: (m.it.increment(), m.it.update(torch.zeros(len(b[1]), 3), b[1])), lambda m: (m.it.n_steps, len(m.it))),
    "values of a descriptor": Change(lambda m: Described(), lambda m, b: setattr(m.it, "n", m.it.n + 1), lambda m: m.it.n),
    "the one instance of a class": Change(lambda m: Registry.made.clear(), lambda m, b: (setattr(Registry(), "n", Registry().n + 1), b[0].add_(0.01 * Registry().n)), lambda m: Registry().n),
    "function with a cache": Change(lambda m: drawn.cache_clear(), lambda m, b: (b[0].add_(0.01 * drawn(len(b[0]))), setattr(m, "it", drawn.cache_info().currsize)), lambda m: m.it),
    "cache that the module holds": Change(lambda m: functools.lru_cache(4)(lambda *, size: float(torch.rand(()))), lambda m, b: b[0].add_(0.01 * m.it(size=len(b[0]))), lambda m: m.it.cache_info().currsize),
    "method with a cache": Change(lambda m: (Rated.rate.cache_clear(), Rated())[1], lambda m, b: (b[0].add_(0.01 * m.it.rate(len(b[0]))), setattr(m.it, "n", Rated.rate.cache_info().currsize)), lambda m: m.it.n),
    "context variable": Change(lambda m: depth.set(0) and None, lambda m, b: (depth.set(depth.get() + 1), b[0].add_(0.01 * depth.get())), lambda m: depth.get()),
    "context variable without a value": Change(lambda m: contextvars.ContextVar("nameless"), call("set", 1), None, refused="sets the context variable 'nameless'"),
    "module that the step imports": Change(lambda m: far_away.COUNTS.clear(), bump_far_away, lambda m: dict(far_away.COUNTS)),
    "read-only view of a dictionary": Change(lambda m: types.MappingProxyType({"n": [0]}), lambda m, b: m.it["n"].append(1), lambda m: len(m.it["n"])),
    "values of a dictionary": Change(lambda m: {"n": [0]}.values(), lambda m, b: [v.append(1) for v in m.it], lambda m: [len(v) for v in m.it]),
    "semaphore": Change(lambda m: threading.Semaphore(0), call("release"), lambda m: m.it._value),
    "queue in C": Change(lambda m: queue.SimpleQueue(), call("put", 1), None, refused=True),
    "attribute of a weight": Change(lambda m: None, count_on_the_weight, lambda m: m.net[1].weight.uses),
    "tensor in the optimizer's state": Change(lambda m: None, halve_in_the_state, lambda m: state_of(m)["mine"].tolist()),
    "momentum": Change(lambda m: None, halve_the_momentum, lambda m: state_of(m)["momentum_buffer"].tolist()),
    "gradient, in place": Change(lambda m: None, scale_the_gradient, None, refused="changes the gradient of 'net.1.weight'"),
    "gradient, forgotten": Change(lambda m: None, forget_the_gradient, None),
    "attribute of the Trainer's loop": Change(lambda m: None, lambda m, b: setattr(m.trainer.fit_loop, "mine", getattr(m.trainer.fit_loop, "mine", 0) + 1), lambda m: m.trainer.fit_loop.mine),
    "metrics of the Trainer": Change(lambda m: None, count_in_metrics, lambda m: float(m.trainer.callback_metrics["mine"])),
    "tensor of inference mode": Change(in_inference_mode, add_in_inference_mode, lambda m: m.it.tolist()),
    "sparse tensor": Change(lambda m: one_entry(), lambda m, b: m.it.add_(one_entry()), lambda m: m.it.to_dense().tolist()),
    "view of a buffer": Change(lambda m: (m.register_buffer("table", torch.zeros(4)), m.table[1:2])[1], call("add_", 1), lambda m: m.table.tolist()),
    "dictionary of parameters grows": Change(lambda m: nn.ParameterDict(), add_parameter, lambda m: sorted(m.it.keys())),
    "rows of a csv file": Change(lambda m: csv.writer(setattr(m, "rows", io.StringIO()) or m.rows), lambda m, b: m.it.writerow([1]), lambda m: m.rows.getvalue()),
    "logger of one's own": Change(lambda m: CSVLogger(tempfile.mkdtemp()), lambda m, b: m.it.log_metrics({"a": 1.0}, m.global_step), lambda m: len(m.it.experiment.metrics)),
    "lines logged by Python": Change(log_to_a_handler, lambda m, b: logging.getLogger("tests.hidden").error("x"), lambda m: sys._tests_lines),
    "file that is opened": Change(lambda m: tempfile.mktemp(), append_to_file, None, refused="opens the file"),
    "file written by pathlib": Change(lambda m: tempfile.mktemp(), write_by_pathlib, None, refused="opens the file"),
    "iterator in a slot": Change(lambda m: Numbered(), lambda m, b: next(m.it.ids), None, refused=r"iterator 'Changes\.it\.ids'"),
    "iterator in a tuple": Change(lambda m: ("a", (itertools.count(),)), lambda m, b: next(m.it[1][0]), None, refused=r"iterator 'Changes\.it\[1\]\[0\]'"),
    "iterator in a closure": Change(lambda m: in_closure(itertools.count()), lambda m, b: m.it(), None, refused=r"iterator 'Changes\.it\.numbers'"),
    "iterator in a partial": Change(lambda m: functools.partial(next, itertools.count()), lambda m, b: m.it(), None, refused=True),
    "iterator in a default": Change(lambda m: None, lambda m, b: next_of_default(), None, refused="iterator 'next_of_default"),
    "iterator in a set": Change(lambda m: {itertools.count()}, lambda m, b: next(next(iter(m.it))), None, refused=True),
    "iterator's bound method": Change(lambda m: itertools.count().__next__, lambda m, b: m.it(), None, refused=True),
    "global iterator": Change(lambda m: None, lambda m, b: next(ids), None, refused="iterator 'ids'"),
    "iterator at two places": Change(lambda m: setattr(m, "also", itertools.count()) or m.also, lambda m, b: next(m.also), None, refused="takes items from the iterator"),
}  # fmt: skip
