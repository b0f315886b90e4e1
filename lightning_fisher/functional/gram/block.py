"""ξ of samples that are run at once: layer by layer, row by row where no rule applies, and verified."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_fisher.functional.evaluation.finite import require_finite
from lightning_fisher.functional.evaluation.samples import take
from lightning_fisher.functional.gram.layerwise import LayerwiseResult, check_shapes, layerwise_gram
from lightning_fisher.functional.gram.layout import lay_out_uses, outputs_difference
from lightning_fisher.functional.gram.per_sample_jacobian import detached, row_gram
from lightning_fisher.functional.gram.plan import Plan, PlannedUse, Probe, drop_plan, find_plan, keep_plan, probe
from lightning_fisher.functional.gram.problem import Problem
from lightning_fisher.functional.gram.recorder import Recorder
from lightning_fisher.functional.gram.single_passes.batched import batched, can_be_batched, seconds
from lightning_fisher.functional.gram.single_passes.one_by_one import (
    OneByOneResult,
    goes_one_by_one,
    one_by_one,
    trace_of_one,
)
from lightning_fisher.functional.gram.verification import Group, compare, settle
from lightning_fisher.functional.losses.loss import OutputGradients

DRAWS = 4  # of random weights, at the most, until no parameter is found that goes row by row


def block_gram(problem: Problem, few: Probe | None = None) -> tuple[Tensor, OutputGradients]:
    """Gram matrix of the unit output gradients, and those, of all samples of a problem.

    Args:
        problem: Module and samples.
        few: The pass of a few samples, if it was run already.

    Returns:
        ``[N, N]``, or ``[g, N, N]`` of the problem's g groups, float64, and the output gradients.
    """
    plan = find_plan(problem)
    if plan is not None:
        block = _Block(problem, plan)
        if block.follow():
            return block.finish()
        drop_plan(problem)
    few = probe(problem) if few is None else few
    again = Plan(set(few.general), [], [], few.chosen, False, few.needed, few.tolerance)
    if plan is not None and plan.batched:  # and something differed
        again.batched = False
    block = _Block(problem, again)
    block.learn(few)
    return block.finish()


class _Block:
    """One run of all samples, along a plan or to make one."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self._problem, self._plan = replace(problem, tolerance=plan.tolerance), plan
        self._new = not plan.trace
        self._keep = self._watched = True
        self._grams: dict[Group, Tensor] = {}
        self._passed: LayerwiseResult
        self._generator = torch.Generator().manual_seed(problem.count)

    def follow(self) -> bool:
        """Run the layers as planned; ``False`` if the module did something else."""
        plan = self._plan
        if plan.alone is not None:
            return self._follow_one_by_one(plan.alone)

        def lay_out(recorder: Recorder, outputs: Any) -> bool:
            if recorder.trace != plan.trace or recorder.general != plan.general:
                return False
            if len(recorder.uses) != len(plan.uses):
                return False
            for use, planned in zip(recorder.uses, plan.uses, strict=True):
                if not planned.fits(use):
                    return False
                use.layout = planned.layout
            return True

        passed = self._layers(lay_out, apart=plan.verify)
        if passed is None:
            return False
        self._passed = passed
        return True

    def _follow_one_by_one(self, trace: list[Any]) -> bool:
        """Run the samples one by one; ``False`` if the module did something else, or the batch does."""
        problem, plan = self._problem, self._plan
        if not goes_one_by_one(problem, plan.general):  # memory got scarce
            return False
        groups = self._split(range(len(problem.parameters)))
        followed = self._follow_batched(groups)
        if followed is not None:
            return followed
        start = seconds(problem.device)
        # Which functions run may depend on the data where everything is verified.
        found = one_by_one(problem, groups, None if plan.verify else trace)
        if found is None:
            return False
        if plan.verify and not plan.accepted and not self._as_in_batch(found):
            return False
        plan.seconds = seconds(problem.device) - start
        self._use(found)
        return True

    def _follow_batched(self, groups: list[Group]) -> bool | None:
        """Run the samples at once by vmap, if that is quicker; ``None`` if they are to go one by one."""
        problem, plan = self._problem, self._plan
        if plan.batched is False or plan.seconds is None or plan.accepted or not can_be_batched(problem):
            return None
        trial = plan.batched is None
        if trial:  # what is set up in the first pass of all takes no time later
            plan.batched = batched(problem.take(slice(0, 2)), groups) is not None
        start = seconds(problem.device)
        found = batched(problem, groups) if plan.batched else None
        if found is None:
            plan.batched = False
            return None
        if not self._as_in_batch(found.alone, found.whole):
            plan.batched = True
            return False
        if trial:
            plan.batched = seconds(problem.device) - start < plan.seconds
        self._use(found.alone)
        return True

    def _as_in_batch(self, found: OneByOneResult, whole: Any = None) -> bool:
        """Compare single passes with one of the batch."""
        for gram in found.grams.values():
            require_finite(gram.diagonal(), "per-sample gradients")
        comparison = compare(
            self._problem,
            found.grams,
            found.outputs,
            found.gradients.directions,
            self._generator,
            shuffled=False,
            whole=whole,
        )
        return comparison.gradients_agree and comparison.outputs <= self._problem.tolerance

    def _use(self, found: OneByOneResult) -> None:
        self._grams = found.grams
        self._passed = LayerwiseResult({}, None, found.gradients, found.outputs, self._plan.general)

    def learn(self, few: Probe) -> None:
        """Run the layers, find out where their samples are, and write it into the plan."""
        plan = self._plan

        def lay_out(recorder: Recorder, outputs: Any) -> bool:
            difference = float(outputs_difference(outputs, few.outputs, few.size))
            self._report(difference, "between the first samples alone and together")
            ambiguous = lay_out_uses(recorder.uses, few.uses, self._problem.count, few.size, self._tolerance)
            self._keep = self._keep and not ambiguous
            plan.trace = recorder.trace
            plan.uses = [PlannedUse.of(use) for use in recorder.uses]
            return True

        passed = self._layers(lay_out, apart=True)
        assert passed is not None
        self._passed = passed
        plan.general = passed.general

    def finish(self) -> tuple[Tensor, OutputGradients]:
        """Add the parameters without a rule, verify, keep the plan."""
        passed, plan = self._passed, self._plan
        if self._grams:  # one by one, and verified if need be
            require_finite(self._total().diagonal(), "per-sample gradients")
            return self._total() if self._problem.groups is None else self._by_group(), passed.gradients
        self._grams = dict(passed.grams)
        hooked = {i for i in plan.general if self._problem.parameters[i]._backward_hooks}
        start = seconds(self._problem.device)
        self._add_rows(plan.general - hooked)
        everything = len(plan.general) == len(self._problem.parameters)
        if everything and len(self._grams) == 1 and not plan.verify:  # every pass ran once, as later
            plan.seconds = seconds(self._problem.device) - start
        self._add_hooked_rows(hooked)
        require_finite(self._total().diagonal(), "per-sample gradients")
        if self._new or plan.verify:
            self._verify(hooked)
            if self._keep:
                plan.uses = [kept for use in plan.uses if (kept := use.without(plan.general)) is not None]
                if not hooked and goes_one_by_one(self._problem, plan.general):
                    plan.general, plan.alone = set(range(len(self._problem.parameters))), trace_of_one(self._problem)
                keep_plan(self._problem, plan)
        return self._total() if self._problem.groups is None else self._by_group(), self._passed.gradients

    @property
    def _tolerance(self) -> float:
        return math.inf if self._plan.accepted else self._problem.tolerance

    def _total(self) -> Tensor:
        layers, known = self._passed.grams, self._passed.total
        whole = known is not None and all(self._grams.get(group) is gram for group, gram in layers.items())
        others = [gram for group, gram in self._grams.items() if not (whole and group in layers)]
        total = known.clone() if whole and known is not None else torch.zeros_like(others[0])
        for gram in others:
            total += gram
        return total

    def _by_group(self) -> Tensor:
        groups = self._problem.groups
        assert groups is not None
        totals = torch.zeros(max(groups) + 1, *next(iter(self._grams.values())).shape, dtype=torch.float64)
        totals = totals.to(self._problem.device)
        for positions, gram in self._grams.items():
            totals[groups[positions[0]]] += gram
        return totals

    def _report(self, difference: float, where: str) -> None:
        """Settle a difference between outputs once."""
        if not difference <= self._tolerance:
            settle(self._problem, f"relative difference {difference:.1e} {where}")
            self._plan.accepted = True

    def _layers(self, lay_out: Any, *, apart: bool) -> LayerwiseResult | None:
        problem, general = self._problem, self._plan.general
        if goes_one_by_one(problem, general):
            outputs = problem.outputs()
            check_shapes(outputs, problem.count)
            self._plan.trace = self._plan.trace or [None]
            self._plan.general = set(range(len(problem.parameters)))
            gradients = problem.output_gradients(outputs)
            return LayerwiseResult({}, None, gradients, detached(outputs), self._plan.general)
        return layerwise_gram(problem, general, lay_out, apart=apart)

    def _add_rows(self, indices: Iterable[int]) -> None:
        """The part of some parameters, one pass a sample, each compared with the pass of all."""

        def check(outputs: Any, chunk: slice) -> None:
            together = take(self._passed.outputs, chunk)
            difference = float(outputs_difference(together, outputs, chunk.stop - chunk.start))
            self._report(difference, "one by one and together")

        for group in self._split(indices):
            parameters = [self._problem.parameters[i] for i in group]
            self._grams[group] = row_gram(
                self._problem, parameters, self._passed.gradients.directions, check=check, watched=self._watched
            )

    def _split(self, indices: Iterable[int]) -> list[Group]:
        """Positions of parameters that go row by row together: those of a group of the problem, or all."""
        groups = self._problem.groups
        key = {i: 0 if groups is None else groups[i] for i in sorted(indices)}
        return [tuple(i for i in key if key[i] == group) for group in dict.fromkeys(key.values())]

    def _add_hooked_rows(self, indices: set[int]) -> None:
        """The part of parameters with hooks, which may do anything to a gradient: they see it at its own scale."""
        scales = self._passed.gradients.log_norms.exp()

        def scaled(direction: Any) -> Any:
            if not isinstance(direction, Tensor):
                return direction
            return direction * scales.to(direction.dtype).view(-1, *[1] * (direction.ndim - 1))

        inverse = torch.where(scales > 0, 1 / scales, 0.0)
        for group in self._split(indices):
            parameters = [self._problem.parameters[i] for i in group]
            directions = tree_map(scaled, self._passed.gradients.directions)
            gram = row_gram(self._problem, parameters, directions, watched=self._watched)
            self._grams[group] = gram * torch.outer(inverse, inverse)

    def _verify(self, hooked: set[int]) -> None:
        """Compare with ordinary passes; what differs goes row by row, and if that differs too, samples interact."""
        for _ in range(DRAWS):
            suspects = self._differs(hooked, shuffled=True)
            if not suspects:
                return
            # In the order and size of the batch that ξ is made from, rounding is the same: only rules can differ.
            found = self._differs(hooked, shuffled=False) or self._differs(hooked, shuffled=False)
            covered = (suspects | found) - self._plan.general if found else set()
            if not covered:
                break
            self._plan.general = self._plan.general | covered
            self._grams = {g: gram for g, gram in self._grams.items() if not covered & set(g)}
            self._add_rows(covered)
        if not self._plan.accepted:
            settle(self._problem, "gradients of all samples together and one by one")
            self._plan.accepted = True

    def _start_unwatched(self, hooked: set[int]) -> bool:
        """Go row by row, without the recorder, if the module computes something else while that is watching.

        As it does where it asks `torch.overrides.has_torch_function`; found out at every call.
        """
        if not self._watched:
            return False
        outputs = self._problem.outputs()
        if outputs_difference(self._passed.outputs, outputs, self._problem.count) <= self._tolerance:
            return False
        everything = set(range(len(self._problem.parameters)))
        self._plan.general, self._keep, self._watched = everything, False, False
        gradients = self._problem.output_gradients(outputs)
        self._passed = LayerwiseResult({}, None, gradients, detached(outputs), everything)
        self._grams = {}
        self._add_rows(everything - hooked)
        self._add_hooked_rows(hooked)
        return True

    def _differs(self, hooked: set[int], *, shuffled: bool) -> set[int]:
        """Positions of the parameters whose part differs from that of an ordinary pass."""
        grams = {group: gram for group, gram in self._grams.items() if not hooked & set(group)}
        if not grams:
            return set()
        passed = self._passed
        comparison = compare(
            self._problem, grams, passed.outputs, passed.gradients.directions, self._generator, shuffled=shuffled
        )
        if not comparison.outputs <= self._tolerance and self._start_unwatched(hooked):
            return self._differs(hooked, shuffled=shuffled)
        self._report(comparison.outputs, "between the batch and parts of it")
        groups = comparison.groups or (list(grams) if comparison.total else [])
        return {position for group in groups for position in group}
