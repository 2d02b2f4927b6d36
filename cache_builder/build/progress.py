"""What a builder says while it works: a bar on a terminal, one line per checkpoint elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cache_builder.build.costs import CostNote, speed


class BuildProgress:
    """Progress in positions; the note of its cost, where it has one, is written along."""

    def __init__(self, console: Console, name: str, positions: int, note: CostNote | None = None) -> None:
        self.console, self.name, self.positions, self.note = console, name, positions, note
        self.done = 0
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("positions"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "BuildProgress":
        self.started = time.perf_counter()
        self.task = self.bar.add_task(self.name, total=self.positions)
        self.bar.start()
        return self

    def advance(self, positions: int) -> None:
        """Say that this many more positions were captured."""
        self.done += positions
        self.bar.advance(self.task, positions)
        if self.note is not None:
            self.note.add(positions)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        if self.note is not None:
            self.note.add(finished=error is None)
        if error is None:
            seconds = time.perf_counter() - self.started
            said = f"{self.name}: {self.done:,} positions in {seconds:.1f} s ({self.done / seconds:,.0f}/s)"
            self.console.print(said if self.note is None else f"{said}; {speed(self.note.cost)}", highlight=False)
