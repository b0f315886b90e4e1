"""One way in: samples are copied, keep their dtypes and are never aliased with the user's tensors."""

from __future__ import annotations

from collections import UserDict

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from lightning_fisher.functional import (
    gram_matrix,
    hessian_frobenius_norm,
    penalty_gradient,
    regularized_gradient,
    robustness,
)
from tests.functional.compare import gradient_error, gram_error
from tests.reference import plain

N = 6
Y = torch.tensor([0, 1, 2, 1, 0, 2])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Net(nn.Module):
    """``before(x)`` in front of an MLP in float64."""

    def __init__(self, before):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        self.before = before

    def forward(self, x):
        return self.net(self.before(x))


def normalized(x):
    x -= 0.3
    return x.div_(1.7)


def masked(x):
    x[x < 0] = 0
    return x


def sorted_in_place(x):
    return torch.sort(x, dim=1, out=(x, torch.empty(x.shape, dtype=torch.long)))[0]


def inside_a_view(x):
    x.view(len(x), 2, 3)[:, 0].mul_(2)
    return x


INPLACE = {"normalized": normalized, "masked": masked, "out": sorted_in_place, "view": inside_a_view}
PARTS = [slice(0, 2), slice(2, 4), slice(4, 6)]


@pytest.mark.parametrize("before", INPLACE.values(), ids=INPLACE)
def test_a_forward_that_changes_its_input_in_place(before):
    module, x = Net(before), normal(N, 6) + 0.5
    kept = x.clone()
    value, gradient = plain.penalty(module, x, Y, PARTS, [1 / 3] * 3, 1e-2, cross_entropy)
    loss, _ = plain.value_and_gradient(module, x.clone(), Y, cross_entropy)
    for passes in ("loop", "vmap") if before is not sorted_in_place and before is not masked else ("loop",):
        got, got_gradient = penalty_gradient(module, x, Y, alpha=1e-2, num_sub_batches=3, passes=passes)
        assert got.item() == pytest.approx(value, rel=1e-9)
        assert gradient_error(got_gradient, gradient) < 1e-9
    for form in ("full", "shared"):
        step = regularized_gradient(module, x, Y, beta=1.0, alpha=1e-2, num_sub_batches=3, gradient=form)
        assert step.penalty.item() == pytest.approx(value, rel=1e-9)
        assert step.loss.item() == pytest.approx(loss, rel=1e-12)
    assert gram_error(gram_matrix(module, x, Y), plain.gram(module, x, Y, N, cross_entropy)) < 1e-9
    expected = plain.hessian(module, x, Y, cross_entropy).square().sum()
    for chunk_size in (None, 4):
        norm = hessian_frobenius_norm(module, x, Y, num_probes=10**6, chunk_size=chunk_size)
        assert norm.value.item() == pytest.approx(expected.item(), rel=1e-9)
    assert torch.equal(x, kept)


def test_robustness_of_a_forward_that_changes_its_input_in_place():
    module, x = Net(normalized), normal(N, 6)
    kept = x.clone()
    expected = []
    for j in range(N):
        jacobian = torch.autograd.functional.jacobian(lambda z: module(z.clone()).softmax(1)[0], x[j : j + 1])
        expected.append(torch.linalg.matrix_norm(jacobian.reshape(3, 6), 2) ** 2)
    torch.testing.assert_close(robustness(module, x, reduction="none"), torch.stack(expected), rtol=1e-9, atol=0)
    assert torch.equal(x, kept)


def centered(outputs, targets):
    """Changes its outputs and its targets."""
    targets -= 0.5
    return mse_loss(outputs.mul_(2.0), targets)


def clipped(outputs, targets):
    targets.clamp_(min=0.0)
    return (outputs - targets).square().mean(1)


