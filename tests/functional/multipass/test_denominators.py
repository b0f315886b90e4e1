"""Parts weigh what they weigh in the loss of the whole: its own denominator, not the number of samples.

The oracle is the loss of the whole batch, and R as a sum with denominators written out.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_fisher.functional import hessian_frobenius_norm, penalty_gradient, regularized_gradient
from tests.functional.compare import gradient_error
from tests.reference import plain

N = 8
PARTS = [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8)]
CLASS_WEIGHTS = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net(*layers):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*(layer() for layer in layers)).double()


def mlp():
    return net(lambda: nn.Linear(6, 5), nn.Tanh, lambda: nn.Linear(5, 3))


def segments():
    return net(lambda: nn.Conv2d(3, 4, 3, padding=1), nn.Tanh, lambda: nn.Conv2d(4, 3, 1))


def labels(*shape):
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(1))


def ignored(index, value=-100):
    """Pixels that are ignored: all of the second part, most of the first, some elsewhere."""
    y = labels(N, 4, 4)
    y[0, :3] = value
    y[1] = value
    y[2:4] = value
    y[index, 2:] = value
    return y


class WithMask(nn.Module):
    """Returns the mask along with its outputs: the denominator depends on the outputs."""

    def __init__(self):
        super().__init__()
        self.net = net(lambda: nn.Linear(6, 3))

    def forward(self, x, mask):
        return {"z": self.net(x), "mask": mask}


class OwnLoss(nn.Module):
    """Returns the mean loss over the tokens that aren't ignored itself, with or without the logits."""

    def __init__(self, alone):
        super().__init__()
        self.net = net(lambda: nn.Linear(6, 4), lambda: nn.BatchNorm1d(5), nn.Tanh, lambda: nn.Linear(4, 3))
        self.eval()
        self.alone = alone

    def forward(self, x, y):
        logits = self.net(x)
        loss = F.cross_entropy(logits.transpose(1, 2), y)
        return loss if self.alone else {"loss": loss, "logits": logits}


TOKENS = labels(N, 5)
TOKENS[0, 1:] = TOKENS[2, 3:] = TOKENS[5, :4] = -100
TOKENS[6:] = -100
MASK = (torch.arange(5) < torch.tensor([5, 1, 2, 2, 0, 4, 3, 1]).unsqueeze(1)).double()


def masked(outputs, y):
    losses = F.cross_entropy(outputs["z"].transpose(1, 2), y, reduction="none")
    return (losses * outputs["mask"]).sum() / outputs["mask"].sum()


def masked_targets(outputs, y):
    return (F.mse_loss(outputs, y[0], reduction="none") * y[1]).sum() / y[1].sum()


def soft_weighted(outputs, y):
    """Importance weights beside the targets."""
    return (F.cross_entropy(outputs, y["label"], reduction="none") * y["weight"]).sum() / y["weight"].sum()


def smoothed(outputs, y):
    return F.cross_entropy(outputs, y, weight=CLASS_WEIGHTS.to(outputs), label_smoothing=0.1)


def count(y, value=-100):
    return float((y != value).sum())


