"""Every kind of module and loss that is easily measured wrong: numbers of a plain loop, or the true reason."""

from __future__ import annotations

import io
import threading
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_fisher.functional import (
    exact_gamma,
    fisher_log_det,
    fisher_penalty_gradient,
    gradient_norm_penalty_gradient,
    gram_matrix,
    hessian_frobenius_norm,
    log_det,
    penalty_gradient,
    regularized_gradient,
    robustness,
    sharpness_aware_gradient,
)
from lightning_fisher.functional.measures import fisher_rao_norm, folded_norm, hessian_trace, noise_tolerance, path_norm
from tests.functional.compare import gradient_error, gram_error
from tests.functional.kinds import KINDS, N, labels, randn
from tests.reference import plain

PARTS = torch.arange(N).tensor_split(3)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("build", KINDS.values(), ids=KINDS)
def test_the_numbers_of_a_plain_loop(build):
    module, inputs, targets, loss_fn = build()
    loss = loss_fn or F.cross_entropy
    tolerance = 1e-9 if all(p.dtype == torch.float64 for p in module.parameters()) else 1e-3
    rows = plain.gradient_rows(module, inputs, targets, N, loss)
    for chunk_size in (None, 3):
        got = gram_matrix(module, inputs, targets, loss_fn=loss_fn, chunk_size=chunk_size)
        assert gram_error(got, rows @ rows.T) < tolerance
    weights = [len(part) / N for part in PARTS]
    mean = lambda outputs, y: loss(outputs, y).mean()  # noqa: E731
    value, gradient = plain.penalty_at(module, inputs, targets, PARTS, weights, 1e-1, mean)
    options = {"alpha": 1e-1, "num_sub_batches": 3, "loss_fn": loss_fn}
    got, found = penalty_gradient(module, inputs, targets, **options)
    assert got.item() == pytest.approx(value, rel=tolerance)
    found = [g for g, p in zip(found, module.parameters(), strict=True) if p.requires_grad]
    assert gradient_error(found, gradient) < tolerance
    step = regularized_gradient(module, inputs, targets, beta=0.0, gradient="shared", **options)
    whole, gradient = plain.value_and_gradient(
        module, plain.rows(inputs, slice(None)), plain.rows(targets, slice(None)), mean
    )
    assert step.loss.item() == pytest.approx(whole, rel=tolerance)
    found = [g for g, p in zip(step.gradient, module.parameters(), strict=True) if p.requires_grad]
    assert gradient_error(found, gradient) < tolerance


def perceptron(hidden=20):
    return nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), nn.Linear(hidden, 3))


def spectrum(module, x, y):
    """Norms and singular values of the normalized rows, in float64."""
    rows = plain.gradient_rows(module.double(), x.double(), y, len(x), F.cross_entropy)
    norms = rows.norm(dim=1)
    return 2 * norms.log().sum(), torch.linalg.svdvals(rows / norms.unsqueeze(1))


def test_ranks_of_pairs_and_of_many_samples():
    x = torch.randn(10, 6)
    pairs = torch.cat([x, x + 1e-5 * torch.randn(10, 6)])
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4))
    cases = (
        (perceptron(), pairs, torch.arange(10).repeat(2) % 3),
        (net, torch.randn(300, 1, 7, 7), torch.arange(300) % 4),
    )
    for module, inputs, targets in cases:
        with pytest.warns(UserWarning, match="float64") if inputs is pairs else torch.no_grad():
            got = fisher_log_det(module, inputs, targets)
        magnitude, values = spectrum(module, inputs, targets)
        assert int(got.rank) == len(inputs)
        assert got.log_det.item() == pytest.approx((magnitude + 2 * values.log().sum()).item(), rel=1e-6)


