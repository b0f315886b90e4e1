"""ξ by the plain loop: one forward and one backward pass a sample, where no layer-by-layer pass would save any.

Along a plan only: the first call has compared samples alone and together. The outputs that the loss sees are those of
the single passes, so that the batch is run only where samples may affect each other depending on their data.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from lightning_fisher.functional.evaluation.graph import dense
from lightning_fisher.functional.evaluation.precision import RefuseAutocast
from lightning_fisher.functional.evaluation.samples import split
from lightning_fisher.functional.gram.per_sample_jacobian import COLUMNS, differentiable_pairs, rows_fit
from lightning_fisher.functional.gram.problem import Problem
from lightning_fisher.functional.gram.recorder import call_of
from lightning_fisher.functional.gram.rules.parameter_scale import column_scales
from lightning_fisher.functional.gram.rules.products import gram_of_rows
from lightning_fisher.functional.losses.loss import OutputGradients

MOST = 0.5  # share of the parameters without a rule from which on all of them go one by one
SMALL = 2**24  # elements of J up to which all do if any has none: the batch costs more than the other gradients


class OneByOneResult(NamedTuple):
    """ξ and what it is made from.

    Attributes:
        grams: Gram matrices ``[N, N]`` (float64) at the problem's scale, by the positions of their parameters.
        gradients: Unit output gradients and their log-norms.
        outputs: What the module returned for the samples, one by one.
    """

    grams: dict[tuple[int, ...], Tensor]
    gradients: OutputGradients
    outputs: Any


def goes_one_by_one(problem: Problem, general: Iterable[int]) -> bool:
    """Whether all parameters are left to single passes where those at the positions ``general`` have to be."""
    sizes = [parameter.numel() for parameter in problem.parameters]
    without, elements = sum(sizes[i] for i in general), sum(sizes) * problem.count
    some = without > MOST * sum(sizes) or (without > 0 and elements <= SMALL)
    return some and rows_fit(problem, elements)


def trace_of_one(problem: Problem) -> list[Any]:
    """Every function of the pass of the first sample; another trace needs another plan."""
    trace, first = _Trace(problem), _samples(problem)[0]
    with trace:
        problem.outputs_of(first, alone=True)
    return trace.calls


def one_by_one(
    problem: Problem, groups: Iterable[tuple[int, ...]], trace: list[Any] | None = None
) -> OneByOneResult | None:
    """Run all samples, each alone; no pass runs twice.

    Cost: N forward and backward passes of one sample; memory of ``J`` and of the graphs of all samples.

    Args:
        problem: Module and samples.
        groups: Positions of the parameters whose Gram matrices are kept apart.
        trace: What the first pass has to be; ``None``: anything.

    Returns:
        The result, or ``None`` if the first pass was another.
    """
    found = _rows(problem, trace)
    if found is None:
        return None
    rows, gradients, together = found
    return OneByOneResult(grams_of_groups(problem, rows, groups), gradients, together)


def squared_singular_values(problem: Problem) -> Tensor:
    """Eigenvalues of C, ascending, as squared singular values of its rows: to the square of their accuracy in C.

    Cost: `one_by_one`, and those of a ``[N, W]`` matrix.

    Args:
        problem: Module and samples.
    """
    found = _rows(problem, None)
    assert found is not None
    rows = found[0]
    if problem.scale != "none":
        rows *= column_scales(problem.parameters, problem.scale).to(rows.dtype)
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows /= torch.where(norms > 0, norms, 1.0)
    return torch.linalg.svdvals(torch.linalg.qr(rows.mT, mode="r").R).square().flip(0)


def _rows(problem: Problem, trace: list[Any] | None) -> tuple[Tensor, OutputGradients, Any] | None:
    """``J`` of the unit output gradients, those, and the outputs; ``None`` if the first pass was another."""
    parameters = problem.parameters
    outputs = []
    for j, sample in enumerate(_samples(problem)):
        watch = _Trace(problem) if j == 0 else None
        with watch or nullcontext():
            outputs.append(problem.outputs_of(sample, alone=True))
        if watch is not None and trace is not None and watch.calls != trace:
            return None
    together = tree_map(_side_by_side, *outputs)
    gradients = problem.output_gradients(together)
    sizes = [parameter.numel() for parameter in parameters]
    dtype = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
    rows = torch.zeros(problem.count, sum(sizes), dtype=dtype, device=problem.device)
    for j, directions in enumerate(split(gradients.directions, [1] * problem.count)):
        pairs = differentiable_pairs(outputs[j], directions)
        outputs[j] = None  # with its graph
        if pairs:
            found = torch.autograd.grad(
                [output for output, _ in pairs], parameters, [direction for _, direction in pairs], allow_unused=True
            )
            for part, gradient in zip(rows[j].split(sizes), found, strict=True):
                if gradient is not None:
                    part.copy_(dense(gradient).detach().reshape(-1))
    return rows, gradients, together


def grams_of_groups(problem: Problem, rows: Tensor, groups: Iterable[tuple[int, ...]]) -> dict[tuple[int, ...], Tensor]:
    """Gram matrices of groups of parameters, by their positions, from ``J``, which is scaled in place."""
    parameters = problem.parameters
    if problem.scale != "none":
        rows *= column_scales(parameters, problem.scale).to(rows.dtype)
    columns = rows.split([parameter.numel() for parameter in parameters], 1)
    grams = {}
    for group in groups:
        own = rows if len(group) == len(parameters) else torch.cat([columns[i] for i in group], 1)
        grams[group] = torch.zeros(problem.count, problem.count, dtype=torch.float64, device=problem.device)
        for piece in own.split(COLUMNS, 1):
            grams[group] += gram_of_rows([piece])
    return grams


def _samples(problem: Problem) -> list[Any]:
    return split(problem.inputs, [1] * problem.count)


def _side_by_side(*leaves: Any) -> Any:
    """Outputs of all samples without their graph, but with the mark of what had one."""
    if not isinstance(leaves[0], Tensor):
        return leaves[0]
    return torch.cat([leaf.detach() for leaf in leaves]).requires_grad_(any(leaf.requires_grad for leaf in leaves))


class _Trace(TorchFunctionMode):
    """Note every function, and refuse autocast."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self._autocast = RefuseAutocast({problem.device.type})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._autocast.check()
        self.calls.append(call_of(func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))