CASES = {  # module, inputs, targets, loss_fn, denominator of a part's inputs and targets
    "default, ignored": (segments(), normal(N, 3, 4, 4), ignored(5), None, lambda x, y: count(y)),
    "ignore_index": (
        segments(),
        normal(N, 3, 4, 4),
        ignored(5, 2),
        nn.CrossEntropyLoss(ignore_index=2),
        lambda x, y: count(y, 2),
    ),
    "class weights": (
        mlp(),
        normal(N, 6),
        labels(N),
        nn.CrossEntropyLoss(weight=CLASS_WEIGHTS),
        lambda x, y: float(CLASS_WEIGHTS[y].sum()),
    ),
    "class weights in float32": (
        mlp(),
        normal(N, 6),
        labels(N),
        lambda o, y: F.nll_loss(o.log_softmax(1).float(), y, weight=CLASS_WEIGHTS.float()),
        lambda x, y: float(CLASS_WEIGHTS[y].sum()),
    ),
    "class weights, smoothed": (mlp(), normal(N, 6), labels(N), smoothed, lambda x, y: float(CLASS_WEIGHTS[y].sum())),
    "importance": (
        mlp(),
        normal(N, 6),
        {"label": labels(N), "weight": normal(N, seed=3).square()},
        soft_weighted,
        lambda x, y: float(y["weight"].sum()),
    ),
    "mask in the targets": (
        mlp(),
        normal(N, 6),
        (normal(N, 3, seed=4), (normal(N, 3, seed=5) > 0).double()),
        masked_targets,
        lambda x, y: float(y[1].sum()),
    ),
    "mask in the outputs": (WithMask(), (normal(N, 5, 6), MASK), labels(N, 5), masked, lambda x, y: float(x[1].sum())),
    "the module's own loss": (
        OwnLoss(False),
        (normal(N, 5, 6), TOKENS),
        labels(N),
        lambda outputs, y: outputs["loss"],
        lambda x, y: count(x[1]),
    ),
    "the module's own loss alone": (
        OwnLoss(True),
        (normal(N, 5, 6), TOKENS),
        labels(N),
        lambda outputs, y: outputs,
        lambda x, y: count(x[1]),
    ),
    "an own loss that is not used": (
        OwnLoss(False),
        (normal(N, 5, 6), TOKENS),
        TOKENS,
        lambda outputs, y: F.cross_entropy(outputs["logits"].flatten(0, 1), y.flatten()),
        lambda x, y: count(y),
    ),
    "a plain mean": (mlp(), normal(N, 6), normal(N, 3, seed=6), F.mse_loss, lambda x, y: 1.0),
    "one a sample": (
        mlp(),
        normal(N, 6),
        labels(N),
        nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, reduction="none"),
        lambda x, y: 1.0,
    ),
}


def scalar(loss_fn):
    return F.cross_entropy if loss_fn is None else lambda outputs, y: loss_fn(outputs, y).mean()


def kept_parts(inputs, targets, denominator):
    """Parts that have labels, and their weights."""
    sizes = [denominator(plain.rows(inputs, part), plain.rows(targets, part)) for part in PARTS]
    return [p for p, d in zip(PARTS, sizes, strict=True) if d], [d / sum(sizes) for d in sizes if d]


each = pytest.mark.parametrize(
    ("module", "inputs", "targets", "loss_fn", "denominator"), CASES.values(), ids=list(CASES)
)
ACCURACY = 1e-5  # the one in float32; the others are far below


@each
@pytest.mark.parametrize("passes", ["loop", "vmap"])
def test_the_penalty(module, inputs, targets, loss_fn, denominator, passes):
    parts, weights = kept_parts(inputs, targets, denominator)
    value, gradient = plain.penalty(module, inputs, targets, parts, weights, 1e-1, scalar(loss_fn))
    got, got_gradient = penalty_gradient(
        module, inputs, targets, alpha=1e-1, num_sub_batches=4, loss_fn=loss_fn, passes=passes
    )
    assert got.item() == pytest.approx(value, rel=ACCURACY)
    assert gradient_error(got_gradient, gradient) < ACCURACY


@each
@pytest.mark.parametrize("form", ["full", "shared"])
def test_the_regularized_step(module, inputs, targets, loss_fn, denominator, form):
    """The loss and its gradient are those of the whole batch, whatever the parts."""
    loss, plain_gradient = plain.value_and_gradient(module, inputs, targets, scalar(loss_fn))
    parts, weights = kept_parts(inputs, targets, denominator)
    value, gradient = plain.penalty(module, inputs, targets, parts, weights, 1e-1, scalar(loss_fn))
    got = regularized_gradient(
        module, inputs, targets, beta=2.0, alpha=1e-1, num_sub_batches=4, loss_fn=loss_fn, gradient=form
    )
    assert got.loss.item() == pytest.approx(loss, rel=ACCURACY)
    assert got.penalty.item() == pytest.approx(value, rel=ACCURACY)
    expected = [g + 2.0 * r for g, r in zip(plain_gradient, gradient, strict=True)]
    assert gradient_error(got.gradient, expected) < ACCURACY


