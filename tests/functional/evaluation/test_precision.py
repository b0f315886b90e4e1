"""Low losses, autocast, TF32 switches, grad modes: the answer and the setting are what they were."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from lightning_fisher.functional import fisher_log_det, gram_matrix, penalty_gradient
from tests.functional.compare import cosine, gradient_error, relative_error
from tests.functional.snapshot import changes, global_state
from tests.reference.cases import by_name
from tests.reference.jacobian import gram, jacobian
from tests.reference.logdet import log_det_by_qr
from tests.reference.low_loss import unit_rows
from tests.reference.penalty import penalty

NUM_CLASSES = 6


class ScaledLogits(nn.Module):
    def __init__(self, body, scale):
        super().__init__()
        self.body, self.scale = body, scale

    def forward(self, x):
        return self.scale * self.body(x)


def blobs(n, generator):
    labels = torch.arange(n) % NUM_CLASSES
    centers = torch.randn(NUM_CLASSES, 2, 8, 8, generator=torch.Generator().manual_seed(5))
    return centers[labels] + 0.7 * torch.randn(n, 2, 8, 8, generator=generator), labels


@pytest.fixture(scope="module")
def trained():
    """A small convolutional net with batch-norm in float32, trained to classify 24 images, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        generator = torch.Generator().manual_seed(2)
        net = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(48, NUM_CLASSES),
        )
        inputs, labels = blobs(24, generator)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs), labels).backward()
            optimizer.step()
    net.eval()
    with torch.no_grad():
        assert (net(inputs).argmax(1) == labels).all()
    return net, inputs, labels


def scaled_to_loss(net, inputs, labels, loss):
    """The net with its logits scaled until the mean loss is ``loss`` (bisection in float64)."""
    with torch.no_grad():
        logits = net(inputs).double()
        low, high = 1e-3, 1e4
        for _ in range(80):
            middle = (low * high) ** 0.5
            log_p = torch.log_softmax(middle * logits, 1)
            others = log_p.scatter(1, labels[:, None], -torch.inf).logsumexp(1)  # ln(1 - p_y)
            log_loss = torch.where(others < -20, others.exp(), -log_p.gather(1, labels[:, None])[:, 0])
            low, high = (middle, high) if log_loss.mean() > loss else (low, middle)
    return ScaledLogits(net, middle).eval()


@pytest.mark.parametrize("loss", [2e-3, 5e-6, 1e-12, 1e-100, 0.0])
def test_log_det_of_a_float32_net_at_low_loss(trained, loss):
    """At zero loss (1e4 times the logits) no probability but that of the label is representable."""
    net, inputs, labels = trained
    module = scaled_to_loss(net, inputs, labels, loss)
    rows, log_norms = unit_rows(module, inputs, labels)
    expected = log_det_by_qr(rows, log_norms)
    got = fisher_log_det(module, inputs, labels)
    assert got.log_det.item() == pytest.approx(expected.log_det, rel=1e-5)
    assert got.magnitude.item() == pytest.approx(expected.magnitude, rel=1e-5)
    assert torch.allclose(got.log_norms, log_norms, rtol=1e-5, atol=1e-4 * max(1.0, module.scale / 100))
    if module.scale < 100:
        assert got.direction.item() == pytest.approx(expected.direction, rel=1e-4)


@pytest.mark.parametrize("logit_norm", [None, 0.5])
def test_references_agree_with_autograd_of_the_loss_where_it_is_high(trained, logit_norm):
    net, inputs, labels = trained
    module = ScaledLogits(net, 0.1).eval()
    plain = jacobian(module, inputs, labels, loss_fn=nn.CrossEntropyLoss(), logit_norm=logit_norm)
    assert relative_error(jacobian(module, inputs, labels, logit_norm=logit_norm), plain) < 1e-13
    if logit_norm is None:
        rows, log_norms = unit_rows(module, inputs, labels)
        assert relative_error(log_norms.exp()[:, None] * rows, plain) < 1e-13


@pytest.mark.parametrize("loss", [5e-6, 1e-12])
def test_gram_of_a_float32_net_at_low_loss(trained, loss):
    net, inputs, labels = trained
    module = scaled_to_loss(net, inputs, labels, loss)
    rows, log_norms = unit_rows(module, inputs, labels)
    expected = gram(log_norms.exp()[:, None] * rows)
    assert relative_error(gram_matrix(module, inputs, labels), expected) < 1e-4


