"""However a batch ends, the module is the user's own again: no patched method, weights as they were."""

from __future__ import annotations

import collections
import copy
import pickle

import pytest
import torch
from lightning.pytorch import Callback

from lightning_fisher import FisherRegularizer
from tests.callbacks.leftovers import BATCHES, regularizer, residue
from tests.callbacks.tiny import (
    Classifier,
    CountingClassifier,
    Ledger,
    conv_bn_net,
    loader,
    mlp,
    seeded,
)
from tests.reference.regularized_training import snapshot


class Interrupted(Classifier):
    """Raises ``error`` in the ``fatal``-th call of ``training_step``, after its forward.

    With M = 4 batch 1 is calls 10 to 18, 18 the full pass.
    """

    def __init__(self, fatal, error):
        super().__init__(seeded(conv_bn_net))
        self.fatal, self.error, self.calls, self.before = fatal, error, Ledger(), None

    def on_train_batch_start(self, batch, batch_idx):
        self.before = snapshot(self)

    def training_step(self, batch, batch_idx):
        self.calls.append(len(batch[1]))
        loss = super().training_step(batch, batch_idx)
        if len(self.calls) == self.fatal:
            raise self.error
        return loss


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("error", [ZeroDivisionError("boom"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
@pytest.mark.parametrize("fatal", range(10, 19))
def test_after_an_exception_in_any_pass(fit, fatal, error):
    """Also from inside a perturbed pass: weights and buffers are the last step's, bit for bit."""
    module = Interrupted(fatal, error)
    with pytest.raises((ZeroDivisionError, KeyboardInterrupt, SystemExit)):
        fit(module, BATCHES, regularizer())
    assert len(module.calls) == fatal
    assert residue(module) == []
    for name, value in snapshot(module).items():
        moved_by_the_full_pass = fatal == 18 and name in dict(module.named_buffers())
        assert moved_by_the_full_pass or torch.equal(value, module.before[name]), name
    module.fatal = 0
    fit(module, BATCHES, regularizer())


@pytest.mark.parametrize("error", [RuntimeError("in on_train_batch_end")])
def test_after_an_exception_in_a_later_hook(fit, error):
    class Raises(Callback):
        def on_train_batch_end(self, *args):
            raise error

    for callbacks in ([Raises(), regularizer()], [regularizer(), Raises()]):
        module = Classifier(seeded(mlp))
        with pytest.raises(RuntimeError, match="on_train_batch_end"):
            fit(module, BATCHES, *callbacks)
        assert residue(module) == []


class Skips(Classifier):
    """``on_train_batch_start`` ends the epoch at batch 2: no ``on_train_batch_end`` follows."""

    def __init__(self):
        super().__init__(seeded(mlp))
        self.residues, self.steps = [], 0

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 2 else None

    def training_step(self, batch, batch_idx):
        self.steps += len(batch[1]) == 8
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self):
        self.residues.append(residue(self))

    def validation_step(self, batch, batch_idx):
        self.residues.append(residue(self))


def test_after_a_skipped_epoch(fit):
    module = Skips()
    fit(module, BATCHES, regularizer(), max_epochs=3, limit_val_batches=0)
    assert module.steps == 6
    assert module.residues == [[]] * 3
    assert residue(module) == []


@pytest.mark.parametrize("when", [0.5, 1.0])
def test_validation_sees_the_users_own_module(fit, when):
    module = Skips()
    module.on_train_batch_start = lambda batch, batch_idx: None
    fit(module, BATCHES, regularizer(), val_dataloaders=loader(BATCHES[:1]), val_check_interval=when)
    assert len(module.residues) == 2 + (2 if when == 0.5 else 1)  # with the sanity check and the epoch's end
    assert all(names == ["on_train_batch_start"] for names in module.residues)


def test_after_fit_the_module_can_be_pickled_copied_and_trained_on(fit):
    module, callback = Classifier(seeded(mlp)), regularizer()
    fit(module, BATCHES, callback)
    assert residue(module) == []
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), module.parameters(), strict=True))
        fit(twin, BATCHES)
    for twin in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert (twin.active, twin.switch_step) == (True, 0)


def test_only_the_rehearsal_is_patched_before_the_switch(fit):
    module, seen = CountingClassifier(seeded(mlp)), []

    class Watch(Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            seen.append(residue(pl_module))

    fit(module, BATCHES, FisherRegularizer(5.0, num_sub_batches=4, start="step:100"), Watch())
    assert seen == [[], ["training_step"], [], []]  # the second batch is a rehearsal
    assert [len(calls) for calls in module.calls] == [1, 9, 1, 1]


@pytest.mark.parametrize("fails", [False, True])
def test_the_users_own_override_is_kept_and_used(fit, fails):
    """An instance-level ``training_step`` (a notebook's patch, a compiled step) is wrapped, not lost."""
    module, calls = Classifier(seeded(mlp)), Ledger()
    own = type(module).training_step.__get__(module)

    def training_step(batch, batch_idx):
        calls.append(len(batch[1]))
        if fails and len(calls) == 3:
            raise ZeroDivisionError
        return own(batch, batch_idx)

    module.training_step = training_step
    if fails:
        with pytest.raises(ZeroDivisionError):
            fit(module, BATCHES, regularizer())
    else:
        fit(module, BATCHES, regularizer())
        assert len(calls) == 4 * 9
    assert vars(module)["training_step"] is training_step
    assert residue(module) == ["training_step"]


class Keeps(Classifier):
    """Plain attributes of every kind, written in `training_step`."""

    def __init__(self):
        super().__init__(seeded(mlp))
        self.count, self.losses, self.hidden = 0, [], None
        self.nested = {"sizes": [], "by_class": collections.defaultdict(list)}
        self.recent, self.seen = collections.deque(maxlen=3), set()

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        size = len(batch[1])
        self.count += 1
        self.losses.append(loss.item())
        self.nested["sizes"].append(size)
        self.nested["by_class"][int(batch[1][0])].append(size)
        self.recent.append(size)
        self.seen.add(size)
        self.hidden = (torch.zeros(size), torch.ones(size)) if self.hidden is None else self.hidden
        if not hasattr(self, "made_here"):
            self.made_here = size
        return loss


@pytest.mark.parametrize("start", [0, "epoch:1"])
def test_plain_attributes_see_every_batch_once(fit, start):
    """Counters, lists and states hold what they hold without the callback, in the very same containers."""
    plain, module = Keeps(), Keeps()
    containers = module.losses, module.nested, module.nested["sizes"], module.recent, module.seen
    fit(plain, BATCHES, max_epochs=2)
    fit(module, BATCHES, FisherRegularizer(1e-30, num_sub_batches=4, start=start), max_epochs=2)
    for name in ("count", "losses", "nested", "recent", "seen", "made_here"):
        assert getattr(module, name) == getattr(plain, name), name
    assert len(module.hidden[0]) == 8
    now = module.losses, module.nested, module.nested["sizes"], module.recent, module.seen
    assert all(a is b for a, b in zip(now, containers, strict=True))


def test_gradients_of_a_batch_are_its_own_after_an_exception(fit):
    """The extra passes never write ``.grad``: after a crash inside them there is none."""
    module = Interrupted(3, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        fit(module, BATCHES, regularizer())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(parameter.requires_grad for parameter in module.parameters())
