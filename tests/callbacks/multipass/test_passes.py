"""`passes` beside its numbers (`test_regularizer_forms.py`): what a step may do, and what "auto" decides."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torchmetrics import Accuracy

from lightning_fisher import FisherRegularizer
from lightning_fisher.callbacks.multipass import pass_choice
from lightning_fisher.callbacks.multipass.batches.cutting import fresh
from tests.callbacks.tiny import Classifier, Ledger, image_batches, mlp, seeded
from tests.functional.snapshot import changes, snapshot

BATCHES = image_batches([16] * 5)


class Logs(Classifier):
    """Logs in every way, counts its calls and changes its batch."""

    def __init__(self, net):
        super().__init__(net)
        self.calls, self.outputs = 0, []

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = torch.nn.functional.cross_entropy(self.net(x.mul_(0.5)), y)
        self.calls += 1
        self.outputs.append(loss.detach())
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log_dict({"twice": 2 * loss})
        return {"loss": loss, "logits": x}


def test_what_the_step_logs_keeps_and_changes(fit, memory_logger):
    """As in the loop: only the training pass counts."""
    rows = {}
    for passes in ("loop", "vmap"):
        module = Logs(seeded(mlp))
        memory_logger.rows = {}
        regularizer = FisherRegularizer(3.0, num_sub_batches=4, start=0, passes=passes)
        batches = [(x.clone(), y) for x, y in BATCHES]
        fit(module, batches, regularizer, logger=memory_logger, precision="64-true")
        assert module.calls == len(BATCHES)
        assert [type(value) for value in module.outputs] == [torch.Tensor] * len(BATCHES)
        assert not any(torch._C._functorch.is_functorch_wrapped_tensor(value) for value in module.outputs)
        rows[passes] = memory_logger.rows
    assert rows["loop"].keys() == rows["vmap"].keys()
    for step, row in rows["loop"].items():
        assert row == pytest.approx(rows["vmap"][step], rel=1e-7)


def test_auto_decides_at_the_switch_and_stays(fit, monkeypatch, capsys):
    monkeypatch.setattr(pass_choice, "tries", lambda device: True)
    monkeypatch.setattr(pass_choice, "timed", lambda form, device: (form(), float("loop" in repr(form)))[1])
    module = Classifier(seeded(mlp))
    calls = Ledger()
    step = module.training_step
    module.training_step = lambda batch, batch_idx: calls.append(len(batch[1])) or step(batch, batch_idx)
    regularizer = FisherRegularizer(5.0, num_sub_batches=4, start="step:2", passes="auto")
    assert regularizer.passes_chosen is None
    fit(module, [*BATCHES, *BATCHES], regularizer)
    assert regularizer.passes_chosen == "vmap"
    plain_and_rehearsal = [16, *[4] * 8, 16]
    regularized = [*[4] * 8, 16]
    compared = [4, 4]  # with ordinary passes, the first time
    deciding = [*[4] * 8, 4, 4, *compared, *[*[4] * 8, 4, 4] * pass_choice.ROUNDS, 16]
    assert calls == [*plain_and_rehearsal, *regularized * 2, *deciding, *[4, 4, 16] * 5]
    assert capsys.readouterr().out.count("sub-batches are evaluated by vmap (loop 1000.0 ms, vmap 0.0 ms)") == 1


def test_a_resumed_fit_goes_on_with_the_same(fit, tmp_path):
    first = FisherRegularizer(5.0, num_sub_batches=4, start=0, passes="auto")
    first._step.choice.chosen = "vmap"
    second = FisherRegularizer(5.0, num_sub_batches=4, start=0, passes="auto")
    second.load_state_dict(first.state_dict())
    assert second.passes_chosen == "vmap"
    given = FisherRegularizer(5.0, num_sub_batches=4, start=0, passes="loop")
    given.load_state_dict(first.state_dict())
    assert given.passes_chosen == "loop"
    undecided = FisherRegularizer(5.0, num_sub_batches=4, start=0, passes="auto")
    undecided.load_state_dict(given.state_dict())
    assert undecided.passes_chosen is None
    old = {key: value for key, value in first.state_dict().items() if key != "passes_chosen"}
    third = FisherRegularizer(5.0, num_sub_batches=4, start=0, passes="auto")
    third.load_state_dict(old)
    assert third.passes_chosen is None


class Measures(Classifier):
    """A torchmetrics metric in the step."""

    def __init__(self, net):
        super().__init__(net)
        self.accuracy = Accuracy("multiclass", num_classes=3)

    def training_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        self.accuracy.update(logits, batch[1])
        return torch.nn.functional.cross_entropy(logits, batch[1])


def test_metrics_in_the_step_see_the_training_pass_only(fit):
    found = {}
    for passes in ("loop", "vmap"):
        module = Measures(seeded(mlp))
        fit(module, BATCHES, FisherRegularizer(5.0, num_sub_batches=4, start=0, passes=passes), precision="64-true")
        assert module.accuracy.update_count == len(BATCHES)
        found[passes] = module.accuracy.compute()
    assert found["loop"] == found["vmap"]


class Reads(Classifier):
    """Asks for a number in the step, which vmap can't do."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.last = loss.item()
        return loss


def test_a_step_that_vmap_cannot_do_is_refused_in_the_second_batch(fit):
    """Not epochs later at the switch."""
    module = Reads(seeded(mlp))
    regularizer = FisherRegularizer(5.0, num_sub_batches=4, start=10, passes="vmap")
    with pytest.raises(ValueError, match=r'`passes="vmap"`') as caught:
        fit(module, BATCHES, regularizer)
    assert "\n" not in str(caught.value)
    assert module.trainer.global_step == 1


def test_auto_takes_the_loop_there(fit, monkeypatch):
    monkeypatch.setattr(pass_choice, "tries", lambda device: True)
    module, plain = Reads(seeded(mlp)), Reads(seeded(mlp))
    regularizer = FisherRegularizer(5.0, num_sub_batches=4, start=0, passes="auto")
    fit(module, BATCHES, regularizer)
    fit(plain, BATCHES, FisherRegularizer(5.0, num_sub_batches=4, start=0, passes="loop"))
    assert regularizer.passes_chosen == "loop"
    assert changes(snapshot_of(module), snapshot_of(plain)) == []


def snapshot_of(module):
    return {key: value for key, value in snapshot(module).items() if key.endswith((": value",)) or "random" in key}


def test_only_forms_there_are():
    with pytest.raises(ValueError, match=r"`passes` to be one of \('auto', 'loop', 'vmap'\), but got 'both'"):
        FisherRegularizer(passes="both")
    with pytest.raises(ValueError, match=r'`passes`.*`gradient="shared"`'):
        FisherRegularizer(passes="vmap", gradient="shared")


@dataclasses.dataclass
class Record:
    x: torch.Tensor
    y: torch.Tensor


def test_the_default_is_the_loop():
    assert FisherRegularizer().passes_chosen == "loop"


def test_a_copy_of_a_part_holds_the_part_only():
    whole = torch.randn(64, 3)
    part = fresh(Record(whole[:4], torch.zeros(4)))
    assert torch.equal(part.x, whole[:4])
    assert part.x.untyped_storage().nbytes() == 4 * 3 * 4


def test_a_new_fit_decides_anew(fit):
    regularizer = FisherRegularizer(5.0, num_sub_batches=4, start=10, passes="auto")
    regularizer._step.choice.chosen = "vmap"
    fit(Classifier(seeded(mlp)), BATCHES, regularizer)
    assert regularizer.passes_chosen is None
