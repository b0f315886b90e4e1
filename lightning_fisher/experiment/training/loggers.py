"""Loggers by config, and their proper end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.config.error_messages import listing

MODES = ("auto", "online", "offline")


def has_wandb_key() -> bool:
    """Whether Weights & Biases would find a key: in the environment, or in the netrc file of `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return netrc.is_file() and "wandb" in netrc.read_text(errors="ignore")


def wandb_mode(mode: str) -> Literal["online", "offline"]:
    """Decide the mode of ``wandb.init``; ``"auto"`` is online where there is a key.

    Raises:
        ConfigError: if ``mode`` is none of the three.
    """
    if mode not in MODES:
        raise ConfigError(f"Expected option `logger.wandb.mode` to be {listing(MODES)}, but got `{mode}`.")
    return "offline" if mode == "offline" or (mode == "auto" and not has_wandb_key()) else "online"


def wandb_logger(
    *,
    save_dir: Path,
    study: str | None,
    run_id: str,
    name: str,
    mode: str = "auto",
    group: str | None = None,
    **kwargs: Any,
) -> WandbLogger:
    """Make a Weights & Biases logger.

    Args:
        save_dir: the run folder.
        study: name of the study, the default of ``group``.
        run_id: the same for the same run, so that a resumed run continues its own curve.
        name: what the run is called.
        mode: ``"auto"``: online where there is a key, else offline; ``"online"``; ``"offline"``.
        group: the runs of one group are shown together.
        **kwargs: passed to ``wandb.init``.

    Raises:
        ConfigError: if ``mode`` is none of the three.
    """
    offline = wandb_mode(mode) == "offline"
    resume: dict[str, Any] = {} if offline else {"id": run_id, "resume": "allow"}  # the server joins what has one id
    return WandbLogger(save_dir=str(save_dir), name=name, group=group or study, offline=offline, **resume, **kwargs)


def make_loggers(nodes: DictConfig, folder: Path, study: str | None, config_hash: str) -> list[Logger]:
    """Instantiate the loggers of ``conf/logger``, each writing into the run folder."""
    loggers = []
    for node in nodes.values():
        extra: dict[str, Any] = {"save_dir": str(folder)}
        if str(node.get("_target_", "")).endswith("wandb_logger"):
            extra |= {"study": study, "run_id": config_hash, "name": folder.name}
        loggers.append(instantiate(node, **extra))
    return loggers


def finish(loggers: list[Logger], summary: dict[str, Any], figures: list[Path]) -> None:
    """Hand the result to the loggers that show one, and close them.

    Args:
        loggers: the loggers of a run.
        summary: the scalars of the row.
        figures: images to upload.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            logger.experiment.summary.update(summary)
            logger.log_image("figures", [str(path) for path in figures])
            wandb.finish()  # otherwise the next run of this process would go on in this one
        else:
            logger.finalize("success")
