"""The Fisher penalty as a Lightning callback: the trace of the Fisher matrix, with labels the network draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_fisher.arguments import require_choice
from lightning_fisher.callbacks.multipass_callback import MultiPassCallback
from lightning_fisher.functional.evaluation.samples import call_module
from lightning_fisher.functional.multipass.methods.fisher_penalty import (
    METHODS,
    SquaredNorm,
    draw_labels,
    sampled_loss,
    squared_norm,
)
from lightning_fisher.functional.multipass.passes import Method

LogitsFn = Callable[[LightningModule, Any], Tensor]


class FisherPenalty(MultiPassCallback):
    r"""Train with ``L + c ‖1/B Σ_i ∇ℓ(x_i, ŷ_i)‖²``, labels ŷ drawn from the network's output.

    The Fisher penalty of Jastrzebski et al. (2021). The mean of the penalty over draws is ``c Tr F/B``: at another
    batch size B another c does the same. Its gradient is ``2 c H̃ G`` with the gradient G for the drawn labels, by a
    finite difference of length ``step`` along G, or exactly by a backward pass through the backward pass; see
    `fisher_penalty_gradient`.

    The drawn labels are a function of the global seed (`seed_everything`), the step and the process: torch's own
    generators don't move, and a resumed run draws the same. With several processes and ``num_sub_batches=1`` G is that
    of the batch of all of them.

    Cost: four forward and backward passes of the batch, three with ``difference="forward"``; about four with
    ``derivative="double_backward"``, and the memory of a second graph.

    Logs ``fisher_penalty/penalty``, ``‖G‖²``, and ``fisher_penalty/weight``.

    Args:
        weight: c ≥ 0; 0: bit for bit as without the callback.
        difference: ``"central"``, ``"forward"`` or ``"backward"``.
        step: Length s > 0 of the step.
        logits: ``(module, batch) → [N, K]`` or ``[N, K, d1, …]``, to draw the labels from and to evaluate them on;
            ``None``: ``module(batch[0])``.
        num_sub_batches: M, see `MultiPassCallback`.
        derivative: ``"finite_difference"`` or ``"double_backward"``; the latter needs layers that can be differentiated
            twice, and doesn't share ``G`` among processes: with several, each has a sub-batch of its own.
        start: See `MultiPassCallback`; by default from the first step on: the authors find that it acts early.
        **options: The other options of `MultiPassCallback`, but ``gradient`` and ``precision``,
            which are ``"full"``.

    Raises:
        ValueError: If an argument doesn't fit; before training, if the module or the Trainer's set-up isn't supported.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_fisher import FisherPenalty
        >>> trainer = Trainer(callbacks=[FisherPenalty(weight=0.1)], logger=False, accelerator="cpu")
    """

    prefix = "fisher_penalty"
    differentiates = True

    def __init__(
        self,
        weight: float = 0.1,
        difference: Literal["central", "forward", "backward"] = "central",
        step: float = 0.01,
        logits: LogitsFn | None = None,
        num_sub_batches: int = 1,
        *,
        derivative: Literal["finite_difference", "double_backward"] = "finite_difference",
        start: int | float | str = 0,
        **options: Any,
    ) -> None:
        if logits is not None and not callable(logits):
            raise ValueError(f"Expected argument `logits` to be callable or None, but got {logits!r}.")
        require_choice("derivative", derivative, METHODS)
        self._method = SquaredNorm(difference, step)
        self.difference, self.step, self.logits, self.derivative = difference, float(step), logits, derivative
        super().__init__(weight, num_sub_batches=num_sub_batches, start=start, **options)

    @property
    def method(self) -> Method:
        """The squared norm of the gradient of `own_loss`, or `own_loss` where it is that itself."""
        return self._method if self.derivative == "finite_difference" else (lambda part: part.here)

    def own_loss(self, module: LightningModule, batch: Any, memory: dict[str, Any]) -> Tensor:
        """Mean cross-entropy of labels that are drawn in the pass at ``w``; by double backward, its ``‖G‖²``.

        Raises:
            ValueError: If the logits of the batch aren't known.
        """
        if self.derivative == "double_backward":
            parameters = [p for p in module.parameters() if p.requires_grad]
            return squared_norm(lambda: self._sampled(module, batch, memory), parameters)
        return self._sampled(module, batch, memory)

    def _sampled(self, module: LightningModule, batch: Any, memory: dict[str, Any]) -> Tensor:
        logits = self._logits(module, batch)
        if "labels" not in memory:
            generator = torch.Generator(logits.device).manual_seed(memory["seed"])
            memory["labels"] = draw_labels(logits, generator)
        return sampled_loss(logits, memory["labels"])

    def _logits(self, module: LightningModule, batch: Any) -> Tensor:
        if self.logits is not None:
            return self.logits(module, batch)
        if not isinstance(batch, (list, tuple)) or not batch:
            raise ValueError(
                "Expected argument `logits` to be a function of module and batch where a batch is no (inputs, labels), "
                f"but got None and a batch of {type(batch).__name__}."
            )
        return call_module(module, batch[0])
