"""Progress and tables: plain lines without a terminal, drawn on one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from lightning_fisher.experiment.display import terminal
from lightning_fisher.experiment.training.history import History
from lightning_fisher.experiment.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextmanager
def on_terminal(kind: str = "xterm-256color") -> Iterator[Terminal]:
    """Standard output is a terminal of 100 columns."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(Terminal()) as screen:
        patch.setenv("TERM", kind)
        patch.setenv("COLUMNS", "100")
        yield screen


def test_track_is_silent_about_what_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(terminal.track(range(5), "work")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().out == ""


def test_track_tells_how_far_what_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    for _ in terminal.track(range(10), "work"):
        now[0] += 4.0
    # A line when ten seconds have passed: at 12, 24 and 36 of 40 seconds.
    lines = ["work: 3/10, 28 s left", "work: 6/10, 16 s left", "work: 9/10, 4 s left"]
    assert capsys.readouterr().out.splitlines() == lines


def test_track_draws_a_bar_on_a_terminal() -> None:
    with on_terminal() as screen:
        assert list(terminal.track(range(3), "work")) == [0, 1, 2]
    assert "work" in screen.getvalue()
    assert "2/3" in screen.getvalue()


def test_a_dumb_terminal_gets_lines() -> None:
    with on_terminal("dumb") as screen:
        terminal.print_pairs([("name", "value")])
    assert screen.getvalue() == f"  {'name':<28}value\n"


def test_plain_tables_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_table(["what", "how much"], [["γ̂ (nats)", "1"], ["robustness", "123"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["  what        how much", "  γ̂ (nats)           1", "  robustness       123"]


def test_tables_on_a_terminal_have_a_rule() -> None:
    with on_terminal() as screen:
        terminal.print_table(["what", "how much"], [["[not markup]", "1"]], title="Title")
    assert "─" in screen.getvalue()
    assert "[not markup]" in screen.getvalue()


class FakeTrainer:
    is_global_zero = True
    max_epochs = 2
    num_training_batches = 3
    current_epoch = 0


def play(progress: Progress, interrupt: bool = False) -> None:
    trainer: Any = FakeTrainer()
    progress.on_train_start(trainer, None)  # type: ignore[arg-type]
    for epoch in range(2):
        trainer.current_epoch = epoch
        for batch in range(3):
            progress.on_train_batch_end(trainer, None, {"loss": 0.5}, None, batch)  # type: ignore[arg-type]
        if interrupt:
            progress.on_exception(trainer, None, KeyboardInterrupt())  # type: ignore[arg-type]
            return
        progress.history.records.append({"epoch": epoch, "lr": 0.1, "regularized": epoch, "val_error": 2.0})
        progress.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    progress.on_train_end(trainer, None)  # type: ignore[arg-type]


HIDDEN, SHOWN = "\033[?25l", "\033[?25h"  # the cursor


def test_training_on_a_terminal_has_lines_and_a_bar(tmp_path: Path) -> None:
    with on_terminal() as screen:
        play(Progress(History(tmp_path)))
    text = screen.getvalue()
    assert "epoch   1/2" in text
    assert "regularized" in text
    assert "1/6" in text  # batches of the whole training
    assert text.rfind(SHOWN) > text.rfind(HIDDEN)


def test_an_interruption_gives_the_cursor_back(tmp_path: Path) -> None:
    with on_terminal() as screen:
        play(Progress(History(tmp_path)), interrupt=True)
    assert screen.getvalue().rfind(SHOWN) > screen.getvalue().rfind(HIDDEN) > -1


def test_training_in_a_log_has_lines_only(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    play(Progress(History(tmp_path)))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["epoch", "epoch"]
    assert all("\033" not in line for line in lines)


def test_the_bar_can_be_left_out(tmp_path: Path) -> None:
    with on_terminal() as screen:
        play(Progress(History(tmp_path), bar=False))
    assert HIDDEN not in screen.getvalue()
