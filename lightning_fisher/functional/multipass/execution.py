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

from lightning_fisher.exceptions import first_line
from lightning_fisher.functional.evaluation.memory import available_memory
from lightning_fisher.functional.evaluation.module_state import RandomStateSnapshot
from lightning_fisher.functional.multipass.loop import Penalty, penalty_of_losses
from lightning_fisher.functional.multipass.vmap import (
    ExtraPass,
    StackedBatches,
    UnequalSizesError,
    VmapError,
    penalty_by_vmap,
)

PASSES = ("auto", "loop", "vmap")
FIXED = ("loop", "vmap")  # of a function, which remembers nothing from call to call
Loop = Callable[..., Penalty]  # of the loss of a batch, else the one that was given
COPIES = 4  # of the weights and gradients of all sub-batches at once, in the passes by vmap
ROUNDS = 3  # timed, of each form
# How far two evaluations may be apart: the gradient of the penalty (a finite difference over kinks), relative, and the
# mean cosine of the g_i. Sub-batches that mix give something else altogether.
GRADIENT, COSINE = {torch.float32: 0.3, torch.float64: 1e-3}, 1e-2


class PassChoice:
    """Evaluates penalties by a loop or by vmap.

    ``"auto"`` is the loop on a CPU, and where torch is told to be deterministic. On another device a penalty is
    evaluated in both forms, several times each; vmap is chosen for all that follow if it can do the loss, agrees with
    the loop and is faster. A loss that draws random numbers can't be compared: the loop. Should vmap fail later, the
    loop takes over. Sub-batches of different sizes can't be stacked: the loop, for those.

    Args:
        passes: ``"auto"``, ``"loop"`` or ``"vmap"``.

    Attributes:
        chosen: ``"loop"`` or ``"vmap"``; ``None``: ``"auto"``, not decided yet.
        reason: Why, in words; empty where it was given.
    """

    def __init__(self, passes: str) -> None:
        check_passes(passes)
        self._auto = passes == "auto"
        self.chosen: str | None = None if self._auto else passes
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
        decide: bool = True,
    ) -> Penalty:
        """`penalty_of_losses` without ``loss_shares``, of ``loss(batch)`` for every batch.

        Args:
            loss: Runs the module on a batch and returns the mean loss; see `penalty_by_vmap`.
            batches: The perturbed sub-batches.
            parameters: See `penalty_of_losses`.
            alpha: See `penalty_of_losses`.
            weights: See `penalty_of_losses`; all the same where the batches are of one size.
            module: See `penalty_of_losses`.
            extra_pass: See `penalty_of_losses`.
            decide: Whether ``"auto"`` may decide now; ``False``: what isn't decided is a loop.

        Raises:
            ValueError: If vmap is asked for and can't do it, and as `penalty_of_losses`.
        """

        def loop(one: Callable[[Any], Tensor] = loss) -> Penalty:
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
        if self.chosen == "loop" or (self._auto and not tries(device)):
            return loop()
        undecided = self.chosen is None
        if undecided and (len(batches) == 1 or not decide):
            return loop()
        try:
            if undecided:
                StackedBatches(batches)
                needed = COPIES * len(batches) * sum(p.nbytes for p in parameters)
                if needed > available_memory(device):
                    return self._stay(f"the gradients of all sub-batches take {needed / 2**30:.1f} GiB", loop)
                return self._choose(loss, loop, together, device)
            return together()
        except UnequalSizesError:
            return loop()
        except (VmapError, torch.OutOfMemoryError) as error:
            if self._auto:
                return self._stay(f"vmap can't: {first_line(error)}", loop)
            if isinstance(error, torch.OutOfMemoryError):
                raise
            loop()  # the loss's own failure, if it is one
            raise ValueError(
                f'Expected a loss that torch.func.vmap can evaluate with `passes="vmap"`, but {error}; choose "loop".'
            ) from error

    def _stay(self, reason: str, loop: Callable[[], Penalty]) -> Penalty:
        self.chosen, self.reason = "loop", reason
        return loop()

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
        if not bool(torch.isfinite(found.value)):  # nothing to compare: the next one
            return found
        self.chosen = "loop"
        if random:
            self.reason = "the loss draws random numbers"
            return found
        try:
            if not agree(found, together()):
                self.reason = "vmap gives other gradients"
                return found
            forms: dict[str, Callable[[], Penalty]] = {"loop": partial(loop, loss), "vmap": together}
            seconds: dict[str, list[float]] = {name: [] for name in forms}
            for _ in range(ROUNDS):
                for name, form in forms.items():
                    seconds[name].append(timed(form, device))
        except Exception as error:  # whatever it is that vmap can't do, or memory for M gradients
            self.reason = f"vmap can't: {first_line(error)}"
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
    near = bool((here - there).norm() <= GRADIENT[here.dtype] * here.norm())
    cosines = first.divergence.cosine, second.divergence.cosine
    return near and torch.allclose(*cosines, rtol=0.0, atol=COSINE, equal_nan=True)


def timed(form: Callable[[], Penalty], device: torch.device) -> float:
    """Seconds of one evaluation, from an idle device to an idle device."""
    synchronize = torch.get_device_module(device).synchronize
    if device.type == "cuda":  # which need not be the current one
        synchronize = partial(synchronize, device)
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
