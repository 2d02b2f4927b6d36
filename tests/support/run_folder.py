"""A made-up but complete run folder: a real cache and real files with numbers from a seeded generator."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tomli_w

from cache_builder.cache.reader import open_cache
from cache_builder.cache.writer import CheckpointWriter, create_cache, write_order, write_probe
from cache_builder.format.manifest import (
    CheckpointIdentity,
    CorpusIdentity,
    Layout,
    Manifest,
    ProbeOptions,
    TargetOptions,
    TokenizerIdentity,
)
from cache_builder.format.records import quantise
from cache_builder.sequences import FlatSampleIds
from cache_builder.storage.open import open_store
from cache_builder.targets.sparse import Targets
from trainer.losses_file import write_losses

CHECKPOINTS = ("checkpoint-100", "checkpoint-200", "checkpoint-300", "checkpoint-400")
METHODS = ("sft", "td", "taid", "scd+aw")
TASKS = {"triage": "accuracy", "entities": "entity_f1", "questions": "accuracy"}
SEQUENCES, TEST_ROWS, VOCAB_SIZE, TOP_K, PROBE_IDS = 240, 90, 50, 4, 6


def make_run(
    folder: Path,
    *,
    methods: tuple[str, ...] = METHODS,
    seeds: tuple[int, ...] = (0, 1),
    tasks: dict[str, str] | None = None,
    ids: str = "train-{}",
) -> Path:
    """Write a run folder with every part there and return it. The same arguments give the same bytes."""
    generator = np.random.default_rng(7)
    folder.mkdir(parents=True)
    tasks = TASKS if tasks is None else tasks
    config = {"run": {"output_dir": str(folder)}, "distill": {"methods": list(methods), "seeds": list(seeds)}}
    (folder / "config.toml").write_text(tomli_w.dumps(config), encoding="utf-8")
    difficulty_N = generator.gamma(2.0, 0.5, SEQUENCES)
    teacher_N = make_cache(folder / "cache", difficulty_N, generator, ids)
    write_json(
        folder / "teacher" / "checkpoints.json",
        {
            "checkpoints": [
                {"name": name, "path": name, "step": 100 * (i + 1), "eval_loss": 1.0 - 0.2 * i}
                for i, name in enumerate(CHECKPOINTS)
            ]
        },
    )
    for model in ("teacher", "student"):
        log = [
            {"step": 400, "loss": 0.1},
            {"step": 400, "train_runtime": 42.0, "train_steps_per_second": 9.5, "peak_memory_mib": 812.5},
        ]
        write_json(folder / model / "log.json", log)
    fingerprint = open_cache(str(folder / "cache")).fingerprint
    student_N = teacher_N * generator.lognormal(0.3, 0.5, SEQUENCES)
    write_losses(folder / "losses" / "student.safetensors", student_N, fingerprint)
    write_evaluation(folder, "teacher", None, None, None, tasks, 0.80, generator)
    write_evaluation(folder, "student_sft", None, None, None, tasks, 0.62, generator)
    for index, method in enumerate(methods):
        for seed in seeds:
            distilled = folder / "distill" / method / f"seed-{seed}"
            final_N = teacher_N * generator.lognormal(0.1, 0.4, SEQUENCES)
            write_losses(distilled / "losses.safetensors", final_N, fingerprint)
            write_json(distilled / "plan.json", plan_of(method, seed, generator))
            write_json(distilled / "log.json", log_of(method, generator))
            for which in ("best", "last"):
                share = 0.64 + 0.24 * index / max(3, len(methods) - 1) - (0.01 if which == "last" else 0)
                model = f"{method}/seed-{seed}/{which}"
                write_evaluation(folder, model, method, seed, which, tasks, share, generator)
    return folder


def make_cache(folder: Path, difficulty_N: np.ndarray, generator: np.random.Generator, ids: str) -> np.ndarray:
    """Write a cache whose later checkpoints have lower losses; return the last one's, f64 [N]."""
    positions_N = generator.integers(2, 7, SEQUENCES)
    position_offsets = np.concatenate([[0], np.cumsum(positions_N)]).astype(np.int64)
    token_offsets = np.concatenate([[0], np.cumsum(positions_N + 3)]).astype(np.int64)
    text = [ids.format(row).encode() for row in range(SEQUENCES)]
    id_offsets = np.concatenate([[0], np.cumsum([len(part) for part in text])]).astype(np.int64)
    completion = np.concatenate([np.arange(count + 3) >= 3 for count in positions_N])
    corpus: Any = SimpleNamespace(
        tokens=generator.integers(0, VOCAB_SIZE, len(completion)).astype(np.uint32),
        completion=completion,
        token_offsets=token_offsets,
        position_offsets=position_offsets,
        sample_ids=FlatSampleIds(np.frombuffer(b"".join(text), np.uint8), id_offsets),
        fingerprint="corpus",
    )
    count = int(position_offsets[-1])
    manifest = Manifest(
        format="footsteps-cache",
        version=1,
        tokenizer=TokenizerIdentity(fingerprint="tokenizer", size=VOCAB_SIZE),
        chat_template_fingerprint="template",
        corpus=CorpusIdentity(fingerprint="corpus", sequences=SEQUENCES, tokens=len(completion), positions=count),
        held_out=None,
        targets=TargetOptions(top_k=TOP_K, top_p=1.0, tail_samples=0, logp_steps_per_nat=2048, seed=0),
        probe=ProbeOptions(sequences=8, top_k=PROBE_IDS),
        layout=Layout(shard_positions=4096, chunk_positions=4096),
    )
    store = open_store(str(folder))
    create_cache(store, manifest, corpus)
    probe_positions = int(position_offsets[8])
    write_probe(
        store,
        identity(CHECKPOINTS[-1]),
        np.arange(8),
        np.tile(np.arange(PROBE_IDS, dtype=np.uint32), (probe_positions, 1)),
    )
    write_order(store, list(CHECKPOINTS))
    base_logits = generator.normal(0, 1, (probe_positions, PROBE_IDS + 1))
    drift = generator.normal(0, 1, (probe_positions, PROBE_IDS + 1))
    loss_N = np.zeros(SEQUENCES)
    for index, name in enumerate(CHECKPOINTS):
        loss_N = difficulty_N * (1.2 - 0.28 * index) * generator.lognormal(0, 0.3, SEQUENCES)
        gold = -np.repeat(loss_N / positions_N, positions_N).astype(np.float32)
        head = generator.dirichlet(np.ones(TOP_K) * 3, count) * (0.9 + 0.02 * index)
        targets = Targets(
            ids=np.tile(np.arange(TOP_K), (count, 1)),
            logp=np.log(-np.sort(-head, axis=1)).astype(np.float32),
            samples=np.zeros((count, 0), np.int64),
            log_tail=np.log1p(-head.sum(1)).astype(np.float32),
            gold=gold,
            entropy=np.ones(count, np.float32),
        )
        writer = CheckpointWriter(store, manifest, name)
        writer.begin(identity(name))
        writer.write_shard(0, targets)
        logits = base_logits + drift * (1.5 - 0.4 * index)
        logp = (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)
        writer.write_probe_pass(1.1 - 0.2 * index, quantise(logp[:, :-1], 2048), logp[:, -1])
        assert writer.finish(position_offsets)
    return loss_N


