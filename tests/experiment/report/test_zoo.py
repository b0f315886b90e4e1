"""The judge on made-up rows, in which it is known what each measure orders."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch

from lightning_fisher.experiment.report import write_report
from lightning_fisher.experiment.report.zoo.judgment import (
    effects,
    judge,
    judge_all,
    sorted_by_worst,
    that_fit,
    varied_options,
)
from lightning_fisher.experiment.report.zoo.page import option_table
from lightning_fisher.functional.ranking import bootstrap_interval, jackknife_interval, kendall_tau

VERSIONS = {"torch": "2", "lightning": "2", "lightning_fisher": "0"}
HARDWARE = {"devices": 1, "cpu": "x", "device": "cpu"}


def make(seeds=6, noise=0.3):
    """Test error rises with the random labels (by 10) and falls with the width (by 4); the batch size does nothing."""
    random = np.random.default_rng(0)
    rows = []
    for labels, width, batch, seed in itertools.product((0, 200), (8, 16), (32, 64), range(seeds)):
        error = 20 + labels / 20 - (width - 8) / 2 + noise * random.standard_normal()
        rows.append(
            {
                "seed": seed,
                "test_error": error,
                "train_error": 0.0,
                "train_loss": random.random(),
                "epochs": int(random.integers(20, 40)),
                "gamma": error + 0.01 * random.standard_normal(),  # orders everything
                "gamma_layer": labels + random.random(),  # labels only
                "input_margin": -error,  # orders everything, higher is better
                "path_norm": width + 0.0,  # the wrong way over widths
                "parameter_norm": random.random(),
                "measure_seconds": {"gamma_layer": 0.5, "path_norm": 0.6},
                "measured_later": [{"measures": ["path_norm"], "subsets": 2}],
                "config": {
                    "data.confusion_size": labels,
                    "model.net.width": width,
                    "model.batch_size": batch,
                    "metric.num_subsets": 5,
                },
                "choices": {"variation": "base"},
                "overrides": [f"data.confusion_size={labels}", f"seed={seed}"],
                "study": {"name": "zoo", "report": "zoo"},
                "versions": VERSIONS,
                "hardware": HARDWARE,
                "commit": None,
                "fit_seconds": 1.0,
                "stop_reason": "converged",
            }
        )
    return rows


def test_what_the_options_do():
    rows = make()
    options = varied_options(rows)
    assert options == ["data.confusion_size", "model.batch_size", "model.net.width"]
    labels, batch, width = effects(rows, options)
    assert labels.points == pytest.approx(10, abs=0.4)
    assert width.points == pytest.approx(4, abs=0.4)
    assert batch.points < 0.4
    assert [effect.matters for effect in (labels, batch, width)] == [True, False, True]
    assert [effect.settings for effect in (labels, batch, width)] == [4, 4, 4]
    errors = np.array([row["test_error"] for row in rows]).reshape(8, 6)
    assert labels.spread == pytest.approx(math.sqrt(errors.var(axis=1, ddof=1).mean()), rel=1e-9)


def test_a_measure_that_orders_everything():
    rows = make()
    judged = judge(rows, "gamma", varied_options(rows))
    error = [row["test_error"] for row in rows]
    assert judged.tau == pytest.approx(scipy.stats.kendalltau([row["gamma"] for row in rows], error).statistic)
    assert judged.low <= judged.tau <= judged.high
    assert judged.per_option["data.confusion_size"] == judged.per_option["model.net.width"] == 1.0
    assert judged.sign_error < 0.1
    assert judged.partial > 0.9
    assert judged.seconds is None


def test_higher_is_better_is_turned():
    rows = make()
    assert judge(rows, "input_margin", varied_options(rows)).tau == 1.0


def test_measures_that_order_one_option_only():
    rows = make()
    options = varied_options(rows)
    labels, wrong = judge(rows, "gamma_layer", options), judge(rows, "path_norm", options)
    assert labels.per_option["data.confusion_size"] == 1.0
    assert abs(labels.per_option["model.net.width"]) < 0.4
    assert labels.seconds == pytest.approx(0.1)  # of one of the five subsets of the run
    assert wrong.seconds == pytest.approx(0.3)  # of one of the two that it was added on later
    assert wrong.per_option["model.net.width"] == -1.0
    assert wrong.per_option["data.confusion_size"] == 0.0  # ties count as none
    assert wrong.worst_sign_error == 1.0
    assert wrong.worst(["data.confusion_size", "model.net.width"]) == -1.0


def naive_psi(rows, key, option):
    """By loops: within a group only the option differs; pairs with equal values of it aren't compared."""
    others = [name for name in ("data.confusion_size", "model.batch_size", "model.net.width") if name != option]
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row["config"][name] for name in others), []).append(row)
    means = []
    for members in groups.values():
        pairs = [
            np.sign(a[key] - b[key]) * np.sign(a["test_error"] - b["test_error"])
            for a, b in itertools.combinations(members, 2)
            if a["config"][option] != b["config"][option]
        ]
        means.append(np.mean(pairs))
    return float(np.mean(means))


