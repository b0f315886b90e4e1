"""What leaves each form of γ̂ unchanged, to 1e-9 in float64, and what doesn't."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lightning_fisher.functional import fisher_log_det
from tests.reference.measure_networks import build, rescaled

SCALES = ("none", "layer", "filter", "element")
COUNT = 12


@torch.no_grad()
def filters_in_front_of_batch_norm(net, layer, norm):
    """Every filter times its own factor, the statistics following: the function stays."""
    net = copy.deepcopy(net)
    layer, norm = getattr(net, layer), getattr(net, norm)
    factors = torch.linspace(0.3, 4.0, len(norm.running_var), dtype=torch.float64)
    for parameter in layer.parameters():
        parameter.mul_(factors.view(-1, *[1] * (parameter.ndim - 1)))
    norm.running_mean.mul_(factors)
    norm.running_var.copy_(factors**2 * (norm.running_var + norm.eps) - norm.eps)
    return net


class Normalized(nn.Module):
    """A layer norm without parameters, which takes the scale of its input away exactly."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8, bias=False), nn.Linear(8, 4)

    def forward(self, x):
        return self.last(torch.nn.functional.layer_norm(self.first(x), (8,), eps=0.0))


class Attention(nn.Module):
    """A transformer layer with its projections one by one: values and output can be rescaled against each other."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(6, 6) for _ in range(4))
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        q, k, v = self.query(x), self.key(x), self.value(x)
        return self.head((x + self.out(torch.softmax(q @ k.mT / 6**0.5, -1) @ v)).mean(1))


def attention():
    torch.manual_seed(3)
    net, inputs, targets = Attention().double(), torch.randn(COUNT, 5, 6).double(), torch.randint(4, (COUNT,))
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in twin.query.parameters():
            parameter.mul_(4)
        for parameter in twin.key.parameters():
            parameter.div_(4)
        for parameter in twin.value.parameters():
            parameter.mul_(3)
        twin.out.weight.div_(3)
    return net, twin, inputs, targets


def pairs():
    """``(kind, network, copy that makes the same decisions, inputs, targets)``."""
    for name in ("a", "b", "c"):
        net, inputs, targets, _ = build(name)
        for kind, twin in rescaled(name, net).items():
            yield kind, f"{name}-{kind}", net, twin, inputs[:COUNT], targets[:COUNT]
        if name in ("b", "c"):
            twin = filters_in_front_of_batch_norm(net, "conv1", {"b": "bn1", "c": "bn2"}[name])
            yield "filters", f"{name}-filters", net, twin, inputs[:COUNT], targets[:COUNT]
    torch.manual_seed(1)
    net, inputs, targets = Normalized().double(), torch.randn(COUNT, 6).double(), torch.randint(4, (COUNT,))
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.first.weight.mul_(5)
    yield "batch_norm", "layer_norm", net, twin, inputs, targets
    net, twin, inputs, targets = attention()
    yield "layers", "attention", net, twin, inputs, targets


# What each form promises of rescaled weights. "logits": the last layer times two, which the unweighted form sees, since
# the gradients of that layer halve. "filters": single filters in front of batch-norm.
UNCHANGED = {
    "none": set(),
    "layer": {"logits", "layers", "batch_norm"},
    "filter": {"logits", "layers", "batch_norm", "filters"},
    "element": {"logits", "layers", "batch_norm", "filters", "units"},
}


def value(net, inputs, targets, **form):
    return fisher_log_det(net, inputs, targets, **form).log_det.item()


CASES = list(pairs())


@pytest.mark.parametrize(("kind", "name", "net", "twin", "inputs", "targets"), CASES, ids=[case[1] for case in CASES])
@pytest.mark.parametrize("scale", SCALES)
def test_at_equal_outputs(scale, kind, name, net, twin, inputs, targets):
    form = {"logit_norm": 0.04, "residual": False, "scale": scale}
    before, after = value(net, inputs, targets, **form), value(twin, inputs, targets, **form)
    if kind in UNCHANGED[scale]:
        assert after == pytest.approx(before, abs=1e-9 * COUNT)
    else:
        assert abs(after - before) > 0.1


@pytest.mark.parametrize(("kind", "name", "net", "twin", "inputs", "targets"), CASES, ids=[case[1] for case in CASES])
def test_the_direction_part_and_the_residual(kind, name, net, twin, inputs, targets):
    """The residual is a function of the rescaled logits alone; the direction part is not one of the function alone."""
    before = fisher_log_det(net, inputs, targets, logit_norm=0.04)
    after = fisher_log_det(twin, inputs, targets, logit_norm=0.04)
    assert after.residual.item() == pytest.approx(before.residual.item(), rel=1e-9)
    if kind != "logits":
        assert abs((after.direction - before.direction).item()) > 1e-3


class Times(nn.Module):
    """The logits times a constant: a temperature."""

    def __init__(self, net, factor):
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x):
        return self.factor * self.net(x)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_temperature(scale, name):
    net, inputs, targets, _ = build(name)
    form = {"logit_norm": 0.04, "residual": False, "scale": scale}
    before, after = (value(n, inputs[:COUNT], targets[:COUNT], **form) for n in (net, Times(net, 7.0)))
    assert after == pytest.approx(before, abs=1e-9)


def test_the_scale_of_the_logits_without_rescaling_them():
    """Without ``logit_norm`` the softmax saturates: neither γ̂ nor its form at equal outputs is unchanged."""
    net, inputs, targets, _ = build("a")
    twin = rescaled("a", net)["logits"]
    for residual in (True, False):
        before, after = (value(n, inputs[:COUNT], targets[:COUNT], residual=residual) for n in (net, twin))
        assert abs(after - before) > 1.0


def test_the_loss_level():
    """Label smoothing of unequal strength moves the loss gradient's length only: at equal outputs γ̂ doesn't see it.

    With two classes the unit output gradient is the same vector up to its sign wherever the loss stands.
    """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 2)).double()
    inputs, targets = torch.randn(COUNT, 6).double(), torch.randint(2, (COUNT,))

    def further(outputs, labels):
        return nn.functional.cross_entropy(5 * outputs, labels, reduction="none")

    def loss(outputs, labels):
        return nn.functional.cross_entropy(outputs, labels, reduction="none")

    near, far = (fisher_log_det(net, inputs, targets, loss_fn=f, residual=False) for f in (loss, further))
    assert far.log_det.item() == pytest.approx(near.log_det.item(), abs=1e-9)
    near, far = (fisher_log_det(net, inputs, targets, loss_fn=f) for f in (loss, further))
    assert abs((far.residual - near.residual).item()) > 1.0
    assert far.sensitivity.item() == pytest.approx(near.sensitivity.item(), abs=1e-9)


def test_a_filter_form_is_not_unchanged_by_single_units_of_a_relu_network():
    """The next layer's rows mix the rescaled units: only the element form is unchanged (see the page on the forms)."""
    net, inputs, targets, _ = build("a")
    twin = rescaled("a", net)["units"]
    form = {"logit_norm": 0.04, "residual": False, "scale": "filter"}
    before, after = (value(n, inputs[:COUNT], targets[:COUNT], **form) for n in (net, twin))
    assert abs(after - before) > 0.1
