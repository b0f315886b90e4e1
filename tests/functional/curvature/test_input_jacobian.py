from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_fisher.functional.curvature.input_jacobian import robustness
from tests.functional.snapshot import changes, snapshot
from tests.reference.cases import BATCH_STATISTICS, REFUSED, by_name, each
from tests.reference.input_jacobian import robustness_by_sample
from tests.reference.modules import Apply
from tests.reference.samples import take

CASES = [
    by_name(name)
    for name in (
        *("linear", "mlp", "mlp_relu_inplace", "mlp_dropout", "mlp_one_sample", "mlp_two_classes"),
        *("tuple_input", "dict_input", "dict_input_with_a_number", "conv1d_same_even"),
        *("conv2d_groups_stride_dilation", "batch_norm1d", "batch_norm2d", "batch_norm2d_first", "group_norm"),
        *("layer_norm", "instance_norm_tracked", "residual_relu_inplace", "self_attention_batch_first"),
        *("transformer_encoder_train", "lstm", "weight_norm", "checkpointed"),
    )
]


@each(CASES)
@pytest.mark.parametrize("method", ["exact", "power"])
def test_equals_singular_values_of_dense_jacobians(case, method):
    module, inputs, targets = case.build()
    before = snapshot(module)
    expected = robustness_by_sample(module, inputs, len(targets))
    result = robustness(module, inputs, method=method, tol=1e-7, max_iter=3000, reduction="none")
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=0)
    assert changes(before, snapshot(module)) == []


@each(CASES)
def test_mean_over_samples_in_chunks(case):
    module, inputs, targets = case.build()
    expected = robustness_by_sample(module, inputs, len(targets)).mean()
    torch.testing.assert_close(robustness(module, inputs, chunk_size=2), expected, rtol=1e-9, atol=0)


@each(CASES)
def test_order_of_samples_does_not_matter(case):
    module, inputs, targets = case.build()
    order = torch.randperm(len(targets))
    values = robustness(module, inputs, reduction="none")
    torch.testing.assert_close(robustness(module, take(inputs, order), reduction="none"), values[order])


@pytest.mark.parametrize("method", ["exact", "power"])
@pytest.mark.parametrize("confidence", [1.0, 20.0, 200.0])
def test_float32_is_exact_where_the_network_is_sure(confidence, method):
    """The true class's ``p (1 − p)`` cancels in float32; at 200 nats it is 0 in any naive float64."""
    weight = torch.tensor([[1.0, -2.0], [0.5, 1.0], [-1.0, 0.25]])
    net = nn.Linear(2, 3)
    net.weight.data = weight
    net.bias.data = torch.tensor([confidence, 0.0, 0.0])
    # p₀ ≈ 1: J = (diag(p) − p pᵀ) W with 1 − p₀ = p₁ + p₂ kept apart.
    z = net(torch.zeros(1, 2))[0].double()
    p = torch.exp(z - torch.logsumexp(z, 0)).detach()
    softmax = torch.diag(p) - torch.outer(p, p)
    softmax[0, 0] = p[0] * (p[1] + p[2])
    jacobian = softmax @ (weight.double() - weight[0].double())
    expected = torch.linalg.svdvals(jacobian)[0] ** 2
    result = robustness(net, torch.zeros(1, 2), method=method, tol=1e-6, max_iter=1000)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=0)
    assert result > 0


def test_automatic_choice():
    """Exact up to 64 classes, power iteration, only near to it, from 65 on."""
    small, large = nn.Linear(3, 64).double(), nn.Linear(3, 65).double()
    inputs = torch.randn(4, 3).double()
    assert robustness(small, inputs) == robustness(small, inputs, method="exact")
    assert robustness(large, inputs) == robustness(large, inputs, method="power")
    assert robustness(large, inputs) != robustness(large, inputs, method="exact")
    torch.testing.assert_close(robustness(large, inputs), robustness(large, inputs, method="exact"), rtol=1e-3, atol=0)


def test_scales_with_the_square_of_the_inputs_unit():
    module, inputs, _ = by_name("mlp").build()
    stretched = nn.Sequential(nn.Linear(4, inputs.shape[1], bias=False).double(), module)
    with torch.no_grad():
        stretched[0].weight.copy_(3.0 * torch.eye(inputs.shape[1])[:, :4])
    narrow = inputs.clone()
    narrow[:, 4:] = 0
    expected = robustness_by_sample(stretched, narrow[:, :4] / 3, len(inputs))
    torch.testing.assert_close(robustness(stretched, narrow[:, :4] / 3, reduction="none"), expected)


def test_output_that_ignores_the_input_is_perfectly_robust():
    module = nn.Linear(3, 2)
    nn.init.zeros_(module.weight)
    for method in ("exact", "power"):
        assert robustness(module, torch.randn(4, 3), method=method) == 0


@pytest.mark.parametrize("method", ["exact", "power"])
@pytest.mark.parametrize("function", [lambda x: torch.zeros(len(x), 2), torch.round, lambda x: x.detach() ** 2])
def test_functions_without_a_slope_have_none(function, method):
    assert robustness(Apply(function), torch.randn(4, 2), method=method) == 0


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", ["exact", "power"])
def test_works_where_gradients_are_off(context, method):
    module, inputs, _ = by_name("mlp").build()
    expected = robustness(module, inputs, method=method)
    with context():
        assert robustness(module, inputs.clone(), method=method) == expected


def test_not_converged_is_reported():
    module, inputs, _ = by_name("mlp").build()
    with pytest.warns(UserWarning, match=r"did not converge in 1 steps for \d of 5 samples.*raise `max_iter`"):
        robustness(module, inputs, method="power", tol=1e-12, max_iter=1)


@each([BATCH_STATISTICS, *REFUSED])
def test_refuses_samples_that_interact(case):
    module, inputs, _ = case.build()
    with pytest.raises(ValueError, match=r"Expected (batch-norm layers to use running|samples that don't interact)"):
        robustness(module, inputs)


def test_refuses_integer_inputs_and_other_outputs():
    with pytest.raises(ValueError, match="Expected argument `inputs` to hold a floating-point tensor"):
        robustness(*by_name("embedding").build()[:2])
    with pytest.raises(ValueError, match=r"logits \[N, K\] with K ≥ 2, but got shape \(4, 1\)"):
        robustness(nn.Linear(3, 1), torch.randn(4, 3))
    with pytest.raises(ValueError, match=r"logits \[N, K\] with K ≥ 2, but got shape \(4, 2, 3\)"):
        robustness(nn.Linear(3, 3), torch.randn(4, 2, 3))
    with pytest.raises(ValueError, match="but got tuple"):
        robustness(nn.LSTM(3, 3), torch.randn(4, 2, 3))


@pytest.mark.parametrize(
    "options", [{"method": "fast"}, {"reduction": "sum"}, {"tol": 0.0}, {"max_iter": 0}, {"chunk_size": 0}]
)
def test_bad_options_are_named(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"Expected argument `{name}` to be .*, but got {value!r}"):
        robustness(nn.Linear(3, 2), torch.randn(4, 3), **options)
