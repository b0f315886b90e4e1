"""Modules that are hard to look into: ξ is that of a plain loop over single samples, and nothing is left behind."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_fisher.functional import gram_matrix
from tests.functional.compare import gram_error
from tests.functional.gram.unusual import INTERACTING, KINDS, labels, net, randn
from tests.functional.snapshot import changes, snapshot
from tests.reference.jacobian import gram, plain_jacobian

CASES = [pytest.param(build, id=f"{kind}: {name}") for kind, cases in KINDS.items() for name, build in cases.items()]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("build", CASES)
def test_same_as_the_plain_loop(build, seed):
    torch.manual_seed(seed)
    module, inputs, targets, loss_fn = build()
    before = snapshot(module)
    for _ in range(2):  # the second call follows the plan of the first
        got = gram_matrix(module, inputs, targets, loss_fn=loss_fn)
        expected = gram(plain_jacobian(module, inputs, targets, loss_fn=loss_fn))
        assert gram_error(got, expected) < 1e-9
        if isinstance(inputs, torch.Tensor):
            inputs = inputs.flip(0) + 0.1
    assert changes(before, snapshot(module)) == []


def test_experts_over_many_draws():
    """Where the number of routed tokens happens to be a multiple of the number of samples, nothing looks odd."""
    for seed in range(30):
        torch.manual_seed(seed)
        module, inputs, targets, _ = KINDS["rows chosen by data"]["top-1 experts"]()
        expected = gram(plain_jacobian(module, inputs, targets))
        assert gram_error(gram_matrix(module, inputs, targets), expected) < 1e-9, seed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("build", "reason"), INTERACTING.values(), ids=INTERACTING)
def test_refused_for_what_is_found(build, reason, dtype):
    torch.manual_seed(0)
    module, inputs, targets, _ = build()
    with pytest.raises(ValueError, match=reason):
        gram_matrix(module.to(dtype), inputs.to(dtype), targets)


class Encoder(nn.Module):
    """Points to an encoder that isn't a submodule."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.out = [encoder], nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.encoder[0](x)))


@pytest.mark.parametrize(
    "encoder",
    [nn.Linear(6, 6), nn.LSTM(6, 6), nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6).eval())],
    ids=["linear", "function without a rule", "batch-norm"],
)
def test_parameters_that_the_module_points_to_are_left_alone(encoder):
    torch.manual_seed(0)
    if isinstance(encoder, nn.LSTM):
        lstm, encoder = encoder, lambda x: lstm(x.unsqueeze(0))[0][0] * 0 + x
        parameters = list(lstm.parameters())
    else:
        parameters = list(encoder.double().parameters())
    module = Encoder(encoder)
    x = randn(8, 6) if parameters[0].dtype == torch.float64 else torch.randn(8, 6)
    module.to(x.dtype)
    kept = [torch.ones_like(parameter) for parameter in parameters]
    for parameter, gradient in zip(parameters, kept, strict=True):
        parameter.grad = gradient
    gram_matrix(module, x, labels())
    assert all(p.grad is g and bool((g == 1).all()) for p, g in zip(parameters, kept, strict=True))
    assert all(parameter.requires_grad for parameter in parameters)


class Keeps(nn.Module):
    """Keeps its features, mixes the samples, casts its inputs: three reasons why a check in float64 may fail."""

    def __init__(self, keeps, mixes, casts):
        super().__init__()
        self.body, self.out = nn.Linear(6, 6), nn.Linear(6, 3)
        self.keeps, self.mixes, self.casts = keeps, mixes, casts

    def forward(self, x):
        hidden = torch.tanh(self.body(x.float() if self.casts else x))
        if self.keeps == "tensor":
            self.features = hidden
        elif self.keeps == "list":
            self.features = [{"last": hidden}]
        return self.out(hidden - hidden.mean(0)) if self.mixes else self.out(hidden)


@pytest.mark.parametrize("casts", [False, True])
@pytest.mark.parametrize("keeps", ["", "tensor", "list"])
def test_the_reason_is_that_samples_mix(keeps, casts):
    torch.manual_seed(0)
    module = Keeps(keeps, True, casts)
    x, y = torch.randn(6, 6), torch.tensor([0, 1, 2, 1, 0, 2])
    module(x)
    with pytest.raises(ValueError, match="Expected samples that don't interact") as caught:
        gram_matrix(module, x, y)
    assert ("not settled in float64" in str(caught.value)) == casts
    module.mixes = False
    gram_matrix(module, x, y)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_no_graph_outlives_the_call(checkpointed):
    torch.manual_seed(0)
    build = KINDS["unseen code"]["a checkpoint"] if checkpointed else KINDS["transforms inside"]["forces of an energy"]
    module, inputs, targets, loss_fn = build()

    def live():
        gc.collect()
        return sum(isinstance(o, torch.Tensor) and o.grad_fn is not None for o in gc.get_objects())

    gram_matrix(module, inputs, targets, loss_fn=loss_fn)
    before = live()
    for _ in range(3):
        gram_matrix(module, inputs, targets, loss_fn=loss_fn)
    assert live() <= before


def test_the_module_sees_its_own_flags_and_modes():
    """Inside the forward pass parameters require gradients, gradients are on, and nothing is in training mode."""
    seen = set()

    def forward(self, x):
        flags = [parameter.requires_grad for parameter in self.parameters()]
        seen.add((all(flags), torch.is_grad_enabled(), self.training, self.body(x).requires_grad))
        return self.out(torch.tanh(self.body(x)))

    module, inputs, targets, _ = net(forward, randn(8, 6), body=nn.Linear(6, 6), out=nn.Linear(6, 3))
    gram_matrix(module.train(), inputs, targets)
    gram_matrix(module, inputs, targets)
    assert seen == {(True, True, False, True)}
    assert module.training


def test_a_loss_inside_the_forward_pass():
    """`Tensor.backward` inside the forward pass works as in a plain pass."""

    def forward(self, x):
        x = x.detach().requires_grad_()
        F.softplus(x).sum().backward()
        return self.out(torch.tanh(self.body(x.grad)))

    module, inputs, targets, _ = net(forward, randn(8, 6), body=nn.Linear(6, 6), out=nn.Linear(6, 3))
    expected = gram(plain_jacobian(module, inputs, targets))
    assert gram_error(gram_matrix(module, inputs, targets), expected) < 1e-9
