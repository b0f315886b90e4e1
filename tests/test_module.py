"""The image classifier: schedule, losses and errors as logged, checkpoints."""

from __future__ import annotations

import copy
import math
import warnings
from functools import partial

import lightning as L
import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from lightning_fisher import FisherRegularizer
from lightning_fisher.data.images import IGNORED_LABEL
from lightning_fisher.module import CalibrationError, ImageClassifier, SampleMean, milestone_lr

CLASSES = 7


def trainer(**options) -> L.Trainer:
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**(defaults | options))


def classifier(lr: float = 0.1, **options) -> ImageClassifier:
    return ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES)), partial(SGD, lr=lr), **options)


def batches(n: int, batch_size: int, seed: int = 0, ignored: int = 0) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 3, 2, 2, generator=generator)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    if ignored:
        labels[-ignored:] = IGNORED_LABEL
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size)


def naive(module: ImageClassifier, loader: DataLoader, smoothing: float = 0.0) -> tuple[float, float, float]:
    """Loss, error and top-5 error in per cent, one sample after the other."""
    losses, wrong, wrong5 = [], 0, 0
    for image, label in zip(*(part.tolist() for part in loader.dataset.tensors), strict=True):
        if label == IGNORED_LABEL:
            continue
        logits = module.net(torch.tensor(image)[None])[0].tolist()
        log_sum = math.log(sum(math.exp(z) for z in logits))
        log_p = [z - log_sum for z in logits]
        losses.append(-(1 - smoothing) * log_p[label] - smoothing * sum(log_p) / CLASSES)
        ranked = sorted(range(CLASSES), key=lambda k: -logits[k])
        wrong += ranked[0] != label
        wrong5 += label not in ranked[:5]
    n = len(losses)
    return sum(losses) / n, 100 * wrong / n, 100 * wrong5 / n


@pytest.mark.parametrize(
    ("milestones", "max_epochs", "drops"),
    [
        ([0.5, 0.75], 200, [100, 150]),
        ([0.3, 0.6, 0.8], 200, [60, 120, 160]),
        ([0.571, 0.714, 0.857], 350, [200, 250, 300]),
        ([0.333, 0.667], 90, [30, 60]),
        ([0.5, 0.75], 20, [10, 15]),
        ([0.3, 0.6], 2, [1, 1]),
    ],
)
def test_milestones_scale_with_the_epochs(milestones, max_epochs, drops):
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = milestone_lr(optimizer, milestones=milestones, gamma=0.5, max_epochs=max_epochs)
    rates = []
    for _ in range(max_epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [0.5 ** sum(epoch >= drop for drop in drops) for epoch in range(max_epochs)]


@pytest.mark.parametrize("milestones", [[0.75, 0.5], [100, 150], [0.0, 0.5]])
def test_milestones_that_are_no_fractions_are_refused(milestones):
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="`milestones` to be ascending fractions of the training between 0 and 1, but"):
        milestone_lr(optimizer, milestones=milestones, gamma=0.1, max_epochs=200)


def test_forward_is_the_network():
    module = classifier()
    images = torch.randn(2, 3, 2, 2)
    assert torch.equal(module(images), module.net(images))


def test_validation_and_test_count_every_sample_once():
    """Unequal batches, padding that is ignored, two loaders, and no label smoothing."""
    module = classifier(label_smoothing=0.3)
    test_set, train_set = batches(23, 5, ignored=2), batches(31, 8, seed=1)
    (first, second) = trainer().test(module, [test_set, train_set], verbose=False)
    assert 0 <= first.pop("test_calibration_error") <= 100
    for prefix, loader, logged in (("test", test_set, first), ("train_eval", train_set, second)):
        names = (f"{prefix}_loss", f"{prefix}_error", f"{prefix}_error_top5")
        expected = dict(zip(names, naive(module, loader), strict=True))
        assert logged == pytest.approx(expected, rel=1e-5)
    (logged,) = trainer().validate(module, test_set, verbose=False)
    assert logged["val_loss"] == pytest.approx(first["test_loss"], rel=1e-6)
    assert logged["val_error"] == first["test_error"]
    assert 0 < logged["val_error_top5"] < logged["val_error"] < 100


