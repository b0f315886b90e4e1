"""Batches and losses that no number can be made of: every function says so in one line of ours."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

import lightning_fisher.functional as fisher
from lightning_fisher.functional import measures

N = 8
PASSES = {  # a loss, differentiated by the weights
    "gram": fisher.gram_matrix,
    "norms": fisher.log_gradient_norms,
    "exact": fisher.exact_gamma,
    "penalty": lambda *a, **k: fisher.penalty_gradient(*a, num_sub_batches=2, **k),
    "penalty by vmap": lambda *a, **k: fisher.penalty_gradient(*a, num_sub_batches=2, passes="vmap", **k),
    "differences": lambda *a, **k: fisher.difference_penalty_gradient(*a, num_sub_batches=2, **k),
    "full": lambda *a, **k: fisher.regularized_gradient(*a, beta=1.0, num_sub_batches=2, **k),
    "shared": lambda *a, **k: fisher.regularized_gradient(*a, beta=1.0, num_sub_batches=2, gradient="shared", **k),
    "SAM": fisher.sharpness_aware_gradient,
    "norm penalty": fisher.gradient_norm_penalty_gradient,
    "Hessian": fisher.hessian_frobenius_norm,
    "Hessian in chunks": lambda *a, **k: measures.hessian_trace(*a, chunk_size=3, method="hutch++", **k),
    "traces": measures.weighted_hessian_trace,
    "worst sharpness": measures.worst_sharpness,
    "Fisher-Rao": measures.fisher_rao_norm,
    "signal to noise": measures.gradient_signal_to_noise,
}
OF_CLASSES = {
    **PASSES,
    "average sharpness": measures.average_sharpness,
    "margins": measures.median_margin,
    "flatness": measures.relative_flatness,
    "noise": measures.noise_tolerance,
}
OF_INPUTS = {
    **OF_CLASSES,
    "robustness": lambda module, inputs, targets: fisher.robustness(module, inputs),
    "Gauss-Newton": lambda module, inputs, targets: measures.gauss_newton_trace(module, inputs),
    "path norm": lambda module, inputs, targets: measures.path_norm(module, inputs),
}


@dataclasses.dataclass
class Batch:
    x: torch.Tensor


class Wrapped(nn.Module):
    """What is inside is called with ``x`` taken out of whatever it came in."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))

    def forward(self, batch, other=None):
        return self.net(batch.x if isinstance(batch, Batch) else batch)


X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 3
NESTED = torch.nested.nested_tensor([torch.zeros(1 + i % 3, 4) for i in range(N)], layout=torch.jagged)


@pytest.mark.parametrize("function", OF_CLASSES)
@pytest.mark.parametrize(
    "targets",
    [Y.unsqueeze(1), one_hot(Y), Y.index_fill(0, torch.tensor([3]), 7), -Y, torch.rand(N, 2), None],
    ids=["[N, 1]", "one-hot integers", "class 7", "negative", "probabilities of two", "none"],
)
def test_targets(function, targets):
    with pytest.raises(ValueError, match=r"Expected (argument|class (indices|probabilities) in) `targets` .*but got"):
        OF_CLASSES[function](Wrapped(), X, targets)


@pytest.mark.parametrize("function", PASSES)
def test_outputs_without_classes(function):
    """As many outputs as samples are not one sample's classes."""
    net = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    with pytest.raises(ValueError, match="Expected the module to return logits of shape"):
        PASSES[function](net, X, torch.rand(N))


@pytest.mark.parametrize("function", OF_INPUTS)
@pytest.mark.parametrize("inputs", [Batch(X), (X, Batch(X)), NESTED], ids=["dataclass", "dataclass beside", "nested"])
def test_inputs(function, inputs):
    with pytest.raises(ValueError, match=r"Expected argument `inputs`.* to (be a tensor, or a tuple|hold tensors)"):
        OF_INPUTS[function](Wrapped(), inputs, Y)


@pytest.mark.parametrize("function", PASSES)
@pytest.mark.parametrize("targets", [Batch(Y), NESTED], ids=["dataclass", "nested"])
def test_targets_of_a_loss(function, targets):
    with pytest.raises(ValueError, match=r"Expected argument .*`targets` to (be a tensor, or a tuple|hold tensors)"):
        PASSES[function](Wrapped(), X, targets, loss_fn=lambda outputs, targets: outputs.square().sum(1))