@each
@pytest.mark.parametrize("form", ["full", "shared"])
@pytest.mark.parametrize("perturbed", [1, 3])
def test_an_estimate_from_some_parts(module, inputs, targets, loss_fn, denominator, form, perturbed):
    """Right on average over the choices of k of M: here the one that a seed draws, with its weights written out."""
    drawn = torch.randperm(4, generator=torch.Generator().manual_seed(5))[:perturbed].tolist()
    sizes = [denominator(plain.rows(inputs, part), plain.rows(targets, part)) for part in PARTS]
    chosen = [i for i in sorted(drawn) if sizes[i]]
    loss, _ = plain.value_and_gradient(module, inputs, targets, scalar(loss_fn))
    value = 0.0
    if chosen:
        weights = [4 / perturbed * sizes[i] / sum(sizes) for i in chosen]
        value, _ = plain.penalty(module, inputs, targets, [PARTS[i] for i in chosen], weights, 1e-1, scalar(loss_fn))
    got = regularized_gradient(
        module,
        inputs,
        targets,
        beta=2.0,
        alpha=1e-1,
        num_sub_batches=4,
        loss_fn=loss_fn,
        gradient=form,
        perturbed=perturbed,
        generator=torch.Generator().manual_seed(5),
    )
    assert got.loss.item() == pytest.approx(loss, rel=ACCURACY)
    assert got.penalty.item() == pytest.approx(value, rel=ACCURACY, abs=1e-15)


@pytest.mark.parametrize("name", [name for name in CASES if "segments" not in name and "ignore" not in name])
@pytest.mark.parametrize("chunk_size", [2, 3])
def test_chunks_of_the_hessian(name, chunk_size):
    module, inputs, targets, loss_fn, _ = CASES[name]
    expected = plain.hessian(module, inputs, targets, scalar(loss_fn)).square().sum().item()
    got = hessian_frobenius_norm(module, inputs, targets, loss_fn=loss_fn, num_probes=10**6, chunk_size=chunk_size)
    assert got.value.item() == pytest.approx(expected, rel=1e-4 if "float32" in name else 1e-9)


def test_chunks_of_the_hessian_without_labels():
    module = net(lambda: nn.Conv2d(3, 3, 1))
    x, y = normal(N, 3, 4, 4), ignored(5)
    expected = plain.hessian(module, x, y, F.cross_entropy).square().sum().item()
    for loss_fn in (None, F.cross_entropy):
        got = hessian_frobenius_norm(module, x, y, loss_fn=loss_fn, num_probes=10**6, chunk_size=2)
        assert got.value.item() == pytest.approx(expected, rel=1e-9)


def test_a_sum_is_the_sum_of_the_parts():
    """Not what is asked for, but no wrong number either."""
    module, x, y = mlp(), normal(N, 6), normal(N, 3, seed=6)
    total = lambda outputs, targets: F.mse_loss(outputs, targets, reduction="sum")  # noqa: E731
    loss, gradient = plain.value_and_gradient(module, x, y, total)
    got = regularized_gradient(module, x, y, beta=0.0, num_sub_batches=3, loss_fn=total, gradient="shared")
    assert got.loss.item() == pytest.approx(loss, rel=1e-9)
    assert gradient_error(got.gradient, gradient) < 1e-9
    expected = plain.hessian(module, x, y, total).square().sum().item()
    norm = hessian_frobenius_norm(module, x, y, loss_fn=total, num_probes=10**6, chunk_size=3)
    assert norm.value.item() == pytest.approx(expected, rel=1e-9)