def test_validating_before_and_after_training():
    module = classifier(lr=0.0)
    loop, loader = trainer(max_epochs=1), batches(23, 5)
    (before,) = loop.validate(module, loader, verbose=False)
    loop.fit(module, loader, loader)
    during = {name: value.item() for name, value in loop.callback_metrics.items() if name.startswith("val")}
    (after,) = loop.validate(module, loader, verbose=False)
    assert before == during == after


def test_a_batch_of_padding_only_is_no_nan():
    module = classifier()
    (logged,) = trainer().validate(module, batches(12, 4, ignored=5), verbose=False)
    assert logged["val_loss"] == pytest.approx(naive(module, batches(12, 4, ignored=5))[0], rel=1e-5)


def test_a_diverged_network_shows():
    module = classifier()
    nn.init.constant_(module.net[1].bias, torch.nan)
    (logged,) = trainer().validate(module, batches(6, 3), verbose=False)
    assert math.isnan(logged["val_loss"])


def test_sample_mean_over_two_processes_is_that_of_one():
    values, counted = torch.randn(10), torch.arange(10) % 3 > 0
    ranks = [SampleMean(), SampleMean()]
    for rank, metric in enumerate(ranks):
        metric.update(values[rank::2], counted[rank::2])
    totals = {state: sum(getattr(metric, state) for metric in ranks) for state in ("total", "count")}
    assert ranks[0]._reductions.keys() == totals.keys()
    assert all(reduction.__name__ == "dim_zero_sum" for reduction in ranks[0]._reductions.values())
    torch.testing.assert_close(totals["total"] / totals["count"], values[counted].mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_training_logs_the_mean_over_the_epoch(smoothing):
    module = classifier(lr=0.0, label_smoothing=smoothing)  # the weights stay: the mean can be recomputed
    loader = batches(23, 5)
    fit = trainer(max_epochs=1)
    fit.fit(module, loader)
    loss, error, _ = naive(module, loader, smoothing)
    assert fit.callback_metrics["train_loss"].item() == pytest.approx(loss, rel=1e-5)
    assert fit.callback_metrics["train_error"].item() == pytest.approx(error, rel=1e-5)


def test_the_plateau_scheduler_watches_the_training_loss():
    module = classifier(lr=1e-12, scheduler=partial(ReduceLROnPlateau, factor=0.1, patience=1))
    trainer(max_epochs=4).fit(module, batches(10, 5))
    # A loss that doesn't fall: bad epochs 2 and 3, dropped after 3.
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-13)


def test_schedulers_by_step():
    scheduler = partial(OneCycleLR, max_lr=0.5, total_steps=10)
    module = classifier(scheduler=scheduler, scheduler_interval="step")
    trainer(max_epochs=2).fit(module, batches(20, 4))
    config = module.trainer.lr_scheduler_configs[0]
    assert (config.interval, config.scheduler.last_epoch) == ("step", 10)


def test_no_scheduler_and_frozen_parameters():
    module = classifier()
    module.net[1].bias.requires_grad_(False)
    fit = trainer(max_epochs=1)
    fit.fit(module, batches(8, 4))
    assert fit.lr_scheduler_configs == []
    assert [p.shape for group in fit.optimizers[0].param_groups for p in group["params"]] == [(CLASSES, 12)]


def test_checkpoints_load_with_weights_only(tmp_path):
    module = classifier(scheduler=partial(milestone_lr, milestones=[0.5], gamma=0.1, max_epochs=2))
    fit = trainer(max_epochs=2)
    fit.fit(module, batches(8, 4), batches(8, 4))
    fit.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == {"net.1.weight", "net.1.bias"}
    other = classifier()
    other.load_state_dict(checkpoint["state_dict"])
    assert torch.equal(other.net[1].weight, module.net[1].weight)