def identity(name: str) -> CheckpointIdentity:
    return CheckpointIdentity(name=name, weights_fingerprint=name, dtype="float32", attn_implementation="sdpa")


def plan_of(method: str, seed: int, generator: np.random.Generator) -> dict[str, Any]:
    """A plan as training writes it: with both terms where the method schedules, else with the choices only."""
    stages: list[dict[str, Any]] = []
    for stage in range(len(CHECKPOINTS)):
        entry: dict[str, Any] = {"stage": stage, "first_step": 30 * stage, "choice": None, "margin": None}
        if method.startswith("scd"):
            quality = {name: 0.4 * (3 - i) ** 1.3 for i, name in enumerate(CHECKPOINTS)}
            distance = {
                name: 0.25 + 0.5 * abs(i - stage) + 0.1 * float(generator.random())
                for i, name in enumerate(CHECKPOINTS)
            }
            totals = sorted((quality[name] + distance[name], name) for name in CHECKPOINTS)
            entry |= {"choice": totals[0][1], "margin": totals[1][0] - totals[0][0]}
            entry |= {"anchor_kl": quality, "student_kl": distance}
        elif method != "sft":
            entry["choice"] = CHECKPOINTS[stage] if method == "cd" else CHECKPOINTS[-1]
        stages.append(entry)
    return {
        "method": method,
        "seed": seed,
        "checkpoints": list(CHECKPOINTS),
        "best": CHECKPOINTS[-1],
        "metric": "kl",
        "steps_per_stage": 30,
        "stages": stages,
    }


def log_of(method: str, generator: np.random.Generator) -> list[dict[str, Any]]:
    """A training log of four stages of 30 steps, with validation at each stage's end."""
    log: list[dict[str, Any]] = []
    for step in range(5, 121, 5):
        entry: dict[str, Any] = {
            "step": step,
            "epoch": step / 30,
            "loss": 2.0 * np.exp(-step / 60) + 0.05 * float(generator.random()),
            "learning_rate": 1e-3 * (1 - (step % 30) / 30),
            "grad_norm": 1 + float(generator.random()),
        }
        if method == "taid":
            entry["taid_t"] = 0.4 + 0.6 * step / 120
        if method.endswith("aw"):
            entry["divergence_weight"] = 0.5 + 0.001 * step
        log.append(entry)
        if step % 30 == 0:
            log.append({"step": step, "epoch": step / 30, "eval_loss": 2.0 * np.exp(-step / 70) + 0.1})
    log.append({"step": 120, "epoch": 4.0, "train_runtime": 12.5, "train_steps_per_second": 9.6})
    return log


def write_evaluation(
    folder: Path,
    model: str,
    method: str | None,
    seed: int | None,
    which: str | None,
    tasks: dict[str, str],
    share: float,
    generator: np.random.Generator,
) -> None:
    """Write metrics and predictions of a model that gets `share` of the rows right."""
    results, lines = {}, []
    for task, primary in tasks.items():
        right = generator.random(TEST_ROWS) < share
        half = 1.96 * (share * (1 - share) / TEST_ROWS) ** 0.5
        value = float(right.mean())
        metric = {"value": value, "low": value - half, "high": value + half}
        results[task] = {
            "rows": TEST_ROWS,
            "unparsable": 2,
            "primary": primary,
            "metrics": {primary: metric, "cohen_kappa": {"value": value - 0.1, "low": value - 0.2, "high": value}},
        }
        row = {"task": task, "prompt": "?", "output": "a", "parsed": "a", "answer": "a"}
        lines.extend(json.dumps({**row, "id": f"test-{i}", "score": float(ok)}) for i, ok in enumerate(right))
    target = folder / "evaluate" / model
    write_json(
        target / "metrics.json",
        {
            "model": model,
            "method": method,
            "seed": seed,
            "which": which,
            "split": "test",
            "parameters": 12_000_000 if model == "teacher" else 3_100_000,
            "bytes": 48_000_000 if model == "teacher" else 12_400_000,
            "seconds": 1.5,
            "tokens_per_second": 900.0 if model == "teacher" else 2600.0,
            "tasks": results,
        },
    )
    (target / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
