"""What ``docs/other-methods.md`` says a step costs, by counting floating-point operations."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lightning_fisher.functional import (
    difference_penalty_gradient,
    fisher_penalty_gradient,
    flat_minimum_penalty,
    gradient_norm_penalty_gradient,
    jacobian_penalty,
    large_margin_loss,
    regularized_gradient,
    sharpness_aware_gradient,
)
from lightning_fisher.layers import convert_ghost_batch_norm
from lightning_fisher.optimizers import EntropySGD, PathSGD
from tests.docs.pages import DOCS

PAGE = (DOCS / "other-methods.md").read_text(encoding="utf-8")
PRICES = dict(re.findall(r"^\| [^|]* \| `(\w+)` \| ([^|]*) \|", PAGE, re.MULTILINE))
X, Y = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10


class Operations(TorchDispatchMode):
    """Counts multiplications and additions of matrix products and convolutions."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def operations(function: Callable[[], Any]) -> int:
    with Operations() as count:
        function()
    return count.total


def network(norm: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def price(function: Callable[[nn.Module, Tensor], Any], net: nn.Module | None = None, x: Tensor = X) -> float:
    """Operations of ``function(net, x)`` in those of a plain step."""
    net = network() if net is None else net
    return operations(lambda: function(net, x)) / operations(lambda: cross_entropy(net(x), Y).backward())


def jacobian(net: nn.Module, x: Tensor) -> None:
    x = x.clone().requires_grad_()
    z = net(x)
    (cross_entropy(z, Y) + jacobian_penalty(z, x)).backward()


def margin(net: nn.Module, x: Tensor) -> None:
    x = x.clone().requires_grad_()
    large_margin_loss(net(x), Y, x).backward()


def entropy(net: nn.Module, x: Tensor) -> None:
    optimizer = EntropySGD(net.parameters(), lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(net(x), Y)
        loss.backward()
        return loss

    optimizer.step(closure)


def path(net: nn.Module, x: Tensor) -> None:
    optimizer = PathSGD(net.parameters(), lr=0.1, model=net, input_shape=x.shape[1:])
    cross_entropy(net(x), Y).backward()
    optimizer.step()


def ghost(net: nn.Module, x: Tensor) -> None:
    cross_entropy(convert_ghost_batch_norm(net, 4)(x), Y).backward()


@pytest.mark.parametrize(
    ("name", "function", "expected"),
    [
        ("sharpness_aware_gradient", lambda net, x: sharpness_aware_gradient(net, x, Y), 2),
        ("sharpness_aware_gradient", lambda net, x: sharpness_aware_gradient(net, x, Y, num_sub_batches=4), 2),
        ("gradient_norm_penalty_gradient", lambda net, x: gradient_norm_penalty_gradient(net, x, Y), 2),
        ("fisher_penalty_gradient", lambda net, x: fisher_penalty_gradient(net, x, Y), 4),
        ("fisher_penalty_gradient", lambda net, x: fisher_penalty_gradient(net, x, Y, difference="forward"), 3),
        ("difference_penalty_gradient", lambda net, x: difference_penalty_gradient(net, x, Y), 2),
        ("difference_penalty_gradient", lambda net, x: difference_penalty_gradient(net, x, Y, difference="central"), 3),
        ("EntropySGD", entropy, 21),
        ("GhostBatchNorm", ghost, 1),
    ],
)
def test_exact_prices(name: str, function: Callable[[nn.Module, Tensor], Any], expected: int) -> None:
    assert price(function) == pytest.approx(expected, rel=0.02)
    assert str(expected) in re.findall(r"\d+", PRICES[name])


@pytest.mark.parametrize(("name", "function"), [("jacobian_penalty", jacobian), ("large_margin_loss", margin)])
def test_approximate_prices(name: str, function: Callable[[nn.Module, Tensor], Any]) -> None:
    (stated,) = re.findall(r"about ([\d.]+)", PRICES[name])
    assert price(function) == pytest.approx(float(stated), rel=0.1)


def test_double_backward_costs_about_the_same() -> None:
    assert "at about the same price" in PAGE
    ratio = price(lambda net, x: fisher_penalty_gradient(net, x, Y, method="double_backward"))
    assert ratio == pytest.approx(4, rel=0.15)


def test_flat_minimum_search() -> None:
    assert PRICES["flat_minimum_penalty"].startswith("about 2 K")
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    x = torch.randn(16, 64)
    assert price(
        lambda net, x: (cross_entropy(net(x), Y) + flat_minimum_penalty(net, x)).backward(), net, x
    ) == pytest.approx(20, rel=0.2)


def test_path_sgd_is_a_plain_step_and_one_sample() -> None:
    """The samples of the check of the network, when the optimizer is built, are not part of a step."""
    net = network(norm=False)
    built = operations(lambda: PathSGD(net.parameters(), lr=0.1, model=net, input_shape=X.shape[1:]))
    plain = operations(lambda: cross_entropy(net(X), Y).backward())
    assert (operations(lambda: path(net, X)) - built) / plain == pytest.approx(1 + 1 / 16, rel=0.05)


def test_the_regularizer() -> None:
    assert '`FisherRegularizer`: 3, or 2 with `gradient="shared"`' in PAGE
    assert price(lambda net, x: regularized_gradient(net, x, Y, beta=1.0)) == pytest.approx(3, rel=0.02)
    shared = price(lambda net, x: regularized_gradient(net, x, Y, beta=1.0, gradient="shared"))
    assert shared == pytest.approx(2, rel=0.02)
