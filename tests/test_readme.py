"""The README's code runs as it stands: its Python blocks, and its diff as it is before and after."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = runpy.run_path(str(ROOT / ".ci" / "installed.py"))["blocks"]
MEASURED = {"gamma", "gamma_std", "fisher/penalty", "fisher/grad_norm_var"}


@pytest.mark.parametrize(("without", "measured"), [("-", MEASURED), ("+", set())])
def test_blocks_run(without: str, measured: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = BLOCKS(TEXT, without)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "block"}
    for block in blocks:
        exec(compile(block, "README", "exec"), names)
    found = {key for key in names["trainer"].callback_metrics if "gamma" in key or "fisher" in key}
    assert measured <= found
    assert bool(found) == bool(measured)


def test_until_it_switches_on_training_is_bit_for_bit_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's own module and Trainer for the five epochs before the learning rate drops."""
    monkeypatch.chdir(tmp_path)
    weights = []
    for without in "-+":
        torch.manual_seed(0)
        blocks = BLOCKS(TEXT, without)[:2]
        names: dict[str, object] = {"__name__": "block"}
        for block in blocks:
            exec(compile(block.replace("max_epochs=10", "max_epochs=5"), "README", "exec"), names)
        weights.append(names["model"].state_dict())
    assert names["trainer"].global_step == 20
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key


def test_what_is_added_is_five_lines() -> None:
    (diff,) = re.findall(r"```diff\n(.*?)```", TEXT, re.DOTALL)
    signs = [line[:2] for line in diff.splitlines()]
    assert signs.count("+ ") == 5
    assert signs.count("- ") == 1


def test_every_link_of_the_readme_leads_somewhere() -> None:
    """Those to files of the repository; the badge of CI is a page of the host."""
    links = re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", TEXT)
    assert len(links) > 20
    missing = [link for link in links if "://" not in link and "/actions/" not in link and not (ROOT / link).exists()]
    assert not missing
