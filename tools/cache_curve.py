"""Bytes per position against gradient error: the measurement behind the defaults, `bench_cache curve`.

    trained teacher ─▶ capture ─▶ encode, decode ─▶ p̂ ─▶ Σ (q − p̂) hᵀ ─┐
                                                        Σ (q − p) hᵀ ──┴─▶ angle        q, h a smaller trained student's

The teacher is trained on texts and, on request, fine-tuned on the sequences that are measured, as a teacher whose cache
is made of its own training data; or it is given and writes its own. Gradients are the student's head's, summed over
groups of positions. Bytes are those of the encoded shards, with the ids spread over a vocabulary of 128,256, so that
they have the numbers of a large one. The peers are restated plainly: a fixed top-k, renormalised, without tail, with
exact log-probabilities, at the bytes that they need.
"""

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from cache_builder.build.audit import dense_target
from cache_builder.capture.capture import capture
from cache_builder.data.batching import collate
from cache_builder.data.tokenizer import train_tokenizer
from cache_builder.format.manifest import TargetOptions
from cache_builder.format.records import RecordLayout, decode_records, encode_records
from cache_builder.format.zarr_shards import ArraySpec, encode_shard
from cache_builder.models.lm_head import hidden_states_at, project
from cache_builder.targets.sampling import tail_uniforms
from cache_builder.targets.tensors import to_torch

matplotlib.use("Agg")
from matplotlib import pyplot

VOCABULARY = 128_256
SETTINGS = [
    # top_k, top_p, tail_samples, logp_steps_per_nat
    (16, 1.0, 0, 256),
    (32, 1.0, 0, 256),
    (8, 1.0, 4, 256),
    (16, 1.0, 2, 256),
    (16, 1.0, 4, 16),
    (16, 1.0, 4, 64),
    (16, 1.0, 4, 256),
    (16, 1.0, 4, 2048),
    (16, 1.0, 8, 128),  # the default
    (16, 1.0, 8, 256),
    (16, 0.95, 4, 64),
    (16, 0.99, 4, 64),
    (16, 0.99, 8, 64),
    (16, 0.99, 12, 64),
    (20, 0.99, 8, 64),
    (24, 0.99, 4, 64),
    (24, 0.99, 8, 64),
    (32, 0.99, 8, 64),
    (32, 1.0, 4, 256),
]
PEERS = [(128, 328), (50, 121)]
SEQUENCE_TOKENS = 128


@dataclass(frozen=True)
class Point:
    """One setting's cost and error."""

    label: str
    bytes_per_position: float
    degrees: float
    """Angle between the student's gradients, over groups of positions."""
    degrees_small: float
    """The same over groups an eighth as large, where the samples' variance weighs more."""


