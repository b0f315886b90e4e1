"""What is found out about a module once, and kept with it for the next samples of the same structure."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn.modules import module as torch_module
from torch.utils._pytree import tree_flatten

from lightning_fisher.functional.evaluation.graph import nodes
from lightning_fisher.functional.evaluation.precision import SAME
from lightning_fisher.functional.gram.interception import recorded
from lightning_fisher.functional.gram.operations import Operations
from lightning_fisher.functional.gram.per_sample_jacobian import detached
from lightning_fisher.functional.gram.problem import Problem
from lightning_fisher.functional.gram.recorder import Key, Layout, Recorder, Use
from lightning_fisher.functional.gram.rules.base import Rule
from lightning_fisher.functional.gram.rules.custom import CUSTOM_RULES

PROBE = 2  # samples in the pass that finds out which dimension of each layer's input holds the samples
KEPT = 8  # plans for a module: the sizes of its subsets, say
MEMORY = 2.0  # what a pass takes, times the inputs of its layers: with margin for what they keep beside those


@dataclass(frozen=True)
class PlannedUse:
    """One call of a function with a rule."""

    rule: Rule
    keys: dict[str, Key]
    input_shape: torch.Size
    output_shape: torch.Size
    layout: Layout | None

    @classmethod
    def of(cls, use: Use) -> PlannedUse:
        """The plan of a call that was seen."""
        return cls(use.rule, use.keys, use.input.shape, use.output_shape, use.layout)

    def without(self, general: set[int]) -> PlannedUse | None:
        """The call when these parameters are left to the general method; ``None``: it has no others."""
        keys = {name: key for name, key in self.keys.items() if key[0] not in general}
        return replace(self, keys=keys) if keys else None

    def fits(self, use: Use) -> bool:
        """Check whether a call is the one that was planned."""
        return (self.rule, self.keys, self.input_shape, self.output_shape) == (
            use.rule,
            use.keys,
            use.input.shape,
            use.output_shape,
        )


@dataclass(eq=False)
class Plan:
    """How ξ of one module is computed for samples of one structure.

    Attributes:
        general: Positions of the parameters that no rule covers.
        uses: The calls that rules cover, with the layout of their samples.
        trace: Every function of the pass; a pass with another trace needs another plan.
        verify: Whether every call is verified: what the first one shows may depend on its data.
        accepted: Whether differences between passes were found to be rounding.
        needed: Bytes a sample that a pass takes, about.
        tolerance: Relative difference that two evaluations of the same thing may show.
        alone: Every function of the pass of one sample, where all parameters go one by one.
        seconds: What the passes of all samples take, one by one; ``None``: not known yet.
        batched: Whether they run at once, by vmap; ``None``: to be found out.
    """

    general: set[int]
    uses: list[PlannedUse]
    trace: list[Any]
    verify: bool
    accepted: bool
    needed: float
    tolerance: float
    alone: list[Any] | None = None
    seconds: float | None = None
    batched: bool | None = None


@dataclass
class Probe:
    """A pass of the first few samples on their own, to compare with.

    Attributes:
        size: How many.
        uses: Where the parameters were used.
        outputs: What the module returned.
        general: Positions of the parameters that no rule covers.
        chosen: Whether samples may affect each other depending on their data, see `Operations`.
        tolerance: That of the problem, or of float32 where the module computes in it by itself.
    """

    size: int
    uses: list[Use]
    outputs: Any
    general: set[int]
    chosen: bool
    tolerance: float

    @property
    def needed(self) -> float:
        """Bytes a sample that a pass over all of them takes, about."""
        layer_inputs = {use.input.data_ptr(): use.input.nbytes for use in self.uses}
        return MEMORY * sum(layer_inputs.values()) / self.size


def probe(problem: Problem) -> Probe:
    """Watch the module run a few samples, all of its operations included."""
    size = min(PROBE, max(problem.count - 1, 1))
    few = problem.take(slice(0, size))
    for watch in (True, False):
        recorder = Recorder(problem.parameters)

        def unseen(tensor: Tensor, recorder: Recorder = recorder) -> None:  # by scripted code, an extension
            if not recorder.inside and id(tensor) in recorder.index:
                recorder.general.add(recorder.index[id(tensor)])

        operations = Operations(unseen, few.inputs, size)
        try:
            with recorded(recorder, problem.module):
                if watch:
                    with operations:
                        outputs = few.outputs()
                else:  # something that can't be watched
                    outputs = few.outputs()
        except (RuntimeError, NotImplementedError, TypeError):
            if watch:
                continue
            raise
        break
    everything = recorder.differentiates
    general = set(range(len(problem.parameters))) if everything else recorder.general
    for use in recorder.uses:
        use.arguments = {name: value for name, value in use.arguments.items() if name != "weight"}
    chosen = operations.chosen or recorder.reads or not watch or _own_backward(outputs)
    narrow = operations.narrow and problem.tolerance < SAME[torch.float32]
    tolerance = SAME[torch.float32] if narrow else problem.tolerance
    return Probe(size, recorder.uses, detached(outputs), general, chosen, tolerance)


def _own_backward(outputs: Any) -> bool:
    """Whether a function with a backward pass written in Python is part of the graph: nobody sees into that."""
    tensors = [leaf for leaf in tree_flatten(outputs)[0] if isinstance(leaf, Tensor)]
    return any(isinstance(node, BackwardCFunction) for tensor in tensors for node in nodes(tensor))


_PLANS: weakref.WeakKeyDictionary[nn.Module, dict[Any, tuple[list[weakref.ref[Any]], Plan]]] = (
    weakref.WeakKeyDictionary()
)


def find_plan(problem: Problem) -> Plan | None:
    """The plan kept for this module and samples of this structure."""
    kept = _PLANS.get(problem.module, {}).get(_structure(problem))
    if kept is None:
        return None
    references, plan = kept
    objects = _objects(problem.module)
    same = len(references) == len(objects) and all(r() is o for r, o in zip(references, objects, strict=True))
    return plan if same else None


def keep_plan(problem: Problem, plan: Plan) -> None:
    """Keep a plan as long as the module lives."""
    plans = _PLANS.setdefault(problem.module, {})
    structure = _structure(problem)
    plans.pop(structure, None)
    plans[structure] = ([weakref.ref(o) for o in _objects(problem.module)], plan)
    while len(plans) > KEPT:
        plans.pop(next(iter(plans)))


def drop_plan(problem: Problem) -> None:
    """Forget a plan that a pass did not follow."""
    _PLANS.get(problem.module, {}).pop(_structure(problem), None)


def _objects(module: nn.Module) -> Sequence[Any]:
    return [*module.modules(), *module.parameters(), *module.buffers()]


def _structure(problem: Problem) -> Any:
    """What a plan depends on: of samples, parameters, modules, hooks and rules everything but values."""
    leaves, spec = tree_flatten(problem.inputs)
    module = problem.module
    hooks = (
        torch_module._global_forward_hooks,
        torch_module._global_forward_pre_hooks,
        torch_module._global_backward_hooks,
        torch_module._global_backward_pre_hooks,
    )
    return (
        str(spec),
        tuple(_kind(leaf) if isinstance(leaf, Tensor) else (type(leaf), repr(leaf)) for leaf in leaves),
        tuple((p.requires_grad, bool(p._backward_hooks), *_kind(p)) for p in module.parameters()),
        tuple(_kind(buffer) for buffer in module.buffers()),
        tuple(
            (type(submodule), id(vars(submodule).get("forward")), *_hooks(submodule)) for submodule in module.modules()
        ),
        tuple(tuple(registered) for registered in hooks),
        tuple((layer_type, id(rule)) for layer_type, rule in CUSTOM_RULES.items()),
    )


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device, tensor.layout


def _hooks(module: nn.Module) -> tuple[Any, ...]:
    return (
        tuple(module._forward_hooks),
        tuple(module._forward_pre_hooks),
        tuple(module._backward_hooks),
        tuple(module._backward_pre_hooks),
    )
