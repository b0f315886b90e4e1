"""Where the penalty has no number it is left out, counted and told."""

from __future__ import annotations

import math
import warnings

import pytest

from tests.callbacks.numbers_loop import FORMS, WARNING, Cliff, batches, cliff, loop, regularizer, without_u
from tests.callbacks.tiny import seeded


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
