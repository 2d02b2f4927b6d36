"""The report's time and memory: of every stage, of the cache's build, and of the same steps with a live teacher.

trainings   logs of the two fine-tunings and of each method × seed        -> times.csv
build       the builders' notes, by checkpoint and in total               -> build.csv
live        tools/live_teacher.py, where it was run                       -> live_teacher.csv
"""

from typing import Any

from trainer.report.parts import Figured, Section, absent, extended
from trainer.report.plots import costs as plots_costs
from trainer.report.plots.style import render
from trainer.report.results import LABELS
from trainer.report.run.records import Run
from trainer.report.run.run_costs import CheckpointCost, LiveTeacher
from trainer.report.tables import DataTable, Record

BUILD = "cache, all checkpoints"


def costs_section(run: Run) -> Section:
    """Build the section; what was not measured is said, with the command that measures it."""
    section = Section(
        "costs",
        "Cost",
        "Time and memory",
        "What each stage took on the machines that did it. Peak memory is that of the GPU's allocator, or on a CPU the "
        "process's resident memory. A stage that was stopped and continued counts all of its processes.",
        notes=[*_build_notes(run), *_live_notes(run)],
    )
    figures = []
    if seconds := _stage_seconds(run):
        figures.append(
            Figured(
                render("costs", lambda width: plots_costs.stages(seconds, width)),
                "Bars of the time that each stage of the run took",
                "Training time of every stage, and of building the cache, all builders together. A method with several "
                "seeds shows their mean, and a dot for each.",
            )
        )
    if run.live_teachers:
        figures.append(
            Figured(
                render("live-teacher", lambda width: plots_costs.live(run.live_teachers, width)),
                "Bars of seconds per step and peak memory, from the cache and with a live teacher",
                "The same optimizer steps on the same rows, the teacher's word read from the cache or computed by the "
                "teacher beside the student. In brackets: live ÷ cache.",
            )
        )
    section = extended(section, *figures, tables=[_times(run), _build_table(run), _live_table(run)])
    return section if section.tables else absent(section, "No stage has left its time.")


def _trainings(run: Run) -> list[tuple[str, int | None, dict[str, Any], str]]:
    """Every finished training with its last log entry, the two fine-tunings first, and the name of its evaluation."""
    logs: list[tuple[str, int | None, list[dict[str, Any]], str]] = [
        (LABELS[model], None, log, model) for model, log in run.sft_logs.items()
    ]
    logs += [(d.method, d.seed, d.log, f"{d.method}/seed-{d.seed}/best") for d in run.distilled]
    return [
        (name, seed, last, model)
        for name, seed, log, model in logs
        if (last := next((entry for entry in reversed(log) if _is_number(entry.get("train_runtime"))), None))
    ]


def _stage_seconds(run: Run) -> dict[str, list[float]]:
    """Seconds of every stage in the order of the run; a list per method, a value per seed."""
    seconds: dict[str, list[float]] = {}
    for name, _, last, _ in _trainings(run):
        seconds.setdefault(name, []).append(float(last["train_runtime"]))
    if not run.build_costs:
        return seconds
    build = {BUILD: [sum(cost.seconds for cost in run.build_costs.values())]}
    teacher = LABELS["teacher"]
    return {name: seconds[name] for name in seconds if name == teacher} | build | seconds


def _times(run: Run) -> DataTable:
    rows: list[Record] = []
    for name, seed, last, model in _trainings(run):
        evaluation = run.evaluation(model)
        rows.append(
            {
                "model": name,
                "seed": seed,
                "steps": last.get("step"),
                "training, seconds": last["train_runtime"],
                "steps per second": last.get("train_steps_per_second"),
                "peak memory, MiB": last.get("peak_memory_mib"),
                "answering the test set, seconds": evaluation.seconds if evaluation else None,
            }
        )
    return DataTable("times", "Time and memory of each training", rows, unfolded=True)


