"""Products with the Hessian of the mean loss, which is never formed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fisher.arguments import require_integer
from lightning_fisher.functional.evaluation.differentiable import differentiable, differentiable_evaluation, evaluate
from lightning_fisher.functional.evaluation.loss import LossFn, mean_loss
from lightning_fisher.functional.evaluation.module_state import RandomStateSnapshot
from lightning_fisher.functional.evaluation.precision import require_full_precision
from lightning_fisher.functional.evaluation.samples import num_samples, take


class HessianVectorProduct:
    """``v ↦ ∇²_w L(S, w) v`` for ``[W]`` float64 vectors; made by :func:`mean_loss_hessian`.

    Attributes:
        size: W, the number of parameters that require gradients.
        rounding: Relative asymmetry to be expected in the precision of the parameters.
        device: Where the parameters lie.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        loss: Callable[[slice], Tensor],
        chunks: list[tuple[slice, float]],
    ) -> None:
        self._parameters = parameters
        self._loss = loss
        self._chunks = chunks
        self._random_state = RandomStateSnapshot({parameter.device for parameter in parameters})
        self.size = sum(parameter.numel() for parameter in parameters)
        self.rounding = 1e-6 if all(p.dtype == torch.float64 for p in parameters) else 1e-2
        self.device = parameters[0].device

    def __call__(self, vector: Tensor) -> Tensor:
        """Multiply; two backward passes over every sample, one chunk of the graph at a time."""
        pieces = vector.to(self.device).split([parameter.numel() for parameter in self._parameters])
        tangents = [
            piece.view_as(parameter).to(parameter.dtype)
            for piece, parameter in zip(pieces, self._parameters, strict=True)
        ]
        result = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        # The same draws in every product, should the module draw in evaluation mode too.
        self._random_state.restore()
        for index, weight in self._chunks:
            result += weight * self._chunk_product(index, tangents)
        return result

    def _chunk_product(self, index: slice, tangents: list[Tensor]) -> Tensor:
        loss = self._loss(index)
        if not loss.requires_grad:
            return torch.zeros(self.size, dtype=torch.float64, device=self.device)
        gradients = torch.autograd.grad(loss, self._parameters, create_graph=True, allow_unused=True)
        pairs = [
            (gradient, tangent)
            for gradient, tangent in zip(gradients, tangents, strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        if not pairs:  # the loss is linear in the parameters
            return torch.zeros(self.size, dtype=torch.float64, device=self.device)
        products = torch.autograd.grad(
            [gradient for gradient, _ in pairs],
            self._parameters,
            [tangent for _, tangent in pairs],
            allow_unused=True,
            materialize_grads=True,
        )
        return torch.cat([product.detach().flatten().double() for product in products])


@contextmanager
def mean_loss_hessian(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    loss_fn: LossFn | None = None,
    chunk_size: int | None = None,
) -> Iterator[HessianVectorProduct]:
    """Products with ``H = ∇²_w L(S, w)``, L the mean loss over all samples given, in evaluation mode.

    Reverse mode twice (``∇(∇L · v)``), so that every layer with a double backward works; in the parameters'
    dtype, accumulated over chunks in float64. Weights, their ``.grad``, buffers, modes and the random state are
    left as found.

    Args:
        module: The network, float32 or float64, in any mode.
        inputs: N samples: a tensor, a tuple (``module(*inputs)``) or a dict (``module(**inputs)``).
        targets: Class indices, class probabilities, or what ``loss_fn`` takes.
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [N]``; ``None`` is the cross-entropy.
        chunk_size: Samples whose graph is held at a time; ``None``: all.

    Yields:
        The product, a callable.

    Raises:
        ValueError: If there is nothing to differentiate, parameters are narrower than float32, ``chunk_size``
            is not positive, or a batch-norm uses batch statistics.
    """
    require_integer("chunk_size", chunk_size, 1, or_none=True)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("Expected argument `module` to have parameters that require gradients, but got none.")
    require_full_precision(parameters, "the Hessian")
    count = num_samples(inputs)
    step = chunk_size or count
    chunks = [
        (slice(start, min(start + step, count)), (min(start + step, count) - start) / count)
        for start in range(0, count, step)
    ]
    with differentiable_evaluation(module):
        inputs, targets = differentiable((inputs, targets), module)

        def loss(index: slice) -> Tensor:
            return mean_loss(evaluate(module, take(inputs, index)), take(targets, index), loss_fn)

        yield HessianVectorProduct(parameters, loss, chunks)
