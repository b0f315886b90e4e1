"""Every method through every check; `python -m tests.compatibility.table` writes what comes out into the docs."""

from __future__ import annotations

import pytest

from tests.compatibility.methods import CHECKS, METHODS, TOLERANCE, error, fit, oracle, outcome, plain_module
from tests.compatibility.table import PAGE, methods_table, written


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("check", CHECKS)
def test_check(check, method):
    outcome(check, method)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_comparison_sees_the_method(method):
    plain = fit(module=plain_module(), precision="64-true", max_epochs=1)
    assert error(plain.states, oracle(method)) > 1e5 * TOLERANCE


def test_the_page_is_what_the_suite_says():
    page = PAGE.read_text()
    assert written(page, {"methods": methods_table()}) == page, "run `python -m tests.compatibility.table`"
