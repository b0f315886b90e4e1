from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_fisher.exceptions import SecondDerivativeError
from lightning_fisher.functional import gram_matrix
from lightning_fisher.functional.curvature.norms import (
    frobenius_norm,
    hessian_frobenius_norm,
    hessian_spectral_radius,
    spectral_radius,
)
from tests.functional.snapshot import changes, snapshot
from tests.reference.cases import BATCH_STATISTICS, by_name, each
from tests.reference.dense_hessian import dense_hessian
from tests.reference.jacobian import jacobian

GRAM_CASES = [
    by_name(name)
    for name in ("mlp", "mlp_one_sample", "conv2d_groups", "batch_norm2d", "loss_none", "duplicate_samples")
]
NO_SECOND_DERIVATIVE = by_name("embedding_bag")  # torch has none
HESSIAN_CASES = [
    by_name(name)
    for name in (
        *(
            "linear",
            "mlp",
            "mlp_relu_inplace",
            "mlp_dropout",
            "mlp_one_sample",
            "bilinear",
            "dict_input",
            "tuple_input",
        ),
        *("conv1d_circular", "conv2d_groups", "conv2d_stride", "conv3d_groups_stride", "batch_norm1d"),
        *("batch_norm2d_cumulative", "group_norm", "layer_norm", "instance_norm", "rms_norm", "embedding_padding"),
        *("self_attention_batch_first", "lstm", "module_used_twice", "tied_embedding", "raw_parameters"),
        *("weight_norm", "weight_norm_conv", "spectral_norm", "checkpointed", "frozen_body", "unused_parameters"),
        *("soft_labels", "extra_dims", "loss_mean", "loss_none", "loss_binary", "loss_of_tuple", "zero_gradient"),
    )
]
SMOOTH = [by_name(name) for name in ("mlp", "batch_norm1d", "self_attention_batch_first", "lstm", "loss_mean")]


def fisher(case):
    """The Fisher information as a dense ``[W, W]`` matrix."""
    module, inputs, targets = case.build()
    rows = jacobian(module, inputs, targets, loss_fn=case.loss_fn)
    return sum(torch.outer(row, row) for row in rows) / len(rows)


@each(GRAM_CASES)
def test_gram_gives_the_norms_of_the_fisher_information(case):
    module, inputs, targets = case.build()
    gram = gram_matrix(module, inputs, targets, loss_fn=case.loss_fn)
    dense = fisher(case)
    torch.testing.assert_close(frobenius_norm(gram), dense.square().sum(), rtol=1e-9, atol=0)
    torch.testing.assert_close(spectral_radius(gram), torch.linalg.eigvalsh(dense)[-1], rtol=1e-9, atol=0)


@pytest.mark.parametrize("function", [frobenius_norm, spectral_radius])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (0, 0)])
def test_only_square_matrices(function, shape):
    with pytest.raises(ValueError, match="Expected argument `gram` to be a square matrix"):
        function(torch.zeros(shape))


@each(HESSIAN_CASES)
def test_hessian_norms_equal_those_of_the_dense_hessian(case):
    module, inputs, targets = case.build()
    before = snapshot(module)
    dense = dense_hessian(module, inputs, targets, loss_fn=case.loss_fn)
    exact = hessian_frobenius_norm(module, inputs, targets, num_probes=len(dense), loss_fn=case.loss_fn)
    radius = hessian_spectral_radius(module, inputs, targets, tol=1e-7, max_iter=300, loss_fn=case.loss_fn)
    expected = torch.linalg.eigvalsh(dense).abs().max()
    torch.testing.assert_close(exact.value, dense.square().sum(), rtol=1e-6, atol=1e-18)
    assert exact.standard_error == 0
    assert radius.converged
    torch.testing.assert_close(radius.value, expected, rtol=1e-6, atol=1e-14)
    assert changes(before, snapshot(module)) == []


@each(SMOOTH)
@pytest.mark.parametrize("chunk_size", [1, 2, 3])
def test_chunks_change_nothing(case, chunk_size):
    module, inputs, targets = case.build()
    options = {"num_probes": 3, "loss_fn": case.loss_fn}
    whole = hessian_frobenius_norm(module, inputs, targets, **options)
    chunked = hessian_frobenius_norm(module, inputs, targets, chunk_size=chunk_size, **options)
    torch.testing.assert_close(chunked.value, whole.value, rtol=1e-10, atol=0)


@each(SMOOTH)
def test_float32_agrees_with_float64(case):
    double = hessian_spectral_radius(*case.build(torch.float64), loss_fn=case.loss_fn, tol=1e-4)
    single = hessian_spectral_radius(*case.build(torch.float32), loss_fn=case.loss_fn, tol=1e-4)
    assert single.converged
    torch.testing.assert_close(single.eigenvalue, double.eigenvalue, rtol=1e-4, atol=0)


def test_hutchinson_is_unbiased_and_knows_its_error():
    module, inputs, targets = by_name("batch_norm1d").build()
    exact = dense_hessian(module, inputs, targets).square().sum()
    estimates = [hessian_frobenius_norm(module, inputs, targets, num_probes=30, seed=s) for s in range(20)]
    values = torch.stack([estimate.value for estimate in estimates])
    errors = torch.stack([estimate.standard_error for estimate in estimates])
    assert abs(values.mean() - exact) < 3 * values.std() / math.sqrt(20)
    torch.testing.assert_close(errors.mean(), values.std(), rtol=0.4, atol=0)


