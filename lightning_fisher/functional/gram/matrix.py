"""Gram matrix of the per-sample gradients, ``ξ = J Jᵀ`` (Eq. 5)."""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from lightning_fisher.arguments import require_choice, require_integer
from lightning_fisher.functional.evaluation.batch import own_batch
from lightning_fisher.functional.evaluation.finite import require_finite, samples_of_a_batch
from lightning_fisher.functional.evaluation.graph import refuse_constant
from lightning_fisher.functional.evaluation.memory import available_memory
from lightning_fisher.functional.evaluation.precision import (
    SAME,
    device_types,
    full_precision,
    made_with,
    require_full_precision,
)
from lightning_fisher.functional.evaluation.recurrence import differentiable_recurrence
from lightning_fisher.functional.evaluation.samples import chunks
from lightning_fisher.functional.evaluation.state.buffers import preserved_buffers
from lightning_fisher.functional.evaluation.state.layers import refuse_renormalized_embeddings
from lightning_fisher.functional.evaluation.state.modes import evaluation_mode
from lightning_fisher.functional.evaluation.state.random_state import preserved_random_state
from lightning_fisher.functional.gram.block import block_gram
from lightning_fisher.functional.gram.interception import plain_kernels
from lightning_fisher.functional.gram.per_sample_jacobian import collect_outputs, row_gram, rows_fit
from lightning_fisher.functional.gram.plan import Plan, Probe, find_plan, probe
from lightning_fisher.functional.gram.problem import Problem
from lightning_fisher.functional.gram.rules.parameter_scale import Scale
from lightning_fisher.functional.gram.rules.products import MAX_ELEMENTS
from lightning_fisher.functional.gram.single_passes.one_by_one import squared_singular_values
from lightning_fisher.functional.losses.loss import LossFn, OutputGradients, losses_of
from lightning_fisher.functional.losses.loss_parameters import unused_outputs, with_loss_inside

BatchNorm = Literal["eval", "batch"]
COUPLED_CHUNK = 10  # of the authors' released code
TEMPORARIES = 2 * 4 * MAX_ELEMENTS  # bytes for the rows of a layer, whatever the number of samples


class ScaledGram(NamedTuple):
    """``ξ = diag(e^l) G diag(e^l)``: the scales apart, so that neither underflows.

    Attributes:
        gram: ``G``, ``[N, N]`` float64: the gradients of unit output gradients, numbers of order one. ``[g, N, N]``
            where the matrices of g groups of parameters were asked for.
        log_scales: ``l``, ``[N]`` float64: log-norms of the output gradients, without the residuals where those are
            left out.
        eps: Machine epsilon of the passes.
        log_residuals: ``ln‖∂ℓ_j/∂q_j‖``, ``[N]`` float64, q the logits, rescaled if they are: what of ``l`` is the
            residual; zero where it is left out, ``nan`` where the loss has parameters of its own.
        values: Eigenvalues of the cosine similarities, ascending, from the rows themselves, where they were asked for.
        left_out: ``ln‖∂ℓ_j/∂q_j‖``, ``[N]``, where residuals are left out; else 0.
    """

    gram: Tensor
    log_scales: Tensor
    eps: float
    log_residuals: Tensor
    values: Tensor | None = None
    left_out: Tensor | float = 0.0


