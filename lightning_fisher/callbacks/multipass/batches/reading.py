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

from collections.abc import Iterator
from typing import Any, NamedTuple

from lightning_fisher.callbacks.multipass.batches.structure import (
    BatchError,
    Path,
    arrays_in,
    cannot_be_cut,
    children_of,
    is_array,
    is_list,
    outermost_lists,
    shape_of,
)


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
    arrays = list(arrays_in(batch))
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
        if any(map(_are_fields, outermost_lists(batch))) or (lists != expected and expected in firsts):
            return _by_most_dimensions(batch, expected, lists=True)
        return Reading(lists, in_lists=True)
    if lists is not None and lists > rows and not any(_differ(items) for items in outermost_lists(batch)):
        return Reading(lists, in_lists=True)
    if expected is not None and rows != expected and any(expected in shape[1:] for _, shape in arrays):
        raise _ambiguous(batch, f"arrays of first size {rows} hold the loader's batch size {expected} elsewhere")
    return Reading(rows)


def batch_size(batch: Any) -> int:
    """Number of samples in a batch; see `read_batch`."""
    return read_batch(batch).size


def _length_of_lists(batch: Any) -> int | None:
    """The length that all outermost lists share with the arrays outside of them."""

    def sizes(item: Any, top: bool) -> Iterator[int]:
        shape = shape_of(item)
        if shape is not None:
            yield shape[0]
        elif is_list(item, top):
            yield len(item)
        else:
            for _, child in children_of(item):
                yield from sizes(child, False)

    found = set(sizes(batch, True))
    return found.pop() if len(found) == 1 and any(True for _ in outermost_lists(batch)) else None


def _differ(items: Any) -> bool:
    return len({_signature(item) for item in items}) > 1


def _are_fields(items: Any) -> bool:
    """Whether the items of a list are arrays of different kinds: inputs and targets, not samples."""
    return any(map(is_array, items)) and _differ(items)


def _signature(item: Any) -> Any:
    if is_array(item):
        return str(item.dtype), item.ndim
    return type(item), tuple((key, _signature(child)) for key, child in children_of(item))


def _by_most_dimensions(batch: Any, expected: int | None, lists: bool = False) -> Reading:
    arrays = list(arrays_in(batch, lists=lists))
    if not arrays:
        if any(True for _ in arrays_in(batch)):
            raise _ambiguous(batch, "its lists and arrays share no size")
        raise BatchError(cannot_be_cut(batch))
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
    return Reading(size, whole=frozenset(path for path, shape in arrays_in(batch) if shape[0] != size))


def _ambiguous(batch: Any, why: str) -> BatchError:
    return BatchError(
        f"Expected a batch that shows which dimension its samples are in, but got {type(batch).__qualname__} where "
        f"{why}; give `split_fn`."
    )
