"""The Gram matrix of per-sample gradients from one forward and one backward pass, layer by layer.

The parameters are frozen, so the backward pass skips the gradients of the weights; each layer's contribution is
formed when the gradient of its output arrives, and nothing of J outlives its layer.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.checkpoint import CheckpointError

from lightning_fisher.functional.evaluation.finite import require_finite
from lightning_fisher.functional.evaluation.module_state import frozen
from lightning_fisher.functional.gram.layout import arrange, find_layout, outputs_difference, relative_difference
from lightning_fisher.functional.gram.per_sample_jacobian import differentiable_pairs
from lightning_fisher.functional.gram.problem import Problem
from lightning_fisher.functional.gram.recorder import Key, Recorder, Use
from lightning_fisher.functional.gram.rules.products import MAX_ELEMENTS, Workspace, blocks, gram_of_rows
from lightning_fisher.functional.gram.verification import Verification

PROBE = 2  # samples in the pass that finds out which dimension of each layer's input holds the samples
MEMORY = 2.0  # what a pass takes, times the inputs of its layers: with margin for what they keep beside those
TEMPORARIES = 2 * 4 * MAX_ELEMENTS  # bytes for the rows of a layer, whatever the number of samples


@dataclass(frozen=True)
class Probe:
    """A pass of the first few samples on their own, to compare with.

    Attributes:
        size: How many.
        uses: Where the parameters were used.
        outputs: What the module returned.
        needed: Bytes a sample that a pass over all of them takes, about.
    """

    size: int
    uses: list[Use]
    outputs: Any
    needed: float


@dataclass(frozen=True)
class LayerwiseResult:
    """What one pass over N samples gives.

    Attributes:
        gram: ``[N, N]`` float64: Gram matrix of the gradients ``∇_w ⟨direction_j, z_j⟩`` over all parameters that a
            rule covers.
        log_norms: ``[N]`` float64: log-norms of the output gradients, ``∇ℓ_j = exp(log_norms[j]) ∇_w ⟨…⟩``.
        directions: Unit output gradients, in the structure of the outputs.
        outputs: What the module returned, detached.
        general: Positions of the parameters that are left to the general method.
    """

    gram: Tensor
    log_norms: Tensor
    directions: Any
    outputs: Any
    general: set[int]


def probe(problem: Problem, parameters: Sequence[nn.Parameter]) -> Probe | None:
    """Run a few samples on their own; ``None`` where there is only one."""
    if problem.count == 1:
        return None
    size = PROBE if problem.count > PROBE else 1
    recorder = Recorder(parameters)
    with frozen(parameters), recorder:
        outputs = problem.take(slice(0, size)).outputs()
    layer_inputs = {use.input.data_ptr(): use.input.nbytes for use in recorder.uses}
    return Probe(size, recorder.uses, outputs, MEMORY * sum(layer_inputs.values()) / size)


def layerwise_gram(
    problem: Problem, parameters: Sequence[nn.Parameter], few: Probe | None, verification: Verification
) -> LayerwiseResult:
    """Run all samples through the module and back.

    Args:
        problem: Module and samples.
        parameters: Parameters to look for.
        few: The pass of a few samples.
        verification: Where samples that interact are reported.
    """
    contributions = _Contributions(problem, parameters)
    recorder = contributions.recorder
    random_state = torch.get_rng_state()
    with recorder:
        outputs = problem.outputs()
    random = not torch.equal(random_state, torch.get_rng_state())
    _check_shapes(outputs, problem.count)
    detached = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, outputs)
    differences = _lay_out(problem, few, recorder, detached)
    if not differences[0] <= verification.tolerance:
        if math.isnan(differences[0]):
            for leaf in tree_flatten(detached)[0]:
                if isinstance(leaf, Tensor):
                    require_finite(leaf, "outputs of the module")
        if random:
            raise ValueError(
                "Expected a deterministic forward pass in evaluation mode, but the module draws random numbers."
            )
        verification.report(f"relative difference {differences[0]:.1e}")
    for use, difference in zip(recorder.uses, differences[1:], strict=False):
        if not difference <= verification.tolerance:
            use.layout = None
    contributions.prepare()
    directions, log_norms = problem.output_gradients(outputs)
    contributions.backward(outputs, directions)
    return LayerwiseResult(contributions.gram, log_norms, directions, detached, recorder.general)


def _check_shapes(outputs: Any, count: int) -> None:
    for leaf in tree_flatten(outputs)[0]:
        if isinstance(leaf, Tensor) and (leaf.ndim == 0 or leaf.shape[0] != count):
            raise ValueError(
                f"Expected the module to return the {count} samples in dimension 0, but got shape {tuple(leaf.shape)}."
            )


def _lay_out(problem: Problem, few: Probe | None, recorder: Recorder, outputs: Any) -> list[float]:
    """Find each layer's samples by comparing with the pass of a few of them.

    Returns:
        The relative difference of the outputs, then those of the layers' inputs.
    """
    uses = recorder.uses
    if few is None:
        for use in uses:
            use.layout = (0, use.input.shape[0], True) if use.input.ndim else None
        return [0.0]
    differences = [outputs_difference(outputs, few.outputs, few.size)]
    if [(use.rule, use.keys) for use in uses] == [(use.rule, use.keys) for use in few.uses]:
        for use, alone in zip(uses, few.uses, strict=True):
            use.layout = find_layout(use, alone, problem.count, few.size)
            if use.layout is None:
                differences.append(differences[0].new_zeros(()))
                continue
            first = arrange(use.input, use.layout, problem.count)[: few.size]
            differences.append(relative_difference(first, arrange(alone.input, use.layout, few.size)))
    # Else control flow depends on the data, and no layout is known.
    # The only host synchronization before the backward pass.
    return torch.stack([difference.to(problem.device) for difference in differences]).tolist()


class _Contributions:
    """The layers' contributions to ξ, each added when the gradient of its output arrives.

    Attributes:
        gram: ``[N, N]`` float64: their sum.
        recorder: Which parameters are used where; owns the set of those that no rule covers.
    """

    def __init__(self, problem: Problem, parameters: Sequence[nn.Parameter]) -> None:
        self.gram = torch.zeros(problem.count, problem.count, dtype=torch.float64, device=problem.device)
        self.recorder = Recorder(parameters, self._add)
        self._count = problem.count
        self._parameters = parameters
        self._workspace = Workspace()
        self._pending: defaultdict[Key, list[tuple[Use, str]]] = defaultdict(list)
        self._use_count: Counter[Key] = Counter()

    def prepare(self) -> None:
        """Leave to the general method what was not seen, has no known layout, or is used whole here, in part there."""
        uses, general = self.recorder.uses, self.recorder.general
        self._use_count.update(key for use in uses for key in use.keys.values())
        parts = defaultdict(set)
        for index, part in self._use_count:
            parts[index].add(part)
        general.update(index for index, seen in parts.items() if -1 in seen and len(seen) > 1)
        general.update(set(range(len(self._parameters))) - parts.keys())
        for use in uses:
            if use.layout is None or use.layout[0] >= use.rule.leading(use.arguments):
                general |= use.indices

    def backward(self, outputs: Any, directions: Any) -> None:
        """One backward pass; every layer adds itself on the way."""
        pairs = differentiable_pairs(outputs, directions)
        try:
            if pairs:
                torch.autograd.backward([output for output, _ in pairs], [direction for _, direction in pairs])
        except CheckpointError:  # activation checkpointing repeats a forward pass that is recorded only once
            self.gram.zero_()
            self._pending.clear()
            self.recorder.general.update(range(len(self._parameters)))
        for key, uses in self._pending.items():
            if key[0] not in self.recorder.general:
                self._add_shared(uses, self._parameters[key[0]])

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
            self.gram += use.rule.gram(name, *self._arranged(use), use.arguments, self._workspace)
        if not kept:
            use.release()

    def _arranged(self, use: Use) -> tuple[Tensor, Tensor]:
        assert use.layout is not None
        assert use.gradient is not None
        A = use.rule.prepare(use.input, use.arguments)
        return arrange(A, use.layout, self._count), arrange(use.gradient, use.layout, self._count)

    def _add_shared(self, uses: list[tuple[Use, str]], parameter: Tensor) -> None:
        """A parameter used several times: its gradients add up before they are multiplied."""
        arranged = [(use, name, *self._arranged(use)) for use, name in uses]
        features = min(use.rule.features(name, use.arguments) for use, name in uses)
        for block in blocks(features, self._count * parameter.numel()):
            rows: Tensor | None = None
            for use, name, A, G in arranged:
                part = use.rule.rows(name, A, G, use.arguments, block).reshape(self._count, -1)
                rows = part if rows is None else rows + part
            assert rows is not None
            self.gram += gram_of_rows([rows])
