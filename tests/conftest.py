"""Fixtures of all tests."""

from __future__ import annotations

import os
import signal

import pytest
import torch

# The networks here are tiny: threads cost more than they give. Also for the processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# A shell starts background jobs with Ctrl-C ignored, and children inherit that: tests of interruptions need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded():
    """Every test starts from the same random state and leaves the global one as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
