"""Per-sample gradients one by one: the general method, and the coupled batch-norm form of the authors' code.

Works for any module autograd can differentiate. J is formed in blocks of parameters that fit in memory, at the price
of repeating the passes for every block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from lightning_fisher.exceptions import InteractionError
from lightning_fisher.functional.evaluation.module_state import dense
from lightning_fisher.functional.evaluation.precision import RefuseAutocast
from lightning_fisher.functional.evaluation.samples import (
    call_module,
    chunks,
    num_samples,
    restore_sample_dimension,
    take,
)
from lightning_fisher.functional.gram.rules.base import MAX_ELEMENTS, gram_of_rows


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
    module: nn.Module,
    parameters: Sequence[Tensor],
    inputs: Any,
    directions: Any,
    *,
    chunk_size: int = 1,
    outputs: Any = None,
    tolerance: float = 0.0,
) -> Tensor:
    """Gram matrix of ``∇_w ⟨direction_j, z_j⟩`` over ``parameters``, sample j run within its chunk.

    Args:
        module: The module, already in the right mode.
        parameters: Parameters that require gradients.
        inputs: N samples.
        directions: Output gradients, in the structure of the outputs.
        chunk_size: Consecutive samples run together; with batch statistics they are coupled.
        outputs: Outputs of all samples at once to compare with, or ``None``.
        tolerance: Relative difference allowed to ``outputs``.

    Returns:
        ``[N, N]``, float64.

    Raises:
        ValueError: If an output differs from ``outputs``.
    """
    count = num_samples(inputs)
    device = parameters[0].device
    gram = torch.zeros(count, count, dtype=torch.float64, device=device)
    for block in parameter_blocks(parameters, count):
        rows = torch.zeros(count, sum(p.numel() for p in block), dtype=block[0].dtype, device=device)
        for chunk in chunks(count, chunk_size):
            with RefuseAutocast({device.type}):
                result = call_module(module, take(inputs, chunk))
            result = restore_sample_dimension(result, take(directions, chunk))
            if outputs is not None:
                _compare(result, take(outputs, chunk), tolerance)
            _fill(rows, chunk, block, result, take(directions, chunk))
        rows = rows.double()
        gram += gram_of_rows([rows])
    return gram


def _fill(rows: Tensor, chunk: slice, block: list[Tensor], result: Any, directions: Any) -> None:
    pairs = [
        (output, direction)
        for output, direction in zip(tree_flatten(result)[0], tree_flatten(directions)[0], strict=True)
        if isinstance(output, Tensor) and output.requires_grad
    ]
    if not pairs:
        return
    for j in range(chunk.stop - chunk.start):
        alone = [torch.zeros_like(output) for output, _ in pairs]
        for cotangent, (_, direction) in zip(alone, pairs, strict=True):
            cotangent[j] = direction[j]
        last = j == chunk.stop - chunk.start - 1
        grads = torch.autograd.grad(
            [output for output, _ in pairs],
            block,
            alone,
            retain_graph=not last,
            allow_unused=True,
            materialize_grads=True,
        )
        rows[chunk.start + j] = torch.cat([dense(grad).detach().flatten() for grad in grads])


def collect_outputs(module: nn.Module, inputs: Any, chunk_size: int) -> Any:
    """Detached outputs of all samples, run in consecutive chunks."""
    with torch.no_grad():
        results = [call_module(module, take(inputs, chunk)) for chunk in chunks(num_samples(inputs), chunk_size)]
    return tree_map(lambda *leaves: torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0], *results)


def _compare(result: Any, expected: Any, tolerance: float) -> None:
    for one, batch in zip(tree_flatten(result)[0], tree_flatten(expected)[0], strict=True):
        if isinstance(one, Tensor):
            scale = batch.abs().max()
            if one.shape != batch.shape or bool((one.detach() - batch).abs().max() > tolerance * scale):
                raise InteractionError("one by one and together")
