"""A report that follows a run: written again whenever the run has, until the reader has seen enough.

run folder ── anything newer? ──▶ page, which loads itself again        Ctrl-C: a last page, which does not
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from trainer.report.page import write_report

WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")
"""Files whose names say that no report shows them."""


def watch_report(
    run_dirs: Sequence[Path],
    output_dir: Path | None,
    every_seconds: int,
    *,
    remote: bool = False,
    told: Callable[[Path], None] = lambda page: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Write the report each time that the runs have changed, until interrupted; return the page's path.

    Raises:
        MissingError: as `write_report`.
    """
    before: object = None
    try:
        while True:
            page_folder = output_dir if output_dir is None else output_dir.resolve()
            now = [_state(folder, page_folder) for folder in run_dirs]
            if now != before:
                told(write_report(run_dirs, output_dir, remote=remote, refresh=every_seconds))
                before = now
            sleep(every_seconds)
    except KeyboardInterrupt:
        return write_report(run_dirs, output_dir, remote=remote)


def _state(run_dir: Path, page_folder: Path | None) -> tuple[int, int]:
    """Return how many files a run has, and the newest one's time; a file may vanish between being named and asked."""
    count = newest = 0
    for name, folders, files in os.walk(run_dir):
        folder = Path(name)
        if folder == run_dir:
            folders[:] = [each for each in folders if each not in ("report", "cache-copy")]
        folders[:] = [each for each in folders if (folder / each).resolve() != page_folder]
        for file in files:
            if file.endswith(WEIGHTS):
                continue
            try:
                changed = (folder / file).stat().st_mtime_ns
            except FileNotFoundError:
                continue
            count, newest = count + 1, max(newest, changed)
    return count, newest
