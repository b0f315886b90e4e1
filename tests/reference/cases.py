"""The one table of cases: modules, inputs and targets that every test of the method goes through.

``CASES`` have well-defined per-sample gradients and must be answered rightly; ``REFUSED`` mix the samples
of a batch, so they have none: a ``ValueError``. ``RIGHT_OR_REFUSED`` are so unusual that an error is
acceptable; a wrong number is not.
"""

from __future__ import annotations

import pytest

from tests.reference.case import Case
from tests.reference.cases_conv import CONV_CASES
from tests.reference.cases_linear import LINEAR_CASES
from tests.reference.cases_loss import DEFICIENT_CASES, LOSS_CASES
from tests.reference.cases_norm import BATCH_NORM_CASES, NORM_CASES
from tests.reference.cases_parameters import PARAMETER_CASES
from tests.reference.cases_refused import BATCH_STATISTICS, REFUSED, RIGHT_OR_REFUSED
from tests.reference.cases_sequence import ATTENTION_CASES, EMBEDDING_CASES, RECURRENT_CASES

__all__ = ["BATCH_NORM_CASES", "BATCH_STATISTICS", "CASES", "REFUSED", "RIGHT_OR_REFUSED", "by_name", "each"]

CASES = [
    *LINEAR_CASES,
    *CONV_CASES,
    *BATCH_NORM_CASES,
    *NORM_CASES,
    *EMBEDDING_CASES,
    *ATTENTION_CASES,
    *RECURRENT_CASES,
    *PARAMETER_CASES,
    *LOSS_CASES,
    *DEFICIENT_CASES,
]


def by_name(name) -> Case:
    """The case of that name."""
    (case,) = [case for case in CASES if case.name == name]
    return case


def each(cases):
    """Parametrize a test over ``case``."""
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)
