"""Per-sample losses and the gradient of each with respect to the network's output, at any loss level.

The gradient of the cross-entropy, ``p − ỹ``, cancels where the loss is small: in float32 it is 3e-4 off at a
loss of 2e-3 and exactly zero soon after. Here it is formed in float64 from log-probabilities (the entry of the
true class as ``−Σ_{k≠y} p_k``) and split into a direction of unit length and a log-scale, so that a float32
backward pass only ever sees numbers of order one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from lightning_fisher.functional.evaluation.finite import require_finite
from lightning_fisher.functional.evaluation.module_copy import copied
from lightning_fisher.functional.evaluation.outputs import as_returned
from lightning_fisher.functional.evaluation.samples import fresh, take
from lightning_fisher.functional.losses.separable import gradients_of, require_mean_of_samples, require_own_losses

LossFn = Callable[[Any, Any], Tensor]
IGNORE_INDEX = -100  # the default of torch.nn.functional.cross_entropy


class OutputGradients(NamedTuple):
    """Gradient of every sample's loss with respect to its own output: ``∂ℓ_j/∂z_j = exp(log_norms[j]) directions[j]``.

    Attributes:
        directions: Of unit length, in the structure and dtype of the outputs; zero where the gradient is.
        log_norms: ``[N]`` float64; ``−inf`` where the gradient is exactly zero.
        log_residuals: ``ln‖∂ℓ_j/∂q_j‖``, ``[N]`` float64, q the rescaled logits: ``log_norms`` where they aren't.
    """

    directions: Any
    log_norms: Tensor
    log_residuals: Tensor


def mean_loss(outputs: Any, targets: Any, loss_fn: LossFn | None) -> Tensor:
    """Mean loss of a batch; the default cross-entropy is reduced in float64 from the logits as they are.

    Args:
        outputs: What the module returned.
        targets: Class indices ``[n]`` (or ``[n, d1, …]``), or class probabilities of the shape of ``outputs``.
        loss_fn: ``(outputs, targets) → scalar`` or ``→ [n]``; ``None`` is the cross-entropy.

    Returns:
        A scalar tensor.
    """
    return losses_of(outputs, targets, loss_fn).mean()


def losses_of(outputs: Any, targets: Any, loss_fn: LossFn | None) -> Tensor:
    """What the loss of a batch is made of: a scalar, or one loss a sample; see `mean_loss`.

    Raises:
        ValueError: If the outputs are no logits for the cross-entropy, or ``loss_fn`` returns something else.
    """
    if loss_fn is None:
        logits, targets = _require_logits(outputs).double(), class_targets(targets)
        _require_target_shape(logits, targets)
        try:
            return cross_entropy(logits, targets)
        except IndexError:  # found on the CPU, where it costs nothing
            _require_classes(logits, targets)
            raise
    losses = loss_fn(as_returned(outputs), fresh(targets))
    if not isinstance(losses, Tensor) or losses.ndim > 1:
        what = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(
            f"Expected argument `loss_fn` to return a scalar tensor or one loss a sample [N], but got {what}."
        )
    return losses


def class_targets(targets: Any) -> Tensor:
    """Class probabilities in float64, class indices of any integer type as torch's functions take them."""
    if not isinstance(targets, Tensor):
        raise ValueError(
            "Expected argument `targets` to be a tensor of class indices or probabilities (cross-entropy), but got "
            f"{type(targets).__name__}; give `loss_fn` for others."
        )
    return targets.double() if targets.is_floating_point() else targets.long()


