"""The changelog says where modules are that moved."""

from __future__ import annotations

import importlib.util
import re

from tests.docs.pages import ROOT

TABLE = re.findall(r"^\| (`.*`.*) \| (`.*`.*) \|$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)


def modules(cell: str) -> list[str]:
    """`a.b`, `.c` are a.b and a.c."""
    found: list[str] = []
    for name in re.findall(r"`([\w.]+?)(?:\.\*)?`", cell):
        found.append(f"{found[-1].rpartition('.')[0]}{name}" if name.startswith(".") else name)
    return found


def exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(f"lightning_fisher.{module}") is not None
    except ModuleNotFoundError:  # of its parent
        return False


def test_what_is_named_is_there() -> None:
    new = [module for _, cell in TABLE for module in modules(cell)]
    assert len(new) >= 40
    assert [module for module in new if not exists(module)] == []


def test_what_moved_is_gone() -> None:
    """Or a package of that name, which modules moved into."""
    for cell, _ in TABLE:
        for module in modules(cell):
            if exists(module):
                spec = importlib.util.find_spec(f"lightning_fisher.{module}")
                assert spec is not None
                assert spec.submodule_search_locations, module
