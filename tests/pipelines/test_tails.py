"""A whole run with the tail by blocks, built, verified, trained, reported; what a cache cannot serve is refused."""

import html
import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_builder.build.audit import audit_cache
from cache_builder.build.build import build_cache, teacher_checkpoints
from cache_builder.cache.info import describe
from cache_builder.cache.reader import open_cache
from cache_builder.cache.verify import verify_cache
from cache_builder.data.prepare import Prepared
from cache_builder.errors import CacheMismatchError, ConfigError
from cache_builder.storage.local import LocalStore
from tests.support.interruption import stops_at
from tests.support.paths import ROOT
from tests.support.students import assert_same_bits, weights
from tests.support.toys import load_toy, without_dropout, write_toy
from trainer.cli import main
from trainer.config import Experiment
from trainer.stages.distill import distill
from trainer.stages.sft import sft_teacher

BLOCKS = ("cache.tail_blocks=7",)
FORWARD = "distill.methods=['sft', 'td', 'scd+aw']"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A whole run whose students take a mixture of blocks and samples."""
    path = write_toy(tmp_path_factory.mktemp("toy"))
    overrides = (*BLOCKS, FORWARD, "distill.tail='adaptive'", "distill.logging_steps=1")
    with pytest.raises(SystemExit) as ended:
        main(["run", str(path), *(part for override in overrides for part in ("--set", override))])
    assert ended.value.code == 0
    return load_toy(path, *overrides)


def log_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "log.json").read_text())


def test_a_run_with_blocks_is_built_verified_trained_and_reported(run: Experiment) -> None:
    cache = open_cache(run.cache_url)
    assert cache.manifest.version == 3
    assert not verify_cache(LocalStore(Path(run.cache_url))).damaged
    facts = describe(cache)
    assert (facts["tail_blocks"], facts["tail_samples"]) == (7, 2)
    lambdas = [entry["tail_lambda"] for entry in log_of(run.output_dir / "distill/td/seed-0") if "kl" in entry]
    assert lambdas and all(0 < each < 1 for each in lambdas)
    assert not any("tail_lambda" in entry for entry in log_of(run.output_dir / "distill/sft/seed-0"))
    page = html.unescape((run.output_dir / "report" / "index.html").read_text())
    assert "the draws' share of the tail" in page


def elsewhere(run: Experiment, folder: Path, **settings: Any) -> Experiment:
    """The same run with other settings of distillation, in a folder of its own that has what distillation needs."""
    folder.mkdir(exist_ok=True)
    for name in ("tokenizer", "corpus", "student", "losses"):
        (folder / name).symlink_to(run.output_dir / name)
    update: dict[str, Any] = {"run": run.run.model_copy(update={"output_dir": str(folder)})}
    changed = run.model_copy(update={**update, "distill": run.distill.model_copy(update=settings)})
    without_dropout(changed)
    return changed


def lambdas_of(folder: Path) -> list[float]:
    return [entry["tail_lambda"] for entry in log_of(folder) if "kl" in entry]


def test_the_pooled_weight_is_one_for_a_step_however_it_is_divided(run: Experiment, tmp_path: Path) -> None:
    cache, folders = open_cache(run.cache_url), []
    for micro in (8, 2):
        sizes = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": 8 // micro}
        changed = elsewhere(run, tmp_path / str(micro), tail="pooled", logging_steps=1, **sizes)
        folders.append(distill(changed, "td+aw", 0, cache, Prepared(changed)))
    whole, divided = map(lambdas_of, folders)
    assert whole[0] == 0 and len(set(whole)) > len(whole) / 2 and 0 < max(whole) < 1
    np.testing.assert_allclose(divided, whole, rtol=1e-2, atol=1e-5)
    for name, values in weights(folders[0]).items():
        np.testing.assert_allclose(weights(folders[1])[name], values, rtol=0, atol=2e-5, err_msg=name)


def test_a_pooled_run_that_was_stopped_goes_on_to_the_same_bits(run: Experiment, tmp_path: Path) -> None:
    cache = open_cache(run.cache_url)
    quiet, stopped = (
        elsewhere(run, tmp_path / name, tail="pooled", save_steps=5, logging_steps=1) for name in ("quiet", "stopped")
    )
    expected = distill(quiet, "td", 0, cache, Prepared(quiet))
    with stops_at(13):
        distill(stopped, "td", 0, cache, Prepared(stopped))
    found = distill(stopped, "td", 0, cache, Prepared(stopped))
    assert_same_bits(found, expected)
    assert lambdas_of(found)[-1] == lambdas_of(expected)[-1] > 0


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from cache_builder.cache.reader import open_cache
from cache_builder.config import load_experiment
from cache_builder.data.prepare import Prepared
from pathlib import Path
from trainer.config import Experiment
from trainer.stages.distill import distill
experiment = load_experiment(Experiment, Path({config!r}), {overrides!r})
distill(experiment, "td+aw", 0, open_cache(experiment.cache_url), Prepared(experiment))
"""


