"""What chunks of samples weigh in the loss of all of them, and whether that loss is made of theirs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_fisher.exceptions import InteractionError
from lightning_fisher.functional.evaluation.graph import dense
from lightning_fisher.functional.evaluation.independence import (
    random_order,
    refuse_random_outputs,
    require_same_outputs,
)
from lightning_fisher.functional.evaluation.samples import chunks, take, with_sample_dimension
from lightning_fisher.functional.losses.denominator import PartWeights

Part = Callable[[slice | Tensor], tuple[Any, Any, Tensor]]  # outputs, targets, losses of some samples


def weighted_chunks(
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
        ValueError: If they do in the loss, or two passes of the same samples differ.
    """
    order = random_order(slices[-1].stop, parameters[0].device)
    here = _Grouping(part, inputs, parameters, weights(), slices, slices)
    others = (
        slices if slices[0].stop > 1 else chunks(slices[-1].stop, 2)
    )  # alone, samples don't show that they interact
    there = _Grouping(part, inputs, parameters, weights(), [order[index] for index in others], others)
    try:
        require_same_outputs(there.outputs, take(here.outputs, order))
    except InteractionError:
        refuse_random_outputs(part(slices[0])[0], part(slices[0])[0])
        raise
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
        gradients, outputs = [], []
        for index, chunk in zip(indices, slices, strict=True):
            output, targets, losses = part(index)
            gradients.append(_flat_gradient(losses.mean(), parameters))
            samples = chunk.stop - chunk.start
            weights.add(take(inputs, index), output, targets, losses.detach(), samples)
            outputs.append(tree_map(partial(_of_samples, samples), output))
        if weights.coupled:
            raise ValueError(
                "Expected argument `loss_fn` to be a mean over samples where `chunk_size` is given, but its value on "
                "two chunks together is no average of its values on each: it couples samples (a contrastive loss, or "
                "one of batch statistics), or has a term beside a sum over them; leave `chunk_size` out."
            )
        total = math.nan if weights.lost() or not weights.total else weights.total
        self.shares = [weight / total if weight else 0.0 for weight in weights.each]
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
