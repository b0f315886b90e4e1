"""The card's words and figures over made-up measurements: rank deficiency, misfit, nothing known about labels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from omegaconf import OmegaConf
from torch import nn

from lightning_fisher.data import LabeledImages
from lightning_fisher.data.images import MemoryImages
from lightning_fisher.experiment.scoring import card_figures, card_page, compare
from lightning_fisher.experiment.scoring.card import Card, to_json
from lightning_fisher.experiment.scoring.gradient_influence import Influence
from lightning_fisher.experiment.scoring.layers.figure import plot_layers
from lightning_fisher.experiment.scoring.network import Subject
from lightning_fisher.experiment.scoring.subset_metrics import Evaluation, LayerMeasurement, SubsetMeasurement

FIGURES = ("spectrum", "layers", "influential", "gradients")


def evaluation(n: int = 40, wrong: int = 0, loss: float = 0.01) -> Evaluation:
    flags = torch.arange(n) < wrong
    return Evaluation(torch.full((n,), loss).double(), torch.zeros(n).long(), flags, torch.zeros(n).bool())


def subsets(t: int = 3, n: int = 6, rank: int = 6, shift: float = 0.0) -> SubsetMeasurement:
    logs = torch.linspace(0, -10 * math.log(10), n).double().repeat(t, 1) + torch.arange(t)[:, None] + shift
    cosines = torch.linspace(2, 0.02, n).double().repeat(t, 1)
    logs[:, rank:], cosines[:, rank:] = -torch.inf, 0.0
    gamma = torch.where(torch.isinf(logs), 0.0, logs).sum(1)
    values = {"gamma": gamma, "gamma_magnitude": gamma + 5, "gamma_direction": torch.full((t,), -5.0).double()}
    values |= {"gamma_residual": gamma - 2, "gamma_sensitivity": torch.full((t,), 7.0).double()}
    values |= {"robustness": torch.rand(t).double(), "frobenius_norm": torch.rand(t).double() + 1}
    values["spectral_radius"] = 10.0 ** torch.arange(t).double()
    layers = {
        name: LayerMeasurement(
            parameters,
            torch.full((t,), share).double(),
            torch.arange(t).double(),
            torch.full((t,), -9.25).double(),
            torch.full((t,), rank - 2),
            logs - 1,
        )
        for name, parameters, share in (("conv1", 1200, 0.3), ("conv2", 2400, 0.45), ("classifier", 30, 0.25))
    }
    return SubsetMeasurement(values, logs, cosines, torch.full((t,), rank), layers)


def influence(n: int = 40, replaced: int = 4) -> Influence:
    true = torch.arange(n) % 3
    given = torch.where(torch.arange(n) >= n - replaced, (true + 1) % 3, true)
    log_norms = torch.linspace(-20, 2, n).double()  # the replaced ones are the last: the largest
    return Influence(torch.arange(n), log_norms, log_norms.exp() / 10, given, true, true)


def made(name: str = "net", **parts: Any) -> Card:
    data = OmegaConf.create({"name": "digits", "confusion_size": 0, "label_noise": 0.1})
    subject = Subject(name, nn.Linear(3, 2), "mlp", data, Path("a/b.ckpt"), "0123456789abcdef", 7, {}, [], {})
    metric = {"num_subsets": 3, "subset_size": 6, "logit_norm": None, "batch_norm": "eval"}
    provenance = {
        "versions": {"torch": "2.6"},
        "hardware": {"device": "cpu", "cpu": "Processor"},
        "commit": "0123456789abcdef",
        "modified": False,
        "metric_seconds": 1.0,
    }
    given = {"test": evaluation(20, 3), "train": evaluation(), "subsets": subsets(), "influence": influence()} | parts
    return Card(subject, ["zero", "one", "two"], metric=metric, top=8, made=provenance, **given)


def images(channels: int = 1) -> LabeledImages:
    return LabeledImages.all_of(MemoryImages(torch.randint(0, 256, (40, channels, 8, 8)).byte(), torch.arange(40) % 3))


def test_the_page() -> None:
    card = made()
    text = card_page.to_markdown(card, [Path(f"{name}.png") for name in FIGURES])
    for expected in (
        "# Metric card: net",
        "mlp (8 parameters, trained for 7 epochs)",
        "SHA-256 0123456789ab",
        "10 % of the training labels replaced",
        "3 of 20 images",
        "| 15.00 ",
        "span 10.0 decades",
        "; those of the cosine Gram matrix C, the same gradients at unit length, 2.0.",
        "![layers](layers.png)",
        "| conv2      | 2,400      | 4    | 45.0 ",
        "half of it is conv2 and conv1.",
        "![gradients](gradients.png)",
        "Of the 8, 4 have a replaced label (precision 0.50; 4 of all 40 have: chance 0.10)",
        "with probability 1.000 by gradient norm, 1.000 by loss",
        "| 39             | one         | zero      | zero       |",
    ):
        assert expected in text
    assert "singular" not in text
    assert "misfits" not in text


def test_deficient_rank_and_misfit_are_told() -> None:
    text = " ".join(card_page.reading(made(subsets=subsets(rank=4), train=evaluation(wrong=20))))
    assert "rank 4 to 4 of 6" in text
    assert "not comparable" in text
    assert "20 of 40 training images are not fitted (50.00 %)" in text


def test_nothing_is_said_about_wrong_labels_where_none_was_replaced() -> None:
    card = made(influence=influence(replaced=0))
    assert "replaced" not in " ".join(card_page.influence_reading(card))
    assert set(to_json(card)["influence"]) == {"searched", "top"}


@pytest.mark.parametrize(("replaced", "rank", "channels"), [(4, 6, 1), (0, 4, 3)])
def test_figures_are_drawn(replaced: int, rank: int, channels: int, tmp_path: Path) -> None:
    card = made(subsets=subsets(rank=rank), influence=influence(replaced=replaced))
    paths = [
        card_figures.plot_spectrum(card, tmp_path / "spectrum.png"),
        plot_layers(card, tmp_path / "layers.png"),
        card_figures.plot_influential(card, images(channels), tmp_path / "influential.png", columns=4),
        card_figures.plot_gradients(card, tmp_path / "gradients.png"),
    ]
    for path in paths:
        assert imread(path)[..., :3].std() > 0.02  # there is something on it


def test_the_grid_shows_the_images_with_the_largest_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Any] = []
    monkeypatch.setattr(card_figures.style, "save", lambda figure, path: saved.append(figure) or path)
    source = images()
    card_figures.plot_influential(made(), source, tmp_path / "x.png")
    axes = saved[0].axes
    assert len(axes) == 8
    for axis, position in zip(axes, range(39, 31, -1), strict=True):  # of `influence`: the last, then the one before
        assert axis.images[0].get_array().tolist() == source.source.fetch(torch.tensor([position]))[0, 0].tolist()
    assert axes[0].get_title() == "one"
    assert axes[0].get_xlabel().splitlines() == ["predicted zero", "truth zero", "0.74 · 7.4"]
    assert saved[0].legends[0].texts[0].get_text() == "label replaced: 4 of these 8"


def test_a_comparison_says_what_to_mind(tmp_path: Path) -> None:
    first = made("one")
    second = made("two", subsets=subsets(shift=-1.0), train=evaluation(wrong=4, loss=0.5))
    path = compare.write_comparison(first, second, tmp_path)
    assert imread(path)[..., :3].std() > 0.02
    text = (tmp_path / compare.FILE_NAME).read_text()
    assert "-6.00 [-6.00, -6.00] *" in text  # 6 eigenvalues a nat smaller, on every subset
    assert "compare γ̂ at equal outputs" in text
    assert "Of 40 training images 0 and 4 are not fitted" in text
    assert "do not cover the seeds" in text
    assert "[one](1-one/card.md)" in text
    calm = compare.notes(first, made("three"))
    assert len(calm) == 1


def test_one_subset_has_no_spread() -> None:
    one = made(subsets=subsets(t=1))
    one.metric["num_subsets"] = 1
    assert ["γ̂ (nats)", "-69.08", "1 subset of 6"] in card_page.table(one)
    assert ["γ̂ (nats)", "-69.08", "-69.08", "+0.00", "1 subset of 6"] in compare.table(one, one)


@pytest.mark.parametrize(("exponent", "text"), [(-12.0, "$10^{-12}$"), (0.0, "$10^{0}$"), (0.5, "3.2"), (1.1, "13")])
def test_ticks_of_logarithms(exponent: float, text: str) -> None:
    assert card_figures._power(exponent) == text
