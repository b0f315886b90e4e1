"""Report over rows: ``python -m lightning_fisher.experiment.report FOLDER``. Reads rows, never a model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_fisher.command_line.parser import OneLineParser
from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.config.error_messages import listing
from lightning_fisher.experiment.display.terminal import print_report
from lightning_fisher.experiment.records.curve import FILE_NAME as HISTORY
from lightning_fisher.experiment.records.curve import read_history
from lightning_fisher.experiment.records.result import require_rows, write_atomically
from lightning_fisher.experiment.records.run_folders import REPORT
from lightning_fisher.experiment.report.comparison.figure import plot_methods
from lightning_fisher.experiment.report.comparison.table import KINDS as COMPARED
from lightning_fisher.experiment.report.comparison.table import kind_of, methods_table
from lightning_fisher.experiment.report.curves.figure import plot_curves
from lightning_fisher.experiment.report.curves.table import curves_table
from lightning_fisher.experiment.report.figures import plot_lines, plot_ranking, plot_scenario
from lightning_fisher.experiment.report.method_figures import plot_groups, plot_pairs
from lightning_fisher.experiment.report.paired_table import differences_table
from lightning_fisher.experiment.report.rank_interval import said
from lightning_fisher.experiment.report.rank_table import LEAST, all_correlations, ranking_table
from lightning_fisher.experiment.report.rows import Row, grouped, numbers, require_known, value, varied
from lightning_fisher.experiment.report.tables import TABLES, summary
from lightning_fisher.experiment.report.zoo.figure import plot_zoo
from lightning_fisher.experiment.report.zoo.judgment import varied_options
from lightning_fisher.experiment.report.zoo.page import parts
from lightning_fisher.experiment.report.zoo.scenarios import scenarios_of, scenarios_parts
from lightning_fisher.experiment.report.zoo.scenarios_figure import plot_scenarios

MOST_COLORS = 6  # of a figure: more values of an option are not told apart
KINDS = ("scenario", "groups", "ranking", "curves", "methods", "zoo", "scenarios", *TABLES)
MAIN = ("test_error", "gamma")  # the quantities of figures that show no other


@dataclass
class Report:
    """A report: its parts in order, and the figures it names."""

    title: str
    parts: list[tuple[str, str]] = field(default_factory=list)
    figures: list[Path] = field(default_factory=list)

    def text(self, markdown: bool) -> str:
        """Format for a Markdown file, or for a terminal."""
        blocks = [f"# {self.title}"]
        blocks += [f"## {heading}\n\n{body}" if markdown else f"{heading}\n{body}" for heading, body in self.parts]
        if markdown:
            blocks += [f"![{path.stem}]({path.name})" for path in self.figures]
        return "\n\n".join(blocks) + "\n"


def plan(rows: Sequence[Row], kind: str | None, x: str | None, by: str | None) -> dict[str, Any]:
    """Decide the form of the report: what was asked for, then what the study says, then what varies.

    Raises:
        ConfigError: if the form is unknown, or a name is none of the rows'.
    """
    studies = [row["study"] for row in rows if row.get("study")]
    form = dict(studies[0]) if studies and all(s.get("name") == studies[0].get("name") for s in studies) else {}
    keys = varied(rows)
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"Expected `--as` to be {listing(KINDS)}, but got `{kind}`.")
    for name in (x, by):
        if name is not None:
            require_known(rows, name)
    if x is not None and x != form.get("x"):
        form = {"name": form.get("name"), "report": "scenario", "x": x}
    form["report"] = kind or form.get("report", "groups")
    form["by"] = by or form.get("by")
    form.setdefault("x", keys[0] if keys else None)
    form["keys"] = list(dict.fromkeys([k for k in (form["x"], form["by"]) if k in keys] + keys)) or ["model"]
    return form


def make(rows: Sequence[Row], folder: Path, form: dict[str, Any], runs: Sequence[Path] = ()) -> Report:
    """Make the parts and the figures of a report.

    Args:
        rows: the runs.
        folder: where the figures go.
        form: of the report, as `plan` decides it.
        runs: the folders of the runs, in the same order, for what isn't in rows.
    """
    kind, x, by = form["report"], form["x"], form["by"]
    label, wanted = form.get("x_label") or "", form.get("x_order")
    made = Report(f"{form.get('name') or folder.name}: {len(rows)} runs")
    if kind == "methods":
        made.parts.append((methods_table.__doc__ or "", methods_table(rows)))
        made.parts.append(("Made by", provenance(rows)))
        if any(kind_of(row) in COMPARED for row in rows):
            made.figures.append(plot_methods(rows, folder / "methods.png"))
        return made
    if kind == "zoo":
        return make_zoo(rows, folder, made)
    if kind == "scenarios":
        found = scenarios_of(rows)
        made.parts += [*scenarios_parts(found), ("Made by", provenance(rows))]
        made.figures.append(plot_scenarios(found, folder / "scenarios.png"))
        return made
    if kind == "curves":
        return make_curves(rows, runs, folder, form["keys"], made)
    if kind in TABLES:
        made.parts.append((TABLES[kind].__doc__.splitlines()[0], TABLES[kind](rows)))  # type: ignore[union-attr]
    made.parts.append(("All runs, mean ± standard deviation", summary(rows, form["keys"], wanted)))
    if differences := differences_table(rows, form["keys"]):
        made.parts.append(("Paired differences from the baseline, mean [95 % t interval] over seeds", differences))
    ranking = all_correlations(rows) if kind in ("scenario", "ranking", "groups") else {}
    if ranking:
        intervals = said([len({row["seed"] for row in rows})])
        made.parts.append(
            ("Rank correlation with the test error over runs", f"{ranking_table(ranking)}\n\n{intervals}")
        )
    elif kind in ("scenario", "ranking"):
        made.parts.append(
            (
                "Rank correlation with the test error over runs",
                f"Not shown: of fewer than {LEAST} runs it takes only a few values, whatever the metric.",
            )
        )
    made.parts.append(("Made by", provenance(rows)))
    if kind == "scenario" and x is not None:
        made.figures.append(plot_scenario(rows, x, folder / "metrics.png", label, wanted))
        made.figures.append(plot_ranking(rows, x, folder / "ranking.png", label, wanted, ranking))
    elif kind == "ranking":
        several = x if x is not None and len(grouped(rows, [x])) <= MOST_COLORS else None
        made.figures.append(plot_ranking(rows, several, folder / "ranking.png", label, wanted, ranking))
    elif kind == "select_beta":
        quantities = ("val_error", *MAIN)
        made.figures.append(plot_lines(rows, "reg.beta", folder / "beta.png", quantities=quantities, label=label))
    elif kind in ("table1", "table2"):
        made.figures.append(plot_pairs(rows, "test_error", folder / "test_error.png"))
    elif kind == "table3":
        made.figures.append(plot_pairs(rows, "gamma", folder / "gamma.png"))
    elif kind == "step_cost":
        pass  # a table of a few numbers
    elif x is not None and (lines := lines_over(rows, x, form["keys"])):
        made.figures.append(
            plot_lines(rows, x, folder / "lines.png", quantities=MAIN, by=lines, label=label, wanted=wanted)
        )
    elif x is not None and set(form["keys"]) - {x, by}:  # a line would be of runs that differ in something else
        made.figures.append(plot_groups(rows, form["keys"], folder / "groups.png", quantities=MAIN))
    elif x is not None and x != by:
        made.figures.append(
            plot_lines(
                rows, x, folder / "lines.png", quantities=MAIN, by=[by] if by else (), label=label, wanted=wanted
            )
        )
    elif by == "reg" or x == "reg":
        made.figures.append(plot_pairs(rows, "test_error", folder / "test_error.png"))
    return made


def lines_over(rows: Sequence[Row], x: str, keys: Sequence[str]) -> list[str]:
    """The options whose combinations make lines over x, where there are few and each has every value of x.

    Empty where there are too many, or x has too few values, or none that are numbers.
    """
    others, values = [key for key in keys if key != x], {value(row, x) for row in rows}
    if len(others) < 2 or len(values) < 3 or not all(isinstance(one, (int, float)) for one in values):
        return []
    lines = grouped(rows, others).values()
    full = all({value(row, x) for row in members} == values for members in lines)
    return others if full and len(lines) <= MOST_COLORS else []


def make_zoo(rows: Sequence[Row], folder: Path, made: Report) -> Report:
    """Judge every measure on networks that differ in several options."""
    found, done, options = parts(rows)
    keys = ["variation", *(key for key in varied_options(rows) if key == "data.confusion_size")]
    keys = [key for key in keys if any(value(row, key) is not None for row in rows)] or ["model"]
    made.parts += [*found, ("All runs, mean ± standard deviation", summary(rows, keys)), ("Made by", provenance(rows))]
    if done:
        made.figures.append(plot_zoo(done, options, folder / "zoo.png"))
    return made


def make_curves(rows: Sequence[Row], runs: Sequence[Path], folder: Path, keys: Sequence[str], made: Report) -> Report:
    """Show the trainings side by side: what they end with and, where their folders hold it, how they went."""
    made.parts.append(("What every method ends with", curves_table(rows, keys)))
    several = any(len(members) > 1 for members in grouped(rows, keys).values())
    if several and (differences := differences_table(rows, keys)):
        made.parts.append(("Paired differences from the baseline, mean [95 % t interval] over seeds", differences))
    made.parts.append(("Made by", provenance(rows)))
    if runs and all((run / HISTORY).is_file() for run in runs):
        made.figures.append(plot_curves(rows, list(map(read_history, runs)), keys, folder / "curves.png"))
    return made


def provenance(rows: Sequence[Row]) -> str:
    """Say what the rows were made with: commits, versions, hardware, total time."""
    commits = sorted(
        {
            f"commit {row['commit'][:10]}{' (modified)' if row.get('modified') else ''}"
            if row.get("commit")
            else f"lightning_fisher {row['versions'].get('lightning_fisher')}"  # installed, not a checkout
            for row in rows
        }
    )
    versions = sorted({f"torch {r['versions']['torch']}, lightning {r['versions']['lightning']}" for r in rows})
    hardware = sorted(
        {f"{h['devices']} x {h['cpu'] if h['device'] == 'cpu' else h['device']}" for h in (r["hardware"] for r in rows)}
    )
    seconds = sum(numbers(rows, "fit_seconds"))
    return f"{', '.join(commits)}; {', '.join(versions)}; {', '.join(hardware)}; {seconds:.0f} s of training"


def report(
    folder: Path,
    runs: Sequence[Path] | None = None,
    *,
    kind: str | None = None,
    x: str | None = None,
    by: str | None = None,
    out: Path | None = None,
) -> Report:
    """Write ``report.md`` and its figures, and print the tables.

    Args:
        folder: the rows are those at or below it.
        runs: only these run folders.
        kind: form of the report, else that of the study.
        x: the varied option, else that of the study.
        by: the option that makes lines of a figure.
        out: where to write, else ``folder``.

    Raises:
        ConfigError: if there are no rows, or an argument does not fit them.
    """
    found = require_rows(folder, runs)
    folders, rows = [run for run, _ in found], [row for _, row in found]
    target = out or folder
    target.mkdir(parents=True, exist_ok=True)
    made = make(rows, target, plan(rows, kind, x, by), folders)
    write_atomically(target / REPORT, made.text(markdown=True))
    print_report(made.text(markdown=False), [target / REPORT, *made.figures])
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; exits with 1 and one line on a mistake."""
    parser = OneLineParser(prog="python -m lightning_fisher.experiment.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="any folder with runs (result.json) at or below it")
    parser.add_argument("--x", help="the option on the x axis, such as data.confusion_size")
    parser.add_argument("--by", help="the option or group that makes the lines, such as reg")
    parser.add_argument("--as", dest="kind", help=f"form of the report: {listing(KINDS)}")
    parser.add_argument("--out", type=Path, help="where to write it (default: the folder)")
    given = parser.parse_args(arguments)
    try:
        report(given.folder, kind=given.kind, x=given.x, by=given.by, out=given.out)
    except (ConfigError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
