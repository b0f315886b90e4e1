"""Batch-norm is folded where that is exact, and left where it isn't; the copy always computes the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from lightning_fisher.functional.measures import (
    average_sharpness,
    fold_batch_norm,
    folded_norm,
    noise_tolerance,
    path_norm,
    weight_matrices,
)

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Net(nn.Module):
    """Layers by name, a forward pass as a function of the network and its input."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.run = forward

    def forward(self, x):
        return self.run(self.layers, x)


def conv(*args, **kwargs):
    return nn.Conv2d(*args, padding=1, **kwargs)


def plain(m, x):
    return m["norm"](m["conv"](x)).relu()


IMAGE = (5, 2, 6, 6)
CASES = {
    # name: (network, shape of the inputs, batch-norm layers left)
    "convolution": (lambda: Net(plain, conv=conv(2, 4, 3), norm=nn.BatchNorm2d(4)), IMAGE, 0),
    "no bias": (lambda: Net(plain, conv=conv(2, 4, 3, bias=False), norm=nn.BatchNorm2d(4)), IMAGE, 0),
    "groups": (lambda: Net(plain, conv=conv(2, 4, 3, groups=2), norm=nn.BatchNorm2d(4)), IMAGE, 0),
    "no affine": (lambda: Net(plain, conv=conv(2, 4, 3), norm=nn.BatchNorm2d(4, affine=False)), IMAGE, 0),
    "linear": (lambda: Net(plain, conv=nn.Linear(3, 4), norm=nn.BatchNorm1d(4)), (5, 3), 0),
    "1d": (lambda: Net(plain, conv=nn.Conv1d(2, 4, 3), norm=nn.BatchNorm1d(4)), (5, 2, 8), 0),
    "3d": (lambda: Net(plain, conv=nn.Conv3d(1, 2, 2), norm=nn.BatchNorm3d(2)), (5, 1, 3, 3, 3), 0),
    "weight norm": (lambda: Net(plain, conv=weight_norm(conv(2, 4, 3)), norm=nn.BatchNorm2d(4)), IMAGE, 0),
    "parametrized": (
        lambda: Net(plain, conv=parametrizations.weight_norm(conv(2, 4, 3)), norm=nn.BatchNorm2d(4)),
        IMAGE,
        0,
    ),
    "first of all": (
        lambda: Net(lambda m, x: m["conv"](m["norm"](x)), conv=conv(2, 4, 3), norm=nn.BatchNorm2d(2)),
        IMAGE,
        1,
    ),
    "transposed": (lambda: Net(plain, conv=nn.ConvTranspose2d(2, 4, 3), norm=nn.BatchNorm2d(4)), IMAGE, 1),
    "branches off": (
        lambda: Net(lambda m, x: m["norm"](y := m["conv"](x)).relu() + y, conv=conv(2, 4, 3), norm=nn.BatchNorm2d(4)),
        IMAGE,
        1,
    ),
    "batch-norm used twice": (
        lambda: Net(lambda m, x: m["norm"](m["conv"](m["norm"](x))), conv=conv(2, 2, 3), norm=nn.BatchNorm2d(2)),
        IMAGE,
        1,
    ),
    "convolution used twice": (
        lambda: Net(lambda m, x: m["norm"](m["conv"](m["conv"](x))), conv=conv(2, 2, 3), norm=nn.BatchNorm2d(2)),
        IMAGE,
        1,
    ),
    "attributes are read": (
        lambda: Net(lambda m, x: m["norm"](m["conv"](x)) * m["norm"].eps, conv=conv(2, 4, 3), norm=nn.BatchNorm2d(4)),
        IMAGE,
        1,
    ),
    "not used": (lambda: Net(lambda m, x: m["conv"](x), conv=conv(2, 4, 3), norm=nn.BatchNorm2d(4)), IMAGE, 1),
}


def build(case):
    module, shape, left = CASES[case]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = module().double().eval()
        for norm in net.modules():
            if isinstance(norm, NORMS):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2.0)
                if norm.affine:
                    nn.init.uniform_(norm.weight, -1.0, 1.0)
                    nn.init.normal_(norm.bias)
        return net, torch.randn(shape, dtype=torch.float64), left


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_the_folded_network_computes_the_same(case):
    net, inputs, left = build(case)
    folded = fold_batch_norm(net, inputs)
    torch.testing.assert_close(folded(inputs), net(inputs), rtol=1e-11, atol=1e-12)
    norms = [layer for layer in folded.modules() if isinstance(layer, NORMS)]
    assert len(norms) == left
    assert not any(norm.running_mean.any() for norm in norms)
    again = fold_batch_norm(folded, inputs)
    torch.testing.assert_close(again(inputs), net(inputs), rtol=1e-11, atol=1e-12)


def test_a_copy_of_float32_is_float64_and_in_evaluation_mode():
    net, inputs, _ = build("convolution")
    net.float().train()
    folded = fold_batch_norm(net, inputs.float())
    assert {parameter.dtype for parameter in folded.parameters()} == {torch.float64}
    assert not any(module.training for module in folded.modules())
    assert all(module.training for module in net.modules())
    torch.testing.assert_close(folded(inputs), net.double().eval()(inputs), rtol=1e-6, atol=1e-6)


def test_without_running_statistics_it_is_refused():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(ValueError, match="Expected batch-norm layers to use running statistics"):
        fold_batch_norm(net, torch.randn(5, 3))


def test_matrices_have_one_row_an_output():
    net, inputs, _ = build("branches off")
    matrices = weight_matrices(net, inputs)
    assert {name: tuple(matrix.shape) for name, matrix in matrices.items()} == {
        "layers.conv.weight": (4, 18),
        "layers.norm.weight": (4,),
    }
    norm = net.layers["norm"]
    expected = norm.weight / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(matrices["layers.norm.weight"], expected.detach())


@pytest.mark.parametrize("case", ["weight norm", "parametrized"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_measures_of_computed_weights_are_those_of_the_plain_ones(case):
    net, inputs, _ = build(case)
    head = nn.Sequential(net, nn.Flatten(), nn.Linear(144, 3)).double()
    plain_head = nn.Sequential(fold_batch_norm(net, inputs), *head[1:])
    targets = head(inputs).argmax(1)
    for measure in (path_norm, folded_norm):
        torch.testing.assert_close(measure(head, inputs), measure(plain_head, inputs))
    result = noise_tolerance(head, inputs, targets, num_draws=2, max_steps=3, tol=1.0)
    torch.testing.assert_close(result, noise_tolerance(plain_head, inputs, targets, num_draws=2, max_steps=3, tol=1.0))
    assert average_sharpness(head, inputs, targets, num_draws=2).isfinite()
    head(inputs).sum().backward()  # and the original still works