@pytest.mark.parametrize("loss_fn", [centered, clipped])
def test_a_loss_that_changes_what_it_gets_in_place(loss_fn):
    module, x, y = Net(lambda x: x), normal(N, 6), normal(N, 3, seed=1)
    kept = x.clone(), y.clone()
    mean = lambda outputs, targets: loss_fn(outputs, targets).mean()  # noqa: E731
    value, gradient = plain.penalty(module, x, y, PARTS, [1 / 3] * 3, 1e-2, mean)
    got, got_gradient = penalty_gradient(module, x, y, alpha=1e-2, num_sub_batches=3, loss_fn=loss_fn)
    assert got.item() == pytest.approx(value, rel=1e-9)
    assert gradient_error(got_gradient, gradient) < 1e-9
    assert gram_error(gram_matrix(module, x, y, loss_fn=loss_fn), plain.gram(module, x, y, N, mean)) < 1e-9
    norm = hessian_frobenius_norm(module, x, y, loss_fn=loss_fn, num_probes=10**6, chunk_size=2)
    assert norm.value.item() == pytest.approx(plain.hessian(module, x, y, mean).square().sum().item(), rel=1e-9)
    assert all(torch.equal(a, b) for a, b in zip((x, y), kept, strict=True))


class Stamps(nn.Module):
    """Time stamps in float64 beside features in float32."""

    def __init__(self):
        super().__init__()
        self.l, self.o = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x, t):
        return self.o(torch.tanh(self.l(x) + (t - 1.7e9).float().unsqueeze(1) / 100))


class Counts(nn.Module):
    """Numbers beyond 2²⁴ in float64, whose last digits matter."""

    def __init__(self):
        super().__init__()
        self.l = nn.Linear(6, 3)

    def forward(self, x, n):
        return self.l(x) * torch.remainder(n, 7).float().unsqueeze(1)


class Frozen(nn.Module):
    """A frozen backbone in another precision than the head."""

    def __init__(self, dtype):
        super().__init__()
        self.b, self.o = nn.Linear(6, 6).to(dtype).requires_grad_(False), nn.Linear(6, 3)

    def forward(self, x):
        return self.o(torch.tanh(self.b(x)).float())


class Temperature(nn.Module):
    """One parameter in float64 among those in float32."""

    def __init__(self):
        super().__init__()
        self.t, self.o = nn.Parameter(torch.tensor(1.5, dtype=torch.float64)), nn.Linear(6, 3)

    def forward(self, x):
        return self.o(x) * self.t.float()


class DoubleHead(nn.Module):
    """Layers in float32 and float64, both trained."""

    def __init__(self):
        super().__init__()
        self.l, self.o = nn.Linear(6, 6), nn.Linear(6, 3).double()

    def forward(self, x):
        return self.o(torch.tanh(self.l(x)).double())


X32 = normal(N, 6).float()
DTYPES = {
    "float64 time stamps": (Stamps, (X32, 1.7e9 + 13.7 * torch.arange(N, dtype=torch.float64))),
    "float64 counts": (Counts, (X32, 2.0**30 + torch.arange(N, dtype=torch.float64))),
    "half backbone": (lambda: Frozen(torch.float16), X32.half()),
    "bfloat16 backbone": (lambda: Frozen(torch.bfloat16), X32.bfloat16()),
    "double backbone": (lambda: Frozen(torch.float64), X32.double()),
    "a float64 parameter": (Temperature, X32),
    "a float64 head": (DoubleHead, X32),
}


@pytest.mark.parametrize(("build", "inputs"), DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.uint8])
def test_samples_keep_their_dtypes(build, inputs, kind):
    torch.manual_seed(0)
    module, targets = build(), Y.to(kind)
    loss, gradient = plain.value_and_gradient(module, inputs, Y, cross_entropy)
    step = regularized_gradient(module, inputs, targets, beta=0.0, num_sub_batches=2)
    assert step.loss.item() == pytest.approx(loss, rel=1e-6)
    got = [g for g, p in zip(step.gradient, module.parameters(), strict=True) if p.requires_grad]
    assert [g.dtype for g in got] == [g.dtype for g in gradient]
    assert gradient_error([g.double() for g in got], [g.double() for g in gradient]) < 1e-5
    assert gram_error(gram_matrix(module, inputs, targets), plain.gram(module, inputs, Y, N, cross_entropy)) < 1e-5
    hessian_frobenius_norm(module, inputs, targets, num_probes=2, chunk_size=3)
    value, _ = plain.penalty(module, inputs, Y, PARTS, [1 / 3] * 3, 1e-1, cross_entropy)
    got_value, _ = penalty_gradient(module, inputs, targets, num_sub_batches=3, alpha=1e-1)
    assert got_value.item() == pytest.approx(value, rel=1e-3)


