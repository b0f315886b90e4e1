"""Check ξ against ordinary backward passes of the whole batch, with none of the layers' rules in between.

For random weights s, ``sᵀ ξ s = ‖Jᵀ s‖²``, and ``Jᵀ s`` is what one backward pass from the output gradients
``s_j ∂ℓ_j/∂z_j`` gives. The weights are continuous, so any error of ξ shows but for a set of measure zero
(Freivalds 1979, for matrix products); they are scaled by the rows' norms, so that small rows count as much as large
ones. The samples run in another order and in two parts, and one of them alone: outputs or gradients that depend on the
rest of the batch differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from lightning_fisher.exceptions import InteractionError, NonlinearBackwardError, first_line
from lightning_fisher.functional.evaluation.finite import require_finite
from lightning_fisher.functional.evaluation.graph import dense
from lightning_fisher.functional.evaluation.module_copy import in_float64
from lightning_fisher.functional.evaluation.precision import SAME
from lightning_fisher.functional.evaluation.samples import ordinary, take
from lightning_fisher.functional.evaluation.state.attributes import Attributes
from lightning_fisher.functional.evaluation.state.buffers import BufferSnapshot
from lightning_fisher.functional.gram.layout import outputs_difference
from lightning_fisher.functional.gram.operations import Operations
from lightning_fisher.functional.gram.per_sample_jacobian import differentiable_pairs, output_gradient_rows
from lightning_fisher.functional.gram.problem import Problem
from lightning_fisher.functional.gram.rules.parameter_scale import parameter_scale

GRADIENT = 10  # times the tolerance of outputs, for gradients of single samples
TOTAL = 0.3  # times the tolerance of outputs, for all gradients: in float32 kinks make 0.01 of it
ROUNDING = 30  # times machine epsilon: of a parameter's gradient, relative to that of all
NARROW = 1e-5  # tolerance in float64 for modules that compute in float32 by themselves
SMALLEST = 1e-4  # of the mean squared row that a row is scaled by at the least

Group = tuple[int, ...]  # positions of parameters


@dataclass(frozen=True)
class Comparison:
    """Passes of the whole batch, beside ξ.

    Attributes:
        outputs: Relative difference of the outputs.
        groups: The groups of parameters whose part of ξ is not that of the passes.
        total: Whether ξ as a whole is not.
    """

    outputs: float
    groups: list[Group]
    total: bool

    @property
    def gradients_agree(self) -> bool:
        """Whether there is no difference of gradients."""
        return not (self.groups or self.total)


def compare(
    problem: Problem,
    grams: Mapping[Group, Tensor],
    outputs: Any,
    directions: Any,
    generator: torch.Generator,
    *,
    shuffled: bool,
    whole: Any = None,
) -> Comparison:
    """Compare ξ with ordinary passes; costs one forward and backward pass of the batch.

    Args:
        problem: Module and samples.
        grams: ξ in parts, by the parameters they belong to.
        outputs: Of the pass that ξ is made from.
        directions: Output gradients, in the structure of the outputs.
        generator: Of the weights and the order.
        shuffled: Another order, in two parts; else the batch as it is.
        whole: Outputs of the batch as it is, with their graph, which is freed; ``None``: the batch is run.
    """
    count = problem.count
    total = torch.stack(list(grams.values())).sum(0) if len(grams) > 1 else next(iter(grams.values()))
    squares = total.diagonal()
    signs = torch.randint(0, 2, (count,), generator=generator).mul(2).sub(1)
    weights = (signs * (0.5 + torch.rand(count, dtype=torch.float64, generator=generator))).to(squares.device)
    weights = weights / squares.clamp_min(SMALLEST * squares.mean()).clamp_min(1e-300).sqrt()
    order = torch.randperm(count, generator=generator) if shuffled else torch.arange(count)
    positions = sorted(position for group in grams for position in group)
    parameters = [problem.parameters[position] for position in positions]
    sums: list[Any] = [0.0] * len(parameters)
    difference, alone = 0.0, True
    for part in order.tensor_split(2) if shuffled and count > 1 else [order]:
        part = part.to(squares.device)
        seen = problem.take(part).outputs() if whole is None else whole
        difference = max(difference, float(outputs_difference(take(outputs, part), seen, len(part))))
        grads = _weighted_gradients(seen, take(directions, part), weights[part], parameters)
        sums = [before + grad for before, grad in zip(sums, grads, strict=True)]
    if shuffled and count > 2:  # something in either half may affect the others there in the same way
        one = order[:1].to(squares.device)
        seen = problem.take(one).outputs()
        difference = max(difference, float(outputs_difference(take(outputs, one), seen, 1)))
        grads = _weighted_gradients(seen, take(directions, one), torch.ones_like(weights[one]), parameters)
        square = torch.stack(_squares(problem, positions, grads)).sum()
        alone = bool((square - squares[one[0]]).abs() <= GRADIENT * problem.tolerance * squares[one[0]])
    norms = dict(zip(positions, _squares(problem, positions, sums), strict=True))
    found = torch.stack([weights @ gram @ weights for gram in grams.values()])
    expected = torch.stack([torch.stack([norms[position] for position in group]).sum() for group in grams])
    scales = torch.stack([weights.square() @ gram.diagonal() for gram in grams.values()])
    scales = torch.maximum(scales, expected)
    groups, differs = _decide(list(grams), found, expected, scales, problem)
    return Comparison(difference, groups, differs or not alone)


def _squares(problem: Problem, positions: Sequence[int], gradients: Sequence[Tensor]) -> list[Tensor]:
    """Squared norms of gradients at the problem's scale, one a parameter."""
    scales = [parameter_scale(problem.parameters[position], problem.scale) for position in positions]
    return [(g.double() * scale).square().sum() for g, scale in zip(gradients, scales, strict=True)]


