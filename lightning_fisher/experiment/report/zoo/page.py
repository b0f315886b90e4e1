"""The report of a zoo: its tables, in the order of what is asked first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_fisher.experiment.records.quantities import QUANTITIES
from lightning_fisher.experiment.report.rank_interval import said
from lightning_fisher.experiment.report.rows import Row, grouped
from lightning_fisher.experiment.report.tables import MISSING, interval_cell, markdown, number_cell
from lightning_fisher.experiment.report.zoo.judgment import (
    BASELINES,
    FIT,
    MATTERS,
    VARIED,
    Effect,
    Judged,
    effects,
    judge_all,
    measure_name,
    that_fit,
    varied_options,
)


def parts(rows: Sequence[Row]) -> tuple[list[tuple[str, str]], list[Judged], list[Effect]]:
    """Headings and tables of the report, the judgments and what the options do.

    Args:
        rows: of all networks.
    """
    fitted = that_fit(rows)
    options = varied_options(fitted)
    if len(fitted) < 3 or not options:
        return [("Networks that fit", f"{len(fitted)} of {len(rows)}: too few to order.")], [], []
    found, done = effects(fitted, options), judge_all(fitted, options)
    return (
        [
            ("Networks", networks(rows, fitted)),
            ("What the options do to the test error", effect_table(found)),
            ("Which measure orders what", option_table(done, found)),
            ("How well, over all networks", overall_table(done, fitted)),
        ],
        done,
        found,
    )


def networks(rows: Sequence[Row], fitted: Sequence[Row]) -> str:
    """Which networks are in, in sentences."""
    left_out = [row for row in rows if row not in fitted]
    text = f"{len(fitted)} of {len(rows)} networks, those with a training error of at most {FIT:g} %."
    if left_out:
        by = grouped(left_out, ["variation"])
        names = ", ".join(f"{len(members)} of {setting[0] or 'other'}" for setting, members in by.items())
        text += f" Left out: {names}."
    seeds = len({row["seed"] for row in fitted})
    return f"{text} Seeds: {seeds}. {said([seeds])}"


def effect_table(found: Sequence[Effect]) -> str:
    """What each option does to the test error."""
    lines = [
        [
            VARIED[effect.option],
            str(effect.settings),
            number_cell(effect.points),
            number_cell(effect.spread),
            number_cell(effect.ratio, "{:.1f}"),
            "yes" if effect.matters else "no",
        ]
        for effect in found
    ]
    headings = ["option", "pairs of settings", "moves it by (points)", "spread over seeds", "times", f"≥ {MATTERS:g}"]
    return markdown(headings, lines)


def option_table(done: Sequence[Judged], found: Sequence[Effect]) -> str:
    """ψ of every measure by option, and the worst of those that matter."""
    decisive = [effect.option for effect in found if effect.matters]
    lines = []
    for judged in done:
        cells = [number_cell(judged.per_option.get(effect.option, math.nan)) for effect in found]
        wrong = [VARIED[option] for option in decisive if judged.per_option.get(option, 0.0) < 0]
        lines.append([measure_name(judged.key), _worst_cell(judged, decisive), *cells, ", ".join(wrong) or "–"])
    with_ends = any(not math.isnan(low) for judged in done for low, _ in judged.per_option_ends.values())
    of_worst = " In brackets: the interval of the worst." if with_ends else ""
    stars = [f"{VARIED[effect.option]}{' *' if effect.matters else ''}" for effect in found]
    table = markdown(["measure", "worst *", *stars, "points the wrong way over"], lines)
    return (
        f"{table}\n\nψ: Kendall's τ of networks that differ in one option alone, mean over the groups (1: always the "
        "right order, 0: a coin, −1: always the wrong one); measures that say higher is better are turned. "
        f"*: the option moves the test error by at least {MATTERS:g} times its spread over seeds; where it doesn't, "
        f"there is little to order. (b): a baseline that says nothing about a minimum.{of_worst}"
    )


def _worst_cell(judged: Judged, decisive: Sequence[str]) -> str:
    """The worst ψ, with its interval where there are seeds enough for one."""
    option = judged.worst_option(decisive)
    if option is None or math.isnan(judged.per_option_ends[option][0]):
        return number_cell(judged.worst(decisive))
    return interval_cell(judged.per_option[option], *judged.per_option_ends[option])


def overall_table(done: Sequence[Judged], rows: Sequence[Row]) -> str:
    """Every protocol over all networks, with the cost beside it."""
    lines = [
        [
            measure_name(judged.key),
            interval_cell(judged.tau, judged.low, judged.high),
            number_cell(judged.psi),
            number_cell(judged.sign_error),
            number_cell(judged.worst_sign_error),
            interval_cell(judged.partial, judged.partial_low, judged.partial_high),
            MISSING if judged.seconds is None else f"{judged.seconds:.2g}",
            str(judged.n),
        ]
        for judged in done
    ]
    controls = ", ".join(QUANTITIES[key].name for key in BASELINES)
    headings = ["measure", "Kendall τ", "Ψ", "sign error", "its worst", "partial τ", "s", "n"]
    return (
        f"{markdown(headings, lines)}\n\nSign errors over pairs of settings that differ in one option (0.5: a coin), "
        f"every pair of networks with the same weight. Partial τ: given {controls}. s: seconds for a subset of a "
        "network; what several measures share counts for the first of them, γ̂ and the metrics of Sec. 7.1 are not "
        "timed apart."
    )