@contextlib.contextmanager
def setting(name):
    """A precision setting of the caller."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    try:
        if name == "bf16 autocast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                yield
        elif name == "fp16 autocast":
            with torch.autocast("cpu", dtype=torch.float16):
                yield
        else:
            torch.backends.cudnn.allow_tf32 = True
            torch.set_float32_matmul_precision("medium")
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


SETTINGS = ["bf16 autocast", "fp16 autocast", "tf32"]
BODIES = ["mlp_relu_inplace", "conv2d_many_channels_small_map", "batch_norm2d", "transformer_encoder", "lstm"]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("body", BODIES)
def test_penalty_under_the_callers_precision(name, body):
    module, inputs, targets = by_name(body).build(torch.float32)
    module.eval()
    if body == "batch_norm2d":
        module.train()
    options = {"alpha": 1e-4, "num_sub_batches": 2}
    value, gradient = penalty(module, inputs, targets, **options)
    with setting(name):
        before = global_state()
        got_value, got = penalty_gradient(module, inputs, targets, **options)
        assert changes(before, global_state()) == []
    assert cosine(got, gradient) > 0.99
    assert got_value.item() == pytest.approx(value, rel=2e-2)
    plain = penalty_gradient(module, inputs, targets, **options)
    assert gradient_error(got, plain[1]) == 0
    assert got_value.item() == plain[0].item()


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("body", BODIES)
def test_gram_under_the_callers_precision(name, body):
    module, inputs, targets = by_name(body).build(torch.float32)
    with setting(name):
        before = global_state()
        first, later = (gram_matrix(module, inputs, targets) for _ in range(2))  # may differ in their last digits
        log_det = fisher_log_det(module, inputs, targets).log_det
        assert changes(before, global_state()) == []
    same, inputs, targets = by_name(body).build(torch.float32)
    assert torch.equal(first, gram_matrix(same, inputs, targets))
    assert torch.equal(later, gram_matrix(same, inputs, targets))
    again = fisher_log_det(
        same, inputs, targets
    ).log_det  # of single passes in a loop or at once, whichever was quicker
    assert torch.isclose(log_det, again, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_are_refused(dtype):
    module, inputs, targets = by_name("mlp").build(torch.float32)
    module, inputs = module.to(dtype), inputs.to(dtype)
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=f"float32.*{kind}|{kind}.*float32"):
        penalty_gradient(module, inputs, targets, num_sub_batches=2)
    with pytest.raises(ValueError, match=f"float32.*{kind}|{kind}.*float32"):
        gram_matrix(module, inputs, targets)


WITHOUT_GRAD = [*BODIES, "module_used_twice", "positions_n_transformer", "functional_only"]


@pytest.mark.parametrize("made", ["outside", "inside"])  # inputs made inside are inference tensors
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("body", WITHOUT_GRAD)
def test_gram_without_grad_mode(body, mode, made):
    module, inputs, targets = by_name(body).build()
    for _ in range(4):  # the first three calls decide on the way, on which the last digits depend
        expected = gram_matrix(module, inputs, targets)
    with mode():
        if made == "inside":
            inputs, targets = by_name(body).build()[1:]
        assert torch.equal(gram_matrix(module, inputs, targets), expected)


@pytest.mark.parametrize("made", ["outside", "inside"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("body", WITHOUT_GRAD)
def test_penalty_without_grad_mode(body, mode, made):
    module, inputs, targets = by_name(body).build()
    value, gradient = penalty_gradient(module.eval(), inputs, targets, num_sub_batches=2)
    with mode():
        if made == "inside":
            inputs, targets = by_name(body).build()[1:]
        got_value, got = penalty_gradient(module, inputs, targets, num_sub_batches=2)
        assert got_value.item() == value.item()
        assert gradient_error(got, gradient) == 0


def test_results_of_inference_mode_are_usable_outside():
    module, inputs, targets = by_name("mlp").build()
    with torch.inference_mode():
        got = gram_matrix(module, inputs, targets)
        _, grads = penalty_gradient(module, inputs, targets, num_sub_batches=2)
    assert (2 * got).isfinite().all()
    for parameter, grad in zip(module.parameters(), grads, strict=True):
        parameter.grad = grad.clone()
        parameter.grad.add_(1.0)
