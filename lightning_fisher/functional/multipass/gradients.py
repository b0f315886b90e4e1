"""Arithmetic on gradients: one tensor a parameter, ``None`` where there is none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Gradient = tuple[Tensor | None, ...]


def norm(gradient: Sequence[Tensor | None]) -> Tensor:
    """Euclidean norm of all tensors as one vector, float64 scalar."""
    parts = [g for g in gradient if g is not None]
    norms = [torch.linalg.vector_norm(g.detach(), dtype=torch.float64) for g in parts]
    return torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))


def scaled(gradient: Sequence[Tensor | None], factor: Tensor | float) -> Gradient:
    """``factor · gradient`` for a number or a scalar tensor; the host doesn't wait for its value."""
    with torch.no_grad():
        return tuple(
            None if g is None else g * (factor.to(g) if isinstance(factor, Tensor) else factor) for g in gradient
        )


def ascent(
    parameters: Sequence[Tensor], gradient: Gradient, rho: float, adapted: Sequence[bool] = (), eta: float = 0.0
) -> Gradient:
    """``ρ T² g / ‖T g‖`` with ``T = |w| + η`` where ``adapted`` and 1 elsewhere; zero where ``T g`` is.

    Args:
        parameters: w.
        gradient: g.
        rho: ρ.
        adapted: One a parameter; empty: T = 1 throughout.
        eta: η.
    """
    with torch.no_grad():
        flags = adapted or [False] * len(parameters)
        scales = [p.detach().abs() + eta if flag else None for p, flag in zip(parameters, flags, strict=True)]
        once = tuple(g if g is None or t is None else t * g for g, t in zip(gradient, scales, strict=True))
        length = norm(once)
        twice = (g if g is None or t is None else t * g for g, t in zip(once, scales, strict=True))
        return scaled(tuple(twice), torch.where(length > 0, rho / length, 0.0))


def difference(first: Gradient, second: Gradient) -> Gradient:
    """``first − second``, where a gradient that isn't there is zero."""
    found: list[Tensor | None] = [
        g if g is not None else None if h is None else -h for g, h in zip(first, second, strict=True)
    ]
    both = [(i, g, h) for i, (g, h) in enumerate(zip(first, second, strict=True)) if g is not None and h is not None]
    if both:
        differences = torch._foreach_sub([g for _, g, _ in both], [h for *_, h in both])
        for (i, *_), part in zip(both, differences, strict=True):
            found[i] = part
    return tuple(found)


def accumulate(total: list[Tensor | None], gradient: Sequence[Tensor | None], weight: float) -> None:
    """``total += weight · gradient``, in place."""
    with torch.no_grad():
        sums, parts = [], []
        for i, part in enumerate(gradient):
            if part is None:
                continue
            old = total[i]
            if old is None:
                total[i] = part * weight
            else:
                sums.append(old)
                parts.append(part)
        if sums:
            torch._foreach_add_(sums, parts, alpha=weight)


def combine(plain: Gradient, penalty: Gradient, weight: float) -> Gradient:
    """``plain + weight · penalty``, ``None`` where neither is there."""
    found: list[Tensor | None] = [
        # Tensors of their own: what autograd returns may be one for several parameters, or expanded.
        (None if r is None else weight * r) if g is None else torch.empty_like(g).copy_(g) if r is None else None
        for g, r in zip(plain, penalty, strict=True)
    ]
    both = [(i, g, r) for i, (g, r) in enumerate(zip(plain, penalty, strict=True)) if g is not None and r is not None]
    if both:
        sums = torch._foreach_mul([r for *_, r in both], weight)
        torch._foreach_add_(sums, [g for _, g, _ in both])
        for (i, *_), total in zip(both, sums, strict=True):
            found[i] = total
    return tuple(found)


def finite_or_left_out(value: Tensor, gradient: Gradient) -> tuple[Tensor, Gradient]:
    """A penalty and its gradient as they are, or ``nan`` and zeros if anything in them is infinite or undefined.

    Decided on the device: the host doesn't wait. ``gradient`` is changed in place.
    """
    with torch.no_grad():
        parts = [g for g in gradient if g is not None and g.numel()]
        if value.device.type == "cpu" and all(part.device.type == "cpu" for part in parts) and _is_finite(value, parts):
            return value, gradient
        largest = torch._foreach_norm(parts, torch.inf) if parts else ()  # nan where there is one
        finite = torch.isfinite(torch.stack([value, *(norm.to(value) for norm in largest)])).all()
        for part in parts:
            part.masked_fill_(~finite.to(part.device), 0.0)
        return torch.where(finite, value, torch.nan), gradient


def _is_finite(value: Tensor, parts: list[Tensor]) -> bool:
    """Whether all is finite for sure: Euclidean norms, ten times as fast on a CPU as largest entries, may overflow."""
    norms = torch._foreach_norm(parts) if parts else ()
    return bool(torch.isfinite(torch.stack([value, *(norm.to(value) for norm in norms)])).all())
