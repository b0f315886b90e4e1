"""`passes="vmap"` and modules with ways of their own: nothing is left behind, what can't be seen is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_fisher.functional import penalty_gradient
from lightning_fisher.functional.multipass.difference import FiniteDifference
from lightning_fisher.functional.multipass.vmap.penalty import penalty_by_vmap
from lightning_fisher.functional.multipass.vmap.stacked import VmapError
from tests.functional.compare import cosine, gradient_error
from tests.functional.multipass.test_numbers_penalty import CLIFFS, Cliff, M, X, Y
from tests.functional.snapshot import changes, snapshot
from tests.reference.penalty import penalty


class Holds(nn.Module):
    """A network that holds tensors in ways of its own."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 3)


class ByReference(Holds):
    def __init__(self):
        super().__init__()
        self.weights = [self.net.weight]

    def forward(self, x):
        return self.net(x) * (1 + self.weights[0].square().sum())


class Moves(Holds):
    def forward(self, x):
        out = self.net(x)
        self.net.weight.data.mul_(1.5)
        return out


class SharedBuffer(Holds):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.again = nn.Identity()
        self.again.register_buffer("seen", self.seen)

    def forward(self, x):
        self.seen += 1
        return self.net(x) * (1 + self.again.seen)


class Keeps(Holds):
    """Plain attributes, changed and new, and a buffer that is registered late."""

    def __init__(self):
        super().__init__()
        self.last = torch.zeros(1)

    def forward(self, x):
        out = self.net(x)
        self.last, self.new = out, out * 2
        if not hasattr(self, "late"):
            self.register_buffer("late", out.detach().mean())
        return out + self.late


class Remembers(Holds):
    """Goes on from what it kept."""

    def __init__(self):
        super().__init__()
        self.last = torch.zeros(1)

    def forward(self, x):
        out = self.net(x) * (1 + self.last)
        self.last = out.detach().mean()[None]
        return out


def vectors():
    return torch.randn(8, 6, dtype=torch.float64), torch.arange(8) % 3


OPTIONS = {"alpha": 1e-3, "num_sub_batches": 4}


def test_parameters_reached_by_another_way_are_refused():
    """They would be constants."""
    with pytest.raises(ValueError, match="another way than its module"):
        penalty_gradient(ByReference().double(), *vectors(), passes="vmap", **OPTIONS)


def test_buffers_that_share_memory_are_refused():
    net = Holds().double()
    net.register_buffer("whole", torch.zeros(4, dtype=torch.float64))
    net.register_buffer("part", net.whole[:2])
    net.forward = lambda x: net.net(x)
    with pytest.raises(ValueError, match="share memory"):
        penalty_gradient(net, *vectors(), passes="vmap", **OPTIONS)


def test_a_buffer_of_two_modules_is_one():
    net, (x, y) = SharedBuffer().double(), vectors()
    value, gradient = penalty(net, x, y, **OPTIONS)
    got_value, got = penalty_gradient(net, x, y, passes="vmap", **OPTIONS)
    assert got_value.item() == pytest.approx(value, rel=1e-9)
    assert gradient_error(got, gradient) < 1e-9


@pytest.mark.parametrize("made", [Moves, Keeps, Remembers, SharedBuffer])
def test_nothing_is_left_behind_whatever_a_forward_does(made):
    net, (x, y) = made().double(), vectors()
    before, last = snapshot(net), getattr(net, "last", None)
    penalty_gradient(net, x, y, passes="vmap", **OPTIONS)
    assert changes(before, snapshot(net)) == []
    assert getattr(net, "last", None) is last
    copy.deepcopy(net)


def test_one_entry_is_a_loss():
    net, (x, y) = nn.Linear(6, 3).double(), vectors()
    options = OPTIONS | {"loss_fn": lambda z, t: cross_entropy(z, t)[None]}
    value, gradient = penalty_gradient(net, x, y, **options)
    got_value, got = penalty_gradient(net, x, y, passes="vmap", **options)
    assert got_value.item() == pytest.approx(value.item(), rel=1e-9)
    assert gradient_error(got, gradient) < 1e-9


def test_an_error_of_the_module_is_its_own():
    class Fails(Holds):
        def forward(self, x):
            raise RuntimeError("no such file")

    with pytest.raises(RuntimeError, match="no such file"):
        penalty_gradient(Fails(), torch.ones(8, 6), torch.zeros(8, dtype=torch.long), passes="vmap", **OPTIONS)


def test_the_end_of_memory_is_not_hidden():
    class Exhausts(Holds):
        def forward(self, x):
            raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        penalty_gradient(Exhausts(), torch.ones(8, 6), torch.zeros(8, dtype=torch.long), passes="vmap", **OPTIONS)


def test_float32_whatever_autocast_says():
    net, (x, y) = nn.Linear(6, 3), vectors()
    _, exact = penalty(net, x, y, **OPTIONS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, got = penalty_gradient(net, x.float(), y, passes="vmap", **OPTIONS)
    assert cosine(got, exact) > 0.9999


def test_autocast_of_the_module_itself_is_refused():
    class Narrow(Holds):
        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.net(x).float()

    with pytest.raises(ValueError, match="enters autocast"):
        penalty_gradient(Narrow(), torch.ones(8, 6), torch.zeros(8, dtype=torch.long), passes="vmap", **OPTIONS)


def test_narrow_weights_are_refused():
    net = nn.Linear(6, 3).bfloat16()
    with pytest.raises(ValueError, match="float32 or float64"):
        penalty_gradient(net, torch.ones(8, 6), torch.zeros(8, dtype=torch.long), passes="vmap", **OPTIONS)


def test_what_is_not_finite_is_left_out():
    net, (x, y) = nn.Linear(6, 3).double(), vectors()
    steep = lambda z, t: torch.where(net.bias.sum() * 0 + z.sum() > -1e9, cross_entropy(z, t), z.sum()) / 0  # noqa: E731
    value, gradient = penalty_gradient(net, x, y, passes="vmap", loss_fn=steep, **OPTIONS)
    assert value.isnan()
    assert all(torch.equal(part, torch.zeros_like(part)) for part in gradient)


def test_what_is_not_finite_at_the_stepped_weights_is_no_anomaly():
    """Of the user's own step: a nan there is left out."""
    net = Cliff(CLIFFS["nan loss"])
    x = X.clone()
    x[::3, -1] = 10.0
    with torch.autograd.set_detect_anomaly(True):
        value, gradient = penalty_gradient(net, x, Y, alpha=1e-3, num_sub_batches=M, passes="vmap")
    assert value.isnan()
    assert all(torch.equal(part, torch.zeros_like(part)) for part in gradient)


def test_weights_of_two_dtypes_are_refused():
    net = nn.Sequential(nn.Linear(6, 4).double(), nn.Linear(4, 3))
    parameters = [*net.parameters()]
    with pytest.raises(VmapError, match="differ in dtype"):
        penalty_by_vmap(
            lambda b: b.sum(), [torch.ones(2)] * 2, parameters, difference=FiniteDifference(1.0), weight=1.0, module=net
        )


def test_parameters_of_another_module_are_refused():
    net, other = nn.Linear(6, 3), nn.Linear(6, 3)
    with pytest.raises(VmapError, match="not one of the module's"):
        penalty_by_vmap(
            lambda b: other(b).sum(),
            [torch.ones(2, 6)] * 2,
            [*other.parameters()],
            difference=FiniteDifference(1.0),
            weight=1.0,
            module=net,
        )
