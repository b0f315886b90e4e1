"""Every operation of a pass, below all functions: what couples samples by their data, what precision it takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

# Names of operations, or parts of them.
_ORDERS = re.compile(  # rows by their values, or bring these into Python
    "sort|topk|kthvalue|nonzero|masked_select|unique|bincount|histc|repeat_interleave|multinomial|randperm|pack_padded|"
    "nested|^_local_scalar_dense$|^equal$"
)
_PICKS = re.compile("gather|scatter|take|index|bucketize|segment|masked_s")  # rows by indices that they are given
_REDUCES = re.compile(
    "^(sum|mean|prod|any|all|amax|amin|aminmax|max|min|argmax|argmin|var|std|var_mean|std_mean|median|nanmedian|mode|"
    "norm|native_norm|linalg_vector_norm|linalg_norm|logsumexp|_softmax|_log_softmax|count_nonzero|cum.*|logcumsumexp|"
    "renorm)$"
)
_MULTIPLIES = {"mm", "addmm", "mv", "addmv", "dot", "vdot", "_cdist_forward", "_pdist_forward"}
_CHOOSING_ARGUMENTS = {"index", "indices", "mask", "boundaries", "sorted_sequence", "lengths", "offsets"}
_KNOWN = {"aten", "prim", "prims", "profiler"}
_NARROW = (torch.float32, torch.float16, torch.bfloat16)


class Operations(TorchDispatchMode):
    """Watch the operations of a pass.

    Args:
        on_tensor: Called with every tensor that an operation is given.
        data: What is followed through the pass: the samples, in dimension 0.
        count: How many.

    Attributes:
        chosen: Whether, depending on the data, samples may affect each other: rows sorted, picked or routed by it,
            values of it read, or a norm, a maximum, a product taken over them.
        narrow: Whether anything was computed in less than float64.
    """

    def __init__(self, on_tensor: Callable[[Tensor], None] | None = None, data: Any = None, count: int = 1) -> None:
        super().__init__()
        self.chosen = self.narrow = False
        self._on_tensor = on_tensor
        self._count = count
        # By their memory, which views share; held, so that no other tensor gets the same.
        self._followed = {_memory(leaf): leaf for leaf in _tensors(data)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look, and run the operation."""
        kwargs = kwargs or {}
        given = list(_tensors((args, kwargs)))
        from_data = any(_memory(tensor) in self._followed for tensor in given)
        if from_data and not self.chosen:
            self.chosen = self._couples(func, args, kwargs)
        if self._on_tensor is not None:
            for tensor in given:
                self._on_tensor(tensor)
        output = func(*args, **kwargs)
        if from_data:
            self._followed.update((_memory(tensor), tensor) for tensor in _tensors(output))
            if func._schema.is_mutable:  # in place: what is written to holds data, too
                self._followed.update((_memory(tensor), tensor) for tensor in given)
        if isinstance(output, Tensor) and output.dtype in _NARROW:
            self.narrow = True
        return output

    def _couples(self, func: Any, args: Any, kwargs: Any) -> bool:
        if func.namespace not in _KNOWN:  # nobody sees into it
            return True
        name = func.overloadpacket.__name__
        bound = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        if _ORDERS.search(name):
            return True
        if _PICKS.search(name):
            choosing = [value for key, value in bound.items() if key in _CHOOSING_ARGUMENTS]
            return any(_memory(tensor) in self._followed for tensor in _tensors(choosing))
        if name in _MULTIPLIES:
            return sum(_memory(tensor) in self._followed for tensor in _tensors(list(bound.values()))) > 1
        return bool(_REDUCES.match(name)) and self._over_samples(bound)

    def _over_samples(self, bound: dict[str, Any]) -> bool:
        """Whether dimension 0, if it may hold the samples, is reduced."""
        tensor = next(_tensors(list(bound.values())))
        if tensor.ndim == 0 or tensor.shape[0] % self._count:
            return False
        dims = bound.get("dim")
        if dims is None or dims == []:
            return True
        return any(dim % tensor.ndim == 0 for dim in ([dims] if isinstance(dims, int) else dims))


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor))


def _memory(tensor: Tensor) -> int:
    try:
        storage = tensor.untyped_storage()
        return storage.data_ptr() or storage._cdata  # the address: dlpack and numpy give it to another tensor
    except (RuntimeError, NotImplementedError):  # sparse
        return id(tensor)
