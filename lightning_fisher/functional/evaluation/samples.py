"""A batch in any structure of tensors, the samples in dimension 0: call a module with it, count, take, split."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from lightning_fisher.functional.evaluation.outputs import as_tree


def call_module(module: Callable[..., Any], inputs: Any) -> Any:
    """``module(x)``, ``module(*inputs)`` for a tuple or list, ``module(**inputs)`` for a mapping.

    The module gets copies: it may change its inputs in place. What it returns comes as a tree of torch, see `as_tree`.
    """
    if isinstance(inputs, Tensor):
        return as_tree(module(inputs.clone()))
    inputs = fresh(inputs)
    if not isinstance(inputs, (tuple, list, dict)):
        return as_tree(module(inputs))
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    try:
        return as_tree(module(*args, **kwargs))
    except TypeError as error:
        _require_arguments(module, args, kwargs, error)
        raise


def _require_arguments(
    module: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], error: TypeError
) -> None:
    """Refuse inputs that a forward pass doesn't take, if that is why it failed."""
    try:
        signature = inspect.signature(getattr(module, "forward", module))
    except (TypeError, ValueError):  # of scripted code
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as mismatch:
        given = ", ".join([f"{key}=…" for key in kwargs] or ["…" for _ in args])
        raise ValueError(
            f"Expected argument `inputs` to fit the module's forward{signature}, but got module({given}): "
            f"{mismatch}; a tuple, list or dict is unpacked (give one list as the only argument as `([…],)`)."
        ) from error


def fresh(tree: Any) -> Any:
    """Copies of the tensors, part of the same graph."""
    if isinstance(tree, Tensor):
        return tree.clone()
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, _plain(tree))


def num_samples(inputs: Any, name: str = "inputs") -> int:
    """The size of dimension 0, which every tensor in ``inputs`` (of the argument ``name``) has to share.

    Raises:
        ValueError: If there is no tensor, sizes differ, or there is a tensor where it isn't found.
    """
    refuse_closed(inputs, name)
    return leading_size(inputs, name)


def leading_size(inputs: Any, name: str) -> int:
    """As `num_samples`, of a tree that may hold objects with tensors, such as a cache beside outputs.

    Raises:
        ValueError: As `num_samples`.
    """
    leaves = [inputs] if isinstance(inputs, Tensor) else tree_flatten(_plain(inputs))[0]
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in leaves if isinstance(leaf, Tensor)}
    if len(sizes) != 1 or None in sizes or 0 in sizes:
        raise ValueError(
            f"Expected every tensor in argument `{name}` to have the samples, at least one, in dimension 0, "
            f"but got sizes {sorted(map(str, sizes))} in a {type(inputs).__name__}; a tensor, or a tuple, list or dict "
            "of tensors, is taken apart."
        )
    return sizes.pop()  # type: ignore[return-value]


def refuse_closed(tree: Any, name: str) -> None:
    """Refuse tensors whose samples can't be taken: in objects that aren't taken apart, in nested tensors.

    Raises:
        ValueError: With what is allowed.
    """
    for leaf in [tree] if isinstance(tree, Tensor) else tree_flatten(_plain(tree))[0]:
        if isinstance(leaf, Tensor):
            if leaf.is_nested:
                raise ValueError(
                    f"Expected argument `{name}` to hold tensors of which every sample has the same shape, but got a "
                    "nested tensor; pad it, and give lengths or a mask beside it."
                )
        elif _holds_tensors(leaf):
            raise ValueError(
                f"Expected argument `{name}` to be a tensor, or a tuple, list or dict of tensors, but got "
                f"{'a' if leaf is tree else 'one with a'} {type(leaf).__name__}, which isn't taken apart."
            )


