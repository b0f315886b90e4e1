"""The squared Frobenius norm of the network's input-output Jacobian, as a term of the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_fisher.arguments import require_integer
from lightning_fisher.functional.evaluation.graph import refuse_single_derivatives


def jacobian_penalty(
    outputs: Tensor,
    inputs: Tensor | Sequence[Tensor],
    projections: int | None = 1,
    *,
    directions: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""``R = 1/(2N) Σ_i ‖J_i‖_F²`` with ``J_i = ∂z_i/∂x_i``, to be added to the loss with a weight λ.

    Jacobian regularization (Sokolić et al. 2017; Hoffman, Roberts & Yaida 2019, Eq. 4 and Algorithm 1), as in the
    latter's code: with n random unit vectors v of the K outputs a sample, ``R ≈ K/(2 n N) Σ_i Σ_v ‖vᵀ J_i‖²``, which is
    unbiased.

    The inputs have to require gradients before the forward pass. Its own backward pass keeps the graph, so that the
    loss with ``λ R`` in it can be differentiated: every operation of the network has to be twice differentiable.

    Cost: a backward pass to the inputs for each projection (K for the exact value), and the double backward pass
    through it when the loss is differentiated: about 2 to 3 times a plain step for one projection.

    The samples are differentiated together: where they interact (batch-norm in training mode), ``vᵀ J_i`` holds the
    terms of the other samples' outputs too, as in the authors' code, and is not the Jacobian of one sample.

    Args:
        outputs: z, the logits ``[N, K]`` (further dimensions are flattened), computed from ``inputs``.
        inputs: x, the tensor, or tensors, that the Jacobian is taken by, samples in dimension 0.
        projections: n; ``None``: exact, by K backward passes.
        directions: The v, ``[n, N, K]``, instead of random ones.
        generator: Draws the v, on the device of ``outputs``; ``None``: torch's default generator.

    Returns:
        R, a scalar in the dtype of ``outputs``, with its graph; zero where the outputs don't depend on the inputs.

    Raises:
        ValueError: If ``outputs`` have no graph, no input requires gradients, or an option doesn't fit.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional import jacobian_penalty
        >>> net, x, y = torch.nn.Linear(3, 2), torch.randn(8, 3), torch.randint(2, (8,))
        >>> x.requires_grad_()  # doctest: +ELLIPSIS
        tensor(...)
        >>> logits = net(x)
        >>> loss = torch.nn.functional.cross_entropy(logits, y) + 0.01 * jacobian_penalty(logits, x)
        >>> loss.backward()
    """
    require_integer("projections", projections, least=1, or_none=True)
    variables = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if outputs.ndim < 2:
        raise ValueError(f"Expected argument `outputs` to have shape [N, K], but got {tuple(outputs.shape)}.")
    if not variables or not all(variable.requires_grad for variable in variables):
        raise ValueError(
            "Expected argument `inputs` to require gradients, but got one that doesn't; "
            "call `inputs.requires_grad_()` before the forward pass."
        )
    if not outputs.requires_grad:
        raise ValueError(
            "Expected argument `outputs` to be computed with gradients on, but it has no graph "
            "(`torch.no_grad` or `torch.inference_mode`)."
        )
    flat = outputs.flatten(1)
    count, classes = flat.shape
    if directions is not None and directions.shape[1:] != flat.shape:
        raise ValueError(
            f"Expected argument `directions` to have shape [n, {count}, {classes}], but got {tuple(directions.shape)}."
        )
    total, drawn = flat.new_zeros(()), 0
    for direction in _directions(flat, projections, directions, generator):
        rows = torch.autograd.grad(flat, variables, direction, create_graph=True, allow_unused=True)
        if drawn == 0:
            refuse_single_derivatives(rows, "the gradient of the penalty")
        for row in rows:
            if row is not None:
                total = total + row.square().sum()
        drawn += 1
    return total * (classes / (2 * drawn * count))


def _directions(
    flat: Tensor, projections: int | None, directions: Tensor | None, generator: torch.Generator | None
) -> Iterator[Tensor]:
    """One ``[N, K]`` tensor of unit rows a backward pass."""
    if directions is not None:
        yield from directions.to(flat)
    elif projections is None:
        for k in range(flat.shape[1]):
            yield torch.eye(flat.shape[1], dtype=flat.dtype, device=flat.device)[k].expand_as(flat)
    else:
        for _ in range(projections):
            drawn = torch.randn(flat.shape, generator=generator, dtype=flat.dtype, device=flat.device)
            yield torch.nn.functional.normalize(drawn, dim=1)
