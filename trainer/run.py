"""The whole way through, a stage at a time; what is complete is skipped, what was interrupted continues.

prepare ─▶ shrink ─▶ sft teacher ─▶ cache build ─▶ sft student ─▶ losses ─▶ distill (method × seed)
                                                                               ─▶ evaluate ─▶ report

On several processes each builds its part of the cache, all train, and the main one does the rest.
"""

from rich.console import Console

from cache_builder.build.build import build_cache, teacher_checkpoints
from cache_builder.build.work_units import parse_part
from cache_builder.cache.reader import Cache, open_cache
from cache_builder.data.prepare import Prepared
from cache_builder.errors import CacheIncompleteError
from cache_builder.narration import manner, say
from trainer.config import Experiment
from trainer.evaluation.harness_tasks import check_harness
from trainer.evaluation.tasks import check_answers
from trainer.precision import check_precision
from trainer.processes import is_main_process, on_main_process, wait_for_all
from trainer.report.page import results_tables, write_report
from trainer.stages.best_teacher import best_teacher
from trainer.stages.crossfit import needs_crossfit, write_crossfit_losses
from trainer.stages.evaluate_run import evaluate_run
from trainer.stages.held_out import held_out_losses, held_out_table
from trainer.stages.selection import check_selections
from trainer.stages.sft import sft_student, sft_teacher
from trainer.stages.shrink import say_sizes, shrink_student
from trainer.stages.student_losses import write_student_losses
from trainer.stages.students import train_students


def run_experiment(experiment: Experiment, console: Console, jobs: int = 1) -> None:
    """Do every stage, training so many students at once, and print the table and the report's path."""
    _begin(f"{experiment.output_dir}: prepare", console)
    prepared = Prepared(experiment)
    check_answers(prepared.examples["test"], experiment.data.source, experiment.tasks)
    check_selections(experiment, prepared)
    check_harness(experiment.evaluate)
    check_precision(experiment)
    for line in describe_corpora(prepared):
        if is_main_process():
            say("corpus", line, said=line)
    cache = until_distillation(experiment, prepared, console)
    students = [(method, seed) for seed in experiment.distill.seeds for method in experiment.distill.methods]
    if min(jobs, len(students)) > 1:
        _begin(f"distill: {len(students)} students, {jobs} at once", console)

    def begun(method: str, seed: int) -> None:
        _begin(f"distill: {method}, seed {seed}", console)

    for _ in train_students(experiment, students, prepared, cache, jobs, begun):
        pass
    judged = len(prepared.examples["test"]) > 0  # texts that heal a shrunk student have no answers to judge
    if judged or experiment.evaluate.harness:
        _begin("evaluate", console)
        evaluate_run(experiment, prepared, cache, console)
    _begin("report", console)
    on_main_process(lambda: _report(experiment, cache, judged, console))


def until_distillation(experiment: Experiment, prepared: Prepared, console: Console) -> Cache:
    """Do every stage between the data and the first distillation, and return the cache.

    Raises:
        CacheIncompleteError: other builders still work on the cache.
    """
    if experiment.shrink is not None:  # before anything that takes hours: what it refuses is then known
        _begin("shrink the student", console)
        say_sizes(shrink_student(experiment, prepared), console)
    if isinstance(experiment.teacher.checkpoints, int):
        _begin("fine-tune the teacher", console)
        sft_teacher(experiment, prepared)
    _begin("build the cache", console)
    checkpoints = teacher_checkpoints(experiment)
    build_cache(
        experiment,
        prepared.train,
        prepared.tokenizer,
        checkpoints,
        prepared.validation,
        part=parse_part(None, experiment.teacher.tensor_parallel),
    )
    wait_for_all()
    cache = open_cache(experiment.cache_url, local_copy=experiment.local_copy)
    if not {name for name, _ in checkpoints} <= set(cache.checkpoints):
        raise CacheIncompleteError(f"cache {experiment.cache_url} is not complete: other builders still work on it")
    if experiment.distill.best == "metric":
        _begin("judge the teacher's checkpoints", console)
        console.print(f"best: {best_teacher(experiment, prepared, cache)}")
    _begin("fine-tune the student", console)
    sft_student(experiment, prepared)
    write_student_losses(experiment, cache, prepared.tokenizer.pad_token_id)
    if needs_crossfit(experiment):
        _begin("cross-fit the losses", console)
        write_crossfit_losses(experiment, prepared, cache)
    return cache


def _report(experiment: Experiment, cache: Cache, judged: bool, console: Console) -> None:
    folder = experiment.output_dir
    report = write_report([folder], None, remote=True)  # the run is the user's own
    console.print(results_tables(folder) if judged else held_out_table(held_out_losses(experiment, cache)))
    say("report", f"report: {report}", path=str(report))


def _begin(stage: str, console: Console) -> None:
    if manner() == "text":
        console.rule(stage)
    elif is_main_process():
        say("stage", stage, name=stage)


def describe_corpora(prepared: Prepared) -> list[str]:
    """Say how large the tokenised splits are, and what was cut or left out to make them fit."""
    lines = []
    for split, corpus in (("train", prepared.train), ("validation", prepared.validation)):
        if corpus is None:
            lines.append(f"{split}: none")
            continue
        counts = corpus.counts
        sizes = ", ".join(f"{counts[what]:,} {what}" for what in ("sequences", "tokens", "positions"))
        cut = f"{counts['truncated']:,} prompts truncated, {counts['dropped']:,} examples dropped as too long"
        lines.append(f"{split}: {sizes}; {cut}")
    test = len(prepared.examples["test"])
    judged = f"{test:,} examples" if test else "none, so nothing is judged and models are compared by held-out loss"
    lines.append(f"test: {judged}; vocabulary: {len(prepared.tokenizer):,} tokens")
    return lines
