"""What the parts of a batch weigh in the loss of the whole.

A mean over samples, pixels or tokens divides by a sum of weights: of class weights, of labels that aren't ignored, of
masks. The loss of a batch is then ``Σ_i D_i L(B_i) / Σ_i D_i``, with denominators D that only the loss knows. They are
measured: in the loss of a reference part and another one together, the gradient of either is a multiple of its gradient
in its own loss, ``D_r / (D_r + D_i)`` and ``D_i / (D_r + D_i)`` (`PartGradients`).
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_fisher.functional.losses.loss import IGNORE_INDEX, LossFn, class_targets
from lightning_fisher.functional.losses.part_gradients import LossGradient, Part, PartGradients

EQUAL = {1e-6: 1e-6, 1e-3: 1e-4}  # relative: weights this close to the number of samples are that number


class PartWeights:
    """Weights of parts in the loss of the whole batch, relative to each other; asks the device for a number a part.

    Args:
        module: What the outputs come from. Where it returns a scalar loss of its own, every part costs two more forward
            and backward passes, in evaluation mode.
        loss_fn: ``(outputs, targets) → scalar`` or ``→ [n]``; ``None``: the cross-entropy.

    Attributes:
        each: Weights of all parts so far.
        total: What these are to be divided by.
        missing: What the sum of all weighted losses lacks: parts without a gradient that came before any with one
            weigh as many samples as they have when they are added, and something else once there is another part to
            compare them with.
        coupled: Whether the loss turned out to be no weighted mean, or sum, of losses of the parts: samples of
            different parts interact in it. Parts weigh as many samples as they have then.
    """

    def __init__(self, module: nn.Module, loss_fn: LossFn | None) -> None:
        self._loss_fn = loss_fn
        self._gradients = None if loss_fn is None else PartGradients(module, loss_fn)
        self._reference: tuple[Part, LossGradient] | None = None
        self._pending: list[tuple[Part, LossGradient]] = []
        self._flat: list[tuple[int, Part, LossGradient]] = []
        self._sum = 0.0
        self.each: list[float] = []
        self.missing = 0.0
        self._is_sum = False
        self.coupled = False

    @property
    def total(self) -> float:
        """Sum of the weights, or the weight of every part where the loss is a sum."""
        return float(self._reference[0].samples) if self._is_sum and self._reference else self._sum

    def add(self, inputs: Any, outputs: Any, targets: Any, losses: Tensor, samples: int) -> float:
        """The weight of one more part: as many as it has samples for a plain mean; 0 for one that has no labels.

        Args:
            inputs: What the module was given for it.
            outputs: What the module returned.
            targets: Its targets.
            losses: What the loss returned for it.
            samples: How many samples it has.
        """
        if self._loss_fn is None:
            weight = counted = _labels(class_targets(targets), samples)
        elif losses.ndim == 1:
            weight = counted = float(samples)
        else:
            weight, counted = self._measure(
                Part(tree_map(_constant, inputs), tree_map(_detached, outputs), tree_map(_constant, targets), samples)
            )
        self.each.append(weight)
        self._sum += counted
        return weight

    def lost(self) -> bool:
        """Whether a part without a finite loss, which weighed nothing, makes the loss of the whole non-finite."""
        if self._reference is None or self._gradients is None:
            return bool(self._pending)
        reference = self._reference
        together = (self._gradients.together(reference[0], part, reference[1], own) for part, own in self._pending)
        return any(not math.isfinite(found.loss) for found in together)

    def _measure(self, part: Part) -> tuple[float, float]:
        """The weight of a part, and what it adds to the denominator of the whole."""
        assert self._gradients is not None
        own, samples = self._gradients.alone(part), float(part.samples)
        if self._reference is not None:
            return self._compare(part, own)
        if not own.finite:
            self._pending.append((part, own))
            return 0.0, 0.0
        if not bool(own.vector.any()):
            self._flat.append((len(self.each), part, own))
            return samples, samples
        self._reference = part, own
        for position, flat, gradient in self._flat:
            weight, counted = self._compare(flat, gradient)
            self.missing += (weight - flat.samples) * gradient.loss
            self._sum += counted - flat.samples
            self.each[position] = weight
        self._flat.clear()
        return samples, samples

    def _compare(self, part: Part, own: LossGradient) -> tuple[float, float]:
        """As `_measure`, beside the reference."""
        assert self._gradients is not None
        assert self._reference is not None
        reference, alone = self._reference
        samples = float(part.samples)
        found = self._gradients.together(reference, part, alone, own)
        if not math.isfinite(found.loss):  # this part's own failure: for everybody to see
            return samples, samples
        a, b, tolerance = found.a, found.b, self._gradients.tolerance
        terms = a * alone.loss, b * own.loss if b and own.finite else 0.0
        scale = max(abs(found.loss), *map(abs, terms))
        same = found.rest <= tolerance and abs(sum(terms) - found.loss) <= tolerance * scale
        if own.finite and not bool(own.vector.any()) and abs(a - 1) <= tolerance and found.rest <= tolerance:
            # A part without labels, whose loss is zero whatever its weight, or a sum.
            added = abs(alone.loss + own.loss - found.loss) <= tolerance * max(scale, abs(own.loss))
            self.coupled = self.coupled or not added
            return float(reference.samples), 0.0
        if same and abs(a + b - 1) <= tolerance and a > 0:
            weight = reference.samples * b / a
            near = abs(weight - part.samples) <= EQUAL[tolerance] * part.samples
            weight = samples if near else max(weight, 0.0) if abs(weight) > tolerance else 0.0
            return weight, weight
        if same and abs(a - 1) <= tolerance and abs(b - 1) <= tolerance:
            self._is_sum = True
            return float(reference.samples), float(reference.samples)
        self.coupled = True
        return samples, samples


def _labels(targets: Tensor, samples: int) -> float:
    """The denominator of the mean cross-entropy."""
    if targets.is_floating_point():
        return float(samples)
    positions = max(1, targets.numel() // max(1, len(targets))) if targets.ndim else 1
    return float((targets != IGNORE_INDEX).sum()) / positions


def _constant(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _detached(leaf: Any) -> Any:
    """Without the graph, but with the mark of what had one."""
    return leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf
