"""Whether the samples of a batch are independent of each other, checked on all of them at random.

Outputs are compared with those of the same samples in another grouping. Gradients: with random weights c the gradient
of ``Σ_j c_j ⟨u_j, z_j⟩`` with respect to what belongs to sample j alone is ``c_j`` times that of ``Σ_j ⟨u_j, z_j⟩``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from lightning_fisher.exceptions import InteractionError
from lightning_fisher.functional.evaluation.graph import pulled_back
from lightning_fisher.functional.evaluation.precision import SAME
from lightning_fisher.functional.evaluation.samples import restore_sample_dimension, take

GRADIENT = 10  # times the tolerance of outputs
DRAWS = 8  # of factors that make no rounding
PARAMETERS = {torch.float32: 1e-3, torch.float64: 1e-6}  # relative, of gradients of parameters: kinks are crossed


def random_order(count: int, device: torch.device) -> Tensor:
    """A permutation that is the same at every call, whatever the global random state."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(count)).to(device)


def random_weights(count: int, device: torch.device) -> Tensor:
    """Of both signs and sizes from 0.5 to 1.5, float64; the same at every call, whatever the global random state.

    No two are equal, so that any two samples can be told apart.
    """
    generator = torch.Generator().manual_seed(count)
    signs = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    return (signs * (0.5 + torch.rand(count, dtype=torch.float64, generator=generator))).to(device)


