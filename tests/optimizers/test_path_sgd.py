"""PathSGD against stored arrays, the paths one by one, and the rescaling that it must not see."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_fisher.optimizers import PathSGD
from lightning_fisher.optimizers.path_sgd import path_scaling
from tests.reference.methods import array, batches, network, weights_error

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]


def fit(module, optimizer, steps, check=lambda t: None):
    for t, (x, y) in enumerate(batches()[:steps]):
        optimizer.zero_grad()
        cross_entropy(module(x), y).backward()
        optimizer.step()
        check(t)


def test_the_papers_formula():
    module = network("relu_mlp")
    errors = []
    fit(
        module,
        PathSGD(module.parameters(), lr=0.01, model=module),
        6,
        lambda t: errors.append(weights_error(module, "path_sgd/paper", t)),
    )
    assert max(errors) < 1e-10


def test_public_code_with_its_mistakes_mended():
    """Its learning rate has a constant factor, fixed at the first step."""
    module = network("relu_mlp")
    ratio = array("path_sgd/list_fixed_zeroed/ratio").item()
    errors = []
    fit(
        module,
        PathSGD(module.parameters(), lr=0.01 * ratio, model=module, momentum=0.9),
        6,
        lambda t: errors.append(weights_error(module, "path_sgd/list_fixed_zeroed", t)),
    )
    assert max(errors) < 1e-10


def test_scaling_of_the_public_code():
    module = network("relu_mlp")
    found = path_scaling(module, (8,))
    for name, p in module.named_parameters():
        assert torch.allclose(
            found[id(p)], array(f"path_sgd/list_fixed_zeroed/scaling_step1/{name}"), rtol=1e-12, atol=0
        )
    norm = sum((p.detach() ** 2 * found[id(p)]).sum().item() for p in [module[4].weight, module[4].bias])
    assert norm == pytest.approx(array("path_sgd/path_norm_initial").item(), rel=1e-12)


def test_scaling_is_the_sum_over_paths():
    """All paths of a network 3-2-2-2 with biases, enumerated."""
    module = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    found = path_scaling(module, (3,))
    expected = {id(p): torch.zeros_like(p) for p in module.parameters()}
    layers = [module[0], module[2], module[4]]

    def add(edges):
        """``edges``: (parameter, index) of each edge of a path."""
        for i, (p, index) in enumerate(edges):
            product = 1.0
            for j, (q, other) in enumerate(edges):
                product *= 1.0 if i == j else q[other].item() ** 2
            expected[id(p)][index] += product

    for i, j, k, o in itertools.product(range(3), range(2), range(2), range(2)):
        add([(layers[0].weight, (j, i)), (layers[1].weight, (k, j)), (layers[2].weight, (o, k))])
    for j, k, o in itertools.product(range(2), repeat=3):
        add([(layers[0].bias, (j,)), (layers[1].weight, (k, j)), (layers[2].weight, (o, k))])
    for k, o in itertools.product(range(2), repeat=2):
        add([(layers[1].bias, (k,)), (layers[2].weight, (o, k))])
    for o in range(2):
        add([(layers[2].bias, (o,))])
    for p in module.parameters():
        assert torch.allclose(found[id(p)], expected[id(p)], rtol=1e-12, atol=0)


class Residual(nn.Module):
    """Convolutions with a stride, a skip connection and a mean over the positions."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, stride=2)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        return self.fc(self.drop(x + torch.relu(self.conv2(x))).mean((2, 3)))


def rescaled_mlp(factors):
    module = network("relu_mlp")
    with torch.no_grad():
        module[2].weight.mul_(factors[:, None])
        module[2].bias.mul_(factors)
        module[4].weight.div_(factors)
    return module


def test_a_step_does_not_see_the_scale_of_units():
    x, _ = batches()[0]
    outputs = []
    for factors in (torch.ones(16).double(), torch.linspace(0.01, 30, 16).double()):
        module = rescaled_mlp(factors)
        fit(module, PathSGD(module.parameters(), lr=0.01, model=module), 3)
        outputs.append(module(x))
    assert torch.allclose(*outputs, rtol=1e-9, atol=1e-12)


def test_a_step_does_not_see_the_scale_of_channels():
    images, y = batches("conv")[0]
    outputs = []
    for factor in (1.0, 7.0):
        torch.manual_seed(0)
        module = Residual().double()
        with torch.no_grad():  # of all channels in front of the skip connection
            module.conv1.weight.mul_(factor)
            module.conv1.bias.mul_(factor)
            module.conv2.bias.mul_(factor)
            module.fc.weight.div_(factor)
        optimizer = PathSGD(module.parameters(), 0.01, module, (1, 8, 8))
        torch.manual_seed(1)
        cross_entropy(module(images), y).backward()
        optimizer.step()
        assert module.drop.training
        module.eval()
        outputs.append(module(images))
    assert torch.allclose(*outputs, rtol=1e-9, atol=1e-12)