@pytest.mark.filterwarnings("ignore:The Gram matrix of:UserWarning")
def test_the_rank_of_what_is_made_of_a_gram_matrix():
    net, x, y = perceptron(2), torch.randn(40, 6), torch.arange(40) % 3
    gram = gram_matrix(net, x, y)
    buffer = io.BytesIO()
    torch.save(gram, buffer)
    buffer.seek(0)
    order = torch.arange(39, -1, -1)
    made = {
        "loaded": torch.load(buffer),
        "permuted": gram[order][:, order],
        "from numpy": torch.from_numpy(gram.numpy().copy()),
        "scaled": 4 * gram,
    }
    magnitude, values = spectrum(net, x, y)
    rank = int((values > 1e-9 * values[0]).sum())
    assert rank < 23  # of the parameters: those of a softmax's biases add up to zero
    expected = magnitude + 2 * values[:rank].log().sum()
    for name, matrix in made.items():
        right = expected + 40 * torch.tensor(4.0).log() if name == "scaled" else expected
        assert log_det(matrix, rank_policy="pseudo").item() == pytest.approx(right.item(), rel=2e-3), name


def hidden_gradient(outputs, y):
    return F.cross_entropy(outputs, y) + outputs.mean(0).square().sum() - outputs.mean(0).square().sum().detach()


def pairs_detached(outputs, y):
    return F.cross_entropy(outputs, y) + torch.cdist(outputs, outputs).mean().detach()


def frequencies(outputs, y):
    return F.cross_entropy(outputs, y, weight=1 / (1.0 + torch.bincount(y, minlength=3)).to(outputs))


@pytest.mark.parametrize(
    ("loss_fn", "reason"),
    [
        (hidden_gradient, "couples the samples"),
        (pairs_detached, "a term that doesn't depend on the outputs"),
        (frequencies, "couples the samples|weighs its samples differently"),
        (None, "a term that doesn't depend on the outputs"),
    ],
    ids=[
        "value of the mean, other gradient",
        "gradient of the mean, other value",
        "frequencies",
        "a sum and a penalty",
    ],
)
def test_scalar_losses_without_losses_of_samples(loss_fn, reason):
    module, x, y = perceptron(5).double(), randn(N, 6), torch.tensor([0, 1, 0, 0, 2, 1, 0, 0])

    def total(outputs, y):
        return F.cross_entropy(outputs, y, reduction="sum") + 0.01 * module[0].weight.square().sum()

    loss_fn = loss_fn or total
    with pytest.raises(ValueError, match=reason):
        gram_matrix(module, x, y, loss_fn=loss_fn)
    with pytest.raises(ValueError, match=r"couples samples|a term beside a sum"):
        regularized_gradient(module, x, y, beta=1.0, num_sub_batches=2, gradient="shared", loss_fn=loss_fn)
    if loss_fn is not total:  # of parts, whatever couples their samples
        got, found = penalty_gradient(module, x, y, alpha=1e-2, num_sub_batches=2, loss_fn=loss_fn)
        halves = [slice(0, 4), slice(4, 8)]
        value, gradient = plain.penalty_at(module, x, y, halves, [0.5, 0.5], 1e-2, loss_fn)
        assert got.item() == pytest.approx(value, rel=1e-9)
        assert gradient_error(found, gradient) < 1e-9