def output_gradients(
    outputs: Any, targets: Any, loss_fn: LossFn | None = None, logit_norm: float | None = None
) -> OutputGradients:
    """Gradient of every sample's loss with respect to its own output, as unit directions and log-norms.

    Costs operations on the outputs only, in float64.

    Args:
        outputs: What the module returned for N samples: a tensor ``[N, K]`` or ``[N, K, d1, …]`` (the mean over
            the extra dimensions, over those not labeled −100, is a sample's loss), or with ``loss_fn`` any nested
            structure of tensors.
        targets: Class indices, class probabilities, or what ``loss_fn`` takes.
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [N]``; ``None`` is the cross-entropy.
        logit_norm: ``s`` of ``z ← z / (s‖z‖₂)`` (Sec. 7.2.3), differentiated with the rest; ``None``: not rescaled.

    Returns:
        `OutputGradients`.

    Raises:
        ValueError: If shapes, class indices or the returned losses don't fit.
        NonFiniteError: If a gradient is not finite.
    """
    if logit_norm is not None and not (isinstance(outputs, Tensor) and outputs.ndim == 2):
        raise ValueError("Expected the module to return logits of shape [N, K] when `logit_norm` is given.")
    if logit_norm is not None and not logit_norm > 0:
        raise ValueError(f"Expected argument `logit_norm` to be a positive number or None, but got {logit_norm}.")
    seen, norms = outputs, None
    if logit_norm is not None:
        logits = _checked_logits(outputs)
        norms = torch.linalg.vector_norm(logits, dim=1, keepdim=True)
        seen = logits / (logit_norm * norms)
    if loss_fn is None:
        direction, log_residuals = _cross_entropy_gradient(_checked_logits(seen), class_targets(targets))
        leaves, spec = [direction], None
    else:
        leaves, spec = _custom_gradient(seen, targets, loss_fn, outputs)
        leaves, log_residuals = _normalize_jointly(leaves)
    log_norms = log_residuals
    if norms is not None:  # through z/(s‖z‖): the component along z vanishes
        unit, direction = logits / norms, leaves[0]
        leaves[0], more = _normalize(direction - unit * (unit * direction).sum(1, keepdim=True))
        log_norms = log_residuals + more - torch.log(logit_norm * norms.squeeze(1))
    # −inf is a gradient of exactly zero.
    require_finite(log_norms.masked_fill(torch.isneginf(log_norms), 0.0), "losses and loss gradients")
    if spec is None:
        return OutputGradients(leaves[0].to(outputs.dtype), log_norms, log_residuals)
    originals = tree_flatten(outputs)[0]
    # What isn't differentiated keeps its place: structures drop fields that are None.
    cast = [
        original if leaf is None else leaf.to(original.dtype) for leaf, original in zip(leaves, originals, strict=True)
    ]
    return OutputGradients(tree_unflatten(cast, spec), log_norms, log_residuals)


def _require_logits(outputs: Any) -> Tensor:
    if not isinstance(outputs, Tensor) or outputs.ndim < 2 or not outputs.is_floating_point():
        what = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"Expected the module to return logits of shape [N, K] or [N, K, d1, …] (cross-entropy), but got {what}; "
            "give `loss_fn` for other outputs."
        )
    return outputs


def _require_target_shape(logits: Tensor, targets: Tensor) -> None:
    """Class probabilities are as large as the logits, class indices have no dimension of classes."""
    kind, shape = "probabilities", tuple(logits.shape)
    if not targets.is_floating_point():
        kind, shape = "indices", (shape[0], *shape[2:])
    if tuple(targets.shape) != shape:
        raise ValueError(f"Expected class {kind} in `targets` of shape {shape}, but got {tuple(targets.shape)}.")


def _require_classes(logits: Tensor, targets: Tensor) -> Tensor:
    """Class indices from 0 to K − 1, or ignored; returns which aren't."""
    kept = targets != IGNORE_INDEX
    if bool(((targets < 0) | (targets >= logits.shape[1]))[kept].any()):
        raise ValueError(
            f"Expected class indices in `targets` to be 0…{logits.shape[1] - 1}, "
            f"but got {int(targets[kept].min())}…{int(targets[kept].max())}."
        )
    return kept


def _checked_logits(outputs: Any) -> Tensor:
    return _require_logits(outputs).detach().double()