def _decide(
    groups: list[Group], found: Tensor, expected: Tensor, scales: Tensor, problem: Problem
) -> tuple[list[Group], bool]:
    tolerance = problem.tolerance
    eps = torch.finfo(torch.float64 if tolerance <= SAME[torch.float64] else torch.float32).eps
    allowed = tolerance / problem.count**0.5
    whole = scales.sum()
    limit = allowed * scales + ROUNDING * eps * (scales * whole).sqrt() + tolerance**2 * whole
    wrong = ~((found - expected).abs() <= limit)
    total = ~((found.sum() - expected.sum()).abs() <= TOTAL * allowed * whole)
    *flags, last = torch.cat([wrong, total.view(1)]).tolist()
    return [group for group, flag in zip(groups, flags, strict=True) if flag], bool(last)


def _weighted_gradients(
    outputs: Any, directions: Any, weights: Tensor, parameters: Sequence[nn.Parameter]
) -> Sequence[Tensor]:
    """``Σ_j s_j ∇_w ⟨direction_j, z_j⟩``, one backward pass."""
    pairs = differentiable_pairs(outputs, directions)
    if not pairs:
        return [torch.zeros_like(parameter) for parameter in parameters]
    cotangents = [d * weights.to(d.dtype).view(-1, *[1] * (d.ndim - 1)) for _, d in pairs]
    grads = torch.autograd.grad(
        [output for output, _ in pairs], parameters, cotangents, allow_unused=True, materialize_grads=True
    )
    return [dense(grad) for grad in grads]


def settle(problem: Problem, detail: str) -> None:
    """Decide whether a difference between passes is rounding, at a kink say, or samples that interact.

    All samples run together and one by one, outputs and gradients, in float64.

    Args:
        problem: Module and samples.
        detail: The difference seen, for the message where float64 can't tell.

    Raises:
        ValueError: If the forward pass is not deterministic.
        InteractionError: If samples interact.
        NonlinearBackwardError: If gradients are not linear in the gradient of the output.
    """
    first, second = problem.outputs(), problem.outputs()
    for leaf in tree_flatten(first)[0]:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            require_finite(leaf.detach(), "outputs of the module")
    if not outputs_difference(first, second, problem.count) <= problem.tolerance:
        raise ValueError(
            "Expected a deterministic forward pass in evaluation mode, but the same batch gives different outputs: "
            "does the module draw random numbers?"
        )
    if problem.state is not None:
        problem.state.restore_moved()  # what the last pass left is in the narrower type
    try:
        with in_float64(problem.module, problem.loss_fn) as inside:
            own = replace(problem, parameters=tuple(inside(parameter) for parameter in problem.parameters))
            finding = _interaction(_in_float64(own))
    except (RuntimeError, TypeError, ValueError) as error:
        raise InteractionError(f"{detail}; not settled in float64: {first_line(error)}") from error
    if finding is not None:
        raise finding


def _in_float64(problem: Problem) -> Problem:
    """The same problem in float64; its tolerance is larger where the module computes in less by itself."""
    if problem.tolerance <= SAME[torch.float64]:
        return problem
    inputs, targets = ordinary((problem.inputs, problem.targets), torch.float64)
    state = BufferSnapshot(problem.module)
    state.attributes = Attributes(problem.module)
    double = replace(problem, inputs=inputs, targets=targets, state=state)
    with Operations() as operations:
        double.take(slice(0, 1)).outputs()
    return replace(double, tolerance=NARROW if operations.narrow else SAME[torch.float64])


def _interaction(problem: Problem) -> InteractionError | NonlinearBackwardError | None:
    """What is wrong with the samples of a batch in float64, if anything is."""
    outputs, parameters = problem.outputs(), problem.parameters
    directions = problem.output_gradients(outputs).directions
    weights = torch.linspace(1.0, 2.0, problem.count, dtype=torch.float64, device=problem.device)
    weights[1::2] *= -1.0
    together = torch.cat([g.flatten() for g in _weighted_gradients(outputs, directions, weights, parameters)])
    alone, size = torch.zeros_like(together), 0.0
    for j in range(problem.count):
        one = slice(j, j + 1)
        seen = problem.take(one).outputs()
        difference = float(outputs_difference(take(outputs, one), seen, 1))
        if not difference <= problem.tolerance:
            return InteractionError(f"relative difference {difference:.1e} between alone and together")
        row = output_gradient_rows(seen, take(directions, one), parameters)[0]
        alone += weights[j] * row
        size += float(row.norm())
    difference = float((together - alone).norm())
    if difference <= GRADIENT * problem.tolerance * size:
        return None
    one = slice(0, 1)
    seen, direction, double = problem.take(one).outputs(), take(directions, one), weights.new_full((1,), 2.0)
    twice = torch.cat([g.flatten() for g in _weighted_gradients(seen, direction, double, parameters)])
    once = output_gradient_rows(problem.take(one).outputs(), direction, parameters)[0]
    if not (twice - 2 * once).norm() <= GRADIENT * problem.tolerance * once.norm():
        return NonlinearBackwardError()
    return InteractionError(f"relative difference {difference / size:.1e} between alone and together", gradient=True)
