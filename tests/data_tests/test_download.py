"""Archives are fetched once, continued where they stopped, and never taken with a wrong checksum."""

from __future__ import annotations

import hashlib
import random
import threading
from pathlib import Path

import pytest

from lightning_fisher.data.sources.download import fetch_archive, one_at_a_time
from tests.data_tests.served import Served, serving

CONTENT = random.Random(0).randbytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


def fetch(served: Served, path: Path) -> None:
    fetch_archive(served.url, path, MD5)
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_whole_archive(tmp_path: Path) -> None:
    with serving(Served(CONTENT)) as served:
        fetch(served, tmp_path / "a.tar.gz")
        fetch(served, tmp_path / "a.tar.gz")
    assert served.requests == [None]  # the second time it was there


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.gz.part"], ids=["of another program", "of this one"])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_half_written_archive_is_continued_or_replaced(tmp_path: Path, name: str, ranges: bool) -> None:
    (tmp_path / name).write_bytes(CONTENT[:100_000])
    with serving(Served(CONTENT, ranges)) as served:
        fetch(served, tmp_path / "a.tar.gz")
    assert served.requests == ["bytes=100000-"]


@pytest.mark.parametrize("there", [b"x" * 1000, b"x" * 300_000, b"x" * 400_000], ids=["short", "as long", "longer"])
def test_other_content_is_replaced(tmp_path: Path, there: bytes) -> None:
    (tmp_path / "a.tar.gz").write_bytes(there)
    with serving(Served(CONTENT)) as served:
        fetch(served, tmp_path / "a.tar.gz")
    assert served.requests == [f"bytes={len(there)}-", None]


def test_a_connection_that_breaks_loses_nothing(tmp_path: Path) -> None:
    with serving(Served(CONTENT, break_after=120_000)) as served:
        with pytest.raises(OSError, match="broke after 120,000 of 300,000 bytes, and the same command continues"):
            fetch(served, tmp_path / "a.tar.gz")
        assert not (tmp_path / "a.tar.gz").exists()
        fetch(served, tmp_path / "a.tar.gz")
    assert served.requests == [None, "bytes=120000-"]


def test_a_wrong_checksum_is_never_taken(tmp_path: Path) -> None:
    with serving(Served(CONTENT[:-1] + b"x")) as served, pytest.raises(OSError, match=f"MD5 checksum {MD5}"):
        fetch(served, tmp_path / "a.tar.gz")
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_server_and_the_network_are_one_line(tmp_path: Path) -> None:
    with serving(Served(b"")) as served:  # nothing to send: 416
        url = served.url
        with pytest.raises(OSError, match=r"^the server answered 416 "):
            fetch(served, tmp_path / "a.tar.gz")
    with pytest.raises(OSError, match="Connection refused") as error:
        fetch_archive(url, tmp_path / "a.tar.gz", MD5)
    assert "\n" not in str(error.value)


def test_the_second_one_waits_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = []

    def second() -> None:
        with one_at_a_time(tmp_path / ".lock", "fetches X"):
            order.append("second")

    with one_at_a_time(tmp_path / ".lock", "fetches X"):
        other = threading.Thread(target=second)
        other.start()
        other.join(timeout=0.3)
        assert other.is_alive()
        order.append("first")
    other.join(timeout=10)
    assert order == ["first", "second"]
    assert capsys.readouterr().out == "Another process fetches X: waiting for it.\n"
