"""Loss and gradient of a part of a batch, alone and together with another part.

The gradient is taken at the outputs of the module, which costs no pass. Where the module returns a scalar loss of its
own (Hugging Face's models with labels), there is nothing to join at the outputs: it is taken at the parameters then, in
passes in evaluation mode that leave no trace.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_fisher.functional.evaluation.differentiable import differentiable_evaluation
from lightning_fisher.functional.evaluation.graph import dense
from lightning_fisher.functional.evaluation.module_copy import copied
from lightning_fisher.functional.evaluation.samples import call_module, fresh
from lightning_fisher.functional.losses.loss import LossFn, as_variables, in_double, losses_of
from lightning_fisher.functional.losses.loss_parameters import loss_parameters

ALIKE = 1e-6  # squared sine of the angle between two gradients below which they count as parallel


class Part(NamedTuple):
    """Some samples of a batch."""

    inputs: Any
    outputs: Any
    targets: Any
    samples: int


class LossGradient(NamedTuple):
    """A loss and its gradient, one vector."""

    loss: float
    vector: Tensor
    at_outputs: bool

    @property
    def finite(self) -> bool:
        """Whether both are."""
        return math.isfinite(self.loss) and bool(torch.isfinite(self.vector).all())


class Mixture(NamedTuple):
    """The loss of two parts together; its gradient is ``a`` times that of the first and ``b`` times that of the second.

    ``rest`` is the relative size of what is left.
    """

    loss: float
    a: float
    b: float
    rest: float


class PartGradients:
    """Gradients of a loss over parts.

    Args:
        module: What the outputs come from.
        loss_fn: ``(outputs, targets) → scalar``.
    """

    def __init__(self, module: nn.Module, loss_fn: LossFn) -> None:
        self._module = module
        self._loss_fn = loss_fn
        self._doubled = copied(loss_fn) if isinstance(loss_fn, nn.Module) else loss_fn
        self._at_outputs = True
        self._compared = False
        self._in_double = True

    def alone(self, part: Part) -> LossGradient:
        """Of one part."""
        found = self._of_outputs(part) if self._at_outputs else None
        if found is None:
            self._at_outputs = False
            found = self._of_parameters(part)
        return found

    def together(self, first: Part, second: Part, one: LossGradient, other: LossGradient) -> Mixture:
        """Of two parts in one batch, in terms of their own gradients; one that isn't finite has none of its own."""
        nothing = Mixture(math.nan, 0.0, 0.0, math.inf)
        both = _joined(first, second)
        if both is None:
            return nothing
        if self._at_outputs and not self._compared:
            self._compared = True
            self._at_outputs = self._same_after_another_pass(first, one)
        joint = self._of_outputs(both) if self._at_outputs else self._of_parameters(both)
        if not self._at_outputs:  # since one of the parts, perhaps
            one, other = (
                self._of_parameters(part) if own.at_outputs else own for part, own in ((first, one), (second, other))
            )
        if joint is None or not math.isfinite(joint.loss):
            return nothing
        usable = other.finite and bool(other.vector.any())
        if self._at_outputs:
            rows = joint.vector.reshape(both.samples, -1)
            mine, others = rows[: first.samples].flatten(), rows[first.samples :].flatten()
            a, rest = _multiple(mine, one.vector)
            if not usable:
                return Mixture(joint.loss, a, 1 - a, rest)
            b, more = _multiple(others, other.vector)
            return Mixture(joint.loss, a, b, max(rest, more))
        if not usable:
            a, rest = _multiple(joint.vector, one.vector)
            return Mixture(joint.loss, a, 1 - a, rest)
        return Mixture(joint.loss, *_combination(joint.vector, one.vector, other.vector))

    @property
    def tolerance(self) -> float:
        """Relative error of the gradients."""
        if self._at_outputs:
            return 1e-6 if self._in_double else 1e-3
        return 1e-6 if all(p.dtype == torch.float64 for p in self._module.parameters()) else 1e-3

    def _same_after_another_pass(self, part: Part, own: LossGradient) -> bool:
        """Whether the loss depends on the outputs only, not on what the last pass left in the module, or elsewhere."""
        try:
            again = self._of_outputs(part)
        except Exception:  # whatever a loss makes of another part's
            return False
        return again is not None and math.isclose(again.loss, own.loss, rel_tol=1e-6, abs_tol=1e-12)

    def _of_outputs(self, part: Part) -> LossGradient | None:
        """Samples first; in float64 where the loss can. ``None`` if it depends on outputs that hold no samples."""
        for double in (True, False):
            try:
                with torch.enable_grad(), torch.random.fork_rng(devices=[]):
                    outputs, variables = as_variables(part.outputs, double=double)
                    loss_fn = self._doubled
                    if isinstance(loss_fn, nn.Module) and isinstance(self._loss_fn, nn.Module):
                        loss_fn = loss_fn.double() if double else copied(self._loss_fn)
                    loss = losses_of(fresh(outputs), in_double(part.targets, double), loss_fn)
                    if loss_parameters(outputs, part.targets, loss):  # of its own, or what the pass left in attributes
                        return None
                    found = _gradients(loss, variables)
            except RuntimeError:  # tensors of its own, class weights say
                if not double:
                    raise
                continue
            used = [(v, g) for v, g in zip(variables, found, strict=True) if g is not None]
            if not variables or any(v.ndim == 0 or len(v) != part.samples for v, _ in used):
                return None
            rows = [torch.zeros(part.samples, 1)] if not used else [g.reshape(part.samples, -1) for _, g in used]
            self._in_double = double
            return LossGradient(float(loss.detach()), torch.cat(rows, 1).flatten(), True)
        return None

    def _of_parameters(self, part: Part) -> LossGradient:
        """One pass in evaluation mode."""
        parameters = [parameter for parameter in self._module.parameters() if parameter.requires_grad]
        with differentiable_evaluation(self._module):
            loss = losses_of(call_module(self._module, part.inputs), part.targets, self._loss_fn).mean()
            found = _gradients(loss, parameters)
        flat = [
            (torch.zeros_like(p) if g is None else dense(g)).flatten().double()
            for g, p in zip(found, parameters, strict=True)
        ]
        return LossGradient(float(loss.detach()), torch.cat(flat), False)


