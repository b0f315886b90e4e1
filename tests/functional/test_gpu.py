"""On a GPU (`pytest -m gpu`): the same numbers as float64 on the CPU, and the passes are chosen."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_map

from lightning_fisher.callbacks.multipass.pass_choice import PassChoice
from lightning_fisher.functional import fisher_log_det, gram_matrix, penalty_gradient
from lightning_fisher.functional.multipass.difference import FiniteDifference
from lightning_fisher.functional.multipass.execution import Forms
from lightning_fisher.models import resnet
from tests.functional.compare import cosine, gradient_error, gram_error
from tests.reference.cases import CASES, each
from tests.reference.jacobian import gram as exact_gram
from tests.reference.jacobian import jacobian
from tests.reference.penalty import penalty

DEVICE = torch.device("cuda")
pytestmark = pytest.mark.gpu


def there(tree):
    """On the device."""
    if isinstance(tree, nn.Module):
        return copy.deepcopy(tree).to(DEVICE)
    return tree_map(lambda leaf: leaf.to(DEVICE) if isinstance(leaf, torch.Tensor) else leaf, tree)


@each(CASES)
def test_gram_matrix(case):
    module, inputs, targets = case.build()
    module.eval()
    expected = exact_gram(jacobian(module, inputs, targets, loss_fn=case.loss_fn))
    got = gram_matrix(there(module), there(inputs), there(targets), loss_fn=case.loss_fn)
    assert got.device.type == DEVICE.type
    # Torch's weight normalization takes its norms in float32 there, in the network's own forward pass too.
    assert gram_error(got.cpu(), expected) < (1e-6 if case.name.startswith("weight_norm") else 1e-8)


def images(count):
    return torch.randn(count, 3, 32, 32), torch.randint(10, (count,))


@pytest.fixture
def tf32():
    """Products and convolutions may run in TF32."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.usefixtures("tf32")
def test_float32_passes_whatever_tf32_says():
    net, (x, y) = resnet(depth=8).eval(), images(20)
    exact = exact_gram(jacobian(copy.deepcopy(net).double(), x.double(), y))
    got = gram_matrix(there(net), there(x), there(y)).cpu()
    assert gram_error(got, exact) < 1e-4
    value = fisher_log_det(there(net), there(x), there(y)).log_det.item()
    assert value == pytest.approx(torch.linalg.slogdet(exact)[1].item(), rel=1e-5)


@pytest.mark.parametrize("passes", ["loop", "vmap"])
def test_penalty(passes):
    net, (x, y) = resnet(depth=8).train(), images(32)
    options = {"alpha": 1e-4, "num_sub_batches": 4}
    value, exact = penalty(copy.deepcopy(net).double(), x.double(), y, **options)
    got_value, got = penalty_gradient(there(net).double(), there(x).double(), there(y), passes=passes, **options)
    assert got_value.item() == pytest.approx(value, rel=1e-6)
    assert gradient_error([g.cpu() for g in got], exact) < 1e-5
    _, single = penalty_gradient(there(net), there(x), there(y), passes=passes, **options)
    assert cosine([g.cpu() for g in single], exact) > 0.95


def test_auto_decides():
    net, (x, y) = there(resnet(depth=8).train()), there(images(32))
    choice, calls = PassChoice("auto"), []
    net.register_forward_hook(lambda *_: calls.append(1))

    def evaluate():
        return choice.penalty(
            Forms(
                lambda batch: cross_entropy(net(batch[0]), batch[1]),
                list(zip(x.chunk(8), y.chunk(8), strict=True)),
                list(net.parameters()),
                method=FiniteDifference(1e-4),
                weights=[1 / 8] * 8,
                module=net,
            )
        )

    evaluate()
    assert choice.chosen in ("loop", "vmap")
    assert "ms" in choice.reason, choice.reason  # both ran, and agreed
    calls.clear()
    evaluate()
    assert len(calls) == (2 if choice.chosen == "vmap" else 16)
