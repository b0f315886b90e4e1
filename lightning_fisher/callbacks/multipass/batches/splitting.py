"""Split a batch of any common structure into sub-batches.

What says how many samples a batch has, in this order of precedence:

1. `split_fn`, where one is given;
2. the Trainer's loaders: of several, each loader's batch is split by itself (`sub_batches`);
3. what an earlier batch of the same structure has shown: which arrays have a row for each sample;
4. the loader's ``batch_size``, where it is the first size of an array or the length of the lists of samples;
5. the first size that all arrays share;
6. the length that all outermost lists (and tuples inside another container) share: lists of samples. Where 5 holds as
   well, the larger of the two, or 5 if the items of the lists differ in dtype or dimensions (inputs and targets). A
   list of arrays that differ so is never one of samples;
7. the first size of the array with the most dimensions. Other arrays (class weights, anchors) go whole into each part.

What then remains ambiguous is refused, with `split_fn` as the remedy: arrays of as many dimensions and different first
sizes, or a first size that appears as another dimension elsewhere (time before samples).
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import enum
import pathlib
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from lightning_fisher.exceptions import LightningFisherError, first_line

Path = tuple[Any, ...]
_WHOLE = (
    str,
    bytes,
    int,
    float,
    complex,
    type(None),
    torch.dtype,
    torch.device,
    torch.Size,
    range,
    enum.Enum,
    pathlib.PurePath,
    set,
    frozenset,
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    datetime.date,
    datetime.timedelta,
)


class BatchError(LightningFisherError, TypeError):
    """A batch that can't be split without being told how."""


class Reading(NamedTuple):
    """How a batch is read.

    Attributes:
        size: Number of samples.
        in_lists: Whether the samples are the items of lists, instead of the rows of arrays.
        whole: Places of the arrays that have no row for each sample.
    """

    size: int
    in_lists: bool = False
    whole: frozenset[Path] = frozenset()


def read_batch(batch: Any, expected: int | None = None, previous: Reading | None = None) -> Reading:
    """Find out how many samples a batch has, and where; see the module's order of precedence.

    Args:
        batch: Tensors, numpy arrays, packed sequences, torch_geometric's batches of graphs, and lists of samples in
            tuples, lists, mappings, dataclasses and classes of attrs.
        expected: The loader's batch size, if known.
        previous: How an earlier batch of the same loader was read.

    Returns:
        A `Reading`.

    Raises:
        BatchError: If there are no samples in it, or it is ambiguous.
    """
    arrays = list(_arrays(batch))
    lists = _length_of_lists(batch)
    if previous is not None:
        if previous.in_lists and lists is not None:
            return Reading(lists, True)
        sizes = {shape[0] for path, shape in arrays if path not in previous.whole}
        if not previous.in_lists and len(sizes) == 1:
            return Reading(sizes.pop(), whole=previous.whole)
    sizes = {shape[0] for _, shape in arrays}
    rows = sizes.pop() if len(sizes) == 1 else None
    if expected is not None and expected in (rows, lists) and rows != lists:
        return Reading(expected, in_lists=expected == lists)
    if rows is None and lists is None:
        return _by_most_dimensions(batch, expected)
    if rows is None:
        assert lists is not None
        firsts = {shape[0] for _, shape in arrays}
        if any(map(_are_fields, _outermost_lists(batch))) or (lists != expected and expected in firsts):
            return _by_most_dimensions(batch, expected, lists=True)
        return Reading(lists, in_lists=True)
    if lists is not None and lists > rows and not any(_differ(items) for items in _outermost_lists(batch)):
        return Reading(lists, in_lists=True)
    if expected is not None and rows != expected and any(expected in shape[1:] for _, shape in arrays):
        raise _ambiguous(batch, f"arrays of first size {rows} hold the loader's batch size {expected} elsewhere")
    return Reading(rows)


def batch_size(batch: Any) -> int:
    """Number of samples in a batch; see `read_batch`."""
    return read_batch(batch).size


def split_batch(batch: Any, sizes: list[int], reading: Reading | None = None) -> list[Any]:
    """Consecutive sub-batches.

    Arrays with a row for each sample, lists of as many samples, packed sequences and batches of graphs are cut;
    anything else (class weights, numbers, strings) goes whole into every part.

    Args:
        batch: See `read_batch`.
        sizes: Samples in each part; they add up to the batch's.
        reading: How the batch is read.

    Returns:
        One batch of the same structure a part.

    Raises:
        BatchError: If the batch holds an object of a type that can't be cut.
    """
    reading = reading or read_batch(batch)
    start, parts = 0, []
    for size in sizes:
        parts.append(_take(batch, slice(start, start + size), reading, ()))
        start += size
    return parts


