"""Per-sample gradients one by one: the general method, and the coupled batch-norm form of the authors' code.

Works for any module autograd can differentiate. J is formed in blocks of parameters that fit in memory, at the price
of repeating the passes for every block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from lightning_fisher.functional.evaluation.module_state import dense
from lightning_fisher.functional.evaluation.precision import RefuseAutocast
from lightning_fisher.functional.evaluation.samples import chunks, num_samples, take
from lightning_fisher.functional.gram.problem import Problem
from lightning_fisher.functional.gram.rules.products import MAX_ELEMENTS, gram_of_rows


def parameter_blocks(parameters: Sequence[Tensor], count: int) -> Iterator[list[Tensor]]:
    """Runs of parameters whose ``[N, …]`` rows stay below `MAX_ELEMENTS` (one parameter at the least)."""
    block: list[Tensor] = []
    size = 0
    for parameter in parameters:
        if block and (size + parameter.numel()) * count > MAX_ELEMENTS:
            yield block
            block, size = [], 0
        block.append(parameter)
        size += parameter.numel()
    if block:
        yield block


def row_gram(
    problem: Problem,
    parameters: Sequence[Tensor],
    directions: Any,
    *,
    chunk_size: int = 1,
    check: Callable[[Any, slice], None] | None = None,
) -> Tensor:
    """Gram matrix of ``∇_w ⟨direction_j, z_j⟩`` over ``parameters``, sample j run within its chunk.

    Args:
        problem: Module and samples.
        parameters: Parameters that require gradients.
        directions: Output gradients, in the structure of the outputs.
        chunk_size: Consecutive samples run together; with batch statistics they are coupled.
        check: Called with the outputs of every chunk and the chunk.

    Returns:
        ``[N, N]``, float64.
    """
    count, device = problem.count, problem.device
    gram = torch.zeros(count, count, dtype=torch.float64, device=device)
    for block in parameter_blocks(parameters, count):
        rows = torch.zeros(count, sum(p.numel() for p in block), dtype=block[0].dtype, device=device)
        for chunk in chunks(count, chunk_size):
            with RefuseAutocast({device.type}):
                outputs = problem.take(chunk).outputs()
            if check is not None:
                check(outputs, chunk)
            output_gradient_rows(outputs, take(directions, chunk), block, out=rows[chunk])
        rows = rows.double()
        gram += gram_of_rows([rows])
    return gram


def output_gradient_rows(
    outputs: Any, directions: Any, parameters: Sequence[Tensor], out: Tensor | None = None
) -> Tensor:
    """Gradients ``∇_w ⟨direction_j, z_j⟩``, ``[n, W]``, of the samples of one pass, one backward pass each."""
    pairs = differentiable_pairs(outputs, directions)
    count = num_samples(directions)
    if out is None:
        out = parameters[0].new_zeros(count, sum(p.numel() for p in parameters))
    if not pairs:
        return out
    for j in range(count):
        alone = [torch.zeros_like(output) for output, _ in pairs]
        for cotangent, (_, direction) in zip(alone, pairs, strict=True):
            cotangent[j] = direction[j]
        grads = torch.autograd.grad(
            [output for output, _ in pairs],
            parameters,
            alone,
            retain_graph=j < count - 1,
            allow_unused=True,
            materialize_grads=True,
        )
        out[j] = torch.cat([dense(grad).detach().flatten() for grad in grads])
    return out


def differentiable_pairs(outputs: Any, directions: Any) -> list[tuple[Tensor, Tensor]]:
    """The tensors among the outputs that have a graph, each with its direction."""
    pairs = zip(tree_flatten(outputs)[0], tree_flatten(directions)[0], strict=True)
    return [(output, d) for output, d in pairs if isinstance(output, Tensor) and output.requires_grad]


def collect_outputs(problem: Problem, chunk_size: int) -> Any:
    """Detached outputs of all samples, run in consecutive chunks."""
    with torch.no_grad():
        results = [problem.take(chunk).outputs() for chunk in chunks(problem.count, chunk_size)]
    return tree_map(lambda *leaves: torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0], *results)
