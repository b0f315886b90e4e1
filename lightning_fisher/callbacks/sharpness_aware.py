"""Sharpness-aware minimization and the gradient-norm penalty as Lightning callbacks: both look up the slope."""

from __future__ import annotations

from typing import Any, Literal

from lightning_fisher.arguments import require_number, require_positive
from lightning_fisher.callbacks.multipass_callback import MultiPassCallback
from lightning_fisher.functional.multipass.methods.sharpness_aware import Sharpness


class SharpnessAware(MultiPassCallback):
    r"""Train with SAM, ASAM or m-SAM: the gradient at ``w + e`` in place of that at ``w``.

    SAM (Foret et al. 2021, Eq. 2): ``e = ρ g/‖g‖₂`` with ``g = ∇L(B, w)``, one norm over all parameters that the
    optimizers step. ASAM (Kwon et al. 2021): ``e = ρ T² g/‖T g‖₂`` with ``T = |w| + η``. m-SAM (Foret et al. 2021,
    Sec. 4): a perturbation for each of M sub-batches, and the mean of their gradients. The numbers are those of the
    public codes, see `sharpness_aware_gradient`.

    With several processes and ``num_sub_batches=1`` the gradient g is that of the batch of all of them, by one more
    all-reduce: the same step as on one process. With M = the number of processes each perturbs by itself, as
    implementations without that all-reduce do. Batch-norm statistics are those of the pass at ``w``, and move once.
    With gradient accumulation every batch has a perturbation of its own.

    Cost: two forward and backward passes of the batch (manual optimization: three); memory of three gradients and a
    copy of the weights. Both passes are in float32 or better, whatever the Trainer's precision, by default; with
    ``precision="trainer"`` they are in the Trainer's, and cost two steps of a training in ``"bf16-mixed"``.

    Logs ``sharpness_aware/penalty``, the sharpness ``L(B, w + e) − L(B, w)``, and ``sharpness_aware/weight``.

    Args:
        rho: Radius ρ ≥ 0; 0: bit for bit as without the callback.
        adaptive: ``False``: SAM. ``True``: ASAM with ``T = |w| + η`` for every parameter. ``"weights"``: T = 1 for
            parameters without "weight" in their name, as in the authors' code. ASAM's ρ is about ten times SAM's.
        eta: η ≥ 0; only with ``adaptive``. The default of the authors' class is 0.01.
        num_sub_batches: M, see `MultiPassCallback`.
        start: See `MultiPassCallback`; by default from the first step on, as the authors do.
        every_n_steps: Only every n-th step is a SAM step, the others are plain ones.
        scaling: See `MultiPassCallback`; ``"none"``: no step weighs more than a SAM step.
        **options: The other options of `MultiPassCallback`: ``weight`` (1; less mixes the two gradients),
            ``weight_schedule``, ``ramp_epochs``, ``gradient``, ``perturbed``, ``split_fn``, ``losses``, ``optimizers``,
            ``manual_accumulation``, ``precision``.

    Raises:
        ValueError: If an argument doesn't fit; before training, if the module or the Trainer's set-up isn't supported.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_fisher import SharpnessAware
        >>> trainer = Trainer(callbacks=[SharpnessAware(rho=0.05)], logger=False, accelerator="cpu")
    """

    prefix = "sharpness_aware"

    def __init__(
        self,
        rho: float = 0.05,
        adaptive: bool | Literal["weights"] = False,
        eta: float = 0.0,
        num_sub_batches: int = 1,
        *,
        start: int | float | str = 0,
        every_n_steps: int = 1,
        scaling: Literal["linear", "sqrt", "none"] = "none",
        **options: Any,
    ) -> None:
        self._method = Sharpness(rho, adaptive, eta)
        self.rho, self.adaptive, self.eta = float(rho), adaptive, float(eta)
        super().__init__(
            num_sub_batches=num_sub_batches, start=start, every_n_steps=every_n_steps, scaling=scaling, **options
        )

    @property
    def method(self) -> Sharpness:
        """The sharpness."""
        return self._method

    @property
    def trains(self) -> bool:
        """Not at ρ = 0."""
        return self.rho > 0 and self.weight > 0

    def current_weight(self, time: float) -> float:
        """See `MultiPassCallback.current_weight`."""
        return super().current_weight(time) if self.rho > 0 else 0.0

    def described(self) -> str:
        """ρ, M."""
        return f"ρ = {self.rho:g}, M = {self.num_sub_batches}"


class GradientNormPenalty(MultiPassCallback):
    r"""Train with ``L + λ‖∇L‖₂`` by a finite difference (GNP; Zhao, Zhang & Hu 2022, Algorithm 1).

    The gradient is ``(1 − a) ∇L(w) + a ∇L(w + r g/‖g‖)`` with ``g = ∇L(w)`` and ``λ = a r``; a = 1 is SAM with ρ = r.
    Batch-norm, processes, accumulation and cost as in `SharpnessAware`; the numbers are those of the authors' code with
    ``norm_perturbations=False``, see `gradient_norm_penalty_gradient`.

    Logs ``gradient_norm/penalty``, ``L(B, w + r g/‖g‖) − L(B, w) ≈ r‖g‖``, and ``gradient_norm/coefficient``.

    Args:
        radius: r > 0.
        coefficient: a from 0 to 1; 0: bit for bit as without the callback.
        num_sub_batches: M, see `MultiPassCallback`.
        start: See `MultiPassCallback`; by default from the first step on, as the authors do.
        every_n_steps: Only every n-th step has the penalty.
        scaling: See `MultiPassCallback`; ``"none"``: steps and sub-batches without the penalty are plain ones.
        **options: The other options of `MultiPassCallback` but ``weight``; ``coefficient_schedule`` is its
            ``weight_schedule``.

    Raises:
        ValueError: If an argument doesn't fit; before training, if the module or the Trainer's set-up isn't supported.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_fisher import GradientNormPenalty
        >>> trainer = Trainer(callbacks=[GradientNormPenalty()], logger=False, accelerator="cpu")
    """

    prefix = "gradient_norm"
    weight_name = "coefficient"

    def __init__(
        self,
        radius: float = 0.1,
        coefficient: float = 0.8,
        num_sub_batches: int = 1,
        *,
        start: int | float | str = 0,
        every_n_steps: int = 1,
        scaling: Literal["linear", "sqrt", "none"] = "none",
        coefficient_schedule: Literal["constant", "linear", "cosine", "lr"] = "constant",
        **options: Any,
    ) -> None:
        require_positive("radius", radius)
        require_number("coefficient", coefficient, 0, 1)
        self._method = Sharpness(radius)  # a times the sharpness: a(h − g) + g = (1 − a) g + a h
        self.radius, self.coefficient = float(radius), float(coefficient)
        super().__init__(
            coefficient,
            num_sub_batches=num_sub_batches,
            start=start,
            every_n_steps=every_n_steps,
            scaling=scaling,
            weight_schedule=coefficient_schedule,
            **options,
        )

    @property
    def method(self) -> Sharpness:
        """The sharpness, which the coefficient weighs."""
        return self._method

    def described(self) -> str:
        """The radius and the coefficient r and a, M."""
        return f"r = {self.radius:g}, a = {self.coefficient:g}, M = {self.num_sub_batches}"
