"""Gram matrix of the per-sample gradients, ``ξ = J Jᵀ`` (Eq. 5)."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_fisher.arguments import require_integer
from lightning_fisher.exceptions import InteractionError
from lightning_fisher.functional.evaluation.batch import own_batch
from lightning_fisher.functional.evaluation.finite import require_finite, samples_of_a_batch
from lightning_fisher.functional.evaluation.loss import LossFn, output_gradients
from lightning_fisher.functional.evaluation.loss_parameters import with_loss_inside
from lightning_fisher.functional.evaluation.memory import available_memory
from lightning_fisher.functional.evaluation.module_state import (
    evaluation_mode,
    frozen,
    preserved_buffers,
    preserved_random_state,
    refuse_renormalized_embeddings,
)
from lightning_fisher.functional.evaluation.precision import (
    SAME,
    device_types,
    full_precision,
    made_with,
    require_full_precision,
)
from lightning_fisher.functional.evaluation.samples import chunks, num_samples, ordinary, take
from lightning_fisher.functional.gram.layerwise import LayerwiseGram, MemoryExceededError
from lightning_fisher.functional.gram.per_sample_jacobian import collect_outputs, row_gram

BatchNorm = Literal["eval", "batch"]
COUPLED_CHUNK = 10  # of the authors' released code
GRADIENT = 10  # times the tolerance of outputs


class ScaledGram(NamedTuple):
    """``ξ = diag(e^l) G diag(e^l)``: the scales apart, so that neither underflows.

    Attributes:
        gram: ``G``, ``[N, N]`` float64: the gradients of unit output gradients, numbers of order one.
        log_scales: ``l``, ``[N]`` float64: log-norms of the output gradients.
        eps: Machine epsilon of the passes.
    """

    gram: Tensor
    log_scales: Tensor
    eps: float


def gram_matrix(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    loss_fn: LossFn | None = None,
    batch_norm: BatchNorm = "eval",
    chunk_size: int | None = None,
    logit_norm: float | None = None,
) -> Tensor:
    r"""Gram matrix of per-sample gradients, ``ξ = J Jᵀ`` with row j of J ``∇_w ℓ(x_j, y_j; w)`` (Eq. 5).

    J is taken over all parameters that require gradients, in evaluation mode, and is never held whole. The passes run
    in the parameters' own precision (float32 at the least) whatever autocast and TF32 settings surround the call; sums
    and the result are float64. Weights, buffers, gradients, modes and the random state are left as they were.

    Cost: one forward and one backward pass without weight gradients, and the layers' Gram products, for linear,
    convolution (1–3d), batch/group/instance/layer/RMS norm, embedding and multi-head attention layers, as modules or
    as functions. Any other parameter costs one forward and backward pass a sample.

    Args:
        module: Any module; called as ``module(x)``, ``module(*inputs)`` for a tuple, ``module(**inputs)`` for a dict.
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

    Returns:
        ``[N, N]``, float64, symmetric.

    Raises:
        ValueError: If an argument doesn't fit, parameters are narrower than float32, or samples interact.
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
) -> ScaledGram:
    """`gram_matrix` with the scale of every sample's output gradient kept apart; same arguments."""
    if batch_norm not in ("eval", "batch"):
        raise ValueError(f'Expected argument `batch_norm` to be "eval" or "batch", but got {batch_norm!r}.')
    require_integer("chunk_size", chunk_size, 1, or_none=True)
    parameters = list({id(p): p for p in module.parameters() if p.requires_grad}.values())
    require_full_precision(parameters, "per-sample gradients")
    refuse_renormalized_embeddings(module)
    if not parameters:
        raise ValueError("Expected the module to have parameters that require gradients, but it has none.")
    dtype = torch.float64 if all(p.dtype == torch.float64 for p in parameters) else torch.float32
    devices = {p.device for p in parameters}
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.compiler.set_stance("force_eager"),
        full_precision(device_types(module)),
        preserved_random_state(devices),
        preserved_buffers(module),
    ):
        inputs, targets = own_batch(module, inputs, targets)
        module, inputs, targets, loss_fn, logit_norm = with_loss_inside(module, inputs, targets, loss_fn, logit_norm)
        if batch_norm == "batch":
            gram, log_scales = _coupled(module, parameters, inputs, targets, loss_fn, chunk_size, logit_norm)
        else:
            how = (loss_fn, chunk_size, logit_norm)
            try:
                gram, log_scales = _independent(module, parameters, inputs, targets, *how, SAME[dtype])
            except InteractionError:
                if dtype == torch.float64 or _interact(module, inputs, targets, loss_fn, logit_norm):
                    raise
                gram, log_scales = _independent(module, parameters, inputs, targets, *how, math.inf)
    return ScaledGram((gram + gram.T) / 2, log_scales, torch.finfo(dtype).eps)


