"""Figures are for those who read them: two widths, two themes, names drawn as they are, colors told apart."""

import base64
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from trainer.methods.schedules import choose
from trainer.report.plots import costs as plots_costs
from trainer.report.plots import plots
from trainer.report.plots import runs as plots_runs
from trainer.report.plots import training as plots_training
from trainer.report.plots.style import DARK, INK, PAPER, SERIES, STUDENT, TEACHER, plain, render, series_style
from trainer.report.results import Cell, ResultRow, ResultTable
from trainer.report.run.run_costs import Agreement, Arm, LiveTeacher
from trainer.report.subdomains import compare

NAMES = [f"checkpoint-{step}" for step in (100, 200, 300)]
CELL = Cell(mean=0.7, std=0.1, low=0.6, high=0.8, rows=10, unparsable=0, best=True)


def a_table(label: str = "td") -> ResultTable:
    rows = [
        ResultRow("teacher SFT", "teacher", (), 1, 4, 1.0, {"t": CELL}),
        ResultRow(label, "method", (0,), 1, 4, 1.0, {}),
    ]
    return ResultTable({"t": "accuracy"}, rows)


def draw_scores(width: float) -> Figure:
    return plots.scores(a_table(), width)


def draw_schedule(width: float) -> Figure:
    terms = {name: 0.1 * index for index, name in enumerate(NAMES)}
    return plots.schedule([choose(stage, 10 * stage, terms, terms) for stage in range(2)], "kl", width)


def draw_matrix(width: float) -> Figure:
    return plots.kl_matrix(NAMES, np.arange(9).reshape(3, 3) / 9, width)


def draw_weights(width: float) -> Figure:
    return plots.weights({name: np.linspace(0, 1, 50) for name in NAMES}, "checkpoint", width)


def draw_differences(width: float) -> Figure:
    losses = np.arange(20) / 20
    rows = {"td": (losses - 0.3, compare(losses, losses + 0.1))}
    return plots.differences(rows, "difference, nats", "sequences, sorted", width)


def draw_losses(width: float) -> Figure:
    log = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 1.5}]
    return plots_training.training_losses({"td": (log, [0, 1])}, width)


def draw_curves(width: float) -> Figure:
    logs = {
        f"method {index}": [
            {"step": step, "lr": 1e-3 / step, "norm": 1.0 + index * step, **({"t": 0.1 * step} if index == 3 else {})}
            for step in (1, 2, 3)
        ]
        for index in range(9)
    }
    quantities = {"lr": "learning rate, no unit", "norm": "gradient norm, no unit", "t": "TAID's t, no unit"}
    return plots_training.curves(logs, quantities, width)


def draw_balance(width: float) -> Figure:
    losses = np.arange(20) / 20
    sides = {"td": [compare(losses, losses + 0.1 * seed) for seed in (1, 2)], "cd": [compare(losses, losses - 0.3)]}
    return plots.balance(sides, width)


def draw_stages(width: float) -> Figure:
    return plots_costs.stages({"teacher SFT": [400.0], "td": [10.0, 12.0]}, width)


def draw_live(width: float) -> Figure:
    arms = [Arm(seconds_per_step=s, rounds=[s], peak_memory_mib=100 * s) for s in (0.5, 1.5)]
    agreement = Agreement(
        loss_cache=1, loss_live=1, sampling_error=0, codes=0, arithmetic=0, one_sided=False, sequences=1
    )
    measured = LiveTeacher(
        method="td", seed=0, checkpoint="c", steps=3, sequences_per_step=8, teacher_parameters=2, student_parameters=1,
        device="CPU", commit="0", cache=arms[0], live=arms[1], time_ratio=3.0, agreement=agreement,
    )  # fmt: skip
    return plots_costs.live([measured, measured.model_copy(update={"method": "cd"})], width)


def draw_runs(width: float) -> Figure:
    point = plots_runs.Point(0.5, 0.4, 0.6)
    found = {"one": {"td": point, "sft": point}, "two": {"td": plots_runs.Point(0.6)}, "three": {"cd": point}}
    return plots_runs.runs({"triage: accuracy, ×100": found, "mean, ×100": found}, ["one", "two", "three"], width)


DRAWINGS = [draw_scores, draw_schedule, draw_matrix, draw_weights, draw_differences, draw_losses, draw_curves]
DRAWINGS += [draw_balance, draw_stages, draw_live, draw_runs]


def svg_text(uri: str) -> str:
    return base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")).decode()


def svg_width(uri: str) -> float:
    return float(ElementTree.fromstring(svg_text(uri)).attrib["width"].removesuffix("pt"))


@pytest.mark.parametrize("draw", DRAWINGS)
@pytest.mark.parametrize("width", [9.6, 3.7])
def test_every_axis_has_a_label_in_its_row_or_column(draw: Callable[[float], Figure], width: float) -> None:
    figure = draw(width)
    panels = [panel for panel in figure.axes if panel.get_visible()]
    assert any(panel.get_xlabel() for panel in panels)
    for panel in panels:
        categories = any(
            text.get_text().strip() and not text.get_text()[0].isdigit() for text in panel.get_yticklabels()
        )
        first_column = panel.get_subplotspec() is None or panel.get_subplotspec().is_first_col()
        assert not first_column or panel.get_ylabel() or categories


