"""The report's gains and losses: every student against itself before training, on its own tasks and on others'."""

from trainer.report.changes import Change, changes
from trainer.report.parts import Section, absent, extended
from trainer.report.run.records import Run
from trainer.report.run.settings import settings
from trainer.report.tables import DataTable, Record


def changes_sections(run: Run) -> list[Section]:
    """Return the section, if the run asks for it or has what it shows."""
    return [_section(run)] if run.elsewhere or settings(run.config, "evaluate", "harness") else []


def _section(run: Run) -> Section:
    section = Section(
        "changes",
        "Gained and lost",
        "What training gained, and what it lost elsewhere",
        "Each student against itself before training: on the tasks that it was trained for, and on tasks of "
        "lm-evaluation-harness, which it was not. Intervals and tests are paired by row, Holm's correction over the "
        "students of a task; a metric that is no mean over rows has none.",
    )
    rows = [_record(change) for change in changes(run)]
    if not rows:
        return absent(section, "This needs evaluations of the student before training and of one after it.")
    title = "Students against their base, scores as their metrics have them; gained: more is better"
    return extended(section, tables=[DataTable("changes", title, rows, unfolded=True)])


def forgotten(run: Run) -> str:
    """Say which students lost what outside of their own tasks, where that is more than chance."""
    lost = [each for each in changes(run) if not each.own and each.verdict == "lost"]
    if not lost:
        return ""
    named = ", ".join(
        f"{each.label} on {each.task} ({each.metric} {each.base:.3g} → {each.score:.3g})" for each in lost
    )
    return (
        f"Forgotten: outside of their own tasks these are worse than before training: {named}; fewer epochs, a lower "
        "learning rate, [student.lora] or general rows among the training data keep more."
    )


def _record(change: Change) -> Record:
    return {
        "student": change.label,
        "task": change.task,
        "trained for": "yes" if change.own else "no",
        "metric": change.metric,
        "seeds": change.seeds,
        "base": change.base,
        "score": change.score,
        "teacher": change.teacher,
        "gained": change.gained,
        "gained, low": change.low,
        "gained, high": change.high,
        "p against base (Holm)": change.p_value,
        "verdict": change.verdict,
    }
