from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_fisher.functional.fisher.bounds import gamma_from_estimate
from lightning_fisher.functional.fisher.exact import exact_gamma
from lightning_fisher.functional.fisher.log_determinant import fisher_log_det
from tests.functional.snapshot import changes, snapshot
from tests.reference.jacobian import jacobian


class FixedLogit(nn.Module):
    """A tanh network whose last logit is 0: no direction leaves every loss unchanged."""

    def __init__(self, features=3, hidden=4, classes=3):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, classes - 1))

    def forward(self, x):
        z = self.body(x)
        return torch.cat([z, torch.zeros_like(z[:, :1])], 1)


def case(n=200, dtype=torch.float64, **options):
    return FixedLogit(**options).to(dtype), torch.randn(n, 3, dtype=dtype), torch.randint(3, (n,))


def dense_gamma(module, inputs, targets, **options):
    """``ln|1/N Σ ∇ℓ ∇ℓᵀ|`` of the ``[W, W]`` matrix, summed up sample by sample."""
    fisher = sum(torch.outer(row, row) for row in jacobian(module, inputs, targets, **options)) / len(targets)
    return torch.linalg.slogdet(fisher).logabsdet


def test_equals_the_dense_fisher_information():
    module, inputs, targets = case()
    before = snapshot(module)
    gamma = exact_gamma(module, inputs, targets)
    torch.testing.assert_close(gamma, dense_gamma(module, inputs, targets), rtol=0, atol=1e-6)
    assert changes(before, snapshot(module)) == []


def test_float32_module_is_evaluated_in_float64():
    module, inputs, targets = case(dtype=torch.float32)
    gamma = exact_gamma(module, inputs, targets)
    torch.testing.assert_close(gamma, dense_gamma(module, inputs, targets), rtol=0, atol=1e-6)
    assert next(module.parameters()).dtype == torch.float32


def test_custom_loss_batch_norm_and_frozen_parameters():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.Tanh(), nn.Linear(4, 2)).double()
    module[0].bias.requires_grad_(False)
    module[0].weight.requires_grad_(False)
    inputs, targets = torch.randn(60, 3).double(), torch.randn(60, 2).double()
    module(inputs)

    def loss_fn(outputs, targets):
        return (outputs - targets).square().sum(1)

    gamma = exact_gamma(module, inputs, targets, loss_fn=loss_fn)
    expected = dense_gamma(module, inputs, targets, loss_fn=loss_fn)
    torch.testing.assert_close(gamma, expected, rtol=0, atol=1e-6)


def test_scaling_law():
    """``c · ∇ℓ`` adds ``2 W ln c``."""
    module, inputs, targets = case()
    gamma = exact_gamma(module, inputs, targets)
    cross_entropy = nn.CrossEntropyLoss(reduction="none")
    scaled = exact_gamma(module, inputs, targets, loss_fn=lambda z, y: 3.0 * cross_entropy(z, y))
    size = sum(p.numel() for p in module.parameters())
    assert float(scaled - gamma) == pytest.approx(2 * size * math.log(3.0), rel=1e-9)


@pytest.mark.parametrize("last", ["free logits", "rectified"])
def test_symmetries_of_ordinary_networks_make_it_singular(last):
    if last == "free logits":
        module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        redundant = 5  # one shift of all logits for every input of the last layer and for its bias
    else:
        module = FixedLogit().double()
        module.body[1] = nn.ReLU()
        redundant = 4  # one scale a hidden unit
    inputs, targets = 3 * torch.randn(400, 3).double(), torch.randint(3, (400,))
    size = sum(p.numel() for p in module.parameters())
    with pytest.raises(ValueError, match=rf"{size} parameters has rank {size - redundant} on 400 samples: γ is −∞"):
        exact_gamma(module, inputs, targets)
    with pytest.warns(UserWarning, match="log-pseudo-determinant"):
        pseudo = exact_gamma(module, inputs, targets, rank_policy="pseudo")
    rows = jacobian(module, inputs, targets)
    eigenvalues = torch.linalg.eigvalsh(rows.T @ rows / 400)[redundant:]
    torch.testing.assert_close(pseudo, eigenvalues.log().sum(), rtol=0, atol=1e-6)


