"""Rows made up for the tests of the reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_fisher.experiment.records.result import write_row


def row(
    data: str = "cifar10", model: str = "resnet20", reg: str = "none", seed: int = 0, **values: Any
) -> dict[str, Any]:
    config = {key: values.pop(key) for key in list(values) if "." in key}
    overrides = [f"data={data}", f"model={model}", f"reg={reg}", f"seed={seed}"]
    return {
        "format": 1,
        "study": None,
        "choices": {"data": data, "model": model, "reg": reg, "experiment": None},
        "overrides": overrides + [f"{key}={value}" for key, value in config.items()],
        "seed": seed,
        "config_hash": "12345678",
        "test_error": 8.0,
        "train_error": 0.0,
        "train_loss": 0.001,
        "gamma": -1000.0,
        "epochs": 200,
        "stop_reason": "max_epochs",
        "fit_seconds": 60.0,
        "commit": "0123456789abcdef",
        "modified": False,
        "versions": {"torch": "2.6", "lightning": "2.6"},
        "hardware": {"device": "cpu", "devices": 1, "cpu": "Processor"},
        "config": config,
        **values,
    }


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    for number, one in enumerate(rows):
        run = folder / f"run{number:02d}"
        run.mkdir(parents=True)
        write_row(run, one)


def confusion(n: int = 3) -> list[dict[str, Any]]:
    """A scenario in which gamma orders the runs as the test error does, and robustness does the opposite."""
    rows = []
    for size in (0, 1000, 5000):
        for seed in range(n):
            error = 8 + size / 1000 + 0.1 * seed
            rows.append(
                row(
                    seed=seed,
                    test_error=error,
                    gamma=-1000 + 10 * error,
                    robustness=1 / error**3,
                    frobenius_norm=10 ** (error - 10),
                    spectral_radius=0.5,
                    stop_reason="converged",
                    **{"data.confusion_size": size},
                )
            )
    return rows
