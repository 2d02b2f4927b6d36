"""An experiment is read strictly: each mistake is refused by the name of its key."""

import itertools
import tomllib
from pathlib import Path

import pytest

from cache_builder.config import CacheExperiment, load_experiment, save_experiment
from cache_builder.errors import ConfigError, MissingError
from trainer.config import Experiment

MINIMAL = """
[run]
output_dir = "runs/x"
[data]
source = "demo"
[teacher]
model = "org/teacher"
[student]
model = "org/student"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "experiment.toml"
    path.write_text(text)
    return path


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as refused:
        load_experiment(Experiment, write(folder, text), overrides)
    return str(refused.value)


def test_a_minimal_experiment_has_the_designs_defaults(tmp_path: Path) -> None:
    experiment = load_experiment(Experiment, write(tmp_path, MINIMAL))
    assert experiment.distill.epochs_per_stage == 2
    assert (experiment.distill.adam_beta1, experiment.distill.adam_beta2) == (0.9, 0.95)
    assert (experiment.distill.max_grad_norm, experiment.distill.warmup_ratio) == (1.0, 0.1)
    assert (experiment.text.max_length, experiment.distill.per_device_train_batch_size) == (512, 8)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("distill.epoch_per_stage=2", "distill.epoch_per_stage"),
        ("cache.topk=3", "cache.topk"),
        ('distill.epochs_per_stage="two"', "distill.epochs_per_stage"),
        ("distill.learning_rate=0", "distill.learning_rate"),
        ("cache.top_p=1.5", "cache.top_p"),
        ("cache.top_k=0", "cache.top_k: 0 would keep tail samples alone"),
        ('distill.methods=["scd","sdc"]', "sdc"),
        ('distill.methods=["sft+aw"]', "sft+aw"),
        ('distill.methods=["td","td"]', "duplicates"),
        ("cache.chunk_positions=1000", "shard_positions"),
        ("distill.remove_unused_columns=true", "teacher's columns"),
        ("distill.use_liger_kernel=true", "Liger's forward would take its place"),
        ("sft.student.liger_kernel_config={rope=true}", "sft.student.liger_kernel_config"),
        ('distill.deepspeed="zero.json"', "DeepSpeed owns its optimizer's state"),
        ('distill.optim="galore_adamw_layerwise"', "'galore_adamw_layerwise' cannot be cleared"),
        ('distill.optim="adagrad"', "distill.optim: 'adagrad' cannot be cleared"),
        ('distill.optim="adalomo"', "distill.optim: 'adalomo' cannot be cleared"),
        (
            'distill.lr_scheduler_type="cosin"',
            "there is no 'cosin' that follows the step alone; there are linear, cosine,",
        ),
        ('sft.teacher.lr_scheduler_type="greedy"', "sft.teacher.lr_scheduler_type: there is no 'greedy' that follows"),
        ("distill.label_smoothing_factor=0.1", "distill.label_smoothing_factor"),
        ("distill.auto_find_batch_size=true", "set per_device_train_batch_size"),
        ("distill.per_device_eval_batch_size=8", "eval_batch_tokens"),
        ("distill.save_total_limit=5", "the last two checkpoints are kept"),
        ("distill.save_only_model=true", "continues from its checkpoints"),
        ('distill.resume_from_checkpoint="checkpoint-5"', "a command that is given again continues"),
        ('distill.weight_decay="x"', "distill.weight_decay"),
        ('distill.gradient_checkpointing="perhaps"', "gradient_checkpointing"),
        ("run.seed=1.5", "run.seed"),
        ("student.model=7", "student.model"),
    ],
)
def test_a_mistake_is_refused_by_its_key(tmp_path: Path, override: str, named: str) -> None:
    assert named in refusal(tmp_path, MINIMAL, override)


def test_every_mistake_is_listed_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, MINIMAL, "cache.topk=3", "data.sorce=1", "sft.teacher.num_train_epochs=0")
    assert all(key in message for key in ("cache.topk", "data.sorce", "sft.teacher.num_train_epochs"))


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    assert "teacher: required" in refusal(
        tmp_path, MINIMAL.replace("[teacher]", "[evaluate]").replace('model = "org/teacher"', "")
    )


def test_text_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    assert "not valid TOML" in refusal(tmp_path, "run = [")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"nowhere\.toml"):
        load_experiment(Experiment, tmp_path / "nowhere.toml")


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    assert (
        load_experiment(Experiment, write(tmp_path, MINIMAL), ("distill.learning_rate=3e-4",)).distill.learning_rate
        == 3e-4
    )


def test_any_training_argument_may_be_given_by_its_own_name(tmp_path: Path) -> None:
    experiment = load_experiment(Experiment, write(tmp_path, MINIMAL), ("distill.gradient_checkpointing=true",))
    assert experiment.distill.other_arguments == {"gradient_checkpointing": True}


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("label_smoothing_factor=0.1", "set nothing: the loss is the method's"),
        ("warmup_steps=5", "set warmup_ratio"),
        ("save_total_limit=3", "set nothing: the last two"),
        ("num_train_epochs=2", "set epochs_per_stage"),
        ("per_device_eval_batch_size=2", "set eval_batch_tokens"),
        ("metric_for_best_model='f1'", "set select_by"),
        ("prediction_loss_only=true", "set nothing: held-out losses"),
        ("eval_use_gather_object=true", "set nothing: held-out losses"),
        ("average_tokens_across_devices=false", "set nothing: a step's loss is divided"),
        ("accelerator_config={split_batches=true}", "set nothing: how a step is divided"),
        ("parallelism_config={tp_size=2}", "set nothing: `accelerate launch"),
        ("fsdp='full_shard'", "set nothing: `accelerate launch"),
        ("debug='underflow_overflow'", "set nothing: a loss that is not finite"),
        ("dataloader_in_order=false", "set nothing: batches come in the order"),
        ("enable_jit_checkpoint=true", "set save_steps"),
        ("ignore_data_skip=true", "set nothing: a run that continues"),
        ("restore_callback_states_from_checkpoint=true", "set nothing: what a run must know"),
        ("save_on_each_node=true", "set nothing: all processes read"),
        ("disable_tqdm=true", "set --quiet"),
        ("push_to_hub=true", "set nothing: best/ and last/"),
        ("hub_model_id='me/model'", "set nothing: best/ and last/"),
        ("length_column_name='n'", "set length_grouped"),
        ("label_names=['label_M']", "set nothing: rows come as batches"),
    ],
)
def test_a_training_argument_without_effect_here_is_refused_with_what_has_it(
    tmp_path: Path, option: str, instead: str
) -> None:
    name = option.partition("=")[0]
    assert f"distill.{name}: not an option here; {instead}" in refusal(tmp_path, MINIMAL, f"distill.{option}")


def test_a_step_is_known_by_its_sequences_and_not_by_how_they_are_divided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a run may be continued with other micro-batches, and never with another number of processes unawares."""
    whole = load_experiment(Experiment, write(tmp_path, MINIMAL)).distill
    halves = ("distill.per_device_train_batch_size=4", "distill.gradient_accumulation_steps=2")
    divided = load_experiment(Experiment, write(tmp_path, MINIMAL), halves).distill
    assert whole.result_options() == divided.result_options()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert whole.result_options() != divided.model_copy(update={"learning_rate": 1e-3}).result_options()
    assert whole.result_options()["sequences_per_step"] == 16


