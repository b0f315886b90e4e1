"""Peak memory counts what is freed again before the end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import memory
from benchmarks.memory_jobs import measure, run
from benchmarks.networks import QUICK

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not Path("/proc/self/clear_refs").exists(),
    reason="the record of the resident size can only be reset on Linux",
)


@pytest.mark.parametrize("mib", [16, 64])
def test_extra_memory_is_the_peak_of_the_call_alone(mib):
    def call(size):
        return torch.ones(size * 2**18).sum().item()  # float32: freed on return

    call(256)  # an earlier, higher peak doesn't count
    assert mib - 4 <= memory.extra_mib(lambda: call(mib), CPU) <= mib + 12


def test_a_job_runs_in_a_process_of_its_own():
    said: list[str] = []
    rows = measure(
        "resnet20",
        networks=QUICK,
        samples=8,
        batch_size=8,
        sub_batches=2,
        large=[],
        names=frozenset({"Lightning Fisher"}),
        device=CPU,
        say=said.append,
    )
    assert [(row["kind"], row["contender"], row["samples"]) for row in rows] == [("gram", "Lightning Fisher", 8)]
    assert 0 <= rows[0]["extra_mib"] < 200
    assert said == []


def test_a_failure_is_named(monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Traceback >&2\necho \"KeyError: 'nobody'\" >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    job = {"kind": "gram", "contender": "nobody", "network": "resnet20", "quick": True, "samples": 4, "device": "cpu"}
    said: list[str] = []
    assert memory.in_own_process(job, said.append) is None
    assert said == ["left out: nobody: KeyError: 'nobody'"]
    with pytest.raises(KeyError, match="nobody"):
        run(job)


@pytest.mark.parametrize("kind", ["gram", "chunks", "step"])
def test_every_kind_of_job_runs(kind):
    names = {"gram": "single-sample loop", "chunks": "Lightning Fisher", "step": "plain step, Lightning"}
    job = {"kind": kind, "contender": names[kind], "network": "resnet20", "quick": True, "device": "cpu"}
    assert 0 <= run(job | {"samples": 16, "chunk_size": 8, "M": 2}) < 200
