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
from lightning_fisher.functional.gram.rules.base import block_of
from lightning_fisher.functional.gram.rules.parameter_scale import parameter_scale
from lightning_fisher.functional.gram.rules.products import Workspace, blocks, gram_of_rows
from lightning_fisher.functional.losses.loss import OutputGradients

APART = 2**25  # elements up to which the Gram matrices of single parameters are kept apart, to check each: 256 MiB


@dataclass(frozen=True)
class LayerwiseResult:
    """What one pass over N samples gives.

    Attributes:
        grams: Gram matrices ``[N, N]`` (float64) of the gradients ``∇_w ⟨direction_j, z_j⟩``, at the problem's scale,
            over the parameters that rules cover, by their positions: one each, one a group, or one of all.
        total: Their sum, added up in the order of the backward pass whether they are kept apart or not: the same to
            the bit. ``None`` where a part of it is not to be trusted, or nothing arrived.
        gradients: Unit output gradients, in the structure of the outputs, and their log-norms:
            ``∇ℓ_j = exp(log_norms[j]) ∇_w ⟨…⟩``.
        outputs: What the module returned, detached.
        general: Positions of the parameters that are left to the general method.
    """

    grams: dict[tuple[int, ...], Tensor]
    total: Tensor | None
    gradients: OutputGradients
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
        gradients = problem.output_gradients(outputs)
        contributions.backward(outputs, gradients.directions)
    finally:
        recorder.release()
    single = contributions.apart and problem.groups is None
    if recorder.general != known and not single:  # a part of what was summed up is not to be trusted
        return layerwise_gram(problem, recorder.general, lay_out, apart=apart)
    total = contributions.total if recorder.general == known else None
    return LayerwiseResult(contributions.grams(), total, gradients, detached(outputs), recorder.general)


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
        apart: Whether the Gram matrices of single parameters, or of groups, are kept apart.
        total: Sum of all contributions so far; ``None`` before the first.
    """

    def __init__(self, problem: Problem, general: set[int], *, apart: bool) -> None:
        self.recorder = Recorder(problem.parameters, self._add, set(general))
        self._problem, self._count = problem, problem.count
        few = len(problem.parameters) * problem.count**2 <= APART
        self.apart = problem.groups is not None or (apart and few)
        self._groups = problem.groups or tuple(range(len(problem.parameters)))
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
            members: defaultdict[int, list[int]] = defaultdict(list)
            for i in covered:
                members[self._groups[i]].append(i)
            return {tuple(positions): self._grams.get(group, zeros) for group, positions in members.items()}
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
                self._add_shared(key, uses)

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
            self._sum(key[0], self._gram(use, name, key))
        if not kept:
            use.release()

    def _gram(self, use: Use, name: str, key: Key) -> Tensor:
        A, G = self._arranged(use)
        scale = self._problem.scale
        if scale in ("none", "layer"):  # as a whole: `_sum`
            return use.rule.gram(name, A, G, use.arguments, self._workspace)
        scales = self._scales(use, name, key)
        dim = use.rule.unit_dimension(name, use.arguments)
        if scale == "filter" and dim is not None:  # the norms of the units on their output gradients
            G = G * scales.flatten(1)[:, 0].to(G.dtype).view(-1, *[1] * (-1 - dim))
            return use.rule.gram(name, A, G, use.arguments, self._workspace)
        return use.rule.scaled_gram(name, A, G, use.arguments, self._workspace, scales)

    def _scales(self, use: Use, name: str, key: Key) -> Tensor:
        """What the gradients of a parameter, or of the part of it that a call uses, are multiplied by."""
        part = self._problem.parameters[key[0]] if key[1] < 0 else use.arguments[name]
        return parameter_scale(part, self._problem.scale).expand(part.shape)

    def _sum(self, index: int, gram: Tensor) -> None:
        factor, group = self._problem.gram_factors[index], self._groups[index]
        if self.total is None:
            self.total = torch.zeros_like(gram, dtype=torch.float64)
        self.total.add_(gram, alpha=factor)
        if self.apart and group in self._grams:
            self._grams[group].add_(gram, alpha=factor)
        elif self.apart:
            self._grams[group] = gram.to(torch.float64, copy=True).mul_(factor)

    def _arranged(self, use: Use) -> tuple[Tensor, Tensor]:
        assert use.layout is not None
        assert use.gradient is not None
        A = use.rule.prepare(use.input, use.arguments)
        return arrange(A, use.layout, self._count), arrange(use.gradient, use.layout, self._count)

    def _add_shared(self, key: Key, uses: list[tuple[Use, str]]) -> None:
        """A parameter used several times: its gradients add up before they are multiplied."""
        index, scale = key[0], self._problem.scale
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
            if scale not in ("none", "layer"):
                rows = rows * block_of(self._scales(*uses[0], key), block, features[0]).to(rows.dtype)
            self._sum(index, gram_of_rows([rows]))
