"""Saved and restored: a resumed run equals the uninterrupted one, before, at and after the switch."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_fisher import FisherRegularizer
from tests.callbacks.conftest import Recorder
from tests.callbacks.tiny import (
    Classifier,
    Tick,
    conv_bn_net,
    image_batches,
    mlp,
    multi_step,
    one_cycle,
    seeded,
)

BATCHES = image_batches([8] * 4)
EPOCHS = 4
SWITCH = 8  # the LR drops after epoch 1 of 4 batches


def savable_net():
    """Everything in the state dict: the counter's buffer is not persistent."""
    return nn.Sequential(*[layer for layer in conv_bn_net() if not isinstance(layer, Tick)])


def module():
    return Classifier(seeded(savable_net), scheduler=multi_step(2))


def regularizer(**options):
    return FisherRegularizer(50.0, num_sub_batches=4, **options)


def every(folder, **when):
    return ModelCheckpoint(folder, filename="{epoch}-{step}", save_top_k=-1, **when)


@pytest.fixture
def uninterrupted(fit, tmp_path):
    """A whole run with a checkpoint after every epoch; returns (recorder, callback, {steps: path})."""
    callback = regularizer()
    run = fit(module(), BATCHES, callback, every(tmp_path / "whole", every_n_epochs=1), max_epochs=EPOCHS)
    paths = {torch.load(p, weights_only=True)["global_step"]: p for p in (tmp_path / "whole").glob("*.ckpt")}
    assert sorted(paths) == [4, 8, 12, 16]
    return run, callback, paths


@pytest.mark.parametrize("steps", [4, 8, 12], ids=["before the switch", "at the drop", "after the switch"])
def test_resumed_equals_uninterrupted(fit, uninterrupted, steps):
    """At step 8 the LR has dropped, the next batch has not been seen: the previous LR must be in the state."""
    whole, callback, paths = uninterrupted
    resumed_callback = regularizer()
    resumed = fit(module(), BATCHES, resumed_callback, max_epochs=EPOCHS, ckpt_path=paths[steps])
    assert len(resumed.states) == len(whole.states) - steps
    for batch, (a, b) in enumerate(zip(resumed.states, whole.states[steps:], strict=True), start=steps):
        assert all(torch.equal(a[name], b[name]) for name in b), f"differs after batch {batch}"
    assert resumed.lrs == whole.lrs[steps:]
    for name in ("active", "switch_step", "switch_epoch"):
        assert getattr(resumed_callback, name) == getattr(callback, name)
    assert (resumed_callback.switch_step, resumed_callback.switch_epoch) == (SWITCH, 2)


def test_the_comparison_needs_the_callbacks_state(fit, uninterrupted):
    """Without the saved state a run resumed after the drop never switches on, and ends elsewhere."""
    whole, _, paths = uninterrupted
    checkpoint = torch.load(paths[12], weights_only=True)
    key = next(key for key in checkpoint["callbacks"] if "FisherRegularizer" in key)
    del checkpoint["callbacks"][key]
    torch.save(checkpoint, paths[12])
    fresh = regularizer()
    resumed = fit(module(), BATCHES, fresh, max_epochs=EPOCHS, ckpt_path=paths[12])
    assert not fresh.active
    assert not torch.equal(resumed.states[-1]["net.0.weight"], whole.states[-1]["net.0.weight"])


@pytest.mark.parametrize("steps", [3, 8, 9, 11])
def test_resumed_in_the_middle_of_an_epoch(fit, tmp_path, steps):
    """``on_train_epoch_start`` doesn't run then. All batches are equal: Lightning restarts the loader."""
    batches = BATCHES[:1] * 4
    callback, folder = regularizer(), tmp_path / "whole"
    whole = fit(module(), batches, callback, every(folder, every_n_train_steps=1), max_epochs=EPOCHS)
    paths = {torch.load(p, weights_only=True)["global_step"]: p for p in folder.glob("*.ckpt")}
    resumed_callback = regularizer()
    resumed = fit(module(), batches, resumed_callback, max_epochs=EPOCHS, ckpt_path=paths[steps])
    for batch, (a, b) in enumerate(zip(resumed.states, whole.states[steps:], strict=True), start=steps):
        assert all(torch.equal(a[name], b[name]) for name in b), f"differs after batch {batch}"
    assert (resumed_callback.active, resumed_callback.switch_step) == (True, SWITCH)


