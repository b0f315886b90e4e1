"""FisherMonitor: which samples it takes, when it measures, that it leaves no trace, and the values."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from lightning_fisher import FisherMonitor, FisherRegularizer
from tests.callbacks.tiny import Classifier, conv_bn_net, image_batches, loader, mlp, seeded, sgd
from tests.reference.jacobian import jacobian
from tests.reference.logdet import jacobian_log_det

BATCHES = image_batches([8] * 4)
IMAGES, LABELS = image_batches([40], seed=5)[0]
T, SIZE = 3, 6
KEYS = ("gamma", "gamma_std", "gamma_magnitude", "gamma_direction")


class Recording(Dataset):
    """A map-style data set that remembers which samples were asked for."""

    def __init__(self):
        self.asked = []

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, index):
        self.asked.append(int(index))
        return IMAGES[index], LABELS[index]

    def subsets(self):
        """The samples of the first measurement, subset by subset; two were asked for before training."""
        return [self.asked[2 + t * SIZE : 2 + (t + 1) * SIZE] for t in range(T)]


class Validated(Classifier):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


def monitor(dataset=None, **options):
    dataset = TensorDataset(IMAGES, LABELS) if dataset is None else dataset
    return FisherMonitor(dataset, num_subsets=T, subset_size=SIZE, **options)


def fit_validated(fit, *callbacks, net=mlp, optimizer=sgd, **options):
    module = Validated(seeded(net), optimizer=optimizer)
    return fit(module, BATCHES, *callbacks, val_dataloaders=loader(BATCHES[:2]), **options)


def frozen(parameters):
    """An optimizer that leaves the weights alone: equal subsets must give equal values."""
    return torch.optim.SGD(parameters, lr=0.0)


def reference(net, subsets):
    """Mean, sample deviation and parts of ``ln|J J^T|`` by one float64 backward pass a sample."""
    values = [jacobian_log_det(jacobian(net, IMAGES[subset], LABELS[subset])) for subset in subsets]
    log_dets = torch.tensor([value.log_det for value in values], dtype=torch.float64)
    return {
        "gamma": log_dets.mean().item(),
        "gamma_std": log_dets.std().item(),
        "gamma_magnitude": sum(value.magnitude for value in values) / len(values),
        "gamma_direction": sum(value.direction for value in values) / len(values),
    }


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("net", [mlp, conv_bn_net])
def test_values(fit, net, precision):
    """After training for an epoch: evaluation mode, un-rounded by autocast, mean over the subsets."""
    data = Recording()
    got = fit_validated(fit, monitor(data), net=net, precision=precision, num_sanity_val_steps=0)
    expected = reference(got.trainer.lightning_module.net, data.subsets())
    metrics = got.trainer.callback_metrics
    assert {key: metrics[key].item() for key in KEYS} == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_subsets_are_distinct_samples(fit):
    data = Recording()
    fit_validated(fit, monitor(data), num_sanity_val_steps=0)
    subsets = data.subsets()
    assert all(len(set(subset)) == SIZE for subset in subsets)
    assert len({tuple(sorted(subset)) for subset in subsets}) == T
    assert all(0 <= index < 40 for index in data.asked)


def test_same_subsets_every_time(fit, memory_logger):
    """Weights that don't move: the same value at every validation."""
    fit_validated(fit, monitor(), optimizer=frozen, max_epochs=3, logger=memory_logger)
    series = memory_logger.series("gamma")
    assert sorted(series) == [3, 7, 11]
    assert len(set(series.values())) == 1


@pytest.mark.parametrize(("seed", "other", "equal"), [(0, 0, True), (7, 7, True), (0, 1, False)])
def test_subsets_follow_their_own_seed(fit, seed, other, equal):
    """Not the global random state, which is another in the two runs."""
    asked = []
    for own, everywhere in ((seed, 11), (other, 22)):
        data = Recording()
        torch.manual_seed(everywhere)
        fit_validated(fit, monitor(data, seed=own))
        asked.append(data.subsets())
    assert (asked[0] == asked[1]) is equal


