"""The README's Python blocks run as they stand, from the first to the last."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_blocks_run(tmp_path, monkeypatch):
    assert len(BLOCKS) == 3
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "block"}
    for block in BLOCKS:
        exec(compile(block, "README", "exec"), names)
    assert {"gamma", "gamma_std", "fisher/penalty"} <= set(names["trainer"].callback_metrics)


def test_what_is_added_is_short():
    assert len(BLOCKS[1].splitlines()) < 15
