"""Students trained from imported caches: the real trainer against plain PyTorch on the rows as the files have them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.nn.functional import cross_entropy, log_softmax
from transformers import AutoModelForCausalLM

from cache_builder.build.build import teacher_checkpoints
from cache_builder.cache.reader import Cache, open_cache
from cache_builder.data.prepare import Prepared
from cache_builder.errors import CacheMismatchError
from cache_builder.interchange.axolotl import AxolotlSource
from cache_builder.interchange.check import Source
from cache_builder.interchange.distillkit import DistillKitSource
from cache_builder.interchange.importing import import_cache
from tests.support import foreign_rows
from tests.support.toys import without_dropout
from trainer.config import Experiment
from trainer.loop.dataset import CachedRows
from trainer.report.page import write_report
from trainer.report.run.run_reader import read_run
from trainer.stages.crossfit import write_crossfit_losses
from trainer.stages.distill import distill
from trainer.stages.evaluate_run import evaluate_run
from trainer.stages.lora import load_student
from trainer.stages.student_losses import write_student_losses

ROWS = 48
PLAIN = (
    "distill.lr_scheduler_type='constant'",
    "distill.warmup_ratio=0.0",
    "distill.max_grad_norm=0.0",
    "distill.logging_steps=1",
    "distill.epochs_per_stage=1",
)
CODEC = {**foreign_rows.EXACT, "d": 328, "k": 12, "exact_k": 12}

Toy = Callable[..., tuple[Experiment, Cache, Prepared]]
Reference = tuple[np.ndarray, np.ndarray, list[list[int]], list[list[float]]]
"""Tokens, which of them are learned, and for each of these ids and log-probabilities."""


def teacher_of(experiment: Experiment) -> Any:
    return AutoModelForCausalLM.from_pretrained(teacher_checkpoints(experiment)[-1][1]).eval()


def sequences_of(prepared: Prepared) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sequences of the corpus, most of their tokens learned."""
    every = [prepared.train.sequence(row) for row in range(ROWS)]
    return [(np.array(tokens), np.arange(len(tokens)) > 3) for tokens, _ in every]


def reference_rows(teacher: Any, sequences: list[tuple[np.ndarray, np.ndarray]], vocab: int, k: int) -> list[Reference]:
    rows = []
    for tokens, completion in sequences:
        logp = foreign_rows.dense_logp(teacher, tokens)
        tops = [foreign_rows.top(logp[token - 1], k, vocab) for token in np.flatnonzero(completion)]
        rows.append((tokens, completion, [ids for ids, _ in tops], [values for _, values in tops]))
    return rows