def test_a_data_set_that_is_made_when_needed(fit):
    """A zero-argument callable gives the same as the data set itself."""
    made = []

    def make():
        made.append(Recording())
        return made[-1]

    callback = monitor(make)
    assert made == []
    values = [fit_validated(fit, each).trainer.callback_metrics["gamma"] for each in (callback, monitor())]
    assert values[0] == values[1]
    assert len(made) == 1


class NoisyNet(nn.Module):
    """Draws random numbers in training, as dropout does."""

    def __init__(self):
        super().__init__()
        self.net = seeded(conv_bn_net)

    def forward(self, x):
        return self.net(x + 0.1 * torch.rand_like(x) if self.training else x)


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 0.5, "accumulate_grad_batches": 4}], ids=str)
def test_training_does_not_notice(fit, assert_identical, options):
    """Weights, buffers, momenta, random numbers, and gradients half-way through an accumulation."""
    runs = []
    for callbacks in ((), (monitor(),)):
        torch.manual_seed(3)
        runs.append(fit_validated(fit, *callbacks, net=NoisyNet, max_epochs=3, **options))
    assert_identical(runs[1], runs[0])


def test_modes_and_gradients_are_left_as_they_were(fit):
    """Part of the net is kept in evaluation mode by the user, part of it is frozen."""
    states = []

    class Watch(Callback):
        def watch(self, module):
            gradients = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
            needed = [p.requires_grad for p in module.parameters()]
            states.append(([m.training for m in module.modules()], gradients, needed, torch.is_grad_enabled()))

        def on_validation_epoch_start(self, trainer, pl_module):
            self.watch(pl_module)

        def on_validation_end(self, trainer, pl_module):
            self.watch(pl_module)

    module = Validated(seeded(conv_bn_net))
    module.net[1].weight.requires_grad_(False)
    fit(module, BATCHES, monitor(), Watch(), val_dataloaders=loader(BATCHES[:1]), num_sanity_val_steps=0)
    before, after = states
    assert before[0] == after[0]
    assert before[2:] == after[2:]
    for a, b in zip(before[1], after[1], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize(("every", "count"), [(1, 4), (2, 2), (3, 1), (4, 1)])
def test_every_n_validations(fit, memory_logger, every, count):
    fit_validated(fit, monitor(every_n_validations=every), max_epochs=4, logger=memory_logger)
    steps = sorted(memory_logger.series("gamma"))
    assert len(steps) >= count
    assert len(steps) <= -(-4 // every)
    assert all(b - a == 4 * every for a, b in itertools.pairwise(steps))


def test_the_sanity_check_is_skipped(fit, memory_logger):
    """An untrained net's value would be the first point of every curve."""
    at_start = []

    class Watch(Callback):
        def on_train_start(self, trainer, pl_module):
            at_start.append({key for key in trainer.callback_metrics if key.startswith("gamma")})

    fit_validated(fit, monitor(), Watch(), num_sanity_val_steps=2, logger=memory_logger)
    assert at_start == [set()]
    assert sorted(memory_logger.series("gamma")) == [3]


def test_without_a_validation_loop_at_the_train_epochs_end(fit, memory_logger):
    data = Recording()
    got = fit(Classifier(seeded(mlp)), BATCHES, monitor(data), max_epochs=2, logger=memory_logger)
    assert sorted(memory_logger.series("gamma")) == [3, 7]
    expected = reference(got.trainer.lightning_module.net, data.subsets())
    assert got.trainer.callback_metrics["gamma"].item() == pytest.approx(expected["gamma"], rel=1e-5)


@pytest.mark.parametrize("inference_mode", [True, False])
def test_gradients_in_inference_mode(fit, inference_mode):
    """Validation runs without autograd; the metric needs it."""
    got = fit_validated(fit, monitor(), inference_mode=inference_mode)
    assert got.trainer.callback_metrics["gamma"].isfinite()
    assert got.trainer.callback_metrics["gamma_std"] > 0


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_checkpoint_and_early_stopping_can_monitor_it(fit, tmp_path, memory_logger, validated, first):
    best = ModelCheckpoint(tmp_path, monitor="gamma", mode="min", save_top_k=1)
    stop = EarlyStopping("gamma", patience=10, check_on_train_epoch_end=not validated)
    callbacks = [monitor(), best, stop] if first else [best, stop, monitor()]
    options = {"max_epochs": 3, "logger": memory_logger}
    if validated:
        fit_validated(fit, *callbacks, **options)
    else:
        fit(Classifier(seeded(mlp)), BATCHES, *callbacks, **options)
    values = memory_logger.series("gamma").values()
    assert len(values) == 3
    assert best.best_model_score.item() == pytest.approx(min(values))
    assert stop.best_score.item() == pytest.approx(min(values))


@pytest.mark.parametrize("dataset", [None, TensorDataset(IMAGES, LABELS)], ids=["default", "given"])
def test_trainer_validate_runs(make_trainer, dataset):
    """The same callbacks serve ``trainer.validate``, which has no training data."""
    trainer = make_trainer(callbacks=[FisherMonitor(dataset, num_subsets=T, subset_size=SIZE)])
    (logged,) = trainer.validate(Validated(seeded(mlp)), loader(BATCHES[:1]), verbose=False)
    assert "val_loss" in logged


@pytest.mark.parametrize("size", [41, 1000])
def test_subsets_larger_than_the_data_are_refused(fit, size):
    module = Validated(seeded(mlp))
    before = copy.deepcopy(module.state_dict())
    callback = FisherMonitor(TensorDataset(IMAGES, LABELS), num_subsets=2, subset_size=size)
    with pytest.raises(Exception, match="subset_size") as caught:
        fit(module, BATCHES, callback, val_dataloaders=loader(BATCHES[:1]))
    assert str(size) in str(caught.value)
    assert "40" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("num_subsets", [0, -1, 2.5, "3"]),
        ("subset_size", [0, -1, 2.5, "6"]),
        ("every_n_validations", [0, -1, 1.5, "2"]),
    ],
)
def test_bad_constructor_values(argument, values):
    for value in values:
        with pytest.raises((ValueError, TypeError)) as caught:
            FisherMonitor(TensorDataset(IMAGES, LABELS), **{argument: value})
        assert f"`{argument}`" in str(caught.value)
        assert str(value) in str(caught.value)


def test_beside_the_regularizer(fit, assert_identical):
    """The monitor measures, the regularizer trains; either order."""
    alone = fit_validated(fit, FisherRegularizer(5.0, num_sub_batches=4, start=0), max_epochs=2)
    for first in (True, False):
        both = [monitor(), FisherRegularizer(5.0, num_sub_batches=4, start=0)]
        got = fit_validated(fit, *(both if first else both[::-1]), max_epochs=2)
        assert_identical(got, alone)
        assert got.trainer.callback_metrics["gamma"].isfinite()


def test_one_subset_that_is_everything_has_no_spread(fit):
    watching = FisherMonitor(TensorDataset(IMAGES, LABELS), num_subsets=T, subset_size=len(LABELS))
    with pytest.warns(
        UserWarning, match=rf"one subset instead of {T}: .* of samples, {len(LABELS)}, .* reported as nan"
    ):
        fit_validated(fit, watching, optimizer=frozen)
    expected = reference(seeded(mlp), [list(range(len(LABELS)))])
    assert watching.last["gamma"] == pytest.approx(expected["gamma"], rel=1e-4)
    assert math.isnan(watching.last["gamma_std"])
    assert len(watching.subsets(len(LABELS) + 1)) == T  # almost the same subsets still differ
