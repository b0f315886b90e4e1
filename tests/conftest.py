"""What all tests share: one thread a process, a fixed random state, and as many processes as there are cores."""

from __future__ import annotations

import gc
import os
import signal

# The networks here are tiny: threads cost more than they give, and the processes would take them from each other. Set
# before torch is imported, also for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

torch.set_num_threads(1)
# A shell starts background jobs with Ctrl-C ignored, and children inherit that: tests of interruptions need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

MOST_WORKERS = 8  # each holds torch and the packages that are compared with: about 1 GB


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """`pytest` alone runs the tests on all cores, if pytest-xdist is installed.

    Chosen files and tests run in this process, where a worker would take longer to start than they do. So do the tests
    of a GPU, which they would share. `-n`, `--dist` and `-p no:xdist` come first.
    """
    options = config.option
    if not config.pluginmanager.hasplugin("xdist") or hasattr(config, "workerinput"):
        return
    if options.numprocesses is not None or options.dist != "no" or options.tx or options.usepdb or options.collectonly:
        return
    gpu = "gpu" in options.markexpr and "not gpu" not in options.markexpr
    if gpu or config.args_source is pytest.Config.ArgsSource.ARGS:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores > 1:
        options.numprocesses = min(cores, MOST_WORKERS)
        options.dist = "worksteal"  # neighbors share what a module or a folder prepares, so they stay together


def pytest_collection_finish() -> None:
    """Spare the garbage collector the millions of objects that are there until the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    """Every test starts from the same random state and leaves the global one as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
