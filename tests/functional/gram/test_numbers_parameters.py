"""Parameters of other kinds: refused where they train, let be where they are frozen.

Frozen, tied and unused parameters of the ordinary kind are in the cases of `tests.reference.cases_parameters`.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_fisher import FisherMetric
from lightning_fisher.functional import (
    fisher_log_det,
    gram_matrix,
    hessian_frobenius_norm,
    hessian_spectral_radius,
    penalty_gradient,
)
from tests.functional.compare import gram_error
from tests.functional.tiny import X, Y, mlp
from tests.reference.jacobian import gram, jacobian


class ComplexWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, dtype=torch.complex64))

    def forward(self, x):
        return (x.to(self.weight.dtype) @ self.weight).abs()


class SparseWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(6).to_sparse())
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.sparse.mm(self.weight, x.T).T)


class HalfFrozen(nn.Module):
    """A frozen body in half precision under a float32 head; the gradients are those of the head."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 8).bfloat16().requires_grad_(False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x.bfloat16()).to(self.head.weight.dtype)))


CALLS = {
    "gram_matrix": gram_matrix,
    "fisher_log_det": fisher_log_det,
    "FisherMetric": lambda *a: FisherMetric().update(*a),
    "penalty_gradient": lambda *a: penalty_gradient(*a, num_sub_batches=2),
    "hessian_frobenius_norm": hessian_frobenius_norm,
    "hessian_spectral_radius": hessian_spectral_radius,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("make", "texts"),
    [
        (ComplexWeight, ["real", "complex64", "view_as_complex"]),
        (SparseWeight, ["dense", "sparse_coo"]),
        (lambda: mlp().bfloat16(), ["float32", "bfloat16", "mixed precision"]),
        (lambda: mlp().half(), ["float32", "float16", "mixed precision"]),
        (lambda: mlp().requires_grad_(False), ["parameters that require gradients"]),
        (nn.Flatten, ["parameters that require gradients"]),
    ],
    ids=["complex", "sparse", "bfloat16", "float16", "all frozen", "none"],
)
def test_parameters_that_cannot_be_used_are_refused(call, make, texts):
    with pytest.raises(ValueError, match="Expected") as caught:
        call(make(), X, Y)
    assert all(text in str(caught.value) for text in texts), caught.value


@pytest.mark.parametrize("frozen", ["half precision", "complex", "sparse", "integer"])
def test_frozen_parameters_may_be_of_any_kind(frozen):
    module = HalfFrozen()
    if frozen == "complex":
        module.other = nn.Parameter(torch.ones(2, dtype=torch.complex64), requires_grad=False)
    elif frozen == "sparse":
        module.other = nn.Parameter(torch.eye(2).to_sparse(), requires_grad=False)
    elif frozen == "integer":
        module.other = nn.Parameter(torch.ones(2, dtype=torch.int32), requires_grad=False)
    head = nn.Linear(8, 3)
    head.load_state_dict(module.head.state_dict())
    features = torch.tanh(module.body(X.bfloat16()).float())
    expected = gram(jacobian(head.double(), features.double(), Y))
    assert gram_error(gram_matrix(module, X, Y), expected) < 1e-5
    _, gradients = penalty_gradient(module, X, Y, num_sub_batches=2)
    moved = [name for (name, _), g in zip(module.named_parameters(), gradients, strict=True) if g.abs().sum() > 0]
    assert moved == ["head.weight", "head.bias"]


def test_requires_grad_changed_between_calls():
    module = mlp()
    whole = gram_matrix(module, X, Y)
    module[0].requires_grad_(False)
    part = gram_matrix(module, X, Y)
    module[0].requires_grad_(True)
    module[2].requires_grad_(False)
    rest = gram_matrix(module, X, Y)
    assert gram_error(part + rest, whole) < 1e-6
    assert gram_error(part, whole) > 1e-2
