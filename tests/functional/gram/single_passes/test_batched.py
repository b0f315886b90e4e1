"""Single passes at once by vmap: right, verified in every call, kept only where they are quicker."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_fisher.functional import gram_matrix
from lightning_fisher.functional.fisher.layers import layer_gram_matrices
from lightning_fisher.functional.gram import block
from lightning_fisher.functional.gram.single_passes import batched
from tests.functional.compare import gram_error
from tests.reference.jacobian import gram, jacobian

N = 6
SIZES = []  # of the batches that a module saw; one pass by vmap is one of size 1


class Clock:
    """Passes one by one take ``slow``, all else nothing: `block` looks before and after."""

    def __init__(self, slow):
        self.slow, self.now = slow, 0.0

    def __call__(self, device):
        return self.now

    def timed(self, function):
        def run(*args, **kwargs):
            self.now += self.slow
            return function(*args, **kwargs)

        return run


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock of the test's own, and a loop that takes a second."""
    clock = Clock(1.0)
    monkeypatch.setattr(block, "seconds", clock)
    for name in ("one_by_one", "row_gram"):
        monkeypatch.setattr(block, name, clock.timed(getattr(block, name)))
    SIZES.clear()
    return clock


class Scan(nn.Module):
    """A selective recurrence in Python, its parameters used in every step; a scalar and a vector among them."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(4, 5), nn.Linear(5, 3)
        self.rate, self.size = nn.Parameter(torch.randn(5)), nn.Parameter(torch.tensor(0.7))
        self.bend = torch.tanh

    def forward(self, x):
        SIZES.append(len(x))
        state = x.new_zeros(len(x), 5)
        for t in range(x.shape[1]):
            state = torch.exp(-self.rate.square()) * state + self.size * self.bend(self.inner(x[:, t]))
        return self.out(state)


class Tied(nn.Module):
    """One weight held at two places and one layer at two, dictionaries in and out, a sample's dimension squeezed."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.again = self.second
        self.bias = nn.Parameter(torch.randn(3))
        self.out = nn.Linear(4, 1)

    def forward(self, x, scale):
        SIZES.append(len(x))
        h = self.again(torch.sinh(self.second(self.first(x)))) * scale[:, None]
        return {"logits": self.out(h + torch.sinh(self.bias).sum()).squeeze(), "scale": scale}


class Inner(nn.Module):
    """A gradient step of its own for every sample."""

    def __init__(self):
        super().__init__()
        self.out, self.rate = nn.Linear(4, 3), nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        SIZES.append(len(x))
        outputs = []
        for row in x:
            loss = torch.nn.functional.linear(row[:3], self.out.weight, self.out.bias).square().sum()
            (step,) = torch.autograd.grad(loss, self.out.weight, create_graph=True)
            outputs.append(torch.nn.functional.linear(row[3], self.out.weight - self.rate * step, self.out.bias))
        return torch.stack(outputs)


class Clipped(nn.Module):
    """Activations clipped by their norm through ``.data``: at first inactive, as is every gradient that it hides."""

    def __init__(self):
        super().__init__()
        self.body, self.out = nn.Linear(4, 5), nn.Linear(5, 3)
        self.slope = nn.Parameter(torch.rand(5))

    def forward(self, x):
        SIZES.append(len(x))
        h = torch.sinh(self.body(x.mean(1)) * torch.sinh(self.slope))
        return self.out(h * (20 / h.data.norm(dim=1, keepdim=True)).clamp(max=1))


def squared(outputs, targets):
    return (outputs["logits"].reshape(-1) - targets).square()


