"""Where numbers end in training: the penalty is left out, counted and told; the user's own handling sees its NaN."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from lightning_fisher import FisherRegularizer
from tests.callbacks.tiny import Classifier, image_batches, mlp, seeded, sgd
from tests.reference.losses import batch_loss
from tests.reference.penalty import penalty
from tests.reference.regularised_training import snapshot

M, BETA = 4, 50.0
WARNING = "left out the penalty"
FORMS = pytest.mark.parametrize("form", ["full", "shared"])


def regularizer(beta=BETA, **options):
    return FisherRegularizer(beta, num_sub_batches=M, start=0, **options)


class Cliff(nn.Module):
    """The MLP at ``u = 0``; samples with a pixel above 40 move u so far that the loss at ``w − α g`` is nan."""

    def __init__(self):
        super().__init__()
        self.net = mlp()
        self.u = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        steep = 1e6 * (x[:, 0, 0, 0] > 40).to(x) * self.u + torch.log(1 - self.u**2)
        return self.net(x) + steep[:, None] * torch.tensor([1.0, 0.0, 0.0], dtype=x.dtype)


def without_u(parameters):
    return sgd([p for p in parameters if p.ndim])


def batches(steep):
    """Six batches; those in ``steep`` explode at ``w − α g``."""
    made = image_batches([16] * 6)
    for index, (x, _) in enumerate(made):
        if index in steep:
            x[5, 0, 0, 0] = 50.0
    return made


def cliff():
    return Classifier(seeded(Cliff), optimizer=without_u)


def loop(net, data, optimizer, penalised=lambda batch: True, before_batch=lambda net, batch: None):
    """A plain float64 loop; batches that aren't ``penalised`` are plain steps. Returns the states after each batch."""
    net = net.double().train()
    opt, states = optimizer(net.parameters()), []
    for batch, (x, y) in enumerate(data):
        before_batch(net, batch)
        extra = penalty(net, x, y, alpha=1e-4, num_sub_batches=M)[1] if penalised(batch) else None
        opt.zero_grad()
        batch_loss(net(x.double()), y).backward()
        for index, parameter in enumerate(net.parameters()):
            if parameter.grad is not None and extra is not None:
                parameter.grad += BETA * extra[index]
        opt.step()
        states.append(snapshot(net))
    return states


@FORMS
def test_a_step_that_explodes_is_a_plain_one(fit, assert_close_states, memory_logger, form):
    data, callback = batches(steep={1, 4}), regularizer(gradient=form)
    with pytest.warns(UserWarning, match=rf"{WARNING} of 2 step\(s\) of epoch 0 on process 0") as caught:
        got = fit(cliff(), data, callback, precision="64-true", logger=memory_logger)
    assert_close_states(got.states, loop(seeded(Cliff), data, without_u, lambda batch: batch not in (1, 4)))
    assert callback.left_out == 2
    assert sum(WARNING in str(warning.message) for warning in caught) == 1
    logged = memory_logger.series("fisher/penalty")
    assert [math.isnan(logged[step]) for step in range(6)] == [step in (1, 4) for step in range(6)]


def test_nothing_but_explosions_is_plain_training(fit, assert_identical):
    data = batches(steep=range(6))
    plain = fit(cliff(), data, max_epochs=2)
    callback = regularizer()
    with pytest.warns(UserWarning, match=f"{WARNING} of 6 step"):
        got = fit(cliff(), data, callback, max_epochs=2)
    assert_identical(got, plain)
    assert callback.left_out == 12


def test_told_once_and_counted_on(fit, tmp_path):
    """One warning a run, also where a checkpoint is resumed; the count goes on."""
    data, callback = batches(steep={0}), regularizer()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = fit(cliff(), data, callback, max_epochs=3)
    assert sum(WARNING in str(warning.message) for warning in caught) == 1
    assert callback.left_out == 3
    got.trainer.save_checkpoint(tmp_path / "a.ckpt")
    resumed = regularizer()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(cliff(), data, resumed, max_epochs=4, ckpt_path=tmp_path / "a.ckpt")
    assert sum(WARNING in str(warning.message) for warning in caught) == 0
    assert resumed.left_out == 4


def test_no_warning_without_a_reason(fit):
    callback = regularizer()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=f".*{WARNING}")
        fit(cliff(), batches(steep=()), callback)
    assert callback.left_out == 0


# --- the plain loss itself -------------------------------------------------------------------------------------


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


# --- what changes in the middle --------------------------------------------------------------------------------


