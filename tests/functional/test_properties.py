"""What must hold whatever the module: invariances, scaling laws, and a state left untouched."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_fisher.functional import fisher_log_det, gram_matrix, log_det, penalty_gradient
from tests.functional.compare import gram_error
from tests.functional.snapshot import changes, snapshot
from tests.reference.cases import BATCH_NORM_CASES, CASES, REFUSED, RIGHT_OR_REFUSED, by_name, each
from tests.reference.jacobian import gram, jacobian
from tests.reference.samples import take

NETWORKS = [
    by_name(name)
    for name in (
        "mlp",
        "conv2d_deep",
        "batch_norm2d",
        "positions_n_transformer",
        "self_attention_time_first_n_steps",
        "tied_embedding",
        "gru_packed",
        "dict_input",
        "raw_class_token",
        "soft_labels",
        "loss_none",
        "loss_mean",
    )
]


@each(NETWORKS)
def test_sample_order(case):
    module, inputs, targets = case.build()
    order = torch.tensor([3, 0, 4, 2, 1])
    got = gram_matrix(module, take(inputs, order), targets[order], loss_fn=case.loss_fn)
    expected = gram_matrix(module, inputs, targets, loss_fn=case.loss_fn)[order][:, order]
    assert gram_error(got, expected) < 1e-12


@each(NETWORKS)
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 4, 5, 100])
def test_chunk_size_only_limits_memory(case, chunk_size):
    module, inputs, targets = case.build()
    got = gram_matrix(module, inputs, targets, loss_fn=case.loss_fn, chunk_size=chunk_size)
    assert gram_error(got, gram_matrix(module, inputs, targets, loss_fn=case.loss_fn)) < 1e-12
    chunked = fisher_log_det(module, inputs, targets, loss_fn=case.loss_fn, chunk_size=chunk_size)
    whole = fisher_log_det(module, inputs, targets, loss_fn=case.loss_fn)
    assert chunked.log_det.item() == pytest.approx(whole.log_det.item(), rel=1e-11)


@each(NETWORKS)
def test_a_subset_is_a_block(case):
    module, inputs, targets = case.build()
    kept = torch.tensor([1, 4])
    got = gram_matrix(module, take(inputs, kept), targets[kept], loss_fn=case.loss_fn)
    expected = gram_matrix(module, inputs, targets, loss_fn=case.loss_fn)[kept][:, kept]
    assert gram_error(got, expected) < 1e-12


@each(NETWORKS)
def test_symmetric_to_the_last_bit(case):
    module, inputs, targets = case.build()
    got = gram_matrix(module, inputs, targets, loss_fn=case.loss_fn)
    assert torch.equal(got, got.T)


@each(NETWORKS)
def test_positive_semi_definite(case):
    module, inputs, targets = case.build()
    values = torch.linalg.eigvalsh(gram_matrix(module, inputs, targets, loss_fn=case.loss_fn))
    assert values.min() > -1e-12 * values.max()


@pytest.mark.parametrize("factor", [1e-9, 0.3, 1e6])
def test_scaling_law_of_the_log_determinant(factor):
    """``c J`` adds ``2 N ln c`` to the log-determinant, all of it to the magnitude."""
    module, inputs, targets = by_name("conv2d_deep").build()
    plain = nn.CrossEntropyLoss(reduction="none")
    one = fisher_log_det(module, inputs, targets, loss_fn=plain)
    other = fisher_log_det(module, inputs, targets, loss_fn=lambda z, y: factor * plain(z, y))
    added = 2 * len(targets) * math.log(factor)
    assert (other.log_det - one.log_det).item() == pytest.approx(added, rel=1e-10)
    assert (other.magnitude - one.magnitude).item() == pytest.approx(added, rel=1e-10)
    assert other.direction.item() == pytest.approx(one.direction.item(), rel=1e-10)
    xi = gram_matrix(module, inputs, targets)
    assert (log_det(factor**2 * xi) - log_det(xi)).item() == pytest.approx(added, rel=1e-10)


@pytest.mark.parametrize("name", ["mlp", "conv2d_deep", "transformer_encoder", "batch_norm2d", "lstm"])
def test_gram_is_a_sum_over_parameters(name):
    module, inputs, targets = by_name(name).build()
    whole = gram_matrix(module, inputs, targets)
    total = torch.zeros_like(whole)
    for parameter in module.parameters():
        module.requires_grad_(False)
        parameter.requires_grad_(True)
        total += gram_matrix(module, inputs, targets)
    assert gram_error(total, whole) < 1e-12


def test_logit_norm_makes_the_scale_of_the_logits_irrelevant():
    module = nn.Sequential(nn.Linear(6, 8, dtype=torch.float64), nn.Tanh(), nn.Linear(8, 3, False, dtype=torch.float64))
    inputs, targets = torch.randn(5, 6).double(), torch.randint(3, (5,))
    frozen = module[2].requires_grad_(False)
    one = gram_matrix(module, inputs, targets, logit_norm=0.04)
    with torch.no_grad():
        frozen.weight.mul_(7.0)
    assert gram_error(gram_matrix(module, inputs, targets, logit_norm=0.04), one) < 1e-12


def test_default_loss_is_the_cross_entropy_of_each_sample():
    module, inputs, targets = by_name("conv2d_deep").build()
    for loss_fn in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="none")):
        got = gram_matrix(module, inputs, targets, loss_fn=loss_fn)
        assert gram_error(got, gram_matrix(module, inputs, targets)) < 1e-12


def test_later_calls_see_later_weights():
    """Nothing is remembered between calls."""
    module, inputs, targets = by_name("batch_norm2d").build()
    gram_matrix(module, inputs, targets)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.1)
    expected = gram(jacobian(module, inputs, targets))
    assert gram_error(gram_matrix(module, inputs, targets), expected) < 1e-9


def with_history(module):
    """Gradients in place, and submodules in modes of their own."""
    for index, parameter in enumerate(module.parameters()):
        parameter.grad = torch.full_like(parameter, 0.5) if index % 2 else None
    for index, submodule in enumerate(module.modules()):
        submodule.training = index % 3 != 1
    return module


@pytest.mark.filterwarnings("ignore:The Gram matrix:UserWarning")
@each([*CASES, *RIGHT_OR_REFUSED, *REFUSED])
def test_metric_leaves_everything_as_it_was(case):
    module, inputs, targets = case.build()
    module = with_history(module)
    before, copies = snapshot(module), take(inputs, slice(None))
    for call in (gram_matrix, lambda *a, **k: fisher_log_det(*a, rank_policy="pseudo", **k)):
        try:
            call(module, inputs, targets, loss_fn=case.loss_fn)
        except (ValueError, NotImplementedError):
            assert case not in CASES
        assert changes(before, snapshot(module)) == []
    assert same(inputs, copies)


@each(BATCH_NORM_CASES)
def test_coupled_metric_leaves_everything_as_it_was(case):
    module, inputs, targets = case.build()
    module = with_history(module)
    before = snapshot(module)
    gram_matrix(module, inputs, targets, batch_norm="batch", chunk_size=3)
    assert changes(before, snapshot(module)) == []


@each([*CASES, *RIGHT_OR_REFUSED])
def test_penalty_leaves_everything_as_it_was(case):
    module, inputs, targets = case.build()
    module = with_history(module)
    before, copies = snapshot(module), take(inputs, slice(None))
    try:
        penalty_gradient(module, inputs, targets, loss_fn=case.loss_fn, num_sub_batches=min(2, len(targets)))
    except (ValueError, NotImplementedError):
        assert case not in CASES
    assert changes(before, snapshot(module)) == []
    assert same(inputs, copies)


def same(one, other):
    if isinstance(one, dict):
        return all(same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return all(same(a, b) for a, b in zip(one, other, strict=True))
    return torch.equal(one, other) and not one.requires_grad if isinstance(one, torch.Tensor) else one == other


class Failing(nn.Module):
    """Raises in the middle of its n-th forward pass, after layers and dropout have run; counted on the class."""

    calls = 0

    def __init__(self, at):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.last = nn.Linear(8, 3)
        Failing.calls = 0
        self.at = at

    def forward(self, x):
        x = self.first(x)
        Failing.calls += 1
        if Failing.calls == self.at:
            raise ArithmeticError("on purpose")
        return self.last(x)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_penalty_puts_everything_back_after_an_exception(at):
    """The 2nd and 4th pass run at shifted weights."""
    module = with_history(Failing(at).double().train())
    before = snapshot(module)
    with pytest.raises(ArithmeticError, match="on purpose"):
        penalty_gradient(module, torch.randn(6, 6).double(), torch.arange(6) % 3, num_sub_batches=2)
    before["torch random state"] = snapshot(module)["torch random state"]  # randn above
    assert changes(before, snapshot(module)) == []


@pytest.mark.parametrize("batch_norm", ["eval", "batch"])
def test_metric_puts_everything_back_after_an_exception(batch_norm):
    inputs, targets = torch.randn(6, 6).double(), torch.arange(6) % 3
    module = with_history(Failing(1).double().train())
    before = snapshot(module)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ambient = snapshot(module)
        with pytest.raises(ArithmeticError, match="on purpose"):
            gram_matrix(module, inputs, targets, batch_norm=batch_norm)
        assert changes(ambient, snapshot(module)) == []
    assert changes(before, snapshot(module)) == []