def test_fewer_than_five_classes():
    module = ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), partial(SGD, lr=0.1))
    loader = DataLoader(TensorDataset(torch.randn(6, 3, 2, 2), torch.arange(6) % 3), batch_size=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (logged,) = trainer().validate(module, loader, verbose=False)
    assert "val_error_top5" not in logged


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler_interval": "batch"}, "`scheduler_interval` to be 'epoch' or 'step', but got 'batch'"),
        ({"label_smoothing": 1.1}, r"`label_smoothing` to be from 0 to 1, but got 1\.1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        classifier(**options)


def test_channels_last_is_the_same_network_in_another_layout():
    """In float64 the logits agree to rounding; the layout reaches the convolutions; a checkpoint fits either."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3)).double()
    plain = ImageClassifier(net, partial(SGD, lr=0.1))
    images, layouts = torch.randn(5, 3, 8, 8).double(), []
    expected = plain(images)
    other = ImageClassifier(copy.deepcopy(net), partial(SGD, lr=0.1), channels_last=True)
    other.load_state_dict(plain.state_dict())
    other.net[2].register_forward_hook(
        lambda module, args, output: layouts.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    assert torch.allclose(other(images), expected, rtol=1e-12)
    assert layouts == [True]
    assert other.net[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_compiled_network_is_the_same_one():
    """In float64 gradients agree to rounding; so do the names in a checkpoint; a graph is of one size."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)).double()
    plain = ImageClassifier(net, partial(SGD, lr=0.1))
    compiled = ImageClassifier(copy.deepcopy(net), partial(SGD, lr=0.1), compile=True)
    compiled.load_state_dict(plain.state_dict())
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for size in (4, 3, 2):
        images = torch.randn(size, 6).double()
        for module in (plain, compiled):
            module.zero_grad()
            module(images).square().sum().backward()
        for p, q in zip(plain.net.parameters(), compiled.net.parameters(), strict=True):
            assert torch.allclose(p.grad, q.grad, rtol=1e-12, atol=1e-14)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs == 3
    with compiled.eagerly():
        assert torch.equal(compiled(torch.ones(9, 6).double()), plain(torch.ones(9, 6).double()))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs == 3


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        (None, {}),
        (partial(milestone_lr, milestones=[0.5], gamma=0.1, max_epochs=4), {}),
        (partial(OneCycleLR, max_lr=0.2, total_steps=16), {"scheduler_interval": "step"}),
        (partial(ReduceLROnPlateau, factor=0.5, patience=0, threshold=10.0), {}),
    ],
)
@pytest.mark.parametrize("regularized", [False, True])
def test_manual_optimization_gives_identical_weights(scheduler, options, regularized):
    """With and without the regularizer, whatever the schedule."""
    ends, rates = [], []
    for manual in (False, True):
        torch.manual_seed(0)
        module = classifier(scheduler=scheduler, manual_optimization=manual, **options)
        callbacks = [FisherRegularizer(5.0, num_sub_batches=2, start=1)] if regularized else []
        fitted = trainer(max_epochs=4, callbacks=callbacks)
        fitted.fit(module, batches(16, 4))
        assert fitted.global_step == 16
        ends.append([p.detach().clone() for p in module.parameters()])
        rates.append(fitted.optimizers[0].param_groups[0]["lr"])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert rates[0] == rates[1]


def test_calibration_error_is_torchmetrics():
    from torchmetrics.functional.classification import multiclass_calibration_error

    logits = 3 * torch.randn(500, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(500) % 7
    metric = CalibrationError()
    for part in (slice(0, 123), slice(123, 500)):
        metric.update(logits[part], labels[part])
    expected = multiclass_calibration_error(logits, labels, num_classes=7, n_bins=15)
    assert metric.compute().item() == pytest.approx(100 * expected.item(), rel=1e-5)