def regroupings(count: int, device: torch.device) -> list[Tensor]:
    """Two random halves of the samples, and one sample alone; none where there is only one."""
    if count < 2:
        return []
    order = random_order(count, device)
    halves = [order[: count // 2], order[count // 2 :]]
    return halves if count == 2 else [*halves, order[:1]]


def refuse_dependent_outputs(run: Callable[[Any], Any], inputs: Any, outputs: Tensor) -> None:
    """Compare outputs ``[N, …]`` with those of two random halves of the batch, and of one sample; costs a forward pass.

    Raises:
        InteractionError: If they differ by more than rounding.
        ValueError: If two passes of the batch do.
    """
    with torch.enable_grad():  # a module may differentiate in its own forward pass
        for part in regroupings(len(outputs), outputs.device):
            expected = outputs.detach()[part]
            seen = restore_sample_dimension(run(take(inputs, part)), expected)
            try:
                require_same_outputs(seen, expected, outputs)
            except InteractionError:
                refuse_random_outputs(run(inputs), outputs)
                raise


def refuse_random_outputs(again: Any, outputs: Any) -> None:
    """Compare the outputs of two passes of the same batch.

    Raises:
        ValueError: If they differ.
    """
    try:
        require_same_outputs(again, outputs)
    except InteractionError:
        raise ValueError(
            "Expected a deterministic forward pass in evaluation mode, but the same batch gives different outputs: "
            "does the module draw random numbers?"
        ) from None


def require_same_outputs(outputs: Any, expected: Any, whole: Any = None) -> None:
    """Compare two evaluations of the same samples in different company, in every floating-point tensor.

    Args:
        outputs: Of one evaluation.
        expected: Of the other.
        whole: What the size of a difference is measured against; ``None``: ``expected``. Single numbers may be
            smaller than the rounding of others in the batch.

    Raises:
        InteractionError: If they differ by more than rounding.
    """
    sizes = tree_flatten(expected if whole is None else whole)[0]
    for one, other, size in zip(tree_flatten(outputs)[0], tree_flatten(expected)[0], sizes, strict=True):
        if not (isinstance(one, Tensor) and one.is_floating_point()):
            continue
        if one.shape != other.shape:
            raise InteractionError(f"shape {tuple(one.shape)} in another grouping, {tuple(other.shape)} in the batch")
        if not one.numel():
            continue
        one, other, size = one.detach(), other.detach(), size.detach().abs()
        scale = torch.where(torch.isfinite(size), size, 0.0).max()  # scores of what is masked are infinite
        difference = torch.where((one == other) | (one.isnan() & other.isnan()), 0.0, one - other).abs().max()
        if not bool(difference <= SAME.get(one.dtype, SAME[torch.float32]) * scale):
            raise InteractionError(f"relative difference {float(difference / scale):.1e} in another grouping")


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
    factors = random_weights(count, outputs.device).to(outputs.dtype)

    def pulled(cotangent: Tensor) -> Tensor:
        found = torch.autograd.grad(
            outputs, list(leaves), cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([gradient.reshape(count, -1) for gradient in found], 1)

    def relative(factors: Tensor) -> float:
        scaled = pulled(weights * factors.view(-1, *[1] * (outputs.ndim - 1)))
        return float((scaled - factors.unsqueeze(1).to(plain) * plain).abs().max() / largest)

    plain = pulled(weights)
    largest = plain.abs().max()
    tolerance = GRADIENT * SAME.get(plain.dtype, 1e-4)
    if not bool(torch.isfinite(largest)) or not bool(largest > 0):
        return
    found = relative(factors)
    if found <= tolerance:
        return
    # A gradient that is zero but for rounding: that scales with powers of two, exactly, and with nothing else.
    powers = (2.0 ** torch.randint(0, 3, (DRAWS, count), generator=generator)).to(outputs)
    if not all(relative(drawn) <= tolerance for drawn in powers):
        raise InteractionError(f"it reaches what belongs to others, relative size {found:.1e}", gradient=True)


def weighted(directions: Any, weights: Tensor) -> Any:
    """Directions of N samples, in any structure, each times its weight, ``[N]``."""

    def one(leaf: Any) -> Any:
        if not (isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim and len(leaf) == len(weights)):
            return leaf
        return leaf * weights.to(leaf.dtype).view(-1, *[1] * (leaf.ndim - 1))

    return tree_map(one, directions)


def gradient_tolerance(parameters: Sequence[Tensor]) -> float:
    """Relative difference that two gradients of the same thing may show."""
    return PARAMETERS[torch.float64 if all(p.dtype == torch.float64 for p in parameters) else torch.float32]


class OneByOne:
    """Compares samples that run one by one with the batch: the outputs of each, a random combination of the gradients.

    Costs a backward pass of the batch.

    Args:
        run: The module.
        inputs: N samples.
        outputs: Of the batch, with their graph, which is freed.
        directions: Gradients of the losses with respect to the outputs, in the structure of these.
        scales: What the direction of each sample is multiplied by, ``[N]`` float64.
        parameters: What is differentiated by.
    """

    def __init__(
        self,
        run: Callable[[Any], Any],
        inputs: Any,
        outputs: Any,
        directions: Any,
        scales: Tensor,
        parameters: Sequence[Tensor],
    ) -> None:
        self._run, self._inputs, self._parameters = run, inputs, parameters
        self._weights = random_weights(len(scales), scales.device)
        found = pulled_back(outputs, weighted(directions, self._weights * scales), parameters)
        self._together = torch.cat([gradient.flatten() for gradient in found])
        self._outputs = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, outputs)
        self._alone = torch.zeros_like(self._together)
        self._size = torch.zeros((), dtype=torch.float64, device=self._together.device)

    def add(self, j: int, outputs: Any, gradient: Tensor) -> None:
        """Take in a sample.

        Args:
            j: Its number.
            outputs: Of it alone.
            gradient: Of its loss, ``[W]`` float64.

        Raises:
            InteractionError: If the outputs aren't those in the batch.
            ValueError: If two passes of the batch differ.
        """
        expected = take(self._outputs, slice(j, j + 1))
        try:
            require_same_outputs(restore_sample_dimension(outputs, expected), expected, self._outputs)
        except InteractionError:
            refuse_random_outputs(self._run(self._inputs), self._outputs)
            raise
        self._alone += self._weights[j] * gradient
        self._size += self._weights[j].abs() * gradient.norm()

    def finish(self) -> None:
        """Compare the gradients.

        Raises:
            InteractionError: If they differ.
        """
        difference = (self._together - self._alone).norm()
        if bool(difference > gradient_tolerance(self._parameters) * self._size):
            relative = float(difference / self._size)
            raise InteractionError(f"relative difference {relative:.1e} between alone and together", gradient=True)
