from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lightning_fisher.callbacks.convergence import StopAtConvergence


def follow(callback: StopAtConvergence, rates: list[float], errors: list[float]) -> int | None:
    """The epoch (counted from 0) at whose end the callback stops, None if it does not."""
    for epoch, (rate, error) in enumerate(zip(rates, errors, strict=True)):
        trainer: Any = SimpleNamespace(
            optimizers=[SimpleNamespace(param_groups=[{"lr": rate}])],
            callback_metrics={"train_error": error},
            should_stop=False,
        )
        callback.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
        if trainer.should_stop:
            return epoch
    return None


RATES = [1.0, 1.0, 0.1, 0.1, 0.01, 0.01, 0.001]


@pytest.mark.parametrize(
    ("plateaus", "max_error", "errors", "expected"),
    [
        (2, 0.0, [0.0] * 7, 4),
        (1, 0.0, [0.0] * 7, 2),
        (3, 0.0, [0.0] * 7, 6),
        (4, 0.0, [0.0] * 7, None),
        (2, 0.0, [9, 9, 5, 3, 1, 0.0, 0.0], 5),
        (2, 1.0, [9, 9, 5, 3, 1, 0.0, 0.0], 4),
        (2, 0.0, [0.1] * 7, None),
    ],
)
def test_stops_after_the_plateaus_when_the_training_set_is_fitted(
    plateaus: int, max_error: float, errors: list[float], expected: int | None
) -> None:
    callback = StopAtConvergence(plateaus=plateaus, max_error=max_error)
    assert follow(callback, RATES, errors) == expected
    assert callback.converged == (expected is not None)


def test_state_survives() -> None:
    callback = StopAtConvergence()
    assert follow(callback, RATES[:3], [0.0] * 3) is None
    resumed = StopAtConvergence()
    resumed.load_state_dict(callback.state_dict())
    assert follow(resumed, RATES[3:], [0.0] * 4) == 1


@pytest.mark.parametrize(
    ("name", "value"), [("plateaus", 0), ("plateaus", True), ("max_error", -1.0), ("max_error", 100.0)]
)
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"Expected argument `{name}`"):
        StopAtConvergence(**{name: value})


def test_unknown_monitor_names_what_is_logged() -> None:
    trainer: Any = SimpleNamespace(
        optimizers=[SimpleNamespace(param_groups=[{"lr": 1.0}])], callback_metrics={"loss": 1.0}, should_stop=False
    )
    with pytest.raises(ValueError, match=r"`monitor`.*'loss'.*'train_error'"):
        StopAtConvergence().on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
