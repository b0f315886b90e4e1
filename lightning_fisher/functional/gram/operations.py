"""Every operation of a pass, below all functions: what rows are chosen by, what precision it takes, who uses what."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

# Names of operations, or parts of them, that choose rows by data or bring data into Python.
_CHOOSING = re.compile(
    "sort|topk|kthvalue|nonzero|masked_s|gather|scatter|take|index|unique|bincount|histc|bucketize|repeat_interleave|"
    "segment|multinomial|randperm|pack_padded|nested|^_local_scalar_dense$|^equal$"
)
_NARROW = (torch.float32, torch.float16, torch.bfloat16)


class Operations(TorchDispatchMode):
    """Watch the operations of a pass.

    Attributes:
        chosen: Whether rows were chosen by data: sorted, gathered, indexed, routed.
        narrow: Whether anything was computed in less than float64.
    """

    def __init__(self, on_tensor: Callable[[Tensor], None] | None = None) -> None:
        """Args name what is called with every tensor that an operation is given."""
        super().__init__()
        self.chosen = self.narrow = False
        self._on_tensor = on_tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look, and run the operation."""
        kwargs = kwargs or {}
        if _CHOOSING.search(func.overloadpacket.__name__):
            self.chosen = True
        if self._on_tensor is not None:
            for leaf in tree_flatten((args, kwargs))[0]:
                if isinstance(leaf, Tensor):
                    self._on_tensor(leaf)
        output = func(*args, **kwargs)
        if isinstance(output, Tensor) and output.dtype in _NARROW:
            self.narrow = True
        return output
