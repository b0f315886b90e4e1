"""GhostBatchNorm against two public codes' arrays, batch-norm of each part, and its conversions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_fisher.functional import gram_matrix
from lightning_fisher.layers import GhostBatchNorm, convert_ghost_batch_norm
from tests.reference.methods import ARRAYS, array, batches, network
from tests.reference.penalty import split_sizes

LAYERS = {"bigbatch": "sequential", "composer": "averaged"}
each_code = pytest.mark.parametrize("code", LAYERS)


def stored(run, name):
    """An array whose key may hold Composer's name of the layer inside its layer."""
    layer, _, last = name.partition(".")
    key = f"{run}/{name}"
    return array(key if key in ARRAYS else f"{run}/{layer}.batchnorm.{last}")


@each_code
def test_public_code_forward_and_statistics(code):
    net = convert_ghost_batch_norm(network("conv"), 4, LAYERS[code])
    data = batches("conv")
    logits = torch.stack([net(x) for x, _ in data[:3]])
    assert (logits - array(f"ghost_bn/{code}/logits")).abs().max() < 1e-12
    for name, buffer in net.named_buffers():
        if "num_batches" in name:
            assert buffer.item() == 12
        else:
            assert (buffer - stored(f"ghost_bn/{code}/after3", name)).abs().max() < 1e-12
    net.eval()
    assert (net(data[3][0]) - array(f"ghost_bn/{code}/eval_logits")).abs().max() < 1e-12


@each_code
def test_public_code_training(code):
    net = convert_ghost_batch_norm(network("conv"), 4, LAYERS[code])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    run = f"ghost_bn/{code}_train"
    for t, (x, y) in enumerate(batches("conv")):
        loss = cross_entropy(net(x), y)
        assert loss.item() == pytest.approx(array(f"{run}/loss")[t].item(), abs=1e-10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name, p in net.named_parameters():
            assert (p - stored(f"{run}/weights", name)[t]).abs().max() < 1e-10
        for name, buffer in net.named_buffers():
            if "num_batches" not in name:
                assert (buffer - stored(f"{run}/buffers", name)[t]).abs().max() < 1e-10


def test_public_code_with_parts_of_three():
    net = convert_ghost_batch_norm(network("conv"), 4)
    x = batches("conv")[0][0][:9]
    assert (net(x) - array("ghost_bn/composer/uneven_logits_n9")).abs().max() < 1e-12


@pytest.mark.parametrize("update", ["sequential", "averaged"])
@pytest.mark.parametrize(("count", "size"), [(8, 4), (13, 4), (5, 4), (3, 8), (9, 3), (6, 2)])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 2, 2)])
def test_against_batch_norm_of_each_part(shape, count, size, update):
    layer = GhostBatchNorm(3, size, update=update).double()
    plain = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[len(shape)](3).double()
    x = torch.randn(count, 3, *shape).double()
    sizes = split_sizes(count, -(-count // size))
    assert max(sizes) <= size
    plain.momentum = 0.1 / (1 if update == "sequential" else len(sizes))
    expected = torch.cat([plain(part) for part in x.split(sizes)])
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer.running_mean, plain.running_mean)
    assert torch.equal(layer.running_var, plain.running_var)
    assert torch.equal(layer.num_batches_tracked, plain.num_batches_tracked)
    assert torch.equal(layer.eval()(x), plain.eval()(x))


def test_one_part_is_batch_norm():
    x = torch.randn(6, 3, 4, 4)
    layer, plain = GhostBatchNorm(3, size=6), nn.BatchNorm2d(3)
    assert torch.equal(layer(x), plain(x))
    assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), plain.buffers(), strict=True))


