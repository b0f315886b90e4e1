"""One table of quantities: every name, unit and format stands in it, and nowhere else."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from lightning_fisher.experiment.records import quantities
from lightning_fisher.experiment.records.option_names import OPTIONS, in_words, option_name, value_name
from lightning_fisher.experiment.records.quantities import HESSIAN_METRICS, METRICS, QUANTITIES, Quantity
from lightning_fisher.functional.measures import registry
from lightning_fisher.metrics import local_minima_metrics

EXPERIMENT = Path(quantities.__file__).parents[1]
OTHERS = [path for path in sorted(EXPERIMENT.rglob("*.py")) if path.name != "quantities.py"]


def test_a_quantity() -> None:
    gamma = QUANTITIES["gamma"]
    assert (gamma.heading, gamma.axis, gamma.difference) == ("γ̂ (nats)", r"$\hat\gamma$ (nats)", "γ̂ (nats)")
    assert gamma.text(-1234.567, 8.0) == "-1234.57 ± 8.00"
    assert gamma.form.format(-1234.567) == "-1234.6"
    assert gamma.signed.format(3.21) == "+3.2"
    assert gamma.better == "lower is better"


def test_a_difference_of_percentages_is_in_points() -> None:
    assert QUANTITIES["test_error"].difference == "test error (points)"


def test_a_quantity_without_unit_or_detail() -> None:
    one = Quantity("x", "number")
    assert (one.heading, one.axis, one.text(0.12345), one.better) == ("number", "number", "0.123", "")


def test_keys_are_those_of_the_table() -> None:
    assert all(key == quantity.key for key, quantity in QUANTITIES.items())
    assert len({quantity.heading for quantity in QUANTITIES.values()}) == len(QUANTITIES)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_the_metrics_are_those_that_are_measured() -> None:
    names = {name for name in local_minima_metrics(hessian=True).compute() if not name.endswith(("_std", "_error"))}
    known = {*METRICS, *HESSIAN_METRICS}
    assert known <= names
    assert names - known <= {"hessian_spectral_radius_converged", "rank", "gamma_mean"}


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_no_other_table(path: Path) -> None:
    """A heading of a quantity that has a unit, or the words of a metric, as a literal."""
    headings = {q.heading for q in QUANTITIES.values() if q.unit} | {q.axis for q in QUANTITIES.values() if q.unit}
    words = headings | {QUANTITIES[key].name for key in (*METRICS, *HESSIAN_METRICS) if key != "robustness"}
    literals = {
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert not literals & words


@pytest.mark.parametrize("module", ["report.tables", "report.rank_table", "report.paired_table", "training.console"])
def test_what_is_shown_is_in_the_table(module: str) -> None:
    found = importlib.import_module(f"lightning_fisher.experiment.{module}")
    names = {"tables": "COLUMNS", "rank_table": "RANKED", "paired_table": "COMPARED", "console": "SHOWN"}
    assert set(getattr(found, names[module.rpartition(".")[2]])) <= set(QUANTITIES)


def test_options_in_words() -> None:
    assert option_name("reg.beta") == "β"
    assert option_name("mine.some_option") == "some option"
    assert value_name("reg", "fisher") == "Fisher regularizer"
    assert value_name("reg", "mine") == "mine"
    assert value_name("reg.perturbed", None) == "all"
    assert value_name("reg.perturbed", 2) == "2"
    assert value_name("reg.beta", [1]) == "[1]"
    assert in_words("reg.beta", 10.0) == "β 10"
    assert in_words("reg", "none") == "no regularizer"
    assert in_words("reg.gradient", "shared") == "shared gradient"
    assert in_words("reg.perturbed", 2) == "2 sub-batches"
    assert in_words("reg.every_n_steps", 3) == "every 3rd step"
    assert in_words("model.layers", [1, 2]) == "layers [1, 2]"
    assert value_name("model", "resnet8") == "ResNet-8"
    assert value_name("data.augmentation", "no-aug") == "none"


def test_options_that_have_names_exist() -> None:
    from lightning_fisher.experiment.config.compose import config_groups, known_options

    groups = set(config_groups())
    known = {*known_options([]), *known_options(["data=arrays"]), *groups}
    assert set(OPTIONS) <= known


def test_the_measures_are_those_of_the_library() -> None:
    known = {name: measure.higher_is_better for name, measure in registry.MEASURES.items()}
    assert set(quantities.MEASURES) | {*METRICS, *HESSIAN_METRICS} >= set(known)
    for name, lower in quantities.MEASURES.items():
        assert known[name] is (None if lower is None else not lower), name
