"""Whether samples interact: differences between passes are settled in float64, then accepted or refused."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fisher.exceptions import InteractionError
from lightning_fisher.functional.evaluation.precision import SAME
from lightning_fisher.functional.evaluation.samples import ordinary, take
from lightning_fisher.functional.gram.layout import outputs_difference
from lightning_fisher.functional.gram.per_sample_jacobian import output_gradient_rows, row_gram
from lightning_fisher.functional.gram.problem import Problem

GRADIENT = 10  # times the tolerance of outputs
FEW = slice(0, 3)  # samples that a difference is settled on


class Verification:
    """What one call of `gram_matrix` found out about its samples.

    A difference seen in float32 can be rounding (at a kink, say): it is settled once, in float64.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._accepted = False

    @property
    def tolerance(self) -> float:
        """Relative difference of outputs from which on `report` is due."""
        return math.inf if self._accepted else self._problem.tolerance

    def report(self, detail: str) -> None:
        """Settle a difference.

        Raises:
            InteractionError: If samples interact.
        """
        if self._accepted:
            return
        if self._problem.tolerance <= SAME[torch.float64] or _interact(self._problem.take(FEW)):
            raise InteractionError(detail)
        self._accepted = True

    def check_first(self, problem: Problem, directions: Any, gram: Tensor) -> None:
        """Compare the first sample's entry with a plain backward pass of that sample alone.

        Costs one sample's pass; catches what no look at the outputs shows, such as coupling in the backward pass only.
        """
        first = slice(0, 1)
        alone = row_gram(problem.take(first), problem.parameters, take(directions, first))[0, 0]
        difference = (gram[0, 0] - alone).abs()
        if not difference <= GRADIENT * self.tolerance * alone + 1e-30:
            self.report(f"squared gradient norm of the first: {gram[0, 0]:.6g} together, {alone:.6g} alone")


def _interact(problem: Problem) -> bool:
    """Compare a few samples together and one by one, outputs and gradients, in float64."""
    module = copy.deepcopy(problem.module).double()
    asked = {id(parameter) for parameter in problem.parameters}
    pairs = zip(problem.module.parameters(), module.parameters(), strict=True)
    parameters = tuple(twin for parameter, twin in pairs if id(parameter) in asked)
    for parameter in parameters:
        parameter.requires_grad_(True)
    loss_fn = copy.deepcopy(problem.loss_fn).double() if isinstance(problem.loss_fn, nn.Module) else problem.loss_fn
    inputs, targets = ordinary((problem.inputs, problem.targets), torch.float64)
    tolerance = SAME[torch.float64]
    together = replace(
        problem,
        module=module,
        parameters=parameters,
        inputs=inputs,
        targets=targets,
        loss_fn=loss_fn,
        tolerance=tolerance,
    )
    outputs = together.outputs()
    directions, _ = together.output_gradients(outputs)
    rows = output_gradient_rows(outputs, directions, parameters)
    for j in range(together.count):
        one = slice(j, j + 1)
        alone = together.take(one).outputs()
        if not outputs_difference(take(outputs, one), alone, 1) <= tolerance:
            return True
        row = output_gradient_rows(alone, take(directions, one), parameters)[0]
        if not (row - rows[j]).norm() <= GRADIENT * tolerance * row.norm() + 1e-30:
            return True
    return False
