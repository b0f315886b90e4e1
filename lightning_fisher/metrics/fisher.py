"""The paper's metric, γ̂."""

from __future__ import annotations

from torch import Tensor

from lightning_fisher.metrics.base import mean_and_std
from lightning_fisher.metrics.gram import GramMetric


class FisherMetric(GramMetric):
    r"""Log-determinant of the Fisher information at a minimum, estimated on subsets; lower is better.

    ``γ̂(w) = 1/T Σ_t ln|ξ^t|``, ``ξ^t = J Jᵀ`` (Eq. 5–6), row j of ``J [N′, W]`` the gradient of the loss of
    sample j of subset t. Each call of ``update`` adds one subset. ``ln|ξ|`` splits into three parts, exactly:
    ``Σ_j 2 ln‖∂ℓ_j/∂q_j‖``, q the logits, rescaled if they are (residual: how far each loss went down),
    ``Σ_j ln G_jj``, G the Gram matrix of the gradients of ``⟨u_j, q_j(w)⟩``, u_j the unit vector of ``∂ℓ_j/∂q_j``
    (sensitivity), and ``ln|C|``, C the cosine similarities of the per-sample gradients (direction). The first two
    are ``Σ_j 2 ln‖∇ℓ_j‖`` (magnitude); without the first it is γ̂ at equal outputs (``residual=False``).

    γ̂ is a sum over N′ samples and depends on the loss level: compare equal N′ only, un-augmented training
    samples, and where training losses differ take it at equal outputs (``logit_norm=0.04, residual=False``).

    As input to ``update(module, inputs, targets)``: one subset of N′ samples. ``compute()`` returns a dict of
    float64 scalars: ``gamma`` (γ̂), ``gamma_std`` (its sample standard deviation over the T subsets, ``nan``
    for T = 1), ``gamma_residual``, ``gamma_sensitivity`` and ``gamma_direction`` (their sum is ``gamma``), and
    ``gamma_magnitude``, the sum of the first two.

    An update costs about one forward and one backward pass of N′ samples and N′² float64 numbers.

    Args:
        logit_norm: ``s`` of ``z ← z / (s‖z‖₂)`` (Sec. 7.2.3; the paper's value is 0.04), or ``None``.
        batch_norm: ``"eval"`` (running statistics) or ``"batch"`` (batch statistics on consecutive chunks).
        chunk_size: Samples in a pass. With ``"eval"`` it only limits memory.
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [N]``; ``None`` is the cross-entropy.
        rank_policy: ``"pseudo"`` (warn, count the non-zero eigenvalues) or ``"error"`` for singular matrices.
        residual: ``False``: γ̂ at equal outputs, which the loss level and, with ``logit_norm``, the scale of the logits
            leave unchanged; the residual part is 0.
        scale: What gradients are multiplied by: ``"none"``, or the sizes of ``"layer"``, ``"filter"`` or ``"element"``,
            see `gram_matrix`.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If an option is not one of its allowed values, or in ``compute`` if the sizes of the
            subsets differ.

    Example:
        >>> import torch
        >>> from lightning_fisher.metrics import FisherMetric
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        >>> metric = FisherMetric()
        >>> for _ in range(5):
        ...     metric.update(net, torch.randn(8, 4), torch.randint(3, (8,)))
        >>> values = metric.compute()
        >>> sorted(values)
        ['gamma', 'gamma_direction', 'gamma_magnitude', 'gamma_residual', 'gamma_sensitivity', 'gamma_std']
        >>> parts = values["gamma_residual"] + values["gamma_sensitivity"] + values["gamma_direction"]
        >>> torch.allclose(values["gamma"], parts)
        True
    """

    def compute(self) -> dict[str, Tensor]:
        """γ̂ over all subsets of all processes, its spread and its parts.

        Raises:
            ValueError: If the sizes of the subsets differ.
        """
        sizes = self.subsets("subset_size").unique()
        if sizes.numel() > 1:
            raise ValueError(
                "Expected all subsets to have the same number of samples, because γ̂ is a sum over them, "
                f"but got sizes {[int(size) for size in sizes]}."
            )
        gamma, gamma_std = mean_and_std(self.subsets("log_det"))
        return {
            "gamma": gamma,
            "gamma_std": gamma_std,
            "gamma_residual": self.subsets("residual").mean(),
            "gamma_sensitivity": self.subsets("sensitivity").mean(),
            "gamma_magnitude": self.subsets("magnitude").mean(),
            "gamma_direction": self.subsets("direction").mean(),
        }
