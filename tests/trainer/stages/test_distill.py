"""The schedule of a real run against a plain float64 restatement of §5.2 and §5.1 from the models' own logits."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from cache_builder.build.build import build_cache, teacher_checkpoints
from cache_builder.cache.reader import open_cache
from cache_builder.data.prepare import Prepared
from cache_builder.errors import CacheMismatchError
from tests.support.crafted import Crafted
from tests.support.toys import Opened, open_toy
from trainer.stages.distill import distill


@pytest.fixture(scope="module")
def opened(built_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return open_toy(built_toy, tmp_path_factory.mktemp("toy"), "distill.init='base'", "distill.save_steps=1000")


def dense_logp(folder: str, prepared: Prepared, rows: np.ndarray) -> list[np.ndarray]:
    """Float64 log-probabilities [V] over the tokenizer's tokens at every position of some sequences, one by one."""
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    distributions = []
    for row in rows:
        tokens, completion = prepared.train.sequence(int(row))
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(tokens.astype(np.int64))[None]).logits[
                0, :, : len(prepared.tokenizer)
            ]
        logp = (logits - logits.logsumexp(-1, keepdim=True)).numpy()
        distributions += [logp[index - 1] for index in range(1, len(tokens)) if completion[index]]
    return distributions


def mean_kl(first: list[np.ndarray], second: list[np.ndarray], ids_PR: np.ndarray) -> float:
    """Mean KL over the outcomes of the probe's ids and everything else, written as plainly as can be."""
    total = 0.0
    for a, b, ids in zip(first, second, ids_PR, strict=True):
        p = np.append(np.exp(a[ids]), np.exp(np.delete(a, ids)).sum())
        q = np.append(np.exp(b[ids]), np.exp(np.delete(b, ids)).sum())
        total += float(np.sum(p * np.log(p / q)))
    return total / len(ids_PR)


def first_stage(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "plan.json").read_text())["stages"][0]


def test_the_scheduled_checkpoint_is_the_one_that_the_plain_formula_picks(opened: Opened) -> None:
    """The student is planted: it is a checkpoint itself, so that the choice has no easy answer."""
    experiment, cache, prepared = opened
    locations = dict(teacher_checkpoints(experiment))
    names = list(cache.checkpoints)
    logp = {name: dense_logp(locations[name], prepared, cache.probe_rows) for name in names}
    for planted in names:
        student = experiment.student.model_copy(update={"model": locations[planted]})
        output_dir = Path(experiment.run.output_dir) / f"planted-{planted}"
        output_dir.mkdir()
        for shared in ("tokenizer", "corpus"):
            (output_dir / shared).symlink_to(experiment.output_dir / shared)
        planted_experiment = experiment.model_copy(
            update={
                "student": student,
                "run": experiment.run.model_copy(update={"output_dir": str(output_dir)}),
                "cache": experiment.cache.model_copy(update={"path": experiment.cache_url}),
            }
        )
        prepared_again = Prepared(planted_experiment)
        stage = first_stage(distill(planted_experiment, "scd", 0, cache, prepared_again))
        best = names[int(np.argmin([cache.held_out(name) for name in names]))]  # type: ignore[arg-type]
        anchor = {name: mean_kl(logp[best], logp[name], cache.probe_ids) for name in names}
        distance = {name: mean_kl(logp[planted], logp[name], cache.probe_ids) for name in names}
        assert stage["anchor_kl"] == pytest.approx(anchor, rel=2e-2, abs=1e-4)  # the probe is stored in steps
        assert stage["student_kl"] == pytest.approx(distance, rel=2e-2, abs=1e-4)
        totals = [anchor[name] + distance[name] for name in names]
        assert stage["choice"] == names[int(np.argmin(totals))]
        assert stage["margin"] == pytest.approx(sorted(totals)[1] - sorted(totals)[0], rel=5e-2, abs=1e-3)
        assert stage["student_kl"][planted] == pytest.approx(0, abs=1e-4)
        assert 0 < stage["margin_error"] < 10 * stage["margin"]

        reached = first_stage(distill(planted_experiment, "reach", 0, cache, prepared_again))
        forward = {name: mean_kl(logp[name], logp[planted], cache.probe_ids) for name in names}
        assert reached["anchor_kl"] == stage["anchor_kl"]
        assert reached["teacher_kl"] == pytest.approx(forward, rel=2e-2, abs=1e-4)
        sums = {name: anchor[name] + forward[name] for name in names}  # the best and the student itself are equal
        assert sums[reached["choice"]] == pytest.approx(min(sums.values()), abs=1e-3)


def test_the_cached_losses_are_the_models_own(opened: Opened) -> None:
    experiment, cache, prepared = opened
    for name, location in teacher_checkpoints(experiment):
        model = AutoModelForCausalLM.from_pretrained(location).eval()
        for row in range(0, len(cache.corpus), 9):
            tokens, completion = prepared.train.sequence(row)
            ids = torch.tensor(tokens.astype(np.int64))[None]
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, :-1, : len(prepared.tokenizer)]
            losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
            own = losses[torch.from_numpy(np.array(completion[1:]))].sum().item()
            assert cache.losses(name)[row] == pytest.approx(own, rel=1e-5, abs=1e-5)


def test_a_users_own_list_of_checkpoints_gives_the_same_cache_contents(opened: Opened, tmp_path: Path) -> None:
    experiment, cache, prepared = opened
    folders = [location for _, location in teacher_checkpoints(experiment)]
    listed = experiment.model_copy(
        update={
            "teacher": experiment.teacher.model_copy(update={"checkpoints": folders}),
            "cache": experiment.cache.model_copy(update={"path": str(tmp_path / "cache")}),
        }
    )
    build_cache(listed, prepared.train, prepared.tokenizer, teacher_checkpoints(listed), prepared.validation)
    other = open_cache(str(tmp_path / "cache"))
    assert len(other.checkpoints) == 3
    for name, same in zip(cache.checkpoints, other.checkpoints, strict=True):
        np.testing.assert_array_equal(cache.losses(name), other.losses(same))


def test_a_cache_whose_tokens_are_not_those_of_the_corpus_that_it_claims_is_not_trained_on(
    toy: Any, tmp_path: Path
) -> None:
    experiment, _, prepared = toy()
    folder = Path(shutil.copytree((experiment.output_dir / "cache").resolve(), tmp_path / "crafted"))
    crafted = Crafted(folder)
    tokens = crafted.values("corpus", "tokens")
    tokens[5] = (tokens[5] + 1) % 300
    crafted.array("corpus", "tokens", tokens)
    with pytest.raises(CacheMismatchError, match="not the cache of the corpus that it names"):
        distill(experiment, "sft", 0, open_cache(str(folder)), prepared)
