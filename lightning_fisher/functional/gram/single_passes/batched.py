"""The passes of single samples all at once, by ``torch.func.vmap``: the plain loop without its N-fold overhead.

Where a pass of one sample is many small operations, a recurrence in Python say, calling them takes longer than
computing them. What runs is the module with a batch of one, as in the loop; that vmap makes the same of it is verified
in every call, against an ordinary backward pass of the batch.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, vjp, vmap
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_fisher.functional.evaluation.precision import RefuseAutocast
from lightning_fisher.functional.gram.layerwise import check_shapes
from lightning_fisher.functional.gram.per_sample_jacobian import differentiable_pairs, rows_fit
from lightning_fisher.functional.gram.problem import Problem
from lightning_fisher.functional.gram.single_passes.one_by_one import OneByOneResult, grams_of_groups

COPIES = 2  # of J that are held at once


class BatchedResult(NamedTuple):
    """What single passes at once give.

    Attributes:
        alone: ξ, and what it is made from.
        whole: What the module returned for the batch, with its graph.
    """

    alone: OneByOneResult
    whole: Any


def can_be_batched(problem: Problem) -> bool:
    """Whether single passes may run at once.

    Not where they do not fit memory, nor where hooks or scripted code would see the tensors of vmap, nor where
    the result may not depend on what was quicker.
    """
    elements = COPIES * problem.count * sum(parameter.numel() for parameter in problem.parameters)
    if problem.count < 2 or not rows_fit(problem, elements) or torch.are_deterministic_algorithms_enabled():
        return False
    return not any(
        submodule._forward_hooks
        or submodule._forward_pre_hooks
        or submodule._backward_hooks
        or submodule._backward_pre_hooks
        or isinstance(submodule, torch.jit.ScriptModule)
        for submodule in problem.module.modules()
    )


def batched(problem: Problem, groups: Iterable[tuple[int, ...]]) -> BatchedResult | None:
    """Run the batch, then all samples alone and back, by vmap.

    Cost: a forward pass of the batch and a forward and backward pass under vmap; memory of two ``J``.

    Args:
        problem: Module and samples.
        groups: Positions of the parameters whose Gram matrices are kept apart.

    Returns:
        The result, to be compared with the batch; ``None`` where vmap can't run the module.
    """
    whole = problem.outputs()
    check_shapes(whole, problem.count)
    gradients = problem.output_gradients(whole)
    pairs = differentiable_pairs(whole, gradients.directions)
    if not pairs:
        return None
    try:
        with warnings.catch_warnings(), RefuseAutocast({problem.device.type}), _RefuseRebinding():
            warnings.simplefilter("ignore")  # of operations that vmap runs one by one
            rows, outputs = _rows(problem, whole, [direction for _, direction in pairs])
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a module makes of such tensors
        return None
    return BatchedResult(OneByOneResult(grams_of_groups(problem, rows, groups), gradients, outputs), whole)


class _RefuseRebinding(TorchFunctionMode):
    """Refuse ``tensor.data = other``: torch ends the process over a tensor that outlives vmap with one of vmap's.

    Modules that move others' weights so (a momentum encoder, in the tree or not) run one sample after the other.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "__set__" and getattr(func, "__self__", None) is torch.Tensor.data:
            raise RuntimeError("Expected no assignment to `.data` under vmap.")
        return func(*args, **(kwargs or {}))


def _rows(problem: Problem, whole: Any, directions: list[Tensor]) -> tuple[Tensor, Any]:
    """``J`` and the outputs of the samples, each alone."""
    places = _places(problem)
    leaves, spec = tree_flatten(problem.inputs)
    moving = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    like, output_spec = tree_flatten(whole)
    kept = [i for i, leaf in enumerate(like) if isinstance(leaf, Tensor)]
    chosen = [i for i in kept if like[i].requires_grad]

    def one(tensors: list[Tensor], pulled: list[Tensor]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        given = list(leaves)
        for i, tensor in zip(moving, tensors, strict=True):
            given[i] = tensor.unsqueeze(0)

        def run(values: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            here = {name: value for names, value in zip(places, values, strict=True) for name in names}

            def call(*args: Any, **kwargs: Any) -> Any:
                return functional_call(problem.module, here, args, kwargs, tie_weights=False)

            module: Any = call
            alone = replace(problem, module=module, state=None)
            found = tree_flatten(alone.outputs_of(tree_unflatten(given, spec), alone=True))[0]
            return [found[i] for i in chosen], [found[i] for i in kept]

        pulling: Any = vjp(run, [parameter.detach() for parameter in problem.parameters], has_aux=True)
        _, pull, seen = pulling
        (found,) = pull([direction.unsqueeze(0) for direction in pulled])
        return tuple(found), seen

    if problem.state is not None:
        problem.state.restore_moved()
    found, seen = vmap(one, randomness="error")([leaves[i] for i in moving], directions)
    dtype = torch.float64 if any(p.dtype == torch.float64 for p in problem.parameters) else torch.float32
    rows = torch.cat([gradient.detach().to(dtype).reshape(problem.count, -1) for gradient in found], 1)
    outputs = list(like)
    for i, tensor in zip(kept, seen, strict=True):
        outputs[i] = tensor.detach().squeeze(1) if tensor.ndim > like[i].ndim else tensor.detach()
    return rows, tree_unflatten(outputs, output_spec)


def _places(problem: Problem) -> list[list[str]]:
    """Every name that the module has for each parameter: some are held at several places."""
    found: defaultdict[int, list[str]] = defaultdict(list)
    for prefix, owner in problem.module.named_modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                found[id(parameter)].append(f"{prefix}.{name}" if prefix else name)
    return [found[id(parameter)] for parameter in problem.parameters]


def seconds(device: torch.device) -> float:
    """A clock to compare two ways on a device; on a CPU that of this thread, which other work doesn't move."""
    if device.type == "cpu":
        return time.thread_time()
    torch.accelerator.synchronize()
    return time.perf_counter()
