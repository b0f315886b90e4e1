"""Every example runs as it stands, prints what its README says, and leaves no file behind."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
NUMBER = r"([+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run an example in an empty folder and return what it prints."""
    monkeypatch.chdir(tmp_path)

    def run_example(name: str) -> str:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        assert list(tmp_path.iterdir()) == []
        return capsys.readouterr().out

    return run_example


def numbers(text: str, pattern: str) -> list[float]:
    found = re.search(pattern.replace("#", NUMBER), text)
    assert found is not None, text
    return [float(value) for value in found.groups()]


def test_torchvision_model(run) -> None:
    text = run("torchvision_model")
    switch, error = numbers(text, r"plain epochs 1-#, then regularized; test error # %")
    assert switch == 4
    assert error < 50  # 90 by chance
    assert all(map(torch.isfinite, torch.tensor(numbers(text, r"gamma # ± #"))))


def test_dict_batch(run) -> None:
    text = run("dict_batch")
    error, _, _ = numbers(text, r"test error # %, gamma # ± #")
    assert error < 35  # 50 by chance
    (cosine,) = numbers(text, r"mean cosine #")
    assert -1 <= cosine <= 1


def test_plain_pytorch(run) -> None:
    lines = run("plain_pytorch").splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 10", "epoch 20", "epoch 30", "epoch 40"]
    gammas = [numbers(line, r"gamma #")[0] for line in lines]
    assert gammas == sorted(gammas, reverse=True)  # the loss falls, and the minimum gets no sharper
    assert ["plain" in line for line in lines] == [True, True, False, False]
    assert numbers(lines[-1], r"test error # %, .*, R #")[0] < 20


def test_compare_checkpoints(run) -> None:
    lines = run("compare_checkpoints").splitlines()
    assert "over 8 subsets" in lines[0]
    found = {line.split()[0]: numbers(line, r" # ± #") for line in lines[1:]}
    assert {"gamma", "gamma_magnitude", "gamma_direction", "robustness"} <= set(found)
    for name, (difference, error) in found.items():
        assert difference > 2 * error, name  # the network that fits random labels lies in the worse minimum


def test_noisy_labels(run) -> None:
    lines = [line for line in run("noisy_labels").splitlines() if "test error" in line]
    plain, smoothing, fisher = (numbers(line, r"test error +# ± # %, noisy labels fitted # %") for line in lines)
    assert fisher[0] + fisher[1] < min(plain[0], smoothing[0]) - 1
    assert fisher[2] < plain[2]


def test_the_readme_lists_every_example() -> None:
    listed = re.findall(r"\[`(\w+)\.py`\]", (EXAMPLES / "README.md").read_text())
    assert sorted(listed) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 75
