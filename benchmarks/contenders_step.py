"""One training step of a batch: plain, regularized in every form on offer, and what it competes with."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.fits import fit_batches
from benchmarks.lockstep import Lockstep
from lightning_fisher import (
    FisherPenalty,
    FisherRegularizer,
    GradientNormPenalty,
    JacobianPenalty,
    SharpnessAware,
)
from lightning_fisher.functional import regularized_gradient

BASELINE = "plain step"
RATE = 1e-3  # small enough for every contender to stay finite
BETA = 10.0
ALPHA = 1e-4
PERIOD = 8  # of the form that regularizes some steps only

Step = Callable[[], None]


@dataclass(frozen=True)
class Workload:
    """What a contender trains.

    Attributes:
        net: in training mode, for this contender alone.
        batches: endless.
        sub_batches: M.
        device: of the net.
        stack: closes what the contender opens.
    """

    net: nn.Module
    batches: Iterator[tuple[Tensor, Tensor]]
    sub_batches: int
    device: torch.device
    stack: ExitStack

    def optimizer(self) -> torch.optim.Optimizer:
        """The SGD of all contenders."""
        return _sgd(self.net.parameters())


@dataclass(frozen=True)
class StepContender:
    """One way to do a step.

    Attributes:
        prepare: ``workload → step``.
        steps: steps that are timed together, where their cost differs from one to the next.
        missing: why it cannot run here; ``None`` if it can.
    """

    prepare: Callable[[Workload], Step]
    steps: int = 1
    missing: str | None = None


_sgd = partial(torch.optim.SGD, lr=RATE, momentum=0.9, weight_decay=1e-4)


def _plain(work: Workload, compile_backend: str | None = None) -> Step:
    optimizer = work.optimizer()
    net = work.net if compile_backend is None else torch.compile(work.net, backend=compile_backend)

    def step() -> None:
        images, labels = next(work.batches)
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return step


def _functional(work: Workload, **options: Any) -> Step:
    """A loop of one's own over `regularized_gradient`."""
    optimizer = work.optimizer()

    def step() -> None:
        images, labels = next(work.batches)
        found = regularized_gradient(
            work.net, images, labels, beta=BETA, alpha=ALPHA, num_sub_batches=work.sub_batches, **options
        )
        for parameter, gradient in zip(work.net.parameters(), found.gradient, strict=True):
            parameter.grad = gradient
        optimizer.step()

    return step


def _naive(work: Workload) -> Step:
    """The algorithm as one would write it down first: a copy of the network for every step along ``g_i``."""
    optimizer, net = work.optimizer(), work.net

    def step() -> None:
        images, labels = next(work.batches)
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        count = work.sub_batches
        for x, y in zip(images.chunk(count), labels.chunk(count), strict=True):
            here = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
            moved = copy.deepcopy(net)
            with torch.no_grad():
                for p, g in zip(moved.parameters(), here, strict=True):
                    p.sub_(g, alpha=ALPHA)
            there = torch.autograd.grad(F.cross_entropy(moved(x), y), list(moved.parameters()))
            for p, g, h in zip(net.parameters(), here, there, strict=True):
                assert p.grad is not None
                p.grad += BETA / count * (g - h)
        optimizer.step()

    return step


def _sam(work: Workload) -> Step:
    from pytorch_optimizer import SAM

    optimizer: Any = SAM(work.net.parameters(), torch.optim.SGD, rho=0.05, **_sgd.keywords)

    def step() -> None:
        images, labels = next(work.batches)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(work.net(images), labels)
            loss.backward()
            return loss

        closure()
        optimizer.step(closure)

    return step


def _lightning(work: Workload, options: dict[str, Any] | None = None) -> Step:
    """The same step by a `Trainer`; ``options`` are `FisherRegularizer`'s, ``None``: without the callback."""
    if options is None:
        return _fitted(work)
    return _fitted(work, FisherRegularizer(BETA, ALPHA, work.sub_batches, start=0, **options))


def _method(work: Workload, make: Callable[[], Callback]) -> Step:
    """The same step with another method's callback."""
    return _fitted(work, make())


def _fitted(work: Workload, *callbacks: Callback) -> Step:
    return work.stack.enter_context(
        Lockstep(lambda gate: fit_batches(work.net, work.batches, _sgd, [gate, *callbacks], work.device), "step")
    )


FORMS: dict[str, dict[str, Any]] = {
    "three evaluations": {},
    "three evaluations, by vmap": {"passes": "vmap"},
    "two evaluations (shared gradient)": {"gradient": "shared"},
    "amortized: 1 of M sub-batches": {"perturbed": 1},
    "amortized: 1 of M, shared gradient": {"gradient": "shared", "perturbed": 1},
    "amortized: 2 of M, shared gradient": {"gradient": "shared", "perturbed": 2},
}


METHODS: dict[str, Callable[[], Callback]] = {
    "SAM, Lightning": SharpnessAware,
    "ASAM, Lightning": partial(SharpnessAware, 0.5, adaptive=True, eta=0.01),
    "gradient-norm penalty, Lightning": GradientNormPenalty,
    "Fisher penalty, forward, Lightning": partial(FisherPenalty, difference="forward"),
    "Fisher penalty, central, Lightning": FisherPenalty,
    "Jacobian penalty, Lightning": JacobianPenalty,
    "central, shared gradient, Lightning": partial(
        FisherRegularizer, BETA, ALPHA, start=0, gradient="shared", difference="central"
    ),
}


def contenders(compile_backend: str | None) -> dict[str, StepContender]:
    """Every contender, by name.

    Args:
        compile_backend: of `torch.compile` for a compiled plain step; ``None`` leaves it out.
    """
    found = importlib.util.find_spec("pytorch_optimizer") is not None
    sam = None if found else "not installed (pip install pytorch-optimizer)"
    everyone = {BASELINE: StepContender(_plain)}
    if compile_backend is not None:
        everyone[f"plain step, torch.compile ({compile_backend})"] = StepContender(
            partial(_plain, compile_backend=compile_backend)
        )
    everyone["plain step, Lightning"] = StepContender(_lightning)
    for name, options in FORMS.items():
        everyone[name] = StepContender(partial(_functional, **options))
        everyone[f"{name}, Lightning"] = StepContender(partial(_lightning, options=options))
    everyone[f"amortized: every {PERIOD}th step, Lightning"] = StepContender(
        partial(_lightning, options={"every_n_steps": PERIOD}), steps=PERIOD
    )
    for name, make in METHODS.items():
        everyone[name] = StepContender(partial(_method, make=make))
    everyone["SAM (pytorch_optimizer)"] = StepContender(_sam, missing=sam)
    everyone["naive three-pass port"] = StepContender(_naive)
    return everyone
