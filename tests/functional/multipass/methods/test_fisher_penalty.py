"""The Fisher penalty against arrays, double backward, the trace itself and its two ways against each other."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_fisher.functional import fisher_penalty_gradient
from tests.functional.compare import gradient_error
from tests.reference.cases import CASES, by_name, each
from tests.reference.methods import array, batches, network, train
from tests.reference.perturbed import fisher_trace
from tests.reference.samples import call


def oracle(module, inputs, targets, labels, weight):
    """Penalty and gradient of ``L + c‖G‖²`` by torch.func of the textbook formula."""
    weights = {name: p.detach() for name, p in module.named_parameters()}

    def loss(w, y):
        arguments = inputs if isinstance(inputs, (tuple, dict)) else (inputs,)
        outputs = torch.func.functional_call(
            module, w, *((), arguments) if isinstance(arguments, dict) else (arguments,)
        )
        return cross_entropy(outputs, y)

    def square(w):
        return sum((g * g).sum() for g in torch.func.grad(loss)(w, labels).values())

    gradient, value = torch.func.grad_and_value(square)(weights)
    plain = torch.func.grad(loss)(weights, targets)
    return weight * value.item(), [plain[name] + weight * gradient[name] for name in weights]


def test_third_party_code():
    labels = array("fisher_penalty/sampled/labels")
    penalties = []

    def gradient(module, x, y, t):
        result = fisher_penalty_gradient(module, x, y, weight=0.1, labels=labels[t], method="double_backward")
        penalties.append(result.penalty / 0.1)
        return result.loss + result.penalty, result.gradient

    weights, losses, _ = train("fisher_penalty/sampled", "mlp", gradient)
    assert weights < 1e-10
    assert losses < 1e-10
    assert torch.allclose(torch.stack(penalties), array("fisher_penalty/sampled/penalty"), rtol=1e-10, atol=0)


def test_the_finite_difference_tends_to_it():
    labels = array("fisher_penalty/sampled/labels")
    module, (x, y) = network(), batches()[0]
    exact = fisher_penalty_gradient(module, x, y, labels=labels[0], method="double_backward")
    for difference, order in (("central", 100), ("forward", 10), ("backward", 10)):
        results = [
            fisher_penalty_gradient(module, x, y, labels=labels[0], difference=difference, step=step)
            for step in (1e-2, 1e-3)
        ]
        errors = [gradient_error(result.gradient, exact.gradient) for result in results]
        assert errors[0] < 1e-2
        assert errors[0] / errors[1] == pytest.approx(order, rel=0.3)
        assert results[0].penalty.item() == pytest.approx(exact.penalty.item(), rel=1e-12)


SMOOTH = [case for case in CASES if case.name in ("mlp", "batch_norm1d", "layer_norm", "self_attention", "conv1d")]


@each(SMOOTH)
@pytest.mark.parametrize("method", ["double_backward", "finite_difference"])
def test_against_the_formula(case, method):
    module, inputs, targets = case.build()
    module.eval()
    labels = (targets + 1) % 3
    penalty, gradient = oracle(module, inputs, targets, labels, 0.3)
    result = fisher_penalty_gradient(module, inputs, targets, weight=0.3, labels=labels, method=method, step=1e-4)
    assert result.penalty.item() == pytest.approx(penalty, rel=1e-9)
    assert gradient_error(result.gradient, gradient) < (1e-9 if method == "double_backward" else 1e-5)


def test_there_are_smooth_cases():
    assert len(SMOOTH) >= 3


def test_the_mean_over_draws_is_the_trace_over_the_batch_size():
    module, (x, y) = network(), batches()[0]
    expected = fisher_trace(module, x) / len(x)
    assert expected == pytest.approx(array("fisher_penalty/trace_exact").item() / 16, rel=1e-12)
    generator = torch.Generator().manual_seed(1)
    draws = torch.stack(
        [
            fisher_penalty_gradient(
                module, x, y, weight=1.0, generator=generator, method="finite_difference", difference="forward"
            ).penalty
            for _ in range(400)
        ]
    )
    error = draws.std() / len(draws) ** 0.5
    assert abs(draws.mean() - expected) < 4 * error
    assert error < 0.05 * expected


def test_each_step_draws_other_labels_also_without_dropout():
    module, (x, y) = network(), batches()[0]
    torch.manual_seed(0)
    first, second = (fisher_penalty_gradient(module, x, y).penalty for _ in range(2))
    assert first != second
    torch.manual_seed(0)
    assert fisher_penalty_gradient(module, x, y).penalty == first


def test_drawn_labels_are_the_models():
    """A model that is certain draws its own class, so that the penalty is zero."""
    module = nn.Linear(2, 3, bias=False).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[500.0, 0.0], [0.0, 500.0], [0.0, 0.0]]))
    result = fisher_penalty_gradient(module, torch.eye(2), torch.tensor([1, 0]))
    assert result.loss.item() == pytest.approx(500)
    assert result.penalty.item() == pytest.approx(0.0, abs=1e-100)


def test_positions():
    """One label a position, where the outputs are ``[N, K, d]``."""
    module = nn.Conv1d(2, 3, 3).double()
    inputs, targets = torch.randn(4, 2, 6).double(), torch.randint(3, (4, 4))
    labels = torch.randint(3, (4, 4))
    penalty, gradient = oracle(module, inputs, targets, labels, 0.1)
    result = fisher_penalty_gradient(module, inputs, targets, labels=labels, method="double_backward")
    assert result.penalty.item() == pytest.approx(penalty, rel=1e-10)
    assert gradient_error(result.gradient, gradient) < 1e-10
    assert fisher_penalty_gradient(module, inputs, targets).penalty.isfinite()


def test_dropout_masks_are_those_of_the_training_pass():
    """With p = 1/2 other masks would change the penalty between two evaluations from one seed."""
    module, inputs, targets = by_name("mlp_dropout").build()
    module.train()
    torch.manual_seed(5)
    outputs = call(module, inputs)
    torch.manual_seed(5)
    labels = (targets + 1) % 3
    expected = torch.autograd.grad(cross_entropy(outputs, labels), list(module.parameters()))
    result = fisher_penalty_gradient(module, inputs, targets, weight=1.0, labels=labels)
    assert result.penalty.item() == pytest.approx(sum(float((g * g).sum()) for g in expected), rel=1e-10)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"weight": -1.0}, "weight.*-1.0"),
        ({"method": "guess"}, "method.*guess"),
        ({"difference": "sideways"}, "difference.*sideways"),
        ({"step": 0.0}, "step.*0.0"),
        ({"labels": torch.zeros(4, dtype=torch.long)}, "labels.*5 samples.*4"),
    ],
)
def test_bad_options_are_named(options, text):
    module, inputs, targets = by_name("mlp").build()
    with pytest.raises(ValueError, match=f"Expected argument.*{text}"):
        fisher_penalty_gradient(module, inputs, targets, **options)


def test_outputs_without_classes_are_refused():
    module = nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))
    with pytest.raises(ValueError, match=r"logits of shape \[N, K\]"):
        fisher_penalty_gradient(module, torch.randn(4, 6), torch.rand(4))
