"""Interleaved timing on a clock that the test moves."""

from __future__ import annotations

import gc
import time
from functools import partial

import pytest
import torch

from benchmarks.timing import Ratio, interleave, rows_of, seconds, threads

CLOCK = partial(seconds, device=torch.device("cpu"))


class Clock:
    """Time that only passes where a contender says so; ``load`` slows everybody."""

    def __init__(self, monkeypatch):
        self.now, self.load = 0.0, 1.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(time, "process_time", lambda: self.now / 2)
        monkeypatch.setattr(gc, "collect", lambda: 0)  # a third of a second here, before every call

    def work(self, seconds):
        self.now += seconds * self.load


def test_every_contender_runs_once_a_round_in_changing_order(monkeypatch):
    clock, calls = Clock(monkeypatch), []
    contenders = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    samples = interleave(contenders, clock=CLOCK, rounds=8, warmup=2)
    turns = [tuple(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(turns) == 10
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len(set(turns)) > 2
    assert clock.now == 0
    assert list(samples) == ["a", "b", "c"]
    assert all(len(times.wall) == len(times.cpu) == 8 for times in samples.values())


def test_warmup_is_not_counted_and_a_load_that_changes_between_rounds_cancels(monkeypatch):
    clock, turn = Clock(monkeypatch), [0]

    def base():
        clock.work(1.0 if turn[0] else 100.0)

    def other():
        turn[0] += 1
        clock.load = float(turn[0])
        clock.work(3.0)

    # One order only, so that both calls of a round see one load.
    monkeypatch.setattr("random.Random.sample", lambda self, names, count: ["other", "base"])
    rows = rows_of(interleave({"base": base, "other": other}, clock=CLOCK, rounds=5, warmup=1), "base")
    assert [row["contender"] for row in rows] == ["base", "other"]
    assert rows[0]["ratio"] == 1
    assert rows[1]["ratio"] == rows[1]["ratio_low"] == rows[1]["ratio_high"] == pytest.approx(3)
    assert rows[1]["ratio_cpu"] == pytest.approx(3)
    assert rows[1]["seconds"] == pytest.approx(3 * 4)  # the median load of rounds 2 to 6
    assert rows[1]["rounds"] == 5


def test_ratio_is_the_median_and_quartiles_of_the_ratios_within_rounds():
    ratio = Ratio.of([2.0, 6.0, 40.0, 4.0, 5.0], [1.0, 2.0, 10.0, 4.0, 1.0])
    assert ratio == Ratio(median=3.0, low=2.0, high=4.0)
    assert Ratio.of([3.0], [2.0]) == Ratio(1.5, 1.5, 1.5)


def test_threads_are_put_back_after_an_error():
    before = torch.get_num_threads()
    seen = []

    def stopped():
        with threads(before + 1):
            seen.append(torch.get_num_threads())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
