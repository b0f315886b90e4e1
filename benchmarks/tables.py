"""Results as Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

Row = dict[str, Any]


def markdown(name: str, sections: dict[str, Any]) -> str:
    """The report: a table a network and section, and where they were measured."""
    parts = [f"# Benchmark results: {name}\n", _INTRODUCTION]
    for section in _TABLES:
        if section in sections:
            parts.append(f"## {section}\n\n{_where(sections[section])}\n")
            parts.append(of_section(section, sections[section]))
    return "\n".join(parts).rstrip() + "\n"


def of_section(section: str, measured: Row) -> str:
    """The tables of one section."""
    return "\n".join(_TABLES[section](measured["tables"]))


_INTRODUCTION = (
    "Ratios are medians over interleaved rounds of the time relative to the first row in the same round, with the "
    "quartiles in brackets; CPU is the same of processor time, which is steadier on a busy machine. What is measured "
    "and how to repeat it: `docs/benchmarks.md`.\n"
)


def _where(section: Row) -> str:
    made = section["provenance"]
    machine = made["hardware"]
    where = machine["cpu"] if machine["device"] == "cpu" else f"{machine['device']}, {machine['cpu']}"
    commit = (made["commit"] or "unknown")[:12] + (" with changes" if made["modified"] else "")
    versions = ", ".join(f"{k} {v}" for k, v in made["versions"].items())
    return (
        f"{where}, {machine['cpu_cores']} cores; commit {commit}; {made['started']}; load average "
        f"{made['load_average_before']} before, {section['load_average_after']} after; `{made['command']}`; {versions}."
    )


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table, the first column to the left, the others to the right."""
    header = list(header)
    lines = [header, [":--"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def groups(rows: list[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of some keys, in the order of their first appearance."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return found


def ratio(row: Row) -> str:
    """``1.23 [1.20, 1.31]``."""
    return f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"


def _times(rows: list[Row], describe: Callable[[Row], str], throughput: bool = False) -> list[str]:
    parts = []
    for (network,), of_network in groups(rows, "network").items():
        by_threads = groups(of_network, "threads")
        header = ["contender"]
        for (count,) in by_threads:
            header += [f"ratio, {count} thread{'s' * (count > 1)}", "CPU", "s"] + ["images/s"] * throughput
        lines = []
        for (contender,), same in groups(of_network, "contender").items():
            line = [contender]
            for (count,) in by_threads:
                row = next((r for r in same if r["threads"] == count), None)
                if row is None:  # it failed with this number of threads
                    line += ["–"] * (3 + throughput)
                    continue
                line += [ratio(row), f"{row['ratio_cpu']:.2f}", f"{row['seconds']:.3g}"]
                if throughput:
                    line.append(f"{row['images_per_second']:.0f}")
            lines.append(line)
        parts += [f"### {network}, {describe(of_network[0])}\n", table(header, lines)]
    return parts


def _gram(tables: dict[str, list[Row]]) -> list[str]:
    return _times(tables["times"], lambda row: f"ξ of {row['samples']} samples, {row['rounds']} rounds")


def _errors(tables: dict[str, list[Row]]) -> list[str]:
    parts = []
    for (network,), rows in groups(tables["errors"], "network").items():
        states = groups(rows, "state", "loss", "log_det")
        header = ["contender"]
        for state, loss, log_det in states:
            header += [f"ξ, {state} (loss {loss:.1e})", f"ln∣ξ∣ = {log_det:.1f}", "nats"]
        lines = []
        for (contender,) in groups(rows, "contender"):
            line = [contender]
            for of_state in states.values():
                row = next((r for r in of_state if r["contender"] == contender), None)
                keys = ("gram_error", "log_det_error", "log_det_nats")
                line += ["–"] * 3 if row is None else [_error(row[key]) for key in keys]
            lines.append(line)
        parts += [f"### {network}: relative to float64\n", table(header, lines)]
    return parts


def _many(tables: dict[str, list[Row]]) -> list[str]:
    header = [
        "network",
        "N′",
        "W",
        "ln∣ξ∣ in float64",
        "relative error",
        "rank",
        "float64 passes",
        "s",
        "MiB",
        "reference",
    ]
    lines = [
        [
            row["network"],
            f"{row['samples']}",
            f"{row['parameters']}",
            f"{row['log_det']:.6f}",
            _error(row["log_det_error"]),
            f"{row['rank']}",
            "yes" if row["repeated"] else "no",
            f"{row['seconds']:.1f}",
            f"{row['mib']:.0f}",
            f"{row['reference']} ({row['reference_seconds']:.0f} s)",
        ]
        for row in tables["many"]
    ]
    return [table(header, lines)]


def _sequences(tables: dict[str, list[Row]]) -> list[str]:
    return _times(tables["times"], lambda row: f"{row['rounds']} rounds, error of ξ {row['error']:.0e}")


def _error(value: float) -> str:
    return "singular" if math.isnan(value) else f"{value:.1e}"


def _profile(tables: dict[str, list[Row]]) -> list[str]:
    parts = []
    for (network,), rows in groups(tables["profile"], "network").items():
        names = [name for (name,) in groups(rows, "contender")]
        lines = [
            [title, *(f"{row['ms']:.1f}" for row in of_kind)] for (title,), of_kind in groups(rows, "kind").items()
        ]
        totals = [sum(row["ms"] for row in of_name) for of_name in groups(rows, "contender").values()]
        lines.append(["together", *(f"{total:.1f}" for total in totals)])
        parts += [f"### {network}: milliseconds, one thread\n", table(["operations", *names], lines)]
    return parts


def _step(tables: dict[str, list[Row]]) -> list[str]:
    describe = lambda row: f"batch {row['batch_size']}, M = {row['M']}, {row['rounds']} rounds"  # noqa: E731
    return _times(tables["times"], describe, throughput=True)


def _loop(tables: dict[str, list[Row]]) -> list[str]:
    describe = lambda row: f"{row['images']} images, batch {row['batch_size']}, {row['rounds']} epochs"  # noqa: E731
    return _times(tables["times"], describe, throughput=True)


def _memory(tables: dict[str, list[Row]]) -> list[str]:
    parts = []
    titles = {"gram": "ξ of {samples} samples", "chunks": "large ξ", "step": "a step, batch {samples}, M = {M}"}
    for (network, kind), rows in groups(tables["memory"], "network", "kind").items():
        lines = []
        for row in rows:
            name = row["contender"]
            if kind == "chunks":
                name = f"N′ = {row['samples']}, chunk_size = {row['chunk_size']}"
            lines.append([name, f"{row['extra_mib']:.0f}"])
        parts += [f"### {network}: {titles[kind].format(**rows[0])}\n", table(["contender", "peak extra MiB"], lines)]
    return parts


def _scaling(tables: dict[str, list[Row]]) -> list[str]:
    parts = []
    for (along,), rows in groups(tables["times"], "along").items():
        names = list(groups(rows, "contender"))
        lines = []
        for (value, network), same in groups(rows, "value", "network").items():
            found = {(row["contender"],): row for row in same}
            lines.append([f"{value}", network, *(ratio(found[name]) if name in found else "–" for name in names)])
        parts += [f"### along {along}\n", table([along, "on", *(name for (name,) in names)], lines)]
    return parts


def _forms(tables: dict[str, list[Row]]) -> list[str]:
    return _times(tables["times"], lambda row: f"ln|ξ| of {row['samples']} samples, {row['rounds']} rounds")


def _measures(tables: dict[str, list[Row]]) -> list[str]:
    parts = []
    for (network, samples, subsets), rows in groups(tables["suite"], "network", "samples", "subsets").items():
        lines = [[f"`{row['measure']}`", f"{row['seconds']:.2f}", f"{10 * row['seconds']:.1f}"] for row in rows]
        for title, group in (("the paper's four", "paper"), ("recommended", "recommended"), ("forms of γ̂", "forms")):
            total = sum(row["seconds"] for row in rows if group in row["groups"])
            lines.append([f"{title}, together", f"{total:.2f}", f"{10 * total:.1f}"])
        total = sum(row["seconds"] for row in rows)
        lines.append(["all, together", f"{total:.2f}", f"{10 * total:.1f}"])
        title = f"### {network}: seconds of {samples} samples, mean of {subsets} subset{'s' * (subsets > 1)}\n"
        parts += [title, table(["measure", "a subset", "10 subsets"], lines)]
    return parts


_TABLES = {
    "gram": _gram,
    "errors": _errors,
    "many": _many,
    "sequences": _sequences,
    "profile": _profile,
    "step": _step,
    "loop": _loop,
    "memory": _memory,
    "scaling": _scaling,
    "forms": _forms,
    "measures": _measures,
}
