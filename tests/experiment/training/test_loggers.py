"""Weights & Biases never costs a training: offline where there is no server, or where it refuses the run."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.training import loggers


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> HTTPServer:
    """One that answers everything with 404."""

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *args: object) -> None:
            pass

    found = HTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{found.server_port}")
    yield found
    found.shutdown()


@pytest.mark.parametrize(
    ("mode", "variable", "key", "expected"),
    [
        ("auto", None, False, "offline"),
        ("auto", None, True, "online"),
        ("auto", "offline", True, "offline"),
        ("auto", "dryrun", True, "offline"),
        ("auto", "disabled", True, "disabled"),
        ("auto", "online", False, "online"),
        ("offline", "online", True, "offline"),
        ("online", None, False, "online"),
    ],
)
def test_modes(
    mode: str, variable: str | None, key: bool, expected: str, server: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert loggers.wandb_mode(mode) == expected


def test_no_server(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert loggers.wandb_mode("online") == "offline"
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "does not answer; logging offline" in out


def test_a_mode_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offlin")
    with pytest.raises(ConfigError, match="`WANDB_MODE` to be auto, online, offline or disabled, but got `offlin`"):
        loggers.wandb_mode("auto")


def test_a_server_that_refuses_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = pytest.importorskip("wandb")
    calls = []

    def init(**options: object) -> object:
        calls.append(options)
        if options.get("mode") != "offline":
            raise wandb.errors.CommError("no such run")
        return object()

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(loggers, "answers", lambda server: True)
    logger = loggers.wandb_logger(save_dir=tmp_path, study=None, run_id="abc", name="run", mode="online")
    first = logger.experiment
    assert logger.experiment is first
    assert [(call["id"], call.get("mode")) for call in calls] == [("abc", None), (None, "offline")]
    assert "no such run; logging offline" in capsys.readouterr().out


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    assert loggers.has_wandb_key() is False
