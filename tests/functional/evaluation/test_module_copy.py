"""A module in float64 for a while: nothing that others hold of it is lost, such as the hooks of DDP."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from lightning_fisher.functional import fisher_log_det
from lightning_fisher.functional.evaluation.module_copy import in_float64
from lightning_fisher.functional.fisher.exact import exact_gamma


def accumulator(parameter: nn.Parameter) -> Any:
    return parameter.view_as(parameter).grad_fn.next_functions[0][0]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


class Held:
    """Holds every gradient accumulator with a hook on it, as `DistributedDataParallel` does."""

    def __init__(self, net: nn.Module) -> None:
        self.calls = 0
        self.nodes = [accumulator(p) for p in net.parameters()]
        for node in self.nodes:
            node.register_hook(self.count)

    def count(self, *gradients: Any) -> None:
        self.calls += 1


def backward(net: nn.Module, x: torch.Tensor) -> None:
    net(x).square().sum().backward()


@pytest.mark.parametrize("held", [True, False])
def test_it_computes_in_float64_and_is_the_same_afterwards(held: bool) -> None:
    net, x = network(), torch.randn(4, 6)
    kept = Held(net) if held else None
    before = copy.deepcopy(net.state_dict())
    parameters = list(net.parameters())
    expected = copy.deepcopy(net).double()(x.double())
    with in_float64(net) as inside:
        torch.testing.assert_close(net(x.double()), expected, rtol=0, atol=0)
        assert [inside(p) is q for p, q in zip(parameters, net.parameters(), strict=True)] == [True] * 4
    assert all(p is q for p, q in zip(parameters, net.parameters(), strict=True))
    for name, value in net.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])
    backward(net, x)
    assert all(p.grad is not None for p in parameters)
    if kept is not None:
        assert kept.calls == len(parameters), "the hooks of whoever held the accumulators were lost"


def test_hooks_on_parameters_are_called_inside() -> None:
    net, x = network(), torch.randn(4, 6)
    kept = Held(net)
    net[0].weight.register_hook(lambda gradient: 2 * gradient)
    with in_float64(net) as inside:
        (doubled,) = torch.autograd.grad(net(x.double()).sum(), [inside(net[0].weight)])
    plain = copy.deepcopy(network()).double()
    (expected,) = torch.autograd.grad(plain(x.double()).sum(), [plain[0].weight])
    torch.testing.assert_close(doubled, 2 * expected)
    assert kept.calls == 0


def test_what_uses_a_held_parameter_elsewhere_gets_nan() -> None:
    """Better than a number without that path."""
    net = network()
    kept, elsewhere = Held(net), net[0].weight
    with in_float64(net):
        assert bool(elsewhere.isnan().all())
    assert not bool(elsewhere.isnan().any())
    assert kept.calls == 0


@pytest.mark.filterwarnings("ignore:The Gram matrix")
@pytest.mark.filterwarnings("ignore:The Fisher information")
@pytest.mark.parametrize("measure", [partial(exact_gamma, rank_policy="pseudo"), fisher_log_det])
def test_measures_leave_the_hooks(measure: Any) -> None:
    """The log-determinant of nearly equal samples is repeated in float64; the exact γ̂ is computed there."""
    net = network()
    kept = Held(net)
    base, small = torch.randn(1, 6), torch.randn(6, 6)
    x, y = base + 1e-3 * small, torch.tensor([0, 1, 2, 0, 1, 2])
    alone = copy.deepcopy(network()).double()
    found, expected = measure(net, x, y), measure(alone, x.double(), y)
    torch.testing.assert_close(*(getattr(value, "log_det", value) for value in (found, expected)), rtol=1e-9, atol=0)
    backward(net, x)
    assert kept.calls == 4
