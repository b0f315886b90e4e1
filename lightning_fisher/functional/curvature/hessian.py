"""Products with the Hessian of the mean loss, which is never formed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fisher.arguments import require_integer
from lightning_fisher.functional.curvature.weighted_chunks import weighted_chunks
from lightning_fisher.functional.evaluation.batch import own_batch
from lightning_fisher.functional.evaluation.differentiable import differentiable_evaluation, evaluate
from lightning_fisher.functional.evaluation.graph import refuse_constant, refuse_single_derivatives, second_derivatives
from lightning_fisher.functional.evaluation.precision import require_full_precision
from lightning_fisher.functional.evaluation.samples import chunks, num_samples, take
from lightning_fisher.functional.evaluation.state.random_state import RandomStateSnapshot
from lightning_fisher.functional.losses.denominator import PartWeights
from lightning_fisher.functional.losses.loss import LossFn, losses_of
from lightning_fisher.functional.losses.loss_parameters import loss_parameters, refuse_foreign_parameters


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
        self._checked = False
        self._random_state = RandomStateSnapshot({parameter.device for parameter in parameters})
        self._keeps = len(chunks) == 1
        self._kept: list[Tensor | None] | None = None  # the gradient with its graph
        self._compared = False
        self.size = sum(parameter.numel() for parameter in parameters)
        self.rounding = 1e-6 if all(p.dtype == torch.float64 for p in parameters) else 1e-2
        self.device = parameters[0].device

    def __call__(self, vector: Tensor) -> Tensor:
        """Multiply: a backward pass through the graph of the gradient.

        That graph is kept for the next product if there is one chunk, otherwise made again for every one. The first
        product of a kept graph is compared with one of a new graph: a function may change in its backward pass what it
        saved.
        """
        pieces = vector.to(self.device).split([parameter.numel() for parameter in self._parameters])
        tangents = [
            piece.view_as(parameter).to(parameter.dtype)
            for piece, parameter in zip(pieces, self._parameters, strict=True)
        ]
        if self._kept is None:
            return self._product(tangents)
        try:
            result = self._backward(self._kept, tangents)
        except RuntimeError:  # a graph for one pass only
            self.forget()
            return self._product(tangents)
        if not self._compared:
            self._compared = True
            fresh = self._product(tangents)
            if bool((result - fresh).abs().max() > self.rounding * fresh.abs().max()):  # not where they are undefined
                self.forget()
            return fresh
        return result

    def forget(self) -> None:
        """Keep no graph, now and from here on."""
        self._keeps, self._kept = False, None

    def _product(self, tangents: list[Tensor]) -> Tensor:
        """With new graphs, one chunk at a time."""
        result = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        # The same draws in every product, should the module draw in evaluation mode too.
        self._random_state.restore()
        with second_derivatives("the Hessian"):
            for index, weight in self._chunks:
                gradients = self._gradients(index)
                result += weight * self._backward(gradients, tangents)
                if self._keeps:
                    self._kept = gradients
        self._checked = True
        return result

    def _gradients(self, index: slice) -> list[Tensor | None]:
        """Of a chunk's loss, with their graph; ``None`` for parameters that it doesn't depend on."""
        loss = self._loss(index)
        if not loss.requires_grad:
            return [None] * len(self._parameters)
        gradients: list[Tensor | None] = list(
            torch.autograd.grad(loss, self._parameters, create_graph=True, allow_unused=True)
        )
        if not self._checked:  # once for all chunks and products
            refuse_single_derivatives(gradients, "the Hessian")
        return gradients

    def _backward(self, gradients: list[Tensor | None], tangents: list[Tensor]) -> Tensor:
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
            retain_graph=self._keeps,
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
    left unchanged.

    Args:
        module: The network, float32 or float64, in any mode.
        inputs: N samples: a tensor, a tuple (``module(*inputs)``) or a dict (``module(**inputs)``).
        targets: Class indices, class probabilities, or what ``loss_fn`` takes.
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [N]``; ``None`` is the cross-entropy.
        chunk_size: Samples whose graph is held at a time; ``None``: all. Chunks weigh what they weigh in the loss of
            all samples (labels that aren't ignored, class weights); samples must not interact then.

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
    with differentiable_evaluation(module):
        inputs, targets = own_batch(module, inputs, targets)

        def part(index: slice | Tensor) -> tuple[Any, Any, Tensor]:
            own = take(targets, index)
            outputs = evaluate(module, take(inputs, index))
            return outputs, own, losses_of(outputs, own, loss_fn)

        parts: list[tuple[slice, float]] = [(slice(0, count), 1.0)]
        if step < count:
            weights = partial(PartWeights, module, loss_fn)
            parts = weighted_chunks(part, inputs, parameters, weights, chunks(count, step))
        first = part(parts[0][0])
        refuse_foreign_parameters(module, loss_parameters(*first))
        refuse_constant(first[2], parameters)
        del first
        product = HessianVectorProduct(parameters, lambda index: part(index)[2].mean(), parts)
        try:
            yield product
        finally:
            product.forget()
