"""Half-precision tensors in an extra pass: promoted where training relies on autocast, refused where they decide."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from lightning_fisher.exceptions import LightningFisherError, acting

HALF = (torch.float16, torch.bfloat16)
# What autocast runs in half precision, and what it promotes to float32 (torch's lists of both).
_PROMOTED = frozenset(
    (
        *("linear", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d"),
        *("conv_transpose3d", "conv_tbc", "convolution", "matmul", "mm", "bmm", "mv", "addmm", "addmv", "addbmm"),
        *("baddbmm", "chain_matmul", "multi_dot", "einsum", "tensordot", "__matmul__", "__rmatmul__", "prelu"),
        *("scaled_dot_product_attention", "multi_head_attention_forward", "lstm", "gru", "rnn_tanh", "rnn_relu"),
        *("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell", "layer_norm", "group_norm", "batch_norm"),
        *("instance_norm", "rms_norm", "local_response_norm", "softmax", "log_softmax", "cross_entropy", "nll_loss"),
        *("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div", "cosine_embedding_loss"),
        *("binary_cross_entropy_with_logits", "poisson_nll_loss", "margin_ranking_loss", "triplet_margin_loss"),
        *("cosine_similarity", "cdist", "dist", "norm", "cat", "stack", "where"),
    )
)


class HalfPrecisionError(LightningFisherError, ValueError):
    """The loss depends on the weights through half-precision numbers."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(
            f"{acting()} needs float32 or float64 between the weights and the loss, but `training_step` "
            f"computes in {dtype} there by itself, in which its finite difference is noise; keep these layers (a "
            'frozen base included) in float32 and leave mixed precision to the Trainer (`precision="bf16-mixed"`).'
        )


class Promotion(TorchFunctionMode):
    """What autocast does, with float32 in place of half precision.

    Attributes:
        needed: Whether it had to change anything.
    """

    def __init__(self) -> None:
        super().__init__()
        self.needed = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Promote the arguments of the functions that autocast knows."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _PROMOTED:
            args, kwargs = tree_map(self._promoted, (args, kwargs))
        return func(*args, **kwargs)

    def _promoted(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.dtype in HALF:
            self.needed = True
            return value.float()
        return value


def refuse_half_precision(loss: Tensor) -> None:
    """Raise in the backward pass of ``loss`` if a gradient on its way to the weights is in half precision.

    Raises:
        HalfPrecisionError: In the backward pass.
    """
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        node.register_prehook(_refuse)
        waiting += [following for following, _ in node.next_functions]


def _refuse(gradients: tuple[Tensor | None, ...]) -> None:
    for gradient in gradients:
        if gradient is not None and gradient.dtype in HALF and gradient.numel() > 1:  # a loss may be rounded itself
            raise HalfPrecisionError(gradient.dtype)
