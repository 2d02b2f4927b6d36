"""The table that ends `footsteps run`: models × tasks, ×100, in as many words as the terminal has room for.

    wide        85.0 ± 1.2 [81.0, 88.9] ▲
    narrow      85.0 ± 1.2 ▲
    narrower    85.0 ▲                        and then the tasks below each other in several tables

A model's name is never cut: it is what the reader looks for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from trainer.report.changes import Change
from trainer.report.results import Cell, ResultRow, ResultTable

UNLIMITED = 100_000
MARKS = {"above": " ▲", "below": " ▼"}


@dataclass(frozen=True)
class Detail:
    """Which parts of a cell are shown."""

    spread: bool
    interval: bool


DETAILS = (
    Detail(spread=True, interval=True),
    Detail(spread=True, interval=False),
    Detail(spread=False, interval=False),
)


@dataclass(frozen=True)
class TerminalTable:
    """Results that rich prints with the most detail that fits."""

    results: ResultTable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        tasks = list(self.results.tasks)
        for detail in DETAILS:
            table = self._table(tasks, detail, last=True)
            if _width(console, options, table) <= options.max_width:
                yield table
                return
        while tasks:
            count = len(tasks)
            table = self._table(tasks, detail, last=True)
            while count > 1 and _width(console, options, table) > options.max_width:
                count -= 1
                table = self._table(tasks[:count], detail, last=False)
            yield table
            tasks = tasks[count:]

    def _table(self, tasks: Sequence[str], detail: Detail, *, last: bool) -> Table:
        table = Table(
            title="Test set, ×100", caption=_caption(detail, baselines=bool(self.results.baselines)) if last else None
        )
        table.add_column("model", no_wrap=True)
        for task in tasks:
            table.add_column(Text(f"{task}\n{self.results.tasks[task]}"), justify="right", no_wrap=True)
        with_mean = last and len(self.results.tasks) > 1
        if with_mean:
            table.add_column("mean", justify="right", no_wrap=True)
        last_reference = next((row for row in reversed(self.results.rows) if row.kind != "method"), None)
        for row in [*self.results.rows, *self.results.baselines]:
            cells = [_cell(row.cells.get(task), detail) for task in tasks]
            if with_mean:
                cells.append(_average(row))
            label = Text(row.label, style="italic" if row.kind == "teacher" else "")
            table.add_row(label, *cells, end_section=row is last_reference or row is self.results.rows[-1])
        return table


def _width(console: Console, options: ConsoleOptions, table: Table) -> int:
    caption, table.caption = table.caption, None
    width = Measurement.get(console, options.update(max_width=UNLIMITED), table).maximum
    table.caption = caption
    return width


def _caption(detail: Detail, *, baselines: bool) -> Text:
    parts = ["bold: best student", "▲ ▼: above, below the teacher (paired by row, p < 0.05, Holm)"]
    if baselines:
        parts.append("○: not above a baseline")
    if detail.interval:
        parts.insert(0, "[low, high]: 95 % interval over test rows")
    else:
        parts.append("intervals are in the report")
    return Text(" · ".join(parts))


def _cell(cell: Cell | None, detail: Detail) -> Text:
    if cell is None:
        return Text("–")
    spread = f" ± {100 * cell.std:.1f}" if detail.spread and cell.std is not None else ""
    text = Text(f"{100 * cell.mean:.1f}{spread}", style="bold" if cell.best else "")
    if detail.interval:
        text.append(f" [{100 * cell.low:.1f}, {100 * cell.high:.1f}]", style="not bold dim")
    text.append(MARKS.get(cell.mark, "  "))
    text.append(" ○" if cell.at_baseline else "")
    return text


def _average(row: ResultRow) -> Text:
    average = "–" if row.average is None else f"{100 * row.average:.1f}"
    return Text(average, style="bold" if row.best_average else "")


def changes_table(changes: Sequence[Change]) -> Table:
    """Return what students gained, and lost elsewhere, against themselves before training: a line for each task."""
    table = Table(
        title="Gained since before training, as the metrics have it; more is better",
        caption="▲ ▼: more than chance (paired by row, p < 0.05, Holm)",
    )
    labels = dict.fromkeys(change.label for change in changes)
    table.add_column("task", no_wrap=True)
    for name in ("metric", "base", *labels):
        table.add_column(Text(name), justify="left" if name == "metric" else "right", no_wrap=True)
    by_task: dict[tuple[bool, str], dict[str, Change]] = {}
    for change in changes:
        by_task.setdefault((change.own, change.task), {})[change.label] = change
    tasks = list(by_task)
    for index, (own, task) in enumerate(tasks):
        found = by_task[own, task]
        first = next(iter(found.values()))
        cells = [Text(_gained(found[label]) if label in found else "–") for label in labels]
        is_last_own = own and index + 1 < len(tasks) and not tasks[index + 1][0]
        table.add_row(Text(task), Text(first.metric), f"{first.base:.3g}", *cells, end_section=is_last_own)
    return table


def _gained(change: Change) -> str:
    mark = {"gained": MARKS["above"], "lost": MARKS["below"]}.get(change.verdict, "  ")
    return f"{change.gained:+.3f}{mark}".replace("-", "−")
