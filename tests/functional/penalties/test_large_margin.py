"""large_margin_loss against the authors' arrays and against loops over samples, classes and layers."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

from lightning_fisher.functional import large_margin_loss
from tests.reference.methods import ARRAYS, array, batches, network

RUNS = sorted({key.rpartition("/")[0] for key in ARRAYS.files if key.startswith("large_margin/")})
NORMS = {"l1": 1, "l2": 2, "linf": math.inf}


def options(run):
    """The arguments of a stored run ``large_margin/[clipped_|weighted_]NORM/LAYERS/topK[_sum]/approx|exact``."""
    kind, norm, layers, top, mode = re.fullmatch(
        r"large_margin/(?:(clipped|weighted)_)?(\w+)/(\w+)/(\w+)/(\w+)", run
    ).groups()
    found = {
        "norm": NORMS[norm],
        "top_k": int(top[3]),
        "aggregation": "sum" if top.endswith("_sum") else "worst",
        "differentiate_norm": mode == "exact",
    }
    if kind == "clipped":
        found |= {"gamma": 0.5, "alpha": 2.0}
    if kind == "weighted":
        found |= {"gamma": 1e4, "alpha": 4.0, "eps": 1e-6, "layer_weights": [8.0, 16.0]}
    return layers, found


def forward(module, x):
    hidden = module[1](module[0](x))
    return hidden, module[4](module[3](module[2](hidden)))


def chosen(layers, x, hidden):
    return {"input": [x], "hidden": [hidden], "both": [x, hidden]}[layers]


@pytest.mark.parametrize("run", RUNS)
def test_public_code(run):
    layers, arguments = options(run)
    module, (x, y) = network(), batches()[0]
    x = x.clone().requires_grad_()
    hidden, logits = forward(module, x)
    loss = large_margin_loss(logits, y, chosen(layers, x, hidden), **arguments)
    terms = arguments["top_k"] if arguments["aggregation"] == "sum" else 1
    shifted = loss.item() - terms * arguments.get("gamma", 1e4)
    assert shifted == pytest.approx(array(f"{run}/loss").item(), abs=1e-10)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])
    assert (gradient - array(f"{run}/grad_flat")).abs().max() < 1e-10


def test_all_runs_are_there():
    assert len(RUNS) == 58


def naive(module, x, y, *, gamma, alpha, norm, top_k, aggregation, scores, eps, layers):
    dual = {1: math.inf, 2: 2, math.inf: 1}[norm]
    per_layer = []
    for layer in range(layers):
        total = 0.0
        for sample, target in zip(x, y, strict=True):
            inputs = sample.clone().unsqueeze(0).requires_grad_()
            hidden, z = forward(module, inputs)
            f = (z.softmax(1) if scores == "probabilities" else z)[0]
            wrong = sorted((k for k in range(len(f)) if k != target), key=lambda k: -f[k].item())[:top_k]
            terms = []
            for k in wrong:
                difference = f[target] - f[k]
                (slope,) = torch.autograd.grad(difference, [inputs, hidden][layer], retain_graph=True)
                distance = difference.item() / (float(torch.linalg.vector_norm(slope, dual)) + eps)
                terms.append(max(0.0, min(gamma - distance, alpha * gamma)))
            total += max(terms) if aggregation == "worst" else sum(terms)
        per_layer.append(total / len(x))
    return sum(per_layer) / layers


@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("aggregation", ["worst", "sum"])
@pytest.mark.parametrize("scores", ["probabilities", "logits"])
def test_against_loops(norm, aggregation, scores):
    module, (x, y) = network(), batches()[0]
    arguments = {"gamma": 0.5, "alpha": 1.5, "norm": norm, "top_k": 2, "aggregation": aggregation, "scores": scores}
    expected = naive(module, x, y, eps=1e-8, layers=2, **arguments)
    x = x.clone().requires_grad_()
    hidden, logits = forward(module, x)
    got = large_margin_loss(logits, y, [x, hidden], **arguments)
    assert got.item() == pytest.approx(expected, rel=1e-10)


def test_the_distance_of_a_linear_network_is_the_distance():
    """Two classes: ``|w·x + b| / ‖w‖`` to the line, in the given norm; exact where the scores are the logits."""
    net = nn.Linear(2, 2).double()
    x = torch.randn(6, 2).double().requires_grad_()
    z = net(x)
    y = z.argmax(1)
    w, b = (net.weight[0] - net.weight[1]).detach(), (net.bias[0] - net.bias[1]).detach()
    distance = (x.detach() @ w + b).abs() / w.norm()
    got = large_margin_loss(z, y, x, gamma=100.0, scores="logits")
    assert got.item() == pytest.approx((100 - distance).mean().item(), rel=1e-9)


def test_what_has_the_margin_costs_nothing_and_what_is_far_off_no_more_than_the_bound():
    net = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    x = torch.tensor([[5.0, 0.0], [-5.0, 0.0]]).double().requires_grad_()
    losses = [
        large_margin_loss(net(x)[i : i + 1], torch.tensor([0]), x, gamma=1.0, alpha=3.0, scores="logits")
        for i in (0, 1)
    ]
    assert losses[0].item() == 0.0
    assert losses[1].item() == 3.0
    assert torch.autograd.grad(losses[0], net.weight)[0].count_nonzero() == 0


def test_a_layer_without_effect_is_infinitely_far():
    """Its slope is zero: the distance is the difference over ε, clipped, and no gradient is undefined."""
    module, (x, y) = network(), batches()[0]
    unused = torch.randn(len(x), 3).double().requires_grad_()
    x = x.clone().requires_grad_()
    logits = forward(module, x)[1]
    loss = large_margin_loss(logits, y, [x, unused], gamma=1.0, differentiate_norm=True)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(module.parameters())))


def test_mistakes_are_named():
    net, y = nn.Linear(3, 3), torch.tensor([0, 1, 2, 0])
    x = torch.randn(4, 3)
    z = net(x)
    with pytest.raises(ValueError, match="`activations` to hold tensors that require gradients, but got one"):
        large_margin_loss(z, y, x)
    with pytest.raises(ValueError, match="`activations` to hold tensors that require gradients, but got none"):
        large_margin_loss(z, y, [])
    x.requires_grad_()
    z = net(x)
    for arguments, text in (
        ({"top_k": 3}, "`top_k` to be at most 2 with 3 classes, but got 3"),
        ({"top_k": 0}, "`top_k`.*0"),
        ({"norm": 3}, "`norm`.*3"),
        ({"gamma": 0.0}, "`gamma`.*0.0"),
        ({"alpha": -1.0}, "`alpha`.*-1.0"),
        ({"eps": 0.0}, "`eps`.*0.0"),
        ({"aggregation": "mean"}, "`aggregation`.*mean"),
        ({"scores": "loss"}, "`scores`.*loss"),
        ({"layer_weights": [1.0, 2.0]}, "`layer_weights` to hold 1 positive numbers"),
    ):
        with pytest.raises(ValueError, match=text):
            large_margin_loss(z, y, x, **arguments)
    with pytest.raises(ValueError, match="`targets` to be 0…2, but got 1…3"):
        large_margin_loss(z, y + 1, x)
    with pytest.raises(ValueError, match="`targets` to hold 4 class indices"):
        large_margin_loss(z, y[:2], x)
    with pytest.raises(ValueError, match=r"`logits` to have shape \[N, K\]"):
        large_margin_loss(z[:, 0], y, x)
