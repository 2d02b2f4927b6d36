"""The README.md of a distilled student: what it is, what it was made from, how well it does, how to load it.

    write_model_card(model_folder, run)   <run>/distill/<method>/seed-<s>/<best|last>/README.md

Licence and intended use are left to the user: the program cannot know them, and says so.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cache_builder.atomic import write_text
from cache_builder.errors import MissingError
from cache_builder.models.adapters import ADAPTER_FILE
from cache_builder.models.loading import is_model_folder
from cache_builder.redaction import redacted
from cache_builder.sharing.markdown import markdown_template
from trainer.report.run.records import SELECTED_BY, STUDENT_SFT, TEACHER, Evaluation, Run
from trainer.report.run.run_reader import read_run
from trainer.report.run.settings import setting

CARD = "README.md"
DISTILL_SETTINGS = ("epochs_per_stage", "learning_rate", "init", "temperature")
WEIGHED = {
    "train": "of the student SFT and the teacher, on the training data",
    "crossfit": "of models fine-tuned on the other half of the training data",
}
TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.jinja"


def write_model_cards(run_dir: Path, *, remote: bool = False) -> list[Path]:
    """Write a card into every distilled student's folder of a run, over an earlier one, and return their paths.

    Raises:
        MissingError: `run_dir` is not a run folder.
    """
    run = read_run(run_dir, remote=remote)
    folders = [
        folder
        for distilled in run.distilled
        for folder in (distilled.folder / "best", distilled.folder / "last")
        if is_model_folder(folder)
    ]
    return [write_model_card(folder, run) for folder in folders]


def write_model_card(folder: Path, run: Run) -> Path:
    """Write the card of the student in `folder`, one of `run`'s, and return its path.

    Raises:
        MissingError: the folder is not that of a distilled student of this run.
    """
    distilled = next((d for d in run.distilled if d.folder == folder.parent), None)
    if distilled is None:
        raise MissingError(
            f"{folder} is not a student of run {run.folder}; expected distill/<method>/seed-<s>/best, or …/last"
        )
    model = f"{distilled.method}/seed-{distilled.seed}/{folder.name}"
    evaluation = run.evaluation(model)
    text = markdown_template(TEMPLATE).render(
        run=run,
        distilled=distilled,
        which=folder.name,
        selected_by=SELECTED_BY.get(distilled.selected_by or "", ""),
        evaluation=evaluation,
        metrics=_metrics(evaluation, [run.evaluation(TEACHER), run.evaluation(STUDENT_SFT)]),
        teacher=_setting(run, "teacher", "model"),
        student=_setting(run, "student", "model"),
        distill={key: _setting(run, "distill", key) for key in DISTILL_SETTINGS},
        choices=[stage.choice for stage in distilled.stages if stage.choice],
        weighed=WEIGHED.get(str(setting(run.config, "distill", "aw_source")), "not recorded"),
        adapters=(folder / ADAPTER_FILE).is_file(),
        template=(folder / "chat_template.jinja").is_file(),
    )
    path = folder / CARD
    write_text(path, text)
    return path


def _metrics(evaluation: Evaluation | None, references: Sequence[Evaluation | None]) -> list[dict[str, Any]]:
    """Return a line per task and metric: ours with its interval, then the references' values."""
    if evaluation is None:
        return []
    return [
        {
            "task": task,
            "metric": name + (" (primary)" if name == result.primary else ""),
            "rows": result.rows,
            "ours": _interval(metric) + (" ○" if name == result.primary and result.not_above else ""),
            "references": [_interval(_found(other, task, name)) for other in references],
        }
        for task, result in evaluation.tasks.items()
        for name, metric in result.metrics.items()
    ]


def _found(evaluation: Evaluation | None, task: str, name: str) -> dict[str, float]:
    return evaluation.tasks[task].metrics.get(name, {}) if evaluation and task in evaluation.tasks else {}


def _interval(metric: dict[str, float]) -> str:
    if "value" not in metric:
        return "–"
    text = f"{100 * metric['value']:.1f}"
    known = {"low", "high"} <= metric.keys()
    return f"{text} [{100 * metric['low']:.1f}, {100 * metric['high']:.1f}]" if known else text


def _setting(run: Run, section: str, key: str) -> Any:
    value = setting(run.config, section, key)
    return "not recorded" if value is None else redacted(value, key)
