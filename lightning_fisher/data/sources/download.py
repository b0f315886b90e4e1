"""Fetch an archive: resumed where it stopped, checked by its checksum, by one process at a time."""

from __future__ import annotations

import http.client
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

TIMEOUT_SECONDS = 30.0
"""How long a server may stay silent."""
_BLOCK = 2**16


@contextmanager
def folder_for(folder: Path, lock: Path) -> Iterator[None]:
    """Make a folder to fetch to; it goes again, with folders above that were made, if nothing arrives.

    Args:
        folder: where files are to go.
        lock: a file in it that is no reason to keep it.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if made and set(folder.iterdir()) <= {lock}:
            lock.unlink(missing_ok=True)
            with suppress(OSError):
                for one in made:
                    one.rmdir()
        raise


def fetch_archive(url: str, path: Path, md5: str, announcement: str | None = None) -> None:
    """Bring an archive to disk; nothing is done if it is there with the right checksum.

    What has arrived stands in `path` with `.part` appended until the checksum is right. A half-written file, this one's
    or one of another program at `path`, is continued; if the result is wrong, it is fetched again from the start.

    Args:
        url: of the archive, `http` or `https`.
        path: where it goes.
        md5: its published MD5 checksum, in hexadecimal.
        announcement: the line to print once the server answers.

    Raises:
        OSError: if it cannot be fetched or written, or has another checksum. What has arrived stays.
    """
    from torchvision.datasets.utils import check_integrity

    if check_integrity(str(path), md5):
        return
    part = path.with_name(f"{path.name}.part")
    if path.exists():
        os.replace(path, part)
    resumed = part.exists() and part.stat().st_size > 0
    _download(url, part, announcement)
    if resumed and not check_integrity(str(part), md5):
        part.unlink()
        _download(url, part)
    if not check_integrity(str(part), md5):
        part.unlink()
        raise OSError(f"the file that was sent has not the published MD5 checksum {md5}")
    os.replace(part, path)


def _download(url: str, part: Path, announcement: str | None = None) -> None:
    """Append to a file what is missing of it, or write it anew where the server sends the whole."""
    there = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "lightning-fisher"} | ({"Range": f"bytes={there}-"} if there else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS) as response:
            if announcement is not None:
                print(announcement, flush=True)
            if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                there = 0
            length = response.headers.get("Content-Length")
            total = there + int(length) if length is not None else None
            bar = tqdm(total=total, initial=there, unit="B", unit_scale=True, disable=not sys.stderr.isatty())
            with open(part, "ab" if there else "wb") as file, bar:
                while block := response.read(_BLOCK):
                    file.write(block)
                    bar.update(len(block))
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and there:
            return  # nothing is missing, or too much is there: the checksum decides
        raise OSError(f"the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise OSError(f"{error.reason}") from error
    except http.client.HTTPException as error:
        raise OSError(f"the connection broke: {error!r}") from error
    arrived = part.stat().st_size
    if total is not None and arrived < total:
        raise OSError(f"the connection broke after {arrived:,} of {total:,} bytes, and the same command continues")


@contextmanager
def one_at_a_time(lock: Path, doing: str) -> Iterator[None]:
    """Let one process of this machine in, the others wait and say so.

    Args:
        lock: the file that marks it; it stays there.
        doing: what the first one does, for the line that the others print: "fetches CIFAR-10 to 'data'".
    """
    guard = FileLock(lock)
    try:
        guard.acquire(timeout=0)
    except Timeout:
        print(f"Another process {doing}: waiting for it.", flush=True)
        guard.acquire()
    try:
        yield
    finally:
        guard.release()
