"""Snapshots of buffers and generators that follow each other, as the passes of a regularized step take them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from lightning_fisher.functional.evaluation.state.buffers import BufferSnapshot
from lightning_fisher.functional.evaluation.state.layers import submodules
from lightning_fisher.functional.evaluation.state.random_state import RandomStateSnapshot


class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.frozen = nn.BatchNorm1d(3), nn.Linear(3, 3)
        self.frozen.requires_grad_(False)
        self.body = nn.Linear(3, 30)
        self.register_buffer("count", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("nothing", None)


def replace(module):
    module.count = torch.ones(2, dtype=torch.int64)


def add(module):
    module.register_buffer("more", torch.ones(3))


def other_memory(module):
    module.norm.running_mean.data = torch.full((3,), 2.0)


def grow(module):
    module.count.resize_(5).fill_(3)


def a_layer_more(module):
    module.late = nn.BatchNorm1d(2)


def thaw_and_freeze(module):
    module.frozen.requires_grad_(True)
    module.body.bias.requires_grad_(False)


def nothing(module):
    pass


@pytest.mark.parametrize("change", [nothing, replace, add, other_memory, grow, a_layer_more, thaw_and_freeze])
def test_a_snapshot_after_another_is_of_the_module_as_it_is(change):
    module = Module()
    previous = BufferSnapshot(module)
    change(module)
    expected = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    held = dict(module.named_buffers())
    snapshot = BufferSnapshot(module, previous)
    with torch.no_grad():
        for tensor in module.buffers():
            tensor.add_(1)
        for parameter in module.parameters():
            if not parameter.requires_grad:
                parameter.add_(1)
    module.count = torch.full((7,), 9)
    snapshot.restore()
    assert all(tensor is held[name] for name, tensor in module.named_buffers())
    found = module.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_each_of_several_snapshots_keeps_its_values():
    module = Module()
    first = BufferSnapshot(module)
    module.count += 1
    second = BufferSnapshot(module, first)
    module.count += 1
    first.restore()
    assert module.count.tolist() == [0, 0]
    second.restore()
    assert module.count.tolist() == [1, 1]


def test_submodules_are_those_of_torch_in_the_same_order():
    shared = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    module = nn.ModuleDict(
        {"a": nn.Sequential(nn.Sequential(shared, nn.ReLU())), "b": shared, "c": nn.ModuleList([shared[0], nn.Tanh()])}
    )
    module["a"].register_module("none", None)
    assert submodules(module) == list(module.modules())


@pytest.mark.parametrize(
    "draw", [lambda: torch.rand(1), random.random, lambda: np.random.rand(1), np.random.standard_normal]
)
def test_whether_anything_was_drawn(draw):
    before = RandomStateSnapshot(set())
    assert RandomStateSnapshot(set()).same_as(before)
    assert before.unchanged()
    draw()
    assert not RandomStateSnapshot(set()).same_as(before)
    assert not before.unchanged()
    before.restore()
    assert before.unchanged()