def gram_matrix(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    loss_fn: LossFn | None = None,
    batch_norm: BatchNorm = "eval",
    chunk_size: int | None = None,
    logit_norm: float | None = None,
    residual: bool = True,
    scale: Scale = "none",
) -> Tensor:
    r"""Gram matrix of per-sample gradients, ``ξ = J Jᵀ`` with row j of J ``∇_w ℓ(x_j, y_j; w)`` (Eq. 5).

    J is taken over all parameters that require gradients, in evaluation mode; layer by layer it is never held whole.
    The passes run in the parameters' own precision (float32 at the least) whatever autocast and TF32 settings surround
    the call; sums and the result are float64. Weights, buffers, gradients, modes and the random state are left as they
    were.

    Cost: one forward and one backward pass without weight gradients, and the layers' Gram products, for linear,
    convolution (1–3d), batch/group/instance/layer/RMS norm, embedding and multi-head attention layers, as modules or
    as functions, for raw parameters in sums, products and matrix products, and for layers with a rule of your own
    (`register_rule`). Any other parameter costs one forward and backward pass a sample. Where most parameters are such,
    or any of a module with few (N W up to 2²⁴), later calls are these passes only, for all parameters; all at once by
    `torch.func.vmap` where that was quicker when it was tried in a second or third call (not with
    `torch.use_deterministic_algorithms`: the two ways round differently). The first call
    for a module and samples of one structure takes about one pass more: ξ is verified, ``sᵀ ξ s = ‖Jᵀ s‖²`` for random
    weights s, against ordinary backward passes. So is every call where samples may affect each other depending on their
    data (rows sorted, picked or routed by it, a norm or maximum over the batch, values read). What was found out is
    kept as long as the module lives.

    Args:
        module: Any module; called as ``module(x)``, ``module(*inputs)`` for a tuple or list, ``module(**inputs)``
            for a dict.
        inputs: N samples; every tensor has them in dimension 0.
        targets: Class indices ``[N]`` or class probabilities ``[N, K]``, or what ``loss_fn`` takes.
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [N]``; ``None`` is the cross-entropy of each sample. A
            scalar has to be the mean, or sum, of its values on single samples: with class weights, ``ignore_index`` or
            masks it isn't, and a sample's own loss is not defined. Parameters of ``module`` that it uses itself count.
        batch_norm: ``"eval"`` uses running statistics: samples are independent. ``"batch"`` uses the statistics of
            consecutive chunks, so that the gradients within a chunk are coupled, as in the authors' released code.
        chunk_size: With ``"batch"`` the size of a chunk (``None``: 10). With ``"eval"`` it only bounds memory: at most
            this many samples (two at the least) are in flight; blocks of ξ are then computed pair by pair, for about
            ``2N / chunk_size − 1`` times the work. ``None``: all at once, or as many as the memory available holds.
        logit_norm: ``s`` of ``z ← z / (s‖z‖₂)``, differentiated with the rest (Sec. 7.2.3 uses 0.04); ``None``: as is.
        residual: ``False``: at equal outputs. Row j is the gradient of ``⟨u_j, q_j(w)⟩``, q the logits, rescaled if
            they are, and ``u_j = ∂ℓ_j/∂q_j / ‖∂ℓ_j/∂q_j‖`` held constant: how far each loss went down is left out.
        scale: What every gradient is multiplied by, for gradients with respect to *relative* changes. ``"none"``: 1.
            ``"layer"``: the Frobenius norm of its tensor, ``ξ = Σ_l ‖W_l‖²_F ξ_l``, every tensor of ``parameters()`` by
            itself. ``"filter"``: the norm of its output unit's weights in that tensor (dimension 0); a bias, or another
            tensor with one dimension, has one number for each unit. ``"element"``: its weight. Tensors and weights
            that are zero drop out. ``"layer"`` costs nothing more and ``"filter"`` little; ``"element"`` forms the
            per-sample gradients of a layer, as many of them at once as fit a block of memory.

    Returns:
        ``[N, N]``, float64, symmetric.

    Raises:
        ValueError: If an argument doesn't fit, parameters are narrower than float32, samples interact, the backward
            pass is not linear in the gradient of the output, or the loss depends on none of the parameters.
        NonFiniteError: A `ValueError`, if outputs, losses or gradients are infinite or nan; it names the samples.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional import gram_matrix
        >>> net = torch.nn.Linear(3, 2)
        >>> gram_matrix(net, torch.randn(4, 3), torch.tensor([0, 1, 1, 0])).shape
        torch.Size([4, 4])
    """
    scaled = scaled_gram(
        module,
        inputs,
        targets,
        loss_fn=loss_fn,
        batch_norm=batch_norm,
        chunk_size=chunk_size,
        logit_norm=logit_norm,
        residual=residual,
        scale=scale,
    )
    scales = scaled.log_scales.exp()
    return made_with(scaled.gram * torch.outer(scales, scales), scaled.eps)


def scaled_gram(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    loss_fn: LossFn | None = None,
    batch_norm: BatchNorm = "eval",
    chunk_size: int | None = None,
    logit_norm: float | None = None,
    residual: bool = True,
    scale: Scale = "none",
    groups: tuple[int, ...] | None = None,
    values: bool = False,
) -> ScaledGram:
    """`gram_matrix` with the scale of every sample's output gradient kept apart; same arguments.

    Args:
        module: See `gram_matrix`.
        inputs: See `gram_matrix`.
        targets: See `gram_matrix`.
        loss_fn: See `gram_matrix`.
        batch_norm: See `gram_matrix`.
        chunk_size: See `gram_matrix`.
        logit_norm: See `gram_matrix`.
        residual: See `gram_matrix`.
        scale: See `gram_matrix`.
        groups: A number from 0 for every parameter that requires gradients, in the order of ``parameters()``: the Gram
            matrices of the groups are kept apart. ``None``: their sum.
        values: Compute the eigenvalues of the cosine similarities from the rows, one pass a sample, if memory holds
            them; of samples that don't interact.
    """
    require_choice("scale", scale, get_args(Scale))
    if batch_norm not in ("eval", "batch"):
        raise ValueError(f'Expected argument `batch_norm` to be "eval" or "batch", but got {batch_norm!r}.')
    require_integer("chunk_size", chunk_size, 1, or_none=True)
    parameters = tuple({id(p): p for p in module.parameters() if p.requires_grad}.values())
    if groups is not None:
        groups = tuple(group for group, parameter in zip(groups, parameters, strict=True) if parameter.numel())
    parameters = tuple(parameter for parameter in parameters if parameter.numel())
    require_full_precision(parameters, "per-sample gradients")
    refuse_renormalized_embeddings(module)
    if not parameters:
        raise ValueError("Expected the module to have parameters that require gradients, but it has none.")
    dtype = torch.float64 if all(p.dtype == torch.float64 for p in parameters) else torch.float32
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.compiler.set_stance("force_eager"),
        full_precision(device_types(module)),
        differentiable_recurrence(module),
        preserved_random_state({p.device for p in parameters}),
        preserved_buffers(module) as state,
        evaluation_mode(module, batch_statistics=batch_norm == "batch"),
        plain_kernels(module),
    ):
        inputs, targets = own_batch(module, inputs, targets)
        given = module
        module, inputs, targets, loss_fn, logit_norm = with_loss_inside(module, inputs, targets, loss_fn, logit_norm)
        through_outputs = module is given
        if not (residual or through_outputs):
            raise ValueError(
                "Expected argument `loss_fn` to use no parameters itself where `residual` is False: its gradient with "
                "respect to the outputs is not all of the gradient."
            )
        unused = unused_outputs(module, inputs, targets, loss_fn)
        found: Tensor | None = None
        problem = Problem(
            module, parameters, inputs, targets, loss_fn, logit_norm, SAME[dtype], state, unused, scale, groups
        )
        if batch_norm == "batch":
            gram, logs = _coupled(problem, COUPLED_CHUNK if chunk_size is None else chunk_size)
        else:
            gram, logs = _independent(problem, chunk_size)
            if values and rows_fit(problem, problem.count * sum(p.numel() for p in parameters)):
                found = squared_singular_values(problem)
        if bool(torch.isneginf(logs[0]).all()) or not bool(gram.any()):
            refuse_constant(losses_of(problem.outputs(), targets, loss_fn), parameters)
    log_scales, log_residuals = logs
    left_out: Tensor | float = 0.0
    if not residual:  # a gradient of exactly zero has no direction
        left_out = log_residuals
        log_scales = torch.where(torch.isneginf(log_scales), log_scales, log_scales - log_residuals)
        log_residuals = torch.zeros_like(log_residuals)
    if not through_outputs:
        log_residuals = torch.full_like(log_residuals, torch.nan)
    return ScaledGram((gram + gram.mT) / 2, log_scales, torch.finfo(dtype).eps, log_residuals, found, left_out)