def test_edges_on_no_path_stay_and_nothing_is_undefined():
    module = network("relu_mlp")
    with torch.no_grad():
        module[4].weight[:, :3] = 0.0  # nothing reaches the output from these units
        module[2].weight[5, :] = 0.0
        module[2].bias[5] = 0.0
    kept = module[2].weight[:3].detach().clone()
    fit(module, PathSGD(module.parameters(), lr=0.01, model=module), 1)
    assert torch.equal(module[2].weight[:3], kept)
    assert all(p.isfinite().all() for p in module.parameters())


def test_state_is_resumed():
    module, again = network("relu_mlp"), network("relu_mlp")
    optimizer = PathSGD(module.parameters(), lr=0.01, model=module, momentum=0.9)
    fit(module, optimizer, 2)
    again.load_state_dict(module.state_dict())
    resumed = PathSGD(again.parameters(), lr=1.0, model=again)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((module, optimizer), (again, resumed)):
        fit(m, o, 3)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))


def test_closure_and_subsets_of_the_parameters():
    module = network("relu_mlp")
    optimizer = PathSGD([{"params": module[4].parameters(), "lr": 0.1}], lr=0.01, model=module)
    before = module[0].weight.detach().clone()
    x, y = batches()[0]

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(module(x), y)
        loss.backward()
        return loss

    assert optimizer.step(closure) > cross_entropy(module(x), y)
    assert torch.equal(module[0].weight, before)


def test_float32_stays_float32():
    module = network("relu_mlp").float()
    optimizer = PathSGD(module.parameters(), lr=0.01, model=module, momentum=0.9)
    x, y = batches()[0]
    cross_entropy(module(x.float()), y).backward()
    optimizer.step()
    assert all(p.dtype == torch.float32 for p in module.parameters())


def test_sparse_gradients_are_refused():
    module = network("relu_mlp")
    optimizer = PathSGD(module.parameters(), lr=0.01, model=module)
    module[0].weight.grad = torch.zeros(16, 8, dtype=torch.float64).to_sparse()
    with pytest.raises(ValueError, match="gradients to be dense"):
        optimizer.step()


class Functional(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(4, 3), function

    def forward(self, x):
        return self.function(self.linear(x))


OTHERS = {
    "tanh": (nn.Sequential(nn.Linear(4, 3), nn.Tanh()), "Tanh"),
    "batch-norm": (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), "BatchNorm1d"),
    "layer-norm": (nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), "LayerNorm"),
    "max pooling": (nn.Sequential(nn.Linear(4, 4), nn.MaxPool1d(2)), "MaxPool1d"),
    "softmax": (nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), "Softmax"),
    "weight norm": (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))), "ParametrizedLinear"),
    "embedding": (nn.Sequential(nn.Embedding(4, 3)), "Embedding"),
    "tanh in the forward pass": (Functional(torch.tanh), "isn't linear"),
    "softmax in the forward pass": (Functional(lambda x: x.softmax(1)), "isn't linear"),
    "normalization in the forward pass": (Functional(lambda x: nn.functional.normalize(x, dim=1)), "isn't linear"),
    "max pooling in the forward pass": (Functional(lambda x: nn.functional.max_pool1d(x, 2)), "isn't linear"),
}


@pytest.mark.parametrize(("model", "text"), OTHERS.values(), ids=OTHERS)
def test_other_networks_are_refused_in_one_line(model, text):
    with pytest.raises(ValueError, match=f"ReLU network without normalization.*{text}") as caught:
        PathSGD(model.parameters(), lr=0.1, model=model)
    assert "\n" not in str(caught.value)


def test_mistakes_are_named():
    module = network("relu_mlp")
    for options, text in (({"lr": 0.0}, "`lr`.*0.0"), ({"momentum": 1.0}, "`momentum`.*1.0")):
        with pytest.raises(ValueError, match=text):
            PathSGD(module.parameters(), **{"lr": 0.1, "model": module, **options})
    with pytest.raises(ValueError, match="`params` to hold parameters of `model`"):
        PathSGD(network("relu_mlp").parameters(), lr=0.1, model=module)
    with pytest.raises(ValueError, match=r"`input_shape`.*Conv2d"):
        PathSGD(Residual().parameters(), lr=0.1, model=Residual())