class Cut(Wrapped):
    def forward(self, batch):
        with torch.no_grad():
            return super().forward(batch)


def detached_mean(outputs, targets):
    return cross_entropy(outputs.detach(), targets)


def detached(outputs, targets):
    return cross_entropy(outputs.detach(), targets, reduction="none")


@pytest.mark.parametrize("function", PASSES)
@pytest.mark.parametrize(
    ("module", "loss_fn"),
    [(Cut, None), (Wrapped, detached_mean), (Wrapped, detached)],
    ids=["no_grad in the module", "detached mean", "detached losses"],
)
def test_a_loss_without_a_graph_has_no_gradient_of_zero(function, module, loss_fn):
    with pytest.raises(ValueError, match="Expected a loss that depends on the trainable parameters"):
        PASSES[function](module(), X, Y, loss_fn=loss_fn)


def test_outputs_without_a_graph_have_no_margins_and_no_flat_minimum():
    with pytest.raises(ValueError, match="margin at 'input' is defined, but got one whose output has no gradient"):
        measures.median_margin(Cut(), X, Y)
    with pytest.raises(ValueError, match="Expected a loss that depends on the trainable parameters"):
        fisher.flat_minimum_penalty(Cut(), X)


def test_gradients_that_are_zero_stay_numbers():
    """Dead units and a loss that is satisfied have a graph."""

    def hinge(outputs, targets):
        return (0.0 * outputs).sum(1).clamp(min=0)

    assert not fisher.gram_matrix(Wrapped(), X, Y, loss_fn=hinge).any()
    assert measures.fisher_rao_norm(Wrapped(), X, Y, loss_fn=hinge) == 0
    assert fisher.hessian_frobenius_norm(Wrapped(), X, Y, loss_fn=hinge).value == 0
    assert fisher.penalty_gradient(Wrapped(), X, Y, loss_fn=hinge)[0] == 0


class OneList(nn.Module):
    """The only argument of its forward pass is a list."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(8, 3)

    def forward(self, pair):
        return self.net(torch.cat(pair, 1))


class Both(OneList):
    def forward(self, first, second):
        return super().forward([first, second])


@pytest.mark.parametrize("function", sorted(PASSES.keys() - {"exact"}))
@pytest.mark.parametrize("inputs", [[X, X], {"other": X}, (X, X, X)], ids=["list", "dict", "three"])
def test_inputs_that_the_forward_pass_does_not_take(function, inputs):
    with pytest.raises(ValueError, match=r"Expected argument `inputs` to fit the module's forward\(pair\)"):
        PASSES[function](OneList(), inputs, Y)


@pytest.mark.parametrize("function", ["gram", "penalty", "Fisher-Rao"])
def test_a_list_as_the_only_argument(function):
    def numbers(net, inputs):
        found = PASSES[function](net, inputs, Y)
        return torch.cat([part.flatten() for part in found[1]]) if isinstance(found, tuple) else found

    torch.testing.assert_close(numbers(OneList(), ([X, X],)), numbers(Both(), [X, X]))


class Opaque:
    def __init__(self, x):
        self.x = x


OPAQUE = {"alone": Opaque(X), "beside": (Opaque(X), X), "deep": {"batch": Opaque({"deep": X})}}


@pytest.mark.parametrize("function", OF_INPUTS)
@pytest.mark.parametrize("where", OPAQUE)
def test_an_object_with_tensors(function, where):
    options = {"loss_fn": cross_entropy} if function in PASSES else {}
    with pytest.raises(ValueError, match=r"Expected argument `inputs`.* to be a tensor, or a .* Opaque, which isn't"):
        OF_INPUTS[function](Wrapped(), OPAQUE[where], Y, **options)


@pytest.mark.parametrize(
    "function", sorted(PASSES.keys() - {"exact", "penalty by vmap"})
)  # more parameters; nothing scripted
def test_parameters_whose_gradients_are_rounded(function):
    """A scripted module's copy in float64: autograd gives float32 gradients, which are 1e-5 off in the penalty."""
    net = nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(4, 5), nn.Tanh())), nn.Linear(5, 3))
    converted = copy.deepcopy(net).double()
    assert not next(converted.parameters()).is_leaf
    with pytest.raises(ValueError, match=r"but got torch\.float32 for a parameter of torch.float64 that"):
        PASSES[function](converted, X.double(), Y)
    PASSES[function](copy.deepcopy(net.double()), X.double(), Y)  # copied once it is what it is to be