def _normalize(direction: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows and log-norms of ``[N, …]``; scaled first, so that tiny entries don't underflow when squared."""
    flat = direction.reshape(len(direction), -1)
    largest = flat.abs().amax(1, keepdim=True)
    safe = torch.where(largest > 0, largest, 1.0)
    flat = flat / safe
    norm = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    unit = flat / torch.where(norm > 0, norm, 1.0)
    log_norms = torch.where(largest > 0, norm.log() + largest.log(), -math.inf)
    log_norms = torch.where(torch.isnan(largest), largest, log_norms)
    return unit.view_as(direction), log_norms.squeeze(1)


def _normalize_jointly(leaves: list[Any]) -> tuple[list[Any], Tensor]:
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    joint, log_norms = _normalize(torch.cat([tensor.reshape(len(tensor), -1) for tensor in tensors], 1))
    pieces = iter(joint.split([tensor[0].numel() for tensor in tensors], 1))
    return [next(pieces).reshape(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in leaves], log_norms


def _cross_entropy_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Direction and log-norm of ``∂ CE/∂z`` for ``[N, K, …]`` logits in float64."""
    shape = logits.shape
    log_p = torch.log_softmax(logits, 1)
    _require_target_shape(logits, targets)
    if targets.is_floating_point():
        positions = logits[0].numel() // shape[1]
        weights = targets.double()
        return _normalize((log_p.exp() * weights.sum(1, keepdim=True) - weights) / positions)
    kept = _require_classes(logits, targets)
    true = torch.zeros_like(logits, dtype=torch.bool)
    true.scatter_(1, targets.clamp_min(0).unsqueeze(1), True)
    # |δ_k| = p_k for the wrong classes and Σ_{k≠y} p_k for the true one, in logarithms: nothing cancels.
    wrong = log_p.masked_fill(true, -math.inf)
    magnitude = torch.where(true, torch.logsumexp(wrong, 1, keepdim=True), wrong)
    magnitude = magnitude.masked_fill(~kept.unsqueeze(1), -math.inf)
    if logits.ndim > 2:
        magnitude = magnitude - kept.flatten(1).sum(1).clamp_min(1).double().log().view(-1, *[1] * (logits.ndim - 1))
    log_norms = 0.5 * torch.logsumexp(2 * magnitude.flatten(1), 1)
    offset = torch.where(torch.isneginf(log_norms), 0.0, log_norms).view(-1, *[1] * (logits.ndim - 1))
    direction = torch.exp(magnitude - offset)
    return torch.where(true, -direction, direction), log_norms


def _custom_gradient(seen: Any, targets: Any, loss_fn: LossFn, outputs: Any) -> tuple[list[Any], Any]:
    """Gradient of the sum of the per-sample losses with respect to what the loss sees, the outputs or those rescaled.

    Leaf by leaf; float64 where ``loss_fn`` can.
    """
    if isinstance(loss_fn, nn.Module):
        loss_fn = copied(loss_fn).double()
    try:
        return _loss_gradient(seen, targets, loss_fn, double=True)
    except RuntimeError:  # a loss that carries float32 tensors of its own, class weights say
        narrow = seen if seen is outputs else seen.to(outputs.dtype)
        return _loss_gradient(narrow, targets, loss_fn, double=False)


def as_variables(outputs: Any, *, double: bool) -> tuple[Any, list[Tensor]]:
    """``outputs`` cut off from their graph, and the tensors in them that have one as variables.

    What has none, a mask that the module passes on, say, is a constant. Where nothing has: all floating-point tensors.
    """
    flat, spec = tree_flatten(outputs)
    chosen = _differentiated(flat)
    leaves = [
        in_double(leaf.detach(), double).requires_grad_() if it else in_double(_detached(leaf), double)
        for leaf, it in zip(flat, chosen, strict=True)
    ]
    return tree_unflatten(leaves, spec), [leaf for leaf, it in zip(leaves, chosen, strict=True) if it]


def _differentiated(leaves: list[Any]) -> list[bool]:
    with_graph = [_is_floating(leaf) and leaf.requires_grad for leaf in leaves]
    return with_graph if any(with_graph) else [_is_floating(leaf) for leaf in leaves]


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def in_double(tree: Any, double: bool = True) -> Any:
    """Floating-point tensors in float64, if ``double``."""
    return tree_map(lambda leaf: leaf.double() if double and _is_floating(leaf) else leaf, tree)


def _loss_gradient(outputs: Any, targets: Any, loss_fn: LossFn, *, double: bool) -> tuple[list[Any], Any]:
    flat, spec = tree_flatten(outputs)
    chosen = _differentiated(flat)
    with torch.enable_grad():
        rebuilt, variables = as_variables(outputs, double=double)
        if not variables:
            raise ValueError(
                "Expected the module to return at least one floating-point tensor, or a tuple, list, dict or dataclass "
                f"with one, but got {', '.join(sorted({type(leaf).__name__ for leaf in flat})) or 'nothing'}."
            )
        count, targets = variables[0].shape[0], in_double(targets, double)

        def losses_at(index: slice | Tensor) -> Tensor:
            return losses_of(fresh(take(rebuilt, index)), take(targets, index), loss_fn)

        batch = losses_of(fresh(rebuilt), targets, loss_fn)
        if batch.ndim == 0:  # a reduced loss: sample by sample
            losses = torch.stack([losses_at(slice(j, j + 1)).reshape(()) for j in range(count)])
        elif batch.shape == (count,):
            losses = batch
        else:
            raise ValueError(
                f"Expected argument `loss_fn` to return a scalar or losses of shape [{count}], "
                f"but got shape {tuple(batch.shape)}."
            )
        gradients = gradients_of(losses.sum(), variables)
        if count > 1 and bool(torch.isfinite(batch.detach()).all()):
            if batch.ndim == 0:
                require_mean_of_samples(batch, losses, gradients, variables)
            else:
                require_own_losses(losses, gradients, variables, losses_at)
    remaining = iter(gradients)
    return [next(remaining).double() if it else None for it in chosen], spec


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
