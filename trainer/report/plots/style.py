"""How every figure looks, and how one drawing becomes a PNG and two SVGs that follow the reader's light or dark theme.

    draw(width_inches) -> Figure    at 9.6 inches for a desk, at 3.7 for a phone
       ├─▶ PNG, light               written beside the page
       └─▶ SVG, wide and narrow     each color is a CSS variable with a light and a dark value

Colors are Okabe and Ito's (and lighter kin of the same hues for dark), told apart with any kind of color-blindness;
shapes, hatches or direct labels repeat whatever a color says.
"""

import base64
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDE_INCHES = 9.6
NARROW_INCHES = 3.7
SVG_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans JP", sans-serif'

INK, MUTED, GRID, PAPER = "#1b1e23", "#5b626d", "#dde1e7", "#fefefe"
STUDENT, TEACHER = "#0072b2", "#d55e00"
SERIES = ("#0072b3", "#d55e01", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7a5195", "#6b7280")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
DARK = {
    INK: "#e9ecf1",
    MUTED: "#a3abb8",
    GRID: "#333a45",
    PAPER: "#15181d",
    STUDENT: "#5cb8ee",
    TEACHER: "#ff9052",
    SERIES[0]: "#5cb8ef",
    SERIES[1]: "#ff9053",
    SERIES[2]: "#35c79c",
    SERIES[3]: "#eba3c9",
    SERIES[4]: "#9cd8f9",
    SERIES[5]: "#f5bd4a",
    SERIES[6]: "#b79bd3",
    SERIES[7]: "#aab1bd",
}
CJK_FONTS = ("Noto Sans CJK JP", "Noto Sans JP", "IPAexGothic", "IPAGothic", "Hiragino Sans", "Yu Gothic")


@dataclass(frozen=True)
class Plot:
    """One figure, rendered; the SVGs are data URIs."""

    name: str
    png: bytes
    wide: str
    narrow: str


def render(name: str, draw: Callable[[float], Figure]) -> Plot:
    """Draw at both widths. The same drawing always gives the same bytes."""
    with _style(10.5):
        figure = draw(WIDE_INCHES)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=160, facecolor=PAPER, metadata={"Software": None})
        figure.set_layout_engine("none")  # laid out by now; again would cost as much as drawing
        wide = _svg(figure, name)
    with _style(9):
        narrow = _svg(draw(NARROW_INCHES), name)
    return Plot(name, png.getvalue(), wide, narrow)


def plain(text: object, limit: int = 40) -> str:
    """Return `text` as matplotlib should draw it: shortened, and `$` never starts a formula."""
    shown = str(text)
    shown = shown if len(shown) <= limit else shown[: limit - 1] + "…"
    return shown.replace("$", r"\$")


def series_style(index: int) -> dict[str, str]:
    """Return color, marker and line style of a series; no two of the first 32 share all three."""
    size = len(SERIES)
    return {
        "color": SERIES[index % size],
        "marker": MARKERS[index % size],
        "linestyle": LINES[index // size % len(LINES)],
    }


def is_narrow(width_inches: float) -> bool:
    return width_inches < 6


def grid_of(
    count: int, width_inches: float, panel_height: float, columns: int, **options: object
) -> tuple[Figure, list[Axes]]:
    """Make a figure of `count` panels in at most `columns` columns (one on a phone) and return the panels in order."""
    columns = 1 if is_narrow(width_inches) else min(columns, count)
    panel_height *= 0.85 if is_narrow(width_inches) else 1
    rows = -(-count // columns)
    figure = Figure(figsize=(width_inches, panel_height * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, **options)  # type: ignore[call-overload]
    flat = list(panels.flat)
    for spare in flat[count:]:
        spare.set_visible(False)
    return figure, flat[:count]


@contextmanager
def _style(font_size: float) -> Iterator[None]:
    installed = {font.name for font in font_manager.fontManager.ttflist}
    settings = {
        "font.family": ["DejaVu Sans", *(font for font in CJK_FONTS if font in installed)],
        "font.size": font_size,
        "axes.titlesize": font_size + 0.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlecolor": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": MUTED,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "lines.linewidth": 1.6,
        "lines.markersize": 4.5,
        "hatch.linewidth": 0.6,
        "legend.frameon": False,
        "figure.facecolor": "none",
        "svg.fonttype": "none",
        "svg.hashsalt": "footsteps",
    }
    font_logger = logging.getLogger("matplotlib.font_manager")
    level = font_logger.level
    with matplotlib.rc_context(settings), warnings.catch_warnings():  # type: ignore[arg-type]
        # A label in a script that no installed font has: the PNG shows boxes, the SVG uses the reader's own fonts.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        font_logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            font_logger.setLevel(level)


def _svg(figure: Figure, name: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Title": name})
    svg = re.sub(
        r"(font: [^;\"]*?)'DejaVu Sans'[^;\"]*", lambda match: match[1] + SVG_FONT.replace('"', "'"), buffer.getvalue()
    )
    names = {color: f"--c{index}" for index, color in enumerate(DARK)}
    for color, variable in names.items():
        svg = svg.replace(color, f"var({variable})")
    light = "".join(f"{variable}:{color};" for color, variable in names.items())
    dark = "".join(f"{names[color]}:{value};" for color, value in DARK.items())
    themes = f"<style>:root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}</style>"
    svg = svg.replace("<defs>", themes + "<defs>", 1)
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
