"""One cache serves students of any size and of another padded vocabulary, by any method and seed."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.toys import write_model_config
from trainer.stages.distill import distill
from trainer.stages.sft import sft_student
from trainer.stages.student_losses import write_student_losses


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"hidden_size": 16, "num_hidden_layers": 1}, id="smaller"),
        pytest.param({"hidden_size": 64, "vocab_size": 384}, id="larger, with other padding"),
    ],
)
def test_students_of_any_size_methods_and_seeds_train_from_one_cache(
    toy: Any, tmp_path: Path, options: dict[str, int]
) -> None:
    student = write_model_config(tmp_path / "student", **options)
    experiment, cache, prepared = toy(f"student.model='{student}'", "distill.seeds=[0, 1]")
    for name in ("student", "losses"):
        (experiment.output_dir / name).unlink()
    before = {path: path.stat().st_mtime_ns for path in Path(cache.url).resolve().rglob("*")}
    sft_student(experiment, prepared)
    write_student_losses(experiment, cache, prepared.tokenizer.pad_token_id)
    students = (("td", 0), ("td", 1), ("rkl", 0), ("scd+aw", 0))
    finished = {student: distill(experiment, *student, cache, prepared) for student in students}
    assert before == {path: path.stat().st_mtime_ns for path in Path(cache.url).resolve().rglob("*")}
    embeddings = {}
    for key, folder in finished.items():
        weights = load_file(folder / "last" / "model.safetensors")
        embeddings[key] = weights["model.embed_tokens.weight"]
        assert embeddings[key].shape == (options.get("vocab_size", 328), options["hidden_size"])
        log = json.loads((folder / "log.json").read_text())
        kl = [entry["kl"] for entry in log if "kl" in entry]
        assert kl[-1] < 0.85 * kl[0], f"{key} has learned from the cache"
    for one, other in combinations(finished, 2):
        assert not np.array_equal(embeddings[one], embeddings[other]), (one, other)
