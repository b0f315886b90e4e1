"""What stands in for an object that an extra pass must not use: iterators, files, loggers."""

from __future__ import annotations

import io
from typing import Any

from lightning.pytorch.loggers.logger import DummyLogger, Logger

from lightning_fisher.exceptions import LightningFisherError, acting

_LOGGERS = ("wandb", "mlflow", "neptune", "comet_ml", "aim", "swanlab", "clearml")


class LostStateError(LightningFisherError, ValueError):
    """`training_step` changes something that can't be put back after an extra pass."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(
            f"{acting()} runs `training_step` several times a batch, but it {what}, which can't be put back; {remedy}."
        )


def stand_in(value: Any, name: str) -> Any | None:
    """What is in the place of ``value`` during an extra pass; ``None``: ``value`` itself may stay."""
    if isinstance(value, io.IOBase):
        return _File(value, name)
    if isinstance(value, Logger):
        return DummyLogger()
    if type(value).__module__ == "_csv" and hasattr(value, "writerow"):
        return Mute()
    if hasattr(type(value), "add_scalar") or type(value).__module__.split(".")[0] in _LOGGERS:
        return Mute()
    if hasattr(type(value), "__next__"):
        return _Iterator(value, name)
    return None


class Mute:
    """Takes every call, index and attribute, and does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Nothing."""
        return self

    def __getitem__(self, key: Any) -> Any:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _Iterator:
    """Refuses to give the next item."""

    def __init__(self, value: Any, name: str) -> None:
        self._value, self._name = value, name

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        raise LostStateError(
            f"takes items from the iterator {self._name!r}",
            "give them with the batch (`CombinedLoader`, a dict of loaders)",
        )

    def send(self, value: Any) -> Any:
        """Of a generator: an item, too."""
        return next(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._value, name)


class _File:
    """Writes nothing, and refuses to read."""

    def __init__(self, value: Any, name: str) -> None:
        self._value, self._name = value, name

    def write(self, text: Any) -> int:
        """Nothing."""
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("read", "seek", "truncate", "__")):
            raise LostStateError(f"reads or moves in the file {self._name!r}", "do that in `on_train_batch_start`")
        return getattr(self._value, name)
