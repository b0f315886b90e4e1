"""Every case through every check; `python -m tests.compatibility.table` writes what comes out into the docs."""

from __future__ import annotations

import pytest

from tests.compatibility import checks
from tests.compatibility.cases import missing_packages, refused, supported
from tests.compatibility.table import PAGE, tables, written


def name(case):
    return f"{case.origin}: {case.name}"


@pytest.mark.parametrize("case", supported(), ids=name, scope="class")
class TestSupported:
    @pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__)
    def test_check(self, case, check):
        checks.outcome(case, check)


@pytest.mark.parametrize("case", refused(), ids=name)
def test_refused(case):
    checks.outcome(case, checks.regularizer_is_refused)


def test_the_checks_can_fail():
    """With β = 5 in place of 0 the weights differ, and so they do from an oracle without the penalty."""
    case = supported()[0]
    got, plain = checks.regularized(case), checks.oracle(case, 0.0)
    errors = [
        (value - plain.states[-1][f"net.{name}"]).abs().max().item()
        for name, value in got.recorder.states[-1].items()
        if not name.startswith(case.apart)
    ]
    assert max(errors) > 1e-6


def test_the_page_is_what_the_suite_says():
    if missing_packages():
        pytest.skip(f"not installed: {', '.join(missing_packages())}")
    assert written(PAGE.read_text(), tables()) == PAGE.read_text(), "run `python -m tests.compatibility.table`"
