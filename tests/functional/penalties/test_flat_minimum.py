"""flat_minimum_penalty against stored arrays, loops over samples, outputs and weights, and the box that it measures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_fisher.functional import flat_minimum_penalty
from tests.functional.compare import gradient_error, relative_error
from tests.reference.methods import ARRAYS, array, batches, network, train

EPSILON = 1e-3
KINDS = {
    "logits_all": {},
    "logits_weights_only": {},
    "probs_all": {"outputs": "probabilities"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_stored_values(kind):
    module, (x, _) = network(), batches()[0]
    if kind == "logits_weights_only":
        for name, parameter in module.named_parameters():
            parameter.requires_grad_("weight" in name)
    values = flat_minimum_penalty(module, x, epsilon=EPSILON, reduction="none", **KINDS[kind])
    assert values.dtype == torch.float64
    assert relative_error(values.detach(), array(f"fms/{kind}/B_per_sample")) < 1e-12
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    gradient = torch.autograd.grad(
        values.sum(), [p for p in module.parameters() if p.requires_grad], allow_unused=True, materialize_grads=True
    )
    expected = [array(f"fms/{kind}/grad/{name}") for name in names]
    assert gradient_error(gradient, expected) < 1e-10


def test_training():
    values = []

    def gradient(module, x, y, t):
        values.append(flat_minimum_penalty(module, x, epsilon=EPSILON))
        loss = cross_entropy(module(x), y) + 1e-5 * values[-1]
        return loss, torch.autograd.grad(loss, list(module.parameters()))

    weights, losses, _ = train("fms/training", "mlp", gradient)
    assert weights < 1e-10
    assert losses < 1e-10
    assert relative_error(torch.stack(values).detach(), torch.from_numpy(ARRAYS["fms/training/B_mean"])) < 1e-10


def box(module, x, epsilon, guard=0.0):
    """B, and the edges Δw of the box around the weights that have an effect, of one input; by loops."""
    outputs = module(x.unsqueeze(0))[0]
    rows = []
    for output in outputs:
        found = torch.autograd.grad(output, list(module.parameters()), retain_graph=True, allow_unused=True)
        parts = zip(found, module.parameters(), strict=True)
        rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in parts]).tolist())
    weights = [i for i in range(len(rows[0])) if sum(row[i] ** 2 for row in rows) > guard]
    squares = {i: sum(row[i] ** 2 for row in rows) for i in weights}
    adverse = sum(sum(abs(row[i]) / squares[i] ** 0.5 for i in weights) ** 2 for row in rows)
    if not weights:
        return 0.0, {}, rows
    value = 0.5 * (
        -len(weights) * math.log(epsilon)
        + sum(math.log(squares[i]) for i in weights)
        + len(weights) * math.log(adverse)
    )
    return value, {i: (epsilon / adverse / squares[i]) ** 0.5 for i in weights}, rows


@pytest.mark.parametrize("guard", [0.0, 1e-4])
@pytest.mark.parametrize("net", ["mlp", "relu_mlp"])
def test_against_loops(net, guard):
    """With dead units in the ReLU network."""
    module, (x, _) = network(net), batches()[0]
    if net == "relu_mlp":
        with torch.no_grad():
            module[0].bias[:4] = -100.0
    got = flat_minimum_penalty(module, x[:4], epsilon=EPSILON, guard=guard, reduction="none")
    for sample, value in zip(x[:4], got, strict=True):
        expected, edges, rows = box(module, sample, EPSILON, guard)
        assert value.item() == pytest.approx(expected, rel=1e-10)
        assert value.item() == pytest.approx(-sum(math.log(edge) for edge in edges.values()), rel=1e-10)
        disturbance = sum(sum(abs(row[i]) * edge for i, edge in edges.items()) ** 2 for row in rows)
        assert disturbance == pytest.approx(EPSILON, rel=1e-10)
        if net == "relu_mlp":
            assert len(edges) < len(rows[0])


def test_dead_units_leave_values_and_gradients_finite():
    module, (x, _) = network("relu_mlp"), batches()[0]
    with torch.no_grad():
        module[0].bias[:4] = -100.0
    value = flat_minimum_penalty(module, x)
    value.backward()
    assert value.isfinite()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


def test_an_input_without_effect_has_a_penalty_of_zero():
    """All units are dead and there is no bias behind them."""
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False)).double()
    with torch.no_grad():
        module[0].bias.fill_(-100.0)
    values = flat_minimum_penalty(module, torch.randn(2, 3).double(), reduction="none")
    assert values.tolist() == [0.0, 0.0]
    values.sum().backward()
    assert all(p.grad.count_nonzero() == 0 for p in module.parameters())


def test_epsilon_shifts():
    module, (x, _) = network(), batches()[0]
    at = [flat_minimum_penalty(module, x[:2], epsilon=e).item() for e in (1e-3, 1e-1)]
    assert at[0] - at[1] == pytest.approx(0.5 * 501 * math.log(100), rel=1e-10)


def test_float32_does_not_underflow():
    """Derivatives of 1e-25 have squares below float32's range."""
    module = nn.Linear(3, 2, bias=False)
    x = torch.tensor([[1e-25, 2e-25, -1e-25]])
    got = flat_minimum_penalty(module, x)
    assert got.item() == pytest.approx(box(module.double(), x[0].double(), EPSILON)[0], rel=1e-6)


def test_mistakes_are_named():
    module, x = nn.Linear(3, 2), torch.randn(4, 3)
    for arguments, text in (
        ({"epsilon": 0.0}, "`epsilon`.*0.0"),
        ({"outputs": "loss"}, "`outputs`.*loss"),
        ({"guard": -1.0}, "`guard`.*-1.0"),
        ({"reduction": "sum"}, "`reduction`.*sum"),
    ):
        with pytest.raises(ValueError, match=text):
            flat_minimum_penalty(module, x, **arguments)
    with pytest.raises(ValueError, match="one sample at a time"):
        flat_minimum_penalty(nn.Sequential(module, nn.BatchNorm1d(2)), x)
    with pytest.raises(ValueError, match="require gradients"):
        flat_minimum_penalty(module.requires_grad_(False), x)
