"""Gradient hooks see one gradient a step, the regularized one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_fisher import FisherRegularizer, SharpnessAware
from tests.callbacks.multipass.oracle import (
    ALPHA,
    BETA,
    PARTS,
    Gradients,
    Plain,
    assert_gradients,
    batches,
    parts_of,
    with_penalty,
)
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


def on_accumulators(module):
    module.accumulators = [p.view_as(p).grad_fn.next_functions[0][0] for p in module.net.parameters()]
    return [a.register_prehook(lambda gradients: CALLS.append(1)) for a in module.accumulators]


def in_a_list(module):
    layer = nn.Linear(3, 3).double().requires_grad_(False)
    module.kept = [layer]
    return [layer.register_full_backward_hook(lambda *args: CALLS.append(1))]


def of_all_at_once(module):
    parameters = list(module.net.parameters())
    return [torch.autograd.graph.register_multi_grad_hook(parameters, lambda gradients: CALLS.append(1))]


def of_all_modules(module):
    return [nn.modules.module.register_module_full_backward_hook(lambda *args: CALLS.append(1))]


def before_all_modules(module):
    return [nn.modules.module.register_module_full_backward_pre_hook(lambda *args: CALLS.append(1))]


class HookedElsewhere(Plain):
    def training_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        for layer in getattr(self, "kept", []):
            logits = layer(logits)
        return F.cross_entropy(logits, batch[1])


ELSEWHERE = [on_accumulators, in_a_list, of_all_at_once, of_all_modules, before_all_modules]


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("hook", ELSEWHERE, ids=lambda hook: hook.__name__)
def test_hooks_elsewhere_are_called_as_often_as_without_the_callback(fit, hook, manual):
    class Manual(HookedElsewhere):
        def prepare(self):
            self.automatic_optimization = not manual

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if not manual:
                return loss
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()
            return None

    counts = []
    for options in (None, {"start": 0}, {"start": 99}):
        CALLS.clear()
        module = Manual()
        handles = hook(module)
        try:
            fit(module, batches(), *([FisherRegularizer(5.0, num_sub_batches=4, **options)] if options else []))
        finally:
            for handle in handles:
                handle.remove()
        counts.append(len(CALLS))
    assert counts[0] >= len(batches())
    assert counts == counts[:1] * 3


class Reverses(Plain):
    """The gradient is turned around by a hook: of a tensor, as the forward pass makes it, or of a module."""

    def __init__(self, of_module):
        super().__init__()
        self.of_module = of_module
        if of_module:
            self.net[1].register_full_backward_hook(lambda module, inner, outer: (-0.3 * inner[0],))

    def training_step(self, batch, batch_idx):
        hidden = self.net[1](self.net[0](batch[0]))
        if not self.of_module:
            hidden.register_hook(lambda gradient: -0.3 * gradient)
        return F.cross_entropy(self.net[2](hidden), batch[1])


def test_a_hook_on_a_tensor_of_the_step_belongs_to_it(fit):
    gradients, expected = Gradients(), Reverses(of_module=False)
    regularizer = FisherRegularizer(BETA, alpha=ALPHA, num_sub_batches=PARTS, start=0)
    fit(Reverses(of_module=False), batches()[:1], regularizer, gradients)
    whole = batches()[0]
    with_penalty(lambda part: expected.training_step(part, 0), parts_of(whole), whole, expected.parameters())
    assert_gradients(gradients.steps[0], expected)


@pytest.mark.parametrize("start", [0, 99])
def test_a_module_hook_that_changes_the_gradient_is_refused(fit, start):
    """The penalty's gradient would not pass it."""
    with pytest.raises(ValueError, match="a backward hook of Tanh changes the gradient") as caught:
        fit(Reverses(of_module=True), batches(), FisherRegularizer(num_sub_batches=4, start=start))
    assert "\n" not in str(caught.value)


def test_module_hooks_see_no_gradient_in_the_shared_form_which_is_said(fit):
    regularizer = FisherRegularizer(num_sub_batches=4, start=0, gradient="shared")
    with pytest.raises(ValueError, match='`gradient` to be "full" for modules with backward hooks'):
        fit(Hooked("module"), BATCHES, regularizer)
    fit(Hooked("module"), BATCHES, SharpnessAware())  # which takes the full form then
    assert len(CALLS) == len(BATCHES)
