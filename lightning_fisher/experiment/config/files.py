"""Refuse a command whose files are missing, before anything is imported to read them."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from lightning_fisher.data.sources.files import require_files, require_sizes
from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.config.error_messages import name_option
from lightning_fisher.experiment.config.score_request import checkpoints, is_scoring, weights_file
from lightning_fisher.experiment.config.validation import check_data


def check_files(cfg: DictConfig) -> None:
    """Check that the checkpoints to score, or the data to train on, are there, and as many as are asked for.

    The images of a network that is scored may be those of its run: what is missing there is found later.

    Args:
        cfg: the composed, checked config.

    Raises:
        ConfigError: in one line.
    """
    if is_scoring(cfg):
        for path in checkpoints(cfg):
            if path is not None:
                weights_file(path, cfg.score.which)
        return
    options = OmegaConf.to_container(cfg.data, resolve=True)
    assert isinstance(options, dict)
    name, given = str(cfg.data.name), {str(key): value for key, value in options.items()}
    try:
        require_files(name, given)
        clean = require_sizes(name, given)
    except (OSError, ValueError) as error:
        raise ConfigError(name_option("data", error)) from error
    if clean is not None:
        check_data(cfg, clean)
