"""What a Gram matrix is asked of: a module, its parameters, samples and a loss, in one object."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fisher.functional.evaluation.outputs import without
from lightning_fisher.functional.evaluation.samples import call_module, num_samples, take, with_sample_dimension
from lightning_fisher.functional.evaluation.state.buffers import BufferSnapshot
from lightning_fisher.functional.gram.rules.parameter_scale import Scale, squared_norms
from lightning_fisher.functional.losses.loss import LossFn, OutputGradients, output_gradients


@dataclass(frozen=True, eq=False)
class Problem:
    """Per-sample gradients of a loss with respect to parameters of a module.

    Attributes:
        module: The module, already in the right mode.
        parameters: Those that are differentiated.
        inputs: N samples, in any structure.
        targets: Theirs.
        loss_fn: The loss; ``None``: cross-entropy.
        logit_norm: ``s`` of ``z ← z / (s‖z‖₂)``.
        tolerance: Relative difference that two evaluations of the same thing may show.
        state: What every pass starts from, where a forward pass moves it.
        unused: Positions of the outputs that hold no samples and don't enter the loss; nan stands for them.
        scale: What every gradient is multiplied by: the size of its parameter, see `parameter_scale`.
        groups: The group of each parameter, from 0, where the Gram matrices of groups are asked for; ``None``: their
            sum only.
    """

    module: nn.Module
    parameters: tuple[nn.Parameter, ...]
    inputs: Any
    targets: Any
    loss_fn: LossFn | None
    logit_norm: float | None
    tolerance: float
    state: BufferSnapshot | None = None
    unused: frozenset[int] = frozenset()
    scale: Scale = "none"
    groups: tuple[int, ...] | None = None

    @cached_property
    def count(self) -> int:
        """N."""
        return num_samples(self.inputs)

    @cached_property
    def gram_factors(self) -> list[float]:
        """What the Gram matrix of each parameter is multiplied by as a whole."""
        return squared_norms(self.parameters) if self.scale == "layer" else [1.0] * len(self.parameters)

    @property
    def device(self) -> torch.device:
        """Where the result goes."""
        return self.parameters[0].device

    def take(self, index: slice | Tensor) -> Problem:
        """The same of some of the samples."""
        return replace(self, inputs=take(self.inputs, index), targets=take(self.targets, index))

    def outputs(self) -> Any:
        """Run the module."""
        return self.outputs_of(self.inputs, alone=self.count == 1)

    def outputs_of(self, inputs: Any, *, alone: bool) -> Any:
        """Run the module on some of the samples, or on one alone."""
        if self.state is not None:
            with torch._C.DisableTorchFunction():  # what watches the pass is not to see it
                self.state.restore_moved()
        outputs = without(call_module(self.module, inputs), self.unused)
        return with_sample_dimension(outputs) if alone else outputs

    def output_gradients(self, outputs: Any) -> OutputGradients:
        """The loss gradients with respect to ``outputs``: unit directions and log-norms."""
        return output_gradients(outputs, self.targets, self.loss_fn, self.logit_norm)
