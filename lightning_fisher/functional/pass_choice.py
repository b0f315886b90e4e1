"""Whether the sub-batches are evaluated one after the other or together: what wins on the device at hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fisher.functional.passes import Penalty, penalty_of_losses
from lightning_fisher.functional.state import RandomStateSnapshot
from lightning_fisher.functional.vmapped import ExtraPass, StackedBatches, VmapError, penalty_by_vmap

PASSES = ("auto", "loop", "vmap")
FIXED = ("loop", "vmap")  # of a function, which remembers nothing from call to call
Loop = Callable[[Callable[[Any], Tensor]], Penalty]
ROUNDS = 3  # timed, of each form
# How far two float32 evaluations may be apart: the gradient of the penalty (a finite difference over kinks),
# relative, and the mean cosine of the g_i. Sub-batches that mix give something else altogether.
GRADIENT, COSINE = 0.3, 1e-2


class PassChoice:
    """Evaluates penalties by a loop or by vmap.

    ``"auto"`` is the loop on a CPU, and where torch is told to be deterministic. On another device the first penalty is
    evaluated in both forms, several times each; vmap is chosen for all that follow if it can do the loss, agrees with
    the loop and is faster. A loss that draws random numbers can't be compared: the loop. Sub-batches of different
    sizes can't be stacked: the loop, for those.

    Args:
        passes: ``"auto"``, ``"loop"`` or ``"vmap"``.

    Attributes:
        chosen: ``"loop"`` or ``"vmap"``; ``None``: ``"auto"``, not decided yet.
        reason: Why, in words; empty where it was given.
    """

    def __init__(self, passes: str) -> None:
        check_passes(passes)
        self.chosen: str | None = None if passes == "auto" else passes
        self.reason = ""

    def penalty(
        self,
        loss: Callable[[Any], Tensor],
        batches: Sequence[Any],
        parameters: Sequence[nn.Parameter],
        *,
        alpha: float,
        weights: Sequence[float],
        module: nn.Module,
        extra_pass: ExtraPass = nullcontext,
    ) -> Penalty:
        """`penalty_of_losses` without ``loss_shares``, of ``loss(batch)`` for every batch.

        Raises:
            ValueError: If vmap is asked for and can't do it, and as `penalty_of_losses`.
        """

        def loop(one: Callable[[Any], Tensor]) -> Penalty:
            return penalty_of_losses(
                [partial(one, batch) for batch in batches],
                parameters,
                alpha=alpha,
                weights=weights,
                module=module,
                extra_pass=extra_pass,
            )

        together = partial(
            penalty_by_vmap,
            loss,
            batches,
            parameters,
            alpha=alpha,
            weight=weights[0],
            module=module,
            extra_pass=extra_pass,
        )
        device = parameters[0].device
        if self.chosen == "loop" or (self.chosen is None and not tries(device)):
            return loop(loss)
        try:
            StackedBatches(batches)
        except VmapError:
            return loop(loss)
        if self.chosen is None:
            return loop(loss) if len(batches) == 1 else self._choose(loss, loop, together, device)
        try:
            return together()
        except VmapError as error:
            raise ValueError(
                f'Expected a loss that torch.func.vmap can evaluate with `passes="vmap"`, but {error}; '
                'choose "loop" or "auto".'
            ) from error

    def _choose(
        self, loss: Callable[[Any], Tensor], loop: Loop, together: Callable[[], Penalty], device: torch.device
    ) -> Penalty:
        """Decide, by evaluating this penalty in both forms."""
        random = False

        def watched(batch: Any) -> Tensor:
            nonlocal random
            before = RandomStateSnapshot({device})
            value = loss(batch)
            random = random or not before.unchanged()
            return value

        found = loop(watched)
        self.chosen = "loop"
        if random:
            self.reason = "the loss draws random numbers"
            return found
        try:
            other = together()
            if not agree(found, other):
                self.reason = "vmap gives other gradients"
                return found
            forms: dict[str, Callable[[], Penalty]] = {"loop": partial(loop, loss), "vmap": together}
            seconds: dict[str, list[float]] = {name: [] for name in forms}
            for _ in range(ROUNDS):
                for name, form in forms.items():
                    seconds[name].append(timed(form, device))
        except Exception as error:  # whatever it is that vmap can't do, or memory for M gradients
            self.reason = f"vmap can't: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
            return found
        times = {name: median(values) for name, values in seconds.items()}
        self.chosen = min(times, key=lambda name: times[name])
        self.reason = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in times.items())
        return found


def agree(first: Penalty, second: Penalty) -> bool:
    """Whether two evaluations of one penalty differ by rounding only."""
    pairs = list(zip(first.gradient, second.gradient, strict=True))
    if any((a is None) != (b is None) for a, b in pairs):
        return False
    here, there = (torch.cat([g.flatten() for g in p.gradient if g is not None]) for p in (first, second))
    near = bool((here - there).norm() <= GRADIENT * here.norm())
    cosines = first.divergence.cosine, second.divergence.cosine
    return near and torch.allclose(*cosines, rtol=0.0, atol=COSINE, equal_nan=True)


def timed(form: Callable[[], Penalty], device: torch.device) -> float:
    """Seconds of one evaluation, from an idle device to an idle device."""
    synchronize = torch.get_device_module(device).synchronize
    synchronize()
    start = time.perf_counter()
    form()
    synchronize()
    return time.perf_counter() - start


def tries(device: torch.device) -> bool:
    """Whether ``"auto"`` looks for something faster than the loop."""
    return device.type != "cpu" and not torch.are_deterministic_algorithms_enabled()


def check_passes(passes: str, allowed: Sequence[str] = PASSES) -> None:
    """Refuse a form that isn't there.

    Raises:
        ValueError: With the forms there are.
    """
    if passes not in allowed:
        raise ValueError(f"Expected argument `passes` to be one of {tuple(allowed)}, but got {passes!r}.")