def problem(kind, seed=0, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    x = size * torch.randn(N, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (N,), generator=generator)
    if kind is Tied:
        inputs = {"x": x[:, 0], "scale": torch.rand(N, generator=generator, dtype=torch.float64)}
        return inputs, y.double(), squared
    return x, y, None


def call(module, kind, seed=0, size=1.0, **options):
    x, y, loss_fn = problem(kind, seed, size)
    return gram_matrix(module, x, y, loss_fn=loss_fn, **options)


def expected(module, kind, seed=0, size=1.0):
    x, y, loss_fn = problem(kind, seed, size)
    return gram(jacobian(module, x, y, loss_fn=loss_fn))


def made(kind, calls=3):
    torch.manual_seed(0)
    module = kind().double()
    for seed in range(calls):
        call(module, kind, seed)
    SIZES.clear()
    return module


def at_once(calls=1):
    return [N, 1] * calls


@pytest.mark.parametrize("kind", [Scan, Inner, Tied, Clipped])
def test_right(kind):
    module = made(kind)
    for seed in (5, 6):
        SIZES.clear()
        found = call(module, kind, seed)
        assert SIZES[-2:] == at_once()
        assert N not in SIZES[:-2]  # what finds out about losses of one's own takes a few samples
        assert gram_error(found, expected(module, kind, seed)) < 1e-12


def test_float32():
    module = made(Scan).float()
    x, y, _ = problem(Scan, 5)
    reference = expected(module.double(), Scan, 5)
    module.float()
    for _ in range(4):
        found = gram_matrix(module, x.float(), y)
    assert SIZES[-2:] == at_once()
    assert gram_error(found, reference) < 1e-5


@pytest.mark.parametrize("quick", [True, False])
def test_the_quicker_way_is_kept(quick, clock):
    clock.slow = 1.0 if quick else 0.0
    module = made(Scan)
    found = call(module, Scan, 5)
    assert (at_once() if quick else [1] * N) == SIZES
    assert gram_error(found, expected(module, Scan, 5)) < 1e-12


@pytest.mark.parametrize("scale", ["layer", "filter", "element"])
def test_gradients_with_a_scale(scale):
    module = made(Scan, 0)
    first = call(module, Scan, 5, scale=scale)
    for _ in range(3):
        found = call(module, Scan, 5, scale=scale)
    assert SIZES[-2:] == at_once()
    assert gram_error(found, first) < 1e-12


def test_parameters_apart():
    module = made(Scan)
    x, y, _ = problem(Scan, 5)
    apart = layer_gram_matrices(module, x, y)
    assert at_once() == SIZES
    J = jacobian(module, x, y).split([p.numel() for p in module.parameters()], 1)
    J = dict(zip(dict(module.named_parameters()), J, strict=True))
    assert gram_error(apart["inner"], gram(torch.cat([J["inner.weight"], J["inner.bias"]], 1))) < 1e-12
    assert gram_error(sum(apart.values()), gram(torch.cat(list(J.values()), 1))) < 1e-12


@pytest.mark.parametrize("row", range(N))
def test_one_wrong_row_is_found(row, monkeypatch):
    module = made(Scan)

    def sabotaged(*args, rows=batched._rows):
        found, outputs = rows(*args)
        found[row] *= 1 + 1e-3
        return found, outputs

    monkeypatch.setattr(batched, "_rows", sabotaged)
    for seed in (5, 6, 7):
        assert gram_error(call(module, Scan, seed), expected(module, Scan, seed)) < 1e-12
    assert SIZES[-N:] != at_once()


def test_what_vmap_gets_wrong_for_some_data_only():
    module = made(Clipped)
    for seed in (5, 6):
        assert gram_error(call(module, Clipped, seed, 30.0), expected(module, Clipped, seed, 30.0)) < 1e-12


def test_samples_that_begin_to_interact_are_refused():
    module = made(Scan)
    module.bend = lambda h: torch.tanh(h - h.mean(0))
    with pytest.raises(ValueError, match="interact"):
        call(module, Scan, 5)
    module.bend = torch.sin
    assert gram_error(call(module, Scan, 6), expected(module, Scan, 6)) < 1e-12


class Coupled(Scan):
    """As soon as values are large; at that there is nothing that vmap could not run."""

    def forward(self, x):
        return super().forward(x) * (60 / x.detach().norm()).clamp(max=1)


def test_samples_that_interact_for_some_data_are_refused():
    module = made(Coupled)
    with pytest.raises(ValueError, match="samples"):
        call(module, Coupled, 5, 30.0)


class Branches(Scan):
    def forward(self, x):
        return torch.stack([super(Branches, self).forward(row[None])[0] * (1 + int(row.sum() > 0)) for row in x])


def test_one_by_one_where_vmap_cannot():
    module = made(Branches)
    assert gram_error(call(module, Branches, 5), expected(module, Branches, 5)) < 1e-12


def test_one_by_one_where_results_are_to_be_the_same_in_every_run():
    torch.use_deterministic_algorithms(True)
    try:
        module = made(Scan)
        call(module, Scan, 5)
    finally:
        torch.use_deterministic_algorithms(False)
    assert SIZES == [1] * N


def test_one_by_one_where_hooks_would_see_other_tensors():
    module = made(Scan)
    seen = []
    handle = module.inner.register_forward_hook(lambda *args: seen.append(args[2]))
    for seed in range(5):
        call(module, Scan, seed)
    handle.remove()
    assert all(len(value.detach().tolist()) == len(value) for value in seen)  # those of vmap have no values


class Keeping(Scan):
    """Keeps an activation, and counts."""

    def __init__(self):
        super().__init__()
        self.last, self.calls = None, 0

    def forward(self, x):
        self.calls += 1
        output = super().forward(x)
        self.last = output
        return output


def test_nothing_is_left_behind():
    module = made(Keeping)
    call(module, Keeping, 5)
    assert at_once() == SIZES
    assert module.last is None
    assert module.calls == 0
    assert all(parameter.grad is None and type(parameter) is nn.Parameter for parameter in module.parameters())
    assert len(module(problem(Keeping)[0])) == N


class Teacher(nn.Module):
    """A momentum encoder that the module only points to, moved by giving it other data."""

    def __init__(self, frozen):
        super().__init__()
        self.cell, self.out = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 3)
        self.slope = nn.Parameter(torch.rand(5))
        self.teacher = [nn.Linear(5, 3).double().requires_grad_(not frozen)]

    def forward(self, x):
        weight = self.teacher[0].weight
        weight.data = 0.9 * weight.data + 0.1 * self.out.weight.data
        return self.out(torch.sinh(self.cell(x)[0][:, -1] * torch.sinh(self.slope)))


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_that_a_pass_gives_other_data(frozen):
    """By torch alone the process ends here: a tensor that outlives vmap holds one of vmap's."""
    torch.manual_seed(0)
    module, x, y = Teacher(frozen).double(), torch.randn(6, 4, 3).double(), torch.randint(3, (6,))
    losses = [torch.nn.functional.cross_entropy(module(x[i : i + 1]), y[i : i + 1]) for i in range(6)]
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*module.parameters()])]) for loss in losses]
    expected = torch.stack(rows) @ torch.stack(rows).T
    for _ in range(4):
        assert torch.allclose(gram_matrix(module, x, y), expected, rtol=0, atol=1e-12)
    assert type(module.teacher[0].weight.data) is torch.Tensor
    assert module.teacher[0].weight.isfinite().all()  # its values can be read