def test_an_override_without_a_value_is_refused(tmp_path: Path) -> None:
    assert "section.key=value" in refusal(tmp_path, MINIMAL, "distill")


def test_the_saved_experiment_reads_back_as_the_same_experiment(tmp_path: Path) -> None:
    experiment = load_experiment(Experiment, write(tmp_path, MINIMAL), ("distill.bf16=false", "distill.seeds=[0, 1]"))
    save_experiment(experiment, tmp_path / "resolved.toml")
    assert load_experiment(Experiment, tmp_path / "resolved.toml") == experiment


def test_every_shipped_config_fits_the_schema() -> None:
    paths = sorted(Path("configs").rglob("*.toml"))
    assert paths
    for path in paths:
        load_experiment(Experiment, path)
        assert path.read_text().startswith("#"), f"{path} does not begin with what it computes"


def test_every_setting_has_a_meaning() -> None:
    pending = [("", Experiment)]
    for prefix, schema in pending:
        for name, field in schema.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, CacheExperiment.__base__):
                pending.append((f"{prefix}{name}.", field.annotation))
            elif f"{prefix}{name}" != "tasks":
                assert field.description, f"{prefix}{name} has no docstring"


def test_cache_builder_never_imports_trainer() -> None:
    for path in itertools.chain(Path("cache_builder").rglob("*.py")):
        for line in path.read_text().splitlines():
            assert not line.strip().startswith(("import trainer", "from trainer")), f"{path}: {line}"


def test_pyproject_pins_every_dependency_below_a_major_version() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    assert all("<" in dependency or "fsspec" in dependency for dependency in project["dependencies"])
