"""The folder of a run: whose it is, who may write in it, and its removal when the run never began."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning_fisher.exceptions import ConfigError

LOCK = ".lock"
CHECKPOINTS = "checkpoints"  # the folder of them
FIGURE = "training.png"  # of a run
CARD = "card.md"  # of a scored network
REPORT = "report.md"  # of a sweep
SWEEP_CONFIG = "multirun.yaml"  # Hydra's, in the folder of a sweep
HEADER = "# config hash: "  # how the config of a run begins
DATA = "# data: "  # its second line where the data are the user's own: their fingerprint


def discard(folder: Path) -> None:
    """Remove a folder in which nothing was written, and its parents that this leaves empty.

    Hydra makes the folder before the config can be checked, so a refused command would leave it behind.
    A sweep's ``multirun.yaml`` alone counts as nothing.
    """
    if not folder.is_dir():
        return
    with suppress(OSError):  # what may not be removed stays
        if [entry.name for entry in folder.iterdir()] == [SWEEP_CONFIG]:
            (folder / SWEEP_CONFIG).unlink()
        for path in (folder.resolve(), *folder.resolve().parents):
            if path == Path.cwd() or any(path.iterdir()):
                return
            path.rmdir()


def sweep_config(folder: Path) -> bytes | None:
    """What Hydra wrote about the sweep that was in a folder before, which it overwrites; None if there was none."""
    with suppress(OSError):
        return (folder / SWEEP_CONFIG).read_bytes()
    return None


def restore_sweep_config(folder: Path, before: bytes | None) -> None:
    """Put back what `sweep_config` found: the sweep is refused."""
    if before is not None:
        with suppress(OSError):
            (folder / SWEEP_CONFIG).write_bytes(before)


def clear(folder: Path) -> None:
    """Empty a run folder, to train again from scratch; the lock stays."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name not in (LOCK, "run.log"):
            entry.unlink()


def remove_leftovers(folder: Path) -> None:
    """Remove the half-written files of a process that was killed."""
    for path in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):
        path.unlink(missing_ok=True)


def header(config_hash: str, data_fingerprint: str | None) -> str:
    """The lines that the config of a run begins with.

    Args:
        config_hash: of the run.
        data_fingerprint: of the content of the user's own data; None of others.
    """
    return f"{HEADER}{config_hash}\n" + (f"{DATA}{data_fingerprint}\n" if data_fingerprint is not None else "")


def data_of(folder: Path) -> str | None:
    """The fingerprint of the data that a run was trained with; None where it is not known."""
    with suppress(OSError), open(folder / "config.yaml", encoding="utf-8", errors="replace") as file:
        lines = [file.readline().rstrip() for _ in range(2)]
        return lines[1].removeprefix(DATA) if lines[1].startswith(DATA) else None
    return None


def _header(folder: Path) -> str:
    """The first line of the config in a folder; empty if there is none."""
    with suppress(OSError), open(folder / "config.yaml", encoding="utf-8", errors="replace") as file:
        return file.readline().rstrip()
    return ""


def check_own(folder: Path) -> None:
    """Refuse a folder that holds something else than a run: files would get lost in it, or be lost to a restart.

    Raises:
        ConfigError: naming the folder.
    """
    if _header(folder).startswith(HEADER) or (folder / "result.json").is_file():
        return
    own = (LOCK, "run.log", "error*.log", "*.tmp")  # of a run that ended before its config was written
    foreign = [path.name for path in sorted(folder.iterdir()) if not any(path.match(name) for name in own)]
    if foreign:
        raise ConfigError(
            f"Expected option `hydra.run.dir` to be an empty folder or one of a run, but got `{folder}`, which holds "
            f"other files (`{foreign[0]}`)."
        )


def check_same(folder: Path, *hashes: str) -> None:
    """Refuse a folder that holds a run of another configuration, one of none of the hashes.

    Raises:
        ConfigError: naming the folder.
    """
    first = _header(folder)
    if first.startswith(HEADER) and not first.endswith(hashes):
        raise ConfigError(
            f"Expected option `hydra.run.dir` to be an empty folder or one of this same run, but got `{folder}`, "
            "which holds a run of another configuration: choose another folder, or restart=true replaces it."
        )


def of_hash(parent: Path, config_hash: str, name: str) -> str:
    """The name of the folder of a run: the one it has, if the run was begun under another name.

    Args:
        parent: the folder that its own stands in.
        config_hash: of the run; folder names end with it.
        name: of a run that was not begun.
    """
    if not (parent / name).is_dir() and parent.is_dir():
        for folder in sorted(parent.glob(f"*-{config_hash}")):
            if _header(folder) == HEADER + config_hash:
                return folder.name
    return name


@contextmanager
def unlocked() -> Iterator[None]:
    """Do nothing: for the processes that do not write."""
    yield


@contextmanager
def lock(folder: Path, patience: float = 5.0) -> Iterator[None]:
    """Hold a run folder for this process, so that two of the same command do not write into each other's files.

    Args:
        folder: the run folder.
        patience: seconds to wait for another process, which may be about to end; infinite: as long as it takes.

    Raises:
        ConfigError: if another process holds the folder.
    """
    from filelock import FileLock, Timeout

    held = FileLock(folder / LOCK)
    try:
        if math.isinf(patience):
            with suppress(Timeout):
                held.acquire(timeout=0)
            if not held.is_locked:
                print(f"Another process is training in {folder}: waiting for it.", flush=True)
                held.acquire(poll_interval=0.5)
        else:
            held.acquire(timeout=patience, poll_interval=0.2)
    except Timeout:
        raise ConfigError(f"Another process is training in {folder}: wait for it, or end it.") from None
    try:
        yield
    finally:
        with suppress(OSError):  # before it is let go, so that a process which waits for it does not get a file gone
            (folder / LOCK).unlink()
        held.release()
