"""The Gram matrix of per-sample gradients from one forward and one backward pass, layer by layer.

The parameters are frozen, so the backward pass skips the gradients of the weights; each layer's contribution is
formed when the gradient of its output arrives, and nothing of J outlives its layer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from torch.utils.checkpoint import CheckpointError

from lightning_fisher.exceptions import InteractionError
from lightning_fisher.functional.evaluation.finite import require_finite
from lightning_fisher.functional.evaluation.loss import LossFn, output_gradients
from lightning_fisher.functional.evaluation.samples import call_module, num_samples, take
from lightning_fisher.functional.gram.recorder import Key, Recorder, Use
from lightning_fisher.functional.gram.rules.base import (
    MAX_ELEMENTS,
    Layout,
    Workspace,
    arrange,
    blocks,
    gram_of_rows,
    weight_gram,
)

PROBE = 2  # samples in the pass that finds out which dimension of each layer's input holds the samples
MEMORY = 2.0  # what a pass takes, times the inputs of its layers: with margin for what they keep beside those
TEMPORARIES = 2 * 4 * MAX_ELEMENTS  # bytes for the rows of a layer, whatever the number of samples


class MemoryExceededError(Exception):
    """A pass over all samples needs more memory than there is.

    Attributes:
        needed: Bytes a sample, about.
        room: Bytes there are for samples.
        samples: How many fit.
    """

    def __init__(self, needed: float, room: float) -> None:
        super().__init__(f"a sample needs {needed:.0f} bytes, there are {room:.0f}")
        self.needed, self.room, self.samples = needed, room, int(room / needed)


class LayerwiseGram:
    """One pass over N samples.

    Attributes:
        gram: ``[N, N]`` float64: Gram matrix of the gradients ``∇_w ⟨direction_j, z_j⟩`` over all parameters that a
            rule covers.
        log_norms: ``[N]`` float64: log-norms of the output gradients, ``∇ℓ_j = exp(log_norms[j]) ∇_w ⟨…⟩``.
        directions: Unit output gradients, in the structure of the outputs.
        outputs: What the module returned, detached.
        general: Positions of the parameters that are left to the general method.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Sequence[nn.Parameter],
        inputs: Any,
        targets: Any,
        loss_fn: LossFn | None,
        logit_norm: float | None,
        tolerance: float,
        room: float = math.inf,
    ) -> None:
        self._count = num_samples(inputs)
        self._tolerance = tolerance
        self.gram = torch.zeros(
            self._count, self._count, dtype=torch.float64, device=parameters[0].device if parameters else None
        )
        self._pending: defaultdict[Key, list[tuple[Use, str]]] = defaultdict(list)
        self._workspace = Workspace()
        few = self._run_few(module, parameters, inputs, room)
        recorder = Recorder(parameters, self._add)
        random_state = torch.get_rng_state()
        with recorder:
            outputs = call_module(module, inputs)
        self._random = not torch.equal(random_state, torch.get_rng_state())
        self._check_outputs(outputs)
        self.outputs = _map_tensors(outputs, Tensor.detach)
        self.general = recorder.general
        self._lay_out(few, recorder)
        unseen = set(range(len(parameters))) - {key[0] for use in recorder.uses for key in use.keys}
        self.general |= unseen
        self._use_count: defaultdict[Key, int] = defaultdict(int)
        for use in recorder.uses:
            for key in use.keys:
                self._use_count[key] += 1
        for index in {key[0] for key in self._use_count}:  # a parameter used whole here and in part there
            parts = {key[1] for key in self._use_count if key[0] == index}
            if -1 in parts and len(parts) > 1:
                self.general.add(index)
        self.directions, self.log_norms = output_gradients(outputs, targets, loss_fn, logit_norm)
        try:
            self._backward(outputs)
        except CheckpointError:  # activation checkpointing repeats a forward pass that is recorded only once
            self.gram.zero_()
            self._pending.clear()
            self.general.update(range(len(parameters)))
        for key, uses in self._pending.items():
            if key[0] not in self.general:
                self._add_shared(uses, parameters[key[0]])

    def _check_outputs(self, outputs: Any) -> None:
        for leaf in tree_flatten(outputs)[0]:
            if isinstance(leaf, Tensor) and (leaf.ndim == 0 or leaf.shape[0] != self._count):
                raise ValueError(
                    f"Expected the module to return the {self._count} samples in dimension 0, "
                    f"but got shape {tuple(leaf.shape)}."
                )

    def _run_few(
        self, module: nn.Module, parameters: Sequence[nn.Parameter], inputs: Any, room: float
    ) -> tuple[int, Recorder, Any] | None:
        """A pass of a few samples on their own, to compare with; ``None`` where there is only one.

        Raises:
            MemoryExceededError: If all of them need more than ``room`` bytes.
        """
        if self._count == 1:
            return None
        size = PROBE if self._count > PROBE else 1
        probe = Recorder(parameters)
        with probe:
            outputs = call_module(module, take(inputs, slice(0, size)))
        layer_inputs = {use.input.data_ptr(): use.input.nbytes for use in probe.uses}
        needed = MEMORY * sum(layer_inputs.values()) / size
        if TEMPORARIES + needed * self._count > room:
            raise MemoryExceededError(needed, max(room - TEMPORARIES, 0.0))
        return size, probe, outputs

    def _lay_out(self, few: tuple[int, Recorder, Any] | None, recorder: Recorder) -> None:
        """Find each layer's samples by comparing with the pass of a few of them."""
        if few is None:
            for use in recorder.uses:
                use.layout = (0, use.input.shape[0], True) if use.input.ndim else None
            self._reject_unusable(recorder.uses)
            return
        size, probe, outputs = few
        same = [(a.rule, a.weight, a.bias) for a in recorder.uses] == [(b.rule, b.weight, b.bias) for b in probe.uses]
        if not same:  # control flow that depends on the data
            self.general |= {key[0] for use in recorder.uses for key in use.keys}
            return
        differences = [_difference(self.outputs, outputs, size)]
        for use, alone in zip(recorder.uses, probe.uses, strict=True):
            use.layout = _layout(use, alone, self._count, size)
            if use.layout is None:
                differences.append(self.gram.new_zeros(()))
                continue
            first = arrange(use.input, use.layout, self._count)[:size]
            differences.append(_relative(first, arrange(alone.input, use.layout, size)))
        # The only host synchronization before the backward pass.
        values = torch.stack([difference.to(self.gram.device) for difference in differences]).tolist()
        if not values[0] <= self._tolerance:
            if math.isnan(values[0]):
                for leaf in tree_flatten(self.outputs)[0]:
                    if isinstance(leaf, Tensor):
                        require_finite(leaf, "outputs of the module")
            if self._random:
                raise ValueError(
                    "Expected a deterministic forward pass in evaluation mode, but the module draws random numbers."
                )
            raise InteractionError(f"relative difference {values[0]:.1e}")
        for use, value in zip(recorder.uses, values[1:], strict=True):
            if not value <= self._tolerance:
                use.layout = None
        self._reject_unusable(recorder.uses)

    def _reject_unusable(self, uses: list[Use]) -> None:
        for use in uses:
            if use.layout is None or not _usable(use):
                self.general |= {key[0] for key in use.keys}

    def _backward(self, outputs: Any) -> None:
        pairs = [
            (output, direction)
            for output, direction in zip(tree_flatten(outputs)[0], tree_flatten(self.directions)[0], strict=True)
            if isinstance(output, Tensor) and output.requires_grad
        ]
        if pairs:
            torch.autograd.backward([output for output, _ in pairs], [direction for _, direction in pairs])

    def _add(self, use: Use) -> None:
        """The contribution of one layer, as soon as its output gradient is there."""
        for name, key in (("weight", use.weight), ("bias", use.bias)):
            if key is None or key[0] in self.general:
                continue
            if self._use_count[key] > 1:
                self._pending[key].append((use, name))
                continue
            A, G = self._arranged(use)
            if name == "bias":
                assert use.rule.bias is not None
                rows = use.rule.bias(G, use.arguments).reshape(self._count, -1)
                self.gram += gram_of_rows([rows])
            else:
                self.gram += weight_gram(use.rule, A, G, use.arguments, self._workspace)
        if not any(use is pending for uses in self._pending.values() for pending, _ in uses):
            use.release()

    def _arranged(self, use: Use) -> tuple[Tensor, Tensor]:
        assert use.layout is not None
        assert use.gradient is not None
        A = use.rule.prepare(use.input, use.arguments)
        return arrange(A, use.layout, self._count), arrange(use.gradient, use.layout, self._count)

    def _add_shared(self, uses: list[tuple[Use, str]], parameter: Tensor) -> None:
        """A parameter used several times: its gradients add up before they are multiplied."""
        arranged = [(use, name, *self._arranged(use)) for use, name in uses]
        features = min(use.rule.features(use.arguments) if name == "weight" else 1 for use, name in uses)
        for block in blocks(features, self._count * parameter.numel()):
            rows: Tensor | None = None
            for use, name, A, G in arranged:
                if name == "bias":
                    assert use.rule.bias is not None
                    part = use.rule.bias(G, use.arguments)
                else:
                    assert use.rule.rows is not None
                    part = use.rule.rows(A, G, use.arguments, block)
                part = part.reshape(self._count, -1)
                rows = part if rows is None else rows + part
            assert rows is not None
            self.gram += gram_of_rows([rows])