def test_inputs_that_have_no_derivative_worth_the_name_are_refused():
    with pytest.raises(ValueError, match=r"`inputs` to be float32 or float64 to be differentiated .* torch.float16"):
        robustness(Frozen(torch.float16), X32.half())


class Force(nn.Module):
    """Differentiates with respect to its own input: an energy and its force."""

    def __init__(self):
        super().__init__()
        self.net = Net(lambda x: x).net

    def forward(self, x):
        with torch.enable_grad():
            x = x if x.requires_grad else x.requires_grad_()
            return torch.autograd.grad(self.net(x).square().sum(), x, create_graph=True)[0]


@pytest.mark.parametrize("requires_grad", [False, True])
def test_inputs_that_require_gradients_still_do(requires_grad):
    module, x, y = Force(), normal(N, 6), normal(N, 6, seed=2)
    x.requires_grad_(requires_grad)
    value, gradient = plain.penalty(module, x.detach(), y, PARTS, [1 / 3] * 3, 1e-2, mse_loss)
    got, got_gradient = penalty_gradient(module, x, y, alpha=1e-2, num_sub_batches=3, loss_fn=mse_loss)
    assert got.item() == pytest.approx(value, rel=1e-9)
    assert gradient_error(got_gradient, gradient) < 1e-9
    assert x.grad is None
    assert x.requires_grad == requires_grad


def test_mappings_of_any_class_are_keyword_arguments():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net(lambda x: x)

        def forward(self, a, b):
            return self.net(a + b)

    module, inputs = Two(), {"a": normal(N, 6), "b": normal(N, 6, seed=1)}
    for other in (inputs, UserDict(inputs)):
        assert gram_error(gram_matrix(module, other, Y), plain.gram(module, inputs, Y, N, cross_entropy)) < 1e-9
        assert (
            penalty_gradient(module, other, Y, num_sub_batches=3)[0]
            == penalty_gradient(module, inputs, Y, num_sub_batches=3)[0]
        )


def test_a_loss_that_needs_no_targets():
    module, x = Net(lambda x: x), normal(N, 6)
    flat = lambda outputs, targets: outputs.square().mean()  # noqa: E731
    value, _ = plain.penalty(module, x, None, PARTS, [1 / 3] * 3, 1e-2, flat)
    assert penalty_gradient(module, x, None, alpha=1e-2, num_sub_batches=3, loss_fn=flat)[0].item() == pytest.approx(
        value
    )
    assert gram_error(gram_matrix(module, x, None, loss_fn=flat), plain.gram(module, x, None, N, flat)) < 1e-9


@pytest.mark.parametrize(
    ("outputs", "message"),
    [(lambda x: {"logits": x}, "logits .* got dict"), (lambda x: x.long(), r"logits .* got shape \(2, 6\)")],
)
def test_outputs_that_are_no_logits_are_named(outputs, message):
    with pytest.raises(ValueError, match=message):
        penalty_gradient(Sequence(outputs), normal(N, 6), Y, num_sub_batches=3)


class Sequence(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.l, self.outputs = nn.Linear(6, 6).double(), outputs

    def forward(self, x):
        return self.outputs(self.l(x))


@pytest.mark.parametrize("returned", [1.0, None, (torch.zeros(()),)])
def test_losses_that_are_no_tensors_are_named(returned):
    with pytest.raises(ValueError, match="Expected argument `loss_fn` to return a scalar tensor or one loss a sample"):
        penalty_gradient(
            Net(lambda x: x), normal(N, 6), Y, num_sub_batches=3, loss_fn=lambda outputs, targets: returned
        )
