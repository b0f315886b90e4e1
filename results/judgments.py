"""What the judge of the zoo and of the scenarios says, for the pages."""

from __future__ import annotations

from collections.abc import Sequence

from words import hundredths, signed_table, with_interval

from lightning_fisher.experiment.report.rows import Row
from lightning_fisher.experiment.report.zoo.judgment import Effect, Judged, measure_name
from lightning_fisher.experiment.report.zoo.page import parts
from lightning_fisher.experiment.report.zoo.scenarios import Scenario, by_worst, scenarios_of, scenarios_parts, worst


class Zoo:
    """The judgments of a zoo's measures, and its tables.

    Args:
        rows: of all networks.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        tables, self.judged, self.effects = parts(rows)
        self.tables = {heading: signed_table(text) for heading, text in tables}

    def __getitem__(self, heading: str) -> str:
        return self.tables[heading]

    def n(self, key: str) -> int:
        """How many networks have a measure."""
        return self._of(key).n

    def psi(self, key: str, option: str | None = None) -> str:
        """Ψ of a measure, or ψ over one option."""
        one = self._of(key)
        return hundredths(one.psi if option is None else one.per_option[option])

    def perfect(self, option: str) -> int:
        """How many measures order the networks that differ in an option alone without a mistake."""
        return sum(round(one.per_option[option], 2) == 1.0 for one in self.judged)

    @property
    def matter(self) -> list[str]:
        """The options that move the test error enough for networks to be ordered."""
        return [effect.option for effect in self.effects if effect.matters]

    @property
    def right(self) -> list[str]:
        """The measures that point the right way over every option that matters, the best worst case first."""
        return [one.key for one in self.judged if one.worst(self.matter) > 0]

    def right_over(self, option: str) -> list[str]:
        """The measures that point the right way over an option."""
        return [one.key for one in self.judged if one.per_option[option] > 0]

    @property
    def seen(self) -> list[str]:
        """Those of them that are seen to, by their intervals."""
        return [one.key for one in self.judged if all(one.per_option_ends[name][0] > 0 for name in self.matter)]

    def names(self, keys: Sequence[str]) -> str:
        """The names of measures."""
        return ", ".join(measure_name(key) for key in keys) if keys else "none"

    def psi_ends(self, key: str, option: str) -> str:
        """ψ of a measure over one option, with its interval."""
        one = self._of(key)
        low, high = one.per_option_ends[option]
        return f"{hundredths(one.per_option[option])} [{hundredths(low)}, {hundredths(high)}]"

    def effect(self, option: str) -> Effect:
        """What an option does."""
        return next(one for one in self.effects if one.option == option)

    def seconds(self, key: str) -> str:
        """Seconds of a measure for a network."""
        return f"{self._of(key).seconds:.2g}"

    def tau(self, key: str) -> str:
        """τ of a measure over all networks, with its interval."""
        return with_interval(self._of(key))

    def _of(self, key: str) -> Judged:
        return next(one for one in self.judged if one.key == key)


class Scenarios:
    """The judgments of several scenarios, and their tables.

    Args:
        rows: of the networks of all of them.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.found = scenarios_of(rows)
        self.tables = {heading: signed_table(text) for heading, text in scenarios_parts(self.found)}

    def __getitem__(self, heading: str) -> str:
        return self.tables[heading]

    @property
    def judged(self) -> int:
        """How many measures were judged in every scenario."""
        return len(self.at_least(-1.0))

    def of(self, name: str) -> Scenario:
        """The scenario in which this varies."""
        return next(one for one in self.found if one.name == name)

    def tau(self, name: str, key: str) -> str:
        """τ of a measure in a scenario, with its interval."""
        return with_interval(self.of(name).judged[key])

    def worst(self, key: str) -> str:
        """The smallest τ of a measure."""
        return hundredths(worst(self.found, key))

    def at_least(self, tau: float) -> list[str]:
        """The measures with this τ in every scenario, the best worst case first."""
        return [key for key in by_worst(self.found) if worst(self.found, key) >= tau]