def curve(arguments: argparse.Namespace) -> None:
    """Train, measure every setting, print the tables, save plots and figures."""
    torch.manual_seed(0)
    if arguments.teacher:
        teacher = LlamaForCausalLM.from_pretrained(arguments.teacher, use_safetensors=True).eval().to(arguments.device)
        arguments.vocabulary = teacher.config.vocab_size
        tokens = _sampled(teacher, max(500, arguments.positions // SEQUENCE_TOKENS + 8), arguments)
    else:
        tokens = _tokenised(arguments.texts, arguments.vocabulary)
        teacher = _trained(_model(arguments, hidden_size=192, layers=4), tokens, arguments, arguments.steps)
    student = _model(arguments, hidden_size=48 if arguments.teacher else 96, layers=2)
    student = _trained(student, tokens, arguments, arguments.steps)
    rows = tokens[np.linspace(0, len(tokens) - 1, arguments.positions // (SEQUENCE_TOKENS - 1)).astype(int)]
    measured = {"trained": _measure(teacher, student, rows, arguments)}
    if arguments.fine_tune_steps:
        teacher = _trained(teacher, rows, arguments, arguments.fine_tune_steps, learning_rate=1e-3)
        measured["fine-tuned"] = _measure(teacher, student, rows, arguments)
    for state, (points, entropy) in measured.items():
        count = len(rows) * (SEQUENCE_TOKENS - 1)
        table = Table(title=f"{count:,} positions, {state} teacher, mean entropy {entropy:.2f} nats")
        headers = ("target", "bytes/position", f"angle, {arguments.group} positions", f"angle, {arguments.group // 8}")
        for header in headers:
            table.add_column(header, justify="left" if header == "target" else "right")
        for point in points:
            values = (f"{point.bytes_per_position:.1f}", f"{point.degrees:.2f}°", f"{point.degrees_small:.2f}°")
            table.add_row(point.label, *values)
        Console(width=120).print(table)
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            _plot(points, entropy, arguments.out / f"cache_curve_{state}.png")
    if arguments.out:
        _save(measured, arguments.out / "cache_curve.csv")


def _save(measured: dict[str, tuple[list[Point], float]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["teacher", "entropy_nats", "target", "bytes_per_position", "degrees", "degrees_small_groups"])
        for state, (points, entropy) in measured.items():
            for point in points:
                numbers = (point.bytes_per_position, point.degrees, point.degrees_small)
                writer.writerow([state, f"{entropy:.3f}", point.label, *(f"{number:.3f}" for number in numbers)])


def _sampled(teacher: LlamaForCausalLM, rows: int, arguments: argparse.Namespace) -> np.ndarray:
    """Let the teacher write: [rows, SEQUENCE_TOKENS], each from its first token on."""
    start = torch.full((rows, 1), teacher.config.bos_token_id or 1, device=arguments.device)
    with torch.no_grad():
        tokens = teacher.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            max_length=SEQUENCE_TOKENS,
            min_length=SEQUENCE_TOKENS,
            top_k=0,
            pad_token_id=0,
        )
    return tokens.cpu().numpy()


def _tokenised(files: list[Path], vocabulary: int) -> np.ndarray:
    """Train a BPE on the texts and cut them to [rows, SEQUENCE_TOKENS]."""
    texts = [text for file in files for text in texts_in(file)]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(texts, vocabulary, Path(folder))
    stream = np.concatenate([np.array([*tokenizer(text)["input_ids"], 0]) for text in texts])
    return stream[: len(stream) // SEQUENCE_TOKENS * SEQUENCE_TOKENS].reshape(-1, SEQUENCE_TOKENS)


def texts_in(file: Path) -> Iterator[str]:
    """The conversations of a ShareGPT file, the longer texts in another JSON file, or the paragraphs of any other."""
    content = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        for line in content.strip().split("\n"):
            yield "\n".join(turn["value"] for turn in json.loads(line)["conversations"])
        return
    if file.suffix != ".json":
        yield from (part for part in content.split("\n\n") if part.strip())
        return
    pending = [json.loads(content)]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, str) and len(value) > 30:
            yield value


def _model(arguments: argparse.Namespace, *, hidden_size: int, layers: int) -> Any:
    config = LlamaConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=SEQUENCE_TOKENS,
    )
    return LlamaForCausalLM(config).to(arguments.device)


def _trained(
    model: Any, tokens: np.ndarray, arguments: argparse.Namespace, steps: int, learning_rate: float = 2e-3
) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    rng = np.random.default_rng(0)
    for step in range(steps):
        batch = torch.from_numpy(tokens[rng.integers(0, len(tokens), arguments.batch)]).to(arguments.device)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 49 or step == steps - 1:
            print(
                f"hidden {model.config.hidden_size}: step {step + 1}/{steps}, loss {loss.item():.3f}", file=sys.stderr
            )
    return model.eval()


def _measure(teacher: Any, student: Any, rows: np.ndarray, arguments: argparse.Namespace) -> tuple[list[Point], float]:
    size = arguments.vocabulary
    spread = np.random.default_rng(1).permutation(VOCABULARY)[:size]
    group_rows = max(8, arguments.group // (SEQUENCE_TOKENS - 1) // 8 * 8)
    planes: dict[int, list[np.ndarray]] = {number: [] for number in range(len(SETTINGS))}
    angles: dict[Any, list[float]] = {}
    angles_small: dict[Any, list[float]] = {}
    entropy = []
    for start in range(0, len(rows) - group_rows + 1, group_rows):
        full: list[Any] = []
        errors: dict[Any, list[Any]] = {}
        for part in np.array_split(rows[start : start + group_rows], 8):
            mask = np.ones(SEQUENCE_TOKENS, np.bool_)
            batch = collate([(row, mask) for row in part], 0)
            with torch.no_grad():
                hidden_p, head_p = hidden_states_at(teacher, batch, size)
                hidden_q, head_q = hidden_states_at(student, batch, size)
                logp, logq = project(hidden_p, head_p).log_softmax(1), project(hidden_q, head_q).log_softmax(1)
            whole = slice(0, len(logp))
            full.append((logq.exp() - logp.exp()).T @ hidden_q)
            positions = np.arange(len(logp)) + start * SEQUENCE_TOKENS
            for number, (k, top_p, samples, steps) in enumerate(SETTINGS):
                uniforms = tail_uniforms(number, "teacher", positions, samples)
                captured = capture(teacher, batch, size, top_k=k, top_p=top_p, uniforms_MS=uniforms)
                layout = RecordLayout(k, samples, steps)
                decoded = to_torch(decode_records(layout, encode_records(layout, captured), size))
                dense = dense_target(decoded.to(logp.device), whole, logq)
                errors.setdefault(number, []).append((logp.exp() - dense).T @ hidden_q)
                spread_out = replace(captured, ids=spread[captured.ids], samples=spread[captured.samples])
                planes[number].append(encode_records(layout, spread_out))
            for k, _ in PEERS:
                top = logp.topk(k, dim=1)
                kept = torch.zeros_like(logp).scatter_(1, top.indices, top.values.softmax(1))
                errors.setdefault(f"peer {k}", []).append((logp.exp() - kept).T @ hidden_q)
            entropy.append(float(captured.entropy.mean()))
        for key, parts in errors.items():
            angles.setdefault(key, []).append(_degrees(sum(full), sum(parts)))
            angles_small.setdefault(key, []).extend(_degrees(f, e) for f, e in zip(full, parts, strict=True))
    points = []
    for number, (k, top_p, samples, steps) in enumerate(SETTINGS):
        joined = np.concatenate(planes[number], axis=1)
        options = TargetOptions(top_k=k, top_p=top_p, tail_samples=samples, logp_steps_per_nat=steps, seed=0)
        spec = ArraySpec((RecordLayout.of(options).n_planes, joined.shape[1]), "uint8", 65_536, 4_096, 1)
        whole_chunks = joined[:, : max(4_096, joined.shape[1] // 4_096 * 4_096)]
        cost = sum(
            len(encode_shard(spec, whole_chunks[:, at : at + 65_536]).data)
            for at in range(0, whole_chunks.shape[1], 65_536)
        )
        label = (
            f"top-{k}" + (f", p {top_p}" if top_p < 1 else "") + (f" + {samples} samples" if samples else " + bucket")
        )
        label += f", 1/{steps} nat"
        mean = (float(np.mean(angles[number])), float(np.mean(angles_small[number])))
        points.append(Point(label, cost / whole_chunks.shape[1], *mean))
    for k, cost in PEERS:
        mean = (float(np.mean(angles[f"peer {k}"])), float(np.mean(angles_small[f"peer {k}"])))
        points.append(Point(f"peer's budget: top-{k}, renormalised", cost, *mean))
    return points, float(np.mean(entropy))


def _degrees(full: Any, error: Any) -> float:
    cosine = torch.nn.functional.cosine_similarity(full.flatten().double(), (full + error).flatten().double(), 0)
    return float(torch.rad2deg(torch.acos(cosine.clamp(-1, 1))))


def _plot(points: list[Point], entropy: float, path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(10, 5))
    for number, point in enumerate(points, 1):
        kind = "s" if "peer" in point.label else "o" if "samples" in point.label else "^"
        place = (point.bytes_per_position, max(point.degrees, 0.01))
        axes.plot(*place, kind, color="tab:red" if kind == "s" else "tab:blue", label=f"{number}  {point.label}")
        axes.annotate(str(number), place, fontsize=7, xytext=(4, 3), textcoords="offset points")
    axes.axvline(80, color="grey", linewidth=0.5)
    axes.set(xlabel="bytes per position", ylabel="angle to the full gradient, degrees", yscale="log")
    axes.set_title(f"What a position costs and keeps (teacher's mean entropy {entropy:.2f} nats)")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), handletextpad=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
