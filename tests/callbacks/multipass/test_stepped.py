"""What is perturbed is what the optimizers step, by its `.grad`; anything else is refused."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn

from lightning_fisher import FisherRegularizer
from tests.callbacks.tiny import Classifier, Ledger, image_batches, mlp, seeded

BATCHES = image_batches([16] * 4)


class Head(Classifier):
    """The optimizer has the last layer only; the others are frozen, or just left out."""

    def __init__(self, freeze):
        super().__init__(seeded(mlp))
        if freeze:
            self.net[1].requires_grad_(False)

    def configure_optimizers(self):
        return torch.optim.SGD(self.net[3].parameters(), lr=0.1)


@pytest.mark.parametrize("options", [{}, {"gradient": "shared"}, {"passes": "vmap"}])
def test_a_backbone_left_out_is_a_frozen_one(fit, memory_logger, options):
    penalties, weights = [], []
    for freeze in (True, False):
        memory_logger.rows, module = {}, Head(freeze)
        regularizer = FisherRegularizer(100.0, num_sub_batches=4, start=0, **options)
        fit(module, BATCHES, regularizer, logger=memory_logger, precision="64-true")
        penalties.append(list(memory_logger.series("fisher/penalty").values()))
        weights.append(module.net[3].weight.detach())
    assert penalties[0] == pytest.approx(penalties[1], rel=1e-9)
    assert torch.allclose(*weights, rtol=1e-9)


def test_a_weight_that_only_the_optimizer_holds(fit):
    """It is trained, so it is perturbed."""
    weights = []
    for beta in (0.0, 1e4):
        scale = nn.Parameter(torch.ones(3))
        module = Classifier(seeded(mlp), optimizer=lambda ps, s=scale: torch.optim.SGD([*ps, s], lr=0.1))
        module.held = [scale]
        module.forward = lambda x, m=module: m.net(x) * m.held[0]
        fit(module, BATCHES, FisherRegularizer(beta, num_sub_batches=4, start=0))
        weights.append(scale.detach())
    assert not torch.equal(*weights)


class Backbone(Classifier):
    def __init__(self):
        super().__init__(seeded(mlp))
        self.backbone = self.net[1]

    def configure_optimizers(self):
        return torch.optim.SGD(self.net[3].parameters(), lr=0.1)


def test_a_backbone_that_is_unfrozen_later(fit):
    """Lightning's callback adds its group to the optimizer: from then on it is perturbed."""
    module = Backbone()
    fit(module, BATCHES, FisherRegularizer(5.0, num_sub_batches=4, start=0), BackboneFinetuning(1), max_epochs=2)
    assert not torch.equal(module.net[1].weight, seeded(mlp)[1].weight)


class PerSample(torch.optim.SGD):
    """Steps on gradients of single samples, as differentially private optimizers do."""

    @property
    def grad_samples(self):
        return []


def with_field(field, value=None):
    def make(parameters):
        parameters = list(parameters)
        for p in parameters:
            setattr(p, field, value)
        return torch.optim.SGD(parameters, lr=0.1)

    return make


@pytest.mark.parametrize(
    "optimizer",
    [lambda ps: PerSample(ps, lr=0.1), with_field("grad_sample"), with_field("grad_batch"), with_field("main_grad")],
    ids=["grad_samples", "grad_sample", "grad_batch", "main_grad"],
)
def test_optimizers_that_step_on_other_gradients_are_refused(fit, optimizer):
    with pytest.raises(ValueError, match=r"adds its gradient to `\.grad`.*lost") as caught:
        fit(Classifier(seeded(mlp), optimizer=optimizer), BATCHES, FisherRegularizer(num_sub_batches=4))
    assert "\n" not in str(caught.value)


def test_gradients_of_single_samples_under_another_name(fit):
    class Grows(Classifier):
        def training_step(self, batch, batch_idx):
            self.net[1].weight.by_sample = torch.zeros(4, *self.net[1].weight.shape)
            return super().training_step(batch, batch_idx)

    with pytest.raises(ValueError, match="gradients of single samples in `by_sample`"):
        fit(Grows(seeded(mlp)), BATCHES, FisherRegularizer(num_sub_batches=4, start=0))


class StepsInBackward(Classifier):
    """The first layer is stepped as soon as its gradient is there, as torch's tutorial does to save memory."""

    def __init__(self):
        super().__init__(seeded(mlp))
        layer = self.net[1]
        own = {p: torch.optim.SGD([p], lr=0.1) for p in layer.parameters()}
        for p in layer.parameters():
            p.register_post_accumulate_grad_hook(lambda p: own[p].step())

    def configure_optimizers(self):
        return torch.optim.SGD(self.net[3].parameters(), lr=0.1)


def test_optimizers_that_step_in_the_backward_pass_are_refused(fit):
    with pytest.raises(ValueError, match=r"'net.1.weight' of StepsInBackward is stepped by a hook"):
        fit(StepsInBackward(), BATCHES, FisherRegularizer(num_sub_batches=4))


@pytest.mark.parametrize("options", [{"start": 99}, {"start": 0}])
def test_hooks_on_what_the_optimizer_steps_are_kept(fit, options):
    """They run once a step, and see the regularized gradient."""
    calls = Ledger()
    module = Classifier(seeded(mlp))
    module.net[1].weight.register_post_accumulate_grad_hook(lambda p: calls.append(p.grad.norm().item()))
    fit(module, BATCHES, FisherRegularizer(1e6, num_sub_batches=4, **options))
    assert len(calls) == len(BATCHES)
    assert len(module.net[1].weight._post_accumulate_grad_hooks) == 1
