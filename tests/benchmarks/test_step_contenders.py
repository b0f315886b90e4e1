"""Every form that is timed as a training step trains."""

from __future__ import annotations

import itertools
import threading
from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.contenders_step import ALPHA, BASELINE, BETA, RATE, Workload, contenders
from benchmarks.lockstep import Lockstep
from benchmarks.networks import QUICK, make, random_batch

M = 4
STEPS = 3
CPU = torch.device("cpu")


def _batches(network, size=16):
    batches = [random_batch(network, size, "cpu", seed) for seed in range(3)]
    return itertools.cycle([(images.double(), labels) for images, labels in batches])


def _mlp():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 12), nn.Tanh(), nn.Linear(12, 10)).double()


def _weights(name, net, batches, steps=STEPS):
    """The weights after some steps of a contender, as one vector."""
    with ExitStack() as stack:
        step = contenders("eager")[name].prepare(Workload(net.train(), batches, M, CPU, stack))
        for _ in range(steps):
            step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def _resnet():
    return make(QUICK["resnet20"], "cpu").double()


@pytest.mark.parametrize("name", ["plain step, torch.compile (eager)", "plain step, Lightning"])
def test_plain_steps_are_the_same(name):
    network = QUICK["resnet20"]
    expected = _weights(BASELINE, _resnet(), _batches(network))
    torch.testing.assert_close(_weights(name, _resnet(), _batches(network)), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "net"),
    [
        ("three evaluations", _resnet),
        ("three evaluations, Lightning", _resnet),
        ("three evaluations", _mlp),
        ("two evaluations (shared gradient)", _mlp),
        ("two evaluations (shared gradient), Lightning", _mlp),
    ],
)
def test_unamortized_forms_are_the_naive_port(name, net):
    network = QUICK["resnet20"]
    expected = _weights("naive three-pass port", net(), _batches(network))
    found = _weights(name, net(), _batches(network))
    plain = _weights(BASELINE, net(), _batches(network))
    assert (found - expected).norm() < 1e-6 * (expected - plain).norm()


@pytest.mark.parametrize(
    "name",
    [
        "amortized: 1 of M sub-batches",
        "amortized: 1 of M sub-batches, Lightning",
        "amortized: 1 of M, shared gradient",
        "amortized: 1 of M, shared gradient, Lightning",
    ],
)
def test_amortized_forms_perturb_one_sub_batch(name):
    """One step differs from the plain one by M β/M (g_i − h_i) of some i."""
    images, labels = next(_batches(QUICK["resnet20"]))
    found = _weights(name, _mlp(), itertools.repeat((images, labels)), steps=1)
    plain = _weights(BASELINE, _mlp(), itertools.repeat((images, labels)), steps=1)
    candidates = []
    for x, y in zip(images.chunk(M), labels.chunk(M), strict=True):
        net = _mlp()
        here = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
        with torch.no_grad():
            for p, g in zip(net.parameters(), here, strict=True):
                p -= ALPHA * g
        there = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
        candidates.append(
            plain - RATE * BETA * torch.cat([(g - h).flatten() for g, h in zip(here, there, strict=True)])
        )
    errors = [((found - c).norm() / (c - plain).norm()).item() for c in candidates]
    assert sorted(errors)[0] < 1e-6 < 1e-2 < sorted(errors)[1]


def test_every_eighth_step_is_regularized():
    contender = contenders(None)["amortized: every 8th step, Lightning"]
    assert contender.steps == 8
    once = itertools.repeat(next(_batches(QUICK["resnet20"])))
    first = _weights("amortized: every 8th step, Lightning", _mlp(), once, steps=1)
    plain = _weights(BASELINE, _mlp(), once, steps=1)
    naive = _weights("naive three-pass port", _mlp(), once, steps=1)
    torch.testing.assert_close(first - plain, 8 * (naive - plain), rtol=1e-5, atol=1e-18)


def test_sam_takes_its_gradient_at_the_perturbed_weights():
    if reason := contenders(None)["SAM (pytorch_optimizer)"].missing:
        pytest.skip(reason)
    images, labels = next(_batches(QUICK["resnet20"]))
    found = _weights("SAM (pytorch_optimizer)", _mlp(), itertools.repeat((images, labels)), steps=1)
    net = _mlp()
    parameters = list(net.parameters())
    weights = torch.cat([p.detach().flatten() for p in parameters])
    here = torch.autograd.grad(F.cross_entropy(net(images), labels), parameters)
    norm = torch.cat([g.flatten() for g in here]).norm()
    with torch.no_grad():
        for p, g in zip(parameters, here, strict=True):
            p += 0.05 * g / norm
    there = torch.autograd.grad(F.cross_entropy(net(images), labels), parameters)
    expected = weights - RATE * (torch.cat([g.flatten() for g in there]) + 1e-4 * weights)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_lockstep_goes_on_by_one_unit_and_ends():
    seen = []

    def fit(gate):
        try:
            for epoch in range(100):
                gate.on_train_epoch_start()
                for batch in range(2):
                    gate.on_train_batch_start()
                    seen.append((epoch, batch))
        finally:
            seen.append("ended")

    with Lockstep(fit, "epoch") as epoch:
        assert seen == []
        epoch()
        assert seen == [(0, 0), (0, 1)]
        epoch()
        assert len(seen) == 4
    assert seen[4:] == ["ended"]
    seen.clear()
    with Lockstep(fit, "step") as step:
        step()
        assert seen == [(0, 0)]
    assert seen == [(0, 0), "ended"]


def test_lockstep_runs_on_the_callers_thread():
    # A thread of its own would bring another OpenMP team, and with more teams than cores all of them get slow.
    def fit(gate):
        while True:
            gate.on_train_batch_start()
            threads.add(threading.get_ident())

    threads = set()
    with Lockstep(fit, "step") as one, Lockstep(fit, "step") as other:
        one()
        other()
        one()
    assert threads == {threading.get_ident()}


def test_lockstep_hands_on_what_goes_wrong():
    def fit(gate):
        gate.on_train_batch_start()
        raise ValueError("in the fit")

    with Lockstep(fit, "step") as step, pytest.raises(ValueError, match="in the fit"):
        step()
    with pytest.raises(RuntimeError, match="the fit has ended"):
        Lockstep(lambda gate: None, "step")
