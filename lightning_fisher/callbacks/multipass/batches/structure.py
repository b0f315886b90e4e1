"""What a batch is made of: its containers, and the arrays and lists in them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_fisher.exceptions import LightningFisherError

Path = tuple[Any, ...]


class BatchError(LightningFisherError, TypeError):
    """A batch that can't be split without being told how."""


def children_of(item: Any) -> Iterator[tuple[Any, Any]]:
    """``(key, child)`` of a container."""
    if isinstance(item, Mapping):
        yield from item.items()
    elif isinstance(item, (list, tuple)) and not isinstance(item, torch.Size):
        yield from enumerate(item)
    elif dataclasses.is_dataclass(item) and not isinstance(item, type):
        yield from ((field.name, getattr(item, field.name)) for field in dataclasses.fields(item))
    elif is_attrs(item):
        yield from ((field.name, getattr(item, field.name)) for field in type(item).__attrs_attrs__)


def is_attrs(item: Any) -> bool:
    """An object of a class of attrs, told by its interface: not a dependency."""
    return hasattr(type(item), "__attrs_attrs__")


def is_graphs(item: Any) -> bool:
    """A batch of graphs of torch_geometric, told by its interface: not a dependency."""
    return hasattr(item, "num_graphs") and hasattr(item, "to_data_list") and hasattr(item, "from_data_list")


def is_array(item: Any) -> bool:
    """Whether it is a tensor or one of numpy's arrays."""
    numpy = sys.modules.get("numpy")  # not a dependency
    return isinstance(item, Tensor) or (numpy is not None and isinstance(item, numpy.ndarray))


def shape_of(item: Any) -> tuple[int, ...] | None:
    """The shape of what has a row for each sample, by its first size; ``None`` for a container or a scalar."""
    if isinstance(item, PackedSequence):
        return (int(item.batch_sizes[0]),)
    if isinstance(item, Tensor) and item.is_nested:
        return (item.size(0),)
    if is_graphs(item):
        return (item.num_graphs,)
    return tuple(item.shape) or None if is_array(item) else None


def arrays_in(item: Any, path: Path = (), lists: bool = True) -> Iterator[tuple[Path, tuple[int, ...]]]:
    """``(place, shape)`` of the arrays, inside of lists too or not."""
    shape = shape_of(item)
    if shape is not None:
        yield path, shape
    elif not is_array(item) and not is_graphs(item) and (lists or not isinstance(item, list)):
        for key, child in children_of(item):
            yield from arrays_in(child, (*path, key), lists)


def is_list(item: Any, top: bool) -> bool:
    """Whether an item may be a list of samples: a tuple may be one inside another container."""
    if isinstance(item, list):
        return bool(item)
    return type(item) is tuple and bool(item) and not top


def outermost_lists(item: Any, top: bool = True) -> Iterator[Any]:
    """Lists that are not inside of others."""
    if shape_of(item) is None:
        if is_list(item, top):
            yield item
        else:
            for _, child in children_of(item):
                yield from outermost_lists(child, False)


def tensors_in(item: Any) -> Iterator[Tensor]:
    """All tensors."""
    if isinstance(item, Tensor):
        yield item
    else:
        for _, child in children_of(item):
            yield from tensors_in(child)


def cannot_be_cut(item: Any) -> str:
    """The line for an object of a type that isn't known."""
    return (
        f"Expected a batch of tensors, lists of samples, tuples, mappings or dataclasses, but got "
        f"{type(item).__module__}.{type(item).__qualname__}, which can't be split into sub-batches; give `split_fn`."
    )
