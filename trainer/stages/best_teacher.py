"""Which checkpoint is the best teacher: by held-out loss, by name, or by its answers to the validation examples.

distill.best = "metric":   each checkpoint ─▶ answers to the validation examples ─▶ mean of the tasks' primary metrics
teacher-metric/stage.json  {"metrics": {checkpoint: metric}}; the highest is the best
"""

from cache_builder.build.build import teacher_checkpoints
from cache_builder.cache.reader import Cache
from cache_builder.data.prepare import Prepared
from cache_builder.errors import CacheMismatchError
from cache_builder.models.loading import weights_fingerprint
from cache_builder.steps import finish_stage, finished_result, stage_result
from trainer.config import Experiment
from trainer.methods.schedules import best_checkpoint
from trainer.processes import on_main_process, only_run_in
from trainer.stages.selection import selection
from trainer.stages.student_losses import load_on_device

FOLDER = "teacher-metric"


def best_teacher(experiment: Experiment, prepared: Prepared, cache: Cache) -> str:
    """Return the best of a cache's checkpoints as `distill.best` has it, judging them once where that asks for it.

    Every process of a run calls it.

    Raises:
        ConfigError: there is nothing to judge by.
        CacheMismatchError: the cache's checkpoints are not there to be judged, or were judged with other settings.
    """
    held_out = {name: cache.held_out(name) for name in cache.checkpoints}
    metrics = None
    if experiment.distill.best == "metric":
        on_main_process(lambda: _judge(experiment, prepared, cache))
        folder = experiment.output_dir / FOLDER
        metrics = finished_result(folder, "the teacher's metric", "footsteps run CONFIG")["metrics"]
    return best_checkpoint(cache.checkpoints, held_out, experiment.distill.best, metrics)


def _judge(experiment: Experiment, prepared: Prepared, cache: Cache) -> None:
    if cache.manifest.imported is not None:
        raise CacheMismatchError(
            f"cache {cache.url} was imported: its teacher is not there to answer anything; set distill.best to "
            '"held_out" or "last"'
        )
    judge = selection(experiment, prepared, "metric")
    assert judge is not None
    places, seed = dict(teacher_checkpoints(experiment)), experiment.run.seed
    if unknown := [name for name in cache.checkpoints if name not in places]:
        raise CacheMismatchError(
            f'distill.best = "metric" asks every checkpoint of cache {cache.url}, and {", ".join(unknown)} is none of '
            'this experiment\'s teacher; set distill.best to "held_out" or "last"'
        )
    folder = experiment.output_dir / FOLDER
    inputs = {
        "weights": {name: weights_fingerprint(places[name], seed) for name in cache.checkpoints},
        "validation": prepared.validation.fingerprint if prepared.validation else None,
        "selection": judge.describe(),
    }
    with only_run_in(folder, "judging the teacher's checkpoints"):
        if stage_result(folder, inputs) is None:
            models = (
                load_on_device(experiment.teacher.model_copy(update={"model": places[name]}), seed).eval()
                for name in cache.checkpoints
            )
            metrics = {name: judge.score(model) for name, model in zip(cache.checkpoints, models, strict=True)}
            finish_stage(folder, {"metrics": metrics})
