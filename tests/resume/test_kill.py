"""Killed by SIGKILL anywhere, the same command continues to the numbers of an uninterrupted run, bit for bit.

The network has dropout and batch-norm, data are shuffled, the learning rate drops and the regularizer begins after
two of the four epochs of four steps.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.resume.killing import NOTE, Call, Event
from tests.resume.runs import OPTIONS, assert_same, begin, complete, result, state

STEP = "lightning_fisher.module:ImageClassifier.training_step"
BATCH = "lightning_fisher.callbacks.fisher_regularizer:FisherRegularizer.on_train_batch_start"
BATCH_END = "lightning_fisher.callbacks.fisher_regularizer:FisherRegularizer.on_train_batch_end"
SUBSET = "lightning_fisher.metrics.gram:GramMetric.update"
REPLACE = "lightning_fisher.callbacks.atomic_checkpoint:AtomicCheckpointIO.replace"
LAST, BEST = ".last.ckpt.tmp", ".best.ckpt.tmp"

# Where, and the epoch of the checkpoint that there is by then.
POINTS: dict[str, tuple[Call, int | None]] = {
    "at the drop": (Call(BATCH, 9), 1),
    "in the extra passes": (Call(STEP, 3, batch=10), 1),
    "inside the monitor": (Call(SUBSET, 2, batch=12), 1),
}
MORE_POINTS: dict[str, tuple[Call, int | None]] = {
    "in a plain step": (Call(STEP, 1, batch=6), 0),
    "before the first step": (Call(BATCH, 1), None),
    "in the first epoch": (Call(STEP, 1, batch=3), None),
    "before the last batch before the drop": (Call(BATCH, 8), 0),
    "after the last batch before the drop": (Call(BATCH_END, 8, "after"), 0),
    "in the first regularized step": (Call(STEP, 1, "after", batch=9), 1),
    "after the first regularized step": (Call(BATCH_END, 9, "after"), 1),
    "in the last step": (Call(BATCH_END, 16), 2),
    "in validation": (Call("lightning_fisher.module:ImageClassifier.validation_step", 1, batch=12), 1),
    "inside the first measurement": (Call(SUBSET, 1, "after", batch=4), None),
    "the random state being collected": (
        Call("lightning_fisher.callbacks.random_state:get_random_state", 1, batch=8),
        0,
    ),
    "the first checkpoint half written": (Call("torch:save", 1, "half", only=LAST), None),
    "the best checkpoint half written": (Call("torch:save", 1, "half", only=BEST), None),
    "the last checkpoint half written": (Call("torch:save", 4, "half", only=LAST), 2),
    "between the two renames": (Call(REPLACE, 3, only="last.ckpt"), None),
    "after the renames": (Call(REPLACE, 2, "after", only="last.ckpt"), 1),
    "the curve being written": (Call("lightning_fisher.experiment.training.history:write_atomically", 3), 1),
    "in the final test": (Call("lightning_fisher.module:ImageClassifier.test_step", 2), 3),
    "in the final measurement": (Call(SUBSET, 4, batch=16), 3),
    "before the figure": (Call("lightning_fisher.experiment.training.train:dashboard", 1), 3),
    "before the row": (Call("lightning_fisher.experiment.training.train:write_row", 1), 3),
}


def kill(folder: Path, point: Call | Event) -> str:
    """Run until the point; returns where it was."""
    child = begin(folder, point)
    assert child.wait() == -signal.SIGKILL, child.output
    assert not (folder / "result.json").exists()
    return (folder.parent / NOTE).read_text()


@pytest.mark.parametrize("name", [*POINTS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_POINTS)])
def test_killed_at(name: str, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    point, epoch = {**POINTS, **MORE_POINTS}[name]
    kill(run, point)
    assert (state(run)["epoch"] if (run / "checkpoints" / "last.ckpt").exists() else None) == epoch
    complete(run)
    assert_same(run, whole)
    assert not list(run.rglob(".*.tmp")), "half a file is left"


def test_a_half_written_checkpoint_leaves_the_one_before_whole(whole: Path, tmp_path: Path) -> None:
    """And the run continues from it instead of beginning again."""
    run = tmp_path / "run"
    kill(run, Call("torch:save", 3, "half", only=LAST))
    assert state(run)["epoch"] == 1
    assert state(run, "previous.ckpt")["epoch"] == 0
    assert (run / "checkpoints" / LAST).stat().st_size > 0
    output = complete(run)
    assert "continuing from" in output
    assert "epoch   1/4" not in output
    assert_same(run, whole)


@pytest.mark.slow
def test_killed_in_float64(tmp_path: Path) -> None:
    """Lightning loads a checkpoint into float32 weights before it makes them float64."""
    options = [*OPTIONS, "trainer.precision=64-true"]
    complete(tmp_path / "whole", options)
    child = begin(tmp_path / "run", Call(STEP, 3, batch=10), options)
    assert child.wait() == -signal.SIGKILL, child.output
    complete(tmp_path / "run", options)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_the_last_checkpoint_knows_the_best(whole: Path) -> None:
    """Otherwise a run that continues from it keeps a worse checkpoint as the best, or none of the epoch before."""
    states = state(whole)["callbacks"]
    (best,) = [value["best_model_score"] for key, value in states.items() if "val_error" in key]
    assert best == min(float(record["val_error"]) for record in result(whole)["history"])


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_folder_with_another_path_knows_the_best_too(how: str, whole: Path, tmp_path: Path) -> None:
    """Lightning's own callback takes the next epoch for the best one then, however bad it is."""
    begun, run = tmp_path / "begun", tmp_path / "elsewhere" / "run"
    kill(begun, Call(STEP, 3, batch=10))
    last = begun / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    (key,) = [key for key in content["callbacks"] if "val_error" in key]
    assert content["callbacks"][key]["best_model_score"] > 0
    best = content["callbacks"][key]
    best["best_model_score"] = best["kth_value"] = torch.tensor(-1.0)  # no later epoch is better
    best["best_k_models"] = dict.fromkeys(best["best_k_models"], torch.tensor(-1.0))
    torch.save(content, last)
    was = state(begun, "best.ckpt")
    run.parent.mkdir()
    shutil.move(begun, run) if how == "moved" else shutil.copytree(begun, run)
    complete(run)
    assert state(run)["callbacks"][key]["best_model_path"] == str(run / "checkpoints" / "best.ckpt")
    assert state(run, "best.ckpt")["epoch"] == was["epoch"] < state(run)["epoch"]
    assert result(run) == result(whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(16))
