"""What a run prints: rows of a Markdown table, each with its bar beside it. They are told and never judged."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_HEADER = ("measure", "where", "minibox-store", "compared with", "result", "bar", "within")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        measure: What was done.
        where: On which file system, with which durability.
        ours: What this project took; a bare tool's own name and time in a row of context.
        theirs: What it is compared with, and what that took.
        result: The number that the bar speaks of; None where there was nothing to compare with.
        unit: Of the result: empty for a ratio.
        bar: The most that the result may be; None in rows that are there to be known.
        at_least: Whether the bar is the least that it may be, as it is of a rate.
    """

    measure: str
    where: str
    ours: str
    theirs: str = "-"
    result: float | None = None
    unit: str = ""
    bar: float | None = None
    at_least: bool = False

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the row."""
        result = "-" if self.result is None else _number(self.result, self.unit)
        bar = "-" if self.bar is None else _number(self.bar, self.unit)
        if self.at_least and self.bar is not None:
            bar = f"at least {bar}"
        return self.measure, self.where, self.ours, self.theirs, result, bar, self._within()

    def _within(self) -> str:
        if self.result is None or self.bar is None:
            return "-"
        is_within = self.result >= self.bar if self.at_least else self.result <= self.bar
        return "yes" if is_within else "**no**"


def render_table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [_HEADER, tuple("---" for _ in _HEADER), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def render_seconds(seconds: float) -> str:
    """Return a time in a unit in which it can be read."""
    if abs(seconds) < 0.001:
        return f"{seconds * 1_000_000:.1f} µs"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.{0 if seconds >= 0.1 else 1}f} ms"


def render_spread(seconds: Sequence[float]) -> str:
    """Return the median of some times with the least and the most, which say how noisy the machine was."""
    least, most = render_seconds(min(seconds)), render_seconds(max(seconds))
    return f"{render_seconds(statistics.median(seconds))} ({least} to {most})"


def render_mib(mib: float) -> str:
    """Return an amount of memory."""
    return f"{mib:.1f} MiB"


def _number(value: float, unit: str) -> str:
    return f"{value:.2f}" if not unit else f"{value:.1f} {unit}"
