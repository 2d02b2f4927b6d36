"""Write the sources of the docs site: the pages as they are, and reference pages made from the code.

docs/*.md, README, CONTRIBUTING, …  ──▶  SITE/docs/*.md          links to what the site has not become plain text
docs/notebooks/*.ipynb              ──▶  SITE/docs/notebooks/    pages, with what their cells leave when they are run
schema, click, signatures           ──▶  SITE/docs/reference/    settings, commands, Python
                                         SITE/zensical.toml

python -m tools.docs_site build/docs && zensical build --strict --config-file build/docs/zensical.toml
"""

import dataclasses
import importlib
import inspect
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import tomli_w

from tools.notebooks import notebook_page, run_notebook
from trainer.cli import main as footsteps
from trainer.config import Experiment
from trainer.config_help import OTHERS, config_sections, refused_arguments

ROOT = Path(__file__).parents[1]
FRONT = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
NAVIGATION = {
    "Home": "index.md",
    "Start": {
        "Tutorial": "tutorial.md",
        "Own data and models": "start.md",
        "Rows": "data.md",
        "Tasks and metrics": "tasks.md",
        "In Python": "python.md",
        "Notebook": "notebooks/schedule.md",
    },
    "How to": {
        "Load a big teacher": "big-teachers.md",
        "Run it with another engine": "engines.md",
        "Use several machines": "clusters.md",
        "Share a cache": "sharing.md",
        "Import and export": "interchange.md",
        "Serve a student": "serving.md",
        "Extend it": "extending.md",
    },
    "Reference": {
        "Settings": "reference/settings.md",
        "Commands": "reference/commands.md",
        "Python": "reference/python.md",
        "The cache's format": "format.md",
    },
    "Explanation": {
        "Words": "words.md",
        "Methods": "methods.md",
        "Targets": "targets.md",
        "The report": "report.md",
        "The paper's toy": "toy.md",
        "Design": "design.md",
    },
    "Performance": {"Figures": "performance.md", "Capacity": "capacity.md"},
    "Security": {"What is trusted": "security.md", "Reporting": "SECURITY.md"},
    "Project": {"Contributing": "CONTRIBUTING.md", "Changelog": "CHANGELOG.md", "Conduct": "CODE_OF_CONDUCT.md"},
}
"""Title → page; a page of docs/ that is not here is under "More"."""
PUBLIC = ("cache_builder", "trainer.api", "trainer.loss")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def write_site(site: Path) -> None:
    """Write everything that the generator reads; what was there is replaced."""
    docs = site / "docs"
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(ROOT / "docs", docs)
    (docs / "reference").mkdir()
    shutil.copy(ROOT / "README.md", docs / "index.md")
    for name in FRONT:
        shutil.copy(ROOT / name, docs / name)
    (docs / "reference" / "settings.md").write_text(settings_page(), encoding="utf-8")
    (docs / "reference" / "commands.md").write_text(commands_page(), encoding="utf-8")
    (docs / "reference" / "python.md").write_text(python_page(), encoding="utf-8")
    for page in docs.rglob("*.md"):
        page.write_text(relinked(page.read_text(encoding="utf-8"), page.relative_to(docs), docs), encoding="utf-8")
    for notebook in (docs / "notebooks").glob("*.ipynb"):
        notebook.with_suffix(".md").write_text(notebook_page(notebook, []), encoding="utf-8")
    (site / "zensical.toml").write_text(tomli_w.dumps(settings(docs)), encoding="utf-8")


def run_notebooks(site: Path) -> None:
    """Run the site's notebooks, and write what their cells leave into their pages: a minute each."""
    for notebook in (site / "docs" / "notebooks").glob("*.ipynb"):
        with tempfile.TemporaryDirectory() as folder:
            outputs = run_notebook(notebook, Path(folder))
            for name in (name for output in outputs for name in output.pictures):
                shutil.copy(Path(folder, name), notebook.parent)
        notebook.with_suffix(".md").write_text(notebook_page(notebook, outputs), encoding="utf-8")


