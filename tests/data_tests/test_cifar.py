"""CIFAR from torchvision's layout on disk, with small files in its format."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from torchvision import datasets

from lightning_fisher.data import load_cifar10, load_cifar100
from lightning_fisher.datamodule import ImageDataModule
from tests.data_tests.served import Served, serving

RNG = np.random.default_rng(0)


def write(path, labels_key: str, labels: list[int]) -> np.ndarray:
    data = RNG.integers(256, size=(len(labels), 3072), dtype=np.uint8)
    path.write_bytes(pickle.dumps({"data": data, labels_key: labels}))
    return data.reshape(-1, 3, 32, 32)


@pytest.fixture
def unchecked(monkeypatch):
    """The files here are not the published ones: skip their checksums."""
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *args: True)


def test_cifar10(tmp_path, unchecked):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    train = [write(folder / f"data_batch_{i}", "labels", [i, 9, 0]) for i in range(1, 6)]
    test = write(folder / "test_batch", "labels", [3, 4])
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    splits = load_cifar10(data_dir=str(tmp_path))
    assert np.array_equal(splits.train.images.numpy(), np.concatenate(train))
    assert splits.train.labels.tolist() == [label for i in range(1, 6) for label in (i, 9, 0)]
    assert np.array_equal(splits.test.images.numpy(), test)
    assert splits.test.labels.tolist() == [3, 4]
    with pytest.raises(ValueError, match=r"`train_labels` to be from 0 to 4"):
        load_cifar10(data_dir=str(tmp_path), num_classes=5)


def test_cifar100(tmp_path, unchecked):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    train = write(folder / "train", "fine_labels", [99, 0, 50])
    write(folder / "test", "fine_labels", [7])
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}))
    splits = load_cifar100(data_dir=str(tmp_path))
    assert np.array_equal(splits.train.images.numpy(), train)
    assert splits.train.labels.tolist() == [99, 0, 50]


@pytest.mark.parametrize(
    ("load", "name", "folder"),
    [(load_cifar10, "CIFAR-10", "cifar-10-batches-py"), (load_cifar100, "CIFAR-100", "cifar-100-python")],
)
def test_missing_data_say_what_to_do(tmp_path, load, name, folder):
    with pytest.raises(FileNotFoundError) as error:
        load(data_dir=str(tmp_path / "nowhere"), download=False)
    assert str(error.value) == (
        f"{name} was not found, or is incomplete, in {str(tmp_path / 'nowhere')!r}: "
        f"set data.data_dir to the folder that holds {folder}, or data.download=true to download it."
    )


def published(monkeypatch: pytest.MonkeyPatch, url: str, archive: bytes, contents: dict[str, bytes]) -> None:
    """Let torchvision's CIFAR-100 be a small one that is published elsewhere."""
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(datasets.CIFAR100, "url", url)
    monkeypatch.setattr(datasets.CIFAR100, "tgz_md5", hashlib.md5(archive).hexdigest())
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(datasets.CIFAR100, "meta", {**datasets.CIFAR100.meta, "md5": md5["meta"]})


@pytest.fixture
def small_cifar100(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    images = {split: RNG.integers(256, size=(n, 3072), dtype=np.uint8) for split, n in (("train", 4), ("test", 2))}
    contents = {
        split: pickle.dumps({"data": data, "fine_labels": list(range(len(data)))}) for split, data in images.items()
    }
    contents["meta"] = pickle.dumps({"fine_label_names": [str(i) for i in range(100)]})
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with serving(Served(file.getvalue())) as served:
        published(monkeypatch, served.url, served.content, contents)
        yield served


def test_missing_data_are_fetched_once_with_one_line(tmp_path, small_cifar100, capsys):
    folder = tmp_path / "new" / "data"
    splits = load_cifar100(data_dir=str(folder))
    assert splits.train.labels.tolist() == [0, 1, 2, 3]
    assert capsys.readouterr().out == (
        f"CIFAR-100 is not in {str(folder)!r}: fetching it from {small_cifar100.url} to there "
        "(data.download=false turns this off).\n"
    )
    load_cifar100(data_dir=str(folder))
    assert small_cifar100.requests == [None]
    assert capsys.readouterr().out == ""
    (folder / "cifar-100-python" / "test").write_bytes(b"half")  # unpacked again from the archive
    assert len(load_cifar100(data_dir=str(folder)).test.labels) == 2
    assert small_cifar100.requests == [None]


def test_nothing_is_fetched_where_it_is_off_or_the_options_do_not_fit(tmp_path, small_cifar100):
    options = {"num_classes": 100, "channels": 3, "image_size": 32, "data_dir": str(tmp_path / "data")}
    with pytest.raises(FileNotFoundError, match=r"data\.download=true to download it"):
        load_cifar100(**options, download=False)
    for change in ({"num_classes": 99}, {"channels": 1}, {"image_size": 28}):
        with pytest.raises(ValueError, match="Expected `train_"):
            load_cifar100(**(options | change))
    for change in ({"train_size": 50_001}, {"validation_size": 50_000}, {"confusion_size": 50_000}):
        with pytest.raises(ValueError, match=next(iter(change))):
            ImageDataModule("cifar100", **(options | change)).prepare_data()
    data = ImageDataModule("cifar100", **options, download=False)
    data.prepare_data()
    assert small_cifar100.requests == []
    assert list(tmp_path.iterdir()) == []


def test_several_processes_at_once_fetch_once(tmp_path, small_cifar100):
    with ThreadPoolExecutor(4) as pool:  # each opens the lock anew, as a process would
        splits = list(pool.map(lambda _: load_cifar100(data_dir=str(tmp_path)), range(4)))
    assert [len(split.train.labels) for split in splits] == [4] * 4
    assert small_cifar100.requests == [None]


def test_without_a_network_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(FileNotFoundError) as error:
        load_cifar10(data_dir=str(tmp_path))
    assert re.sub(r"Errno \d+", "Errno", str(error.value)) == (
        f"CIFAR-10 is not in {str(tmp_path)!r} and could not be fetched from {datasets.CIFAR10.url} "
        "([Errno] Connection refused): set data.data_dir to the folder that holds cifar-10-batches-py, or try "
        "again with a network."
    )


def test_a_fetch_of_which_nothing_arrives_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(FileNotFoundError, match="try again with a network"):
        load_cifar10(data_dir=str(tmp_path / "new" / "data"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()  # one that was there stays, and so does what has arrived
    (tmp_path / "there" / "cifar-10-python.tar.gz").write_bytes(b"half")
    with pytest.raises(FileNotFoundError):
        load_cifar10(data_dir=str(tmp_path / "there"))
    assert "cifar-10-python.tar.gz.part" in {path.name for path in (tmp_path / "there").iterdir()}
