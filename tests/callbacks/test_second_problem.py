"""Every method, as a function and through `Trainer.fit`, on a problem that no public code was run on."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule
from torch.nn import functional as F

from lightning_fisher import FisherRegularizer, GradientNormPenalty, JacobianPenalty, SharpnessAware
from lightning_fisher.functional import (
    difference_penalty_gradient,
    gradient_norm_penalty_gradient,
    sharpness_aware_gradient,
)
from tests.callbacks.tiny import loader
from tests.reference import second_problem as by_hand

BACKWARD, FORWARD, CENTRAL = (0, -1), (1, 0), (0.5, -0.5)
PLACES = {"backward": BACKWARD, "forward": FORWARD, "central": CENTRAL}


def absolute(name, weight):
    return weight.abs()


def of_the_authors(name, weight):
    return weight.abs() + 0.01 if "weight" in name else torch.ones_like(weight)


def fisher(difference):
    def function(net, x, y):
        penalty = difference_penalty_gradient(net, x, y, alpha=0.01, num_sub_batches=5, difference=difference)[1]
        kept = [g for g, p in zip(penalty, net.parameters(), strict=True) if p.requires_grad]
        return [a + 5.0 * b for a, b in zip(by_hand.here(net, x, y), kept, strict=True)]

    options = {"beta": 5.0, "alpha": 0.01, "num_sub_batches": 5, "start": 0, "difference": difference}
    callback = FisherRegularizer(**options, gradient="full")
    return by_hand.algorithm1(5.0, 0.01, 5, PLACES[difference]), callback, function


def geiping(difference, strength, eps):
    beta = by_hand.RATE * strength / (4 * eps)
    options = {"difference": difference, "step": "normalized", "gradient": "shared", "num_sub_batches": 4, "start": 0}
    return (
        by_hand.geiping(strength, eps, 4, PLACES[difference]),
        FisherRegularizer(beta=beta, alpha=eps, **options),
        None,
    )


def sharpness(rho, parts=1, scale=None, **options):
    def function(net, x, y):
        return sharpness_aware_gradient(net, x, y, rho, num_sub_batches=parts, **options).gradient

    return by_hand.sharpness_aware(rho, scale, parts), SharpnessAware(rho, num_sub_batches=parts, **options), function


def norm_penalty(radius, coefficient):
    def function(net, x, y):
        return gradient_norm_penalty_gradient(net, x, y, radius, coefficient).gradient

    rule = by_hand.sharpness_aware(radius, share=coefficient) if coefficient else by_hand.plain
    return rule, GradientNormPenalty(radius, coefficient), function


METHODS = {
    "SAM": lambda: sharpness(0.05),
    "ASAM": lambda: sharpness(2.0, scale=absolute, adaptive=True),
    "ASAM of its authors": lambda: sharpness(0.5, scale=of_the_authors, adaptive="weights", eta=0.01),
    "m-SAM, parts of 3 and 2": lambda: sharpness(0.05, parts=5),
    "m-ASAM": lambda: sharpness(1.0, parts=2, scale=absolute, adaptive=True),
    "GNP": lambda: norm_penalty(0.1, 0.8),
    "GNP, a = 1": lambda: norm_penalty(0.3, 1.0),
    "GNP, a = 0": lambda: norm_penalty(0.1, 0.0),
    "ρ = 0": lambda: (by_hand.plain, SharpnessAware(0.0), sharpness(0.0)[2]),
    **{f"Fisher, {name}": (lambda name=name: fisher(name)) for name in PLACES},
    **{f"sub-batches of Geiping, {name}": (lambda name=name: geiping(name, 0.5, 0.01)) for name in PLACES},
    "sub-batches of Geiping, strong": lambda: geiping("central", 5.0, 0.1),
    "Jacobian": lambda: (by_hand.jacobian(0.01), JacobianPenalty(0.01, projections=None, submodule="net"), None),
}


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = by_hand.network()

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        options = {"lr": by_hand.RATE, "momentum": by_hand.MOMENTUM, "weight_decay": by_hand.DECAY}
        return torch.optim.SGD(self.net.parameters(), **options)


def assert_same(net, expected):
    state = expected.state_dict()
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(
            tensor, state[name], rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("name", METHODS)
def test_trainer_fit(name, make_trainer):
    rule, callback, _ = METHODS[name]()
    module = Module()
    make_trainer(callbacks=[callback]).fit(module, loader(by_hand.batches()))
    expected = by_hand.train(rule)
    assert_same(module.net, expected)
    moved = (expected.fc2.weight - by_hand.train(by_hand.plain).fc2.weight).abs().max()
    assert (moved > 1e-6) == (rule is not by_hand.plain)


@pytest.mark.parametrize("name", [name for name, make in METHODS.items() if make()[2] is not None])
def test_function(name):
    rule, _, function = METHODS[name]()

    def of_trained(net, x, y):
        found = function(net, x, y)
        frozen = [p.requires_grad for p in net.parameters()]
        return [g for g, it in zip(found, frozen, strict=True) if it] if len(found) == len(frozen) else found

    assert_same(by_hand.train(of_trained), by_hand.train(rule))
