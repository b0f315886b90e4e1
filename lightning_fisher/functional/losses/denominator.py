"""What the parts of a batch weigh in the loss of the whole.

A mean over samples, pixels or tokens divides by a sum of weights: of class weights, of labels that aren't ignored, of
masks. The loss of a batch is then ``Σ_i D_i L(B_i) / Σ_i D_i``, with denominators D that only the loss knows. They are
measured on the outputs of the module, which costs no pass: in the loss of a reference part and another one together,
the gradient with respect to the outputs of either is a multiple of its gradient in its own loss,
``D_r / (D_r + D_i)`` and ``D_i / (D_r + D_i)``.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from lightning_fisher.functional.evaluation.samples import fresh
from lightning_fisher.functional.losses.loss import (
    IGNORE_INDEX,
    LossFn,
    as_variables,
    in_double,
    losses_of,
)
from lightning_fisher.functional.losses.separable import gradients_of

EQUAL = 1e-6  # relative: weights this close to the number of samples are that number


class _Part(NamedTuple):
    outputs: Any
    targets: Any
    samples: int


class _Gradient(NamedTuple):
    loss: float
    outputs: Tensor  # one vector


class PartWeights:
    """Weights of parts in the loss of the whole batch, relative to each other; asks the device for a number a part.

    Args:
        loss_fn: ``(outputs, targets) → scalar`` or ``→ [n]``; ``None``: the cross-entropy.

    Attributes:
        total: What the weights of all parts so far are to be divided by.
        coupled: Whether the loss turned out to be no weighted mean, or sum, of losses of the parts: samples of
            different parts interact in it. Parts weigh as many samples as they have then.
        unknown: Whether nothing could be measured: outputs without a dimension for the samples.
    """

    def __init__(self, loss_fn: LossFn | None) -> None:
        self._measured = copy.deepcopy(loss_fn) if isinstance(loss_fn, nn.Module) else loss_fn
        self._loss_fn = loss_fn
        self._reference: tuple[_Part, _Gradient] | None = None
        self._pending: list[_Part] = []
        self._sum = 0.0
        self._is_sum = False
        self.coupled = False
        self.unknown = False

    @property
    def total(self) -> float:
        """Sum of the weights, or the weight of every part where the loss is a sum."""
        return float(self._reference[0].samples) if self._is_sum and self._reference else self._sum

    def add(self, outputs: Any, targets: Any, losses: Tensor, samples: int) -> float:
        """The weight of one more part: as many as it has samples for a plain mean; 0 for one that has no labels.

        Args:
            outputs: What the module returned for it.
            targets: Its targets.
            losses: What the loss returned for it.
            samples: How many samples it has.
        """
        if self._loss_fn is None:
            weight = _labels(outputs, targets, samples)
        elif losses.ndim == 1:
            weight = float(samples)
        else:
            weight = self._measure(_Part(tree_map(_detached, outputs), tree_map(_constant, targets), samples))
        self._sum += weight
        return weight

    def lost(self) -> bool:
        """Whether a part without a finite loss, which weighed nothing, makes the loss of the whole non-finite."""
        if self._reference is None:
            return bool(self._pending)
        return any(not math.isfinite(self._together(part)[0].loss) for part in self._pending)

    def _measure(self, part: _Part) -> float:
        own = self._gradient(part)
        if own is None:
            self.unknown = True
            return float(part.samples)
        usable = math.isfinite(own.loss) and bool(torch.isfinite(own.outputs).all())
        if self._reference is None:
            if usable and bool(own.outputs.any()):
                self._reference = part, own
            elif not usable:
                self._pending.append(part)
                return 0.0
            return float(part.samples)
        reference, alone = self._reference
        joint, first, second = self._together(part)
        if not math.isfinite(joint.loss):  # this part's own failure: for everybody to see
            return float(part.samples)
        a, rest_a = _multiple(first, alone.outputs)
        b, rest_b = _multiple(second, own.outputs) if usable else (1 - a, 0.0)
        if not bool(own.outputs.any()):
            b = 1 - a
        value = a * alone.loss + (b * own.loss if b and usable else 0.0)
        scale = max(abs(joint.loss), abs(a * alone.loss), abs(b * own.loss) if usable else 0.0)
        tolerance = 1e-6 if joint.outputs.dtype == torch.float64 else 1e-3
        same = max(rest_a, rest_b) <= tolerance and abs(value - joint.loss) <= tolerance * scale
        if same and abs(a + b - 1) <= tolerance and a > 0:
            weight = reference.samples * b / a
            near = abs(weight - part.samples) <= EQUAL * part.samples
            return float(part.samples) if near else max(weight, 0.0) if abs(weight) > tolerance else 0.0
        if same and abs(a - 1) <= tolerance and abs(b - 1) <= tolerance:
            self._is_sum = True
            return float(reference.samples)
        self.coupled = True
        return float(part.samples)

    def _together(self, part: _Part) -> tuple[_Gradient, Tensor, Tensor]:
        """The loss of the reference and a part in one batch, and its gradient at the outputs of either."""
        assert self._reference is not None
        reference = self._reference[0]
        both = _joined(reference, part)
        found = None if both is None else self._gradient(both)
        if found is None:
            return _Gradient(math.nan, torch.zeros(())), torch.zeros(()), torch.zeros(())
        rows = found.outputs.reshape(reference.samples + part.samples, -1)
        return found, rows[: reference.samples].flatten(), rows[reference.samples :].flatten()

    def _gradient(self, part: _Part) -> _Gradient | None:
        """Loss and gradient with respect to the outputs, samples first; in float64 where the loss can."""
        for double in (True, False):
            try:
                with torch.enable_grad(), torch.random.fork_rng(devices=[]):
                    outputs, variables = as_variables(part.outputs, double=double)
                    if not variables or any(v.ndim == 0 or len(v) != part.samples for v in variables):
                        return None
                    loss_fn = self._measured
                    if isinstance(loss_fn, nn.Module):
                        loss_fn = loss_fn.double() if double else copy.deepcopy(self._loss_fn)
                    loss = losses_of(fresh(outputs), in_double(part.targets, double), loss_fn)
                    rows = [g.reshape(part.samples, -1) for g in gradients_of(loss, variables)]
            except RuntimeError:  # tensors of its own, class weights say
                if not double:
                    raise
                continue
            return _Gradient(float(loss.detach()), torch.cat(rows, 1).flatten())
        return None


def _labels(outputs: Any, targets: Tensor, samples: int) -> float:
    """The denominator of the mean cross-entropy."""
    if targets.is_floating_point():
        return float(samples)
    positions = max(1, targets.numel() // max(1, len(targets))) if targets.ndim else 1
    return float((targets != IGNORE_INDEX).sum()) / positions


def _joined(first: _Part, second: _Part) -> _Part | None:
    """Two parts in one; ``None`` if they can't be joined."""
    trees = []
    for a, b in ((first.outputs, second.outputs), (first.targets, second.targets)):
        (one, spec), (two, other) = tree_flatten(a), tree_flatten(b)
        if spec != other:
            return None
        leaves = [_cat(x, y) if isinstance(x, Tensor) and x.ndim else x for x, y in zip(one, two, strict=True)]
        if any(leaf is None and x is not None for leaf, x in zip(leaves, one, strict=True)):
            return None
        trees.append(tree_unflatten(leaves, spec))
    return _Part(trees[0], trees[1], first.samples + second.samples)


def _cat(x: Tensor, y: Tensor) -> Tensor | None:
    """Side by side, with the mark of what had a graph."""
    if x.shape[1:] != y.shape[1:]:
        return None
    return torch.cat([x.detach(), y.detach()]).requires_grad_(x.requires_grad)


def _multiple(vector: Tensor, of: Tensor) -> tuple[float, float]:
    """The factor c with ``vector ≈ c · of``, and the relative size of what is left."""
    if vector.shape != of.shape:
        return 0.0, math.inf
    square = float(of.dot(of))
    if square == 0:
        return 0.0, 0.0 if not bool(vector.any()) else math.inf
    factor = float(vector.dot(of)) / square
    return factor, float((vector - factor * of).norm()) / math.sqrt(square)


def _constant(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _detached(leaf: Any) -> Any:
    """Without the graph, but with the mark of what had one."""
    return leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf
