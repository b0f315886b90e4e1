from __future__ import annotations

import pytest

from tests.processes import start_server


@pytest.fixture(scope="session", autouse=True)
def _one_server() -> None:
    """The benchmarks' processes are forked where those of the other tests are: its imports take seconds."""
    start_server()
