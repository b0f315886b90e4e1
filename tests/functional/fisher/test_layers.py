"""The Gram matrices of layers against dense J, and what is made of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_fisher.functional import fisher_log_det, gram_matrix, layer_gram_matrices, layer_log_dets
from tests.functional.compare import gram_error
from tests.reference.cases import CASES, by_name, each
from tests.reference.coupled import coupled_jacobian
from tests.reference.gamma_forms import columns_of_layers, rows_at_equal_outputs, weight_sizes
from tests.reference.jacobian import gram, jacobian

VECTORS = ["mlp", "conv2d_deep", "batch_norm2d", "layer_norm", "attention_used_twice"]


@each(CASES)
def test_gram_matrices_of_layers(case):
    module, inputs, targets = case.build()
    rows = jacobian(module, inputs, targets, loss_fn=case.loss_fn)
    columns = columns_of_layers(module)
    got = layer_gram_matrices(module, inputs, targets, loss_fn=case.loss_fn)
    assert list(got) == list(columns)
    whole = gram(rows)
    for name, where in columns.items():  # errors relative to the rows of the whole: a layer may have none
        expected = gram(rows[:, where])
        assert gram_error(whole + got[name] - expected, whole) < 1e-9, name


@pytest.mark.parametrize("scale", ["none", "layer", "filter", "element"])
@pytest.mark.parametrize("name", VECTORS)
def test_gram_matrices_of_layers_in_every_form(name, scale):
    case = by_name(name)
    module, inputs, targets = case.build()
    rows, _ = rows_at_equal_outputs(module, inputs, targets)
    rows = rows * weight_sizes(module, scale)
    how = {"residual": False, "scale": scale}
    for chunk_size in (None, 2):
        got = layer_gram_matrices(module, inputs, targets, chunk_size=chunk_size, **how)
        for layer, where in columns_of_layers(module).items():
            assert gram_error(got[layer], gram(rows[:, where])) < 1e-9, layer
    total = gram_matrix(module, inputs, targets, **how)
    torch.testing.assert_close(sum(got.values()), total, rtol=1e-9, atol=1e-12)


def test_named_groups():
    module, inputs, targets = by_name("conv2d_deep").build()
    rows, layers = jacobian(module, inputs, targets), columns_of_layers(module)
    first = next(iter(layers))
    got = layer_gram_matrices(
        module, inputs, targets, group=lambda name: "stem" if name.startswith(f"{first}.") else "rest"
    )
    assert list(got) == ["stem", "rest"]
    assert gram_error(got["stem"], gram(rows[:, layers[first]])) < 1e-9
    rest = [column for name, where in layers.items() if name != first for column in where]
    assert gram_error(got["rest"], gram(rows[:, rest])) < 1e-9


def test_statistics_of_the_batch():
    module, inputs, targets = by_name("batch_norm2d").build()
    rows = coupled_jacobian(module, inputs, targets, chunk_size=3)
    got = layer_gram_matrices(module, inputs, targets, batch_norm="batch", chunk_size=3)
    for layer, where in columns_of_layers(module).items():
        assert gram_error(got[layer], gram(rows[:, where])) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", VECTORS)
def test_trace_rank_determinant_spectrum_and_share(name, dtype):
    case = by_name(name)
    module, inputs, targets = case.build(dtype)
    how = {"logit_norm": 0.04}
    found = layer_log_dets(module, inputs, targets, **how)
    rows = jacobian(module, inputs, targets, **how)
    whole = fisher_log_det(module, inputs, targets, **how)
    close = 1e-9 if dtype == torch.float64 else 1e-3
    assert found.total.log_det.item() == pytest.approx(whole.log_det.item(), abs=1e-9)
    inverse = torch.linalg.inv(gram(rows / rows.norm(dim=1, keepdim=True)))
    shares = []
    for layer, where in columns_of_layers(module).items():
        part, own = rows[:, where], found.layers[layer]
        assert own.num_parameters == len(where)
        assert own.log_trace.item() == pytest.approx(part.square().sum().log().item(), abs=close)
        values = torch.linalg.svdvals(part)
        unit = part / part.norm(dim=1, keepdim=True)
        rank = int(torch.linalg.matrix_rank(unit))
        if dtype == torch.float64:
            assert int(own.rank) == rank
            logs = own.log_eigenvalues[:rank]
            torch.testing.assert_close(logs, 2 * values[:rank].log(), rtol=0, atol=1e-5)
            assert bool(torch.isneginf(own.log_eigenvalues[rank:]).all())
            assert own.log_det.item() == pytest.approx(2 * values[:rank].log().sum().item(), abs=1e-5)
        scaled = part / rows.norm(dim=1, keepdim=True)
        shares.append((inverse * gram(scaled)).sum().item() / len(targets))
        assert own.share.item() == pytest.approx(shares[-1], abs=close)
    assert sum(float(layer.share) for layer in found.layers.values()) == pytest.approx(1.0, abs=1e-9)


def test_a_share_is_the_derivative_by_a_layers_part():
    module, inputs, targets = by_name("mlp").build()
    grams = layer_gram_matrices(module, inputs, targets)
    found = layer_log_dets(module, inputs, targets)
    whole, step = sum(grams.values()), 1e-6
    for name, part in grams.items():
        change = torch.linalg.slogdet(whole + step * part)[1] - torch.linalg.slogdet(whole - step * part)[1]
        assert found.layers[name].share.item() == pytest.approx(change.item() / (2 * step) / len(targets), abs=1e-6)


def test_a_layer_without_a_gradient():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.used(x)

    torch.manual_seed(0)
    found = layer_log_dets(Net().double(), torch.randn(4, 4).double(), torch.tensor([0, 1, 2, 1])).layers
    assert int(found["unused"].rank) == 0
    assert found["unused"].log_trace.item() == -math.inf
    assert found["unused"].share.item() == 0.0
    assert math.isnan(found["unused"].log_det)
    assert found["used"].share.item() == pytest.approx(1.0)
