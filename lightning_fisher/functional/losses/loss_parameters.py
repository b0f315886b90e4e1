"""Losses that use parameters themselves: a head that is part of the loss, a penalty on the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from lightning_fisher.exceptions import LightningFisherError
from lightning_fisher.functional.evaluation.graph import leaves
from lightning_fisher.functional.evaluation.outputs import without
from lightning_fisher.functional.evaluation.samples import call_module, fresh, num_samples, take
from lightning_fisher.functional.evaluation.state.buffers import preserved_buffers
from lightning_fisher.functional.evaluation.state.modes import evaluation_mode
from lightning_fisher.functional.evaluation.state.random_state import preserved_random_state
from lightning_fisher.functional.losses.loss import LossFn, as_variables, losses_of, output_gradients
from lightning_fisher.functional.losses.separable import SAME_FLOAT32


class LossParametersError(LightningFisherError, ValueError):
    """The loss uses parameters in a way that is not defined here."""


def loss_parameters(outputs: Any, targets: Any, losses: Tensor) -> list[Tensor]:
    """Tensors that would get a gradient from the loss by another way than through the outputs.

    Args:
        outputs: What the module returned, the graph of ``losses`` above it.
        targets: What the loss was given.
        losses: What it returned.
    """
    given = [leaf for leaf in (*tree_flatten(outputs)[0], *tree_flatten(targets)[0]) if isinstance(leaf, Tensor)]
    known = {id(leaf) for leaf in given}
    found = leaves(losses, [leaf.grad_fn for leaf in given if leaf.grad_fn is not None])
    return [leaf for leaf in found if id(leaf) not in known]


def refuse_foreign_parameters(module: nn.Module, found: Sequence[Tensor]) -> None:
    """Refuse parameters of a loss that aren't the module's: whether they count as weights, nothing says.

    Raises:
        LossParametersError: With the remedies.
    """
    own = {id(parameter) for parameter in module.parameters()}
    foreign = [leaf for leaf in found if id(leaf) not in own]
    if foreign:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in foreign[:3]) + (", …" if len(foreign) > 3 else "")
        raise LossParametersError(
            f"Expected argument `loss_fn` to use parameters of the module only, but it has {len(foreign)} of its own "
            f"that require gradients (of shape {shapes}); make them part of the module, or freeze them "
            "(`requires_grad_(False)`) if they are constants."
        )


def refuse_loss_parameters(module: nn.Module, inputs: Any, targets: Any, loss_fn: LossFn | None) -> None:
    """Refuse a loss that uses parameters at all; costs a pass of two samples.

    Raises:
        LossParametersError: If it does.
    """
    found, attributes = _Uses([], False) if loss_fn is None else _uses(module, inputs, targets, loss_fn)
    if found or attributes:
        raise LossParametersError(
            "Expected argument `loss_fn` to depend on the parameters through the module's outputs only, but it "
            f"{'uses some itself' if found else 'reads what the forward pass leaves in the module, or elsewhere'}."
        )


def with_loss_inside(
    module: nn.Module, inputs: Any, targets: Any, loss_fn: LossFn | None, logit_norm: float | None
) -> tuple[nn.Module, Any, Any, LossFn | None, float | None]:
    """The arguments unchanged, or, where the loss uses parameters of the module, with a module that returns losses.

    So where it reads what a pass leaves in the module, or elsewhere: a loss of its own pass only is right then.

    Costs a pass of two samples and one of one with a ``loss_fn``, and one of all samples where it uses parameters.

    Raises:
        LossParametersError: If the loss has parameters of its own.
        ValueError: If it is not made of losses of one sample each.
    """
    if loss_fn is None:
        return module, inputs, targets, loss_fn, logit_norm
    found, attributes = _uses(module, inputs, targets, loss_fn)
    if not found and not attributes:
        return module, inputs, targets, loss_fn, logit_norm
    refuse_foreign_parameters(module, found)
    inside = ModuleWithLoss(module, loss_fn, logit_norm, attributes)
    if attributes:
        inside.require_mean(inputs, targets)
    else:
        output_gradients(_outputs(module, inputs), targets, loss_fn, logit_norm)  # of losses of one sample each?
    nothing = torch.zeros(num_samples(inputs), device=next(module.parameters()).device)
    return inside, (inputs, targets), nothing, lambda losses, _: losses, None


def unused_outputs(module: nn.Module, inputs: Any, targets: Any, loss_fn: LossFn | None) -> frozenset[int]:
    """Positions of outputs without samples in dimension 0 that the loss doesn't use: a loss of the module's own, say.

    Costs a pass of two samples with a ``loss_fn``.
    """
    if loss_fn is None:
        return frozenset()
    few = min(2, num_samples(inputs))
    outputs, targets = _outputs(module, take(inputs, slice(0, few))), take(targets, slice(0, few))
    foreign = frozenset(
        i
        for i, leaf in enumerate(tree_flatten(outputs)[0])
        if isinstance(leaf, Tensor) and (leaf.ndim == 0 or len(leaf) != few)
    )
    if not foreign:
        return foreign
    try:
        with torch.enable_grad(), preserved_random_state(set()):
            given, blank = (losses_of(fresh(o), targets, loss_fn) for o in (outputs, without(outputs, foreign)))
    except Exception:  # whatever a loss makes of them: they are used
        return frozenset()
    same = given.shape == blank.shape and bool((given == blank).all())
    return foreign if same else frozenset()


class ModuleWithLoss(nn.Module):
    """``(inputs, targets) → [N]``, the losses of the samples.

    Args:
        module: The module.
        loss_fn: The loss.
        logit_norm: ``s`` of ``z ← z / (s‖z‖₂)``.
        attributes: Whether the loss reads what a pass leaves in attributes: a scalar one then takes a pass a sample.
    """

    def __init__(self, module: nn.Module, loss_fn: LossFn, logit_norm: float | None, attributes: bool) -> None:
        super().__init__()
        self.module = module
        self.loss_fn = loss_fn
        self.logit_norm = logit_norm
        self.attributes = attributes

    def forward(self, inputs: Any, targets: Any) -> Tensor:
        """Losses, one a sample."""
        outputs, losses = self._evaluate(inputs, targets)
        if losses.ndim == 1:
            return losses
        one = [slice(j, j + 1) for j in range(num_samples(inputs))]
        if self.attributes:
            return torch.stack([self._evaluate(take(inputs, j), take(targets, j))[1].reshape(()) for j in one])
        return torch.stack([losses_of(take(outputs, j), take(targets, j), self.loss_fn).reshape(()) for j in one])

    def require_mean(self, inputs: Any, targets: Any) -> None:
        """Check that a scalar loss is the mean, or sum, of its values on single samples.

        Raises:
            ValueError: If it isn't.
        """
        with _evaluated(self, (inputs, targets)) as losses:
            losses = losses.double()
        with _evaluated(self.module, inputs) as outputs:
            outputs = outputs if self.logit_norm is None else self._scaled(outputs)
            batch = losses_of(outputs, targets, self.loss_fn).detach().double()
        size = SAME_FLOAT32 * losses.abs().mean()
        if batch.ndim == 0 and not (batch - losses.mean()).abs() <= size and not (batch - losses.sum()).abs() <= size:
            raise ValueError(
                "Expected argument `loss_fn` to return the mean of losses of one sample each, but its value on the "
                f"batch is {float(batch):.6g} and the mean of its values on single samples {float(losses.mean()):.6g}; "
                "return one loss a sample [N]."
            )

    def _evaluate(self, inputs: Any, targets: Any) -> tuple[Any, Tensor]:
        outputs = call_module(self.module, inputs)
        if self.logit_norm is not None:
            outputs = self._scaled(outputs)
        return outputs, losses_of(outputs, targets, self.loss_fn)

    def _scaled(self, outputs: Tensor) -> Tensor:
        return outputs / (self.logit_norm * torch.linalg.vector_norm(outputs, dim=1, keepdim=True))


class _Uses(NamedTuple):
    """What a loss uses besides outputs and targets: parameters, and what the pass left in attributes, or elsewhere."""

    parameters: list[Tensor]
    attributes: bool


def _uses(module: nn.Module, inputs: Any, targets: Any, loss_fn: LossFn) -> _Uses:
    few = slice(0, 2)
    targets = take(targets, few)
    try:
        with _evaluated(module, take(inputs, few)) as outputs, preserved_random_state(set()):
            variables, _ = as_variables(outputs, double=False)
            losses = losses_of(fresh(variables), targets, loss_fn)
            found = loss_parameters(variables, targets, losses)
            steady = _same(losses_of(fresh(variables), targets, loss_fn), losses)
    except RuntimeError:  # not in these dtypes: what is differentiated is a converted copy, constants of which
        return _Uses(
            [p for p in loss_fn.parameters() if p.requires_grad] if isinstance(loss_fn, nn.Module) else [], False
        )
    if not found and not steady:  # a loss that draws random numbers
        return _Uses(found, False)
    try:  # after another pass
        with _evaluated(module, take(inputs, slice(0, 1))), preserved_random_state(set()):
            again = losses_of(fresh(variables), targets, loss_fn)
            same = {id(leaf) for leaf in loss_parameters(variables, targets, again)} == {id(leaf) for leaf in found}
    except Exception:  # whatever a loss makes of nothing
        return _Uses(found, True)
    return _Uses(found, not (same and _same(again, losses)))


def _same(losses: Tensor, others: Tensor) -> bool:
    return losses.shape == others.shape and torch.equal(losses.nan_to_num(), others.nan_to_num())


@contextmanager
def _evaluated(module: nn.Module, inputs: Any) -> Iterator[Any]:
    """Outputs without their graph, while attributes are as the pass left them; nothing of it is kept."""
    devices = {parameter.device for parameter in module.parameters()}
    # With a graph, since a module may differentiate in its own forward pass.
    with torch.enable_grad(), evaluation_mode(module), preserved_buffers(module), preserved_random_state(devices):
        outputs = call_module(module, inputs)
        yield tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, outputs)


def _outputs(module: nn.Module, inputs: Any) -> Any:
    with _evaluated(module, inputs) as outputs:
        return outputs
