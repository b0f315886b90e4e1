"""Rules for a user's own layers: used, checked, and never trusted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_fisher.functional import check_rule, gram_matrix, register_rule
from lightning_fisher.functional.gram.rules.custom import CUSTOM_RULES
from tests.functional.compare import gram_error
from tests.reference.jacobian import gram, jacobian

N = 8


class Scale(nn.Module):
    """``a x + b`` for every feature of ``[N, L, d]`` or ``[N, d]``."""

    def __init__(self, width=6):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))

    def forward(self, x):
        return torch.addcmul(self.b, self.a, x)


def scale_gradients(layer, inputs, gradients):
    flat = lambda values: values.reshape(len(values), -1, values.shape[-1]).sum(1)  # noqa: E731
    return {"a": flat(inputs * gradients), "b": flat(gradients)}


class Bilinear(nn.Module):
    """A quadratic layer with a submodule: ``(x W) ∘ (x V)``."""

    def __init__(self):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(6, 6)), nn.Linear(6, 6, bias=False)

    def forward(self, x):
        return torch.einsum("ni,ij->nj", x, self.w) * self.v(x)


def bilinear_gradients(layer, x, g):
    return {
        "w": torch.einsum("ni,nj->nij", x, g * layer.v(x)),
        "v.weight": torch.einsum("nj,ni->nji", g * (x @ layer.w), x),
    }


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Rules of a test end with it."""
    before = dict(CUSTOM_RULES)
    yield
    CUSTOM_RULES.clear()
    CUSTOM_RULES.update(before)


def network(layer, shape=(6,)):
    flatten = [nn.Flatten()] if len(shape) > 1 else []
    width = torch.Size(shape).numel()
    return nn.Sequential(nn.Linear(6, 6), layer, nn.Tanh(), layer, *flatten, nn.Linear(width, 3)).double()


def passes(module):
    sizes = []
    module.register_forward_pre_hook(lambda layer, inputs: sizes.append(len(inputs[0])))
    return sizes


@pytest.mark.parametrize("shape", [(6,), (4, 6)])
def test_a_rule_saves_the_passes_of_single_samples(shape):
    torch.manual_seed(0)
    module, x, y = network(Scale(), shape), torch.randn(N, *shape).double(), torch.arange(N) % 3
    expected = gram(jacobian(module, x, y))
    sizes = passes(module)
    assert gram_error(gram_matrix(module, x, y), expected) < 1e-9
    assert sizes.count(1) == N + 2  # one to verify, one to know it by in later calls
    sizes.clear()
    register_rule(Scale)(scale_gradients)  # which makes a new plan
    for _ in range(2):
        assert gram_error(gram_matrix(module, x, y), expected) < 1e-9
    assert sizes == [2, N, N // 2, N // 2, 1, N]


def test_a_layer_with_a_submodule():
    torch.manual_seed(0)
    register_rule(Bilinear)(bilinear_gradients)
    check_rule(Bilinear(), torch.randn(5, 6))
    module, x, y = network(Bilinear()), torch.randn(N, 6).double(), torch.arange(N) % 3
    expected = gram(jacobian(module, x, y))
    sizes = passes(module)
    assert gram_error(gram_matrix(module, x, y), expected) < 1e-9
    assert sizes.count(1) == 1  # to verify


def test_a_sample_may_own_several_rows():
    """The layer sees ``[L N, d]``; its rule gets rows and theirs are added up."""
    register_rule(Scale)(scale_gradients)

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.out = Scale(), nn.Linear(6, 3)

        def forward(self, x):
            rows = torch.tanh(self.scale(x.transpose(0, 1).reshape(-1, 6)))
            return self.out(rows.view(x.shape[1], -1, 6).mean(0))

    torch.manual_seed(0)
    module, x, y = Flat().double(), torch.randn(N, 4, 6).double(), torch.arange(N) % 3
    expected = gram(jacobian(module, x, y))
    sizes = passes(module)
    assert gram_error(gram_matrix(module, x, y), expected) < 1e-9
    assert sizes.count(1) == 1  # to verify


def test_frozen_parameters_of_the_layer():
    register_rule(Scale)(scale_gradients)
    torch.manual_seed(0)
    module, x, y = network(Scale()), torch.randn(N, 6).double(), torch.arange(N) % 3
    module[1].b.requires_grad_(False)
    assert gram_error(gram_matrix(module, x, y), gram(jacobian(module, x, y))) < 1e-9


def wrong(layer, inputs, gradients):
    return {"a": inputs * gradients, "b": 2 * gradients}


def test_a_wrong_rule_gives_no_wrong_number_and_is_named():
    register_rule(Scale)(wrong)
    torch.manual_seed(0)
    module, x, y = network(Scale()), torch.randn(N, 6).double(), torch.arange(N) % 3
    for _ in range(2):
        assert gram_error(gram_matrix(module, x, y), gram(jacobian(module, x, y))) < 1e-9
    with pytest.raises(ValueError, match=r"rule of Scale .* for 'b', but got a relative difference of 1.0e\+00"):
        check_rule(Scale(), torch.randn(4, 6))


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (lambda layer, x, g: {"a": x * g}, r"shape \(4, 6\) for the parameter 'b', but got rows for \['a'\] only"),
        (
            lambda layer, x, g: {"a": (x * g).sum(0), "b": g},
            r"shape \(4, 6\) for the parameter 'a', but got shape \(6,\)",
        ),
    ],
)
def test_rows_that_are_missing_or_of_another_shape(rows, text):
    register_rule(Scale)(rows)
    with pytest.raises(ValueError, match=text):
        check_rule(Scale(), torch.randn(4, 6))


def test_what_cannot_have_a_rule():
    with pytest.raises(ValueError, match=r"layer_type.*subclass of torch.nn.Module.*tanh"):
        register_rule(torch.tanh)
    with pytest.raises(ValueError, match=r"class with a rule.*Linear"):
        check_rule(nn.Linear(2, 2), torch.randn(3, 2))


def test_a_subclass_with_a_forward_of_its_own_has_no_rule():
    class Doubled(Scale):
        def forward(self, x):
            return 2 * super().forward(x)

    class Renamed(Scale):
        pass

    register_rule(Scale)(scale_gradients)
    check_rule(Renamed(), torch.randn(3, 6))
    with pytest.raises(ValueError, match="Doubled"):
        check_rule(Doubled(), torch.randn(3, 6))
    torch.manual_seed(0)
    module, x, y = network(Doubled()), torch.randn(N, 6).double(), torch.arange(N) % 3
    assert gram_error(gram_matrix(module, x, y), gram(jacobian(module, x, y))) < 1e-9


def test_nothing_is_left_on_the_layer():
    register_rule(Scale)(scale_gradients)
    layer = Scale().double()
    gram_matrix(network(layer), torch.randn(N, 6).double(), torch.arange(N) % 3)
    assert "forward" not in vars(layer)
