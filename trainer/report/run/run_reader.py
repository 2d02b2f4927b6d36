"""Read a run folder into plain records, and say what is missing from it instead of failing.

    <run>/config.toml                          settings               -> Run.config
          cache/                               per-sequence losses    -> Run.cache (a CacheView)
          losses/student.safetensors           L_S before training    -> Run.student_losses
          distill/<method>/seed-<s>/           plan, log, losses      -> Run.distilled
          evaluate/<model>/metrics.json        scores and intervals   -> Run.evaluations
          evaluate/<model>/harness/            tasks of others        -> Run.elsewhere
          crossfit/…/losses/                   what AW compared       -> Run.aw_losses
          build/, live_teacher.json            time and memory        -> Run.build_costs, Run.live_teachers

Only files are read: no model is loaded and nothing is recomputed. A part that is absent or unreadable is named in
`Run.missing`, and its field is None or empty.
"""

from pathlib import Path

from cache_builder.build.costs import read_costs
from cache_builder.errors import MissingError
from trainer.report.run.cache_view import read_cache
from trainer.report.run.evaluations import read_evaluations
from trainer.report.run.harness import read_harness
from trainer.report.run.records import STUDENT_SFT, TEACHER, Run, wanted_methods
from trainer.report.run.run_costs import build_costs, live_or_missing
from trainer.report.run.run_files import read_config, read_counts, read_log, read_model_losses, read_steps
from trainer.report.run.settings import settings
from trainer.report.run.students import best_of, read_aw_losses, read_students


def read_run(folder: str | Path, *, remote: bool = False) -> Run:
    """Read everything that a report shows of the run in `folder`.

    Args:
        remote: the run is trusted, so variables in its cache's path are expanded and an address is opened.

    Raises:
        MissingError: `folder` is not a run folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingError(f"run {folder}: no such folder; give the `run.output_dir` of an experiment")
    parts = ("config.toml", "cache", "distill", "evaluate")
    if not any((folder / part).exists() for part in parts):
        raise MissingError(f"{folder} is not a run folder: it has none of {', '.join(parts)}")
    missing: list[str] = []
    config = read_config(folder / "config.toml", missing)
    steps = read_steps(folder / "teacher" / "checkpoints.json", missing, "the list of the teacher's checkpoints")
    cache = read_cache(folder, config, missing, remote=remote)
    losses_file = folder / "losses" / "student.safetensors"
    student_losses = read_model_losses(losses_file, cache, missing, "losses of the student SFT model")
    distilled = read_students(folder, config, cache, missing)
    notes, unreadable = read_costs(folder)
    missing.extend(unreadable)
    logs = {TEACHER: folder / "teacher" / "log.json", STUDENT_SFT: folder / "student" / "log.json"}
    run = Run(
        folder=folder,
        config=config,
        teacher_steps=steps,
        cache=cache,
        student_losses=student_losses,
        distilled=distilled,
        evaluations=read_evaluations(folder / "evaluate", missing),
        corpus_counts=read_counts(folder / "corpus" / "train" / "stage.json"),
        missing=missing,
        sft_logs={model: log for model, path in logs.items() if (log := read_log(path, [], ""))},
        best=best_of(folder, config, cache, distilled),
        aw_losses=read_aw_losses(folder, config, cache, missing),
        build_costs=build_costs(notes, cache.fingerprint, cache.checkpoints) if cache else {},
        live_teachers=live_or_missing(folder, missing),
        elsewhere=read_harness(folder / "evaluate", missing),
    )
    missing.extend(_unfinished(run))
    return run


def _unfinished(run: Run) -> list[str]:
    """Say which models that the config asks for have not been trained or judged."""
    notes: list[str] = []
    models = {e.model for e in run.evaluations}
    notes.extend(f"{model} has not been evaluated" for model in (TEACHER, STUDENT_SFT) if model not in models)
    seeds = [seed for seed in settings(run.config, "distill", "seeds") if isinstance(seed, int)]
    for method in dict.fromkeys([*wanted_methods(run.config), *run.methods()]):
        for seed in seeds or sorted({d.seed for d in run.distilled if d.method == method}):
            trained = any(d.method == method and d.seed == seed for d in run.distilled)
            if f"{method}/seed-{seed}/best" not in models and f"{method}/seed-{seed}/last" not in models:
                state = "trained, not evaluated" if trained else "not trained"
                notes.append(f"{method}, seed {seed}: {state}")
    judged = {e.seed for e in run.evaluations if e.method}
    if len(judged) == 1:
        notes.append("one seed only: no spread over seeds can be given")
    for evaluation in run.evaluations:
        notes.extend(
            f"{evaluation.model}: task {task} has no labelled test rows"
            for task, result in evaluation.tasks.items()
            if not result.rows
        )
    return notes
