"""The large-margin loss: distances to the decision boundary, at the input and in hidden layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_fisher.arguments import require_choice, require_integer, require_positive
from lightning_fisher.functional.penalties.logits import check_logits

DUAL = {1: math.inf, 2: 2, math.inf: 1}
SCORES = ("probabilities", "logits")
AGGREGATIONS = ("worst", "sum")


def large_margin_loss(
    logits: Tensor,
    targets: Tensor,
    activations: Tensor | Sequence[Tensor],
    *,
    gamma: float = 1e4,
    alpha: float = 2.0,
    norm: float = 2,
    top_k: int = 1,
    aggregation: str = "worst",
    scores: str = "probabilities",
    differentiate_norm: bool = False,
    layer_weights: Sequence[float] | None = None,
    eps: float = 1e-8,
) -> Tensor:
    r"""Large-margin loss on the input and on hidden layers (Elsayed et al. 2018), in place of the cross-entropy.

    With scores f, ``d_{ij} = (f_y − f_j) / (‖∇_h (f_y − f_j)‖_q / c_h + ε)`` is the first-order distance of sample i's
    activation h to the boundary with class j in the norm p, q its dual (1/p + 1/q = 1). The loss is

    ``mean_h 1/N Σ_i A_j max(0, min(γ − d_{ij}, α γ))``

    over the ``top_k`` wrong classes j with the largest scores; ``A`` is the class of the smallest d (``"worst"``) or
    the sum over the classes (``"sum"``). The mean over the layers, softmax probabilities as scores, a norm that isn't
    differentiated and the defaults are those of the authors' code (google-research/large_margin); its value is
    smaller by the constant ``γ`` (``top_k γ`` for ``"sum"``), the gradients are the same.

    Cost: ``top_k`` backward passes to the activations, and with ``differentiate_norm`` the double backward pass
    through them. The samples are differentiated together: where they interact (batch-norm in training mode) a
    gradient holds the terms of the other samples too.

    Args:
        logits: ``[N, K]``, computed from ``activations``.
        targets: Class indices ``[N]``.
        activations: h, one tensor a layer with the samples in dimension 0, on the graph of ``logits``: the input (with
            ``requires_grad_()`` before the forward pass), the outputs of hidden layers.
        gamma: γ > 0, the margin, in the units of h; with the default no distance is clipped.
        alpha: α > 0; distances below ``(1 − α) γ`` are clipped.
        norm: p, that distances are measured in: 1, 2 or ``math.inf``.
        top_k: From 1 to K − 1.
        aggregation: ``"worst"`` or ``"sum"``.
        scores: ``"probabilities"`` (the authors' code) or ``"logits"``.
        differentiate_norm: Whether the loss is differentiated through the norm in the denominator.
        layer_weights: c, one a layer; ``None``: 1.
        eps: ε > 0.

    Returns:
        The loss, a scalar with its graph.

    Raises:
        ValueError: If shapes or options don't fit.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional import large_margin_loss
        >>> net, x, y = torch.nn.Linear(3, 2), torch.randn(8, 3).requires_grad_(), torch.randint(2, (8,))
        >>> loss = large_margin_loss(net(x), y, x, gamma=1.0, norm=float("inf"))
        >>> loss.backward()
    """
    layers = [activations] if isinstance(activations, Tensor) else list(activations)
    factors = [1.0] * len(layers) if layer_weights is None else list(layer_weights)
    _check(logits, targets, layers, top_k, factors, norm)
    for name, value in (("gamma", gamma), ("alpha", alpha), ("eps", eps)):
        require_positive(name, value)
    require_choice("aggregation", aggregation, AGGREGATIONS)
    require_choice("scores", scores, SCORES)

    values = logits.softmax(1) if scores == "probabilities" else logits
    true = torch.nn.functional.one_hot(targets, logits.shape[1]).bool()
    others = values.masked_fill(true, -math.inf).topk(top_k, 1).values
    differences = values[true].unsqueeze(1) - others  # [N, top_k]
    slopes: list[list[Tensor]] = [[] for _ in layers]
    for k in range(top_k):
        gradients = torch.autograd.grad(
            differences[:, k].sum(), layers, create_graph=differentiate_norm, retain_graph=True, allow_unused=True
        )
        for slope, layer, gradient in zip(slopes, layers, gradients, strict=True):
            rows = torch.zeros_like(layer) if gradient is None else gradient
            slope.append(torch.linalg.vector_norm(rows.flatten(1), DUAL[norm], dim=1))
    losses = []
    for slope, factor in zip(slopes, factors, strict=True):
        distances = differences / (torch.stack(slope, 1) / factor + eps)
        if aggregation == "worst":
            distances = distances.amin(1, keepdim=True)
        losses.append((gamma - distances).clamp(0, alpha * gamma).sum(1).mean())
    return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()


def _check(
    logits: Tensor, targets: Tensor, layers: list[Tensor], top_k: int, factors: list[float], norm: float
) -> None:
    check_logits(logits, targets)
    classes = logits.shape[1]
    if not layers or not all(layer.requires_grad for layer in layers):
        raise ValueError(
            "Expected argument `activations` to hold tensors that require gradients, but got "
            f"{'one that does not' if layers else 'none'}."
        )
    if norm not in DUAL:
        raise ValueError(f"Expected argument `norm` to be one of {tuple(DUAL)}, but got {norm!r}.")
    require_integer("top_k", top_k, least=1)
    if top_k >= classes:
        raise ValueError(
            f"Expected argument `top_k` to be at most {classes - 1} with {classes} classes, but got {top_k}."
        )
    if len(factors) != len(layers) or not all(factor > 0 for factor in factors):
        raise ValueError(
            f"Expected argument `layer_weights` to hold {len(layers)} positive numbers, one a layer, but got {factors}."
        )
