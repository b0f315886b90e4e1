"""Other ways to write a step by hand, against plain loops; what has no meaning with a penalty is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightning_fisher import FisherRegularizer
from tests.callbacks.multipass.oracle import (
    ALPHA,
    BETA,
    PARTS,
    Plain,
    assert_weights,
    batches,
    parts_of,
    same_bits,
    with_penalty,
)


class ByHand(Plain):
    def prepare(self):
        self.automatic_optimization = False

    def losses(self, batch):
        """Of a step, in order."""
        return [lambda part: F.cross_entropy(self.net(part[0]), part[1])]

    def training_step(self, batch, batch_idx):
        self.optimizers().zero_grad()
        for loss in self.losses(batch):
            self.manual_backward(loss(batch))
        self.optimizers().step()

    def loop(self, beta):
        """The same by plain autograd: the gradients of all losses add up."""
        parameters = list(self.net.parameters())
        for batch in batches():
            total = [torch.zeros_like(p) for p in parameters]
            for loss in self.losses(batch):
                with_penalty(loss, parts_of(batch), batch, parameters, beta)
                total = [t + p.grad for t, p in zip(total, parameters, strict=True)]
            with torch.no_grad():
                for p, t in zip(parameters, total, strict=True):
                    p.sub_(0.1 * t)


class TwoLosses(ByHand):
    def losses(self, batch):
        return [*super().losses(batch), lambda part: 0.5 * self.net(part[0]).square().mean()]


class OneGraph(TwoLosses):
    """Two losses of one forward pass."""

    def training_step(self, batch, batch_idx):
        self.optimizers().zero_grad()
        logits = self.net(batch[0])
        self.manual_backward(F.cross_entropy(logits, batch[1]), retain_graph=True)
        self.manual_backward(0.5 * logits.square().mean())
        self.optimizers().step()


class MicroBatches(ByHand):
    def losses(self, batch):
        def of(half):
            return lambda part: F.cross_entropy(self.net(part[0].chunk(2)[half]), part[1].chunk(2)[half]) / 2

        return [of(0), of(1)]


class OfEachSample(ByHand):
    """A loss of several numbers, with the gradient that it is handed to `backward` with."""

    def training_step(self, batch, batch_idx):
        self.optimizers().zero_grad()
        loss = F.cross_entropy(self.net(batch[0]), batch[1], reduction="none")
        self.manual_backward(loss, torch.full_like(loss, 1 / len(loss)))
        self.optimizers().step()


class InnerStep(ByHand):
    """Meta-learning: the loss after a step of gradient descent."""

    def losses(self, batch):
        def loss(part):
            weights = dict(self.net.named_parameters())
            inner = F.cross_entropy(self.net(part[0]), part[1])
            found = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
            moved = {name: p - 0.1 * g for (name, p), g in zip(weights.items(), found, strict=True)}
            return F.cross_entropy(torch.func.functional_call(self.net, moved, (part[0],)), part[1])

        return [loss]


class PastLightning(ByHand):
    """torch's own optimizer."""

    def training_step(self, batch, batch_idx):
        optimizer = self.trainer.optimizers[0]
        optimizer.zero_grad(set_to_none=False)
        self.manual_backward(super().losses(batch)[0](batch))
        optimizer.step()


def project(gradients):
    """Gradient surgery: the first without what opposes the second."""
    dot = sum((a * b).sum() for a, b in zip(*gradients, strict=True))
    norm = sum((b * b).sum() for b in gradients[1])
    return [a + b - (dot / norm * b if dot < 0 else 0) for a, b in zip(*gradients, strict=True)]


class Surgery(TwoLosses):
    def training_step(self, batch, batch_idx):
        parameters, gradients = list(self.net.parameters()), []
        for loss in self.losses(batch):
            self.optimizers().zero_grad()
            self.manual_backward(loss(batch))
            gradients.append([p.grad.clone() for p in parameters])
        for p, g in zip(parameters, project(gradients), strict=True):
            p.grad = g
        self.optimizers().step()

    def loop(self, beta):
        parameters = list(self.net.parameters())
        for batch in batches():
            gradients = []
            for loss in self.losses(batch):
                with_penalty(loss, parts_of(batch), batch, parameters, beta)
                gradients.append([p.grad.clone() for p in parameters])
            with torch.no_grad():
                for p, g in zip(parameters, project(gradients), strict=True):
                    p.sub_(0.1 * g)


STEPS = [TwoLosses, OneGraph, MicroBatches, OfEachSample, InnerStep, PastLightning, Surgery]


@pytest.mark.parametrize("cls", STEPS, ids=lambda cls: cls.__name__)
def test_equals_the_oracle_and_is_plain_at_zero(fit, cls):
    options = {"alpha": ALPHA, "num_sub_batches": PARTS}
    module, expected = cls(), cls()
    fit(module, batches(), FisherRegularizer(BETA, start=0, **options))
    expected.loop(BETA)
    assert_weights(module, expected)
    plain = fit(cls(), batches())
    for start in (0, 99):
        assert same_bits(fit(cls(), batches(), FisherRegularizer(1e-30, start=start, **options)), plain)


class SecondDerivatives(ByHand):
    """As optimizers with a Hessian do."""

    def training_step(self, batch, batch_idx):
        parameters = list(self.net.parameters())
        self.optimizers().zero_grad()
        self.manual_backward(super().losses(batch)[0](batch), create_graph=True)
        torch.autograd.grad([p.grad for p in parameters], parameters, [torch.ones_like(p) for p in parameters])
        self.optimizers().step()


@pytest.mark.parametrize("start", [0, 99])
@pytest.mark.filterwarnings("ignore:Using backward")
def test_second_derivatives_are_refused(fit, start):
    with pytest.raises(ValueError, match=r"differentiates them once more \(`create_graph=True`\)") as caught:
        fit(SecondDerivatives(), batches(), FisherRegularizer(num_sub_batches=4, start=start))
    assert "\n" not in str(caught.value)
