"""Two nodes: network namespaces of this machine, `torchrun` in each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("two_nodes.sh")


def may_make_namespaces() -> bool:
    name = f"lf{os.getpid()}"
    try:
        made = not subprocess.run(["ip", "netns", "add", name], capture_output=True, timeout=10).returncode
        subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=10)
    except OSError:
        return False
    return made


@pytest.mark.slow
def test_two_nodes_equal_one(tmp_path: Path) -> None:
    """Whole, one node killed and continued, and against two processes on one node: the same weights, bit for bit."""
    if not may_make_namespaces():
        pytest.skip("may not make network namespaces")
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path)],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("bit for bit") == 2