def settings(docs: Path) -> dict[str, Any]:
    """Return the generator's own settings; nothing is loaded from elsewhere."""
    navigation = _navigation(NAVIGATION)
    named = set(re.findall(r"[\w/.-]+\.md", str(navigation)))
    more = sorted(path.name for path in docs.glob("*.md") if path.name not in named)
    if more:
        navigation.append({"More": [{_title(docs / name): name} for name in more]})
    palettes = [
        {
            "media": f"(prefers-color-scheme: {kind})",
            "scheme": scheme,
            "toggle": {"icon": f"lucide/{icon}", "name": name},
        }
        for kind, scheme, icon, name in (
            ("light", "default", "sun", "Switch to dark mode"),
            ("dark", "slate", "moon", "Switch to light mode"),
        )
    ]
    features = ["content.code.copy", "navigation.footer", "navigation.sections", "navigation.top", "search.highlight"]
    return {
        "project": {
            "site_name": "footsteps",
            "site_description": "Distil a fine-tuned LLM into a smaller one, without the teacher in memory",
            "docs_dir": "docs",
            "site_dir": "site",
            "use_directory_urls": False,
            "nav": navigation,
            "extra_css": ["site.css"],
            "extra_javascript": ["site.js"],
            "theme": {"language": "en", "font": False, "features": features, "palette": palettes},
            "markdown_extensions": {
                "toc": {"permalink": True},
                "tables": {},
                "md_in_html": {},
                "pymdownx": {"highlight": {}, "inlinehilite": {}, "superfences": {}},
            },
        }
    }


def _navigation(tree: dict[str, Any]) -> list[dict[str, Any]]:
    return [{title: _navigation(page) if isinstance(page, dict) else page} for title, page in tree.items()]


def _title(page: Path) -> str:
    return page.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")


def relinked(text: str, page: Path, docs: Path) -> str:
    """Point a page's links at the site's pages; of a link to what the site has not, only its words stay."""

    def link(match: re.Match[str]) -> str:
        image, words, target, anchor = match[1], match[2], match[3], match[4] or ""
        if not target or "://" in target or (docs / page.parent / target).is_file():
            return match[0].replace(".ipynb", ".md")  # a notebook has a page
        # The front pages lie above docs/ in the repository and beside its pages in the site.
        inside = re.sub(r"^\.\./|^docs/", "", target)
        inside = "index.md" if inside == "README.md" else inside
        return f"{image}[{words}]({inside.replace('.ipynb', '.md')}{anchor})" if (docs / inside).is_file() else words

    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts)


def settings_page() -> str:
    """Return every setting, as `footsteps config` lists them."""
    lines = [
        "# Settings",
        "",
        "Of a config's TOML file, and of `--set section.key=value`; `footsteps config` prints the same.",
        "",
    ]
    for path, found in config_sections(Experiment):
        lines += [f"## `[{path}]`" if path else "## Without a section", ""]
        for setting in found:
            lines += [f"**`{setting.name}`** — `{setting.type}`, {_code(setting.default)}  ", f"{setting.meaning}", ""]
    lines += ["## Refused", "", OTHERS, ""]
    for names, instead in refused_arguments():
        lines += [f"**{', '.join(f'`{name}`' for name in names)}**  ", instead, ""]
    return "\n".join(lines)


def _code(default: str) -> str:
    return default if default in ("required", "optional") else f"default `{default.removeprefix('default ')}`"


def commands_page() -> str:
    """Return every command's own help."""
    lines = ["# Commands", ""]
    for name, command in _commands("footsteps", footsteps):
        with click.Context(command, info_name=name, max_content_width=100, terminal_width=100) as context:
            lines += [f"## {name}", "", "```text", command.get_help(context), "```", ""]
    return "\n".join(lines)


def _commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for each in sorted(command.commands):
            yield from _commands(f"{name} {each}", command.commands[each])


def python_page() -> str:
    """Return signatures and docstrings of what others import."""
    lines = ["# Python", "", "[In Python](../python.md) shows how they are used.", ""]
    for module_name in PUBLIC:
        module = importlib.import_module(module_name)
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module_name
        ]
        lines += [f"## `{module_name}`", ""]
        for name in names:
            lines += [f"### `{module_name}.{name}`", "", "```text", *_described(name, getattr(module, name)), "```", ""]
    return "\n".join(lines)


def _described(name: str, value: Any) -> list[str]:
    kind = "class" if inspect.isclass(value) else "def"
    lines = [f"{kind} {name}{inspect.signature(value)}", "", *inspect.getdoc(value).splitlines()]
    if inspect.isclass(value) and not issubclass(value, tuple):
        for method, function in vars(value).items():
            documented = inspect.getdoc(function) if callable(function) or isinstance(function, property) else None
            if method.startswith("_") or documented is None:
                continue
            signature = inspect.signature(function) if inspect.isfunction(function) else ""
            lines += ["", f"    {method}{signature}", *(f"        {line}".rstrip() for line in documented.splitlines())]
    if dataclasses.is_dataclass(value):
        lines += ["", f"    fields: {', '.join(field.name for field in dataclasses.fields(value))}"]
    return lines


if __name__ == "__main__":
    write_site(Path(sys.argv[1]))
    run_notebooks(Path(sys.argv[1]))
