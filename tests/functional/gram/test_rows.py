"""The general method: one pass a sample for all parameters at once, in as few blocks of J as memory holds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_fisher.functional import gram_matrix
from lightning_fisher.functional.gram import per_sample_jacobian
from tests.functional.compare import gram_error
from tests.reference.jacobian import gram, jacobian
from tests.reference.modules import LastStep, MatrixProduct

N = 12


class Custom(nn.Module):
    """A matrix product that no rule knows, under a small head."""

    def __init__(self):
        super().__init__()
        self.weight, self.out = nn.Parameter(torch.randn(8, 5)), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(torch.tanh(MatrixProduct.apply(x.mean(1), self.weight)))


class Scan(nn.Module):
    """A gated recurrence: nearly all of its parameters are in layers with a rule."""

    def __init__(self):
        super().__init__()
        self.decay = nn.Parameter(torch.randn(6))
        self.step, self.gate, self.out = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = x.new_zeros(len(x), 6)
        for t in range(x.shape[1]):
            h = torch.sigmoid(self.decay) * h + self.step(x[:, t]) * torch.sigmoid(self.gate(x[:, t]))
        return self.out(h)


class Einsum(nn.Module):
    """Layers by `torch.einsum`."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(5, 5) for _ in range(3))
        self.biases = nn.ParameterList(torch.randn(5) for _ in range(3))
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = x + torch.tanh(torch.einsum("nlf,fk->nlk", x, weight) + bias)
        return self.out(x.mean(1))


MODULES = {
    "LSTM": lambda: LastStep(nn.LSTM(5, 6, num_layers=2, batch_first=True), 6, 3),
    "custom function": Custom,
    "scan": Scan,
    "einsum": Einsum,
}


@pytest.fixture(params=MODULES)
def setting(request):
    torch.manual_seed(0)
    module, x, y = MODULES[request.param]().double(), torch.randn(N, 4, 5).double(), torch.arange(N) % 3
    expected, sizes = gram(jacobian(module, x, y)), []
    module.register_forward_pre_hook(lambda layer, inputs: sizes.append(len(inputs[0])))
    return module, x, y, expected, sizes


def test_one_pass_a_sample(setting):
    module, x, y, expected, sizes = setting
    for _ in range(2):
        sizes.clear()
        assert gram_error(gram_matrix(module, x, y), expected) < 1e-9
    # Where nobody sees into a function, every call is verified by the batch.
    assert sizes in ([1] * N, [1] * N + [N])


def test_little_memory_takes_blocks_of_columns(setting, monkeypatch):
    module, x, y, expected, sizes = setting
    monkeypatch.setattr(per_sample_jacobian, "row_limit", lambda problem: 1)
    monkeypatch.setattr(
        "lightning_fisher.functional.gram.single_passes.one_by_one.rows_fit", lambda problem, elements: False
    )
    for _ in range(2):
        sizes.clear()
        assert gram_error(gram_matrix(module, x, y), expected) < 1e-9
    assert sizes.count(1) % N <= 1  # one to verify


def test_the_limit_follows_the_memory(monkeypatch):
    module = nn.Linear(2, 2)
    problem = type("Problem", (), {"parameters": tuple(module.parameters()), "device": torch.device("cpu")})()
    monkeypatch.setattr(per_sample_jacobian, "available_memory", lambda device: 16.0 * 2**30)
    assert per_sample_jacobian.row_limit(problem) == 2**30  # a quarter of it in float32
    monkeypatch.setattr(per_sample_jacobian, "available_memory", lambda device: 0.0)
    assert per_sample_jacobian.row_limit(problem) == per_sample_jacobian.MAX_ELEMENTS


def test_float32_rows_are_summed_up_in_float64():
    torch.manual_seed(0)
    module, x, y = MODULES["LSTM"](), torch.randn(N, 4, 5), torch.arange(N) % 3
    expected = gram(jacobian(module, x, y))
    got = gram_matrix(module, x, y)
    assert got.dtype == torch.float64
    assert gram_error(got, expected) < 1e-5
