"""Losses of one sample each: a scalar loss is compared with its value on the batch, parameters of the loss count."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_fisher.functional import (
    exact_gamma,
    fisher_log_det,
    gram_matrix,
    hessian_frobenius_norm,
    penalty_gradient,
    regularized_gradient,
)
from tests.functional.compare import gradient_error, gram_error
from tests.reference import plain

N = 6
Y = torch.tensor([0, 1, 2, 1, 0, 2])
PARTS = [slice(0, 2), slice(2, 4), slice(4, 6)]
WEIGHT = torch.tensor([1.0, 5.0, 0.2])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = normal(N, 6)


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def mlp():
    return seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double())


def info_nce(o, y):
    return F.cross_entropy(F.normalize(o) @ F.normalize(y).T / 0.1, torch.arange(len(o)))


def decorrelated(o, y):
    c = (o - o.mean(0)).T @ (o - o.mean(0)) / len(o)
    return F.mse_loss(o, y) + c.tril(-1).square().sum()


def normalized_by_the_batch(o, y):
    """One loss a sample, divided by a statistic of the batch that no gradient passes."""
    losses = (o - y).square().sum(1)
    return losses / losses.detach().mean()


def pairs(o, y):
    return F.softplus(o[:, :1] - o[:, :1].T).mean(1)


def last_two(o, y):
    """Only the last two samples meet."""
    losses = (o - y).square().sum(1)
    return torch.cat([losses[:-1], losses[-1:] + 0.1 * losses[-2:-1] if len(o) > 1 else losses[-1:]])


COUPLED = {f.__name__: f for f in (info_nce, decorrelated, normalized_by_the_batch, pairs, last_two)}


@pytest.mark.parametrize("loss_fn", COUPLED.values(), ids=COUPLED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_losses_that_couple_samples_are_refused(loss_fn, dtype):
    module, x, y = mlp().to(dtype), X.to(dtype), normal(N, 3, seed=1).to(dtype)
    with pytest.raises(ValueError, match=r"`loss_fn` .*(couples the samples|depend on their own sample only)"):
        gram_matrix(module, x, y, loss_fn=loss_fn)


def ignoring(o, y):
    return F.cross_entropy(o, torch.where(y == 2, -100, y))


def averaged_over_a_mask(o, y):
    mask = (y != 1).double().unsqueeze(1)
    return (o.square() * mask).sum() / mask.sum()


WEIGHED = {
    "class weights": nn.CrossEntropyLoss(weight=WEIGHT),
    "class weights, function": functools.partial(F.cross_entropy, weight=WEIGHT.double()),
    "ignore_index": ignoring,
    "mask": averaged_over_a_mask,
    "tokens": lambda o, y: F.cross_entropy(
        o.unflatten(1, (1, 3)).expand(-1, 2, -1).flatten(0, 1),
        torch.stack([y, torch.where(y == 0, -100, y)], 1).flatten(),
    ),
}


@pytest.mark.parametrize("loss_fn", WEIGHED.values(), ids=WEIGHED)
def test_where_a_sample_has_no_loss_of_its_own_it_is_said(loss_fn):
    with pytest.raises(ValueError, match=r"weighs its samples differently.*own loss is not defined.*one loss a sample"):
        gram_matrix(mlp(), X, Y, loss_fn=loss_fn)


SEPARABLE = {
    "class weights, one a sample": nn.CrossEntropyLoss(weight=WEIGHT.double(), reduction="none"),
    "label smoothing": nn.CrossEntropyLoss(label_smoothing=0.1),
    "equal class weights": nn.CrossEntropyLoss(weight=torch.full((3,), 2.0)),
    "a sum": functools.partial(F.cross_entropy, reduction="sum"),
    "multi-margin": nn.MultiMarginLoss(),
    "a satisfied hinge": lambda o, y: (0.1 - o.gather(1, y.unsqueeze(1))).relu().mean(),
}


@pytest.mark.parametrize("loss_fn", SEPARABLE.values(), ids=SEPARABLE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_means_of_losses_of_one_sample_each(loss_fn, dtype):
    module, x = mlp().to(dtype), X.to(dtype)
    own = loss_fn
    if isinstance(loss_fn, nn.Module):
        loss_fn = loss_fn.to(dtype)
    expected = plain.gram(mlp(), X, Y, N, own.double() if isinstance(own, nn.Module) else own)
    if isinstance(loss_fn, nn.Module):
        loss_fn = loss_fn.to(dtype)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    assert gram_error(gram_matrix(module, x, Y, loss_fn=loss_fn), expected) < tolerance


class Embedding(nn.Module):
    """A backbone whose head is used by the loss."""

    def __init__(self):
        super().__init__()
        self.l, self.head = nn.Linear(6, 4), nn.Linear(4, 3, bias=False)

    def forward(self, x):
        return torch.tanh(self.l(x))


class ArcFace(nn.Module):
    """An additive angular margin; shares the head with the backbone."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, h, y):
        cosines = F.linear(F.normalize(h), F.normalize(self.head.weight)).clamp(-0.99, 0.99)
        margin = F.one_hot(y, 3) * 0.2
        return F.cross_entropy(5 * torch.cos(torch.acos(cosines) + margin), y)


