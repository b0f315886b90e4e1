"""A contender in a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
from functools import partial

import pytest
import torch

from benchmarks.process import FailedError, Process, time_apart

CPU = torch.device("cpu")


def note(folder, name, stack):
    stack.callback(lambda: (folder / f"{name}.left").touch())
    return lambda: _append(folder / name, f"{os.getpid()} {torch.get_num_threads()} {gc.isenabled()}\n")


def _append(path, line):
    with path.open("a") as file:
        file.write(line)


def sleep(duration, stack):
    return lambda: time.sleep(duration)


def fail(calls, stack):
    left = iter(range(calls))

    def call():
        if next(left, None) is None:
            raise ValueError("no more\nof it")

    return call


def leave(stack):
    return lambda: os._exit(7)


def test_each_runs_in_its_own_process_with_the_threads_it_is_given(tmp_path):
    jobs = {name: partial(note, tmp_path, name) for name in "ab"}
    samples = time_apart(jobs, rounds=3, threads=3, device=CPU, warmup=2)
    lines = {name: (tmp_path / name).read_text().splitlines() for name in "ab"}
    assert [len(samples[name].wall) for name in "ab"] == [3, 3]
    assert [len(lines[name]) for name in "ab"] == [6, 6]  # one when it is made
    assert all(line.split()[1:] == ["3", "False"] for name in "ab" for line in lines[name])
    processes = {line.split()[0] for name in "ab" for line in lines[name]}
    assert len(processes) == 2
    assert str(os.getpid()) not in processes
    assert {path.name for path in tmp_path.glob("*.left")} == {"a.left", "b.left"}


def test_the_time_is_that_of_the_call():
    found = time_apart({"base": partial(sleep, 0.02), "long": partial(sleep, 0.2)}, rounds=2, threads=1, device=CPU)
    assert min(found["base"].wall) >= 0.02
    assert min(found["long"].wall) >= 0.2
    assert max(found["long"].cpu) < 0.2


@pytest.mark.parametrize("calls", [0, 1])
def test_what_fails_there_fails_here(calls):
    with pytest.raises(FailedError, match=r"^ValueError: no more$"), Process(partial(fail, calls), 1, CPU) as process:
        process.time()


def test_a_process_that_ends_is_named():
    with pytest.raises(FailedError, match="ended with exit code 7"):
        Process(leave, 1, CPU)


def test_nothing_is_left_running():
    with Process(partial(sleep, 0.0), 1, CPU) as process:
        process.time()
        assert process._process in multiprocessing.active_children()
    assert process._process not in multiprocessing.active_children()