def _map_tensors(tree: Any, function: Any) -> Any:
    return torch.utils._pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def _usable(use: Use) -> bool:
    assert use.layout is not None
    fits = use.layout[0] < use.rule.leading(use.arguments, use.input.ndim)
    weight = use.arguments["weight"]
    convolution = "dilation" in use.arguments
    return fits and (not convolution or use.input.ndim == weight.ndim)


def _layout(use: Use, few: Use, count: int, size: int) -> Layout | None:
    """Which dimension holds the samples, how many rows each has, and in which order."""
    shape, small = use.input.shape, few.input.shape
    if len(shape) != len(small) or len(use.output_shape) != len(few.output_shape):
        return None
    differing = [dim for dim in range(len(shape)) if shape[dim] != small[dim]]
    if len(differing) != 1:
        return None
    dim = differing[0]
    repeats, rest = divmod(shape[dim], count)
    if rest or small[dim] != repeats * size or use.output_shape[dim] != shape[dim]:
        return None
    if repeats == 1:
        return (dim, 1, True)
    errors = []
    for major in (True, False):
        layout = (dim, repeats, major)
        first = arrange(use.input, layout, count)[:size]
        errors.append(float(_relative(first, arrange(few.input, layout, size))))
    return (dim, repeats, errors[0] <= errors[1])


def _relative(value: Tensor, reference: Tensor) -> Tensor:
    if not value.is_floating_point():
        return (value != reference).any().double()
    scale = reference.abs().amax().clamp_min(torch.finfo(value.dtype).tiny)
    return ((value - reference).abs().amax() / scale).double() if value.numel() else value.new_zeros(()).double()


def _difference(outputs: Any, few: Any, size: int) -> Tensor:
    pairs = zip(tree_flatten(outputs)[0], tree_flatten(few)[0], strict=True)
    return torch.stack([_relative(a[:size], b) for a, b in pairs if isinstance(a, Tensor)]).max()
