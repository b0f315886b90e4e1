"""Loggers by config, and their proper end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from omegaconf import DictConfig

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.config.error_messages import listing

MODES = ("auto", "online", "offline", "disabled")
SERVER = "https://api.wandb.ai"
SECONDS = 5.0  # that a server has to answer: wandb itself waits for two minutes, and then fails


def has_wandb_key() -> bool:
    """Whether Weights & Biases would find a key: in the environment, or in the netrc file of `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        netrc = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
        return netrc.is_file() and "wandb" in netrc.read_text(errors="ignore")
    except (OSError, RuntimeError):  # no home, or a file that may not be read
        return False


def answers(server: str) -> bool:
    """Whether a server answers at all, through the proxy that the environment names if there is one."""
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(server, timeout=SECONDS).close()
    except urllib.error.HTTPError:  # an answer
        return True
    except (OSError, ValueError):
        return False
    return True


def wandb_mode(mode: str) -> Literal["online", "offline", "disabled"]:
    """Decide the mode of ``wandb.init``; ``"auto"`` is that of ``WANDB_MODE``, or online where there is a key.

    Where the server does not answer, it is offline, and one line says so.

    Raises:
        ConfigError: if ``mode``, or ``WANDB_MODE``, is none of the modes.
    """
    wanted, option = mode, "logger.wandb.mode"
    if mode == "auto" and os.environ.get("WANDB_MODE"):
        wanted, option = os.environ["WANDB_MODE"], "WANDB_MODE"
        wanted = {"dryrun": "offline", "run": "online", "shared": "online"}.get(wanted, wanted)
    if wanted not in MODES:
        raise ConfigError(f"Expected option `{option}` to be {listing(MODES)}, but got `{wanted}`.")
    if wanted == "auto":
        wanted = "online" if has_wandb_key() else "offline"
    server = os.environ.get("WANDB_BASE_URL") or SERVER
    if wanted == "online" and not answers(server):
        print(f"Weights & Biases: {server} does not answer; logging offline (`wandb sync` uploads later).", flush=True)
        wanted = "offline"
    return wanted  # type: ignore[return-value]


class LastingWandbLogger(WandbLogger):
    """Logs offline where the server refuses the run: a training is not lost to its logger."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run of Weights & Biases, made when it is first asked for."""
        import wandb

        try:
            return super().experiment
        except wandb.errors.Error as error:
            if self._offline or self._experiment is not None:
                raise
            reason = " ".join(str(error).split())
            print(f"Weights & Biases: {reason}; logging offline (`wandb sync` uploads later).", flush=True)
            self._offline = True
            self._wandb_init |= {"id": None, "resume": None, "mode": "offline"}
            return super().experiment


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
        mode: ``"auto"``: that of ``WANDB_MODE``, else online where there is a key, else offline; ``"online"``: offline
            only where the server does not answer; ``"offline"``; ``"disabled"``: nothing is written.
        group: the runs of one group are shown together.
        **kwargs: passed to ``wandb.init``.

    Raises:
        ConfigError: if ``mode`` is none of these.
    """
    decided = wandb_mode(mode)
    if decided == "disabled":
        kwargs["mode"] = "disabled"
    # the server joins what has one id
    resume: dict[str, Any] = {"id": run_id, "resume": "allow"} if decided == "online" else {}
    return LastingWandbLogger(
        save_dir=str(save_dir), name=name, group=group or study, offline=decided == "offline", **resume, **kwargs
    )


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