def fresh(batch: Any) -> Any:
    """A copy that a `training_step` may change; of tensors that are part of a larger batch, their part only.

    Raises:
        BatchError: If the batch holds something that can't be copied.
    """
    copies = {id(tensor): tensor.clone() for tensor in _tensors(batch)}
    try:
        return copy.deepcopy(batch, copies)
    except Exception as error:
        raise BatchError(
            f"Expected a batch that can be copied, but a part of it can't be ({first_line(error)}); make it of "
            "tensors, lists, mappings and dataclasses."
        ) from error


def _tensors(item: Any) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    else:
        for _, child in _children(item):
            yield from _tensors(child)


def _children(item: Any) -> Iterator[tuple[Any, Any]]:
    """``(key, child)`` of a container."""
    if isinstance(item, Mapping):
        yield from item.items()
    elif isinstance(item, (list, tuple)) and not isinstance(item, torch.Size):
        yield from enumerate(item)
    elif dataclasses.is_dataclass(item) and not isinstance(item, type):
        yield from ((field.name, getattr(item, field.name)) for field in dataclasses.fields(item))
    elif _is_attrs(item):
        yield from ((field.name, getattr(item, field.name)) for field in type(item).__attrs_attrs__)


def _is_attrs(item: Any) -> bool:
    """An object of a class of attrs, told by its interface: not a dependency."""
    return hasattr(type(item), "__attrs_attrs__")


def _is_graphs(item: Any) -> bool:
    """A batch of graphs of torch_geometric, told by its interface: not a dependency."""
    return hasattr(item, "num_graphs") and hasattr(item, "to_data_list") and hasattr(item, "from_data_list")


def _is_array(item: Any) -> bool:
    numpy = sys.modules.get("numpy")  # not a dependency
    return isinstance(item, Tensor) or (numpy is not None and isinstance(item, numpy.ndarray))


def _shape(item: Any) -> tuple[int, ...] | None:
    """The shape of what has a row for each sample, by its first size; ``None`` for a container or a scalar."""
    if isinstance(item, PackedSequence):
        return (int(item.batch_sizes[0]),)
    if isinstance(item, Tensor) and item.is_nested:
        return (item.size(0),)
    if _is_graphs(item):
        return (item.num_graphs,)
    return tuple(item.shape) or None if _is_array(item) else None


def _arrays(item: Any, path: Path = (), lists: bool = True) -> Iterator[tuple[Path, tuple[int, ...]]]:
    """``(place, shape)`` of the arrays, inside of lists too or not."""
    shape = _shape(item)
    if shape is not None:
        yield path, shape
    elif not _is_array(item) and not _is_graphs(item) and (lists or not isinstance(item, list)):
        for key, child in _children(item):
            yield from _arrays(child, (*path, key), lists)


def _is_list(item: Any, top: bool) -> bool:
    """Whether an item may be a list of samples: a tuple may be one inside another container."""
    if isinstance(item, list):
        return bool(item)
    return type(item) is tuple and bool(item) and not top


def _outermost_lists(item: Any, top: bool = True) -> Iterator[Any]:
    if _shape(item) is None:
        if _is_list(item, top):
            yield item
        else:
            for _, child in _children(item):
                yield from _outermost_lists(child, False)


def _length_of_lists(batch: Any) -> int | None:
    """The length that all outermost lists share with the arrays outside of them."""

    def sizes(item: Any, top: bool) -> Iterator[int]:
        shape = _shape(item)
        if shape is not None:
            yield shape[0]
        elif _is_list(item, top):
            yield len(item)
        else:
            for _, child in _children(item):
                yield from sizes(child, False)

    found = set(sizes(batch, True))
    return found.pop() if len(found) == 1 and any(True for _ in _outermost_lists(batch)) else None


def _differ(items: Any) -> bool:
    return len({_signature(item) for item in items}) > 1


def _are_fields(items: Any) -> bool:
    """Whether the items of a list are arrays of different kinds: inputs and targets, not samples."""
    return any(map(_is_array, items)) and _differ(items)


def _signature(item: Any) -> Any:
    if _is_array(item):
        return str(item.dtype), item.ndim
    return type(item), tuple((key, _signature(child)) for key, child in _children(item))


