"""Flat minimum search: the volume of the box of weights around w in which the outputs hardly change."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.utils._pytree import tree_leaves, tree_map

from lightning_fisher.arguments import require_choice, require_non_negative, require_positive
from lightning_fisher.functional.evaluation.graph import refuse_constant
from lightning_fisher.functional.evaluation.samples import call_module

OUTPUTS = ("logits", "probabilities")
REDUCTIONS = ("mean", "none")


def flat_minimum_penalty(
    module: nn.Module,
    inputs: Any,
    *,
    epsilon: float = 1e-3,
    outputs: str = "logits",
    guard: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    r"""``B``, the penalty of flat minimum search (Hochreiter & Schmidhuber 1997), a term of the loss.

    For an input with outputs ``o_k`` and ``S_i = Σ_k (∂o_k/∂w_i)²``,

    ``B = ½ [ −L ln ε + Σ_i ln S_i + L ln Σ_k (Σ_i |∂o_k/∂w_i| / √S_i)² ]``

    is minus the log of the volume of a box of weights, ``B = −Σ_i ln Δw_i``, whose edges ``Δw_i`` disturb the outputs
    equally (``Δw_i² S_i`` the same for all i) and together, all signs adverse, by a squared distance of ε. The paper
    adds the sum over the training inputs.

    **Guard for dead units.** A weight that no output of this input depends on (behind a dead ReLU: ``S_i = 0``) would
    have an edge of infinite length and make B minus infinity. Weights with ``S_i ≤ guard`` are left out: L counts the
    others, the box is the one over the others. B jumps where a unit dies or wakes. An input without any weight left
    has B = 0.

    For small networks: the Jacobian of N × K × L numbers is formed and differentiated, in float64. The conditioning is
    bad: the gradient has terms of ``1/√S_i``, which is what ``guard`` can bound.

    Cost: K backward passes of every sample, and the double backward pass through them.

    Args:
        module: The network, in its current mode, evaluated one sample at a time: without batch statistics and random
            layers, returning ``[N, K]``. Parameters that require gradients are the w.
        inputs: N samples in dimension 0 of every tensor.
        epsilon: ε > 0; shifts B by ``−½ L ln ε``.
        outputs: o: ``"logits"``, what the module returns, or ``"probabilities"``, its softmax.
        guard: Weights with ``S_i`` of at most this are left out; 0: those without any effect.
        reduction: ``"mean"`` or ``"none"``, one value a sample ``[N]``.

    Returns:
        B, float64, with its graph.

    Raises:
        ValueError: If an option doesn't fit, or the module can't be evaluated one sample at a time.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional import flat_minimum_penalty
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> x, y = torch.randn(8, 3), torch.randint(2, (8,))
        >>> loss = torch.nn.functional.cross_entropy(net(x), y) + 1e-5 * flat_minimum_penalty(net, x)
        >>> loss.backward()
    """
    require_positive("epsilon", epsilon)
    require_choice("outputs", outputs, OUTPUTS)
    require_choice("reduction", reduction, REDUCTIONS)
    require_non_negative("guard", guard)
    weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not weights:
        raise ValueError("Expected the module to have parameters that require gradients, but it has none.")

    def one(parameters: dict[str, Tensor], sample: Any) -> Tensor:
        batch = tree_map(lambda leaf: leaf.unsqueeze(0), sample)
        found = functional_call(_Call(module), {f"module.{n}": p for n, p in parameters.items()}, (batch,)).reshape(-1)
        return found.softmax(0) if outputs == "probabilities" else found

    try:
        jacobian = vmap(jacrev(one), in_dims=(None, 0))(weights, inputs)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"Expected a module that can be evaluated one sample at a time, but {first}") from error
    rows = torch.cat([part.flatten(2) for part in jacobian.values()], 2).double()  # [N, K, L]
    squares = rows.square().sum(1)
    kept = squares > guard
    if not bool(squares.any()):
        refuse_constant(sum(leaf.sum() for leaf in tree_leaves(call_module(module, inputs))), weights.values())
    safe = torch.where(kept, squares, 1.0)  # ln 1 = 0, and no gradient
    number = kept.sum(1).double()
    adverse = torch.where(kept.unsqueeze(1), rows.abs() / safe.sqrt().unsqueeze(1), 0.0).sum(2).square().sum(1)
    adverse = torch.where(number > 0, adverse, 1.0)
    values = 0.5 * (-number * math.log(epsilon) + safe.log().sum(1) + number * adverse.log())
    return values.mean() if reduction == "mean" else values


class _Call(nn.Module):
    """A module that takes its inputs as one structure."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Any) -> Any:
        return call_module(self.module, inputs)
