"""The first paragraph of a report, for a reader who knows none of the methods: who won, by how much, at what cost.

best student ─ distance from its teacher, significant or not ─ against the control ─ size ─ time
"""

from trainer.report.parts import size
from trainer.report.results import REFERENCES, ResultRow, ResultTable
from trainer.report.run.records import Run


def summary(run: Run, results: ResultTable) -> str:
    """Say in a few sentences what the run shows."""
    students = [row for row in results.rows if row.kind not in REFERENCES and row.average is not None]
    teacher = next((row for row in results.rows if row.kind == "teacher"), None)
    if not students:
        return "No student has been evaluated on every task yet."
    best = max(students, key=lambda row: row.average or 0)
    where = "on average over the tasks" if len(results.tasks) > 1 else f"on {next(iter(results.tasks))}"
    parts = [f"{best.label} is the best student: {_points(best)} of 100 {where}"]
    if teacher is None or teacher.average is None:
        parts[0] += ". The teacher has not been evaluated on every task."
        return parts[0]
    gap = 100 * ((best.average or 0) - teacher.average)
    parts[0] += f", {abs(gap):.1f} points {'above' if gap >= 0 else 'below'} its teacher's {_points(teacher)}."
    parts.append(_significance(best, results))
    control = next((row for row in students if row.label == "sft" and row is not best), None)
    if control is not None:
        ahead = 100 * ((best.average or 0) - (control.average or 0))
        parts.append(f"The control, sft, which saw the labels alone, has {_points(control)}: {ahead:.1f} points less.")
    return " ".join([*parts, *_cost(run, best, teacher)])


def _significance(best: ResultRow, results: ResultTable) -> str:
    tested = {task: best.cells[task] for task in results.tasks if best.cells[task].p_value is not None}
    if not tested:
        return "Whether that is more than chance is not known: the row scores to pair are missing."
    clear = [f"{task} ({cell.mark})" for task, cell in tested.items() if cell.mark]
    rows = sum(cell.rows for cell in tested.values())
    test = f"at p < 0.05, paired by its {rows:,} test rows, after Holm's correction"
    if not clear:
        return f"The difference is not significant ({test})."
    which = "" if len(results.tasks) == 1 else f" on {', '.join(clear)}"
    rest = "" if len(clear) == len(results.tasks) else "; on the other tasks it is not"
    return f"The difference is significant{which} ({test}){rest}."


def _cost(run: Run, best: ResultRow, teacher: ResultRow) -> list[str]:
    said = []
    if best.parameters and teacher.parameters:
        ours, theirs = size(best.parameters, "B"), size(teacher.parameters, "B")
        said.append(
            f"{best.label} has {ours} parameters, {best.parameters / teacher.parameters:.0%} of the teacher's {theirs}."
        )
    spent = [
        entry["train_runtime"] for each in run.distilled if each.method == best.label for entry in each.log
        if "train_runtime" in entry
    ]  # fmt: skip
    build = sum(cost.seconds for cost in run.build_costs.values())
    if spent:
        text = f"Training it took {_time(sum(spent) / len(spent))}"
        text += f", after {_time(build)} for the cache, which serves every student" if build else ""
        said.append(text + ".")
    return said


def _points(row: ResultRow) -> str:
    return f"{100 * (row.average or 0):.1f}"


def _time(seconds: float) -> str:
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
