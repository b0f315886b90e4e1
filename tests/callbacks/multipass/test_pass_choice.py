"""`PassChoice("auto")`: the loop, unless vmap can do the loss, agrees and is faster."""

from __future__ import annotations

import itertools
import time
import types

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_fisher.callbacks.multipass import pass_choice
from lightning_fisher.callbacks.multipass.pass_choice import PassChoice, agree, tries
from lightning_fisher.functional.multipass import execution as forms
from lightning_fisher.functional.multipass.difference import FiniteDifference
from lightning_fisher.functional.multipass.execution import Forms
from tests.functional.compare import gradient_error
from tests.functional.snapshot import changes, snapshot
from tests.reference.penalty import penalty

COMPARED = 2  # ordinary passes of one sub-batch that vmap is compared with, the first time


class Setup:
    """A network, four sub-batches and how often it was called."""

    def __init__(self, *layers):
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), *layers, nn.Linear(8, 3)).double()
        self.x, self.y = torch.randn(16, 6, dtype=torch.float64), torch.randint(3, (16,))
        self.calls = 0
        self.net.register_forward_hook(self._count)

    def _count(self, *_):
        self.calls += 1

    def evaluate(self, choice, parts=4, **more):
        """The penalty, and the number of passes."""
        self.calls = 0
        x, y = self.x.tensor_split(parts), self.y.tensor_split(parts)
        found = choice.penalty(
            Forms(
                lambda batch: cross_entropy(self.net(batch[0]), batch[1]),
                list(zip(x, y, strict=True)),
                list(self.net.parameters()),
                method=FiniteDifference(1e-3),
                weights=[len(part) / 16 for part in y],
                module=self.net,
            ),
            **more,
        )
        return found, self.calls

    def error(self, found, parts=4):
        return gradient_error(found.gradient, penalty(self.net, self.x, self.y, alpha=1e-3, num_sub_batches=parts)[1])


@pytest.fixture
def clocked(monkeypatch):
    """Pretends to be on a GPU, where forms take the seconds that are given: loop, vmap, loop, …"""

    def clock(*seconds):
        given = itertools.cycle(seconds)
        monkeypatch.setattr(pass_choice, "tries", lambda device: True)
        monkeypatch.setattr(pass_choice, "timed", lambda form, device: (form(), next(given))[1])

    return clock


@pytest.mark.parametrize(("seconds", "chosen"), [((3.0, 1.0), "vmap"), ((1.0, 3.0), "loop")])
def test_takes_the_faster_one_and_stays_with_it(clocked, seconds, chosen):
    clocked(*seconds)
    setup, choice = Setup(), PassChoice("auto")
    before = snapshot(setup.net)
    assert choice.chosen is None
    first, calls = setup.evaluate(choice)
    assert choice.chosen == chosen
    assert calls == (1 + pass_choice.ROUNDS) * (8 + 2) + COMPARED
    assert "loop" in choice.reason
    assert "vmap" in choice.reason
    second, calls = setup.evaluate(choice)
    assert calls == (2 if chosen == "vmap" else 8)
    assert setup.error(first) < 1e-9
    assert setup.error(second) < 1e-9
    assert changes(before, snapshot(setup.net)) == []


def test_one_slow_round_does_not_decide(clocked):
    clocked(2.0, 1.0, 2.0, 1.0, 2.0, 100.0)
    setup, choice = Setup(), PassChoice("auto")
    setup.evaluate(choice)
    assert choice.chosen == "vmap"


def test_the_loop_where_vmap_mixes_the_sub_batches(clocked, monkeypatch):
    clocked(3.0, 1.0)
    wrong = forms.penalty_by_vmap

    def mixing(loss, batches, *args, **kwargs):
        return wrong(loss, [batches[0]] * len(batches), *args, **kwargs)

    monkeypatch.setattr(forms, "penalty_by_vmap", mixing)
    setup, choice = Setup(), PassChoice("auto")
    found, _ = setup.evaluate(choice)
    assert choice.chosen == "loop"
    assert choice.reason == "vmap gives other gradients"
    assert setup.error(found) < 1e-9


class Steered(nn.Module):
    def forward(self, x):
        return x if x.sum().item() > 0 else -x


def test_the_loop_where_vmap_cannot(clocked):
    clocked(3.0, 1.0)
    setup, choice = Setup(Steered()), PassChoice("auto")
    found, _ = setup.evaluate(choice)
    assert choice.chosen == "loop"
    assert choice.reason.startswith("vmap can't: ")
    assert setup.error(found) < 1e-9