def test_fewer_samples_than_parameters():
    module, inputs, targets = case(n=10)
    with pytest.raises(ValueError, match="has rank 10 on 10 samples: γ is −∞"):
        exact_gamma(module, inputs, targets)


def test_order_follows_the_estimate():
    """Eq. 7 holds only roughly, but minima that differ clearly are ordered alike by γ and γ̂."""
    module, inputs, targets = case(n=300)
    gammas, estimates = [], []
    for scale in (0.3, 1.0, 3.0):
        with torch.no_grad():
            for parameter in module.body[2].parameters():
                parameter.mul_(scale)
        gammas.append(float(exact_gamma(module, inputs, targets)))
        subsets = [slice(start, start + 8) for start in range(0, 240, 8)]
        estimates.append(
            sum(float(fisher_log_det(module, inputs[s], targets[s]).log_det) for s in subsets) / len(subsets)
        )
    rough = [gamma_from_estimate(e, num_parameters=26, subset_size=8) for e in estimates]
    assert sorted(range(3), key=gammas.__getitem__) == sorted(range(3), key=rough.__getitem__)


def test_bad_options_are_named():
    module, inputs, targets = case(n=30)
    with pytest.raises(ValueError, match=r"Expected argument `rank_policy` to be one of .*, but got 'skip'"):
        exact_gamma(module, inputs, targets, rank_policy="skip")
    with pytest.raises(ValueError, match="parameters that require gradients"):
        exact_gamma(module.requires_grad_(False), inputs, targets)


class Keeps(FixedLogit):
    """Keeps the features of its last pass, in a form that `copy.deepcopy` refuses."""

    def forward(self, x):
        hidden = self.body[1](self.body[0](x))
        self.features = {"last": [hidden]}
        out = self.body[2](hidden)
        return torch.cat([out, torch.zeros_like(out[:, :1])], dim=1)


class Casts(nn.Module):
    def __init__(self, cast):
        super().__init__()
        self.layer, self.cast = nn.Linear(3, 2), cast

    def forward(self, x):
        return self.layer(self.cast(x))


def test_features_that_a_module_keeps_are_no_obstacle():
    module, inputs, targets = case(n=60)
    keeps = Keeps().double()
    keeps.load_state_dict(module.state_dict())
    keeps(inputs)
    torch.testing.assert_close(exact_gamma(keeps, inputs, targets), exact_gamma(module, inputs, targets))
    assert keeps.features["last"][0].grad_fn is not None  # still its own


@pytest.mark.parametrize("cast", [torch.Tensor.float, torch.Tensor.half, lambda x: x.to(torch.bfloat16)])
def test_a_module_that_fixes_its_precision_is_refused_in_these_words(cast):
    with pytest.raises(ValueError, match=r"Expected a module that runs in float64, but its forward pass mixes types"):
        exact_gamma(Casts(cast), torch.randn(20, 3), torch.arange(20) % 2)


class Closed(nn.Linear):
    """Can't be copied, and its forward pass closes over it."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.function = lambda x: nn.functional.linear(x, self.weight, self.bias)

    def forward(self, x):
        return self.function(x)

    def __deepcopy__(self, memo):
        raise RuntimeError("holds a handle of the driver")


def test_a_module_need_not_be_copied():
    torch.manual_seed(0)
    module, x, y = Closed(3, 1), torch.randn(20, 3), torch.randn(20, 1)
    loss = lambda outputs, targets: (outputs - targets).square().squeeze(1)  # noqa: E731
    rows = 2 * (x.double() @ module.weight.double().T + module.bias.double() - y.double())
    rows = rows.detach() * torch.cat([x.double(), torch.ones(20, 1).double()], 1)
    expected = torch.linalg.slogdet(rows.T @ rows / 20).logabsdet
    weight = module.weight.detach().clone()
    assert exact_gamma(module, x, y, loss_fn=loss).item() == pytest.approx(expected.item(), rel=1e-12)
    assert module.weight.dtype == torch.float32
    assert torch.equal(module.weight, weight)
