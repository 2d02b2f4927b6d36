"""Text from a file or a user as Markdown that says it and does nothing else: no HTML, link, image, markup or new line.

a_b*c [x](y) | z   ->   a&#95;b&#42;c &#91;x&#93;(y) &#124; z
"""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

_ACTIVE = re.compile(r"[|`*_\[\]~\\:@$]|www\.")
"""Beside HTML's own: what begins markup, ends a table's cell, or makes a renderer link a bare address or a name."""


def markdown_template(path: Path) -> Template:
    """Return a template of a Markdown page: values are escaped, `| line` makes one of a line, an absent one raises."""
    environment = Environment(
        loader=FileSystemLoader(path.parent),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["line"] = markdown_line
    return environment.get_template(path.name)


def markdown_line(value: object) -> Markup:
    """Return a value as one line of Markdown, as a paragraph or a table's cell holds it."""
    text = " ".join(str(value).split())
    pieces = (_ACTIVE.sub(_entities, piece) for piece in re.split(r"(&(?:[a-z]+|#[0-9]+);)", str(escape(text))))
    return Markup("".join(pieces))


def _entities(found: re.Match[str]) -> str:
    return "".join(f"&#{ord(letter)};" for letter in found[0])
