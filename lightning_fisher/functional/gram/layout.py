"""Which dimension of a layer's input holds the samples: found by comparing with a pass of a few of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from lightning_fisher.functional.gram.recorder import Layout, Use


def arrange(tensor: Tensor, layout: Layout, count: int) -> Tensor:
    """Samples first: ``[N, …]``, or ``[N, r, …]`` where a sample owns r rows."""
    dim, repeats, major = layout
    tensor = tensor.movedim(dim, 0)
    if repeats == 1:
        return tensor
    if major:
        return tensor.unflatten(0, (count, repeats))
    return tensor.unflatten(0, (repeats, count)).transpose(0, 1)


def lay_out_uses(uses: list[Use], few: list[Use], count: int, size: int, tolerance: float) -> bool:
    """Give every use its layout, found by comparing with a pass of a few samples; ``None`` where it has none.

    Returns:
        Whether a layout could as well be another one, the rows being all alike.
    """
    if [(use.rule, use.keys) for use in uses] != [(use.rule, use.keys) for use in few]:
        for use in uses:  # control flow depends on the data
            use.layout = None
        return False
    ambiguous = False
    differences = []
    for use, alone in zip(uses, few, strict=True):
        use.layout, unclear = _find_layout(use, alone, count, size)
        ambiguous = ambiguous or unclear
        if use.layout is not None:
            first = arrange(use.input, use.layout, count)[:size]
            differences.append((use, relative_difference(first, arrange(alone.input, use.layout, size))))
    if differences:  # the only host synchronization before the backward pass
        values = torch.stack([difference for _, difference in differences]).tolist()
        for (use, _), value in zip(differences, values, strict=True):
            if not value <= tolerance:
                use.layout = None
    return ambiguous


def _find_layout(use: Use, few: Use, count: int, size: int) -> tuple[Layout | None, bool]:
    """Which dimension holds the samples, how many rows each has, and in which order; and whether that is unclear."""
    shape, small = use.input.shape, few.input.shape
    if count == 1:
        return ((0, shape[0], True) if shape else None), False
    if len(shape) != len(small) or len(use.output_shape) != len(few.output_shape):
        return None, False
    differing = [dim for dim in range(len(shape)) if shape[dim] != small[dim]]
    if len(differing) != 1:
        return None, False
    dim = differing[0]
    repeats, rest = divmod(shape[dim], count)
    if rest or small[dim] != repeats * size or use.output_shape[dim] != shape[dim]:
        return None, False
    if repeats == 1:
        return (dim, 1, True), False
    errors = []
    for major in (True, False):
        layout = (dim, repeats, major)
        first = arrange(use.input, layout, count)[:size]
        errors.append(float(relative_difference(first, arrange(few.input, layout, size))))
    return (dim, repeats, errors[0] <= errors[1]), errors[0] == errors[1]


def relative_difference(value: Tensor, reference: Tensor) -> Tensor:
    """Largest difference relative to the largest entry, a scalar; 0 or 1 for integers; infinite for other sizes."""
    if value.numel() != reference.numel():
        return torch.full((), torch.inf, dtype=torch.float64, device=value.device)
    reference = reference.reshape(value.shape)  # some modules squeeze a batch of one away
    if not value.is_floating_point():
        return (value != reference).any().double()
    if not value.numel():
        return value.new_zeros(()).double()
    scale = reference.abs().amax().clamp_min(torch.finfo(value.dtype).tiny)
    return ((value - reference).abs().amax() / scale).double()


def outputs_difference(outputs: Any, few: Any, size: int) -> Tensor:
    """`relative_difference` of the first ``size`` samples of two structures of outputs, the largest of all leaves."""
    pairs = zip(tree_flatten(outputs)[0], tree_flatten(few)[0], strict=True)
    return torch.stack(
        [relative_difference(a[:size].detach(), b.detach()) for a, b in pairs if isinstance(a, Tensor)]
    ).max()