def _logs(gradients: OutputGradients) -> Tensor:
    return torch.stack([gradients.log_norms, gradients.log_residuals])


def _independent(problem: Problem, chunk_size: int | None) -> tuple[Tensor, Tensor]:
    """ξ of samples that don't interact, and the log-norms ``[2, N]`` of their output gradients and residuals.

    At once, or in chunks of the size given or of as many as memory holds.
    """
    count, device = problem.count, problem.device
    few = None
    if chunk_size is None:
        known: Plan | Probe | None = find_plan(problem)
        if known is None:
            known = few = probe(problem)
        chunk_size = _samples_that_fit(known.needed, count, available_memory(device))
    if chunk_size >= count:
        gram, gradients = block_gram(problem, few)
        return gram, _logs(gradients)
    # Blocks (a, b) of ξ need both gradients at once: pass over the two chunks together.
    several = () if problem.groups is None else (max(problem.groups) + 1,)
    gram = torch.zeros(*several, count, count, dtype=torch.float64, device=device)
    logs = torch.zeros(2, count, dtype=torch.float64, device=device)
    parts = [torch.arange(count)[part] for part in chunks(count, max(1, chunk_size // 2))]
    for i, first in enumerate(parts):
        for second in parts[i + 1 :]:
            both = torch.cat([first, second]).to(device)
            with samples_of_a_batch(both):
                block, gradients = block_gram(problem.take(both))
            gram[..., both.unsqueeze(1), both] = block
            logs[:, both] = _logs(gradients)
    return gram, logs


def _samples_that_fit(needed: float, count: int, room: float) -> int:
    """How many samples of ``needed`` bytes a pass may hold, two at the least; warns if that isn't all of them."""
    if TEMPORARIES + needed * count <= room or count == 1:
        return count
    room = max(room - TEMPORARIES, 0.0)
    size = max(int(room / needed), 2) if needed else count
    gib = 2**30
    warnings.warn(
        f"The Gram matrix of {count} samples needs about {needed * count / gib:.1f} GiB at once and "
        f"{room / gib:.1f} GiB are available: computed from chunks of {size} samples, pair by "
        "pair, which takes longer; give a `chunk_size` to choose.",
        stacklevel=2,
    )
    return size


def _coupled(problem: Problem, chunk_size: int) -> tuple[Tensor, Tensor]:
    """ξ of samples that are coupled within their chunk by the statistics of batch-norm."""
    gradients = problem.output_gradients(collect_outputs(problem, chunk_size))
    numbers = range(1) if problem.groups is None else range(max(problem.groups) + 1)
    grams = [
        row_gram(problem, parameters, gradients.directions, chunk_size=chunk_size)
        for number in numbers
        for parameters in ([p for p, g in _grouped(problem) if g == number],)
    ]
    gram = grams[0] if problem.groups is None else torch.stack(grams)
    require_finite(gram.diagonal(dim1=-2, dim2=-1), "per-sample gradients")
    return gram, _logs(gradients)


def _grouped(problem: Problem) -> list[tuple[nn.Parameter, int]]:
    groups = problem.groups or [0] * len(problem.parameters)
    return list(zip(problem.parameters, groups, strict=True))
