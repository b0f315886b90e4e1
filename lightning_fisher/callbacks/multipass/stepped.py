"""The parameters that the optimizers step: what is perturbed, and what the penalty's gradient is added to."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_fisher.exceptions import LightningFisherError, acting
from lightning_fisher.functional.evaluation.graph import leaves, nodes


def stepped_parameters(
    trainer: Trainer, module: LightningModule, optimizers: Iterable[torch.optim.Optimizer] | None = None
) -> list[nn.Parameter]:
    """Those that require gradients, in the module's order, then those that only an optimizer holds.

    Args:
        trainer: Whose optimizers they are.
        module: The module.
        optimizers: Some of the optimizers; ``None``: all.
    """
    chosen = trainer.optimizers if optimizers is None else optimizers
    held = {id(p): p for optimizer in chosen for group in optimizer.param_groups for p in group["params"]}
    own = [held.pop(id(p)) for p in module.parameters() if id(p) in held]
    return [p for p in [*own, *held.values()] if p.requires_grad]


class SteppedError(LightningFisherError, ValueError):
    """What the optimizers step is not what the loss trains."""


class OtherParametersError(SteppedError):
    """The step lets the optimizers step others than they did before it.

    Attributes:
        parameters: All that they step now.
    """

    def __init__(self, module: LightningModule, parameters: list[nn.Parameter], new: nn.Parameter) -> None:
        super().__init__(
            f"{acting()} perturbs what the optimizers step, but `training_step` of {type(module).__name__} sets "
            f"`requires_grad` of {_names(module)[id(new)]!r} after it has begun; set it in "
            "`on_train_batch_start`."
        )
        self.parameters = parameters


def require_as_before(trainer: Trainer, module: LightningModule, before: list[nn.Parameter]) -> None:
    """Check behind a forward pass that the optimizers step no parameters of the module but those of before it.

    Raises:
        OtherParametersError: If they do.
    """
    known, names = {id(p) for p in before}, _names(module)
    now = stepped_parameters(trainer, module)
    new = [p for p in now if id(p) in names and id(p) not in known]
    if new:
        raise OtherParametersError(module, now, new[0])


def differentiate(module: LightningModule, loss: Tensor, stepped: list[nn.Parameter]) -> None:
    """The backward pass of training, for its failure.

    Raises:
        SteppedError: If none of the parameters gets a gradient; with the reason, as far as the graph tells.
    """
    found = torch.autograd.grad(loss, stepped, allow_unused=True, retain_graph=True)
    if any(gradient is not None for gradient in found):
        return
    own, names, reached = {id(p) for p in stepped}, _names(module), leaves(loss)
    others = [names[id(leaf)] for leaf in reached if id(leaf) in names and id(leaf) not in own]
    if any(type(node).__name__ == "CheckpointFunctionBackward" for node in nodes(loss)):
        why = "activation checkpointing needs `use_reentrant=False`"
    elif any(id(leaf) in own for leaf in reached):
        why = "its backward pass keeps them elsewhere than in `.grad`"
    elif others:
        why = f"it depends on {others[0]!r}, which no optimizer steps: one of copies of the weights?"
    else:
        why = "it depends on none of them"
    raise SteppedError(
        f"{acting()} adds its gradient to `.grad` of the parameters that the optimizers step, but the loss of "
        f"{type(module).__name__} gives none of these a gradient ({why})."
    )


def _names(module: LightningModule) -> dict[int, str]:
    return {id(p): name for name, p in module.named_parameters()}