@pytest.mark.slow
def test_two_processes_have_the_pooled_weights_of_one(run: Experiment, tmp_path: Path) -> None:
    alone = elsewhere(run, tmp_path / "alone", tail="pooled", logging_steps=1)
    expected = distill(alone, "td+aw", 0, open_cache(run.cache_url), Prepared(alone))
    both = elsewhere(run, tmp_path / "both", tail="pooled")
    overrides = [
        f"run.output_dir='{both.output_dir}'",
        f"student.model='{both.student.model}'",
        f"cache.path='{run.cache_url}'",
        *BLOCKS,
        FORWARD,
        "distill.tail='pooled'",
        "distill.logging_steps=1",
        "distill.per_device_train_batch_size=4",
        "distill.use_cpu=true",
    ]
    config = str(run.output_dir.parent / "experiment.toml")
    script = tmp_path / "two.py"
    script.write_text(SCRIPT.format(root=str(ROOT), config=config, overrides=overrides))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found = both.output_dir / "distill" / "td+aw" / "seed-0"
    np.testing.assert_allclose(lambdas_of(found), lambdas_of(expected), rtol=1e-2, atol=1e-5)
    for name, values in weights(found).items():
        np.testing.assert_allclose(values, weights(expected)[name], rtol=0, atol=2e-5, err_msg=name)


def test_an_audit_finds_the_cache_and_its_gradient_as_the_teacher_says(run: Experiment) -> None:
    audit = audit_cache(run, teacher_checkpoints(run), sequences=16)
    audit.require_agreement()
    assert audit.gradient_degrees < 20


def test_each_tail_trains_another_student_and_a_finished_one_is_kept_by_its_own_tail(
    run: Experiment, tmp_path: Path
) -> None:
    rest, embeddings = ("td", 0, open_cache(run.cache_url), Prepared(run)), []
    for tail in ("bucket", "pooled", "blocks", "samples", "mixed"):
        changed = elsewhere(run, tmp_path / tail, tail=tail)
        embeddings.append(weights(distill(changed, *rest))["model.embed_tokens.weight"])
    for one, other in combinations(embeddings, 2):
        assert not np.array_equal(one, other)
    with pytest.raises(CacheMismatchError, match=r"tail\.sample_weight: it has 0\.5, now 0\.0"):
        tail_blocks = changed.distill.model_copy(update={"tail": "blocks"})
        distill(changed.model_copy(update={"distill": tail_blocks}), *rest)


def test_reverse_kl_taid_and_jsd_train_on_blocks(run: Experiment, tmp_path: Path) -> None:
    changed = elsewhere(run, tmp_path / "run", tail="auto", methods=["rkl", "taid", "jsd"])
    for method in changed.distill.methods:
        log = log_of(distill(changed, method, 0, open_cache(run.cache_url), Prepared(run)))
        divergences = [entry["kl"] for entry in log if "kl" in entry]
        assert divergences and min(divergences) >= 0  # never negative on outcomes


def test_settings_that_no_cache_of_the_config_could_serve_are_refused_before_anything_is_built(tmp_path: Path) -> None:
    path = write_toy(tmp_path)
    for overrides, said in (
        (("distill.tail='blocks'",), r"distill\.tail: .*by blocks.*cache\.tail_blocks \(they have 2 and 0\)"),
        (("distill.tail='samples'", "cache.tail_samples=0", FORWARD), r"needs tail samples, and none are kept"),
        (
            ("distill.tail='mixed'", "distill.methods=['td', 'rkl', 'taid']"),
            r"forward KL .* which rkl, taid at",
        ),
        (("distill.tail='samples'", "distill.temperature=2.0", FORWARD), r"which td, scd\+aw at temperature 2 is not"),
        (("distill.tail='most'",), r"distill\.tail"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_toy(path, *overrides)


def test_a_cache_that_lacks_what_a_tail_needs_is_refused_by_name(toy: Any) -> None:
    experiment, cache, prepared = toy(*BLOCKS, FORWARD, "distill.tail='adaptive'")
    with pytest.raises(CacheMismatchError, match=r"keeps 2 tail samples and 0 blocks .*`td`.*tail = \"adaptive\""):
        distill(experiment, "td", 0, cache, prepared)


def test_samples_that_would_be_learned_by_heart_are_warned_of_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = load_toy(write_toy(tmp_path, examples=30), "cache.top_k=1", "distill.epochs_per_stage=4")
    prepared = Prepared(experiment)
    sft_teacher(experiment, prepared)
    build_cache(experiment, prepared.train, prepared.tokenizer, teacher_checkpoints(experiment), prepared.validation)
    cache = open_cache(experiment.cache_url)
    distill(experiment, "td", 0, cache, prepared)
    assert capsys.readouterr().err.count("learns by heart") == 1
    distill(experiment, "rkl", 0, cache, prepared)  # takes no samples
    assert "by heart" not in capsys.readouterr().err