CALLS = {
    "Gram matrix": gram_matrix,
    "penalty": lambda *a: penalty_gradient(*a, num_sub_batches=2),
    "shared": lambda *a: regularized_gradient(*a, beta=1.0, num_sub_batches=2, gradient="shared"),
    "sharpness-aware": sharpness_aware_gradient,
    "gradient norm": gradient_norm_penalty_gradient,
    "Fisher penalty": fisher_penalty_gradient,
    "Hessian": hessian_trace,
    "robustness": lambda module, x, y: robustness(module, x),
    "Fisher–Rao norm": fisher_rao_norm,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_gradients_of_others_are_left_alone(call):
    """A closure over another module, inputs that require gradients, a gradient that is there already."""
    other = nn.Linear(6, 6)
    module = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    module[0].register_forward_pre_hook(lambda layer, received: (torch.tanh(other(received[0])),))
    x = torch.randn(N, 6, requires_grad=True)
    other.weight.grad = there = torch.ones(6, 6)
    call(module, x, labels())
    assert other.weight.grad is there
    assert torch.equal(there, torch.ones(6, 6))
    assert x.grad is None
    assert all(p.grad is None for p in (other.bias, *module.parameters()))


STEPS = {
    "full": lambda *a: regularized_gradient(*a, beta=0.0, num_sub_batches=2).gradient,
    "shared": lambda *a: regularized_gradient(*a, beta=1.0, num_sub_batches=2, gradient="shared").gradient,
    "vmap": lambda *a: penalty_gradient(*a, num_sub_batches=2, passes="vmap")[1],
    "sharpness-aware": lambda *a: sharpness_aware_gradient(*a).gradient,
    "Fisher penalty": lambda *a: fisher_penalty_gradient(*a).gradient,
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_gradients_are_the_users_own(step):
    """Of frozen, tied, unused and transposed parameters: each with memory of its own, to be changed in place."""
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    module[2].weight = module[0].weight
    module[4].weight = nn.Parameter(torch.randn(6, 3).t())
    module[0].bias.requires_grad_(False)
    module.unused = nn.Parameter(torch.zeros(5))
    gradients = step(module, torch.randn(N, 6), labels())
    parameters = list(module.parameters())
    before = [gradient.clone() for gradient in gradients]
    memory = {tensor.untyped_storage().data_ptr() for tensor in (*gradients, *parameters)}
    assert len(memory) == len(gradients) + len(parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    nn.utils.clip_grad_norm_(parameters, 1e-3)
    torch._foreach_mul_([parameter.grad for parameter in parameters], 0.0)
    for fused in (False, True):
        torch.optim.SGD(parameters, lr=0.1, fused=fused).step()
    for gradient, kept in zip(gradients, before, strict=True):
        assert torch.equal(gradient.add_(kept), kept)


def test_what_cannot_be_copied_is_named():
    module, x, y = perceptron(), torch.randn(N, 6), labels()
    module[1] = nn.ReLU()
    module[0].lock = threading.Lock()
    assert gram_matrix(module, x, y).isfinite().all()
    for call in (path_norm, folded_norm, lambda module, x: noise_tolerance(module, x, module(x).argmax(1))):
        with pytest.raises(ValueError, match=r"Expected a module that can be copied, .*lock.*attribute `0\.lock`"):
            call(module, x)


def test_what_does_not_run_in_float64_is_said():
    class Casts(nn.Sequential):
        def forward(self, x):
            return super().forward(x.float())

    with pytest.raises(ValueError, match="Expected a module that runs in float64"):
        path_norm(Casts(nn.Linear(6, 3)), torch.randn(N, 6))
    with pytest.raises(ValueError, match="Expected a module that runs in float64"):
        exact_gamma(Casts(nn.Linear(6, 3)), torch.randn(N, 6), labels(), rank_policy="pseudo")


def test_outputs_that_are_not_taken_apart_are_named():
    class Returns(nn.Linear):
        def forward(self, x):
            return types.SimpleNamespace(logits=super().forward(x))

    module, x, loss = Returns(6, 3), torch.randn(N, 6), lambda outputs, y: F.cross_entropy(outputs.logits, y)
    with pytest.raises(ValueError, match=r"Expected the module to return .* but got SimpleNamespace"):
        gram_matrix(module, x, labels(), loss_fn=loss)


def test_second_derivatives_of_nested_tensors():
    """Torch has none for their parts; what needs none is computed sample by sample."""
    module, x, y, _ = KINDS["nested tensors inside"]()
    rows = plain.gradient_rows(module, x, y, N, F.cross_entropy)
    weights = plain.flat([p.detach() for p in module.parameters()])
    assert fisher_rao_norm(module, x, y).item() == pytest.approx((rows @ weights).square().mean().sqrt().item())
    with pytest.raises(ValueError, match="differentiated twice"):
        hessian_frobenius_norm(module, x, y)
