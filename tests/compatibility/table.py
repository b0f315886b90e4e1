"""Write what the suite finds into the documentation: ``python -m tests.compatibility.table``."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from tests.compatibility import checks, manual
from tests.compatibility.case import Case
from tests.compatibility.cases import missing_packages, refused, supported
from tests.compatibility.methods import CHECKS, METHODS, outcome

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
HEADINGS = ("set-up", "from", "trains", "β = 0", "β > 0", "logs", "γ̂")


def tables() -> dict[str, str]:
    """The tables of the page, by name."""
    rows = [[case.name, case.origin, *_outcomes(case)] for case in supported()]
    lines = [[case.name, case.origin, _line(case, checks.regularizer_is_refused), case.why] for case in refused()]
    measured = [[case.name, _line(case, checks.gamma)] for case in supported() if case.fisher.refused]
    return {
        "supported": _markdown(HEADINGS, rows),
        "manual": _markdown(("step", "β = 0", "β > 0"), manual.rows()),
        "refused": _markdown(("set-up", "from", "what the one line says", "why"), lines),
        "not measured": _markdown(("set-up", "what the one line says"), measured),
        "methods": methods_table(),
    }


def methods_table() -> str:
    """A row a check, a column a method."""
    rows = [[check, *(outcome(check, method) for method in METHODS)] for check in CHECKS]
    return _markdown(("", *(method.name for method in METHODS)), rows)


def _outcomes(case: Case) -> list[str]:
    words = [checks.outcome(case, check) for check in checks.CHECKS]
    return [*words[:-1], "refused" if case.fisher.refused else words[-1]]


def _line(case: Case, check: Callable[[Case], str]) -> str:
    """A refusal; what it quotes of other packages changes with their versions."""
    return re.sub(r"(fails there|on its samples) \(.*?\);", r"\1 (…);", checks.outcome(case, check))


def _markdown(headings: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def written(page: str, found: dict[str, str]) -> str:
    """The page with these tables between its marks."""
    for name, table in found.items():
        begin, end = f"<!-- table: {name} -->", "<!-- end -->"
        before, found_begin, rest = page.partition(begin)
        _, found_end, after = rest.partition(end)
        assert found_begin, f"{PAGE.name} has no place for the table {name!r}"
        assert found_end, f"{PAGE.name}: the place of the table {name!r} has no end"
        page = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    return page


if __name__ == "__main__":
    if missing_packages():
        raise SystemExit(f"The table needs {', '.join(missing_packages())}: pip install -e '.[test]'")
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    PAGE.write_text(written(PAGE.read_text(), tables()))
    print(f"{PAGE}: {len(supported())} set-ups trained, {len(refused())} refused")
