"""Cut a batch of any common structure into sub-batches, once it is known how it is read."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import enum
import pathlib
import sys
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from lightning_fisher.callbacks.multipass.batches.reading import Reading, read_batch
from lightning_fisher.callbacks.multipass.batches.structure import (
    BatchError,
    Path,
    arrays_in,
    cannot_be_cut,
    children_of,
    is_array,
    is_attrs,
    is_graphs,
    is_list,
    shape_of,
    tensors_in,
)
from lightning_fisher.exceptions import first_line

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
    copies = {id(tensor): tensor.clone() for tensor in tensors_in(batch)}
    try:
        return copy.deepcopy(batch, copies)
    except Exception as error:
        raise BatchError(
            f"Expected a batch that can be copied, but a part of it can't be ({first_line(error)}); make it of "
            "tensors, lists, mappings and dataclasses."
        ) from error


def _take(item: Any, index: slice, reading: Reading, path: Path) -> Any:
    if isinstance(item, PackedSequence):
        return pack_sequence(unpack_sequence(item)[index], enforce_sorted=False)
    if is_graphs(item):
        return _take_graphs(item, index) if item.num_graphs == reading.size else item
    if is_array(item):
        shape = shape_of(item)
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
            samples = is_list(item, top=not path)
        elif samples:
            samples = all(shape[0] != reading.size for child in item for _, shape in arrays_in(child))
        if samples:
            return type(item)(item[index])
        values = [_take(child, index, reading, (*path, key)) for key, child in enumerate(item)]
        return type(item)(*values) if hasattr(item, "_fields") else type(item)(values)
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        fields = {field.name: getattr(item, field.name) for field in dataclasses.fields(item) if field.init}
        taken = {name: _take(value, index, reading, (*path, name)) for name, value in fields.items()}
        return dataclasses.replace(item, **taken)
    if is_attrs(item):
        part = copy.copy(item)
        for name, value in children_of(item):  # also where it is frozen
            object.__setattr__(part, name, _take(value, index, reading, (*path, name)))
        return part
    raise BatchError(cannot_be_cut(item))


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