def _independent(
    module: nn.Module,
    parameters: list[nn.Parameter],
    inputs: Any,
    targets: Any,
    loss_fn: LossFn | None,
    chunk_size: int | None,
    logit_norm: float | None,
    tolerance: float,
) -> tuple[Tensor, Tensor]:
    count = num_samples(inputs)
    with evaluation_mode(module):
        if chunk_size is None or chunk_size >= count:
            room = math.inf if chunk_size is not None else available_memory(parameters[0].device)
            try:
                return _block(module, parameters, inputs, targets, loss_fn, logit_norm, tolerance, room)
            except MemoryExceededError as error:
                chunk_size = max(error.samples, 2)
                gib = 2**30
                warnings.warn(
                    f"The Gram matrix of {count} samples needs about {error.needed * count / gib:.1f} GiB at once and "
                    f"{error.room / gib:.1f} GiB are available: computed from chunks of {chunk_size} samples, pair by "
                    "pair, which takes longer; give a `chunk_size` to choose.",
                    stacklevel=2,
                )
        # Blocks (a, b) of ξ need both gradients at once: pass over the two chunks together.
        device = parameters[0].device
        gram = torch.zeros(count, count, dtype=torch.float64, device=device)
        log_scales = torch.zeros(count, dtype=torch.float64, device=device)
        parts = [torch.arange(count)[part] for part in chunks(count, max(1, chunk_size // 2))]
        for i, first in enumerate(parts):
            for second in parts[i + 1 :]:
                both = torch.cat([first, second]).to(device)
                part = take(inputs, both), take(targets, both)
                with samples_of_a_batch(both):
                    block, scales = _block(module, parameters, *part, loss_fn, logit_norm, tolerance)
                gram[both.unsqueeze(1), both] = block
                log_scales[both] = scales
        return gram, log_scales


def _block(
    module: nn.Module,
    parameters: list[nn.Parameter],
    inputs: Any,
    targets: Any,
    loss_fn: LossFn | None,
    logit_norm: float | None,
    tolerance: float,
    room: float = math.inf,
) -> tuple[Tensor, Tensor]:
    opaque = any(isinstance(submodule, torch.jit.ScriptModule) for submodule in module.modules())
    with frozen(parameters):
        layerwise = LayerwiseGram(
            module, [] if opaque else parameters, inputs, targets, loss_fn, logit_norm, tolerance, room
        )
    gram = layerwise.gram.to(parameters[0].device)
    general = parameters if opaque else [parameters[i] for i in sorted(layerwise.general)]
    others = [p for p in parameters if not any(p is g for g in general)]
    if general:
        with frozen(others):
            gram = gram + row_gram(
                module,
                general,
                inputs,
                layerwise.directions,
                outputs=layerwise.outputs,
                tolerance=tolerance,
            )
    require_finite(gram.diagonal(), "per-sample gradients")
    _check_first(module, parameters, inputs, layerwise.directions, gram, tolerance)
    return gram, layerwise.log_norms


def _check_first(
    module: nn.Module, parameters: list[nn.Parameter], inputs: Any, directions: Any, gram: Tensor, tolerance: float
) -> None:
    """Compare the first sample's entry with a plain backward pass of that sample alone.

    Costs one sample's pass; catches what no look at the outputs shows, such as coupling in the backward pass only.
    """
    if math.isinf(tolerance):
        return
    first = slice(0, 1)
    alone = row_gram(module, parameters, take(inputs, first), take(directions, first))[0, 0]
    difference = (gram[0, 0] - alone).abs()
    if not difference <= GRADIENT * tolerance * alone + 1e-30:
        raise InteractionError(f"squared gradient norm of the first: {gram[0, 0]:.6g} together, {alone:.6g} alone")


def _interact(module: nn.Module, inputs: Any, targets: Any, loss_fn: LossFn | None, logit_norm: float | None) -> bool:
    """Settle in float64, on a few samples, whether a difference seen in float32 is rounding (at a kink, say)."""
    few = slice(0, 3)
    twin = copy.deepcopy(module).double()
    if isinstance(loss_fn, nn.Module):
        loss_fn = copy.deepcopy(loss_fn).double()
    try:
        part = ordinary(take(inputs, few), torch.float64), ordinary(take(targets, few), torch.float64)
        scaled_gram(twin, *part, loss_fn=loss_fn, logit_norm=logit_norm)
    except InteractionError:
        return True
    return False


def _coupled(
    module: nn.Module,
    parameters: list[nn.Parameter],
    inputs: Any,
    targets: Any,
    loss_fn: LossFn | None,
    chunk_size: int | None,
    logit_norm: float | None,
) -> tuple[Tensor, Tensor]:
    size = COUPLED_CHUNK if chunk_size is None else chunk_size
    with evaluation_mode(module, batch_statistics=True):
        outputs = collect_outputs(module, inputs, size)
        directions, log_norms = output_gradients(outputs, targets, loss_fn, logit_norm)
        gram = row_gram(module, parameters, inputs, directions, chunk_size=size)
        require_finite(gram.diagonal(), "per-sample gradients")
        return gram, log_norms
