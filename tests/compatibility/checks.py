"""What is checked of a case, each by runs that the checks share; an AssertionError says what differs."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import torch

from lightning_fisher import FisherMetric, FisherMonitor
from tests.compatibility.case import EPOCHS, SAMPLES, Case
from tests.compatibility.runs import Run, fit, oracle, regularizer
from tests.reference.jacobian import jacobian
from tests.reference.logdet import jacobian_log_det

BETA = 5.0
NEGLIGIBLE = 1e-30  # runs the whole machinery, and vanishes in float32
LOGGED = {"fisher/penalty", "fisher/beta", "fisher/grad_norm_var", "fisher/grad_cosine"}
SUBSETS, SUBSET = 2, 5


@functools.lru_cache(maxsize=1)
def plain(case: Case) -> Run:
    """Without us."""
    return fit(case)


@functools.lru_cache(maxsize=1)
def negligible(case: Case) -> tuple[Run, FisherMonitor | None]:
    """With the extra passes, their gradient too small to count, and the monitor at the end."""
    watching = monitor(case) if case.fisher.tried and not case.fisher.refused else None
    callbacks = [regularizer(case, NEGLIGIBLE)] + ([watching] if watching else [])
    return fit(case, *callbacks), watching


@functools.lru_cache(maxsize=1)
def regularized(case: Case) -> Run:
    """In float64."""
    return fit(case, regularizer(case, BETA), dtype=torch.float64)


def monitor(case: Case) -> FisherMonitor:
    fisher, (_, samples) = case.fisher, case.build(torch.float32)
    return FisherMonitor(
        samples,
        num_subsets=SUBSETS,
        subset_size=SUBSET,
        every_n_validations=EPOCHS,
        collate_fn=fisher.collate,
        select_module=fisher.select,
        metrics=FisherMetric(loss_fn=fisher.loss_fn),
    )


def trains(case: Case) -> str:
    """All weights and losses are finite, and weights move in every epoch."""
    recorder = regularized(case).recorder
    assert len(recorder.states) == EPOCHS * 2
    for state in recorder.states:
        assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())
    for before, after in zip(recorder.states[::2], recorder.states[1::2], strict=True):
        assert any(not torch.equal(before[name], after[name]) for name in before)
    return "yes"


def zero_beta_changes_nothing(case: Case) -> str:
    """Bit for bit: weights, buffers, outputs, learning rates, step counter, files written."""
    expected = plain(case)
    runs = [fit(case, regularizer(case, 0.0)), negligible(case)[0]]
    for got in runs:
        a, b = got.recorder, expected.recorder
        assert len(a.states) == len(b.states)
        for batch, (state, wanted) in enumerate(zip(a.states, b.states, strict=True)):
            differing = [name for name in wanted if not torch.equal(state[name], wanted[name])]
            assert not differing, f"{differing} after batch {batch}"
        assert [o["loss"].item() for o in a.outputs] == [o["loss"].item() for o in b.outputs]
        assert (a.lrs, a.global_steps, got.files) == (b.lrs, b.global_steps, expected.files)
    return "bit-identical"


def equals_the_oracle(case: Case) -> str:
    """Every weight and buffer after every batch, and every penalty."""
    got, expected = regularized(case), oracle(case, BETA)
    switched = [penalty for penalty in expected.penalties if penalty is not None]
    assert switched, "the oracle never switched on"
    for batch, (state, wanted) in enumerate(zip(got.recorder.states, expected.states, strict=True)):
        for name, value in state.items():
            if name.startswith(case.apart):
                continue
            want = wanted[f"net.{name}"].double()
            error = ((value.double() - want).abs().max() / want.abs().max().clamp_min(1e-30)).item()
            assert error <= case.tolerance, f"`{name}` off by {error:.1e} after batch {batch}"
    logged = [value for _, key, value in got.lines.split()[1] if key == "fisher/penalty"]
    for value in logged:  # one a step, the last batch's where several are accumulated
        assert min(abs(value - penalty) for penalty in switched) <= 1e-6 * max(map(abs, switched))
    return "equal"


def logs_once(case: Case) -> str:
    """The module's own values as without us, each line once; ours once a regularized step."""
    run, _ = negligible(case)
    lines, ours = run.lines.split()
    assert lines == plain(case).lines.split()[0]
    ours = [(step, key) for step, key, _ in ours if key in LOGGED]
    assert len(set(ours)) == len(ours)
    assert {key for _, key in ours} == LOGGED
    steps = {step for step, _ in ours}
    assert len(ours) == len(LOGGED) * len(steps)
    after = run.recorder.global_steps
    assert len(steps) == after[-1] - after[1]  # the steps of the second epoch
    return "once"


def gamma(case: Case) -> str:
    """γ̂ by one float64 backward pass a sample, at the weights after the last batch; or a refusal before the first."""
    if not case.fisher.tried:
        return "-"
    if case.fisher.refused:
        assert_refused(case, monitor(case), case.fisher.refused, batches=0)
        return assert_refused(case, monitor(case), "can't measure .*collate_fn.*select_module.*loss_fn", batches=0)
    run, watching = negligible(case)
    assert watching is not None
    (module, samples), fisher = case.build(torch.float32), case.fisher
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            tensor.copy_(run.recorder.states[-1][name])
    net = module if fisher.select is None else fisher.select(module)
    log_dets = []
    for subset in watching.subsets(SAMPLES):
        inputs, targets = fisher.collate([samples[i] for i in subset])
        log_dets.append(jacobian_log_det(jacobian(net, inputs, targets, loss_fn=fisher.loss_fn)).log_det)
    expected = sum(log_dets) / len(log_dets)
    assert abs(watching.last["gamma"] - expected) <= 1e-3, (watching.last["gamma"], expected)
    return "equal"


def regularizer_is_refused(case: Case) -> str:
    """In one line, in the first two batches at the latest; without us it trains."""
    line = assert_refused(case, regularizer(case, BETA), case.refused, batches=1)
    assert len(plain(case).recorder.states) == EPOCHS * 2
    return line


CHECKS = (trains, zero_beta_changes_nothing, equals_the_oracle, logs_once, gamma)


@functools.cache
def outcome(case: Case, check: Callable[[Case], str]) -> str:
    """What the table says; each check runs once."""
    return check(case)


def assert_refused(case: Case, callback: Any, pattern: str | None, batches: int) -> str:
    """The line."""
    module, _ = case.build(torch.float32)
    finished: list[int] = []
    module.on_train_batch_end = lambda outputs, batch, batch_idx: finished.append(batch_idx)
    try:
        fit(case, callback, module=module)
    except (ValueError, TypeError) as error:
        line = str(error)
        assert "\n" not in line, line
        assert re.search(pattern or "", line), line
        assert len(finished) <= batches
        return line
    raise AssertionError(f"{case.name} was not refused")
