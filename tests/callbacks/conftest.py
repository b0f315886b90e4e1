"""Fixtures of the callback tests: a quiet CPU trainer, a recorder, a run."""

from __future__ import annotations

import random
import signal

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers.logger import Logger

from tests.callbacks.tiny import loader
from tests.reference.regularized_training import snapshot


class Recorder(Callback):
    """What a run did, batch by batch: LRs, step counter, weights and buffers, outputs, logged values."""

    def __init__(self):
        self.lrs, self.global_steps, self.states, self.outputs = [], [], [], []
        self.step_metrics, self.epoch_metrics = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.lrs.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.global_steps.append(trainer.global_step)
        self.states.append(snapshot(pl_module))
        self.outputs.append(outputs)
        self.step_metrics.append(_values(trainer.callback_metrics))

    def on_train_epoch_end(self, trainer, pl_module):
        self.epoch_metrics.append(_values(trainer.callback_metrics))

    def on_fit_end(self, trainer, pl_module):
        self.optimizer_state = [p.get("momentum_buffer") for p in trainer.optimizers[0].state.values()]


def _values(metrics):
    """The module's own logged values, not this package's."""
    return {key: value.item() for key, value in metrics.items() if not key.startswith(("fisher/", "gamma"))}


class MemoryLogger(Logger):
    """Keeps what it is given: ``rows[step]`` is everything logged at that step."""

    def __init__(self):
        super().__init__()
        self.rows = {}

    name = "memory"
    version = 0

    def log_hyperparams(self, params):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows.setdefault(step, {}).update(metrics)

    def series(self, key):
        """``{step: value}`` of one key."""
        return {step: row[key] for step, row in self.rows.items() if key in row}


@pytest.fixture
def memory_logger():
    return MemoryLogger()


@pytest.fixture
def make_trainer(tmp_path):
    """A function of Trainer's arguments with quiet, single-process CPU defaults."""

    def make(**options):
        callbacks = options.get("callbacks") or []
        quiet = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
            "default_root_dir": tmp_path,
            "log_every_n_steps": 1,
            "max_epochs": 1,
        }
        return Trainer(**quiet | options)

    return make


@pytest.fixture
def fit(make_trainer):
    """``fit(module, batches, *callbacks, **trainer_options)`` trains; a Recorder with ``.trainer`` comes back."""

    def run(module, batches, *callbacks, ckpt_path=None, val_dataloaders=None, **options):
        recorder = Recorder()
        recorder.trainer = make_trainer(callbacks=[*callbacks, recorder], **options)
        recorder.trainer.fit(module, loader(batches), val_dataloaders=val_dataloaders, ckpt_path=ckpt_path)
        return recorder

    return run


@pytest.fixture(autouse=True)
def _seeded_beyond_torch():
    """Python's and numpy's random states, next to torch's (seeded for all tests)."""
    random.seed(0)
    np.random.seed(0)


@pytest.fixture
def interruptible():
    """Lightning ignores SIGINT for good after a KeyboardInterrupt: give the handler back."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def _assert_same_states(got, expected):
    assert len(got) == len(expected)
    for batch, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name], b[name]), f"`{name}` differs after batch {batch}"


@pytest.fixture
def assert_identical():
    """Two recorded runs agree bit for bit, in everything recorded."""

    def check(got, expected):
        _assert_same_states(got.states, expected.states)
        for a, b in zip(got.optimizer_state, expected.optimizer_state, strict=True):
            assert torch.equal(a, b)
        assert got.lrs == expected.lrs
        assert got.global_steps == expected.global_steps
        assert got.trainer.current_epoch == expected.trainer.current_epoch
        assert len(got.outputs) == len(expected.outputs)
        for a, b in zip(got.outputs, expected.outputs, strict=True):
            assert a.keys() == b.keys()  # empty where a batch was skipped
            assert "loss" not in b or torch.equal(a["loss"], b["loss"])
        assert got.step_metrics == expected.step_metrics
        assert got.epoch_metrics == expected.epoch_metrics

    return check


@pytest.fixture
def assert_close_states():
    """States of ``module.net`` equal an oracle's to ``tolerance`` of each tensor's largest entry."""

    def check(states, expected, tolerance=1e-12):
        assert len(states) == len(expected)
        for batch, (got, want) in enumerate(zip(states, expected, strict=True)):
            assert {f"net.{name}" for name in want} == set(got)
            for name, b in want.items():
                a = got[f"net.{name}"].to(b.dtype)
                error = (a - b).abs().max() / b.abs().max().clamp_min(1e-30)
                assert error <= tolerance, f"`{name}` off by {error:.1e} after batch {batch}"

    return check
