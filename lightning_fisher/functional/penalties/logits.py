"""Logits and class indices, as losses take them."""

from __future__ import annotations

from torch import Tensor


def check_logits(logits: Tensor, targets: Tensor) -> None:
    """Refuse what aren't logits ``[N, K]``, K ≥ 2, and class indices ``[N]``.

    Raises:
        ValueError: In one line.
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"Expected argument `logits` to have shape [N, K] with K ≥ 2, but got {tuple(logits.shape)}.")
    count, classes = logits.shape
    if targets.shape != (count,) or targets.is_floating_point():
        raise ValueError(
            f"Expected argument `targets` to hold {count} class indices, but got {targets.dtype} of shape "
            f"{tuple(targets.shape)}."
        )
    if bool(((targets < 0) | (targets >= classes)).any()):
        raise ValueError(
            f"Expected class indices in `targets` to be 0…{classes - 1}, "
            f"but got {int(targets.min())}…{int(targets.max())}."
        )
