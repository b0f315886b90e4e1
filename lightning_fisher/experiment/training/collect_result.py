"""Make the row of a finished run."""

from __future__ import annotations

from datetime import datetime, timezone
from statistics import median
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_fisher.experiment.config.config_hash import flat_config
from lightning_fisher.experiment.config.job import Job
from lightning_fisher.experiment.records import provenance
from lightning_fisher.experiment.training.build import Run

QUANTITIES = ("loss", "error", "error_top5")


def errors(run: Run) -> dict[str, float]:
    """Loss (nats) and errors (per cent) of the finished network.

    ``train_*`` are those of the un-augmented training images in evaluation mode, ``train_epoch_*`` the means over
    the last epoch's batches as they were trained on.
    """
    logged = {key: float(value) for key, value in run.trainer.callback_metrics.items()}
    last = run.history.records[-1] if run.history.records else {}
    found = {f"train_{q}": logged.get(f"train_eval_{q}") for q in QUANTITIES}
    found |= {f"test_{q}": logged.get(f"test_{q}") for q in QUANTITIES}
    found["test_calibration_error"] = logged.get("test_calibration_error")
    found |= {f"val_{q}": last.get(f"val_{q}") for q in QUANTITIES}
    found |= {f"train_epoch_{q}": last.get(f"train_{q}") for q in QUANTITIES}
    return {key: value for key, value in found.items() if value is not None}


def stop_reason(run: Run) -> str:
    """Why the training ended: ``converged``, ``max_epochs``, ``max_steps`` or ``stopped``."""
    trainer = run.trainer
    if run.stop is not None and run.stop.converged:
        return "converged"
    if trainer.max_epochs is not None and 0 < trainer.max_epochs <= len(run.history.records):
        return "max_epochs"
    if 0 < trainer.max_steps <= trainer.fit_loop.epoch_loop.global_step:
        return "max_steps"
    return "stopped"


def step_milliseconds(run: Run) -> dict[str, float]:
    """Median time of a training step over the epochs of each phase, in ms; the first epoch of a phase warms up."""
    times = {}
    for name, flag in (("plain", 0), ("regularized", 1)):
        epochs = [r["step_ms"] for r in run.history.records if r["regularized"] == flag and "step_ms" in r]
        if epochs:
            times[f"step_ms_{name}"] = median(epochs[1:] or epochs)
    return times


def times(run: Run) -> dict[str, float]:
    """Seconds of the fit (interruptions not counted), of an epoch (mean), of the metrics."""
    seconds = [record["seconds"] for record in run.history.records]
    return {
        "fit_seconds": sum(seconds),
        "seconds_per_epoch": sum(seconds) / max(1, len(seconds)),
        "metric_seconds": run.measurement.seconds if run.measurement is not None else 0.0,
        "monitor_seconds": run.monitor.seconds if run.monitor is not None else 0.0,
        "test_seconds": run.history.test_seconds,
        **step_milliseconds(run),
    }


def make_row(job: Job, run: Run) -> dict[str, Any]:
    """Collect everything a report may ask about a run.

    Args:
        job: what was asked for.
        run: the finished run.
    """
    cfg = job.cfg
    device = run.trainer.strategy.root_device
    regularizer = run.regularizer
    study = flat_study(cfg)
    return {
        "study": study,
        "choices": job.choices,
        "overrides": job.overrides,
        "seed": cfg.seed,
        "config_hash": job.config_hash,
        **errors(run),
        **(run.measurement.values if run.measurement is not None else {}),
        **_measure_seconds(run),
        "epochs": len(run.history.records),
        "steps": run.history.records[-1]["step"] if run.history.records else 0,
        "max_epochs": run.trainer.max_epochs,
        "stop_reason": stop_reason(run),
        "plateaus": run.stop.plateaus_seen if run.stop is not None else None,
        "switch_epoch": getattr(regularizer, "switch_epoch", None),
        "switch_step": getattr(regularizer, "switch_step", None),
        "parameters": sum(p.numel() for p in run.module.net.parameters() if p.requires_grad),
        "training_samples": len(run.datamodule.train_set),
        **times(run),
        "peak_memory_mib": provenance.peak_memory_mib(device),
        "versions": provenance.versions(),
        **provenance.git_commit(),
        "hardware": provenance.hardware(device, run.trainer.world_size),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config": flat_config(cfg),
    }


def _measure_seconds(run: Run) -> dict[str, dict[str, float]]:
    found = run.measurement.measure_seconds if run.measurement is not None else {}
    return {"measure_seconds": found} if found else {}


def flat_study(cfg: DictConfig) -> dict[str, Any] | None:
    """The study a run belongs to, as plain values; None outside a study."""
    container = OmegaConf.to_container(cfg.study, resolve=True) if cfg.study is not None else None
    return container if isinstance(container, dict) else None  # type: ignore[return-value]
