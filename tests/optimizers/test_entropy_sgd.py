"""EntropySGD against the authors' arrays, a loop on plain lists, and its own resumption."""

from __future__ import annotations

import copy
import io
import itertools

import lightning
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_fisher.optimizers import EntropySGD, entropy_sgd
from tests.reference.methods import array, batches, network, weights_error

STILL = {"noise": 0.0, "scoping": 0.0}
RUNS = {
    "noise0": STILL,
    "noise0_plain_momentum": {**STILL, "nesterov": False},
    "noise0_gamma1": {**STILL, "gamma": 1.0},
    "scoping": {"noise": 0.0, "gamma": 0.1, "scoping": 0.5},
    "no_momentum": {**STILL, "gamma": 0.1, "momentum": 0.0, "inner_momentum": 0.0},
    # Lua counts its steps from one.
    "lua_formula": {"noise": 0.0, "gamma": 0.1 * 1.5, "scoping": 0.5, "momentum": 0.0, "lr": 1.0},
    "noise": {"noise": 0.01, "scoping": 0.0},
}


class Closure:
    """Evaluates the next of some batches each time."""

    def __init__(self, module, optimizer, data):
        self.module, self.optimizer, self.data, self.calls = module, optimizer, itertools.cycle(data), 0

    def __call__(self):
        self.calls += 1
        x, y = next(self.data)
        self.optimizer.zero_grad()
        loss = cross_entropy(self.module(x), y)
        loss.backward()
        return loss


@pytest.mark.parametrize("run", RUNS)
def test_public_code(run, monkeypatch):
    module = network()
    optimizer = EntropySGD(module.parameters(), **{"lr": 0.1, **RUNS[run]})
    closure = Closure(module, optimizer, batches())
    steps = 2 if run == "noise" else 6
    draws, counts = {id(p): array(f"entropy_sgd/noise/eta/{n}") for n, p in module.named_parameters()}, {}

    def stored(walk):
        drawn = counts.setdefault(id(walk.parameter), itertools.count())
        return draws[id(walk.parameter)].flatten(0, 1)[next(drawn)]

    monkeypatch.setattr(entropy_sgd._Walk, "noise", stored)
    for t in range(steps):
        loss = optimizer.step(closure)
        assert closure.calls == 21 * (t + 1)
        assert weights_error(module, f"entropy_sgd/{run}", t) < 1e-10
        if run != "lua_formula":
            assert loss.item() == pytest.approx(array(f"entropy_sgd/{run}/loss")[t].item(), abs=1e-10)


def naive(weights, gradient, outer, buffers, noise, o, t):
    """One step on lists of tensors; returns the new weights and outer buffers."""
    first = gradient(weights)
    if buffers is None:
        buffers = [g + o["weight_decay"] * w for g, w in zip(first, weights, strict=True)]
    x, mean = list(weights), list(weights)
    velocity = [0 * w for w in weights]
    for _ in range(o["inner_steps"]):
        found = gradient(x)
        for i, g in enumerate(found):
            g = g + o["weight_decay"] * x[i]
            spring = o["gamma"] * (1 + o["scoping"]) ** t * (x[i] - weights[i])
            velocity[i] = o["inner_momentum"] * velocity[i] + g
            d = g + o["inner_momentum"] * velocity[i] + spring
            x[i] = x[i] - o["inner_lr"] * d + o["noise"] * (2 * o["inner_lr"]) ** 0.5 * noise(i)
            mean[i] = o["averaging"] * mean[i] + (1 - o["averaging"]) * x[i]
    pulls = [w - m for w, m in zip(weights, mean, strict=True)]
    buffers = [o["momentum"] * b + p for b, p in zip(buffers, pulls, strict=True)]
    return [w - o["lr"] * (p + o["momentum"] * b) for w, p, b in zip(weights, pulls, buffers, strict=True)], buffers


def test_against_lists_with_every_option():
    options = {
        "lr": 0.3,
        "inner_steps": 4,
        "gamma": 0.2,
        "scoping": 0.1,
        "noise": 0.0,
        "inner_lr": 0.05,
        "averaging": 0.6,
        "momentum": 0.5,
        "inner_momentum": 0.7,
        "weight_decay": 0.01,
    }
    module = network()
    x, y = batches()[0]
    optimizer = EntropySGD(module.parameters(), **options)
    closure = Closure(module, optimizer, [(x, y)])
    weights = [p.detach().clone() for p in module.parameters()]
    names = [name for name, _ in module.named_parameters()]
    other = network()

    def gradient(at):
        at = [w.clone().requires_grad_() for w in at]
        outputs = torch.func.functional_call(other, dict(zip(names, at, strict=True)), (x,))
        return torch.autograd.grad(cross_entropy(outputs, y), at)

    buffers = None
    for t in range(3):
        optimizer.step(closure)
        weights, buffers = naive(weights, gradient, None, buffers, lambda i: 0.0, options, t)
        for p, w in zip(module.parameters(), weights, strict=True):
            assert torch.allclose(p, w, rtol=0, atol=1e-12)


