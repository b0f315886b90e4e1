"""γ̂ in three parts, at equal outputs and with the sizes of weights, against dense J in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_fisher.functional import fisher_log_det, gram_matrix
from tests.functional.compare import gram_error
from tests.reference.cases import BATCH_NORM_CASES, CASES, by_name, each
from tests.reference.coupled import coupled_jacobian
from tests.reference.gamma_forms import rows_at_equal_outputs, weight_sizes
from tests.reference.jacobian import gram, jacobian
from tests.reference.logdet import jacobian_log_det

SCALES = ("none", "layer", "filter", "element")
FULL_RANK = [case for case in CASES if case.full_rank]
TYPICAL = ["mlp", "conv2d_deep", "batch_norm2d", "layer_norm", "tied_embedding", "attention_used_twice", "soft_labels"]
VECTORS = [by_name(name) for name in ("mlp", "conv2d_deep", "batch_norm2d", "layer_norm", "soft_labels", "loss_module")]


@each(FULL_RANK)
def test_the_three_parts(case):
    module, inputs, targets = case.build()
    rows, residuals = rows_at_equal_outputs(module, inputs, targets, loss_fn=case.loss_fn)
    got = fisher_log_det(module, inputs, targets, loss_fn=case.loss_fn)
    assert got.residual.item() == pytest.approx(2 * residuals.log().sum().item(), rel=1e-9, abs=1e-9)
    assert got.sensitivity.item() == pytest.approx(2 * rows.norm(dim=1).log().sum().item(), rel=1e-9, abs=1e-9)
    assert got.magnitude.item() == pytest.approx((got.residual + got.sensitivity).item(), rel=1e-12, abs=1e-12)
    assert got.log_det.item() == pytest.approx((got.magnitude + got.direction).item(), rel=1e-12)


@each(VECTORS)
@pytest.mark.parametrize("logit_norm", [0.04, 0.5])
def test_the_three_parts_of_rescaled_logits(case, logit_norm):
    """The residual is that of the rescaled logits, and the rescaling is differentiated."""
    module, inputs, targets = case.build()
    how = {"loss_fn": case.loss_fn, "logit_norm": logit_norm}
    rows, residuals = rows_at_equal_outputs(module, inputs, targets, **how)
    got = fisher_log_det(module, inputs, targets, **how)
    expected = jacobian_log_det(jacobian(module, inputs, targets, **how))
    assert got.log_det.item() == pytest.approx(expected.log_det, rel=1e-9)
    assert got.residual.item() == pytest.approx(2 * residuals.log().sum().item(), rel=1e-9)
    assert got.sensitivity.item() == pytest.approx(2 * rows.norm(dim=1).log().sum().item(), rel=1e-9)
    assert got.direction.item() == pytest.approx(expected.direction, rel=1e-9)


@each(CASES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "equal_outputs"])
def test_gram_matrix_of_every_form(case, scale, residual):
    module, inputs, targets = case.build()
    rows, residuals = rows_at_equal_outputs(module, inputs, targets, loss_fn=case.loss_fn)
    if residual:
        rows = rows * residuals[:, None]
    expected = gram(rows * weight_sizes(module, scale))
    got = gram_matrix(module, inputs, targets, loss_fn=case.loss_fn, residual=residual, scale=scale)
    assert gram_error(got, expected) < 1e-9


@each(VECTORS)
@pytest.mark.parametrize("scale", SCALES)
def test_log_determinant_at_equal_outputs(case, scale):
    module, inputs, targets = case.build()
    how = {"loss_fn": case.loss_fn, "logit_norm": 0.04}
    rows, _ = rows_at_equal_outputs(module, inputs, targets, **how)
    expected = jacobian_log_det(rows * weight_sizes(module, scale))
    got = fisher_log_det(module, inputs, targets, residual=False, scale=scale, **how)
    assert got.log_det.item() == pytest.approx(expected.log_det, rel=1e-9)
    assert got.direction.item() == pytest.approx(expected.direction, rel=1e-9)
    assert got.residual.item() == 0.0
    assert got.sensitivity.item() == got.magnitude.item() == pytest.approx(expected.magnitude, rel=1e-9)


@pytest.mark.parametrize("name", TYPICAL)
@pytest.mark.parametrize("scale", SCALES)
def test_float32_and_chunks(name, scale):
    case = by_name(name)
    module, inputs, targets = case.build()
    how = {"loss_fn": case.loss_fn, "residual": False, "scale": scale}
    expected = gram_matrix(module, inputs, targets, **how)
    assert gram_error(gram_matrix(module, inputs, targets, chunk_size=2, **how), expected) < 1e-9
    module, inputs, targets = case.build(torch.float32)
    assert gram_error(gram_matrix(module, inputs, targets, **how), expected) < 1e-4


@pytest.mark.parametrize("scale", SCALES)
def test_statistics_of_the_batch(scale):
    case = next(case for case in BATCH_NORM_CASES if case.name == "batch_norm2d")
    module, inputs, targets = case.build()
    rows = coupled_jacobian(module, inputs, targets, chunk_size=3)
    got = gram_matrix(module, inputs, targets, batch_norm="batch", chunk_size=3, scale=scale)
    assert gram_error(got, gram(rows * weight_sizes(module, scale))) < 1e-9


def test_the_same_to_the_bit_by_default():
    module, inputs, targets = by_name("conv2d_deep").build(torch.float32)
    assert torch.equal(
        gram_matrix(module, inputs, targets), gram_matrix(module, inputs, targets, residual=True, scale="none")
    )


def test_a_loss_far_down():
    """Where the loss is 1e-30 and the gradients with it, γ̂ at equal outputs is what it is at a loss of one."""
    module, inputs, targets = by_name("mlp").build()
    last = module[-1]
    with torch.no_grad():
        last.weight.mul_(0)
        last.bias.copy_(torch.tensor([70.0, 0.0, 0.0]))
    targets = torch.zeros_like(targets)
    far = fisher_log_det(module, inputs, targets, residual=False, rank_policy="pseudo")
    with torch.no_grad():
        last.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    near = fisher_log_det(module, inputs, targets, residual=False, rank_policy="pseudo")
    assert far.log_det.item() == pytest.approx(near.log_det.item(), rel=1e-9)


def test_zero_weights_drop_out():
    module, inputs, targets = by_name("mlp").build()
    with torch.no_grad():
        module[0].bias.zero_()
    with_bias = gram_matrix(module, inputs, targets, scale="layer")
    module[0].bias.requires_grad_(False)
    torch.testing.assert_close(gram_matrix(module, inputs, targets, scale="layer"), with_bias, rtol=1e-12, atol=0)


def test_a_zero_gradient_has_no_direction():
    """One sample's probabilities are its labels exactly: no residual and no unit output gradient."""
    module = nn.Linear(3, 2).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    targets = torch.tensor([[0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    inputs = torch.randn(2, 3, dtype=torch.float64)
    for residual in (True, False):
        with pytest.raises(ValueError, match=r"zero gradients of samples \[0\]"):
            fisher_log_det(module, inputs, targets, residual=residual)
    with pytest.warns(UserWarning, match="rank 1"):
        got = fisher_log_det(module, inputs, targets, residual=False, rank_policy="pseudo")
    assert got.sensitivity.isfinite()
    assert got.residual.item() == 0.0


class Head(nn.Module):
    """A loss with parameters of the module: class centers."""

    def __init__(self):
        super().__init__()
        self.body, self.centers = nn.Linear(4, 3), nn.Parameter(torch.randn(2, 3))

    def forward(self, x):
        return self.body(x)


def test_a_loss_with_parameters_has_no_residual():
    torch.manual_seed(0)
    module = Head().double()
    inputs, targets = torch.randn(4, 4).double(), torch.tensor([0, 1, 0, 1])

    def loss(outputs, labels):
        return nn.functional.cross_entropy(outputs @ module.centers.T, labels, reduction="none")

    got = fisher_log_det(module, inputs, targets, loss_fn=loss)
    assert got.log_det.isfinite()
    assert math.isnan(got.residual)
    assert math.isnan(got.sensitivity)
    with pytest.raises(ValueError, match="Expected argument `loss_fn` to use no parameters itself where `residual`"):
        fisher_log_det(module, inputs, targets, loss_fn=loss, residual=False)


def test_bad_scale_lists_the_valid_ones():
    module, inputs, targets = by_name("mlp").build()
    with pytest.raises(ValueError, match=r"Expected argument `scale` .*'none', 'layer', 'filter', 'element'.* 'unit'"):
        gram_matrix(module, inputs, targets, scale="unit")


@pytest.mark.parametrize("scale", SCALES)
def test_a_thousand_samples(scale):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 10)).double()
    inputs, targets = torch.randn(1000, 40).double(), torch.randint(10, (1000,))
    rows, _ = rows_at_equal_outputs(module, inputs, targets, logit_norm=0.04)
    rows = rows * weight_sizes(module, scale)
    got = fisher_log_det(module, inputs, targets, logit_norm=0.04, residual=False, scale=scale)
    assert got.log_det.item() == pytest.approx(jacobian_log_det(rows).log_det, rel=1e-9)
