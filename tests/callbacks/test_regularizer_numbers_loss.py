"""Where the loss itself has no number: the user's own handling sees it, as without the callback."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision

from tests.callbacks.numbers_loop import WARNING, Cliff, batches, cliff, loop, regularizer, without_u
from tests.callbacks.tiny import Classifier, image_batches, mlp, seeded, sgd


class SkipsNaN(Callback):
    """What a user may do about a NaN: drop the gradient of that step."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        bad = [p.grad for p in pl_module.parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
        self.seen.append(bool(bad))
        for p in pl_module.parameters() if bad else ():
            p.grad = None


def with_nan(batch):
    data = image_batches([16] * 6)
    data[batch][0][7, 0, 2, 2] = math.nan
    return data


def test_a_nan_loss_reaches_the_users_own_handling(fit, assert_close_states):
    data, skips = with_nan(2), SkipsNaN()
    with pytest.warns(UserWarning, match=f"{WARNING} of 1 step"):
        got = fit(Classifier(seeded(mlp)), data, regularizer(), skips, precision="64-true")
    assert skips.seen == [False, False, True, False, False, False]
    assert [bool(torch.isfinite(output["loss"])) for output in got.outputs] == [not bad for bad in skips.seen]
    expected = loop(seeded(mlp), [*data[:2], *data[3:]], sgd)
    assert_close_states(got.states[3:], expected[2:])


def test_a_nan_loss_does_to_the_weights_what_it_does_without_us(fit):
    plain = fit(Classifier(seeded(mlp)), with_nan(2))
    got = fit(Classifier(seeded(mlp)), with_nan(2), regularizer())
    for name, expected in plain.states[2].items():
        assert torch.equal(torch.isnan(got.states[2][name]), torch.isnan(expected)), name


def test_detect_anomaly_sees_the_users_step_only(fit, assert_close_states):
    """An anomaly at ``w − α g`` is handled; one of the user's own loss raises, as without us."""
    data = batches(steep={1})
    with pytest.warns(UserWarning, match=WARNING):
        got = fit(cliff(), data, regularizer(), detect_anomaly=True, precision="64-true")
    assert_close_states(got.states, loop(seeded(Cliff), data, without_u, lambda batch: batch != 1))
    for callbacks in ([], [regularizer()]):
        with pytest.raises(RuntimeError, match="returned nan values in its 0th output"):
            fit(Classifier(seeded(mlp)), with_nan(0), *callbacks, detect_anomaly=True)


def test_the_loss_scaler_skips_the_step(fit):
    class Watch(Callback):
        def __init__(self):
            self.scales = []

        def on_train_batch_end(self, trainer, *args):
            self.scales.append(trainer.precision_plugin.scaler.get_scale())

    scaler, watch = torch.amp.GradScaler("cpu", init_scale=16.0), Watch()
    half_precision = MixedPrecision("16-mixed", "cpu", scaler)
    got = fit(Classifier(seeded(mlp)), with_nan(2), regularizer(), watch, plugins=half_precision)
    assert watch.scales == [16.0, 16.0, 8.0, 8.0, 8.0, 8.0]
    for name, value in got.states[1].items():
        assert torch.equal(value, got.states[2][name]), name  # the skipped step
        assert torch.isfinite(got.states[5][name]).all()


class HalfLoss(Classifier):
    """A loss in half precision: loss scale times β is beyond float16, and rounded in bfloat16."""

    def __init__(self, dtype):
        super().__init__(seeded(mlp))
        self.half = dtype

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]).float(), batch[1]).to(self.half)


@pytest.mark.parametrize(("dtype", "beta"), [(torch.float16, 5.0), (torch.bfloat16, 5.01)])
def test_the_extra_gradient_does_not_pass_through_a_half_precision_loss(fit, dtype, beta):
    class Gradients(Callback):
        def on_after_backward(self, trainer, pl_module):
            self.grads = [p.grad.clone() for p in pl_module.parameters()]

    found = []
    for kind in (dtype, torch.float32):
        for weight in (beta, 0.0):
            watch = Gradients()
            scaler = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**15))
            watched = [watch, regularizer(weight)]
            fit(HalfLoss(kind), image_batches([16]), *watched, plugins=scaler if dtype == torch.float16 else None)
            found.append(watch.grads)
    extra = [[a - b for a, b in zip(*pair, strict=True)] for pair in (found[:2], found[2:])]
    for a, b in zip(*extra, strict=True):
        assert torch.isfinite(a).all()
        assert (a - b).norm() < 1e-3 * b.norm()
