"""A rank that raises or is killed: every other rank ends too, with an error, in seconds."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.processes import run_ranks

SECONDS = 60  # they need one; gloo itself would wait for half an hour
PLAIN, REGULARIZED = 3, 6  # the batch: of the first epoch, of the second


@pytest.mark.parametrize(
    ("world", "who", "how", "at"),
    [
        (2, 1, "raises", PLAIN),
        (2, 1, "killed", REGULARIZED),
        (2, 0, "raises", REGULARIZED),
        (2, 0, "killed", PLAIN),
        (4, 3, "raises", REGULARIZED),
        (4, 2, "killed", PLAIN),
        (4, 0, "killed", REGULARIZED),
    ],
)
def test_the_others_end_too(world: int, who: int, how: str, at: int, tmp_path: Path) -> None:
    ranks = run_ranks(
        "tests.distributed.failures:fail", world, tmp_path, world, tmp_path, who, how, at, timeout=SECONDS
    )
    codes = [rank.code for rank in ranks]
    outputs = [rank.output for rank in ranks]
    assert codes[who] == (-signal.SIGKILL if how == "killed" else 1), outputs[who]
    assert [code for rank, code in enumerate(codes) if rank != who] == [1] * (world - 1), outputs
    for rank, output in enumerate(outputs):
        if rank != who:
            assert "peer" in output  # "Connection closed by peer", in gloo's words
            assert "training_step is its own again: True" in output
