"""The command: what it reads, writes and says, and that it finds what was hidden."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_fisher.label_errors.command import main
from lightning_fisher.label_errors.images import read_images

RNG = np.random.default_rng(0)


def striped(label: int) -> np.ndarray:
    """An image whose bright column tells its class."""
    image = RNG.integers(60, size=(8, 8), dtype=np.uint8)
    image[:, 2 * label : 2 * label + 2] += 150
    return image


@pytest.fixture
def hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """120 images of three classes, eight of them with a wrong label."""
    monkeypatch.chdir(tmp_path)
    true = np.arange(120) % 3
    labels = true.copy()
    wrong = RNG.permutation(120)[:8]
    labels[wrong] = (labels[wrong] + 1) % 3
    return {"images": np.stack([striped(k) for k in true]), "labels": labels, "true": true, "wrong": wrong}


def ranking(path: str = "label_errors.csv") -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


QUICK = ["--epochs", "6", "--batch-size", "16", "--accelerator", "cpu"]


def test_an_archive(hidden, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("my.npz", **{key: hidden[key] for key in ("images", "labels")})
    assert main(["my.npz", *QUICK]) == 0
    rows = ranking()
    assert sorted(int(row["index"]) for row in rows) == list(range(120))
    assert {int(row["index"]) for row in rows[:8]} == set(hidden["wrong"].tolist())
    for row in rows[:8]:
        assert int(row["given_label"]) == hidden["labels"][int(row["index"])]
        assert int(row["predicted_label"]) == hidden["true"][int(row["index"])]
        assert row["is_label_issue"] == "True"
    with Image.open("label_errors.png") as picture:
        assert picture.width > 1000
    said = capsys.readouterr().out
    assert "120 images of 8 x 8, 3 classes; 6 epochs" in said
    assert "ROC AUC" not in said


def test_folders_of_files(hidden, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["cat", "dog", "eel"]
    for i, (image, label) in enumerate(zip(hidden["images"], hidden["labels"], strict=True)):
        folder = Path("photos") / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    assert main(["photos", *QUICK, "--image-size", "8", "--images", "none", "--score", "loss"]) == 0
    found = {int(Path(row["file"]).stem) for row in ranking()[:8]}
    assert found == set(hidden["wrong"].tolist())
    assert not Path("label_errors.png").exists()
    assert re.search(r"eel +|dog +|cat +", capsys.readouterr().out)


def test_noise_of_its_own_is_found(hidden, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("my.npz", train_images=hidden["images"], train_labels=hidden["true"][:, None])
    assert main(["my.npz", *QUICK, "--noise", "0.1", "--out", "found.csv", "--images", "found.png"]) == 0
    said = capsys.readouterr().out
    areas = re.search(r"12 labels were replaced\. ROC AUC: gradient_norm (\S+), loss (\S+), tracin (\S+)\n", said)
    assert areas is not None
    assert all(float(area) > 0.95 for area in areas.groups())
    first = {int(row["index"]) for row in ranking("found.csv")[:12]}
    changed = {int(r["index"]) for r in ranking("found.csv") if int(r["given_label"]) != int(r["index"]) % 3}
    assert len(first & changed) >= 10
    assert len(changed) == 12


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing.npz"], "Expected `digits`, an .npz archive, or a folder"),
        (["empty"], "to hold a folder of images for each class"),
        (["other.npz"], "to be named images, labels or train_images, train_labels, but got x"),
        (["flat.npz"], r"to be [N, H, W] or [N, H, W, C], but got shape [4, 9]"),
        (["float.npz"], "`labels` to be whole numbers, or names of classes, but got float64"),
        (["digits", "--epochs", "0"], "--epochs to be at least 1, but got 0"),
        (["digits", "--noise", "1"], "--noise to be at least 0 and less than 1, but got 1.0"),
        (["digits", "--network", "torch.nn.Nothing"], "--network to be a function of num_classes and in_channels"),
        (["digits", "--network", "builtins.dict"], "made a dict"),
        (["digits", "--network", "os.abort.x"], "--network to be a function of num_classes and in_channels"),
        (["named.npz", "--network", "torch.nn.Identity"], "--network to make a module with parameters to train"),
        (["digits", "--noise", "nan"], "--noise to be at least 0 and less than 1, but got nan"),
        (["named.npz", "--noise", "0.001"], "--noise to replace some of 4 labels, but 0.001 is none or all"),
        (["digits", "--lr", "nan"], "--lr to be a positive number, but got nan"),
        (["digits", "--lr", "-1"], "--lr to be a positive number, but got -1.0"),
        (["digits", "--seed", "-1"], "--seed to be at least 0, but got -1"),
        (["digits", "--seed", "4294967296"], "--seed to be at most 4294967295, but got 4294967296"),
        (["digits", "--image-size", "0"], "--image-size to be at least 1, but got 0"),
        (["digits", "--images", "a.xyz"], "--images to end in .avif, "),
        (["digits", "--images", "a.png", "--out", "a.png"], "--out and --images to be two files, but got 'a.png'"),
        (["one.npz"], "at least 2 classes, but got 4 of 1"),
        (["large.npz"], "`labels` to be numbers of classes from 0, but got 3000 among them"),
        (["two.npz"], "images of 1 or 3 channels for the picture, but got 2 (--images=none leaves it out)"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    np.savez("other.npz", x=np.zeros(3))
    np.savez("flat.npz", images=np.zeros((4, 9), np.uint8), labels=np.arange(4))
    np.savez("float.npz", images=np.zeros((4, 3, 3), np.uint8), labels=np.zeros(4))
    images = np.arange(36, dtype=np.uint8).reshape(4, 3, 3)
    np.savez("named.npz", images=images, labels=["ant", "bee", "ant", "bee"])
    np.savez("one.npz", images=images, labels=np.full(4, 1))
    np.savez("large.npz", images=images, labels=1000 * np.arange(4))
    np.savez("two.npz", images=np.stack([images, images], axis=-1), labels=np.arange(4) % 2)
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("Error: ")
    assert expected in said
    assert not Path("label_errors.csv").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--score", "los"], "argument --score: invalid choice: 'los' (choose from"),
        (["--epochs", "x"], "argument --epochs: invalid int value: 'x'"),
        (["--epoch-number", "3"], "unrecognized arguments: --epoch-number 3"),
    ],
)
def test_options_that_cannot_be_read_are_one_line(
    options: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["digits", *options])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"Error: {expected}")


def test_names_of_classes(hidden) -> None:
    np.savez("my.npz", images=hidden["images"], labels=np.array(["eel", "dog", "cat"])[hidden["labels"]])
    found = read_images("my.npz")
    assert found.class_names == ["cat", "dog", "eel"]
    assert found.source.labels.tolist() == [[2, 1, 0][k] for k in hidden["labels"]]


def test_it_imports_no_experiment() -> None:
    code = (
        "import sys, lightning_fisher.label_errors.command\n"
        "print([m for m in ('hydra', 'omegaconf', 'lightning_fisher.experiment') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
