"""How much Gaussian noise on the weights a network tolerates: the flatness of PAC-Bayes bounds."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_fisher.arguments import require_integer, require_positive
from lightning_fisher.functional.evaluation.differentiable import differentiable, differentiable_evaluation, evaluate
from lightning_fisher.functional.evaluation.module_copy import copied, require_separate_copy
from lightning_fisher.functional.measures.folding import fold_batch_norm
from lightning_fisher.functional.measures.logits import require_logits

SEED = 10348628753  # added to the seed, as in the code of Dziugaite et al. (2020)
LARGEST = 2.0  # of the search


class NoiseTolerance(NamedTuple):
    """The noise under which the accuracy drops by a given amount.

    Attributes:
        sigma: σ, float64 scalar.
        accuracy_drop: The mean drop found at σ.
        converged: Whether it is within the tolerance of the one asked for.
    """

    sigma: Tensor
    accuracy_drop: Tensor
    converged: bool


def noise_tolerance(
    module: nn.Module,
    inputs: Any,
    targets: Tensor,
    *,
    relative: bool = False,
    eps: float = 0.0,
    accuracy_drop: float = 0.1,
    tol: float = 0.01,
    num_draws: int = 10,
    max_steps: int = 15,
    seed: int = 0,
    fold: bool = True,
) -> NoiseTolerance:
    """The standard deviation σ of weight noise at which the training accuracy drops by 0.1 (Jiang et al. 2020).

    ``w + u``, u independent and normal: ``u_i ~ N(0, σ²)``, or with ``relative``, the magnitude-aware form,
    ``u_i ~ N(0, σ² w_i² + ε²)``. By bisection on (0, 2), the mean over ``num_draws`` draws a step. Noise is put on all
    parameters of the network with batch-norm folded in. (The public code of Dziugaite et al. (2020) passes σ² and
    σ² w² + ε² as *standard deviations*: its plain σ is about the square root of this one; its magnitude-aware noise,
    proportional to w², is another measure.)

    Args:
        module: The network, returning logits ``[N, K]``, K ≥ 2; not changed.
        inputs: N samples: a tensor, a tuple (``module(*inputs)``) or a dict (``module(**inputs)``). A drop is resolved
            to ``1/(N · num_draws)``.
        targets: Class indices ``[N]``.
        relative: Noise in proportion to the magnitude of each weight.
        eps: ε of the magnitude-aware form. The papers take 1e-3; 0 makes σ unchanged by rescaling.
        accuracy_drop: The drop asked for, a fraction.
        tol: Tolerance of the drop.
        num_draws: Draws a step.
        max_steps: Steps of the bisection at most.
        seed: Of the draws; the global random state is not touched.
        fold: Fold batch-norm first, see `fold_batch_norm`.

    Returns:
        A `NoiseTolerance`, with a warning where the drop was not met: the accuracy is too low to drop that much (σ is
        near 2 then), or the samples are too few to resolve it. Costs ``num_draws · max_steps`` forward passes at most;
        a step ends as soon as the draws that are left can't turn it.

    Raises:
        ValueError: If an argument is out of range, or outputs or targets don't fit.
        NonFiniteError: A `ValueError`, if an output of the network without noise is infinite or nan.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import noise_tolerance
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        >>> result = noise_tolerance(net, torch.eye(2).repeat(50, 1), torch.tensor([0, 1]).repeat(50), num_draws=100)
        >>> 0.5 < float(result.sigma) < 0.6  # P(u − v > 1) = 0.1 for u, v ~ N(0, σ²) at σ = 0.55
        True
    """
    require_positive("accuracy_drop", accuracy_drop)
    require_positive("tol", tol)
    require_integer("num_draws", num_draws, 1)
    require_integer("max_steps", max_steps, 1)
    if not eps >= 0:
        raise ValueError(f"Expected argument `eps` to be a number of at least 0, but got {eps}.")
    require_separate_copy(module, inputs)
    network = fold_batch_norm(module, inputs) if fold else copied(module)
    if all(parameter.dtype != torch.float64 for parameter in module.parameters()):
        network = network.float()  # accuracies need no more
    generator = torch.Generator().manual_seed(SEED + seed)
    weights = [parameter.detach().clone() for parameter in network.parameters()]
    with differentiable_evaluation(network), torch.no_grad():
        inputs, targets = differentiable((inputs, targets), network)

        def accuracy() -> Tensor:
            return (evaluate(network, inputs).argmax(1) == targets).double().mean().cpu()

        require_logits(evaluate(network, inputs), targets)
        clean = accuracy()

        def perturb(sigma: float, *, only_draw: bool) -> None:
            for parameter, weight in zip(network.parameters(), weights, strict=True):
                noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
                if only_draw:  # the draws of the next step are the same either way
                    continue
                deviation = (sigma**2 * weight.square() + eps**2).sqrt() if relative else sigma
                parameter.copy_(weight + deviation * noise.to(weight.device, weight.dtype))

        def mean_drop(sigma: float, last: bool) -> Tensor:
            drops: list[Tensor] = []
            bound: Tensor | None = None
            for _ in range(num_draws):
                perturb(sigma, only_draw=bound is not None)
                if bound is not None:
                    continue
                drops.append(clean - accuracy())
                bound = None if last else _decided(torch.stack(drops), clean, num_draws, accuracy_drop, tol)
            return torch.stack(drops).mean() if bound is None else bound

        return _bisect(mean_drop, accuracy_drop, tol, max_steps)


def pac_bayes_flatness(
    module: nn.Module, inputs: Any, targets: Tensor, *, num_draws: int = 10, seed: int = 0
) -> Tensor:
    """``1/σ²``, σ the weight noise at which the training accuracy drops by 0.1 (Jiang et al. 2020).

    Larger is worse. Unchanged by rescaling weights in front of batch-norm, not by rescaling ReLU layers. See
    `noise_tolerance` for arguments, cost and errors.

    Args:
        module: See `noise_tolerance`.
        inputs: See `noise_tolerance`.
        targets: See `noise_tolerance`.
        num_draws: See `noise_tolerance`.
        seed: See `noise_tolerance`.

    Returns:
        A float64 scalar. Over seeds it varies by some 10 % at 64 samples and 10 draws.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import pac_bayes_flatness
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.eye(2))
        >>> inputs, targets = torch.eye(2).repeat(50, 1), torch.tensor([0, 1]).repeat(50)
        >>> round(float(pac_bayes_flatness(net, inputs, targets, num_draws=100)))
        3
    """
    return noise_tolerance(module, inputs, targets, num_draws=num_draws, seed=seed).sigma ** -2


def pac_bayes_magnitude_flatness(
    module: nn.Module, inputs: Any, targets: Tensor, *, num_draws: int = 10, seed: int = 0
) -> Tensor:
    """``1/σ′²``, σ′ the noise relative to each weight at which the accuracy drops by 0.1 (Jiang et al. 2020).

    Larger is worse. Unchanged by rescaling layers, single units, weights in front of batch-norm and the logits. See
    `noise_tolerance` for arguments, cost and errors.

    Args:
        module: See `noise_tolerance`.
        inputs: See `noise_tolerance`.
        targets: See `noise_tolerance`.
        num_draws: See `noise_tolerance`.
        seed: See `noise_tolerance`.

    Returns:
        A float64 scalar. Over seeds it varies by some 10 to 20 % at 64 samples and 10 draws.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import pac_bayes_magnitude_flatness
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.eye(2))
        >>> inputs, targets = torch.eye(2).repeat(50, 1), torch.tensor([0, 1]).repeat(50)
        >>> 1.3 < float(pac_bayes_magnitude_flatness(net, inputs, targets, num_draws=100)) < 2.0  # σ′ = 0.78
        True
    """
    return noise_tolerance(module, inputs, targets, relative=True, num_draws=num_draws, seed=seed).sigma ** -2


def _decided(drops: Tensor, clean: Tensor, num_draws: int, wanted: float, tol: float) -> Tensor | None:
    """A bound of the mean drop that tells which way the search goes, whatever the draws that are left; else ``None``.

    An accuracy is between 0 and 1, so that a drop is between ``clean − 1`` and ``clean``.
    """
    left = num_draws - len(drops)
    least, most = ((drops.sum() + left * end) / num_draws for end in (clean - 1, clean))
    rounding = 1e-9
    if float(least) > wanted + tol + rounding:
        return least
    return most if float(most) < wanted - tol - rounding else None


def _bisect(mean_drop: Any, wanted: float, tol: float, max_steps: int) -> NoiseTolerance:
    low, high = 0.0, LARGEST
    sigma = drop = torch.tensor(torch.nan, dtype=torch.float64)
    for step in range(max_steps):
        sigma = torch.tensor((low + high) / 2, dtype=torch.float64)
        drop = mean_drop(float(sigma), step == max_steps - 1)
        if abs(float(drop) - wanted) < tol:
            return NoiseTolerance(sigma, drop, True)
        if float(drop) > wanted:
            high = float(sigma)
        else:
            low = float(sigma)
    if high == LARGEST:
        line = f"No weight noise up to σ = {LARGEST} drops the training accuracy by {wanted:g}; at that it drops by"
    else:
        line = f"The accuracy drop is not met to {wanted:g} ± {tol:g}; at σ = {float(sigma):.4g} it is"
    warnings.warn(
        f"{line} {float(drop):.3g}. Use more samples or draws, or a network that fits its samples.", stacklevel=4
    )
    return NoiseTolerance(sigma, drop, False)
