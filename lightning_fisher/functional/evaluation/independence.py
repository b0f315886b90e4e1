"""Whether the samples of a batch are independent of each other, checked on all of them at random.

Outputs are compared with those of the same samples in another grouping. Gradients: with random signs s the gradient of
``Σ_j s_j ⟨u_j, z_j⟩`` with respect to what belongs to sample j alone is ``s_j`` times that of ``Σ_j ⟨u_j, z_j⟩``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from lightning_fisher.exceptions import InteractionError
from lightning_fisher.functional.evaluation.precision import SAME
from lightning_fisher.functional.evaluation.samples import restore_sample_dimension, take

GRADIENT = 10  # times the tolerance of outputs


def random_order(count: int, device: torch.device) -> Tensor:
    """A permutation that is the same at every call, whatever the global random state."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(count)).to(device)


def refuse_dependent_outputs(run: Callable[[Any], Any], inputs: Any, outputs: Tensor) -> None:
    """Compare outputs ``[N, …]`` with those of two random halves of the batch; costs a forward pass.

    Raises:
        InteractionError: If they differ by more than rounding.
    """
    count = len(outputs)
    if count < 2:
        return
    order = random_order(count, outputs.device)
    with torch.enable_grad():  # a module may differentiate in its own forward pass
        for half in (order[: count // 2], order[count // 2 :]):
            expected = outputs.detach()[half]
            require_same_outputs(restore_sample_dimension(run(take(inputs, half)), expected), expected)


def require_same_outputs(outputs: Any, expected: Any) -> None:
    """Compare two evaluations of the same samples in different company, in every floating-point tensor.

    Raises:
        InteractionError: If they differ by more than rounding.
    """
    for one, other in zip(tree_flatten(outputs)[0], tree_flatten(expected)[0], strict=True):
        if not (isinstance(one, Tensor) and one.is_floating_point()):
            continue
        scale = other.detach().abs().max() if other.numel() else torch.zeros(())
        difference = (one.detach() - other.detach()).abs().max() if one.shape == other.shape else math.inf
        if not bool(torch.as_tensor(difference <= SAME.get(one.dtype, SAME[torch.float32]) * scale)):
            relative = float(difference / scale) if one.shape == other.shape else math.inf
            raise InteractionError(f"relative difference {relative:.1e} in another grouping")


def refuse_coupled_gradients(outputs: Tensor, leaves: Sequence[Tensor]) -> None:
    """Check that the outputs of a sample have gradients at its own inputs only; costs two backward passes.

    Args:
        outputs: ``[N, …]`` with a graph, which is kept.
        leaves: The inputs, samples in dimension 0.

    Raises:
        InteractionError: If one has a gradient elsewhere.
    """
    count = len(outputs)
    if count < 2:
        return
    generator = torch.Generator().manual_seed(count)
    weights = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
    signs = (torch.randint(0, 2, (count,), generator=generator) * 2 - 1).to(outputs)

    def pulled(cotangent: Tensor) -> Tensor:
        found = torch.autograd.grad(
            outputs, list(leaves), cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([gradient.reshape(count, -1) for gradient in found], 1)

    plain = pulled(weights)
    signed = pulled(weights * signs.view(-1, *[1] * (outputs.ndim - 1)))
    largest = plain.abs().max()
    difference = (signed - signs.unsqueeze(1).to(plain) * plain).abs().max()
    if bool(torch.isfinite(largest)) and not bool(difference <= GRADIENT * SAME.get(plain.dtype, 1e-4) * largest):
        raise InteractionError(f"its gradient reaches their inputs, relative size {float(difference / largest):.1e}")
