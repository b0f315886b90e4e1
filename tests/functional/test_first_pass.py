"""Modules whose first pass sets something up: hooks, buffers, entries of containers. No pass sees an earlier one."""

from __future__ import annotations

import collections

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_fisher.functional import (
    gram_matrix,
    hessian_frobenius_norm,
    log_gradient_norms,
    penalty_gradient,
    regularized_gradient,
    sharpness_aware_gradient,
)
from tests.reference import plain
from tests.reference.plain import flat

N = 8
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(N) % 3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()


class InstallsHooks(Net):
    """As Hugging Face's models collect hidden states: hooks in the first pass, an attribute that says so."""

    installed = False

    def forward(self, x):
        if not self.installed:
            self.a.register_forward_hook(lambda layer, received, made: 1.5 * torch.tanh(made))
            self.b.register_forward_pre_hook(lambda layer, received: (received[0] - 0.2,))
            self.b.register_full_backward_hook(lambda layer, to_inputs, to_outputs: (2 * to_inputs[0],))
            self.installed = True
        return self.b(self.a(x))


class RegistersBuffer(Net):
    def forward(self, x):
        if not hasattr(self, "scale"):
            self.register_buffer("scale", torch.full((5,), 1.5, dtype=x.dtype))
            self.register_buffer("offset", torch.full((5,), 0.2, dtype=x.dtype), persistent=False)
        return self.b(self.scale * torch.tanh(self.a(x)) - self.offset)


class KeepsNested(Net):
    """Keeps activations in containers of containers, and sees what is there."""

    def __init__(self):
        super().__init__()
        self.kept = {"layers": [[], collections.OrderedDict()]}
        self.counts, self.lists = collections.Counter(), collections.defaultdict(list)

    def forward(self, x):
        hidden = torch.tanh(self.a(x))
        earlier, last = self.kept["layers"]
        earlier.append(hidden.detach().mean())
        last["hidden"] = hidden
        self.counts["passes"] += 1
        self.lists["passes"].append(hidden)
        return self.b(hidden / (len(earlier) + self.counts["passes"] + len(self.lists["passes"])))


MODULES = [InstallsHooks, RegistersBuffer, KeepsNested]


def contents(module):
    """Everything by name that the passes may have left."""

    def inside(value):
        if isinstance(value, dict):
            return {key: inside(item) for key, item in value.items()}
        return [inside(item) for item in value] if isinstance(value, list) else id(value)

    hooks = {name: [len(getattr(m, k)) for k in vars(m) if "_hooks" in k] for name, m in module.named_modules()}
    kept = {k: inside(v) for k, v in vars(module).items() if not k.startswith("_")}
    return hooks, kept, list(dict(module.named_buffers())), set(module._non_persistent_buffers_set)


def loss(outputs, targets):
    return cross_entropy(outputs, targets)


class Fresh(nn.Module):
    """A module for the oracle: every pass is the first one of the same weights."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.weights = kind, nn.ParameterList(kind().parameters())

    def forward(self, x):
        module = self.kind()
        places = [(module.a, "weight"), (module.a, "bias"), (module.b, "weight"), (module.b, "bias")]
        for (layer, name), weight in zip(places, self.weights, strict=True):
            del layer._parameters[name]
            setattr(layer, name, weight)
        return module(x)


@pytest.mark.parametrize("kind", MODULES)
def test_every_pass_is_a_first_pass(kind):
    module, oracle = kind(), Fresh(kind)
    before = contents(module)
    rows = plain.gradient_rows(oracle, X, Y, N, loss)
    for chunk_size in (None, 3):
        found = gram_matrix(module, X, Y, chunk_size=chunk_size)
        torch.testing.assert_close(found, rows @ rows.T, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(log_gradient_norms(module, X, Y), rows.norm(dim=1).log(), rtol=1e-9, atol=1e-12)
    hessian = plain.hessian(oracle, X, Y, loss)
    if kind is KeepsNested:  # what each pass sees is another thing there
        with pytest.raises(ValueError, match="deterministic forward pass"):
            hessian_frobenius_norm(module, X, Y, chunk_size=3)
    else:
        found = hessian_frobenius_norm(module, X, Y, num_probes=len(hessian), chunk_size=3)
        torch.testing.assert_close(found.value, hessian.square().sum(), rtol=1e-9, atol=0)
    parts = torch.arange(N).tensor_split(4)
    value, gradient = plain.penalty(oracle, X, Y, parts, [0.25] * 4, 1e-2, loss)
    for passes in ("loop", "vmap"):
        if passes == "vmap" and kind is not RegistersBuffer:
            continue
        got, found = penalty_gradient(module, X, Y, alpha=1e-2, num_sub_batches=4, passes=passes)
        assert got.item() == pytest.approx(value, rel=1e-9)
        torch.testing.assert_close(flat(found), flat(gradient), rtol=1e-9, atol=1e-13)
    assert contents(module) == before


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("form", ["full", "shared", "sharpness-aware"])
def test_a_step_leaves_what_one_pass_leaves(kind, form):
    module, once, oracle = kind(), kind(), Fresh(kind)
    once(X)
    if form == "sharpness-aware":
        found = sharpness_aware_gradient(module, X, Y, rho=0.3).gradient
        _, at = plain.value_and_gradient(oracle, X, Y, loss)
        with torch.no_grad():
            for weight, part in zip(oracle.parameters(), at, strict=True):
                weight += 0.3 * part / flat(at).norm()
        _, expected = plain.value_and_gradient(oracle, X, Y, loss)
    else:
        found = regularized_gradient(module, X, Y, beta=3.0, alpha=0.1, num_sub_batches=1, gradient=form).gradient
        _, at = plain.value_and_gradient(oracle, X, Y, loss)
        _, more = plain.penalty(oracle, X, Y, [slice(None)], [1.0], 0.1, loss)
        expected = [a + 3.0 * b for a, b in zip(at, more, strict=True)]
    torch.testing.assert_close(flat(found), flat(expected), rtol=1e-9, atol=1e-13)
    assert contents(module)[0] == contents(once)[0]
    assert contents(module)[2:] == contents(once)[2:]
    assert set(vars(module)) == set(vars(once))