class Freezes(Callback):
    """The first layer is frozen for batches 2 and 3."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        freeze(pl_module.net, batch_idx)


class FreezesInTheStep(Classifier):
    def training_step(self, batch, batch_idx):
        freeze(self.net, batch_idx)
        return super().training_step(batch, batch_idx)


def freeze(net, batch):
    if batch in (2, 4):
        net[1].requires_grad_(batch == 4)


@FORMS
@pytest.mark.parametrize("where", ["callback", "training_step"])
def test_requires_grad_changed_in_the_middle(fit, assert_close_states, form, where):
    data = image_batches([16] * 4 if where == "training_step" else [16] * 6)
    module = FreezesInTheStep(seeded(mlp)) if where == "training_step" else Classifier(seeded(mlp))
    extra = [Freezes()] if where == "callback" else []
    got = fit(module, data, *extra, regularizer(gradient=form), precision="64-true")
    assert_close_states(got.states, loop(seeded(mlp), data, sgd, before_batch=freeze))


def test_all_frozen_in_the_middle_ends_as_without_us(fit):
    class FreezesAll(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            pl_module.requires_grad_(batch_idx < 2)

    for callbacks in ([], [regularizer()]):
        with pytest.raises(RuntimeError, match="does not require grad"):
            fit(Classifier(seeded(mlp)), image_batches([16] * 4), FreezesAll(), *callbacks)


@pytest.mark.parametrize("kind", ["complex", "sparse"])
def test_weights_of_another_kind_are_refused_before_training(fit, kind):
    module = Classifier(seeded(mlp))
    made = {"complex": torch.ones(2, dtype=torch.complex64), "sparse": torch.eye(2).to_sparse()}[kind]
    module.other = nn.Parameter(made)
    with pytest.raises(ValueError, match=f"real, dense weights, but Classifier has .*{kind}"):
        fit(module, image_batches([16]), FisherRegularizer(1.0))
    module = Classifier(seeded(mlp))
    module.other = nn.Parameter(made, requires_grad=False)
    fit(module, image_batches([16]), regularizer())


class Embeds(Classifier):
    """A table whose gradient is sparse; the class of an image is looked up by its brightest pixel."""

    def __init__(self, optimizer):
        super().__init__(nn.Embedding(36, 3, sparse=True), optimizer)

    def forward(self, x):
        return self.net(x.flatten(1).argmax(1))


def test_sparse_gradients(fit, assert_close_states):
    def plain_sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.1)

    data, module = image_batches([16] * 4), Embeds(plain_sgd)
    net = nn.Embedding(36, 3)
    net.load_state_dict(module.net.state_dict())
    dense = nn.Sequential(nn.Flatten(), OneHot(), net)
    got = fit(module, data, regularizer(), precision="64-true")
    expected = [{"weight": state["2.weight"]} for state in loop(dense, data, plain_sgd)]
    assert_close_states(got.states, expected)


class OneHot(nn.Module):
    def forward(self, x):
        return x.argmax(1)


def test_an_optimizer_of_sparse_gradients_only_is_refused_before_training(fit):
    with pytest.raises(ValueError, match=r"SparseAdam.*another optimizer"):
        fit(Embeds(lambda parameters: torch.optim.SparseAdam(list(parameters))), image_batches([16]), regularizer())


@pytest.mark.parametrize("start", [0, "first_lr_drop", "epoch:60"])
def test_batches_that_are_too_small_are_refused_at_the_first_one(fit, start):
    """Not epochs later, at the switch."""
    module = Classifier(seeded(mlp))
    with pytest.raises(ValueError, match=r"`num_sub_batches` to be at most the 1 samples of a batch"):
        fit(module, image_batches([1] * 3), FisherRegularizer(1.0, num_sub_batches=M, start=start))
    assert all(
        torch.equal(a, b) for a, b in zip(module.parameters(), Classifier(seeded(mlp)).parameters(), strict=True)
    )
    fit(module, image_batches([1] * 3), FisherRegularizer(0.0, num_sub_batches=M, start=start))  # does nothing


def test_one_sample_and_one_part(fit, assert_close_states, memory_logger):
    """``R = L(x, w) − L(x, w − α g)``; there is no pair whose cosine could be logged."""
    data = image_batches([1] * 3)
    callback = FisherRegularizer(BETA, num_sub_batches=1, start=0)
    got = fit(Classifier(seeded(mlp)), data, callback, precision="64-true", logger=memory_logger)
    net = seeded(mlp).double()
    opt = sgd(net.parameters())
    for batch, (x, y) in enumerate(data):
        extra = penalty(net, x, y, alpha=1e-4, num_sub_batches=1)[1]
        opt.zero_grad()
        batch_loss(net(x.double()), y).backward()
        for parameter, addend in zip(net.parameters(), extra, strict=True):
            parameter.grad += BETA * addend
        opt.step()
        assert_close_states(got.states[batch : batch + 1], [snapshot(net)])
    assert all(math.isnan(value) for value in memory_logger.series("fisher/grad_cosine").values())
    assert all(value == 0 for value in memory_logger.series("fisher/grad_norm_var").values())


def test_gradients_of_zero_change_nothing(fit, assert_identical, memory_logger):
    class Flat(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * 0

    plain = fit(Flat(seeded(mlp)), image_batches([16] * 2))
    got = fit(Flat(seeded(mlp)), image_batches([16] * 2), regularizer(), logger=memory_logger)
    assert_identical(got, plain)
    assert list(memory_logger.series("fisher/penalty").values()) == [0.0, 0.0]
