"""What runs differently while a module is recorded, and only then: some of its submodules' forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.utils.checkpoint
from torch import nn

from lightning_fisher.functional.gram.recorder import Recorder
from lightning_fisher.functional.gram.rules.custom import rule_of

FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)
Replacement = Callable[..., Any]


@contextmanager
def recorded(recorder: Recorder, module: nn.Module) -> Iterator[None]:
    """Record a forward pass; layers with a rule of their own are recorded as a whole."""
    own = [(layer, rule) for layer in module.modules() if (rule := rule_of(layer)) is not None]
    with _replaced((layer, partial(recorder.layer, rule, layer, layer.forward)) for layer, rule in own), recorder:
        yield


@contextmanager
def plain_kernels(module: nn.Module) -> Iterator[None]:
    """Let frozen attention take the kernels that it takes in a plain pass, and checkpoints keep what they computed.

    Torch's fused encoder layers run unfused under any function mode, and their outputs at padded positions differ.
    A checkpoint repeats its forward pass in the backward pass, where no recorder sees it; with ``use_reentrant=True``
    it refuses `torch.autograd.grad`.
    """
    fused = [layer for layer in module.modules() if isinstance(layer, FUSED) and _is_frozen(layer)]
    with ExitStack() as stack:
        stack.enter_context(_replaced((layer, partial(_unseen, layer.forward)) for layer in fused))
        for name, stand_in in _WITHOUT_CHECKPOINT.items():
            if hasattr(torch.utils.checkpoint, name):
                stack.enter_context(mock.patch.object(torch.utils.checkpoint, name, stand_in))
        yield


@contextmanager
def _replaced(forwards: Iterable[tuple[nn.Module, Replacement]]) -> Iterator[None]:
    """Give modules another forward pass, and their own back."""
    done: list[tuple[nn.Module, Any]] = []
    try:
        for layer, forward in forwards:
            done.append((layer, vars(layer).get("forward")))
            vars(layer)["forward"] = forward
        yield
    finally:
        for layer, before in done:
            if before is None:
                del vars(layer)["forward"]
            else:
                vars(layer)["forward"] = before


def _unseen(forward: Replacement, *args: Any, **kwargs: Any) -> Any:
    with torch._C.DisableTorchFunction():
        return forward(*args, **kwargs)


def _is_frozen(layer: nn.Module) -> bool:
    return not isinstance(layer, torch.jit.ScriptModule) and not any(p.requires_grad for p in layer.parameters())


class _Direct:
    """`torch.utils.checkpoint.CheckpointFunction` without the checkpoint."""

    @staticmethod
    def apply(function: Replacement, preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


def _once(*args: Any, **kwargs: Any) -> Iterator[None]:
    """The generator of `torch.utils.checkpoint.checkpoint` without the checkpoint."""
    yield


def _direct(function: Replacement, args: Any, kwargs: Any, **options: Any) -> Any:
    """What `torch.utils.checkpoint.checkpoint` calls in newer versions of torch, without the checkpoint."""
    return function(*args, **kwargs)


_WITHOUT_CHECKPOINT = {
    "CheckpointFunction": _Direct,
    "_checkpoint_without_reentrant_generator": _once,
    "_checkpoint_impl": _direct,
}