def with_head(build):
    module = seeded(Embedding).double()
    return module, build(module)


def proxy(module):
    return lambda h, y: torch.cdist(h, module.head.weight).gather(1, y.unsqueeze(1)).squeeze(1)


def l2(module):
    return lambda h, y: F.cross_entropy(module.head(h), y) + 0.01 * sum(p.square().sum() for p in module.parameters())


def cosine(module):
    return lambda h, y: F.cross_entropy(5 * F.linear(F.normalize(h), F.normalize(module.head.weight)), y)


HELD = {"cosine": cosine, "ArcFace": lambda module: ArcFace(module.head), "proxies": proxy, "L2": l2}


@pytest.mark.parametrize("build", HELD.values(), ids=HELD)
def test_parameters_of_the_loss_are_included(build):
    module, loss_fn = with_head(build)
    mean = lambda h, y: loss_fn(h, y).mean()  # noqa: E731
    expected = plain.gram(module, X, Y, N, mean)
    for chunk_size in (None, 4):
        assert gram_error(gram_matrix(module, X, Y, loss_fn=loss_fn, chunk_size=chunk_size), expected) < 1e-9
    norms = expected.diagonal().sqrt()
    log_det = torch.linalg.slogdet(expected / norms / norms[:, None])[1] + 2 * norms.log().sum()
    assert fisher_log_det(module, X, Y, loss_fn=loss_fn).log_det.item() == pytest.approx(log_det.item(), rel=1e-7)
    value, gradient = plain.penalty_at(module, X, Y, PARTS, [1 / 3] * 3, 1e-2, mean)
    got, got_gradient = penalty_gradient(module, X, Y, alpha=1e-2, num_sub_batches=3, loss_fn=loss_fn)
    assert got.item() == pytest.approx(value, rel=1e-9)
    assert gradient_error(got_gradient, gradient) < 1e-9
    loss, gradient = plain.value_and_gradient(module, X, Y, mean)
    step = regularized_gradient(module, X, Y, beta=0.0, num_sub_batches=3, loss_fn=loss_fn, gradient="shared")
    assert step.loss.item() == pytest.approx(loss, rel=1e-12)
    assert gradient_error(step.gradient, gradient) < 1e-9
    norm = hessian_frobenius_norm(module, X, Y, loss_fn=loss_fn, num_probes=10**6, chunk_size=4)
    assert norm.value.item() == pytest.approx(plain.hessian(module, X, Y, mean).square().sum().item(), rel=1e-9)
    with pytest.raises(ValueError, match=r"`loss_fn` .*outputs only, but it uses some itself"):
        exact_gamma(module, X, Y, loss_fn=loss_fn)


@pytest.mark.parametrize("kind", ["module", "closure"])
def test_parameters_that_are_not_the_module_s_are_refused(kind):
    head = seeded(lambda: nn.Linear(3, 3, bias=False)).double()
    loss_fn = ArcFace(head) if kind == "module" else lambda h, y: F.cross_entropy(head(h), y)
    asked = [
        lambda: gram_matrix(mlp(), X, Y, loss_fn=loss_fn),
        lambda: penalty_gradient(mlp(), X, Y, num_sub_batches=3, loss_fn=loss_fn),
        lambda: regularized_gradient(mlp(), X, Y, beta=1.0, num_sub_batches=3, loss_fn=loss_fn, gradient="shared"),
        lambda: hessian_frobenius_norm(mlp(), X, Y, loss_fn=loss_fn),
    ]
    for ask in asked:
        with pytest.raises(
            ValueError, match=r"`loss_fn` to use parameters of the module only, .* 1 of its own .*\(3, 3\)"
        ):
            ask()
    head.requires_grad_(False)
    expected = plain.gram(mlp(), X, Y, N, loss_fn)
    assert gram_error(gram_matrix(mlp(), X, Y, loss_fn=loss_fn), expected) < 1e-9
