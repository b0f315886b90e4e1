"""The numbers in README and in the pages of results are what the committed rows give."""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
from functools import partial

import pytest
from scipy import stats

from tests.docs.pages import ROOT

spec = importlib.util.spec_from_file_location("results_page", ROOT / "results" / "page.py")
assert spec is not None
assert spec.loader is not None
made = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        *((page, partial(made.page, source)) for source, page in made.PAGES.items()),
        (made.INDEX, made.index),
        (made.README, made.readme),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_page_is_what_the_rows_give(path, text):
    assert path.read_text(encoding="utf-8") == text(), "python results/page.py"


def test_readme_has_a_place_for_its_table():
    text = made.README.read_text(encoding="utf-8")
    assert all(text.count(mark) == 1 for mark in made.MARKS)


@pytest.mark.parametrize("path", [*made.PAGES, made.TABLE, made.FOLDERS], ids=lambda path: path.name)
def test_no_number_of_ours_is_typed(path):
    papers = {"8.50", "7.89", "1.33", "1.25", "1.125"}  # of the paper's Table 1; evaluations, by arithmetic
    assert set(made.typed_numbers(path.read_text(encoding="utf-8"))) <= papers


def rows(name, **wanted):
    """The rows of a folder without the package's reader."""
    found = [json.loads(path.read_text()) for path in sorted((ROOT / "results" / name).rglob("result.json"))]
    return [r for r in found if all(r["config"].get(k.replace("__", ".")) == v for k, v in wanted.items())]


def test_a_mean_a_difference_and_a_rank_correlation_by_hand():
    """Three numbers of the page by the standard library and scipy."""
    text = made.PAGE.read_text(encoding="utf-8")
    after, before = rows("label_noise_beta-digits", reg__beta=1000), rows("label_noise_beta-digits", reg__beta=0)
    errors = [r["test_error"] for r in after]
    assert f"{statistics.fmean(errors):.2f} ± {statistics.stdev(errors):.2f}" in text

    plain = {r["seed"]: r["test_error"] for r in before}
    differences = [r["test_error"] - plain[r["seed"]] for r in after]
    half = stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    mean = statistics.fmean(differences)
    assert f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]".replace("-", "−") in text

    fit = [r for r in rows("scenario_confusion-digits") if r["train_error"] == 0]
    tau = stats.kendalltau([r["gamma"] for r in fit], [r["test_error"] for r in fit]).statistic
    assert f"γ̂ {tau:.2f} [" in text