def plain_losses(
    model: Any, reference: list[Reference], batches: list[list[int]], vocab: int, *, tail: bool, rate: float
) -> list[float]:
    """Train by the textbook, with dense masks, autograd and torch's own AdamW; return each step's loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    losses = []
    for batch in batches:
        total = torch.zeros(())
        for row in batch:
            tokens, completion, ids, logp = reference[row]
            logits = model(input_ids=torch.tensor(tokens.astype(np.int64))[None]).logits[0, :, :vocab]
            at = torch.tensor(np.flatnonzero(completion) - 1)
            logq = log_softmax(logits[at], -1)
            p = torch.tensor(logp).exp()
            p = p if tail else p / p.sum(1, keepdim=True)
            inside = logq.gather(1, torch.tensor(ids))
            kl = (p * (p.log() - inside)).sum(1)
            if tail:
                rest = 1 - p.sum(1)
                outside = torch.ones_like(logq).scatter_(1, torch.tensor(ids), 0.0).bool()
                kl = kl + rest * (rest.log() - logq.masked_fill(~outside, -torch.inf).logsumexp(1))
            ce = cross_entropy(logits[at], torch.tensor(tokens[at.numpy() + 1].astype(np.int64)))
            total = total + (0.5 * kl.mean() + 0.5 * ce) / len(batch)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    return losses


def imported(toy: Toy, source: Callable[[Path], Source], folder: Path, *overrides: str, **options: Any) -> Any:
    """Open the toy with the cache of a source in place of its own."""
    experiment, _, prepared = toy()
    url = folder / "imported"
    import_cache(source(folder), str(url), prepared.tokenizer, **options)
    experiment, cache, prepared = toy(f"cache.path='{url}'", *overrides)
    return experiment, cache, prepared


def distillkit_source(toy: Toy, codec: dict[str, Any]) -> Callable[[Path], Source]:
    experiment, _, prepared = toy()
    teacher = teacher_of(experiment)

    def write(folder: Path) -> Source:
        rows = []
        for tokens, completion in sequences_of(prepared):
            logp = foreign_rows.dense_logp(teacher, tokens)[:-1]
            pairs = [
                foreign_rows.distillkit_token(*foreign_rows.top(each, codec["k"], len(prepared.tokenizer)), codec)
                for each in logp
            ]
            rows.append(
                {
                    "input_ids": tokens.tolist(),
                    "compressed_logprobs": [list(data) for data, _ in pairs],
                    "bytepacked_indices": [list(ids) for _, ids in pairs],
                    "labels": np.where(completion, tokens.astype(np.int64), -100).tolist(),
                }
            )
        return DistillKitSource(foreign_rows.write_distillkit(folder / "rows", rows, codec), prepared.tokenizer, None)

    return write


def axolotl_source(toy: Toy, k: int = 6) -> Callable[[Path], Source]:
    experiment, _, prepared = toy()
    teacher = teacher_of(experiment)

    def write(folder: Path) -> Source:
        rows = [foreign_rows.axolotl_prepared(teacher, *sequence, k=k) for sequence in sequences_of(prepared)]
        return AxolotlSource(foreign_rows.write_lines(folder / "rows.jsonl", rows), prepared.tokenizer)

    return write


def own_student_losses(experiment: Experiment, cache: Cache, prepared: Prepared) -> None:
    """Replace the student's losses on the toy's own cache by those on the imported one."""
    (experiment.output_dir / "losses").unlink()
    write_student_losses(experiment, cache, prepared.tokenizer.pad_token_id)


@pytest.mark.parametrize("program", ["distillkit", "axolotl"])
def test_a_student_trained_from_imported_rows_follows_plain_pytorch_on_the_same_rows(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    tail = program == "distillkit"
    source = distillkit_source(toy, CODEC) if tail else axolotl_source(toy)
    experiment, cache, prepared = imported(toy, source, tmp_path, *PLAIN)
    without_dropout(experiment)
    seen: list[list[int]] = []
    getitems = CachedRows.__getitems__

    def recording(self: CachedRows, items: Any) -> Any:
        seen.append([row for _, row in items])
        return getitems(self, items)

    monkeypatch.setattr(CachedRows, "__getitems__", recording)
    folder = distill(experiment, "td", 0, cache, prepared)
    log = [entry["loss"] for entry in json.loads((folder / "log.json").read_text()) if "loss" in entry]
    vocab = len(prepared.tokenizer)
    reference = reference_rows(teacher_of(experiment), sequences_of(prepared), vocab, 12 if tail else 6)
    student = load_student(experiment.student, 0)
    rate = experiment.distill.learning_rate
    plain = plain_losses(student, reference, seen, vocab, tail=tail, rate=rate)
    assert len(log) == len(plain) == ROWS // 8
    assert plain[-1] < plain[0] - 0.05
    np.testing.assert_allclose(log, plain, rtol=0, atol=2e-3)
    with pytest.raises(AssertionError):  # the tolerance tells a tail from none
        np.testing.assert_allclose(
            log,
            plain_losses(load_student(experiment.student, 0), reference, seen, vocab, tail=not tail, rate=rate),
            rtol=0,
            atol=2e-3,
        )


def test_what_an_imported_cache_lacks_is_refused_by_method_and_the_rest_is_trained(toy: Toy, tmp_path: Path) -> None:
    experiment, cache, prepared = imported(toy, axolotl_source(toy), tmp_path)
    url = str(tmp_path / "imported")
    for method, message in (
        ("scd", "one checkpoint and no probe to choose by"),
        ("scd+aw", "one checkpoint and no probe to choose by"),
        ("rkl", "compares the mass outside the top 6 tokens, which is not known"),
        ("taid", "compares the mass outside the top 6 tokens, which is not known"),
        ("td+aw", f"the teacher's loss is not known for {ROWS} of {ROWS} sequences, the first being 'row-0'"),
        ("hard-aw", "the teacher's loss is not known"),
    ):
        with pytest.raises(CacheMismatchError, match=message) as error:
            distill(experiment, method, 0, cache, prepared)
        assert str(error.value).startswith(
            f"cache {url} was imported from axolotl rows, so `{method}` cannot be trained"
        )
        assert not (experiment.output_dir / "distill").exists()
    with pytest.raises(CacheMismatchError, match="its teacher is not there to be cross-fitted"):
        write_crossfit_losses(experiment, prepared, cache)
    for method in ("cd", "sft"):
        assert (distill(experiment, method, 0, cache, prepared) / "last" / "model.safetensors").is_file()
    evaluate_run(experiment, prepared, cache, Console(quiet=True))
    assert not (experiment.output_dir / "evaluate" / "teacher").exists()
    asking = experiment.model_copy(update={"distill": experiment.distill.model_copy(update={"best": "metric"})})
    with pytest.raises(CacheMismatchError, match="its teacher is not there to answer anything"):
        distill(asking, "sft", 1, cache, prepared)


def test_with_the_tail_and_every_true_token_known_every_divergence_and_weighting_works(
    toy: Toy, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    codec = {**CODEC, "k": 300, "exact_k": 300}
    overrides = ("distill.epochs_per_stage=1", "distill.temperature=2.0", "distill.methods=['taid', 'rkl+aw']")
    experiment, cache, prepared = imported(toy, distillkit_source(toy, codec), tmp_path, *overrides)
    assert np.isfinite(cache.losses("imported")).all()
    own_student_losses(experiment, cache, prepared)
    for method in ("taid", "rkl+aw"):
        folder = distill(experiment, method, 0, cache, prepared)
        log = json.loads((folder / "log.json").read_text())
        assert np.isfinite([entry["loss"] for entry in log if "loss" in entry]).all()
    warning = next(line for line in capfd.readouterr().err.splitlines() if "distill.temperature" in line)
    assert re.search(r"top 300 tokens, .* hold at least [89]\d\.\d% of imported's mass", warning)
    assert 0.1 < next(entry["aw_mean"] for entry in log if "aw_mean" in entry) < 0.9
    with pytest.raises(CacheMismatchError, match="not there to be cross-fitted"):
        crossfit = experiment.distill.model_copy(update={"aw_source": "crossfit"})
        distill(experiment.model_copy(update={"distill": crossfit}), "rkl+aw", 0, cache, prepared)


def test_a_report_of_an_imported_cache_leaves_out_what_is_not_known(toy: Toy, tmp_path: Path) -> None:
    experiment, cache, prepared = imported(
        toy, axolotl_source(toy), tmp_path, "distill.methods=['td']", "distill.epochs_per_stage=1"
    )
    own_student_losses(experiment, cache, prepared)
    distill(experiment, "td", 0, cache, prepared)
    (experiment.output_dir / "config.toml").write_text(f"[cache]\npath = '{tmp_path / 'imported'}'\n")
    page = write_report([experiment.output_dir], None).read_text()
    assert "lacks the teacher&#39;s loss" in page or "lacks the teacher's loss" in page
    view = read_run(experiment.output_dir).cache
    assert view is not None and view.retained == {"imported": None} and not view.losses_known
    assert open_cache(str(tmp_path / "imported")).probe_rows.size == 0