def _gradients(loss: Tensor, variables: list[Any]) -> list[Tensor | None]:
    if not loss.requires_grad or not variables:
        return [None] * len(variables)
    return list(torch.autograd.grad(loss, variables, allow_unused=True))


def _combination(joint: Tensor, first: Tensor, second: Tensor) -> tuple[float, float, float]:
    """``a``, ``b`` with ``joint ≈ a · first + b · second``, and the relative size of what is left.

    Where the two are parallel, ``a + b = 1``.
    """
    rr, ii, ri = (float(x.dot(y)) for x, y in ((first, first), (second, second), (first, second)))
    determinant = rr * ii - ri**2
    if determinant > ALIKE * rr * ii:
        r, i = float(joint.dot(first)), float(joint.dot(second))
        a, b = (ii * r - ri * i) / determinant, (rr * i - ri * r) / determinant
    else:
        difference = first - second
        square = float(difference.dot(difference))
        a = float((joint - second).dot(difference)) / square if square > ALIKE * rr else 0.5
        b = 1 - a
    rest = float((joint - a * first - b * second).norm())
    return a, b, rest / math.sqrt(max(rr, ii))


def _multiple(vector: Tensor, of: Tensor) -> tuple[float, float]:
    """The factor c with ``vector ≈ c · of``, and the relative size of what is left."""
    if vector.shape != of.shape:
        return 0.0, math.inf
    square = float(of.dot(of))
    if square == 0:
        return 0.0, 0.0 if not bool(vector.any()) else math.inf
    factor = float(vector.dot(of)) / square
    return factor, float((vector - factor * of).norm()) / math.sqrt(square)


def _joined(first: Part, second: Part) -> Part | None:
    """Two parts in one; ``None`` if they can't be joined."""
    trees = []
    for name in ("inputs", "outputs", "targets"):
        (one, spec), (two, other) = tree_flatten(getattr(first, name)), tree_flatten(getattr(second, name))
        if spec != other:
            return None
        leaves = [_cat(x, y, first.samples, second.samples) for x, y in zip(one, two, strict=True)]
        if any(leaf is None and x is not None for leaf, x in zip(leaves, one, strict=True)):
            return None
        trees.append(tree_unflatten(leaves, spec))
    inputs, outputs, targets = trees
    return Part(inputs, outputs, targets, first.samples + second.samples)


def _cat(x: Any, y: Any, first: int, second: int) -> Any:
    """Side by side, with the mark of what had a graph; what holds no samples as it is in the first."""
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)) or (x.shape[:1], y.shape[:1]) != ((first,), (second,)):
        return x
    if x.shape[1:] != y.shape[1:]:
        return None
    return torch.cat([x.detach(), y.detach()]).requires_grad_(x.requires_grad)
