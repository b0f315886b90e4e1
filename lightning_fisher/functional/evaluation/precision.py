"""Full floating-point precision, whatever the caller's autocast and TF32 settings say.

Both quantities of the method are differences of nearly equal numbers: the finite difference of Algorithm 1
at α = 1e-4 has cosine 0.3 to its exact value under TF32 and 0.03 under bf16 autocast, and TF32 rounds the
small eigenvalues of a Gram matrix away. cuDNN allows TF32 convolutions *by default*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

# Relative rounding usual between two evaluations of the same thing; samples that interact differ by orders more.
SAME = {torch.float32: 1e-4, torch.float64: 1e-9}


_MADE_WITH: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def made_with(tensor: Tensor, eps: float) -> Tensor:
    """Remember the machine epsilon of the passes that a float64 ``tensor`` was made by."""
    _MADE_WITH[tensor] = eps
    return tensor


def epsilon_of(tensor: Tensor) -> float:
    """The machine epsilon of what made a tensor: that of the passes if known, of its dtype else."""
    own = torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else torch.finfo(torch.float64).eps
    return max(own, _MADE_WITH.get(tensor, 0.0))


class _Float32Switches:
    """The settings that let float32 work run in less: TF32 and bf16 products, on every backend.

    Since torch 2.9 each has two interfaces, and reading one raises after the other was set alone; both are kept
    consistent here.
    """

    def __init__(self) -> None:
        backends: Any = torch.backends
        self._cudnn = backends.cudnn
        self._owners = (
            [
                backends.cuda.matmul,
                backends.cudnn.conv,
                backends.cudnn.rnn,
                backends.mkldnn.matmul,
                backends.mkldnn.conv,
                backends.mkldnn.rnn,
            ]
            if hasattr(backends.cudnn, "conv")
            else []
        )
        self._values = [owner.fp32_precision for owner in self._owners]
        self._tf32 = _readable(lambda: backends.cudnn.allow_tf32)
        self._matmul = _readable(torch.get_float32_matmul_precision)

    def off(self) -> None:
        if self._tf32 is not None:
            self._cudnn.allow_tf32 = False
        if self._matmul is not None:
            torch.set_float32_matmul_precision("highest")
        for owner in self._owners:
            owner.fp32_precision = "ieee"

    def restore(self) -> None:
        if self._tf32 is not None:
            self._cudnn.allow_tf32 = self._tf32
        if self._matmul is not None:
            torch.set_float32_matmul_precision(self._matmul)
        for owner, value in zip(self._owners, self._values, strict=True):
            if owner.fp32_precision != value:
                owner.fp32_precision = value


def _readable(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:  # the newer interface was used
        return None


@contextmanager
def autocast_off(device_types: Iterable[str] = ()) -> Iterator[None]:
    """Switch autocast off on ``"cpu"`` and these device types."""
    with ExitStack() as stack:
        for device_type in {"cpu", *device_types}:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


@contextmanager
def without_kept_casts() -> Iterator[None]:
    """Autocast keeps copies of weights in half precision: none from before are used inside, none of inside later."""
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()


@contextmanager
def full_precision(device_types: Iterable[str] = ()) -> Iterator[None]:
    """Switch autocast, TF32 and reduced float32 matrix products off; restore every setting on the way out.

    Args:
        device_types: Device types (``"cuda"``, ``"mps"``, …) besides ``"cpu"`` on which autocast is disabled.
    """
    switches = _Float32Switches()
    with autocast_off(device_types):
        try:
            switches.off()
            yield
        finally:
            switches.restore()


class RefuseAutocast(TorchFunctionMode):
    """Refuse a forward pass that enters autocast by itself, where it can't be switched off from outside."""

    def __init__(self, device_types: Iterable[str]) -> None:
        super().__init__()
        self._device_types = sorted({"cpu", *device_types})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look before every call."""
        self.check()
        return func(*args, **(kwargs or {}))

    def check(self) -> None:
        """Raise if autocast is on.

        Raises:
            ValueError: With the remedy.
        """
        for device_type in self._device_types:
            if torch.is_autocast_enabled(device_type):
                raise ValueError(
                    f"Expected a forward pass in float32 or float64, but the module enters autocast on {device_type!r} "
                    "by itself; leave mixed precision to the caller (in Lightning: the Trainer's `precision`)."
                )


def device_types(module: nn.Module) -> set[str]:
    """The device types that hold parameters or buffers of ``module``."""
    return {tensor.device.type for tensor in [*module.parameters(), *module.buffers()]}


def require_full_precision(parameters: Iterable[Tensor], what: str) -> None:
    """Refuse parameters that are narrower than float32, complex or sparse, or that get narrower gradients.

    Args:
        parameters: The parameters that will be differentiated.
        what: The quantity, for the message.

    Raises:
        ValueError: If any parameter is not a dense one of float32 or float64.
    """
    for parameter in parameters:
        if parameter.layout is not torch.strided:
            raise ValueError(f"Expected all parameters to be dense to compute {what}, but got {parameter.layout}.")
        if parameter.is_complex():
            raise ValueError(
                f"Expected all parameters to be real to compute {what}, but got {parameter.dtype}; "
                "hold it as a real parameter and use `torch.view_as_complex` in the forward pass."
            )
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"Expected all parameters to be float32 or float64 to compute {what}, but got {parameter.dtype}; "
                "keep float32 weights and use mixed precision, or pass a float32 copy of the module."
            )
        if parameter.requires_grad and not parameter.is_leaf and (kept := _of_its_graph(parameter)) != parameter.dtype:
            raise ValueError(
                f"Expected gradients of all parameters in their own precision to compute {what}, but got {kept} for a "
                f"parameter of {parameter.dtype} that is the result of an operation, as `copy.deepcopy` makes them in "
                "scripted modules; convert the module before it is copied, or load its weights into a new one."
            )


def _of_its_graph(parameter: Tensor) -> torch.dtype:
    """The precision that autograd rounds the gradient of a result to: that in which it was made."""
    assert parameter.grad_fn is not None
    made: torch.dtype = parameter.grad_fn._input_metadata[parameter.output_nr].dtype  # type: ignore[attr-defined]
    return made
