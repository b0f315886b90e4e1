"""Call `training_step` more often than the module expects, without a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def silenced(module: nn.Module) -> Iterator[None]:
    """Make `log`, `log_dict` and `print` of every LightningModule in the tree do nothing."""
    owners = [m for m in module.modules() if hasattr(m, "log_dict")]
    before: list[dict[str, Any]] = [
        {name: vars(m)[name] for name in ("log", "log_dict", "print") if name in vars(m)} for m in owners
    ]
    try:
        for owner in owners:
            vars(owner).update(log=_nothing, log_dict=_nothing, print=_nothing)
        yield
    finally:
        for owner, saved in zip(owners, before, strict=True):
            for name in ("log", "log_dict", "print"):
                vars(owner).pop(name, None)
            vars(owner).update(saved)


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


class _CarryGradient(torch.autograd.Function):
    """The identity on the loss; adds ``coefficient · gradient`` to the parameters' gradients in the backward pass.

    What the loss is multiplied with later (loss scaling, accumulation) multiplies the carried gradient too.
    """

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, coefficient: float, gradients: list[Tensor], *parameters: nn.Parameter
    ) -> Tensor:
        ctx.coefficient, ctx.gradients = coefficient, gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        # In the gradient's dtype: a half-precision loss would round the product, or overflow under loss scaling.
        return scale, None, None, *(gradient * (scale.to(gradient) * ctx.coefficient) for gradient in ctx.gradients)


def carry_gradient(
    loss: Tensor, coefficient: float, parameters: list[nn.Parameter], gradients: tuple[Tensor | None, ...]
) -> Tensor:
    """``loss``, whose backward pass also delivers ``coefficient · gradients``; parameters without one are left out."""
    pairs = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    if not pairs:
        return loss
    return _CarryGradient.apply(loss, coefficient, [g for _, g in pairs], *(p for p, _ in pairs))


class TrainingStepPatch:
    """Replace `training_step` on the instance for one batch and leave nothing behind."""

    def __init__(self, module: nn.Module, step: Callable[..., Any]) -> None:
        self._module = module
        self._had = "training_step" in vars(module)
        self._before = vars(module).get("training_step")
        vars(module)["training_step"] = step

    def undo(self) -> None:
        """Restore the class's method, or the instance's own."""
        if self._had:
            vars(self._module)["training_step"] = self._before
        else:
            vars(self._module).pop("training_step", None)