def test_a_smooth_schedule_resumes_with_its_peak(fit, tmp_path):
    """OneCycle: half the peak is reached long after the checkpoint; the peak must be in the state."""

    def make():
        return Classifier(seeded(mlp), scheduler=one_cycle(24), interval="step")

    callback, folder = regularizer(), tmp_path / "whole"
    whole = fit(make(), BATCHES, callback, every(folder, every_n_epochs=1), max_epochs=6)
    paths = {torch.load(p, weights_only=True)["global_step"]: p for p in folder.glob("*.ckpt")}
    assert callback.switch_step > 12
    assert 0.5 < whole.lrs[12][0] / max(whole.lrs)[0] < 0.9
    resumed = regularizer()
    fit(make(), BATCHES, resumed, max_epochs=6, ckpt_path=paths[12])
    assert resumed.switch_step == callback.switch_step


@pytest.mark.parametrize("start", ["first_lr_drop", 0, "step:3"])
def test_state_round_trip(fit, tmp_path, start):
    """Plain types: what a safe ``torch.load`` gives back restores the callback."""
    callback = regularizer(start=start)
    fit(module(), BATCHES, callback, max_epochs=3)
    torch.save(callback.state_dict(), tmp_path / "state.pt")
    fresh = regularizer(start=start)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for name in ("active", "switch_step", "switch_epoch"):
        assert getattr(fresh, name) == getattr(callback, name)
    assert fresh.active
    again = fresh.state_dict()
    assert again.keys() == callback.state_dict().keys()


def test_state_before_training_round_trips():
    fresh = regularizer()
    fresh.load_state_dict(regularizer().state_dict())
    assert (fresh.active, fresh.switch_step, fresh.switch_epoch) == (False, None, None)


def test_a_checkpoint_without_the_callback_can_be_continued_with_it(fit, tmp_path):
    """Adding the regularizer to a plain run half-way, with an explicit start."""
    fit(module(), BATCHES, every(tmp_path / "plain", every_n_epochs=1), max_epochs=2)
    path = max((tmp_path / "plain").glob("*.ckpt"), key=lambda p: torch.load(p, weights_only=True)["global_step"])
    callback = regularizer(start=3)
    fit(module(), BATCHES, callback, max_epochs=EPOCHS, ckpt_path=path)
    assert (callback.switch_step, callback.switch_epoch) == (12, 3)


class Shuffled:
    """A loader with a state, which Lightning keeps: batches in an order of each epoch's own."""

    def __init__(self):
        self.epoch = self.next = 0

    def __len__(self):
        return len(BATCHES)

    def __iter__(self):
        order = torch.randperm(len(BATCHES), generator=torch.Generator().manual_seed(self.epoch)).tolist()
        for index in order[self.next :]:
            self.next += 1
            if self.next == len(BATCHES):  # nobody may ask for another one
                self.epoch, self.next = self.epoch + 1, 0
            yield BATCHES[index]

    def state_dict(self):
        return {"epoch": self.epoch, "next": self.next}

    def load_state_dict(self, state):
        self.epoch, self.next = state["epoch"], state["next"]


FORMS = {
    "no callback": None,
    "full": {"start": 0},
    "shared": {"start": 0, "gradient": "shared"},
    "perturbed": {"start": 0, "perturbed": 1},
    "shared, perturbed": {"start": 0, "gradient": "shared", "perturbed": 1},
    "every third step": {"start": 0, "every_n_steps": 3},
    "switched on later": {"start": 1},
    "within an epoch": {"start": "step:3"},
}


@pytest.mark.parametrize("form", FORMS)
def test_resumed_with_a_loader_that_has_a_state(make_trainer, tmp_path, form):
    """After 2 of 4 batches, on the batches that were left."""

    def run(*callbacks, ckpt_path=None):
        options = FORMS[form]
        recorder = Recorder()
        own = [] if options is None else [regularizer(**options)]
        trainer = make_trainer(callbacks=[*own, *callbacks, recorder], max_epochs=2)
        trainer.fit(module(), Shuffled(), ckpt_path=ckpt_path)
        return recorder.states

    whole = run(every(tmp_path / "whole", every_n_train_steps=2))
    (path,) = (tmp_path / "whole").glob("*step=2.ckpt")
    resumed = run(ckpt_path=path)
    assert len(resumed) == 6
    for a, b in zip(resumed, whole[2:], strict=True):
        assert all(torch.equal(a[name], b[name]) for name in b)
