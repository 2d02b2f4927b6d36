"""Notebooks without Jupyter: run in a process of their own, and made into pages of the docs site.

docs/notebooks/NAME.ipynb ──▶ code cells in one namespace ──▶ what each prints, the figures that it leaves open
                          ──▶ NAME.md, and pictures whose text is their title

python -m tools.notebooks NOTEBOOK FOLDER      run it there; `outputs.json` and the pictures lie beside what it makes
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUTPUTS = "outputs.json"
MOST_SECONDS = 600


@dataclass(frozen=True)
class Output:
    """What one code cell left."""

    printed: str
    pictures: dict[str, str]
    """File's name → title of the figure."""


def cells(notebook: Path) -> Iterator[tuple[str, str]]:
    """Yield kind and source of each cell."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        yield cell["cell_type"], "".join(cell["source"])


def run_notebook(notebook: Path, folder: Path) -> list[Output]:
    """Run a notebook in a folder, where its pictures then lie; return what each code cell left.

    Raises:
        RuntimeError: a cell failed, or left a figure without a title; the message ends with the traceback.
    """
    command = [sys.executable, "-m", "tools.notebooks", str(notebook.resolve()), str(folder.resolve())]
    environment = {**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=MOST_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{notebook.name}: {done.stderr[-3000:]}")
    return [Output(**output) for output in json.loads((folder / OUTPUTS).read_text(encoding="utf-8"))]


def notebook_page(notebook: Path, outputs: list[Output]) -> str:
    """Return a notebook as Markdown, with what its code cells left, where it was run."""
    left = iter(outputs)
    parts = []
    for kind, source in cells(notebook):
        parts.append(source if kind == "markdown" else f"```python\n{source}\n```")
        if kind == "code" and (output := next(left, None)) is not None:
            if output.printed:
                parts.append(f"```text\n{output.printed.rstrip()}\n```")
            parts += [f"![{title}]({name})" for name, title in output.pictures.items()]
    return "\n\n".join([*parts, f"[The notebook]({notebook.name}), without outputs."]) + "\n"


def _run_cells(notebook: Path, folder: Path) -> None:
    """Run every code cell in this process, as a kernel does: figures that a cell leaves open are its output."""
    import matplotlib.pyplot as plt

    names: dict[str, object] = {"__name__": "__main__"}
    outputs = []
    code = [source for kind, source in cells(notebook) if kind == "code"]
    for number, source in enumerate(code, 1):
        printed, pictures = io.StringIO(), {}
        with contextlib.redirect_stdout(printed):
            exec(compile(source, f"{notebook.name}, code cell {number}", "exec"), names)
        for figure in map(plt.figure, plt.get_fignums()):
            title = figure.get_suptitle()
            if not title:
                raise RuntimeError(f"code cell {number}: a figure without a suptitle; who cannot see it is read that")
            name = f"{notebook.stem}-{number}-{len(pictures) + 1}.png"
            figure.savefig(folder / name, dpi=120)
            pictures[name] = title
        plt.close("all")
        outputs.append(asdict(Output(printed.getvalue(), pictures)))
    (folder / OUTPUTS).write_text(json.dumps(outputs), encoding="utf-8")


if __name__ == "__main__":
    _run_cells(Path(sys.argv[1]), Path(sys.argv[2]))