def _holds_tensors(leaf: Any, depth: int = 3) -> bool:
    """Whether an object that isn't taken apart has tensors in its fields or attributes."""
    if isinstance(leaf, (torch.nn.Module, type, FunctionType, torch.Generator)):
        return False
    fields = tree_flatten(as_tree(leaf))[0]
    if len(fields) == 1 and fields[0] is leaf:
        fields = tree_flatten(list(getattr(leaf, "__dict__", {}).values()))[0]
    return any(isinstance(inner, Tensor) or (depth > 0 and _holds_tensors(inner, depth - 1)) for inner in fields)


def has_tensors(tree: Any) -> bool:
    """Whether there is a tensor in the targets: a loss may need none."""
    refuse_closed(tree, "targets")
    return any(isinstance(leaf, Tensor) for leaf in tree_flatten(_plain(tree))[0])


def take(tree: Any, index: slice | Tensor) -> Any:
    """The samples ``index`` of every tensor in a nested structure."""
    if isinstance(tree, Tensor):
        return tree[index] if tree.ndim else tree
    return tree_map(lambda leaf: leaf[index] if isinstance(leaf, Tensor) and leaf.ndim else leaf, _plain(tree))


def ordinary(tree: Any, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Any:
    """Copies that autograd may save, also of tensors of inference mode, on ``device`` if given.

    They keep their dtypes, and what is done to them in place doesn't reach the user's tensors.

    Args:
        tree: Any nested structure.
        dtype: Of floating tensors; ``None``: their own.
        device: Where to; ``None``: where they are.
    """

    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        copy = leaf.detach().clone()
        copy = copy.to(device=device, dtype=dtype if copy.is_floating_point() else None)
        return copy.requires_grad_(leaf.requires_grad)

    return tree_map(convert, _plain(tree))


def device_of(tensors: Iterable[Tensor]) -> torch.device | None:
    """The device that all of them share, or ``None``."""
    devices = {tensor.device for tensor in tensors}
    return devices.pop() if len(devices) == 1 else None


def restore_sample_dimension(outputs: Any, like: Any) -> Any:
    """Outputs of one sample with the dimension that a ``squeeze`` took away, as ``like`` has it."""
    leaves, spec = tree_flatten(outputs)
    models = tree_flatten(like)[0]
    if len(leaves) != len(models):
        return outputs
    pairs = zip(leaves, models, strict=True)
    return tree_unflatten([leaf.unsqueeze(0) if _is_squeezed(leaf, model) else leaf for leaf, model in pairs], spec)


def with_sample_dimension(outputs: Any) -> Any:
    """Outputs of one sample with the dimension that a ``squeeze`` took away, as far as their shape shows it."""

    def restored(leaf: Any) -> Any:
        squeezed = isinstance(leaf, Tensor) and (leaf.ndim == 0 or leaf.shape[0] != 1)
        return leaf.unsqueeze(0) if squeezed else leaf

    return tree_map(restored, outputs)


def _is_squeezed(leaf: Any, model: Any) -> bool:
    both = isinstance(leaf, Tensor) and isinstance(model, Tensor)
    return both and leaf.shape != model.shape and (1, *leaf.shape) == tuple(model.shape)


def _plain(tree: Any) -> Any:
    """A mapping of any class as a dict: what tokenizers return."""
    return dict(tree) if isinstance(tree, Mapping) and not isinstance(tree, dict) else tree


def split(tree: Any, sizes: Sequence[int]) -> list[Any]:
    """Consecutive pieces of given sizes of every tensor in a nested structure."""
    leaves, spec = tree_flatten(_plain(tree))
    pieces = [
        leaf.split(list(sizes)) if isinstance(leaf, Tensor) and leaf.ndim else [leaf] * len(sizes) for leaf in leaves
    ]
    return [tree_unflatten(list(piece), spec) for piece in zip(*pieces, strict=True)]


def chunks(count: int, chunk_size: int) -> list[slice]:
    """Consecutive slices of ``chunk_size`` samples; the last may be smaller."""
    return [slice(start, min(start + chunk_size, count)) for start in range(0, count, chunk_size)]
