"""Per-sample gradients one by one: the general method, and the coupled batch-norm form of the authors' code.

Works for any module autograd can differentiate. J is formed in blocks of parameters that fit in memory, at the price
of repeating the passes for every block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from lightning_fisher.functional.evaluation.graph import dense
from lightning_fisher.functional.evaluation.memory import available_memory
from lightning_fisher.functional.evaluation.precision import RefuseAutocast
from lightning_fisher.functional.evaluation.samples import chunks, leading_size, take
from lightning_fisher.functional.gram.problem import Problem
from lightning_fisher.functional.gram.rules.parameter_scale import column_scales
from lightning_fisher.functional.gram.rules.products import MAX_ELEMENTS, gram_of_rows

COLUMNS = 2**14  # of J whose products are summed up in its own precision; the sums of those are float64
SHARE = 0.25  # of the memory available that J may take


def parameter_blocks(parameters: Sequence[Tensor], count: int, limit: float) -> Iterator[list[Tensor]]:
    """Runs of parameters whose ``[N, …]`` rows stay below ``limit`` elements (one parameter at the least)."""
    block: list[Tensor] = []
    size = 0
    for parameter in parameters:
        if block and (size + parameter.numel()) * count > limit:
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
    watched: bool = True,
) -> Tensor:
    """Gram matrix of ``∇_w ⟨direction_j, z_j⟩`` over ``parameters``, at the problem's scale, sample j in its chunk.

    Every pass runs once as long as a quarter of the memory available holds ``J``, else once for each block of its
    columns.

    Args:
        problem: Module and samples.
        parameters: Parameters that require gradients.
        directions: Output gradients, in the structure of the outputs.
        chunk_size: Consecutive samples run together; with batch statistics they are coupled.
        check: Called with the outputs of every chunk and the chunk.
        watched: Refuse passes that enter autocast; by a function mode, which a module may notice.

    Returns:
        ``[N, N]``, float64.
    """
    count, device = problem.count, problem.device
    gram = torch.zeros(count, count, dtype=torch.float64, device=device)
    dtype = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
    for block in parameter_blocks(parameters, count, row_limit(problem)):
        rows = torch.zeros(count, sum(p.numel() for p in block), dtype=dtype, device=device)
        for chunk in chunks(count, chunk_size):
            with RefuseAutocast({device.type}) if watched else nullcontext():
                outputs = problem.take(chunk).outputs()
            if check is not None:
                check(outputs, chunk)
            output_gradient_rows(outputs, take(directions, chunk), block, out=rows[chunk])
        if problem.scale != "none":
            rows *= column_scales(block, problem.scale).to(dtype)
        for columns in rows.split(COLUMNS, 1):
            gram += gram_of_rows([columns])
    return gram


def rows_fit(problem: Problem, elements: int) -> bool:
    """Whether so many elements of J may be held at once; a look at the memory takes as long as a small pass."""
    return elements <= MAX_ELEMENTS or elements <= row_limit(problem)


def row_limit(problem: Problem) -> float:
    """The number of elements of J that may be held at once."""
    itemsize = max(parameter.dtype.itemsize for parameter in problem.parameters)
    return max(min(SHARE * available_memory(problem.device) / itemsize, 2.0**33), MAX_ELEMENTS)


def output_gradient_rows(
    outputs: Any, directions: Any, parameters: Sequence[Tensor], out: Tensor | None = None
) -> Tensor:
    """Gradients ``∇_w ⟨direction_j, z_j⟩``, ``[n, W]``, of the samples of one pass, one backward pass each."""
    pairs = differentiable_pairs(outputs, directions)
    count = leading_size(directions, "outputs")
    if out is None:
        out = parameters[0].new_zeros(count, sum(p.numel() for p in parameters))
    if not pairs:
        return out
    for j in range(count):
        alone = [direction if count == 1 else torch.zeros_like(output) for output, direction in pairs]
        if count > 1:
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
    # Reshaped: some modules squeeze a batch of one away.
    return [(o, d.reshape(o.shape)) for o, d in pairs if isinstance(o, Tensor) and o.requires_grad]


def collect_outputs(problem: Problem, chunk_size: int) -> Any:
    """Detached outputs of all samples, run in consecutive chunks."""
    # With gradients: without, torch's attention takes other kernels, and a module may need them.
    results = [detached(problem.take(chunk).outputs()) for chunk in chunks(problem.count, chunk_size)]
    return tree_map(lambda *leaves: torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0], *results)


def detached(tree: Any) -> Any:
    """The same tensors without their graph."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, tree)
