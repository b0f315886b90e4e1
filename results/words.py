"""Numbers as the pages print them: with a typographic minus, kept in front of what rounds to zero."""

from __future__ import annotations

import re
from typing import Any

from lightning_fisher.experiment.report.zoo.judgment import Judged


def signed_table(text: str) -> str:
    """A typographic minus in front of the numbers of a table; its rules stay."""
    return re.sub(r"(?<![\w−|-])-(?=\d)", "−", text)


def signed(text: str) -> str:
    """A typographic minus."""
    return text.replace("-", "−")


def with_interval(one: Judged) -> str:
    """τ of a measure with its interval."""
    return f"{hundredths(one.tau)} [{hundredths(one.low)}, {hundredths(one.high)}]"


def formed(number: float, form: str) -> str:
    """A number in a form of its own."""
    text = form.format(number)
    return signed("−0.00" if float(text) == 0 and number < 0 and "." in text else text)


def hundredths(number: Any) -> str:
    """A number to two decimals."""
    return signed(f"{float(number):.2f}")
