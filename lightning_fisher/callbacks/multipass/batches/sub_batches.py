"""The sub-batches of a training batch, as the Trainer's loaders deliver it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer

from lightning_fisher.callbacks.multipass.batches.cutting import split_batch
from lightning_fisher.callbacks.multipass.batches.reading import Reading, batch_size, read_batch
from lightning_fisher.functional.multipass.sub_batches import Part, draw_perturbed, merge_unperturbed, part_sizes

SplitFn = Callable[[Any, int], list[Any]]


class SubBatches(NamedTuple):
    """A batch in parts.

    Attributes:
        pieces: One batch a part.
        parts: Their sizes (of several loaders, in the first one's batch), and whether they are perturbed.
        scale: What makes the penalty of the perturbed ones an estimate of that of all: M / k.
    """

    pieces: list[Any]
    parts: list[Part]
    scale: float


class BatchSplitter:
    """Splits the batches of a fit.

    Args:
        num_sub_batches: M, over all processes together.
        perturbed: k of them, or ``None`` for all.
        split_fn: ``(batch, parts) → list of sub-batches``, or ``None``.

    Attributes:
        largest: Samples of the largest batch so far, by loader: a smaller one is the last of an epoch.
    """

    def __init__(self, num_sub_batches: int, perturbed: int | None = None, split_fn: SplitFn | None = None) -> None:
        self._count, self._perturbed, self._split_fn = num_sub_batches, perturbed, split_fn
        self._readings: dict[str, Reading] = {}
        self.largest: dict[str, int] = {}

    def split(self, trainer: Trainer, batch: Any) -> SubBatches:
        """The sub-batches of a batch on this process.

        Raises:
            ValueError: If it has fewer samples than sub-batches.
            BatchError: If it is ambiguous, or holds an object of a type that can't be cut.
        """
        count = self._count // trainer.world_size
        if self._split_fn is not None:
            pieces = list(self._split_fn(batch, count))
            sizes = [1] * len(pieces)
            with suppress(TypeError):  # a type only `split_fn` knows: equal parts
                sizes = [batch_size(piece) for piece in pieces]
            drawn = self._draw(trainer, len(pieces))
            parts = [Part(*pair) for pair in zip(sizes, drawn, strict=True)]
            return SubBatches(pieces, parts, len(drawn) / sum(drawn))
        units = dict(_units(batch, _loaders(trainer)))
        for place, (unit, expected) in units.items():
            reading = read_batch(unit, expected, self._readings.get(place))
            self._readings[place] = reading
            largest = self.largest[place] = max(self.largest.get(place, 0), reading.size)
            if reading.size < 2 * count and reading.size < largest:
                count = max(1, reading.size // 2)
        samples = min(self._readings[place].size for place in units)
        if samples < count:
            raise ValueError(
                f"Expected argument `num_sub_batches` to be at most the {samples} samples of a batch "
                f"({count} sub-batches on each process), but got {self._count}."
            )
        drawn = self._draw(trainer, count)
        cut: dict[str, list[Any]] = {}
        merged: list[list[Part]] = []
        for place, (unit, _) in units.items():
            reading = self._readings[place]
            merged.append(merge_unperturbed(part_sizes(reading.size, count), drawn))
            cut[place] = split_batch(unit, [part.size for part in merged[-1]], reading)
        parts = merged[0]
        pieces = [_assembled(batch, {place: pieces[i] for place, pieces in cut.items()}) for i in range(len(parts))]
        return SubBatches(pieces, parts, count / sum(drawn))

    def _draw(self, trainer: Trainer, count: int) -> list[bool]:
        """Which sub-batches are perturbed: from the number of the batch and the rank, so that a resumed run agrees."""
        perturbed = None if self._perturbed is None else self._perturbed // trainer.world_size
        generator = torch.Generator()
        batches = trainer.fit_loop.total_batch_idx
        generator.manual_seed(batches * trainer.world_size + trainer.global_rank)
        return draw_perturbed(count, perturbed, generator)


def _loaders(trainer: Trainer) -> Any:
    try:
        return trainer.train_dataloader
    except AttributeError:  # no fit is running
        return None


def _units(batch: Any, loaders: Any, place: str = "") -> list[tuple[str, tuple[Any, int | None]]]:
    """``(place, (batch of one loader, its batch size))``; a batch of another structure than the loaders is one unit."""
    children: list[tuple[Any, Any]] | None = None
    if isinstance(loaders, Mapping) and isinstance(batch, Mapping) and loaders.keys() == batch.keys():
        children = list(loaders.items())
    elif isinstance(loaders, (list, tuple)) and isinstance(batch, (list, tuple)) and len(loaders) == len(batch):
        children = list(enumerate(loaders))
    if children is None:
        size = getattr(loaders, "batch_size", None)
        size = getattr(getattr(loaders, "batch_sampler", None), "batch_size", None) if size is None else size
        return [(place, (batch, size if type(size) is int else None))]
    # A loader that is exhausted gives `None`.
    given = [(key, loader) for key, loader in children if batch[key] is not None]
    return [unit for key, loader in given for unit in _units(batch[key], loader, f"{place}/{key}")]


def _assembled(batch: Any, units: dict[str, Any], place: str = "") -> Any:
    """The structure of the batch with other batches at the places of the loaders."""
    if place in units:
        return units[place]
    if isinstance(batch, Mapping):
        return {key: _assembled(value, units, f"{place}/{key}") for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        values = [_assembled(value, units, f"{place}/{key}") for key, value in enumerate(batch)]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return batch
