"""What a builder says while it works: a bar on a terminal; elsewhere a line twice a minute, and one per checkpoint."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cache_builder.build.costs import CostNote, speed
from cache_builder.narration import LINE_SECONDS, duration, manner, say


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
            disable=not console.is_terminal or manner() != "text",
        )

    def __enter__(self) -> "BuildProgress":
        self.started = self.said_at = time.perf_counter()
        self.task = self.bar.add_task(self.name, total=self.positions)
        self.bar.start()
        return self

    def advance(self, positions: int) -> None:
        """Say that this many more positions were captured."""
        self.done += positions
        self.bar.advance(self.task, positions)
        if self.note is not None:
            self.note.add(positions)
        now = time.perf_counter()
        if self.bar.disable and now - self.said_at > LINE_SECONDS:
            self.said_at = now
            rate = self.done / (now - self.started)
            left = duration((self.positions - self.done) / max(rate, 1e-9))
            self._say("building", f"{self.done:,} of {self.positions:,} positions, {rate:,.0f}/s, {left} left", rate)

    def _say(self, event: str, text: str, rate: float) -> None:
        facts = {"done": self.done, "positions": self.positions, "positions_per_second": round(rate, 1)}
        say(event, f"{self.name}: {text}", stderr=True, name=self.name, **facts)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        if self.note is not None:
            self.note.add(finished=error is None)
        if error is None:
            seconds = time.perf_counter() - self.started
            rate = self.done / max(seconds, 1e-9)
            said = f"{self.done:,} positions in {seconds:.1f} s ({rate:,.0f}/s)"
            self._say("built", said if self.note is None else f"{said}; {speed(self.note.cost)}", rate)