def test_the_noise_has_its_size():
    """A loss without slope and without spring: after one step x − w is ε√(2η′) N."""
    p = nn.Parameter(torch.zeros(20000, dtype=torch.float64))
    optimizer = EntropySGD(
        [p], lr=1.0, inner_steps=1, gamma=0.0, noise=0.3, inner_lr=0.2, averaging=0.0, momentum=0.0, inner_momentum=0.0
    )

    def closure():
        p.grad = torch.zeros_like(p)
        return p.sum()

    optimizer.step(closure)
    assert p.detach().std().item() == pytest.approx(0.3 * 0.4**0.5, rel=0.03)
    assert abs(p.detach().mean().item()) < 5 * 0.3 * 0.4**0.5 / 20000**0.5
    first = p.detach().clone()
    optimizer.step(closure)
    assert abs(torch.corrcoef(torch.stack([first, p.detach() - first]))[0, 1].item()) < 0.05


def test_the_noise_is_the_same_in_every_process_and_leaves_torchs_random_state():
    results = []
    for state in (0, 1):
        module = network()
        optimizer = EntropySGD(module.parameters(), lr=0.1, noise=0.1, seed=3)
        torch.manual_seed(state)
        before = torch.get_rng_state()
        optimizer.step(Closure(module, optimizer, batches()))
        assert torch.equal(torch.get_rng_state(), before)
        results.append([p.detach() for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_resumed_is_uninterrupted():
    """With noise, scoping and momentum; the state goes through a file."""
    module = network()
    optimizer = EntropySGD(module.parameters(), lr=0.1, noise=0.05, scoping=0.2)
    closure = Closure(module, optimizer, [batches()[0]])
    for _ in range(2):
        optimizer.step(closure)
    file = io.BytesIO()
    torch.save({"module": module.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = network()
    again.load_state_dict(saved["module"])
    resumed = EntropySGD(again.parameters(), lr=1.0)
    resumed.load_state_dict(saved["optimizer"])
    for _ in range(2):
        optimizer.step(closure)
        resumed.step(Closure(again, resumed, [batches()[0]]))
    for a, b in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_weights_are_put_back_if_the_closure_raises():
    module = network()
    optimizer = EntropySGD(module.parameters(), lr=0.1)
    closure = Closure(module, optimizer, batches())
    before = [p.detach().clone() for p in module.parameters()]

    def failing():
        if closure.calls == 5:
            raise RuntimeError("out of order")
        return closure()

    with pytest.raises(RuntimeError, match="out of order"):
        optimizer.step(failing)
    assert all(torch.equal(p, w) for p, w in zip(module.parameters(), before, strict=True))


def test_parameters_without_gradient_stay():
    module = network()
    module[0].weight.requires_grad_(False)
    optimizer = EntropySGD(module.parameters(), lr=0.1, noise=1.0)
    before = module[0].weight.clone()
    optimizer.step(Closure(module, optimizer, batches()))
    assert torch.equal(module[0].weight, before)


def test_sparse_gradients_are_refused_and_weights_stay():
    net = nn.Embedding(5, 2, sparse=True)
    before = net.weight.detach().clone()
    optimizer = EntropySGD(net.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = net(torch.tensor([1, 2])).sum()
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="gradients to be dense"):
        optimizer.step(closure)
    assert torch.equal(net.weight, before)


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = network()

    def training_step(self, batch, batch_idx):
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return EntropySGD(self.parameters(), lr=0.1, inner_steps=3, scoping=0.1, noise=0.01)


def test_in_lightning_the_closure_evaluates_the_same_batch(tmp_path):
    x, y = (torch.cat(parts) for parts in zip(*batches()[:3], strict=True))
    module, other = Module(), network()
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=16))
    optimizer = EntropySGD(other.parameters(), lr=0.1, inner_steps=3, scoping=0.1, noise=0.01)
    for batch in batches()[:3]:
        optimizer.step(Closure(other, optimizer, [batch]))
    for a, b in zip(module.net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lr": 0.0}, "`lr`.*0.0"),
        ({"inner_steps": 0}, "`inner_steps`.*0"),
        ({"gamma": -0.1}, "`gamma`.*-0.1"),
        ({"scoping": float("nan")}, "`scoping`.*nan"),
        ({"noise": -1.0}, "`noise`.*-1.0"),
        ({"inner_lr": -1.0}, "`inner_lr`.*-1.0"),
        ({"averaging": 1.0}, "`averaging`.*1.0"),
        ({"momentum": 1.0}, "`momentum`.*1.0"),
        ({"inner_momentum": -0.1}, "`inner_momentum`.*-0.1"),
        ({"weight_decay": -0.1}, "`weight_decay`.*-0.1"),
        ({"seed": -1}, "`seed`.*-1"),
    ],
)
def test_bad_options_are_named(options, text):
    with pytest.raises(ValueError, match=f"Expected argument {text}"):
        EntropySGD(network().parameters(), **{"lr": 0.1, **options})


def test_mistakes_are_named():
    module = network()
    optimizer = EntropySGD(module.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="`closure`"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"`inner_steps` to be the same for all groups, but got \[5, 20\]"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "inner_steps": 5})
    assert len(optimizer.param_groups) == 1
    assert copy.deepcopy(optimizer).param_groups[0]["lr"] == 0.1