def test_killed_at_a_random_event(seed: int, whole: Path, events: int, tmp_path: Path) -> None:
    """Anywhere in fit and test: in a step, in torch's writer, between two system calls."""
    run = tmp_path / "run"
    print(kill(run, Event(random.Random(seed).randrange(1, events))))
    complete(run)
    assert_same(run, whole)


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many events a whole run has."""
    folder = tmp_path_factory.mktemp("events")
    child = begin(folder / "run", Event(0))
    assert child.wait() == 0, child.output
    return int((folder / "events.txt").read_text())


@pytest.mark.slow
def test_killed_again_and_again(whole: Path, events: int, tmp_path: Path) -> None:
    """Every continued run is killed too, five times, at ever later events."""
    draw, run, kills = random.Random(0), tmp_path / "run", 0
    for _ in range(5):
        child = begin(run, Event(draw.randrange(events // 3, events // 2)))
        kills += child.wait() == -signal.SIGKILL
    assert kills >= 2
    complete(run)
    assert_same(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize("after", ["epoch   1/4", "regularized phase begins", "epoch   3/4", "measuring the finished"])
def test_killed_by_the_clock(after: str, whole: Path, tmp_path: Path) -> None:
    """From outside, a random moment after a line of the output."""
    run = tmp_path / "run"
    child = begin(run)
    child.wait_for(after)
    time.sleep(random.Random(after).uniform(0, 0.2))
    child.send(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    complete(run)
    assert_same(run, whole)


@pytest.mark.slow
def test_the_comparison_can_fail(whole: Path, tmp_path: Path) -> None:
    """Without the random state a continued run is another one."""
    import torch

    run = tmp_path / "run"
    kill(run, Call(BATCH, 9))
    checkpoint = state(run)
    del checkpoint["lightning_fisher.random_state"]
    torch.save(checkpoint, run / "checkpoints" / "last.ckpt")
    complete(run)
    with pytest.raises(AssertionError):
        assert_same(run, whole)
