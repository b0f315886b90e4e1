"""What is perturbed is what the optimizers step, by its `.grad`; anything else is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn

from lightning_fisher import FisherRegularizer
from lightning_fisher.callbacks.multipass.lineage import OverwrittenError
from tests.callbacks.multipass.oracle import ALPHA, BETA, PARTS, Plain, assert_weights, batches, descend, same_bits
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


OPTIONS = {"alpha": ALPHA, "num_sub_batches": PARTS, "start": 0}


def all_of(module):
    return lambda number: module.net.parameters()


class OnlyBiases(Plain):
    def configure_optimizers(self):
        return torch.optim.SGD([p for name, p in self.named_parameters() if name.endswith("bias")], lr=0.1)


class FreezesInTheStep(Plain):
    """The first layer is trained on every other batch only, which the step itself decides."""

    def training_step(self, batch, batch_idx):
        self.net[0].requires_grad_(batch_idx % 2 == 0)
        return super().training_step(batch, batch_idx)


class FreezesBefore(Plain):
    def on_train_batch_start(self, batch, batch_idx):
        self.net[0].requires_grad_(batch_idx % 2 == 0)


class AddsAGroup(Plain):
    def configure_optimizers(self):
        return torch.optim.SGD(self.net[2].parameters(), lr=0.1)

    def on_train_batch_start(self, batch, batch_idx):
        if batch_idx == 2:
            self.trainer.optimizers[0].add_param_group({"params": list(self.net[0].parameters())})


class TakesOut(Plain):
    def on_train_batch_start(self, batch, batch_idx):
        if batch_idx == 2:
            self.trainer.optimizers[0].param_groups[0]["params"] = list(self.net[2].parameters())


def alternating(module):
    return lambda number: module.net[2 if number % 2 else slice(0, 3)].parameters()


STEPPED = {
    OnlyBiases: lambda m: lambda number: [m.net[0].bias, m.net[2].bias],
    FreezesInTheStep: alternating,
    FreezesBefore: alternating,
    AddsAGroup: lambda m: lambda number: m.net[slice(0, 3) if number >= 2 else 2].parameters(),
    TakesOut: lambda m: lambda number: m.net[2 if number >= 2 else slice(0, 3)].parameters(),
}


@pytest.mark.parametrize("kind", STEPPED, ids=lambda kind: kind.__name__)
def test_equals_the_oracle_over_what_is_stepped(fit, kind):
    module = kind()
    fit(module, batches(), FisherRegularizer(BETA, **OPTIONS))
    expected = Plain()
    assert_weights(module, descend(expected, STEPPED[kind](expected), batches()))


def test_requires_grad_set_too_late_in_the_shared_form(fit):
    with pytest.raises(ValueError, match=r"sets `requires_grad` of 'net\.0\.weight' after it has begun"):
        fit(FreezesInTheStep(), batches(), FisherRegularizer(BETA, gradient="shared", **OPTIONS))


class Masters(torch.optim.SGD):
    """Steps on copies of the weights, which are its only parameters."""

    def __init__(self, parameters, lr):
        super().__init__([p.detach().clone().requires_grad_() for p in parameters], lr)


class MastersInState(torch.optim.SGD):
    """Copies beside the weights: what they get is in `.grad`."""

    def step(self, closure=None):
        loss = closure()
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                master = self.state[p].setdefault("master", p.clone())
                p.copy_(master.sub_(0.1 * p.grad))
        return loss


class MainGradient(torch.optim.SGD):
    """Steps on a field that hooks, or layers, fill."""

    def step(self, closure=None):
        loss = closure()
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.sub_(0.1 * vars(p).pop("summed", p.grad))
        return loss


def optimized_by(kind, prepare=lambda module: None):
    class Module(Plain):
        def configure_optimizers(self):
            prepare(self)
            return kind(self.parameters(), lr=0.1)

    return Module()


def gather_by_hooks(module):
    for p in module.parameters():
        p.register_post_accumulate_grad_hook(lambda p: setattr(p, "summed", p.grad.clone()))


class Fused(torch.autograd.Function):
    """A linear map that keeps the gradient of its weight elsewhere."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x)
        ctx.weight = weight
        return x @ weight.t()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        ctx.weight.summed = gradient.t() @ x
        return gradient @ ctx.weight, None