@pytest.mark.parametrize("draw", DRAWINGS)
def test_a_figure_follows_the_theme_and_keeps_no_light_color_of_its_own(draw: Callable[[float], Figure]) -> None:
    plot = render("name", draw)
    for uri in (plot.wide, plot.narrow):
        svg = svg_text(uri)
        ElementTree.fromstring(svg)
        assert "prefers-color-scheme: dark" in svg
        body = svg[svg.index("</style>") :]
        assert "var(--c0)" in body
        assert not any(color in body for color in DARK)
    assert svg_width(plot.narrow) == pytest.approx(3.7 * 72) and svg_width(plot.wide) == pytest.approx(9.6 * 72)


def test_lines_that_are_alike_are_one_and_too_many_become_strips() -> None:
    figure = draw_curves(9.6)
    rate, norm, taid = [panel for panel in figure.axes if panel.get_xlabel() == "optimizer step"]
    assert rate.get_title() == "the same for every method" and len(rate.get_lines()) == 1
    (image,) = norm.images
    np.testing.assert_allclose(image.get_array(), [[1 + index * step for step in (1, 2, 3)] for index in range(9)])
    assert [label.get_text() for label in norm.get_yticklabels()] == [f"method {index}" for index in range(9)]
    assert any(axes.get_ylabel() == "gradient norm, no unit" for axes in figure.axes)
    assert [line.get_label() for line in taid.get_lines()] == ["method 3"]


def test_a_losses_axis_is_logarithmic_only_where_the_first_ones_would_flatten_the_rest() -> None:
    def scale(*losses: float) -> str:
        log = [{"step": step, "loss": loss} for step, loss in enumerate(losses)]
        (panel,) = plots_training.training_losses({"td": (log, [0])}, 9.6).axes
        return str(panel.get_yscale()) + (" said" if "log scale" in panel.get_ylabel() else "")

    assert scale(6.0, 0.5, 0.4) == "log said"
    assert scale(2.0, 1.5, 1.4) == "linear" and scale(6.0, 0.5, -0.1) == "linear"


def test_the_balance_puts_advantage_right_deficit_left_and_the_margin_between() -> None:
    panel = draw_balance(9.6).axes[0]
    reach = [(round(bar.get_x() + min(bar.get_width(), 0), 9), round(abs(bar.get_width()), 9)) for bar in panel.patches]
    assert reach == [(0, 0.15), (0, 0), (0, 0), (-0.3, 0.3)]
    margins = [float(line.get_xdata()[0]) for line in panel.get_lines() if line.get_marker() == "D"]
    assert margins == pytest.approx([0.15, -0.3])


def test_rows_of_several_runs_are_merged_in_order() -> None:
    panel = draw_runs(9.6).axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["td", "sft", "cd"]


def test_the_same_drawing_gives_the_same_bytes() -> None:
    assert render("scores", draw_scores) == render("scores", draw_scores)


def test_names_are_drawn_as_they_are_and_never_as_formulas_or_markup() -> None:
    name = "<b>$x_{$ & 日本"
    svg = svg_text(render("scores", lambda width: plots.scores(a_table(name), width)).wide)
    shown = "".join(ElementTree.fromstring(svg).itertext())
    assert name in shown
    assert "<b>" not in svg
    assert plain("x" * 60) == "x" * 39 + "…"


def luminance(color: str) -> float:
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return float(np.dot([0.2126, 0.7152, 0.0722], channels))


def contrast(first: str, second: str) -> float:
    bright, dim = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def test_text_and_sides_stand_out_on_both_papers() -> None:
    for color in (STUDENT, TEACHER):
        assert contrast(color, PAPER) >= 3
        assert contrast(DARK[color], DARK[PAPER]) >= 3
    assert contrast(INK, PAPER) >= 7 and contrast(DARK[INK], DARK[PAPER]) >= 7


# Machado, Oliveira and Fernandes 2009, severity 1: linear RGB as seen with each kind of color-blindness.
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def seen(color: str, kind: str) -> np.ndarray:
    """CIE L*a*b* of a color as it is seen with a kind of color-blindness."""
    linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)])
    linear = np.clip(np.array(BLINDNESS[kind]) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.array(to_xyz) @ linear / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("kind", BLINDNESS)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_student_and_teacher_are_told_apart_with_any_color_blindness(kind: str, theme: str) -> None:
    pair = (STUDENT, TEACHER) if theme == "light" else (DARK[STUDENT], DARK[TEACHER])
    assert np.linalg.norm(seen(pair[0], kind) - seen(pair[1], kind)) > 30


def test_lines_differ_in_more_than_color() -> None:
    styles = [series_style(index) for index in range(4 * len(SERIES))]
    assert all(a != b for a, b in combinations(styles, 2))
    shapes = [(style["marker"], style["linestyle"]) for style in styles]
    assert len(set(shapes)) == len(shapes)
