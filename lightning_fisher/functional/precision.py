"""Full floating-point precision, whatever the caller's autocast and TF32 settings say.

Both quantities of the method are differences of nearly equal numbers: the finite difference of Algorithm 1
at α = 1e-4 has cosine 0.3 to its exact value under TF32 and 0.03 under bf16 autocast, and TF32 rounds the
small eigenvalues of a Gram matrix away. cuDNN allows TF32 convolutions *by default*.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def _float32_switches() -> list[tuple[Any, str, Any]]:
    """(owner, attribute, full-precision value) of every switch that lets float32 work run in less."""
    backends: Any = torch.backends
    if not hasattr(backends.cudnn, "conv"):  # torch < 2.9
        return [(backends.cuda.matmul, "allow_tf32", False), (backends.cudnn, "allow_tf32", False)]
    owners = (
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.rnn,
    )
    return [(owner, "fp32_precision", "ieee") for owner in owners]


@contextmanager
def full_precision(device_types: Iterable[str] = ()) -> Iterator[None]:
    """Switch autocast, TF32 and reduced float32 matrix products off; restore every setting on the way out.

    Args:
        device_types: Device types (``"cuda"``, ``"mps"``, …) besides ``"cpu"`` on which autocast is disabled.
    """
    switches = _float32_switches()
    legacy = not hasattr(torch.backends.cudnn, "conv")
    matmul = torch.get_float32_matmul_precision() if legacy else None
    before = [getattr(owner, name) for owner, name, _ in switches]
    with ExitStack() as stack:
        for device_type in {"cpu", *device_types}:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        try:
            for owner, name, value in switches:
                setattr(owner, name, value)
            yield
        finally:
            for (owner, name, _), value in zip(switches, before, strict=True):
                setattr(owner, name, value)
            if matmul is not None:  # the legacy switch and this setting shadow each other
                torch.set_float32_matmul_precision(matmul)


def device_types(module: nn.Module) -> set[str]:
    """The device types that hold parameters or buffers of ``module``."""
    return {tensor.device.type for tensor in [*module.parameters(), *module.buffers()]}


def require_full_precision(parameters: Iterable[Tensor], what: str) -> None:
    """Refuse parameters that are narrower than float32 or complex.

    Args:
        parameters: The parameters that will be differentiated.
        what: The quantity, for the message.

    Raises:
        ValueError: If any parameter is not float32 or float64.
    """
    for parameter in parameters:
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"Expected all parameters to be float32 or float64 to compute {what}, but got {parameter.dtype}; "
                "keep float32 weights and use mixed precision, or pass a float32 copy of the module."
            )