def _by_most_dimensions(batch: Any, expected: int | None, lists: bool = False) -> Reading:
    arrays = list(_arrays(batch, lists=lists))
    if not arrays:
        if any(True for _ in _arrays(batch)):
            raise _ambiguous(batch, "its lists and arrays share no size")
        raise BatchError(_cannot(batch))
    size = next((expected for _, shape in arrays if shape[0] == expected), None)
    if size is None:
        most = max(len(shape) for _, shape in arrays)
        leading = [shape for _, shape in arrays if len(shape) == most]
        size = leading[0][0]
        others = {shape[0] for _, shape in arrays} - {size}
        if any(shape[0] != size for shape in leading) or others & set(leading[0][1:]):
            raise _ambiguous(batch, f"its arrays have first sizes {sorted({shape[0] for _, shape in arrays})}")
    if any(shape[0] != size and size in shape[1:] for _, shape in arrays):
        raise _ambiguous(batch, f"{size}, the first size of some arrays, is another dimension of others")
    return Reading(size, whole=frozenset(path for path, shape in _arrays(batch) if shape[0] != size))


def _take(item: Any, index: slice, reading: Reading, path: Path) -> Any:
    if isinstance(item, PackedSequence):
        return pack_sequence(unpack_sequence(item)[index], enforce_sorted=False)
    if _is_graphs(item):
        return _take_graphs(item, index) if item.num_graphs == reading.size else item
    if _is_array(item):
        shape = _shape(item)
        if shape is None or shape[0] != reading.size or path in reading.whole:
            return item
        return _rows(item, index) if isinstance(item, Tensor) else item[index]
    numpy = sys.modules.get("numpy")
    if isinstance(item, _WHOLE) or (numpy is not None and isinstance(item, numpy.generic)):
        return item
    if isinstance(item, Mapping):
        return _rebuilt(item, {key: _take(value, index, reading, (*path, key)) for key, value in item.items()})
    if isinstance(item, (list, tuple)):
        samples = len(item) == reading.size and not hasattr(item, "_fields")
        if samples and reading.in_lists:
            samples = _is_list(item, top=not path)
        elif samples:
            samples = all(shape[0] != reading.size for child in item for _, shape in _arrays(child))
        if samples:
            return type(item)(item[index])
        values = [_take(child, index, reading, (*path, key)) for key, child in enumerate(item)]
        return type(item)(*values) if hasattr(item, "_fields") else type(item)(values)
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        fields = {field.name: getattr(item, field.name) for field in dataclasses.fields(item) if field.init}
        taken = {name: _take(value, index, reading, (*path, name)) for name, value in fields.items()}
        return dataclasses.replace(item, **taken)
    if _is_attrs(item):
        part = copy.copy(item)
        for name, value in _children(item):  # also where it is frozen
            object.__setattr__(part, name, _take(value, index, reading, (*path, name)))
        return part
    raise BatchError(_cannot(item))


def _rows(tensor: Tensor, index: slice) -> Tensor:
    """Rows of a tensor of any layout that has some."""
    if tensor.is_nested:
        return torch.nested.as_nested_tensor(list(tensor.unbind())[index], layout=tensor.layout)
    if tensor.layout is torch.strided:
        return tensor[index]
    if tensor.layout is torch.sparse_coo:
        return tensor.index_select(0, torch.arange(index.start, index.stop, device=tensor.device))
    raise BatchError(
        f"Expected tensors that can be cut into rows, but got one of layout {tensor.layout}; give `split_fn`."
    )


def _rebuilt(item: Mapping[Any, Any], values: dict[Any, Any]) -> Mapping[Any, Any]:
    """A mapping of the same class and settings (a default factory, say) with other values."""
    if type(item) is dict:
        return values
    try:
        new: Any = copy.copy(item)
        for key, value in values.items():
            new[key] = value
    except TypeError:  # one that can't be changed
        return type(item)(values)  # type: ignore[call-arg]
    return new


def _take_graphs(item: Any, index: slice) -> Any:
    followed = [key.removesuffix("_batch") for key in set(item.keys()) if key.endswith("_batch")]
    return type(item).from_data_list(item.to_data_list()[index], follow_batch=followed)


def _cannot(item: Any) -> str:
    return (
        f"Expected a batch of tensors, lists of samples, tuples, mappings or dataclasses, but got "
        f"{type(item).__module__}.{type(item).__qualname__}, which can't be split into sub-batches; give `split_fn`."
    )


def _ambiguous(batch: Any, why: str) -> BatchError:
    return BatchError(
        f"Expected a batch that shows which dimension its samples are in, but got {type(batch).__qualname__} where "
        f"{why}; give `split_fn`."
    )
