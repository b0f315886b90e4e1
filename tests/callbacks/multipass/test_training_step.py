"""What the patched step owes Lightning and the user: its outputs, its signature, one ordinary backward pass."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback

from lightning_fisher import FisherRegularizer
from tests.callbacks.tiny import Classifier, image_batches, mlp, seeded

BATCHES = image_batches([16, 16, 12])
NEGLIGIBLE = 1e-30  # runs the whole machinery, and vanishes in float32


class Returns(Classifier):
    """``training_step`` returning a dict, a tensor, or None for every second batch."""

    def __init__(self, kind):
        super().__init__(seeded(mlp))
        self.kind = kind

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.kind == "none" and batch_idx % 2 == 1:
            return None
        if self.kind == "dict":
            return {"loss": loss, "size": len(batch[1]), "logits": self(batch[0]).detach()}
        return loss


@pytest.mark.parametrize("kind", ["tensor", "dict", "none"])
def test_what_training_step_returns_arrives(fit, assert_identical, kind):
    """The outputs of ``on_train_batch_end`` are the full pass's; a skipped batch stays skipped."""
    plain = fit(Returns(kind), BATCHES)
    got = fit(Returns(kind), BATCHES, FisherRegularizer(NEGLIGIBLE, num_sub_batches=4, start=0))
    assert_identical(got, plain)
    if kind == "dict":
        assert [output["size"] for output in got.outputs] == [16, 16, 12]
        for a, b in zip(got.outputs, plain.outputs, strict=True):
            assert a.keys() == b.keys()
            assert torch.equal(a["logits"], b["logits"])


class BatchOnly(Classifier):
    def __init__(self):
        super().__init__(seeded(mlp))

    def training_step(self, batch):
        return super().training_step(batch, 0)


def test_a_training_step_without_batch_idx(fit, assert_identical):
    """Lightning looks at the signature; a patched step must keep it."""
    plain = fit(BatchOnly(), BATCHES)
    regularizer = FisherRegularizer(NEGLIGIBLE, num_sub_batches=4, start=0)
    assert_identical(fit(BatchOnly(), BATCHES, regularizer), plain)


class Hooked(Classifier):
    """What the gradient hooks see."""

    def __init__(self):
        super().__init__(seeded(mlp))
        self.after_backward, self.before_step, self.losses = [], [], []

    def on_before_backward(self, loss):
        self.losses.append(loss.item())

    def on_after_backward(self):
        self.after_backward.append(self.net[1].weight.grad.clone())

    def on_before_optimizer_step(self, optimizer):
        self.before_step.append(self.net[1].weight.grad.clone())


def test_every_hook_sees_one_ordinary_gradient(fit):
    """One backward a batch, of the plain loss's value, with the extra gradient already inside."""
    plain, regularized = Hooked(), Hooked()
    fit(plain, BATCHES[:1])
    fit(regularized, BATCHES[:1], FisherRegularizer(100.0, num_sub_batches=4, start=0))
    assert regularized.losses == plain.losses
    assert len(regularized.after_backward) == len(regularized.before_step) == 1
    assert torch.equal(regularized.after_backward[0], regularized.before_step[0])
    difference = regularized.after_backward[0] - plain.after_backward[0]
    assert difference.norm() > 1e-4 * plain.after_backward[0].norm()


def test_automatic_optimization_stays_in_charge(fit):
    module, flags = Classifier(seeded(mlp)), []

    class Watch(Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            flags.append(pl_module.automatic_optimization)

    fit(module, BATCHES, FisherRegularizer(1.0, num_sub_batches=4, start=0), Watch())
    assert flags == [True] * 3


class Consumes(Classifier):
    """Normalizes its images in place and pops its labels, as a ``training_step`` may: the batch is its own."""

    def __init__(self):
        super().__init__(seeded(mlp))

    def training_step(self, batch, batch_idx):
        x = batch["x"].sub_(0.5).mul_(2)
        return super().training_step((x, batch.pop("y")), batch_idx)


def test_a_training_step_that_consumes_its_batch(fit, assert_identical, memory_logger):
    """Every pass sees the batch as it was loaded, and the full pass's changes are the only ones left."""

    def batches():
        return [{"x": x.clone(), "y": y} for x, y in BATCHES]

    given, expected = batches(), batches()
    plain = fit(Consumes(), expected)
    regularizer = FisherRegularizer(NEGLIGIBLE, num_sub_batches=4, start=0)
    assert_identical(fit(Consumes(), given, regularizer, logger=memory_logger), plain)
    for a, b in zip(given, expected, strict=True):
        assert a.keys() == b.keys()
        assert torch.equal(a["x"], b["x"])
    assert all(0 < value < 1e-2 for value in memory_logger.series("fisher/penalty").values())
