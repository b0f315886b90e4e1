"""ξ from passes in float64 where those in float32 don't decide its log-determinant."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fisher.exceptions import InteractionError, NonlinearBackwardError, first_line
from lightning_fisher.functional.evaluation.module_copy import in_float64
from lightning_fisher.functional.evaluation.samples import num_samples, ordinary, take
from lightning_fisher.functional.fisher.cosines import DOUBLE, Cosines
from lightning_fisher.functional.gram.matrix import ScaledGram, scaled_gram

FEW = 2  # samples that run in float64, too
PLAIN = 16  # times machine epsilon: usual rounding of the passes


def decided_gram(module: nn.Module, inputs: Any, targets: Any, how: dict[str, Any], tol: float | None) -> ScaledGram:
    """`scaled_gram`, from passes in float64 where those in float32 don't decide the log-determinant.

    Args:
        module: See `gram_matrix`.
        inputs: See `gram_matrix`.
        targets: See `gram_matrix`.
        how: Keyword arguments of `scaled_gram`.
        tol: See `log_det`.
    """
    scaled = scaled_gram(module, inputs, targets, **how)
    found = Cosines(total_of(scaled), tol)
    if scaled.eps <= DOUBLE:
        return _from_rows(module, inputs, targets, how, found, tol) or scaled
    if found.undecided:
        reason = "is too ill-conditioned for float32 passes"
    elif (
        tol is None
        and _may_cancel(scaled, how)
        and not found.known_to(_errors(module, inputs, targets, how, found, found.log_norms + scaled.left_out))
    ):
        reason = "has rows that rounding to float32 decides (a loss whose gradient cancels near its minimum, say)"
    else:
        return scaled
    return _in_float64(module, inputs, targets, how, reason, tol) or scaled


def _from_rows(
    module: nn.Module, inputs: Any, targets: Any, how: dict[str, Any], found: Cosines, tol: float | None
) -> ScaledGram | None:
    """The same with eigenvalues from the rows where those of C in float64 don't decide; ``None`` where they do.

    Samples that nearly coincide: C knows of their distance only its square.
    """
    count, size = len(found.values), sum(p.numel() for p in module.parameters() if p.requires_grad)
    if tol is not None or how.get("batch_norm", "eval") != "eval" or size < count:
        return None
    if found.known_to(torch.zeros_like(found.log_norms)):
        return None
    return scaled_gram(module, inputs, targets, **how, values=True)


def _may_cancel(scaled: ScaledGram, how: dict[str, Any]) -> bool:
    """Whether gradients may be known worse than float32 passes make them; that of the default loss is exact."""
    return scaled.eps > DOUBLE and how.get("loss_fn") is not None and how.get("batch_norm", "eval") == "eval"


def _errors(
    module: nn.Module, inputs: Any, targets: Any, how: dict[str, Any], found: Cosines, log_norms: Tensor
) -> Tensor:
    """Relative errors of the rows, ``[N]``, from passes of the samples with the smallest gradients in float64.

    A residual, the difference of output and target say, has the absolute error of the outputs: the smaller the
    gradient, the larger its relative error. Zeros where the module doesn't run in float64.

    Args:
        module: See `gram_matrix`.
        inputs: See `gram_matrix`.
        targets: See `gram_matrix`.
        how: Keyword arguments of `scaled_gram`.
        found: From passes in float32.
        log_norms: Of the gradients, with their residuals where those are left out of the rows.
    """
    few = log_norms.argsort()[:FEW]
    options = {name: value for name, value in how.items() if name != "groups"}
    try:
        with in_float64(module, how.get("loss_fn")):
            own = take(ordinary(inputs, torch.float64), few), take(ordinary(targets, torch.float64), few)
            exact = Cosines(scaled_gram(module, *own, **options), None)
    except (InteractionError, NonlinearBackwardError):
        raise
    except (ValueError, RuntimeError, TypeError, NotImplementedError):
        return torch.zeros_like(found.log_norms)
    seen, expected = found.log_norms[few], exact.log_norms.to(found.log_norms.device)
    lengths = torch.where(seen == expected, 0.0, seen - expected).abs()
    angles = (found.cosine[few][:, few] - exact.cosine.to(found.cosine.device)).abs().amax(1)
    relative = torch.maximum(lengths, angles)
    relative = torch.where(relative <= PLAIN * found.eps, 0.0, relative)
    size = torch.where(relative > 0, relative.log() + log_norms[few], -math.inf).max()
    if bool(torch.isposinf(relative).any()):  # zero here or there
        return torch.full_like(seen[0], math.inf).expand(len(found.log_norms))
    return torch.where(found.nonzero, (size - log_norms).exp(), 0.0)


def total_of(scaled: ScaledGram) -> ScaledGram:
    """That of all groups together."""
    return scaled if scaled.gram.ndim == 2 else scaled._replace(gram=scaled.gram.sum(0))


def _in_float64(
    module: nn.Module, inputs: Any, targets: Any, how: dict[str, Any], reason: str, tol: float | None
) -> ScaledGram | None:
    """The same from passes in float64; ``None``, with a warning, where the module or the device can't."""
    line = f"The Gram matrix of {num_samples(inputs)} per-sample gradients {reason}"
    try:
        with in_float64(module, how.get("loss_fn")):
            double = ordinary(inputs, torch.float64), ordinary(targets, torch.float64)
            found = scaled_gram(module, *double, **how)
            found = _from_rows(module, *double, how, Cosines(total_of(found), tol), tol) or found
    except (InteractionError, NonlinearBackwardError):  # too little of it for float32 to show
        raise
    except (ValueError, RuntimeError, TypeError, NotImplementedError) as error:
        warnings.warn(
            f"{line}, and passes in float64 failed ({first_line(error)}): its rank, or more than 1e-6 of its "
            "log-determinant, is decided by rounding.",
            stacklevel=4,
        )
        return None
    warnings.warn(f"{line}: its log-determinant is computed from passes in float64.", stacklevel=4)
    return found