def info_nce(outputs, y):
    return F.cross_entropy(F.normalize(outputs) @ F.normalize(y).T / 0.1, torch.arange(len(outputs)))


def variance(outputs, y):
    """VICReg's kind: a statistic of the batch."""
    return (1 - outputs.std(0)).relu().mean() + F.mse_loss(outputs, y)


def ranking(outputs, y):
    """Pairs of samples."""
    return F.softplus(-(outputs[:, :1] - outputs[:, :1].T) * (y[:, :1] - y[:, :1].T).sign()).mean()


@pytest.mark.parametrize("loss_fn", [info_nce, variance, ranking])
def test_a_loss_that_couples_samples_is_right_or_refused(loss_fn):
    module, x, y = mlp(), normal(N, 6), normal(N, 3, seed=6)
    value, gradient = plain.penalty(module, x, y, PARTS, [1 / 4] * 4, 1e-2, loss_fn)
    loss, plain_gradient = plain.value_and_gradient(module, x, y, loss_fn)
    got = regularized_gradient(module, x, y, beta=1.0, alpha=1e-2, num_sub_batches=4, loss_fn=loss_fn)
    assert got.loss.item() == pytest.approx(loss, rel=1e-12)
    assert got.penalty.item() == pytest.approx(value, rel=1e-9)
    assert gradient_error(got.gradient, [a + b for a, b in zip(plain_gradient, gradient, strict=True)]) < 1e-9
    with pytest.raises(ValueError, match=r'gradient="shared".*couples samples'):
        regularized_gradient(module, x, y, beta=1.0, num_sub_batches=4, loss_fn=loss_fn, gradient="shared")
    expected = plain.hessian(module, x, y, loss_fn).square().sum().item()
    norm = hessian_frobenius_norm(module, x, y, loss_fn=loss_fn, num_probes=10**6)
    assert norm.value.item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match=r"`chunk_size`.*couples samples"):
        hessian_frobenius_norm(module, x, y, loss_fn=loss_fn, chunk_size=4)


def test_where_the_first_parts_have_no_loss():
    """The reference is the first part that has one."""
    module, x, y = mlp(), normal(N, 6), labels(N)
    y[:4] = -100
    for loss_fn in (None, F.cross_entropy, nn.CrossEntropyLoss(weight=CLASS_WEIGHTS)):
        loss, gradient = plain.value_and_gradient(module, x, y, loss_fn or F.cross_entropy)
        got = regularized_gradient(module, x, y, beta=0.0, num_sub_batches=4, loss_fn=loss_fn, gradient="shared")
        assert got.loss.item() == pytest.approx(loss, rel=1e-12)
        assert gradient_error(got.gradient, gradient) < 1e-12


def at_least_one(outputs, y):
    """No labels: a loss of zero with a gradient of zero."""
    losses = F.cross_entropy(outputs, y, reduction="none")
    return losses.sum() / (y != -100).sum().clamp(min=1)


def clipped(outputs, y):
    """Weighted, and flat where it is large."""
    return (F.cross_entropy(outputs, y[0], reduction="none").clamp(max=1.45) * y[1]).sum() / y[1].sum()


def squares(outputs, y):
    return ((outputs - y[0]).square().sum(1) * y[1]).sum() / y[1].sum()


def narrow_margin(outputs, y):
    ahead = outputs.gather(1, y.unsqueeze(1)) - outputs
    return (1e-4 - ahead).clamp(min=0).scatter(1, y.unsqueeze(1), 0.0).mean()


def far(x):
    return torch.cat([50 * x[:2], x[2:]])


def hits(y, x):
    """The outputs themselves as the targets of the first part: no gradient there, but curvature."""
    return torch.cat([mlp()(x[:2]).detach(), y[2:]])


