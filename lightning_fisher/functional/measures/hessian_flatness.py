"""Relative flatness of the last layer: curvature times squared weights, in closed form."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fisher.functional.evaluation.differentiable import differentiable, differentiable_evaluation, evaluate
from lightning_fisher.functional.evaluation.independence import refuse_dependent_outputs
from lightning_fisher.functional.evaluation.samples import take
from lightning_fisher.functional.measures.logits import last_linear_layer, require_logits


def relative_flatness(module: nn.Module, inputs: Any, targets: Tensor, *, normalize: bool = True) -> Tensor:
    """Relative flatness of the last linear layer, ``κ = Σ_{s,s′} ⟨w_s, w_{s′}⟩ tr H_{s,s′}`` (Petzka et al. 2021).

    w_s are the rows of the layer's weight, ``H_{s,s′}`` the blocks of the Hessian of the mean cross-entropy. For the
    last layer it is, exactly, ``κ = 1/N Σ_j ‖φ_j‖² (Σ_s p_s ‖w_s‖² − ‖Σ_s p_s w_s‖²)``, φ_j what the layer receives and
    p the softmax. Larger is worse. Unchanged by rescaling layers and weights in front of batch-norm; with
    ``normalize``, also by rescaling the units that feed the layer: every input of the layer is divided by its standard
    deviation over the samples and its weights are multiplied by it. Not unchanged by the logits' scale.

    Args:
        module: The network, returning the output ``[N, K]`` of an ``nn.Linear``; left unchanged.
        inputs: N samples: a tensor, a tuple (``module(*inputs)``) or a dict (``module(**inputs)``).
        targets: Class indices ``[N]``. The closed form does not depend on them.
        normalize: Normalize the layer's inputs. Those that don't vary over the samples (dead units) are left out: their
            weights would count unscaled otherwise, as they do in the public code.

    Returns:
        A float64 scalar. Costs two forward passes: one in another grouping of the samples, which shows whether they
        interact.

    Raises:
        ValueError: If outputs or targets don't fit.
        InteractionError: A `ValueError`, if samples interact.
        UndefinedMeasureError: A `ValueError`, if the output is not that of an ``nn.Linear``.
        NonFiniteError: A `ValueError`, if an output is infinite or nan.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import relative_flatness
        >>> net = torch.nn.Linear(1, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
        >>> value = relative_flatness(net, torch.ones(1, 1), torch.tensor([0]), normalize=False)
        >>> round(float(value), 4)  # 1 − (p₁ − p₂)², p₁ = e/(e + 1/e)
        0.42
    """
    received: list[Tensor] = []
    with differentiable_evaluation(module), torch.no_grad():
        inputs, targets = differentiable((inputs, targets), module)
        layer = last_linear_layer(module, take(inputs, slice(0, 1)), "relative flatness")
        handle = layer.register_forward_hook(lambda layer, features, output: received.append(features[0].detach()))
        try:
            logits = require_logits(evaluate(module, inputs), targets)
        finally:
            handle.remove()
        refuse_dependent_outputs(partial(evaluate, module), inputs, logits)
        features, weight = received[-1].double(), layer.weight.double()
        if normalize:
            varies = features.amax(0) > features.amin(0)
            deviation = torch.where(varies, features.std(0, correction=0), 1.0)
            features, weight = varies * features / deviation, varies * weight * deviation
        # Σ_s p_s ‖w_s‖² − ‖Σ_s p_s w_s‖² = ½ Σ_{s,t} p_s p_t ‖w_s − w_t‖²: nothing cancels where the network is sure.
        p = torch.softmax(logits.double(), 1)
        distances = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist").square()
        return (features.square().sum(1) * (p @ distances * p).sum(1)).mean() / 2