def fuse(module):
    layer = module.net[0]
    layer.forward = lambda x: Fused.apply(x, layer.weight) + layer.bias


@pytest.mark.parametrize(
    ("kind", "prepare"),
    [(MastersInState, lambda module: None), (MainGradient, gather_by_hooks)],
    ids=["state", "hooks"],
)
def test_optimizers_that_read_grad_in_their_own_way_equal_the_oracle(fit, kind, prepare):
    module, expected = optimized_by(kind, prepare), Plain()
    fit(module, batches(), FisherRegularizer(BETA, **OPTIONS))
    assert_weights(module, descend(expected, all_of(expected), batches()))


@pytest.mark.parametrize("start", [0, 99])
@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (lambda: optimized_by(Masters), r"depends on 'net\.\d\.\w+', which no optimizer steps"),
        (lambda: optimized_by(MainGradient, fuse), "leaves that of a parameter in `summed`"),
        (lambda: optimized_by(lambda ps, lr: torch.optim.LBFGS(ps, line_search_fn="strong_wolfe")), "compares values"),
    ],
    ids=["copies", "fused", "line search"],
)
def test_what_the_penalty_would_not_reach_is_refused(fit, module, reason, start):
    with pytest.raises(ValueError, match=reason) as caught:
        fit(module(), batches(), FisherRegularizer(BETA, **OPTIONS | {"start": start}))
    assert "\n" not in str(caught.value)


class Overwrites(Plain):
    """The mean of gradients of single samples in place of the gradient, at one of three places."""

    def __init__(self, place):
        super().__init__()
        self.place = place

    def overwrite(self, place):
        if place != self.place:
            return
        weights = {name: p.detach() for name, p in self.net.named_parameters()}

        def loss(weights, x, y):
            return F.cross_entropy(torch.func.functional_call(self.net, weights, (x[None],)), y[None])

        found = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weights, *self.batch)
        for name, p in self.net.named_parameters():
            p.grad = found[name].mean(0)

    def on_train_batch_start(self, batch, batch_idx):
        self.batch = batch

    def on_after_backward(self):
        self.overwrite("after backward")

    def on_before_optimizer_step(self, optimizer):
        self.overwrite("before the step")

    def optimizer_step(self, epoch, batch_idx, optimizer, closure):
        closure()
        self.overwrite("in the step")
        optimizer.step()


@pytest.mark.parametrize("start", [0, 99])
@pytest.mark.parametrize("place", ["after backward", "before the step", "in the step"])
def test_gradients_that_are_overwritten_unread_are_refused(fit, place, start):
    with pytest.raises(OverwrittenError, match=r"that of 'net\.0\.weight' is replaced after the backward pass"):
        fit(Overwrites(place), batches(), FisherRegularizer(BETA, **OPTIONS | {"start": start}))


def add_noise(p):
    torch.manual_seed(0)
    p.grad = p.grad + 0.01 * torch.randn_like(p)


def by_numpy(p):
    p.grad = torch.from_numpy(0.5 * p.grad.numpy())


def average(p):
    p.average = getattr(p, "average", torch.zeros(())) * 0.9 + p.grad
    p.grad.copy_(p.average)


def quantize(p):
    p.grad.data = (p.grad * 127).round().to(torch.int8).to(p.dtype) / 127


@pytest.mark.parametrize("change", [add_noise, by_numpy, average, quantize], ids=lambda change: change.__name__)
@pytest.mark.parametrize("start", [0, 99])
def test_gradients_that_are_changed_are_not(fit, change, start):
    class Changes(Plain):
        def on_before_optimizer_step(self, optimizer):
            for p in self.net.parameters():
                change(p)

    plain = fit(Changes(), batches())
    assert same_bits(fit(Changes(), batches(), FisherRegularizer(1e-30, **OPTIONS | {"start": start})), plain)
