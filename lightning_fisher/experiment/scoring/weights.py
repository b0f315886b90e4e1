"""Weights from a file into a network, without executing anything the file holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.config.error_messages import listing

# Where training scripts put a state dict inside what they save.
PLACES = ("state_dict", "model_state_dict", "model", "net", "weights")


def read_checkpoint(file: Path) -> Any:
    """Read a file as ``torch.load(weights_only=True)`` does: tensors and plain values, no code.

    Raises:
        ConfigError: if the file is damaged or holds other objects.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file raises
        foreign = "weights_only" in str(error) or "Unsupported" in str(error)
        why = "it holds Python objects, which are not executed: save a state dict" if foreign else "it cannot be read"
        raise ConfigError(
            f"Expected option `score.checkpoint` to be a file of weights, but got `{file}`: {why} "
            f"({type(error).__name__})."
        ) from error


def state_dict(checkpoint: Any, file: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint: the whole of it, or what lies under one of `PLACES`.

    Raises:
        ConfigError: if there is none.
    """
    candidates = [checkpoint, *(checkpoint.get(place) for place in PLACES)] if isinstance(checkpoint, Mapping) else []
    for candidate in candidates:
        if isinstance(candidate, Mapping) and candidate and all(isinstance(v, Tensor) for v in candidate.values()):
            return {str(name): value for name, value in candidate.items()}
    raise ConfigError(
        f"Expected option `score.checkpoint` to hold a state dict (by itself, or as {listing(PLACES)}), "
        f"but `{file}` holds none."
    )


def select(names: set[str], weights: Mapping[str, Tensor], prefix: str | None) -> dict[str, Tensor]:
    """The weights whose names, a common beginning taken off, are those of a network.

    Args:
        names: of the network's own state dict.
        weights: of the file, which may hold more (a LightningModule around the network, a moving average).
        prefix: the beginning; None tries all that occur, none at all first.

    Raises:
        ConfigError: if no beginning fits, or several do.
    """
    parts = {".".join(name.split(".")[:depth]) + "." for name in weights for depth in range(1, name.count(".") + 1)}
    prefixes = [prefix] if prefix is not None else ["", *sorted(parts, key=lambda p: (len(p), p))]
    fitting = []
    for one in prefixes:
        chosen = {name.removeprefix(one): value for name, value in weights.items() if name.startswith(one)}
        if set(chosen) == names:
            fitting.append((one, chosen))
    if len(fitting) > 1:
        raise ConfigError(
            f"Expected option `score.prefix` to say which weights of the file are meant: "
            f"{listing(one for one, _ in fitting)} fit."
        )
    if not fitting:
        raise ConfigError(_misfit(names, weights, prefix))
    return fitting[0][1]


def _misfit(names: set[str], weights: Mapping[str, Tensor], prefix: str | None) -> str:
    ours, theirs = sorted(names), sorted(name.removeprefix(prefix or "") for name in weights)
    missing = [name for name in ours if not any(name == n or n.endswith(f".{name}") for n in theirs)]
    extra = [name for name in theirs if not any(name == n or name.endswith(f".{n}") for n in ours)]
    lacks = f"lacks {len(missing)} of the network's {len(ours)} ({missing[0]}, …)" if missing else ""
    more = f"has {len(extra)} that the network lacks ({extra[0]}, …)" if extra else ""
    detail = " and ".join(filter(None, (lacks, more))) or "names them differently (score.prefix)"
    return (
        f"Expected the weights of option `score.checkpoint` to be those of the network, but the file {detail}: "
        "name the network with model=... or score.module=... and score.kwargs={...}."
    )


def load(net: nn.Module, checkpoint: Any, file: Path, prefix: str | None) -> None:
    """Load the weights of a checkpoint into a network.

    Args:
        net: the network.
        checkpoint: what `read_checkpoint` gave.
        file: named in messages.
        prefix: see `select`.

    Raises:
        ConfigError: if they are those of another network, or not finite.
    """
    own = net.state_dict()
    chosen = select(set(own), state_dict(checkpoint, file), prefix)
    for name, value in own.items():
        if chosen[name].shape != value.shape:
            raise ConfigError(
                f"Expected the weights of option `score.checkpoint` to be those of the network, but `{name}` is "
                f"{list(value.shape)} in the network and {list(chosen[name].shape)} in `{file}`: "
                "name the network with model=... or score.module=... and score.kwargs={...}."
            )
        if chosen[name].is_floating_point() and not bool(torch.isfinite(chosen[name]).all()):
            raise ConfigError(f"Expected finite weights, but `{name}` in `{file}` has NaN or infinity.")
    net.load_state_dict(chosen)
