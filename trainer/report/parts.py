"""What a report is made of: sections of plots and of tables, each table also a CSV file.

A section whose data are missing is kept, with a sentence that says so.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from trainer.report.plots.style import Plot
from trainer.report.results import ResultTable
from trainer.report.run.records import Distilled
from trainer.report.tables import DataTable

T = TypeVar("T")


@dataclass(frozen=True)
class Figured:
    """A plot with what it shows (its text alternative) and what to see in it."""

    plot: Plot
    alt: str
    caption: str


@dataclass(frozen=True)
class Section:
    anchor: str
    short: str
    title: str
    lead: str
    plots: list[Figured] = field(default_factory=list)
    tables: list[DataTable] = field(default_factory=list)
    absent: str | None = None
    notes: list[str] = field(default_factory=list)
    """Sentences below the figures."""


@dataclass(frozen=True)
class RunReport:
    name: str
    slug: str
    results: ResultTable
    last: ResultTable
    summary: str
    cautions: list[str]
    facts: list[tuple[str, str]]
    sections: list[Section]
    tables: list[DataTable]
    missing: list[str]
    settings: str
    selected_by: str = ""
    """What the reported state of every student was chosen by."""


def extended(section: Section, *figures: Figured, tables: list[DataTable] | None = None) -> Section:
    kept = [table for table in [*section.tables, *(tables or [])] if table.rows]
    return replace(section, plots=[*section.plots, *figures], tables=kept)


def absent(section: Section, reason: str) -> Section:
    return replace(section, absent=reason, tables=[table for table in section.tables if table.rows])


def first_seeds(distilled: Sequence[Distilled]) -> str:
    """Say which seed the figures show of each method, where there are several."""
    first = first_per_name((d.method, d.seed) for d in distilled)
    if len({d.seed for d in distilled}) < 2:
        return ""
    seeds = sorted(set(first.values()))
    return (
        f" Of each method seed {seeds[0]}; the CSV file has all."
        if len(seeds) == 1
        else (" Of each method one seed: " + ", ".join(f"{name} {seed}" for name, seed in first.items()) + ".")
    )


def first_per_name(pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    found: dict[str, T] = {}
    for name, value in pairs:
        found.setdefault(name, value)
    return found


def size(value: float | None, billion: str) -> str:
    """Show a large count with three digits and a factor of a thousand: 26.2 K, 7.24 B (parameters), 14.5 G (bytes)."""
    if value is None:
        return "–"
    for factor, unit in ((1e9, billion), (1e6, "M"), (1e3, "K")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f}"
