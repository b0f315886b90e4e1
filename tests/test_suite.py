"""`pytest` alone runs on all cores; chosen tests, GPU tests and a debugger run in one process."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import MOST_WORKERS, pytest_cmdline_main
from tests.processes import free_port

ARGS, TESTPATHS = pytest.Config.ArgsSource.ARGS, pytest.Config.ArgsSource.TESTPATHS
DEFAULT = "not slow and not gpu"


def workers(cores: int, monkeypatch: pytest.MonkeyPatch, **given: Any) -> int | None:
    """How many processes are asked for."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores), raising=False)
    known = {"numprocesses": None, "dist": "no", "tx": [], "usepdb": False, "collectonly": False, "markexpr": DEFAULT}
    options = SimpleNamespace(**known | {key: value for key, value in given.items() if key in known})
    plugins = SimpleNamespace(hasplugin=lambda name: given.get("installed", True))
    config = SimpleNamespace(option=options, pluginmanager=plugins, args_source=given.get("source", TESTPATHS))
    if given.get("worker"):
        config.workerinput = {}
    pytest_cmdline_main(config)
    if options.numprocesses is not None and "numprocesses" not in given:
        assert options.dist == "worksteal"
    return options.numprocesses


def test_as_many_as_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert workers(2, monkeypatch) == 2
    assert workers(2, monkeypatch, markexpr="slow") == 2
    assert workers(64, monkeypatch) == MOST_WORKERS


@pytest.mark.parametrize(
    "given",
    [
        {"cores": 1},
        {"source": ARGS},
        {"markexpr": "gpu"},
        {"usepdb": True},
        {"collectonly": True},
        {"installed": False},
        {"worker": True},
        {"dist": "loadfile"},
    ],
    ids=lambda given: next(iter(given)),
)
def test_one_process(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert workers(**{"cores": 2, "monkeypatch": monkeypatch} | given) is None


def test_what_is_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert workers(2, monkeypatch, numprocesses=0) == 0
    assert workers(2, monkeypatch, numprocesses=5) == 5


def test_ports_are_handed_out_once() -> None:
    """And never one that the kernel gives to outgoing connections."""
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50
    assert all(20_000 <= port < 32_000 for port in ports)
