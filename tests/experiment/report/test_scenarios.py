"""Studies of one option each, side by side, with made-up rows in which it is known what a measure orders."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.report import write_report
from lightning_fisher.experiment.report.zoo.scenarios import (
    by_worst,
    scenarios_of,
    scenarios_parts,
    worst,
)

OPTIONS = {"labels": "data.confusion_size", "batches": "model.batch_size"}


def study(name, slope, seeds=5, train_error=0.0):
    """The test error rises by ``slope`` a setting; ``gamma`` follows it, ``path_norm`` follows the setting."""
    random = np.random.default_rng(len(name))
    rows = []
    for setting in range(4):
        for seed in range(seeds):
            error = 20 + slope * setting + 0.3 * random.standard_normal()
            rows.append(
                {
                    "seed": seed,
                    "test_error": error,
                    "train_error": train_error,
                    "train_loss": random.random(),
                    "epochs": int(random.integers(20, 40)),
                    "gamma": error + random.standard_normal(),
                    "path_norm": setting + 0.1 * random.random(),
                    "parameter_norm": random.random(),
                    "config": {OPTIONS[name]: 10 * (setting + 1)},
                    "choices": {},
                    "overrides": [f"{OPTIONS[name]}={10 * (setting + 1)}", f"seed={seed}"],
                    "study": {"name": name, "report": "scenario"},
                    "versions": {"torch": "2", "lightning": "2", "lightning_fisher": "0"},
                    "hardware": {"devices": 1, "cpu": "x", "device": "cpu"},
                    "commit": None,
                    "fit_seconds": 1.0,
                }
            )
    return rows


def test_tau_and_the_worst_of_them():
    rows = study("labels", 3.0), study("batches", -2.0)
    found = scenarios_of([*rows[0], *rows[1]])
    assert [one.name for one in found] == ["random labels", "batch size"]
    assert [(one.count, one.fitted, one.seeds) for one in found] == [(20, 20, 5)] * 2
    taus = {}
    for key in ("gamma", "path_norm", "epochs"):
        for one, members in zip(found, rows, strict=True):
            expected = scipy.stats.kendalltau([r[key] for r in members], [r["test_error"] for r in members]).statistic
            assert one.judged[key].tau == pytest.approx(expected, abs=1e-12)
            taus.setdefault(key, []).append(expected)
        assert worst(found, key) == pytest.approx(min(taus[key]), abs=1e-12)
    assert found[1].judged["path_norm"].tau < -0.7 < 0.7 < found[0].judged["path_norm"].tau
    order = by_worst(found)
    assert order[0] == "gamma"
    assert order[-1] == "path_norm"
    assert [one.effect.points for one in found] == pytest.approx([9, 6], abs=0.5)


def test_networks_that_do_not_fit_are_left_out_and_counted():
    rows = [*study("labels", 3.0), *study("batches", 1.0), *study("batches", 5.0, seeds=1, train_error=9.0)]
    found = scenarios_of(rows)
    assert [(one.count, one.fitted) for one in found] == [(20, 20), (24, 20)]


def test_a_measure_that_one_scenario_lacks_has_no_worst_case():
    labels = study("labels", 3.0)
    for row in labels:
        row["gamma_layer"] = row["test_error"]
    found = scenarios_of([*labels, *study("batches", 2.0)])
    assert math.isnan(worst(found, "gamma_layer"))
    assert by_worst(found)[-1] == "gamma_layer"
    table = dict(scenarios_parts(found))["Kendall τ with the test error"]
    line = next(line for line in table.splitlines() if "relative to layers" in line or "layer" in line)
    assert "1.00 [1.00, 1.00]" in line
    assert line.count("–") == 2


def test_what_are_no_scenarios_is_said():
    with pytest.raises(ConfigError, match="at least two studies for `--as scenarios`, but got labels"):
        scenarios_of(study("labels", 1.0))
    with pytest.raises(ConfigError, match=r"one option that varies, .* but batches has 0 and 0"):
        scenarios_of([*study("labels", 1.0), *study("batches", 1.0, train_error=50.0)])


def test_the_report_has_tables_and_a_figure(tmp_path):
    rows = [*study("labels", 3.0), *study("batches", -2.0)]
    made = write_report.make(rows, tmp_path, write_report.plan(rows, "scenarios", None, None))
    text = made.text(markdown=True)
    assert "| random labels, n = 20 | batch size, n = 20 |" in " ".join(text.split())
    assert "Intervals, 95 %, are the jackknife's over seeds." in text
    assert (tmp_path / "scenarios.png").read_bytes()[:4] == b"\x89PNG"