class Later(nn.Module):
    """Asks for a number once it is told to."""

    steered = False

    def forward(self, x):
        return x if not self.steered or x.sum().item() > 0 else -x


def test_the_loop_from_when_vmap_fails_on(clocked):
    clocked(3.0, 1.0)
    layer = Later()
    setup, choice = Setup(layer), PassChoice("auto")
    setup.evaluate(choice)
    assert choice.chosen == "vmap"
    layer.steered = True
    found, _ = setup.evaluate(choice)
    assert choice.chosen == "loop"
    assert setup.error(found) < 1e-9
    _, calls = setup.evaluate(choice)
    assert calls == 8


def test_the_loop_from_when_memory_ends_on(clocked, monkeypatch):
    clocked(3.0, 1.0)
    setup, choice = Setup(), PassChoice("auto")
    setup.evaluate(choice)

    def exhausted(*args, **kwargs):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(forms, "penalty_by_vmap", exhausted)
    found, _ = setup.evaluate(choice)
    assert (choice.chosen, choice.reason) == ("loop", "vmap can't: no memory")
    assert setup.error(found) < 1e-9
    with pytest.raises(torch.OutOfMemoryError):
        setup.evaluate(PassChoice("vmap"))


def test_the_loop_where_the_gradients_do_not_fit(clocked, monkeypatch):
    clocked(3.0, 1.0)
    setup, choice = Setup(), PassChoice("auto")
    of_one = sum(p.nbytes for p in setup.net.parameters())
    monkeypatch.setattr(pass_choice, "available_memory", lambda device: pass_choice.COPIES * 4 * of_one - 1)
    _, calls = setup.evaluate(choice)
    assert (choice.chosen, calls) == ("loop", 8)
    assert "GiB" in choice.reason


def test_nothing_is_decided_by_a_loss_that_is_not_finite(clocked):
    clocked(3.0, 1.0)
    setup, choice = Setup(), PassChoice("auto")
    images, setup.x = setup.x, setup.x * torch.nan
    _, calls = setup.evaluate(choice)
    assert (choice.chosen, calls) == (None, 8)
    setup.x = images
    setup.evaluate(choice)
    assert choice.chosen == "vmap"


def test_a_choice_does_not_bind_a_cpu():
    """A run that began on a GPU may go on without one."""
    setup, choice = Setup(), PassChoice("auto")
    choice.chosen = "vmap"
    _, calls = setup.evaluate(choice)
    assert calls == 8


def test_undecided_until_it_may_decide(clocked):
    clocked(3.0, 1.0)
    setup, choice = Setup(), PassChoice("auto")
    _, calls = setup.evaluate(choice, decide=False)
    assert (choice.chosen, calls) == (None, 8)
    choice.chosen = "vmap"
    _, calls = setup.evaluate(choice, decide=False)
    assert calls == 2 + COMPARED


def test_batches_that_are_never_stacked_are_refused_or_left_to_the_loop(clocked):
    """Other than those of a different size, which the last of an epoch is."""
    clocked(3.0, 1.0)
    setup = Setup()

    def evaluate(choice):
        batches = [(x, y, object()) for x, y in zip(setup.x.chunk(4), setup.y.chunk(4), strict=True)]
        return choice.penalty(
            Forms(
                lambda batch: cross_entropy(setup.net(batch[0]), batch[1]),
                batches,
                list(setup.net.parameters()),
                method=FiniteDifference(1e-3),
                weights=[1 / 4] * 4,
                module=setup.net,
            )
        )

    choice = PassChoice("auto")
    assert setup.error(evaluate(choice)) < 1e-9
    assert (choice.chosen, choice.reason) == (
        "loop",
        "vmap can't: the sub-batches hold objects that can't be stacked (object)",
    )
    with pytest.raises(ValueError, match="can't be stacked"):
        evaluate(PassChoice("vmap"))


def test_the_loop_where_memory_ends(clocked, monkeypatch):
    clocked(3.0, 1.0)

    def exhausted(*args, **kwargs):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(forms, "penalty_by_vmap", exhausted)
    setup, choice = Setup(), PassChoice("auto")
    found, _ = setup.evaluate(choice)
    assert (choice.chosen, choice.reason) == ("loop", "vmap can't: no memory")
    assert setup.error(found) < 1e-9


class PythonNoise(nn.Module):
    def forward(self, x):
        import random

        return x + random.random()


class NumpyNoise(nn.Module):
    def forward(self, x):
        import numpy as np

        return x + np.random.rand()


