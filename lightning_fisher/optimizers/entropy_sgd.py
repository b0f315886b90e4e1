"""Entropy-SGD: steps towards the average of a Langevin walk around the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_fisher.arguments import is_number, require_integer, require_non_negative, require_positive


class EntropySGD(torch.optim.Optimizer):
    r"""Entropy-SGD (Chaudhari et al. 2017, Algorithm 1), which descends the local entropy instead of the loss.

    A step walks L = ``inner_steps`` steps by Langevin dynamics around the weights w, held back by a spring of strength
    ``γ_t = γ (1 + scoping)^t``, t the number of steps before, and then moves w towards the walk's running average μ:

    * ``b ← m′ b + ∇f(x)``, ``d = ∇f(x) + m′ b`` (Nesterov; ``b = 0``, ``x = μ = w`` at the start),
      ``x ← x − η′ (d − γ_t (w − x)) + ε √(2 η′) N(0, I)``, ``μ ← a μ + (1 − a) x``, L times;
    * ``B ← m B + (w − μ)``, ``w ← w − η ((w − μ) + m B)``.

    This is the authors' Python code (ucla-vision/entropy-sgd) with scoping that works: there its counter is never
    increased. As there, B starts as the gradient of the first closure. Without ``nesterov``, ``d`` is b and the
    spring and the noise go through b: ``b ← m′ b + ∇f(x) − γ_t (w − x) + noise``; and the step of w is ``η B``. The
    authors' Lua version, with which the paper's numbers were made, has no outer momentum: ``momentum=0, lr=1``.

    **The closure** clears the gradients, computes the loss and its gradients, and returns the loss. It is called L +
    1 times a step: once at w, whose loss is returned and whose gradient only starts B, and L times along the walk. It
    may take the *next batch* each time, as the authors' code does: a step is L + 1 batches then, and epochs are to be
    counted in those. Or it may evaluate the *same batch* each time, as in Lightning's automatic optimization: a step
    costs L + 1 evaluations of one batch, and the walk explores the loss of that batch. Batch-norm statistics are
    moved by every call, along the walk: refresh them at w before evaluating (`torch.optim.swa_utils.update_bn`).

    The noise has a stream of its own, ``seed`` and the number of the step: the same in every process and after resuming
    from ``state_dict``, and torch's random state isn't touched. If the closure raises, w is as before.

    Args:
        params: Parameters, or groups of them.
        lr: η > 0, of the step of w; follows schedulers.
        inner_steps: L ≥ 1; the same for all groups.
        gamma: γ ≥ 0.
        scoping: Growth of γ a step, ≥ 0.
        noise: ε ≥ 0.
        inner_lr: η′ > 0.
        averaging: a, from 0 to below 1.
        momentum: m, of the step of w, from 0 to below 1.
        inner_momentum: m′, of the walk, from 0 to below 1.
        nesterov: See above.
        weight_decay: Added to the gradients as the gradient of ``½ weight_decay ‖x‖²``.
        seed: Of the noise.

    Raises:
        ValueError: If an option doesn't fit, a gradient is sparse, or ``step`` gets no closure.

    Example:
        >>> import torch
        >>> from lightning_fisher.optimizers import EntropySGD
        >>> net, x, y = torch.nn.Linear(3, 2), torch.randn(8, 3), torch.randint(2, (8,))
        >>> optimizer = EntropySGD(net.parameters(), lr=0.1)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.cross_entropy(net(x), y)
        ...     loss.backward()
        ...     return loss
        >>> before = optimizer.step(closure)
        >>> bool(closure() < before)
        True
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        inner_steps: int = 20,
        gamma: float = 0.03,
        scoping: float = 1e-3,
        noise: float = 1e-4,
        *,
        inner_lr: float = 0.1,
        averaging: float = 0.75,
        momentum: float = 0.9,
        inner_momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        require_integer("inner_steps", inner_steps, least=1)
        require_integer("seed", seed, least=0)
        for name, value in (("lr", lr), ("inner_lr", inner_lr)):
            require_positive(name, value)
        for name, value in (("gamma", gamma), ("scoping", scoping), ("noise", noise), ("weight_decay", weight_decay)):
            require_non_negative(name, value)
        for name, value in (("averaging", averaging), ("momentum", momentum), ("inner_momentum", inner_momentum)):
            if not is_number(value) or not 0 <= value < 1:
                raise ValueError(f"Expected argument `{name}` to be a number from 0 to below 1, but got {value!r}.")
        defaults = {
            "lr": lr,
            "inner_steps": inner_steps,
            "gamma": gamma,
            "scoping": scoping,
            "noise": noise,
            "inner_lr": inner_lr,
            "averaging": averaging,
            "momentum": momentum,
            "inner_momentum": inner_momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "seed": seed,
            "steps": 0,  # t
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.add_param_group`; all groups walk the same number of steps."""
        super().add_param_group(param_group)
        lengths = sorted({group["inner_steps"] for group in self.param_groups})
        if len(lengths) > 1:
            self.param_groups.pop()
            raise ValueError(f"Expected argument `inner_steps` to be the same for all groups, but got {lengths}.")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step, L + 1 calls of ``closure``.

        Args:
            closure: Clears the gradients, evaluates the loss with its gradients and returns it.

        Returns:
            What the first call returned: the loss at w before the step.
        """
        if closure is None:
            raise ValueError("Expected argument `closure` to be a function that evaluates the loss, but got None.")
        evaluate = torch.enable_grad()(closure)
        loss = evaluate()
        walks = []
        for index, group in enumerate(self.param_groups):
            generators: dict[torch.device, torch.Generator] = {}
            for p in group["params"]:
                if p.grad is not None and group["momentum"] and "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = _gradient(p, group).clone()
                if p.device not in generators:
                    generators[p.device] = torch.Generator(p.device).manual_seed(_seed(group, index))
                walks.append(_Walk(p, group, generators[p.device]))
        try:
            for _ in range(self.param_groups[0]["inner_steps"]):
                evaluate()
                for walk in walks:
                    walk.step()
        finally:  # also where the closure has raised
            for walk in walks:
                walk.parameter.copy_(walk.start)
        for walk in walks:
            walk.descend(self.state[walk.parameter])
        for group in self.param_groups:
            group["steps"] += 1
        return loss


class _Walk:
    """The Langevin walk of one parameter."""

    def __init__(self, parameter: Tensor, group: dict[str, Any], generator: torch.Generator) -> None:
        self.parameter, self.group, self.generator = parameter, group, generator
        self.start, self.average = parameter.clone(), parameter.clone()
        self.velocity = torch.zeros_like(parameter)
        self.gamma = group["gamma"] * (1 + group["scoping"]) ** group["steps"]

    def noise(self) -> Tensor:
        """Standard normal numbers of the parameter's shape."""
        p = self.parameter
        return torch.randn(p.shape, generator=self.generator, dtype=p.dtype, device=p.device)

    def step(self) -> None:
        """One step of the walk, with the gradient that is there."""
        x, group = self.parameter, self.group
        if x.grad is None:
            return
        momentum = group["inner_momentum"]
        direction = _gradient(x, group)
        self.velocity.mul_(momentum).add_(direction)
        force = (x - self.start).mul_(self.gamma)
        if group["noise"]:
            force.add_(self.noise(), alpha=group["noise"] / math.sqrt(0.5 * group["inner_lr"]))
        nesterov = group["nesterov"]
        direction = direction + momentum * self.velocity + force if nesterov else self.velocity.add_(force)
        x.sub_(direction, alpha=group["inner_lr"])
        self.average.mul_(group["averaging"]).add_(x, alpha=1 - group["averaging"])

    def descend(self, state: dict[str, Any]) -> None:
        """The step of the parameter towards the average."""
        group = self.group
        direction = self.start - self.average
        if group["momentum"] and "momentum_buffer" in state:
            buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(direction)
            direction = direction + group["momentum"] * buffer if group["nesterov"] else buffer
        self.parameter.sub_(direction, alpha=group["lr"])


def _gradient(parameter: Tensor, group: dict[str, Any]) -> Tensor:
    """The gradient with weight decay."""
    assert parameter.grad is not None
    if parameter.grad.layout is not torch.strided:
        raise ValueError(f"Expected all gradients to be dense, but got {parameter.grad.layout}.")
    return parameter.grad.add(parameter, alpha=group["weight_decay"]) if group["weight_decay"] else parameter.grad


def _seed(group: dict[str, Any], index: int) -> int:
    """Different for every seed, step and group."""
    return ((group["seed"] * 1_000_003 + group["steps"]) * 1_009 + index) % 2**63