def test_standard_error_of_one_probe_is_unknown():
    assert hessian_frobenius_norm(*by_name("mlp").build(), num_probes=1).standard_error.isnan()


def test_indefinite_hessian_with_opposite_extremes():
    """``λ_min = −λ_max``: power iteration never settles here."""

    class Saddle(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, x):
            return x * (self.w[0] ** 2 - self.w[1] ** 2)

    result = hessian_spectral_radius(Saddle(), torch.ones(3), torch.zeros(3), loss_fn=lambda z, _: z.mean())
    assert result.converged
    torch.testing.assert_close(result.value, torch.tensor(2.0, dtype=torch.float64))


def test_loss_linear_in_the_weights_has_no_curvature():
    module, inputs, targets = nn.Linear(3, 2), torch.randn(4, 3), torch.randn(4, 2)
    options = {"loss_fn": lambda z, y: (z * y).sum(1)}
    assert hessian_frobenius_norm(module, inputs, targets, **options).value == 0
    result = hessian_spectral_radius(module, inputs, targets, **options)
    assert result.converged
    assert result.value == 0


class HalfDifferentiated(torch.autograd.Function):
    """``a · b`` with a correct gradient that forgets that it depends on a."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.constant = a.detach()
        ctx.save_for_backward(b)
        return a * b

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], gradient * ctx.constant


class Product(nn.Module):
    def __init__(self, size=40):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(size).double()), nn.Parameter(torch.randn(size).double())

    def forward(self, x):
        return x * HalfDifferentiated.apply(self.a, self.b).sum()


@pytest.mark.parametrize("function", [hessian_frobenius_norm, hessian_spectral_radius])
def test_wrong_second_derivatives_are_noticed(function):
    """Reverse mode twice gives no symmetric matrix then: an error, not a number."""
    with pytest.raises(ValueError, match="Expected a symmetric operator"):
        function(Product(), torch.ones(3), torch.zeros(3), loss_fn=lambda z, _: z.mean())
    with pytest.raises(ValueError, match="Expected a symmetric operator"):
        hessian_frobenius_norm(Product(4), torch.ones(3), torch.zeros(3), loss_fn=lambda z, _: z.mean(), num_probes=8)


def test_missing_second_derivatives_are_an_error():
    with pytest.raises(SecondDerivativeError, match="derivative for '_embedding_bag_backward' is not implemented"):
        hessian_frobenius_norm(*NO_SECOND_DERIVATIVE.build())


def test_not_converged_is_reported():
    module, inputs, targets = by_name("mlp").build()
    with pytest.warns(UserWarning, match="did not converge in 2 iterations.*raise `max_iter`"):
        result = hessian_spectral_radius(module, inputs, targets, tol=1e-9, max_iter=2)
    assert not result.converged
    assert result.iterations == 2
    assert result.residual > 1e-9 * result.value


def test_residual_bounds_the_distance_to_an_eigenvalue():
    module, inputs, targets = by_name("mlp").build()
    result = hessian_spectral_radius(module, inputs, targets, tol=0.3)
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(module, inputs, targets))
    assert (eigenvalues - result.eigenvalue).abs().min() <= result.residual


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(context):
    module, inputs, targets = by_name("mlp").build()
    expected = hessian_frobenius_norm(module, inputs, targets, num_probes=2).value
    with context():
        inputs, targets = inputs.clone(), targets.clone()
        result = hessian_frobenius_norm(module, inputs, targets, num_probes=2).value
    assert result == expected


def test_same_seed_same_probes_whatever_the_random_state():
    case = by_name("mlp").build()
    first = hessian_frobenius_norm(*case, num_probes=2, seed=3).value
    torch.manual_seed(99)
    assert hessian_frobenius_norm(*case, num_probes=2, seed=3).value == first
    assert hessian_frobenius_norm(*case, num_probes=2, seed=4).value != first


@pytest.mark.parametrize("function", [hessian_frobenius_norm, hessian_spectral_radius])
def test_refuses_batch_statistics(function):
    module, inputs, targets = BATCH_STATISTICS.build()
    with pytest.raises(ValueError, match="Expected batch-norm layers to use running statistics"):
        function(module, inputs, targets)


@pytest.mark.parametrize("function", [hessian_frobenius_norm, hessian_spectral_radius])
def test_refuses_nothing_to_differentiate_and_half_precision(function):
    module, inputs, targets = by_name("mlp").build(torch.float32)
    with pytest.raises(ValueError, match="float32 or float64 to compute the Hessian"):
        function(module.bfloat16(), inputs, targets)
    with pytest.raises(ValueError, match="parameters that require gradients"):
        function(module.float().requires_grad_(False), inputs, targets)


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (hessian_frobenius_norm, {"num_probes": 0}),
        (hessian_frobenius_norm, {"chunk_size": 0}),
        (hessian_spectral_radius, {"tol": 0.0}),
        (hessian_spectral_radius, {"max_iter": 0}),
        (hessian_spectral_radius, {"chunk_size": -1}),
    ],
)
def test_bad_options_are_named(function, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"Expected argument `{name}` to be .*, but got {options[name]}"):
        function(*by_name("mlp").build(), **options)
