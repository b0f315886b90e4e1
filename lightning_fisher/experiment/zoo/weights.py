"""The weights of a zoo in one file of arrays, ``weights.npz``: nothing in it is executed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.records.checkpoints import LAST
from lightning_fisher.experiment.records.run_folders import CHECKPOINTS
from lightning_fisher.experiment.scoring.weights import load, read_checkpoint

FILE_NAME = "weights.npz"
STATE = "weights.pt"  # beside a row: its network's state dict


def find_weights(folder: Path, run: Path) -> str | None:
    """Say where the weights of a run are: the file of the zoo, its state dict or checkpoint; None where they are not.

    Args:
        folder: of the zoo.
        run: folder of the run.
    """
    packed = folder / FILE_NAME
    if packed.is_file():
        with np.load(packed, allow_pickle=False) as arrays:
            if any(name.startswith(f"{run.name}/") for name in arrays.files):
                return "file"
    files = {"state dict": run / STATE, "checkpoint": run / CHECKPOINTS / LAST}
    return next((where for where, file in files.items() if file.is_file()), None)


def load_weights(net: nn.Module, folder: Path, run: Path) -> None:
    """Load the weights of a run into its network.

    Args:
        net: as the run's config makes it.
        folder: of the zoo.
        run: folder of the run.

    Raises:
        ConfigError: if there are none, or they don't fit.
    """
    where = find_weights(folder, run)
    if where is None:
        raise ConfigError(
            f"Expected the weights of `{run.name}` in `{folder / FILE_NAME}` or its checkpoint, but there are none: "
            f"train it again with `python -m lightning_fisher.experiment.zoo {folder} --train OUT`."
        )
    if where != "file":
        file = run / STATE if where == "state dict" else run / CHECKPOINTS / LAST
        load(net, read_checkpoint(file), file, None)
        return
    own = net.state_dict()
    with np.load(folder / FILE_NAME, allow_pickle=False) as arrays:
        try:
            found = {name: torch.from_numpy(arrays[f"{run.name}/{name}"]) for name in own}
            net.load_state_dict({name: value.reshape(own[name].shape) for name, value in found.items()})
        except (KeyError, RuntimeError) as error:
            raise ConfigError(
                f"Expected `{folder / FILE_NAME}` to hold the weights of `{run.name}`, but got {error}."
            ) from error


def pack(folder: Path, weights: dict[str, dict[str, Tensor]]) -> Path:
    """Write the weights of all networks into the file of the zoo.

    Args:
        folder: of the zoo.
        weights: state dicts by name of the run.

    Returns:
        The file.
    """
    arrays = {f"{run}/{name}": value.numpy() for run, state in weights.items() for name, value in state.items()}
    path = folder / FILE_NAME
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path
