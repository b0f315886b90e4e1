"""Work cut into blocks, of samples and of output features, adds up to the same ξ."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_fisher.functional import gram_matrix
from lightning_fisher.functional.gram.rules import convolution, products
from tests.functional.compare import gram_error
from tests.reference.jacobian import gram, jacobian

CONVOLUTIONS = {
    "1d": (nn.Conv1d(32, 48, 3, padding=1), (32, 9)),
    "2d": (nn.Conv2d(32, 40, 3, padding=1), (32, 7, 7)),
    "strided": (nn.Conv2d(40, 32, (3, 2), stride=2, dilation=(1, 2), padding=(1, 0)), (40, 9, 8)),
    "same, uneven": (nn.Conv2d(32, 33, 2, padding="same"), (32, 6, 5)),
    "3d": (nn.Conv3d(32, 32, 2), (32, 3, 4, 3)),
}


@pytest.fixture
def multiplied(monkeypatch):
    """The sizes of the products ``G · columns`` that ran."""
    sizes = []
    multiply = torch.bmm

    def spy(a, b, *, out):
        sizes.append((a.shape[0], a.shape[1]))
        return multiply(a, b, out=out)

    monkeypatch.setattr(torch, "bmm", spy)
    return sizes


@pytest.mark.parametrize("samples_at_once", [1, 2, 11])
@pytest.mark.parametrize("features_at_once", [7, 1000])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_blocks(name, samples_at_once, features_at_once, monkeypatch, multiplied):
    torch.manual_seed(0)
    layer, shape = CONVOLUTIONS[name]
    inputs, targets = torch.randn(11, *shape).double(), torch.arange(11) % 3
    maps = layer.double()(inputs).flatten(2)
    module = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(maps[0].numel(), 3)).double()
    expected = gram(jacobian(module, inputs, targets))
    d_in, features = layer.weight[0].numel(), layer.weight.shape[0]
    options = {name: getattr(layer, name) for name in ("weight", "bias", "stride", "padding", "dilation", "groups")}
    in_flight = samples_at_once * convolution._Columns(inputs, layer(inputs), options).elements
    monkeypatch.setattr(products, "CACHED", -(-in_flight // torch.get_num_threads()))
    monkeypatch.setattr(products, "MAX_ELEMENTS", features_at_once * len(inputs) * d_in)
    # For maps this small another form is cheaper, which isn't what is tested.
    monkeypatch.setattr(convolution, "products_pay", lambda *sizes: False)
    assert gram_error(gram_matrix(module, inputs, targets), expected) < 1e-9
    assert {samples for samples, _ in multiplied} == {1: {1}, 2: {2, 1}, 11: {11}}[samples_at_once]
    assert max(outputs for _, outputs in multiplied) == min(features_at_once, features)


@pytest.mark.parametrize("count", [1, 31, 33, 100])
@pytest.mark.parametrize("lengths", [[5], [4000], [4000, 7, 3000]])
def test_gram_of_rows(count, lengths):
    torch.manual_seed(0)
    parts = [torch.randn(count, length) for length in lengths]
    found = products.gram_of_rows(iter(parts))
    every = torch.cat(parts, 1).double()
    assert gram_error(found, every @ every.T) < 1e-5
    assert torch.equal(found, found.T)
