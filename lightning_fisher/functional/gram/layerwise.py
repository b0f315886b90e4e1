"""The Gram matrix of per-sample gradients from one forward and one backward pass, layer by layer.

The backward pass skips the gradients of the weights; each layer's contribution is formed when the gradient of its
output arrives, and nothing of J outlives its layer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from lightning_fisher.functional.gram.interception import recorded
from lightning_fisher.functional.gram.layout import arrange
from lightning_fisher.functional.gram.per_sample_jacobian import detached, differentiable_pairs
from lightning_fisher.functional.gram.problem import Problem
from lightning_fisher.functional.gram.recorder import Key, Recorder, Use
from lightning_fisher.functional.gram.rules.products import Workspace, blocks, gram_of_rows

APART = 2**25  # elements up to which the Gram matrices of single parameters are kept apart, to check each: 256 MiB


@dataclass(frozen=True)
class LayerwiseResult:
    """What one pass over N samples gives.

    Attributes:
        grams: Gram matrices ``[N, N]`` (float64) of the gradients ``∇_w ⟨direction_j, z_j⟩`` over the parameters that
            rules cover, by their positions: one each, or one of all.
        total: Their sum, added up in the order of the backward pass whether they are kept apart or not: the same to
            the bit. ``None`` where a part of it is not to be trusted, or nothing arrived.
        log_norms: ``[N]`` float64: log-norms of the output gradients, ``∇ℓ_j = exp(log_norms[j]) ∇_w ⟨…⟩``.
        directions: Unit output gradients, in the structure of the outputs.
        outputs: What the module returned, detached.
        general: Positions of the parameters that are left to the general method.
    """

    grams: dict[tuple[int, ...], Tensor]
    total: Tensor | None
    log_norms: Tensor
    directions: Any
    outputs: Any
    general: set[int]


def layerwise_gram(
    problem: Problem, general: set[int], lay_out: Callable[[Recorder, Any], bool], *, apart: bool
) -> LayerwiseResult | None:
    """Run all samples through the module and back.

    Args:
        problem: Module and samples.
        general: Positions of the parameters to leave to the general method from the start.
        lay_out: Called with the recorder and the outputs after the forward pass, to give every use its layout; where
            it returns ``False`` the pass ends there.
        apart: Keep the Gram matrices of single parameters apart, if memory allows.

    Returns:
        The result, or ``None`` if ``lay_out`` returned ``False``.
    """
    contributions = _Contributions(problem, general, apart=apart)
    recorder = contributions.recorder
    try:
        with recorded(recorder, problem.module):
            outputs = problem.outputs()
        check_shapes(outputs, problem.count)
        if not lay_out(recorder, detached(outputs)):
            return None
        contributions.prepare()
        known = set(recorder.general)
        directions, log_norms = problem.output_gradients(outputs)
        contributions.backward(outputs, directions)
    finally:
        recorder.release()
    if recorder.general != known and not contributions.apart:  # a part of what was summed up is not to be trusted
        return layerwise_gram(problem, recorder.general, lay_out, apart=apart)
    total = contributions.total if recorder.general == known else None
    return LayerwiseResult(contributions.grams(), total, log_norms, directions, detached(outputs), recorder.general)


def check_shapes(outputs: Any, count: int) -> None:
    """Check that outputs have the samples in dimension 0.

    Raises:
        ValueError: If one hasn't.
    """
    for leaf in tree_flatten(outputs)[0]:
        if isinstance(leaf, Tensor) and (leaf.ndim == 0 or leaf.shape[0] != count):
            raise ValueError(
                f"Expected the module to return the {count} samples in dimension 0, but got shape {tuple(leaf.shape)}."
            )


class _Contributions:
    """The layers' contributions to ξ, each added when the gradient of its output arrives.

    Attributes:
        recorder: Which parameters are used where; owns the set of those that no rule covers.
        apart: Whether the Gram matrices of single parameters are kept apart.
        total: Sum of all contributions so far; ``None`` before the first.
    """

    def __init__(self, problem: Problem, general: set[int], *, apart: bool) -> None:
        self.recorder = Recorder(problem.parameters, self._add, set(general))
        self._problem, self._count = problem, problem.count
        self.apart = apart and len(problem.parameters) * problem.count**2 <= APART
        self.total: Tensor | None = None
        self._grams: dict[int, Tensor] = {}
        self._workspace = Workspace()
        self._pending: defaultdict[Key, list[tuple[Use, str]]] = defaultdict(list)
        self._use_count: Counter[Key] = Counter()

    def grams(self) -> dict[tuple[int, ...], Tensor]:
        """The sums, by parameter, or one over all that are covered; zeros where no gradient arrived."""
        covered = [i for i in range(len(self._problem.parameters)) if i not in self.recorder.general]
        size = (self._count, self._count)
        zeros = torch.zeros(size, dtype=torch.float64, device=self._problem.device)
        if self.apart:
            return {(i,): self._grams.get(i, zeros) for i in covered}
        return {tuple(covered): zeros if self.total is None else self.total} if covered else {}

    def prepare(self) -> None:
        """Leave to the general method what was not seen, has no known layout, or is used whole here, in part there."""
        uses, general = self.recorder.uses, self.recorder.general
        self._use_count.update(key for use in uses for key in use.keys.values())
        parts = defaultdict(set)
        for index, part in self._use_count:
            parts[index].add(part)
        general.update(index for index, seen in parts.items() if -1 in seen and len(seen) > 1)
        general.update(set(range(len(self._problem.parameters))) - parts.keys())
        for use in uses:
            if use.layout is None or use.layout[0] >= use.rule.leading(use.arguments) or use.lost:
                general |= use.indices

    def backward(self, outputs: Any, directions: Any) -> None:
        """One backward pass; every layer adds itself on the way."""
        pairs = differentiable_pairs(outputs, directions)
        if pairs:
            self.recorder.gradients_through([output for output, _ in pairs], [direction for _, direction in pairs])
        for key, uses in self._pending.items():
            if key[0] not in self.recorder.general:
                self._add_shared(key[0], uses)

    def _add(self, use: Use) -> None:
        """The contribution of one layer, as soon as its output gradient is there."""
        kept = False
        for name, key in use.keys.items():
            if key[0] in self.recorder.general:
                continue
            if self._use_count[key] > 1:
                self._pending[key].append((use, name))
                kept = True
                continue
            self._sum(key[0], use.rule.gram(name, *self._arranged(use), use.arguments, self._workspace))
        if not kept:
            use.release()

    def _sum(self, index: int, gram: Tensor) -> None:
        if self.total is None:
            self.total = torch.zeros_like(gram, dtype=torch.float64)
        self.total += gram
        if self.apart and index in self._grams:
            self._grams[index] += gram
        elif self.apart:
            self._grams[index] = gram.to(torch.float64, copy=True)

    def _arranged(self, use: Use) -> tuple[Tensor, Tensor]:
        assert use.layout is not None
        assert use.gradient is not None
        A = use.rule.prepare(use.input, use.arguments)
        return arrange(A, use.layout, self._count), arrange(use.gradient, use.layout, self._count)

    def _add_shared(self, index: int, uses: list[tuple[Use, str]]) -> None:
        """A parameter used several times: its gradients add up before they are multiplied."""
        arranged = [(use, name, *self._arranged(use)) for use, name in uses]
        features = [use.rule.features(name, use.arguments) for use, name in uses]
        cuts = [list(blocks(count, self._count * self._problem.parameters[index].numel())) for count in features]
        if len(set(features)) > 1:  # not cut alike
            cuts = [[slice(0, count)] for count in features]
        for cut in zip(*cuts, strict=True):
            rows: Tensor | None = None
            for (use, name, A, G), block in zip(arranged, cut, strict=True):
                part = use.rule.rows(name, A, G, use.arguments, block).reshape(self._count, -1)
                rows = part if rows is None else rows + part
            assert rows is not None
            self._sum(index, gram_of_rows([rows]))
