"""`footsteps report`: one self-contained HTML page from run folders, with every figure as PNG and every table as CSV.

    run folders ─▶ run/ ─▶ sections/ ─▶ templates/report.html.jinja ─▶ index.html  (*.png, *.csv beside it)

The page loads nothing: styles, script and figures are inside. Every text from a run is escaped, and its
Content-Security-Policy allows no script but the page's own.
"""

import base64
import hashlib
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import tomli_w
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Group

from cache_builder.atomic import write_bytes
from cache_builder.errors import MissingError
from cache_builder.redaction import redacted
from trainer.report.changes import changes
from trainer.report.parts import size
from trainer.report.results import result_table
from trainer.report.run.run_reader import read_run
from trainer.report.sections.overview import report_of
from trainer.report.sections.runs import runs_part
from trainer.report.tables import write_csv, write_tables
from trainer.report.terminal import TerminalTable, changes_table

SHOWN_ROWS = 200
TEMPLATES = Path(__file__).parent / "templates"


def write_report(
    run_dirs: Sequence[Path], output_dir: Path | None = None, *, remote: bool = False, refresh: int | None = None
) -> Path:
    """Write the report of one run, or of several side by side, and return the path of its page.

    `output_dir` is `<run>/report` unless given; for several runs, `report` in the folder that they share. A folder that
    is given twice counts once, and runs whose folders have the same name are told apart by the folders above.

    Args:
        remote: the runs are trusted: a cache at an address, or below `$NAME`, is opened.
        refresh: seconds after which an open page loads itself again, where it is written again while a run goes on.

    Raises:
        MissingError: a folder is not a run folder, or none is given.
    """
    if not run_dirs:
        raise MissingError("no run folder was given; name at least one")
    folders = list({Path(folder).resolve(): Path(folder) for folder in run_dirs}.values())
    runs = [read_run(folder, remote=remote) for folder in folders]
    if output_dir is None:
        output_dir = folders[0] / "report" if len(folders) == 1 else _shared_parent(folders) / "report"
    output_dir.mkdir(parents=True, exist_ok=True)
    names = _names(folders)
    reports = [
        report_of(run, name, slug, tomli_w.dumps(redacted(run.config)))
        for run, name, slug in zip(runs, names, _slugs(names), strict=True)
    ]
    together = runs_part(runs, reports) if len(reports) > 1 else None
    for report in reports:
        prefix = f"{report.slug}-" if len(reports) > 1 else ""
        for section in report.sections:
            for figure in section.plots:
                write_bytes(output_dir / f"{prefix}{slugify(figure.plot.name)}.png", figure.plot.png)
        tables = [*report.tables, *(table for section in report.sections for table in section.tables)]
        for table in tables:
            write_csv(output_dir / f"{prefix}{slugify(table.name)}.csv", table)
        write_tables(output_dir / f"{prefix}tables.json", tables)
    if together is not None:
        for figure in together.figures:
            write_bytes(output_dir / f"{slugify(figure.plot.name)}.png", figure.plot.png)
        for table in together.tables:
            write_csv(output_dir / f"{slugify(table.name)}.csv", table)
    page = output_dir / "index.html"
    write_page(page, "report.html.jinja", reports=reports, together=together, shown_rows=SHOWN_ROWS, refresh=refresh)
    return page


def results_tables(run_dir: Path) -> Group:
    """Return what ends `footsteps run`: models × tasks, ×100, and gains and losses where they were looked for."""
    run = read_run(run_dir)
    found = changes(run) if run.elsewhere else []
    return Group(TerminalTable(result_table(run)), *([changes_table(found)] if found else []))


def write_page(path: Path, template: str, **values: object) -> None:
    """Render a template with the pages' style and script, and write it whole or not at all."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "points": points, "count": _count, "size": size}
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    page = environment.get_template(template).render(
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )
    write_bytes(path, page.encode())


def number(value: object) -> str:
    """Show a value in a table: counts with separators, other numbers with four significant digits."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        return f"{value:.2e}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def points(value: float | None) -> str:
    """Show a fraction in points of a hundred."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def slugify(name: str) -> str:
    """Return `name` as a plain file name and HTML id."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-.") or "run"


def _slugs(names: Sequence[str]) -> list[str]:
    """Return one slug per run, numbered where two runs share a name."""
    slugs: list[str] = []
    for name in names:
        slug, count = slugify(name), 2
        while slug in slugs:
            slug, count = f"{slugify(name)}-{count}", count + 1
        slugs.append(slug)
    return slugs


def _names(folders: Sequence[Path]) -> list[str]:
    """Return each folder's name, with as many of the folders above it as tell it from the others of that name."""
    parts = [folder.resolve().parts for folder in folders]
    names = []
    for own in parts:
        same = [other for other in parts if other != own]
        length = next(n for n in range(1, len(own) + 1) if all(other[-n:] != own[-n:] for other in same))
        names.append("/".join(part.strip("/") for part in own[-length:]))
    return names


def _shared_parent(folders: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([folder.resolve().parent for folder in folders]))


def _count(number: float | None) -> str:
    return "–" if number is None else f"{number:,.0f}"
