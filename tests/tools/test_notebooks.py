"""Notebooks of the docs: stored without outputs, run from the first cell to the last, and made into pages."""

import json
import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tools.notebooks import notebook_page, run_notebook

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def written(folder: Path, *code: str) -> Path:
    """A notebook of a heading and these code cells."""
    cells = [{"cell_type": "markdown", "source": ["# A notebook\n", "\n", "Said."]}]
    cells += [{"cell_type": "code", "source": source.splitlines(keepends=True)} for source in code]
    path = folder / "a.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    return path


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stored_without_outputs(notebook: Path) -> None:
    content = json.loads(notebook.read_text())
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert content["nbformat"] == 4 and len({cell["id"] for cell in content["cells"]}) == len(content["cells"])


@pytest.mark.slow  # `make docs` runs it too
def test_the_schedule_s_notebook_shows_the_schedule_the_weights_and_the_table(tmp_path: Path) -> None:
    notebook = ROOT / "docs" / "notebooks" / "schedule.ipynb"
    outputs = run_notebook(notebook, tmp_path)
    page = notebook_page(notebook, outputs)
    pictures = re.findall(r"^!\[(.+)\]\((.+)\)$", page, re.MULTILINE)
    assert [title.split()[0] for title, _ in pictures] == ["What", "Which", "How"]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for _, name in pictures)
    table = dict(
        re.findall(r"^(teacher|sft/seed-0/best|td/seed-0/best) +([\d.]+)  \[", outputs[-1].printed, re.MULTILINE)
    )
    assert len(table) == 3 and all(float(value) > 0.5 for value in table.values())


def test_what_a_cell_prints_and_draws_stands_below_it(tmp_path: Path) -> None:
    draws = "import matplotlib.pyplot as plt\nplt.plot([two, 1])\nplt.suptitle('A line')"
    notebook = written(tmp_path, "two = 2\nprint(two)", draws)
    page = notebook_page(notebook, run_notebook(notebook, tmp_path))
    assert page.startswith(
        "# A notebook\n\nSaid.\n\n```python\ntwo = 2\nprint(two)\n```\n\n```text\n2\n```\n\n```python"
    )
    assert "```\n\n![A line](a-2-1.png)\n" in page


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import matplotlib.pyplot as plt\nplt.plot([1, 2])", "code cell 1: a figure without a suptitle"),
        ("1 / 0", "ZeroDivisionError"),
    ],
    ids=["untitled", "failing"],
)
def test_a_cell_that_fails_or_draws_without_a_title_stops_it(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        run_notebook(written(tmp_path, code), tmp_path)
