"""Whether a loss is made of losses of one sample each, checked on all samples at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SAME = {torch.float64: 1e-7}  # relative, of losses and their gradients; in less:
SAME_FLOAT32 = 1e-4


def require_mean_of_samples(
    batch: Tensor, losses: Tensor, gradients: Sequence[Tensor], variables: list[Tensor]
) -> None:
    """Compare a scalar loss of a batch with the losses of its samples alone: it has to be their mean, or their sum.

    Class weights, ``ignore_index``, masks and counts of tokens make it another average: what a sample's own loss is
    then, in the units of the batch's, nothing says. Values and gradients with respect to the outputs are compared.

    Args:
        batch: The loss of the batch, a scalar.
        losses: Those of the samples alone, ``[N]``.
        gradients: Of the sum of ``losses``, one tensor a variable.
        variables: The outputs.

    Raises:
        ValueError: With what was found.
    """
    whole = _rows(gradients_of(batch, variables))
    alone = _rows(gradients)
    tolerance = SAME.get(whole.dtype, SAME_FLOAT32)
    value, total, size = batch.detach().double(), losses.detach().double().sum(), losses.detach().double().abs().sum()
    beside = False
    for factor in (1 / len(losses), 1.0):
        same_value = (value - factor * total).abs() <= tolerance * factor * size
        scale = torch.maximum(whole.norm(dim=1).max(), factor * alone.norm(dim=1).max())
        same_gradient = bool(((whole - factor * alone).norm(dim=1) <= tolerance * scale).all())
        if same_gradient and bool(same_value):
            return
        beside = beside or (same_gradient and bool(alone.any()))
    # Which of the two it is: each sample's gradient as in the batch, but for a factor?
    known = torch.isfinite(losses.detach())  # a sample without labels has no loss alone
    whole, alone = whole[known], alone[known]
    factors = (whole * alone).sum(1) / alone.square().sum(1).clamp_min(torch.finfo(alone.dtype).tiny)
    collinear = bool(((whole - factors.unsqueeze(1) * alone).norm(dim=1) <= tolerance * whole.norm(dim=1)).all())
    collinear = collinear and bool(alone.any())
    if bool((alone != 0).any(1).all()):  # weights of a mean add up to one, and so does what they make of the losses
        terms = factors * losses.detach()[known]
        averaged = (factors.sum() - 1).abs() <= tolerance
        collinear = collinear and bool(averaged & ((terms.sum() - value).abs() <= tolerance * terms.abs().sum()))
    if beside:
        found = "has a term that doesn't depend on the outputs (a penalty on the weights beside a sum?)"
    elif collinear:
        found = "weighs its samples differently (class weights, `ignore_index`, a mask?)"
    else:
        found = "couples the samples"
    mean = float(total) / len(losses)
    raise ValueError(
        "Expected argument `loss_fn` to return the mean of losses of one sample each, but its value on the batch is "
        f"{float(value):.6g} and the mean of its values on single samples {mean:.6g}: it {found}, so that a sample's "
        'own loss is not defined; return one loss a sample [N] (reduction="none").'
    )


def require_own_losses(
    losses: Tensor, gradients: Sequence[Tensor], variables: list[Tensor], losses_at: Callable[[Tensor], Tensor]
) -> None:
    """Refuse losses ``[N]`` that depend on other samples, in value or gradient.

    With random signs s the gradient of ``Σ s_j ℓ_j`` with respect to the output of sample j is ``s_j`` times that of
    ``Σ ℓ_j`` if ℓ_j is all that depends on it; values are compared with those of two random halves of the batch, and
    of the first sample alone.

    Args:
        losses: ``[N]``.
        gradients: Of their sum, one tensor a variable.
        variables: The outputs.
        losses_at: The losses of some samples by themselves.

    Raises:
        ValueError: With what was found.
    """
    count = len(losses)
    generator = torch.Generator().manual_seed(count)
    signs = (torch.randint(0, 2, (count,), generator=generator) * 2 - 1).to(losses)
    order = torch.randperm(count, generator=generator).to(losses.device)
    tolerance = SAME.get(losses.dtype, SAME_FLOAT32)
    difference = _rows(gradients_of((losses * signs).sum(), variables)) - signs.unsqueeze(1) * _rows(gradients)
    scale = _rows(gradients).norm(dim=1).max()
    if not bool((difference.norm(dim=1) <= tolerance * scale).all()):
        _refuse("a sample's loss depends on the outputs of others")
    values = losses.detach()
    parts = [order[: count // 2], order[count // 2 :], torch.zeros(1, dtype=torch.long, device=losses.device)]
    with torch.enable_grad():  # a loss may differentiate by itself
        for part in parts:
            again = losses_at(part).detach().reshape(-1)
            if again.shape != part.shape:
                _refuse(f"of {len(part)} samples it returns {len(again)} losses")
            far = ~torch.isclose(again, values[part], rtol=tolerance, atol=tolerance * float(values.abs().mean()))
            if bool(far.any()):
                j = int(torch.nonzero(far)[0])
                _refuse(
                    f"that of sample {int(part[j])} is {values[part[j]].item():.6g} in the batch and "
                    f"{again[j].item():.6g} {'alone' if len(part) == 1 else 'in a part of it'}"
                )


def _refuse(found: str) -> None:
    raise ValueError(f"Expected argument `loss_fn` to give losses that depend on their own sample only, but {found}.")


def gradients_of(loss: Tensor, variables: list[Tensor]) -> list[Tensor]:
    """Gradient of a scalar, zeros where it doesn't depend on a variable; the graph stays."""
    if not loss.requires_grad:
        return [torch.zeros_like(variable) for variable in variables]
    return list(torch.autograd.grad(loss, variables, retain_graph=True, allow_unused=True, materialize_grads=True))


def _rows(tensors: Sequence[Tensor]) -> Tensor:
    """``[N, …]`` tensors side by side, ``[N, D]``."""
    return torch.cat([tensor.reshape(len(tensor), -1) for tensor in tensors], 1)
