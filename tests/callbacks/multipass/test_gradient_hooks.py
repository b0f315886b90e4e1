"""Gradient hooks see one gradient a step, the regularized one."""

from __future__ import annotations

import pytest
import torch

from lightning_fisher import FisherRegularizer
from tests.callbacks.tiny import Classifier, image_batches, mlp, seeded

BATCHES = image_batches([16] * 3)
CALLS: list = []  # out of the module's sight


class Hooked(Classifier):
    """A hook on a weight halves its gradient; others count."""

    def __init__(self, kind, factor=1.0):
        super().__init__(seeded(mlp))
        CALLS.clear()
        layer = self.net[1]
        if kind == "parameter":
            layer.weight.register_hook(lambda g: CALLS.append(1) or factor * g)
        elif kind == "module":
            layer.register_full_backward_hook(lambda *args: CALLS.append(1))
        elif kind == "before the module":
            layer.register_full_backward_pre_hook(lambda *args: CALLS.append(1))
        else:
            layer.weight.register_post_accumulate_grad_hook(lambda p: CALLS.append(1))

    def on_before_optimizer_step(self, optimizer):
        self.seen = self.net[1].weight.grad.clone()


@pytest.mark.parametrize("kind", ["parameter", "module", "before the module", "accumulated"])
@pytest.mark.parametrize("options", [{"start": 0}, {"start": 99}, {"start": 0, "passes": "vmap"}])
def test_one_call_a_batch(fit, kind, options):
    fit(Hooked(kind), BATCHES, FisherRegularizer(5.0, num_sub_batches=4, **options))
    assert len(CALLS) == len(BATCHES)


def test_one_call_a_batch_in_the_shared_form(fit):
    fit(Hooked("parameter"), BATCHES, FisherRegularizer(5.0, num_sub_batches=4, start=0, gradient="shared"))
    assert len(CALLS) == len(BATCHES)


@pytest.mark.parametrize("form", ["full", "shared"])
def test_the_hook_changes_the_whole_gradient_once(fit, form):
    grads = []
    for factor in (1.0, 0.5):
        module = Hooked("parameter", factor)
        regularizer = FisherRegularizer(100.0, num_sub_batches=4, start=0, gradient=form)
        fit(module, BATCHES[:1], regularizer, precision="64-true")
        grads.append(module.seen)
    assert torch.allclose(grads[1], 0.5 * grads[0], rtol=1e-12)


def test_hooks_are_still_there_afterwards(fit):
    module = Hooked("parameter")
    fit(module, BATCHES, FisherRegularizer(5.0, num_sub_batches=4, start=0))
    assert len(module.net[1].weight._backward_hooks) == 1
