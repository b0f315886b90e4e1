"""Networks whose logits are, or aren't, piecewise linear in each weight; the diagonal of a dense Hessian judges."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_fisher.exceptions import UndefinedMeasureError
from lightning_fisher.functional.curvature.linearity import linear_in_each_parameter
from lightning_fisher.functional.measures import gauss_newton_trace, hessian_trace, weighted_hessian_trace
from tests.reference.dense_hessian import dense_hessian


class Own(torch.autograd.Function):
    """The identity, whose backward pass isn't read."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Net(nn.Module):
    """Two layers with something in between."""

    def __init__(self, between, bias=True):
        super().__init__()
        self.first, self.last, self.between = nn.Linear(4, 5, bias=bias), nn.Linear(5, 3, bias=bias), between
        self.extra = nn.Parameter(torch.rand(5) + 0.5)

    def forward(self, x):
        return self.last(self.between(self, self.first(x)))


def normalized(net, h):
    return F.batch_norm(h, torch.zeros(5).to(h), torch.ones(5).to(h) * 2, net.extra, None)


LINEAR = {
    "ReLU": lambda net, h: h.relu(),
    "leaky": lambda net, h: F.leaky_relu(h, 0.1),
    "PReLU": lambda net, h: F.prelu(h, net.extra),
    "scaled by a parameter": lambda net, h: net.extra * h.relu(),
    "batch-norm": normalized,
    "residual": lambda net, h: h.relu() + 0.5 * h,
    "max of pieces": lambda net, h: torch.maximum(h, -0.3 * h).clamp(-1, 2),
    "maxout": lambda net, h: torch.cat([h[:, :2].amax(1, keepdim=True), h[:, 1:]], 1),
    "a layer twice, side by side": lambda net, h: h.relu() + F.linear(torch.ones_like(h[:, :4]), net.first.weight),
    "divided by a constant": lambda net, h: h.relu() / 3,
    "absolute": lambda net, h: h.abs(),
}
CURVED = {
    "tanh": lambda net, h: h.tanh(),
    "squared": lambda net, h: h * h,
    "gate of the same layer": lambda net, h: h.relu() * h[:, :1],
    "a weight used twice in a row": lambda net, h: net.extra * (net.extra * h).relu(),
    "last layer in the middle too": lambda net, h: F.linear(h.relu(), net.last.weight.T @ net.last.weight),
    "softmax": lambda net, h: h.softmax(1),
    "divided by a parameter": lambda net, h: h.relu() / net.extra,
    "power of a parameter": lambda net, h: net.extra**2 * h.relu(),
    "statistics of the features": lambda net, h: F.layer_norm(h, (5,)),
    "own function": lambda net, h: Own.apply(h.relu()),  # linear, which can't be known
}


def problem(between):
    torch.manual_seed(1)
    net = Net(between).double()
    for parameter in net.parameters():
        parameter.data.add_(0.05)
    return net, torch.randn(7, 4).double(), torch.tensor([0, 1, 2, 0, 1, 2, 1])


@pytest.mark.parametrize("name", [*LINEAR, *CURVED])
def test_found_in_the_graph(name):
    net, x, _ = problem({**LINEAR, **CURVED}[name])
    assert linear_in_each_parameter([net(x)], net.parameters()) == (name in LINEAR)


@pytest.mark.parametrize("name", [*LINEAR, *CURVED])
def test_traces_of_the_dense_hessian(name):
    """Right with either method where there is a choice; never the Gauss–Newton trace where that is another number."""
    net, x, y = problem({**LINEAR, **CURVED}[name])
    diagonal = dense_hessian(net, x, y).diagonal()
    weights = torch.cat([p.detach().flatten() for p in net.parameters()])
    size = len(weights)
    for function, expected in (
        (hessian_trace, diagonal.sum()),
        (weighted_hessian_trace, (weights.square() * diagonal).sum()),
    ):
        found = function(net, x, y, num_products=size)
        assert float(found.value) == pytest.approx(float(expected), rel=1e-9)
        assert float(found.standard_error) == 0
        if name in LINEAR:
            assert float(function(net, x, y, method="exact", chunk_size=3).value) == pytest.approx(float(expected))
        else:
            with pytest.raises(UndefinedMeasureError, match="not piecewise linear in each parameter"):
                function(net, x, y, method="exact")
    if name in CURVED and name != "own function":
        assert abs(float(gauss_newton_trace(net, x)) / float(diagonal.sum()) - 1) > 1e-6


@pytest.mark.parametrize("scale", ["layer", "filter"])
def test_relative_to_layers_and_filters(scale):
    net, x, y = problem(LINEAR["ReLU"])
    diagonal, total, start = dense_hessian(net, x, y).diagonal(), 0.0, 0
    for parameter in net.parameters():
        piece = diagonal[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
        rows = parameter.detach().square()
        if scale == "layer" or parameter.ndim < 2:
            total += float(rows.sum() * piece.sum()) if scale == "layer" else float((rows * piece).sum())
        else:
            total += float((rows.sum(1) * piece.sum(1)).sum())
    assert float(gauss_newton_trace(net, x, scale=scale)) == pytest.approx(total, rel=1e-9)


def test_what_else_has_to_hold():
    """Another loss, labels that don't count, probabilities that don't add up, hooks: by products."""
    net, x, y = problem(LINEAR["ReLU"])
    size = sum(p.numel() for p in net.parameters())
    ignored = torch.where(torch.arange(7) < 2, -100, y)
    unequal = torch.rand(7, 3).double()
    for targets, loss_fn in (
        (ignored, None),
        (unequal, None),
        (y, lambda z, t: F.cross_entropy(z, t, label_smoothing=0.1)),
    ):
        loss = loss_fn or F.cross_entropy
        expected = float(dense_hessian(net, x, targets, loss_fn=loss).diagonal().sum())
        found = hessian_trace(net, x, targets, loss_fn=loss_fn, num_products=size)
        assert float(found.value) == pytest.approx(expected, rel=1e-9)
        with pytest.raises(UndefinedMeasureError, match=r"count alike|other than the cross-entropy"):
            hessian_trace(net, x, targets, loss_fn=loss_fn, method="exact")
    soft = unequal / unequal.sum(1, keepdim=True)
    expected = float(dense_hessian(net, x, soft, loss_fn=F.cross_entropy).diagonal().sum())
    assert float(hessian_trace(net, x, soft, method="exact").value) == pytest.approx(expected, rel=1e-9)
    net.extra.register_hook(lambda gradient: gradient)
    with pytest.raises(UndefinedMeasureError, match="piecewise linear"):
        hessian_trace(net, x, y, method="exact")


def test_samples_that_interact_are_left_to_products():
    net, x, y = problem(lambda net, h: (h - h.mean(0)).relu())
    size = sum(p.numel() for p in net.parameters())
    expected = float(dense_hessian(net, x, y).diagonal().sum())
    assert float(hessian_trace(net, x, y, num_products=size).value) == pytest.approx(expected, rel=1e-9)