IMPORTANCE = torch.tensor([0.5, 3.0, 1.0, 2.0, 0.1, 1.0, 4.0, 1.0], dtype=torch.float64)
FIRST = {  # inputs, targets, loss, denominator of a part's targets
    "no labels in the first parts": (
        normal(N, 6),
        torch.cat([torch.full((4,), -100), labels(N)[4:]]),
        at_least_one,
        lambda y: float((y != -100).sum()),
    ),
    "no weight in the first part": (
        normal(N, 6),
        {"label": labels(N), "weight": IMPORTANCE * (torch.arange(N) > 1)},
        lambda o, y: (
            (F.cross_entropy(o, y["label"], reduction="none") * y["weight"]).sum() / (1e-12 + y["weight"].sum())
        ),
        lambda y: float(y["weight"].sum()),
    ),
    "flat, but not zero": (far(normal(N, 6)), (mlp()(far(normal(N, 6))).argmin(1), IMPORTANCE), clipped, None),
    "hit, but curved": (normal(N, 6), (hits(normal(N, 3, seed=6), normal(N, 6)), IMPORTANCE), squares, None),
    "hit, a plain mean": (normal(N, 6), hits(normal(N, 3, seed=6), normal(N, 6)), F.mse_loss, len),
    "hit, a sum": (
        normal(N, 6),
        hits(normal(N, 3, seed=6), normal(N, 6)),
        lambda o, y: F.mse_loss(o, y, reduction="sum"),
        lambda y: 4.0,
    ),
    "a margin": (far(normal(N, 6)), mlp()(far(normal(N, 6))).argmax(1), narrow_margin, len),
}


@pytest.mark.parametrize(("x", "y", "loss_fn", "denominator"), FIRST.values(), ids=list(FIRST))
def test_where_the_first_parts_have_no_gradient(x, y, loss_fn, denominator):
    """They weigh what the loss makes of them, once a part with a gradient shows it."""
    module = mlp()
    first, _ = plain.value_and_gradient(module, plain.rows(x, PARTS[0]), plain.rows(y, PARTS[0]), loss_fn)
    assert first == pytest.approx(1.45 if loss_fn is clipped else 0.0, abs=1e-9)
    denominator = denominator or (lambda y: float(y[1].sum()))
    sizes = [float(denominator(plain.rows(y, part))) for part in PARTS]
    weights = [size / (4.0 if loss_fn is FIRST["hit, a sum"][2] else sum(sizes)) for size in sizes]
    value, gradient = plain.penalty(module, x, y, PARTS, weights, 1e-2, loss_fn)
    loss, whole = plain.value_and_gradient(module, x, y, loss_fn)
    for form in ("full", "shared"):
        options = {"alpha": 1e-2, "num_sub_batches": 4, "loss_fn": loss_fn, "gradient": form}
        got = regularized_gradient(module, x, y, beta=2.0, **options)
        assert got.loss.item() == pytest.approx(loss, rel=1e-9)
        assert got.penalty.item() == pytest.approx(value, rel=1e-9)
        expected = [g + 2.0 * r for g, r in zip(whole, gradient, strict=True)]
        assert gradient_error(got.gradient, expected) < 1e-9
    got, found = penalty_gradient(module, x, y, alpha=1e-2, num_sub_batches=4, loss_fn=loss_fn, passes="vmap")
    assert got.item() == pytest.approx(value, rel=1e-9)
    assert gradient_error(found, gradient) < 1e-9
    expected = plain.hessian(module, x, y, loss_fn).square().sum().item()
    norm = hessian_frobenius_norm(module, x, y, loss_fn=loss_fn, num_probes=10**6, chunk_size=2)
    assert norm.value.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("form", ["full", "shared"])
@pytest.mark.parametrize("sample", [0, 5])
def test_a_loss_that_is_not_finite_is_not_taken_for_one_without_labels(form, sample):
    module, x, y = mlp(), normal(N, 6), labels(N)
    x[sample] = torch.nan
    got = regularized_gradient(module, x, y, beta=1.0, num_sub_batches=4, loss_fn=F.cross_entropy, gradient=form)
    assert torch.isnan(got.loss)
    assert torch.isnan(got.penalty)
