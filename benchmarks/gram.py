"""ξ of a batch: time relative to forward + backward of the same samples, and error against float64."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contenders_gram import BASELINE, CONTENDERS, OF_SUBSETS, OURS, TEN, Call
from benchmarks.exact import Exact, exact_gram
from benchmarks.networks import Network, make, random_batch
from benchmarks.process import FailedError, Process
from benchmarks.timing import interleave, rows_of
from benchmarks.trained import sharpened, train
from lightning_fisher.functional import fisher_log_det, log_det

Say = Callable[[str], None]


def available(say: Say) -> dict[str, str | None]:
    """Every contender, with why it is left out or ``None``."""
    reasons = {name: contender.missing() for name, contender in CONTENDERS.items()}
    for name, reason in reasons.items():
        if reason is not None:
            say(f"left out: {name}: {reason}")
    return reasons


def prepare(name: str, net: nn.Module, images: Tensor, labels: Tensor) -> Call:
    """A contender's call on a copy of ``net`` of its own: hooks of one don't slow another."""
    return (CONTENDERS | OF_SUBSETS)[name].prepare(copy.deepcopy(net), images, labels)


def times(
    network: Network, *, samples: int, rounds: int, thread_counts: Iterable[int], device: torch.device, say: Say
) -> list[dict[str, Any]]:
    """Time every contender on one network, in evaluation mode, with each number of threads."""
    names = [name for name, reason in available(say).items() if reason is None]
    compared = [(names, BASELINE), (list(OF_SUBSETS), TEN)]
    rows = []
    for count, (names, baseline) in itertools.product(thread_counts, compared):
        with ExitStack() as stack:
            running = {}
            for name in names:
                with _or_left_out(name, say):
                    running[name] = stack.enter_context(
                        Process(partial(job, name, network, samples, device), count, device)
                    )
            for row in rows_of(interleave(running, rounds=rounds, clock=Process.time), baseline):
                version = (CONTENDERS | OF_SUBSETS)[str(row["contender"])].version()
                rows.append({"network": network.title, "threads": count, "samples": samples, "version": version} | row)
    return rows


def job(name: str, network: Network, samples: int, device: torch.device, stack: ExitStack) -> Call:
    """A contender's call on a network in evaluation mode."""
    return prepare(name, make(network, device).eval(), *random_batch(network, samples, device))


@contextmanager
def _or_left_out(name: str, say: Say) -> Iterator[None]:
    """A peer that fails is named and left out, ours is not."""
    try:
        yield
    except Exception as error:
        if name in (OURS, BASELINE):
            raise
        reason = (
            str(error) if isinstance(error, FailedError) else f"{type(error).__name__}: {str(error).splitlines()[0]}"
        )
        say(f"left out: {name}: {reason}")


def _working(names: list[str], net: nn.Module, images: Tensor, labels: Tensor, say: Say) -> dict[str, Call]:
    """The calls of the contenders that can do this network."""
    calls = {}
    for name in names:
        with _or_left_out(name, say):
            call = prepare(name, net, images, labels)
            call()
            calls[name] = call
    return calls


def errors(network: Network, *, samples: int, epochs: int, device: torch.device, say: Say) -> list[dict[str, Any]]:
    """Relative errors of ξ (Frobenius) and of ln|ξ| of every contender, on a trained network at two losses."""
    net, images, labels = train(network, epochs=epochs, device=device)
    images, labels = images[:samples], labels[:samples]
    nets = {"trained": net}
    try:
        nets["trained, logits scaled up"] = sharpened(net, images, labels)
    except ValueError as error:
        say(f"{network.title}: {error}")
    names = [n for n, reason in available(lambda _: None).items() if reason is None and CONTENDERS[n].grams]
    rows = []
    for state, trained in nets.items():
        exact = exact_gram(trained, images, labels)
        for name, call in _working(names, trained, images, labels, say).items():
            gram = call().double().cpu()
            row: dict[str, Any] = {"network": network.title, "state": state, "loss": exact.loss, "contender": name}
            row["gram_error"] = ((gram - exact.gram).norm() / exact.gram.norm()).item()
            # Ours goes through its own function, which never forms the small numbers.
            value = fisher_log_det(trained, images, labels).log_det.item() if name == OURS else _log_det(gram)
            rows.append(row | _log_det_errors(value, exact))
    return rows


def _log_det(gram: Tensor) -> float:
    """ln|ξ| of a peer's ξ, in float64; NaN where it is singular: a zero row, a matrix that isn't positive."""
    try:
        return log_det(gram).item()
    except ValueError:
        return math.nan


def _log_det_errors(value: float, exact: Exact) -> dict[str, float]:
    difference = abs(value - exact.log_det)
    return {"log_det": exact.log_det, "log_det_nats": difference, "log_det_error": difference / abs(exact.log_det)}
