"""Whether the sub-batches are evaluated one after the other or together: what wins on the device at hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_fisher.exceptions import first_line
from lightning_fisher.functional.evaluation.memory import available_memory
from lightning_fisher.functional.evaluation.state.random_state import RandomStateSnapshot
from lightning_fisher.functional.multipass.execution import FIXED, Forms, check_passes, refused
from lightning_fisher.functional.multipass.loop import Penalty
from lightning_fisher.functional.multipass.vmap.stacked import StackedBatches, UnequalSizesError, VmapError

COPIES = 4  # of the weights and gradients of all sub-batches at once, in the passes by vmap
ROUNDS = 3  # timed, of each form
# How far two evaluations may be apart: the gradient of the penalty (a finite difference over kinks), relative, and the
# mean cosine of the g_i. Sub-batches that mix give something else altogether.
GRADIENT, COSINE = {torch.float32: 0.3, torch.float64: 1e-3}, 1e-2


class Trial(NamedTuple):
    """What one process found out.

    Attributes:
        reason: Why it has to be the loop; ``None``: vmap can do it.
        seconds: Of the loop and of vmap.
    """

    reason: str | None = None
    seconds: tuple[float, float] = (0.0, 0.0)


def alone(trial: Trial | None) -> list[Trial | None]:
    """The trials of all processes, where there is one."""
    return [trial]


class PassChoice:
    """Evaluates penalties by a loop or by vmap.

    ``"auto"`` is the loop on a CPU, and where torch is set to be deterministic. On another device a penalty is
    evaluated in both forms, several times each; vmap is chosen for all that follow if it can do the loss, agrees with
    the loop and is faster, on all processes together: the choice is made once and is the same on each. A loss that
    draws random numbers can't be compared: the loop. Should vmap fail later, the loop takes over; `settle` makes that
    known to the other processes. Sub-batches of different sizes can't be stacked: the loop, for those.

    Args:
        passes: ``"auto"``, ``"loop"`` or ``"vmap"``.
        gather: Takes what this process found and returns what all have found, in the order of their ranks.

    Attributes:
        chosen: ``"loop"`` or ``"vmap"``; ``None``: ``"auto"``, not decided yet.
        reason: Why, in words; empty where it was given.
    """

    def __init__(self, passes: str, gather: Callable[[Any], list[Any]] = alone) -> None:
        check_passes(passes)
        self._auto = passes not in FIXED
        self._gather = gather
        self.chosen: str | None = None if self._auto else passes
        self.reason = ""

    def penalty(self, forms: Forms, decide: bool = True) -> Penalty:
        """A penalty, in the chosen form.

        Args:
            forms: The penalty.
            decide: Whether ``"auto"`` may decide now; ``False``: what isn't decided is a loop. The same on every
                process.

        Raises:
            ValueError: If vmap is asked for and can't do it, and as `penalty_of_losses`.
        """
        device = forms.parameters[0].device
        if self.chosen == "loop" or (self._auto and not tries(device)):
            return forms.loop()
        if self.chosen is None:
            return self._decide(forms, device) if decide else forms.loop()
        try:
            return forms.vmap()
        except UnequalSizesError:
            return forms.loop()
        except (VmapError, torch.OutOfMemoryError) as error:
            if self._auto:
                self.chosen, self.reason = "loop", f"vmap can't: {first_line(error)}"
                return forms.loop()
            if not isinstance(error, VmapError):
                raise
            forms.loop()  # the loss's own failure, if it is one
            raise refused(error) from error

    def settle(self) -> None:
        """The loop on every process, once vmap has failed on one; to be called on all of them."""
        if self._auto and self.chosen is not None:
            others = [reason for chosen, reason in self._gather((self.chosen, self.reason)) if chosen == "loop"]
            if others and self.chosen != "loop":
                self.chosen, self.reason = "loop", others[0]

    def _decide(self, forms: Forms, device: torch.device) -> Penalty:
        penalty, trial = try_both(forms, device)
        trials = self._gather(trial)
        if any(found is None for found in trials):  # nothing to compare on one of them: the next step
            return penalty
        reasons = [found.reason for found in trials if found.reason is not None]
        if reasons:
            self.chosen, self.reason = "loop", reasons[0]
            return penalty
        # A step waits for the slowest process.
        times = {name: max(found.seconds[i] for found in trials) for i, name in enumerate(FIXED)}
        self.chosen = min(times, key=lambda name: times[name])
        self.reason = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in times.items())
        return penalty


def try_both(forms: Forms, device: torch.device) -> tuple[Penalty, Trial | None]:
    """The penalty, and how the two forms compare; ``None`` if these batches don't tell."""
    if len(forms.batches) == 1:
        return forms.loop(), None
    try:
        StackedBatches(forms.batches)
    except UnequalSizesError:
        return forms.loop(), None
    except VmapError as error:
        return forms.loop(), Trial(f"vmap can't: {first_line(error)}")
    needed = COPIES * len(forms.batches) * sum(p.nbytes for p in forms.parameters)
    if needed > available_memory(device):
        return forms.loop(), Trial(f"the gradients of all sub-batches take {needed / 2**30:.1f} GiB")
    random = False

    def watched(batch: Any) -> Tensor:
        nonlocal random
        before = RandomStateSnapshot({device})
        value = forms.loss(batch)
        random = random or not before.unchanged()
        return value

    found = forms.loop(watched)
    if not bool(torch.isfinite(found.value)):
        return found, None
    if random:
        return found, Trial("the loss draws random numbers")
    try:
        if not agree(found, forms.vmap()):
            return found, Trial("vmap gives other gradients")
        seconds: dict[str, list[float]] = {name: [] for name in FIXED}
        for _ in range(ROUNDS):
            seconds["loop"].append(timed(partial(forms.loop, forms.loss), device))
            seconds["vmap"].append(timed(forms.vmap, device))
    except Exception as error:  # whatever it is that vmap can't do, or memory for M gradients
        return found, Trial(f"vmap can't: {first_line(error)}")
    return found, Trial(seconds=(median(seconds["loop"]), median(seconds["vmap"])))


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
