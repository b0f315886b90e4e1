"""Progress and tables: drawn by rich on a terminal, plain lines in a log, a pipe or a file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

QUIET_SECONDS = 10.0  # without a terminal, a line at most this often
WIDTH = 110  # of sentences
T = TypeVar("T")


def interactive() -> bool:
    """Whether standard output is a terminal that can redraw its lines."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def console() -> Console:
    """Standard output as rich draws on it; numbers keep their color."""
    return Console(file=sys.stdout, highlight=False)


def progress_bar() -> Progress:
    """A bar with a count and the time left, gone when it is done; lines printed meanwhile stay above it.

    It is drawn when it is advanced and refreshed, not by a thread of its own: bars of other libraries may take the line
    in between.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", style="dim"),
        console=console(),
        transient=True,
        auto_refresh=False,
        redirect_stderr=False,
    )


def track(items: Sequence[T], what: str) -> Iterator[T]:
    """Go through items and show how far: a bar, or a line every ten seconds.

    Args:
        items: what to go through.
        what: is being done, "gradients of the training images".
    """
    if interactive():
        with progress_bar() as bar:
            task = bar.add_task(what, total=len(items), note="")
            for item in items:
                yield item
                bar.advance(task)
                bar.refresh()
        return
    started = printed = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - printed > QUIET_SECONDS:
            printed = now
            left = (now - started) / done * (len(items) - done)
            print(f"{what}: {done}/{len(items)}, {left:.0f} s left", flush=True)
        yield item


def print_table(headings: Sequence[str], lines: Sequence[Sequence[str]], title: str = "") -> None:
    """Print a table: ruled on a terminal, aligned by spaces elsewhere.

    Args:
        headings: of the columns; the first column is text, the others are numbers.
        lines: the cells.
        title: a line above.
    """
    if interactive():
        table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
        for i, heading in enumerate(headings):
            table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=True)
        for line in lines:
            table.add_row(*(Text(cell) for cell in line))
        console().print(table)
        return
    widths = [max(cell_len(line[i]) for line in (headings, *lines)) for i in range(len(headings))]
    if title:
        print(title)
    for line in (headings, *lines):
        cells = []
        for i, (cell, width) in enumerate(zip(line, widths, strict=True)):
            space = " " * (width - cell_len(cell))  # not `len`: an accent over a letter takes no column
            cells.append(cell + space if i == 0 else space + cell)
        print("  " + "  ".join(cells).rstrip())
    sys.stdout.flush()


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one a line, aligned; the values stand out on a terminal."""
    if interactive():
        table = Table.grid(padding=(0, 3))
        for name, value in pairs:
            table.add_row(Text(f"  {name}", style="dim"), Text(value, style="bold"))
        console().print(table)
        return
    for name, value in pairs:
        print(f"  {name:<28}{value}")
    sys.stdout.flush()


def shown(path: Path) -> Path:
    """Shorten a path to one relative to here where it is below."""
    try:
        return path.resolve().relative_to(Path.cwd())
    except ValueError:
        return path


def print_report(text: str, files: Sequence[Path]) -> None:
    """Print a report, and where its files are.

    Args:
        text: of the report, as a terminal shows it.
        files: its Markdown file and its figures.
    """
    print("\n" + text)
    for path in files:
        print(f"report  {shown(path)}")
    sys.stdout.flush()
