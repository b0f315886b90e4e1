"""The scores by hand, the ranking, the file, and the area under the curve against scikit-learn."""

from __future__ import annotations

import csv
import doctest
import importlib
import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from lightning_fisher.label_errors import LabelScores, roc_auc
from lightning_fisher.label_errors.scores import weighted_mean


@pytest.fixture
def scores() -> LabelScores:
    norms = torch.tensor([[1.0, 4.0, 2.0], [1.0, 1.0, 8.0]], dtype=torch.float64)
    return LabelScores(
        given_labels=torch.tensor([0, 1, 0]),
        log_norms=norms.log(),
        losses=torch.tensor([[0.1, 2.0, 1.0], [0.1, 0.5, 4.0]]),
        probabilities=torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]]),
        learning_rates=torch.tensor([0.3, 0.1]),
    )


def test_scores_by_hand(scores: LabelScores) -> None:
    ln2 = math.log(2)  # weights 3/4 and 1/4
    assert scores.score().tolist() == pytest.approx([0.0, 0.75 * 2 * ln2, 0.75 * ln2 + 0.25 * 3 * ln2])
    assert scores.score("loss").tolist() == pytest.approx([0.1, 1.625, 1.75])
    influence = [0.3 + 0.1, 0.3 * 16 + 0.1, 0.3 * 4 + 0.1 * 64]
    assert scores.score("tracin").exp().tolist() == pytest.approx(influence)
    assert scores.predicted_labels.tolist() == [0, 0, 1]
    assert scores.ranking("loss").tolist() == [2, 1, 0]
    with pytest.raises(ValueError, match=r"`kind` to be one of \('gradient_norm', .*\), but got 'margin'"):
        scores.score("margin")


def test_equal_scores_keep_their_order(scores: LabelScores) -> None:
    assert scores.score()[1] == pytest.approx(float(scores.score()[2]))
    even = LabelScores(
        *(getattr(scores, n) for n in ("given_labels", "log_norms")),
        torch.zeros(2, 3),
        scores.probabilities,
        scores.learning_rates,
    )
    assert even.ranking("loss").tolist() == [0, 1, 2]


def test_times_without_a_learning_rate_count_nothing() -> None:
    values = torch.tensor([[1.0, -math.inf], [3.0, -math.inf], [-math.inf, 5.0]])
    assert weighted_mean(values, torch.tensor([1.0, 1.0, 0.0])).tolist() == [2.0, -math.inf]
    assert weighted_mean(torch.tensor([[1.0], [4.0]]), torch.zeros(2)).tolist() == [2.5]


def test_the_file(scores: LabelScores, tmp_path) -> None:
    scores.to_csv(tmp_path / "a.csv", "loss", files=["a.png", "b,c.png", "d.png"])
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["index"] for row in rows] == ["2", "1", "0"]
    assert rows[1] == {
        "index": "1",
        "file": "b,c.png",
        "given_label": "1",
        "predicted_label": "0",
        "score": "1.625",
        "label_quality": "0.500000",
        "is_label_issue": "True",
    }
    assert [row["is_label_issue"] for row in rows] == ["True", "True", "False"]
    assert [float(row["label_quality"]) for row in rows] == [0, 0.5, 1]
    scores.to_csv(tmp_path / "b.csv")
    assert "file" not in (tmp_path / "b.csv").read_text()


def test_cleanlab_takes_the_file(scores: LabelScores, tmp_path) -> None:
    pytest.importorskip("cleanlab", reason="needs cleanlab")
    pandas = pytest.importorskip("pandas")
    from cleanlab.classification import CleanLearning
    from sklearn.linear_model import LogisticRegression

    torch.manual_seed(0)
    labels = torch.arange(60) % 2
    inputs = labels[:, None] + 0.1 * torch.randn(60, 2)
    noisy = labels.clone()
    noisy[:3] = 1 - noisy[:3]
    probabilities = torch.nn.functional.one_hot(labels, 2).double()
    losses = (noisy != labels).double()[None]
    LabelScores(noisy, losses, losses, probabilities, torch.ones(1)).to_csv(tmp_path / "a.csv")
    issues = pandas.read_csv(tmp_path / "a.csv", index_col="index").sort_index()
    learner = CleanLearning(LogisticRegression()).fit(inputs.numpy(), noisy.numpy(), label_issues=issues)
    assert learner.get_label_issues()["is_label_issue"].tolist() == [True] * 3 + [False] * 57


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_the_area_is_scikit_learns(scale: float) -> None:
    values = torch.randint(20, (300,)).double() * scale  # with ties, and where a sigmoid is flat
    wrong = torch.rand(300) < 0.3
    assert roc_auc(values, wrong) == pytest.approx(roc_auc_score(wrong, values), abs=1e-6)
    assert roc_auc(wrong.double(), wrong) == 1
    assert roc_auc(torch.zeros(300), wrong) == 0.5
    with pytest.raises(ValueError, match="one kind only"):
        roc_auc(values, torch.zeros(300, dtype=torch.bool))


@pytest.mark.parametrize("name", ["scores", "recorder"])
def test_the_examples_of_the_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"lightning_fisher.label_errors.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
