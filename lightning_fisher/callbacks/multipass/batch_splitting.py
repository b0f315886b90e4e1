"""Split a batch of any common structure into sub-batches."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

_WHOLE = (str, bytes, int, float, complex, type(None))


def _is_graphs(item: Any) -> bool:
    """A batch of graphs of torch_geometric, told by its interface: not a dependency."""
    return hasattr(item, "num_graphs") and hasattr(item, "to_data_list") and hasattr(item, "from_data_list")


def batch_size(batch: Any) -> int:
    """Number of samples in a batch.

    The first size that most tensors share; where all tensors are in lists of samples (object detection), the
    length that most lists share. A batch that is a list is a container like a tuple if its items share a first size
    that is no smaller than the list, or differ in type or shape; a list of samples otherwise.

    Args:
        batch: Tensors, packed sequences, torch_geometric's batches of graphs, and lists of samples in tuples, lists,
            mappings and dataclasses.

    Returns:
        The number of samples.

    Raises:
        TypeError: If none can be found.
    """
    votes = Counter(_votes(batch, top=True))
    if not votes:
        raise TypeError(_cannot(batch))
    strongest = max(weight for weight, _ in votes)
    return next(size for (weight, size), _ in votes.most_common() if weight == strongest)


def split_batch(batch: Any, sizes: list[int]) -> list[Any]:
    """Consecutive sub-batches.

    Tensors whose first size is the batch's, lists of as many samples, packed sequences and batches of graphs are cut;
    anything else (class weights, numbers, strings) goes whole into every part.

    Args:
        batch: See `batch_size`.
        sizes: Samples in each part; they add up to the batch's.

    Returns:
        One batch of the same structure a part.

    Raises:
        TypeError: If the batch holds an object of a type that can't be cut.
    """
    count, start, parts = sum(sizes), 0, []
    in_lists = all(weight == 1 for weight, _ in _votes(batch, top=True))
    for size in sizes:
        parts.append(_take(batch, slice(start, start + size), count, in_lists, top=True))
        start += size
    return parts


def fresh(batch: Any) -> Any:
    """A copy that a `training_step` may change; of tensors that are part of a larger batch, their part only."""
    return copy.deepcopy(batch, {id(tensor): tensor.clone() for tensor in _tensors(batch)})


def _tensors(item: Any) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    else:
        for child in _children(item):
            yield from _tensors(child)


def _children(item: Any) -> Iterator[Any]:
    if isinstance(item, Mapping):
        yield from item.values()
    elif isinstance(item, (list, tuple)):
        yield from item
    elif dataclasses.is_dataclass(item) and not isinstance(item, type):
        yield from (getattr(item, field.name) for field in dataclasses.fields(item))


def _sizes(item: Any) -> Iterator[int]:
    if isinstance(item, PackedSequence):
        yield int(item.batch_sizes[0])
    elif _is_graphs(item):
        yield item.num_graphs
    elif isinstance(item, Tensor):
        if item.ndim:
            yield item.shape[0]
    else:
        for child in _children(item):
            yield from _sizes(child)


def _votes(item: Any, top: bool = False) -> Iterator[tuple[int, int]]:
    """``(weight, size)``: 2 for what a tensor outside of lists says, 1 for the length of a list."""
    if isinstance(item, PackedSequence):
        yield 2, int(item.batch_sizes[0])
    elif _is_graphs(item):
        yield 2, item.num_graphs
    elif isinstance(item, Tensor):
        if item.ndim:
            yield 2, item.shape[0]
    elif isinstance(item, list) and item and not (top and _is_container(item)):
        yield 1, len(item)
    else:
        for child in _children(item):
            yield from _votes(child)


def _is_container(items: list[Any]) -> bool:
    """Whether a whole batch that is a list holds the batch's parts (inputs, targets) instead of its samples.

    It does if its items share a first size that is no smaller than the list, or differ in type or shape.
    """
    shared = set.intersection(*(set(_sizes(item)) for item in items))
    if any(size >= len(items) for size in shared):
        return True
    return len({_signature(item) for item in items}) > 1


def _signature(item: Any) -> Any:
    if isinstance(item, Tensor):
        return item.dtype, item.ndim, item.shape[1:]
    if isinstance(item, Mapping):
        return tuple((key, _signature(value)) for key, value in item.items())
    if isinstance(item, list) and item:
        return len(item), _signature(item[0])
    return tuple(map(_signature, _children(item))) or type(item)


def _take(item: Any, index: slice, count: int, in_lists: bool, top: bool = False) -> Any:
    if isinstance(item, PackedSequence):
        return pack_sequence(unpack_sequence(item)[index], enforce_sorted=False)
    if _is_graphs(item):
        return _take_graphs(item, index) if item.num_graphs == count else item
    if isinstance(item, Tensor):
        return item[index] if item.ndim and item.shape[0] == count else item
    if isinstance(item, _WHOLE):
        return item
    if isinstance(item, Mapping):
        taken = {key: _take(value, index, count, in_lists) for key, value in item.items()}
        return taken if type(item) is dict else type(item)(taken)  # type: ignore[call-arg]
    if isinstance(item, (list, tuple)):
        samples = len(item) == count and not hasattr(item, "_fields")
        if samples and in_lists:
            samples = isinstance(item, list) and not (top and _is_container(item))
        elif samples:
            samples = count not in {size for child in item for size in _sizes(child)}
        if samples:
            return type(item)(item[index])
        values = [_take(child, index, count, in_lists) for child in item]
        return type(item)(*values) if hasattr(item, "_fields") else type(item)(values)
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        fields = {field.name: getattr(item, field.name) for field in dataclasses.fields(item) if field.init}
        return dataclasses.replace(
            item, **{name: _take(value, index, count, in_lists) for name, value in fields.items()}
        )
    raise TypeError(_cannot(item))


def _take_graphs(item: Any, index: slice) -> Any:
    followed = [key.removesuffix("_batch") for key in set(item.keys()) if key.endswith("_batch")]
    return type(item).from_data_list(item.to_data_list()[index], follow_batch=followed)


def _cannot(item: Any) -> str:
    return (
        f"Expected a batch of tensors, lists of samples, tuples, mappings or dataclasses, but got "
        f"{type(item).__module__}.{type(item).__qualname__}, which can't be split into sub-batches; give `split_fn`."
    )
