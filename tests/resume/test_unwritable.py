"""A full disk, a read-only folder: one line, exit code 1, the previous checkpoint whole, and later the same numbers."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lightning_fisher.callbacks import AtomicCheckpointIO
from tests.processes import start
from tests.resume.killing import Call
from tests.resume.runs import OPTIONS, assert_same, begin, complete, state

SAVE = "lightning_fisher.callbacks.atomic_checkpoint:AtomicCheckpointIO.save_checkpoint"
WRITE_ROW = "lightning_fisher.experiment.training.train:write_row"
FULL, DENIED, READ_ONLY = "No space left on device", "Permission denied", "Read-only file system"
FILLER = "filler"


def dev_full(folder: Path) -> None:
    """From now on the kernel answers every write of these files as on a full disk."""
    for name in (
        "checkpoints/.last.ckpt.tmp",
        "checkpoints/.best.ckpt.tmp",
        f".history.csv.{os.getpid()}.tmp",
        f".result.json.{os.getpid()}.tmp",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to("/dev/full")


def fill(folder: Path) -> None:
    """Fill the file system."""
    with open(folder / FILLER, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 512)


def read_only(folder: Path) -> None:
    """Nobody may write into the folder, this process included where it is root's."""
    for path in (folder / "checkpoints", folder):
        path.chmod(0o555)
    if os.geteuid() == 0:
        drop_dac_override()


def drop_dac_override() -> None:
    """Give up root's right to write where permissions say no (the capability CAP_DAC_OVERRIDE)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; the low words come first
    assert libc.capget(header, sets) == 0
    for i in range(3):
        sets[i] &= ~(1 << 1)
    assert libc.capset(header, sets) == 0


def fails(folder: Path, point: Call, *words: str) -> None:
    """Exit code 1 and exactly one line of error, which holds the words."""
    child = begin(folder, point)
    assert child.wait() == 1, child.output
    lines = [line for line in child.output.splitlines() if "error" in line.lower().replace(" error ", "")]
    assert len(lines) == 1, child.output
    assert lines[0].startswith("Error: Cannot write")
    for word in words:
        assert word in lines[0], lines[0]
    assert "Traceback" not in child.output
    assert not (folder / "result.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("point", "file", "epoch"),
    [
        (Call(SAVE, 3, only="last.ckpt", action=dev_full), "last.ckpt", 1),
        pytest.param(Call(SAVE, 1, only="last.ckpt", action=dev_full), "last.ckpt", None, marks=pytest.mark.slow),
        pytest.param(
            Call("lightning_fisher.experiment.training.history:write_atomically", 3, action=dev_full),
            "history.csv",
            1,
            marks=pytest.mark.slow,
        ),
        pytest.param(Call(WRITE_ROW, 1, action=dev_full), "result.json", 3, marks=pytest.mark.slow),
    ],
    ids=["checkpoint", "first checkpoint", "curve", "row"],
)
def test_full_disk(point: Call, file: str, epoch: int | None, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fails(run, point, FULL, str(run), file)
    if epoch is not None:
        assert state(run)["epoch"] == epoch
    for left in run.rglob(".*.tmp"):
        assert left.is_symlink(), "half a file is left"
        left.unlink()
    complete(run)
    assert_same(run, whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that holds a run and little more."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


EVERYWHERE = pytest.mark.parametrize(
    "point",
    [
        (SAVE, 3, "last.ckpt"),
        ("lightning_fisher.experiment.training.history:write_atomically", 3, ""),
        (WRITE_ROW, 1, ""),
    ],
    ids=["checkpoint", "curve", "row"],
)


@pytest.mark.slow
@EVERYWHERE
def test_full_file_system(point: tuple[str, int, str], whole: Path, small_disk: Path) -> None:
    """Nothing can be written anywhere: no checkpoint, no curve, no log of the error, no traceback."""
    run = small_disk / "run"
    target, n, only = point
    fails(run, Call(target, n, only=only, action=fill), FULL)
    for name in ("last.ckpt", "previous.ckpt", "best.ckpt"):
        state(run, name)  # can be read
    assert not list(run.rglob(".*.tmp")), "half a file is left"
    (run / FILLER).unlink()
    complete(run)
    assert_same(run, whole)


@pytest.mark.slow
@EVERYWHERE
def test_folder_that_becomes_read_only(point: tuple[str, int, str], whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    target, n, only = point
    fails(run, Call(target, n, only=only, action=read_only), DENIED)
    for name in ("last.ckpt", "previous.ckpt", "best.ckpt"):
        state(run, name)
    for path in (run, run / "checkpoints"):
        path.chmod(0o755)
    complete(run)
    assert_same(run, whole)


@pytest.mark.slow
def test_read_only_from_the_start(small_disk: Path) -> None:
    """The folder is there, but the run cannot begin in it."""
    run = small_disk / "run"
    run.mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    log = small_disk.parent / "run.log"
    child = start("tests.resume.runs:command", [*OPTIONS, f"hydra.run.dir={run}"], run, None, False, log=log)
    assert child.wait() == 1, child.output
    (line,) = [line for line in child.output.splitlines() if "rror" in line]
    assert line.startswith("Error: Cannot write")
    assert READ_ONLY in line
    assert "Traceback" not in child.output


class TestAtomicCheckpointIO:
    """For anybody's Trainer."""

    def save(self, path: Path, value: float) -> None:
        AtomicCheckpointIO().save_checkpoint({"weights": torch.full((300_000,), value)}, path)

    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "a.ckpt"
        self.save(path, 1.0)
        assert torch.load(path, weights_only=True)["weights"][0] == 1
        assert [p.name for p in path.parent.iterdir()] == ["a.ckpt"]

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_full_disk_is_named_and_the_old_file_stays(self, tmp_path: Path) -> None:
        """torch's writer answers a full disk with a RuntimeError about positions in the file."""
        path = tmp_path / "a.ckpt"
        self.save(path, 1.0)
        (tmp_path / ".a.ckpt.tmp").symlink_to("/dev/full")
        with pytest.raises(OSError, match=FULL) as caught:
            self.save(path, 2.0)
        assert caught.value.filename == str(path)
        assert torch.load(path, weights_only=True)["weights"][0] == 1
        assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]

    def test_what_cannot_be_pickled_leaves_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.ckpt"
        self.save(path, 1.0)
        with pytest.raises(Exception, match=r"(?i)pickle|lambda"):
            AtomicCheckpointIO().save_checkpoint({"f": lambda: 0}, path)
        assert torch.load(path, weights_only=True)["weights"][0] == 1
        assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]

    def test_remote_paths_are_lightnings(self) -> None:
        import fsspec

        AtomicCheckpointIO().save_checkpoint({"a": 1}, "memory://checkpoints/a.ckpt")
        assert fsspec.filesystem("memory").exists("/checkpoints/a.ckpt")
