"""Whether a network's outputs are piecewise linear in each of its parameters, read off autograd's graph."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import Tensor

# Additive, or a choice among what comes in: linear in all of it together, piece by piece.
_LINEAR = """
Abs AdaptiveAvgPool2D AdaptiveMaxPool2D Add Alias Amax Amin AsStrided AvgPool2D AvgPool3D Cat Clamp ClampMax ClampMin
Clone Col2Im ConstantPadNd Copy Cumsum Diagonal Embedding Expand Flip Gather Hardtanh Im2Col Index IndexSelect
LeakyRelu MaskedFill Max Maximum MaxPool2DWithIndices MaxPool3DWithIndices Mean Min Minimum Neg Permute PixelShuffle
ReflectionPad1D ReflectionPad2D Relu Repeat ReplicationPad1D ReplicationPad2D ReshapeAlias Roll Rsub Select Slice
Split SplitWithSizes Squeeze Stack Sub Sum T Threshold ToCopy Transpose Unbind UnsafeSplit UnsafeView Unsqueeze
UpsampleBilinear2D UpsampleNearest2D View Where
"""
# Linear in every factor, so in a parameter that not more than one factor depends on.
_PRODUCT = """
Addbmm Addmm Addmv Baddbmm Bmm Convolution CudnnBatchNorm Dot Linear MiopenBatchNorm Mm Mul Mv NativeBatchNorm
PreluKernel
"""
_OF_BATCH = "_saved_training"  # of batch-norm: whether it uses the statistics of the batch
_NAME = re.compile(r"(\w+)Backward\d+$")  # torch's own nodes; the name of a function of the user has no number
LINEAR, PRODUCT = frozenset(_LINEAR.split()), frozenset(_PRODUCT.split())


def linear_in_each_parameter(outputs: Iterable[Tensor], parameters: Iterable[Tensor]) -> bool:
    """Whether every output is piecewise linear in each parameter tensor, the others held.

    Then no weight has a second derivative of the outputs, and the diagonal of the Hessian of a loss is that of its
    Gauss–Newton part. So it is for ReLU, max-pooling, linear and convolutional layers, and batch-norm in evaluation
    mode, whose weights are used once; not for tanh, attention, or a product of two things that hold the same weight.

    Reads the graph: operations that are known to be linear, and products of factors none of which depends on the same
    parameter. An operation that isn't known counts as not linear.

    Args:
        outputs: Tensors with their graph.
        parameters: Those that are differentiated; with a hook on one of them gradients aren't what the graph says.

    Returns:
        True where it is certain.
    """
    parameters = list(parameters)
    if any(parameter._backward_hooks for parameter in parameters):
        return False
    bits = {id(parameter): 1 << index for index, parameter in enumerate(parameters)}
    known: dict[Any, int] = {}  # by node: the parameters that it depends on, as bits
    for output in outputs:
        waiting = [] if output.grad_fn is None else [output.grad_fn]
        while waiting:
            node = waiting[-1]
            parents = [parent for parent, _ in node.next_functions if parent is not None]
            if missing := [parent for parent in parents if parent not in known]:
                waiting.extend(missing)
                continue
            waiting.pop()
            if node in known:
                continue
            if hasattr(node, "variable"):
                known[node] = bits.get(id(node.variable), 0)
                continue
            factors = [known[parent] for parent in parents]
            together = 0
            for factor in factors:
                if _is_product(node) and together & factor:
                    return False
                together |= factor
            if together and not (_is_product(node) or _is_linear(node)):
                return False
            known[node] = together
    return True


def _operation(node: Any) -> str:
    match = _NAME.match(node.name().rsplit("::", 1)[-1])
    return match[1] if match else ""


def _is_linear(node: Any) -> bool:
    name = _operation(node)
    if name == "Div":  # by a constant
        return len(node.next_functions) < 2 or node.next_functions[1][0] is None
    return name in LINEAR


def _is_product(node: Any) -> bool:
    return _operation(node) in PRODUCT and not getattr(node, _OF_BATCH, False)