def _build_table(run: Run) -> DataTable:
    costs = list(run.build_costs.values())
    if len(costs) > 1:
        costs.append(
            CheckpointCost(
                checkpoint="in total",
                builders=sum(cost.builders for cost in costs),
                unfinished=sum(cost.unfinished for cost in costs),
                positions=sum(cost.positions for cost in costs),
                seconds=sum(cost.seconds for cost in costs),
                peak_memory_mib=max(cost.peak_memory_mib for cost in costs),
                devices=tuple(dict.fromkeys(device for cost in costs for device in cost.devices)),
                tokens=sum(cost.tokens for cost in costs),
                waiting_seconds=sum(cost.waiting_seconds for cost in costs),
            )
        )
    rows: list[Record] = [
        {
            "checkpoint": cost.checkpoint,
            "builders": cost.builders,
            "stopped early": cost.unfinished,
            "positions captured": cost.positions,
            "seconds": cost.seconds,
            "positions per second": cost.positions / cost.seconds if cost.seconds else None,
            "tokens per second": cost.tokens / cost.seconds if cost.tokens and cost.seconds else None,
            "waiting for data, %": 100 * cost.waiting_seconds / cost.seconds if cost.tokens and cost.seconds else None,
            "peak memory, MiB": cost.peak_memory_mib,
            "device": ", ".join(cost.devices),
        }
        for cost in costs
    ]
    return DataTable("build", "Building the cache, all builders together", rows, unfolded=True)


def _build_notes(run: Run) -> list[str]:
    if run.cache is None or not run.cache.checkpoints:
        return []
    lacking = [name for name in run.cache.checkpoints if name not in run.build_costs]
    notes = []
    if lacking:
        notes.append(
            f"This run folder has no note of the build of {', '.join(lacking)}: it was built from another folder, or "
            "before builders left notes."
        )
    again = [cost for cost in run.build_costs.values() if cost.positions > run.cache.n_positions]
    notes.extend(
        f"{cost.checkpoint}: {cost.positions:,} positions were captured for the cache's {run.cache.n_positions:,}, "
        "because a builder was killed, or its work was taken back and done again."
        for cost in again
    )
    partly = [name for name, cost in run.build_costs.items() if cost.positions < run.cache.n_positions]
    if partly:
        notes.append(f"The notes cover only a part of {', '.join(partly)}: the rest was built from other folders.")
    return notes


def _live_table(run: Run) -> DataTable:
    rows: list[Record] = [
        {
            "method": each.method,
            "seed": each.seed,
            "checkpoint": each.checkpoint,
            "steps": each.steps,
            "sequences per step": each.sequences_per_step,
            "cache, seconds per step": each.cache.seconds_per_step,
            "live, seconds per step": each.live.seconds_per_step,
            "time, live ÷ cache": each.time_ratio,
            "cache, peak MiB": each.cache.peak_memory_mib,
            "live, peak MiB": each.live.peak_memory_mib,
            "memory, live ÷ cache": each.memory_ratio,
            "loss from the cache, nats": each.agreement.loss_cache,
            "loss live, nats": each.agreement.loss_live,
            "difference, nats": each.agreement.difference,
            "allowed, nats": each.agreement.allowed,
            "within": "yes" if each.agreement.holds else "no",
            "device": each.device,
            "commit": each.commit,
        }
        for each in run.live_teachers
    ]
    return DataTable("live_teacher", "The same steps with a live teacher", rows)


def _live_notes(run: Run) -> list[str]:
    if not run.live_teachers:
        return [
            "Against a live teacher: not measured for this run. Where the run's models are, "
            "python -m tools.live_teacher RUN --method METHOD measures it, and this section then shows it."
        ]
    return [_agreement(each) for each in run.live_teachers]


def _agreement(measured: LiveTeacher) -> str:
    found = measured.agreement
    allowed = (
        f"K+G outcomes say less than the vocabulary, so it may be any amount lower and {found.allowed:.2g} higher"
        if found.one_sided
        else f"the cache's codes and tail samples allow ±{found.allowed:.2g}"
    )
    text = (
        f"{measured.method}: over {found.sequences:,} sequences the loss is {found.loss_cache:.4f} nats from the cache "
        f"and {found.loss_live:.4f} live, a difference of {f'{found.difference:+.2g}'.replace('-', '−')}; {allowed}."
    )
    return text if found.holds else text + " It is MORE than that: audit the cache (footsteps cache audit)."


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
