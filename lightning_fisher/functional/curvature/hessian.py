"""Products with the Hessian of the mean loss, which is never formed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_fisher.arguments import require_integer
from lightning_fisher.exceptions import InteractionError
from lightning_fisher.functional.evaluation.batch import own_batch
from lightning_fisher.functional.evaluation.differentiable import differentiable_evaluation, evaluate
from lightning_fisher.functional.evaluation.graph import refuse_constant, refuse_single_derivatives, second_derivatives
from lightning_fisher.functional.evaluation.independence import random_order, require_same_outputs
from lightning_fisher.functional.evaluation.module_state import RandomStateSnapshot, dense
from lightning_fisher.functional.evaluation.precision import require_full_precision
from lightning_fisher.functional.evaluation.samples import chunks, num_samples, take, with_sample_dimension
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
        with second_derivatives("the Hessian"):
            for index, weight in self._chunks:
                result += weight * self._chunk_product(index, tangents)
        self._checked = True
        return result

    def _chunk_product(self, index: slice, tangents: list[Tensor]) -> Tensor:
        loss = self._loss(index)
        if not loss.requires_grad:
            return torch.zeros(self.size, dtype=torch.float64, device=self.device)
        gradients = torch.autograd.grad(loss, self._parameters, create_graph=True, allow_unused=True)
        if not self._checked:  # once for all chunks and products
            refuse_single_derivatives(gradients, "the Hessian")
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
            parts = _weighted_chunks(part, inputs, parameters, weights, chunks(count, step))
        first = part(parts[0][0])
        refuse_foreign_parameters(module, loss_parameters(*first))
        refuse_constant(first[2], parameters)
        del first
        yield HessianVectorProduct(parameters, lambda index: part(index)[2].mean(), parts)


Part = Callable[[slice | Tensor], tuple[Any, Any, Tensor]]  # outputs, targets, losses of some samples


def _weighted_chunks(
    part: Part,
    inputs: Any,
    parameters: list[nn.Parameter],
    weights: Callable[[], PartWeights],
    slices: list[slice],
) -> list[tuple[slice, float]]:
    """Chunks and what they weigh in the loss of all samples, which has to be made of theirs.

    Outputs, and the gradient of the loss, are compared with those of another grouping of the samples; costs two forward
    and backward passes.

    Raises:
        InteractionError: If samples interact in the module.
        ValueError: If they do in the loss.
    """
    order = random_order(slices[-1].stop, parameters[0].device)
    here = _Grouping(part, inputs, parameters, weights(), slices, slices)
    others = (
        slices if slices[0].stop > 1 else chunks(slices[-1].stop, 2)
    )  # alone, samples don't show that they interact
    there = _Grouping(part, inputs, parameters, weights(), [order[index] for index in others], others)
    require_same_outputs(there.outputs, take(here.outputs, order))
    tolerance = 1e-6 if all(p.dtype == torch.float64 for p in parameters) else 1e-3
    difference = float((here.gradient - there.gradient).norm())
    if not math.isnan(difference) and difference > tolerance * (here.size + there.size):
        raise InteractionError(f"the gradient differs by {difference / (here.size + there.size):.1e} between groupings")
    return [pair for pair in zip(slices, here.shares, strict=True) if pair[1] != 0]


class _Grouping:
    """The outputs, the gradient of the loss and the chunks' shares in it, from chunks of given samples.

    Attributes:
        outputs: Of all samples, in the order given.
        shares: Of the chunks, add up to one for a mean.
        gradient: ``[W]``.
        size: Norms of the chunks' parts of the gradient, added up.
    """

    def __init__(
        self,
        part: Part,
        inputs: Any,
        parameters: list[nn.Parameter],
        weights: PartWeights,
        indices: Sequence[slice | Tensor],
        slices: Sequence[slice],
    ) -> None:
        own, gradients, outputs = [], [], []
        for index, chunk in zip(indices, slices, strict=True):
            output, targets, losses = part(index)
            gradients.append(_flat_gradient(losses.mean(), parameters))
            samples = chunk.stop - chunk.start
            own.append(weights.add(take(inputs, index), output, targets, losses.detach(), samples))
            outputs.append(tree_map(partial(_of_samples, samples), output))
        if weights.coupled:
            raise ValueError(
                "Expected argument `loss_fn` to be a mean over samples where `chunk_size` is given, but its value on "
                "two chunks together is no average of its values on each: it couples samples (a contrastive loss, or "
                "one of batch statistics); leave `chunk_size` out."
            )
        total = math.nan if weights.lost() or not weights.total else weights.total
        self.shares = [weight / total if weight else 0.0 for weight in own]
        counted = [share * gradient for share, gradient in zip(self.shares, gradients, strict=True) if share]
        self.gradient = torch.stack(counted).sum(0) if counted else gradients[0]
        self.size = sum(float(gradient.norm()) for gradient in counted)
        self.outputs = tree_map(
            lambda *leaves: torch.cat(leaves) if all(isinstance(leaf, Tensor) for leaf in leaves) else None,
            *outputs,
        )


def _of_samples(samples: int, leaf: Any) -> Any:
    """What holds the samples in dimension 0; a loss, say, that the module returns itself doesn't."""
    if samples == 1:  # some modules squeeze a batch of one away
        leaf = with_sample_dimension(leaf)
    return leaf.detach() if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == samples else None


def _flat_gradient(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """``[W]``, float64."""
    if not loss.requires_grad:
        return torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64, device=parameters[0].device)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([dense(gradient).flatten().double() for gradient in found])