@pytest.mark.parametrize("option", ["data.confusion_size", "model.batch_size"])
def test_the_interval_of_psi_is_the_jackknife_over_seeds(option):
    rows = make(seeds=4, noise=2.0)
    judged = judge(rows, "train_loss", varied_options(rows))
    whole = naive_psi(rows, "train_loss", option)
    without = np.array([naive_psi([row for row in rows if row["seed"] != s], "train_loss", option) for s in range(4)])
    half = scipy.stats.t.ppf(0.975, 3) * math.sqrt(3 / 4 * ((without - without.mean()) ** 2).sum())
    assert judged.per_option[option] == pytest.approx(whole, abs=1e-12)
    assert judged.per_option_ends[option] == pytest.approx((max(whole - half, -1), min(whole + half, 1)), abs=1e-9)


def test_the_worst_has_its_interval_in_the_table_where_seeds_are_enough():
    rows = make(noise=2.0)
    options = varied_options(rows)
    found = effects(rows, options)
    decisive = [effect.option for effect in found if effect.matters]
    judged = judge(rows, "train_loss", options)
    low, high = judged.per_option_ends[judged.worst_option(decisive)]
    text = option_table([judged], found)
    assert f"| {judged.worst(decisive):.2f} [{low:.2f}, {high:.2f}] |" in text
    assert "the interval of the worst" in text
    two = [row for row in rows if row["seed"] < 2]
    assert math.isnan(judge(two, "train_loss", options).per_option_ends[decisive[0]][0])
    assert "[" not in option_table([judge(two, "train_loss", options)], found)


def test_the_best_worst_case_comes_first():
    rows = make()
    keys = [judged.key for judged in judge_all(rows, varied_options(rows))]
    assert set(keys[:2]) == {"gamma", "input_margin"}
    assert keys[-1] == "path_norm"
    assert {"train_loss", "epochs", "parameter_norm"} <= set(keys)


def test_equals_by_the_worst_case_are_listed_by_psi():
    (template, *_) = judge_all(rows := make(), varied_options(rows))
    effect = next(e for e in effects(rows, varied_options(rows)) if e.option == "data.confusion_size")
    made = {
        key: replace(template, key=key, psi=psi, per_option={effect.option: worst})
        for key, psi, worst in (
            ("a", 0.1, 0.5),
            ("b", math.nan, 0.5),
            ("c", 0.9, 0.5),
            ("d", 1.0, -0.5),
            ("e", 0.2, math.nan),
        )
    }
    assert [judged.key for judged in sorted_by_worst(list(made.values()), [effect])] == ["c", "a", "b", "d", "e"]


def test_networks_that_do_not_fit_are_left_out():
    rows = make()
    for row in rows[:5]:
        row["train_error"] = 1.5
    assert len(that_fit(rows)) == len(rows) - 5


def test_intervals_are_over_seeds_where_there_are_three():
    rows = make()
    options = varied_options(rows)
    x = torch.tensor([row["gamma"] for row in rows], dtype=torch.float64)
    y = torch.tensor([row["test_error"] for row in rows], dtype=torch.float64)
    over_seeds = jackknife_interval(kendall_tau, x, y, clusters=[row["seed"] for row in rows])
    assert (judge(rows, "gamma", options).low, judge(rows, "gamma", options).high) == over_seeds
    for row in rows:
        row["seed"] %= 2
    over_networks = bootstrap_interval(kendall_tau, x, y, num_resamples=500)
    assert (judge(rows, "gamma", options).low, judge(rows, "gamma", options).high) == over_networks


def test_the_report(tmp_path):
    rows = make()
    rows[0]["train_error"] = 3.0
    made = write_report.make(rows, tmp_path, write_report.plan(rows, None, None, None))
    text = made.text(markdown=True)
    headings = [heading for heading, _ in made.parts]
    assert headings[:4] == [
        "Networks",
        "What the options do to the test error",
        "Which measure orders what",
        "How well, over all networks",
    ]
    assert "47 of 48 networks" in text
    assert "| path norm " in text
    assert "training loss (b)" in text
    assert (tmp_path / "zoo.png").stat().st_size > 10_000
    wrong = next(line for line in text.splitlines() if line.startswith("| path norm "))
    assert wrong.split("|")[-2].strip() == "width"


def test_too_few_networks_are_said_to_be(tmp_path):
    rows = make()
    for row in rows[2:]:
        row["train_error"] = 3.0
    made = write_report.make(rows, tmp_path, write_report.plan(rows, None, None, None))
    assert made.parts[0] == ("Networks that fit", "2 of 48: too few to order.")
    assert made.figures == []