def test_without_momentum_the_statistics_are_the_mean_over_the_parts():
    layer = GhostBatchNorm(3, size=2, momentum=None).double()
    x = torch.randn(8, 3, 4).double()
    layer(x[:4])
    layer(x[4:])
    parts = x.view(4, 2, 3, 4)
    assert torch.allclose(layer.running_mean, parts.mean((1, 3)).mean(0), rtol=1e-12)
    assert torch.allclose(layer.running_var, parts.transpose(1, 2).flatten(2).var(2).mean(0), rtol=1e-12)


def test_without_running_statistics_it_works_by_parts_in_evaluation_too():
    layer = GhostBatchNorm(3, size=2, track_running_stats=False)
    x = torch.randn(4, 3, 4)
    trained = layer(x)
    assert torch.equal(layer.eval()(x), trained)
    assert layer.state_dict().keys() == nn.BatchNorm1d(3, track_running_stats=False).state_dict().keys()


def test_state_dict_goes_both_ways():
    plain = network("conv")
    for x, _ in batches("conv"):
        plain(x)
    ghost = convert_ghost_batch_norm(network("conv"), 4)
    assert ghost.state_dict().keys() == plain.state_dict().keys()
    ghost.load_state_dict(plain.state_dict())
    x = batches("conv")[0][0]
    assert torch.equal(ghost.eval()(x), plain.eval()(x))
    network("conv").load_state_dict(ghost.state_dict())


def test_conversion_keeps_tensors_mode_and_options():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, eps=1e-3, momentum=0.2), nn.Sequential(nn.BatchNorm2d(4, affine=False))
    )
    net[2].eval()
    before = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    converted = convert_ghost_batch_norm(net, 8)
    assert converted is net
    after = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert (net[1].eps, net[1].momentum, net[1].affine, net[1].training, net[1].size) == (1e-3, 0.2, True, True, 8)
    assert (net[2][0].affine, net[2][0].training) == (False, False)
    assert "size=8" in repr(net[1])


def test_a_layer_held_twice_stays_one_and_the_root_is_returned_anew():
    layer = nn.BatchNorm1d(3)
    net = convert_ghost_batch_norm(nn.ModuleList([layer, nn.Sequential(layer)]), 2)
    assert net[0] is net[1][0]
    single = convert_ghost_batch_norm(layer, 2)
    assert isinstance(single, GhostBatchNorm)
    assert single.weight is layer.weight
    assert convert_ghost_batch_norm(single, 2) is single


def test_copies_and_gradients():
    layer = copy.deepcopy(GhostBatchNorm(3, size=2)).double()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer.requires_grad_(False)(x), (x,))


def test_gram_matrix_in_evaluation_mode():
    plain = network("conv").eval()
    x, y = batches("conv")[0]
    expected = gram_matrix(plain, x, y)
    got = gram_matrix(convert_ghost_batch_norm(plain, 4), x, y)
    assert torch.allclose(got, expected, rtol=1e-12, atol=0)


def test_synchronized_batch_norm_replaces_it_as_the_documentation_says():
    net = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(GhostBatchNorm(3, 2)))
    assert type(net[0]) is nn.SyncBatchNorm


@pytest.mark.parametrize("layer", [nn.SyncBatchNorm(3), nn.LazyBatchNorm2d(), type("Acting", (nn.BatchNorm2d,), {})(3)])
def test_other_batch_norm_layers_are_refused(layer):
    with pytest.raises(ValueError, match=f"{type(layer).__name__} \\('0'\\)"):
        convert_ghost_batch_norm(nn.Sequential(layer), 4)


def test_mistakes_are_named():
    for options, text in (({"size": 0}, "`size`.*0"), ({"size": 2, "update": "never"}, "`update`.*never")):
        with pytest.raises(ValueError, match=text):
            GhostBatchNorm(3, **options)
        with pytest.raises(ValueError, match=text):
            convert_ghost_batch_norm(nn.BatchNorm1d(3), **options)
    with pytest.raises(ValueError, match=r"\[N, C, …\].*\(3,\)"):
        GhostBatchNorm(3, 2)(torch.randn(3))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        GhostBatchNorm(3, 1)(torch.randn(2, 3))
