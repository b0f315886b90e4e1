"""Raw parameters in products and sums have rules of their own: no pass of single samples, in any shape and layout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_fisher.functional import gram_matrix
from tests.functional.compare import gram_error
from tests.reference.jacobian import gram, jacobian
from tests.reference.modules import Lambda

N, L, D = 7, 4, 6
SHAPES = [(D,), (1, D), (L, D), (1, L, D), (L, 1), (1, 1, D), (1, 1, 1), ()]
FORMS = {
    "x * w": lambda x, w: x * w,
    "w * x": lambda x, w: w * x,
    "torch.mul": torch.mul,
    "x + w": lambda x, w: x + w,
    "w + x": lambda x, w: w + x,
    "torch.add": torch.add,
}


def check(module, x, *, covered=True):
    """Check ξ, and whether samples ran one by one."""
    y, sizes = torch.arange(len(x)) % 3, []
    expected = gram(jacobian(module, x, y))
    module.register_forward_pre_hook(lambda layer, inputs: sizes.append(len(inputs[0])))
    for _ in range(2):
        assert gram_error(gram_matrix(module, x, y), expected) < 1e-9
    assert (sizes.count(1) <= 2) == covered  # one a call to verify


def between(function, shape, time_first=False):
    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        hidden = hidden.transpose(0, 1) if time_first else hidden
        hidden = function(hidden, self.weight)
        return self.out(torch.tanh(hidden).mean(0 if time_first else 1))

    torch.manual_seed(0)
    layers = {"first": nn.Linear(D, D), "out": nn.Linear(D, 3)}
    return Lambda(forward, {"weight": torch.randn(shape)}, **layers).double()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_scales_and_shifts(form, shape):
    check(between(FORMS[form], shape), torch.randn(N, L, D).double())


@pytest.mark.parametrize("form", ["x * w", "w + x"])
def test_samples_in_another_dimension(form):
    check(between(FORMS[form], (D,), time_first=True), torch.randn(N, L, D).double())


@pytest.mark.parametrize("shape", [(L, 1, D), (2, 1, 1, D)], ids=str)
def test_what_is_not_a_parameter_of_each_sample_alone_goes_row_by_row(shape):
    """A parameter as large as the input along a dimension that holds the samples in no layout, or that enlarges it."""
    function = (lambda x, w: x * w) if len(shape) == 3 else (lambda x, w: (x * w).sum(0))
    check(between(function, shape, time_first=len(shape) == 3), torch.randn(N, L, D).double(), covered=False)


PRODUCTS = {
    "x @ W": (lambda x, w, b: x @ w, True),
    "torch.matmul": (lambda x, w, b: torch.matmul(x, w), True),
    "torch.mm": (lambda x, w, b: torch.mm(x.reshape(-1, D), w).view(*x.shape[:-1], -1), True),
    "torch.addmm": (lambda x, w, b: torch.addmm(b, x.reshape(-1, D), w).view(*x.shape[:-1], -1), True),
    "addmm, scaled": (lambda x, w, b: torch.addmm(b, x.reshape(-1, D), w, alpha=2).view(*x.shape[:-1], -1), False),
    "W @ x": (lambda x, w, b: (w.T @ x.transpose(-1, -2)).transpose(-1, -2), False),
    "a batch of matrices": (lambda x, w, b: x @ w.expand(len(x), -1, -1), False),
    "twice": (lambda x, w, b: torch.tanh(x @ w) @ w, True),
}


@pytest.mark.parametrize(("function", "covered"), PRODUCTS.values(), ids=PRODUCTS)
@pytest.mark.parametrize("shape", [(N, L, D), (40, 1, D), (4, 20, D)], ids=str)
def test_products(function, covered, shape):
    def forward(self, x):
        return self.out(torch.tanh(function(x, self.weight, self.bias)).mean(1))

    torch.manual_seed(0)
    module = Lambda(forward, {"weight": torch.randn(D, D), "bias": torch.randn(D)}, out=nn.Linear(D, 3)).double()
    module.bias.requires_grad_("addmm" in function.__code__.co_names)
    check(module, torch.randn(*shape).double(), covered=covered)


def test_an_rms_norm_written_out():
    def forward(self, x):
        hidden = self.first(x)
        hidden = self.scale * (hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-6))
        return self.out(torch.tanh(hidden).mean(1))

    torch.manual_seed(0)
    module = Lambda(forward, {"scale": torch.randn(D)}, first=nn.Linear(D, D), out=nn.Linear(D, 3)).double()
    check(module, torch.randn(N, L, D).double())


def test_a_parameter_as_scale_and_shift_and_matrix():
    def forward(self, x):
        return self.out(torch.tanh((x @ self.square) * self.square[0] + self.square.sum(0)).mean(1))

    torch.manual_seed(0)
    module = Lambda(forward, {"square": torch.randn(D, D)}, out=nn.Linear(D, 3)).double()
    check(module, torch.randn(N, L, D).double(), covered=False)


def test_one_scale_used_as_scale_and_shift():
    def forward(self, x):
        return self.out(torch.tanh(self.v * x + self.v).mean(1))

    torch.manual_seed(0)
    module = Lambda(forward, {"v": torch.randn(D)}, out=nn.Linear(D, 3)).double()
    check(module, torch.randn(N, L, D).double())