@pytest.mark.parametrize("noise", [nn.Dropout(0.5), PythonNoise(), NumpyNoise()], ids=["torch", "python", "numpy"])
def test_the_loop_where_random_numbers_are_drawn(clocked, noise):
    clocked(3.0, 1.0)
    setup, choice = Setup(noise), PassChoice("auto")
    setup.evaluate(choice)
    assert (choice.chosen, choice.reason) == ("loop", "the loss draws random numbers")


def test_undecided_while_there_is_nothing_to_stack(clocked):
    clocked(3.0, 1.0)
    setup, choice = Setup(), PassChoice("auto")
    for parts in (1, 3):
        found, calls = setup.evaluate(choice, parts)
        assert choice.chosen is None
        assert calls == 2 * parts
        assert setup.error(found, parts) < 1e-9
    setup.evaluate(choice)
    assert choice.chosen == "vmap"
    _, calls = setup.evaluate(choice, 3)
    assert calls == 6


def test_the_loop_on_a_cpu_and_where_torch_is_deterministic():
    setup, choice = Setup(), PassChoice("auto")
    _, calls = setup.evaluate(choice)
    assert (choice.chosen, calls) == (None, 8)
    cuda = torch.device("cuda")
    assert tries(cuda)
    assert not tries(torch.device("cpu"))
    torch.use_deterministic_algorithms(True)
    try:
        assert not tries(cuda)
    finally:
        torch.use_deterministic_algorithms(False)


def test_agreement_is_of_gradients_and_directions():
    setup = Setup()
    found, _ = setup.evaluate(PassChoice("loop"))
    assert agree(found, found)
    doubled = found._replace(gradient=tuple(2 * g for g in found.gradient))
    assert not agree(found, doubled)
    near = found._replace(gradient=tuple(g * (1 + 1e-4) for g in found.gradient))
    assert agree(found, near)
    off = found._replace(gradient=tuple(g * 1.01 for g in found.gradient))
    assert not agree(found, off)
    turned = found._replace(divergence=found.divergence._replace(cosine=found.divergence.cosine + 0.1))
    assert not agree(found, turned)
    assert not agree(found, found._replace(gradient=(None, *found.gradient[1:])))


def test_timed_waits_for_the_device_before_and_after(monkeypatch):
    """Which is told of everything at once and takes its time."""
    events = []
    clock = iter([10.0, 13.0])
    device = torch.device("cuda", 1)
    waits = types.SimpleNamespace(synchronize=lambda *which: events.append(("wait", *which)))
    monkeypatch.setattr(torch, "get_device_module", lambda device: waits)
    monkeypatch.setattr(pass_choice.time, "perf_counter", lambda: events.append("clock") or next(clock))
    assert pass_choice.timed(lambda: events.append("form"), device) == 3.0
    assert events == [("wait", device), "clock", "form", ("wait", device), "clock"]


def test_timed_on_a_cpu():
    assert pass_choice.timed(lambda: time.sleep(0.01), torch.device("cpu")) >= 0.01


@pytest.mark.parametrize("passes", ["both", None, 1])
def test_only_forms_there_are(passes):
    with pytest.raises(ValueError, match=r"`passes` to be one of \('auto', 'loop', 'vmap'\), but got"):
        PassChoice(passes)


def processes(*others):
    """`gather` of a process beside ``others``, each the list of what it finds, one after the other."""
    found = [iter(other) for other in others]
    return lambda mine: [mine, *(next(other) for other in found)]


@pytest.mark.parametrize(
    ("theirs", "chosen"),
    [
        (pass_choice.Trial(seconds=(3.0, 2.0)), "vmap"),
        (pass_choice.Trial(seconds=(3.0, 9.0)), "loop"),  # a step waits for the slowest
        (pass_choice.Trial("the loss draws random numbers"), "loop"),
        (None, None),
    ],
)
def test_all_processes_choose_the_same(clocked, theirs, chosen):
    clocked(3.0, 1.0)
    setup, choice = Setup(), PassChoice("auto", processes([theirs]))
    setup.evaluate(choice)
    assert choice.chosen == chosen


def test_the_loop_for_all_once_vmap_fails_on_one(clocked):
    clocked(3.0, 1.0)
    failed = ("loop", "vmap can't: no memory")
    setup = Setup()
    choice = PassChoice("auto", processes([pass_choice.Trial(seconds=(3.0, 1.0)), ("vmap", ""), failed]))
    setup.evaluate(choice)
    choice.settle()
    assert choice.chosen == "vmap"
    choice.settle()
    assert (choice.chosen, choice.reason) == failed


def test_nothing_to_settle_where_the_form_was_given():
    PassChoice("vmap", processes([])).settle()
