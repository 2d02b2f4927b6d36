"""What a position costs on disk, what it keeps of the gradient, and how fast it is written and read.

    python -m tools.bench_cache curve --texts FILE…    bytes per position against gradient error, as a table and a plot
    python -m tools.bench_cache rates                  positions per second and core, written and read
    python -m tools.bench_cache memory                 peak memory, writing and reading 10⁴ … 10⁶ sequences

curve   A teacher and a smaller student are trained on the texts. For each setting the teacher's targets are captured,
        encoded and decoded, and the student's head gradient Σ (q − p̂) hᵀ over groups of positions is compared with
        that from the full distribution: the angle between the two. Bytes are those of the encoded shards, with the ids
        spread over a vocabulary of 128,256, so that they cost what a large vocabulary's do. The peers are restated
        plainly: a fixed top-k, renormalised, without tail, exact log-probabilities, at the bytes that they need.
rates   One thread, from a warm page cache; the limit is a numpy memmap of the same records. "shuffled" is the order
        in which training reads: chunks shuffled, then sequences within a window of chunks.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

VOCABULARY = 128_256
SETTINGS = [
    # top_k, top_p, tail_samples, logp_steps_per_nat
    (8, 1.0, 0, 256),
    (16, 1.0, 0, 256),
    (32, 1.0, 0, 256),
    (8, 1.0, 4, 256),
    (12, 1.0, 4, 256),
    (16, 1.0, 1, 256),
    (16, 1.0, 2, 256),
    (16, 1.0, 4, 16),
    (16, 1.0, 4, 64),
    (16, 1.0, 4, 256),
    (16, 1.0, 4, 2048),
    (16, 0.99, 4, 256),
    (16, 0.95, 4, 256),
    (12, 1.0, 8, 256),
    (16, 1.0, 6, 256),
    (16, 1.0, 8, 256),
    (20, 1.0, 4, 256),
    (24, 1.0, 2, 256),
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
    """Train, measure every setting, print the table, save plot and figures."""
    import torch

    torch.manual_seed(0)
    tokens = _tokenised(arguments.texts, arguments.vocabulary)
    teacher = _trained(tokens, arguments, hidden_size=192, layers=4, steps=arguments.steps)
    student = _trained(tokens, arguments, hidden_size=96, layers=2, steps=arguments.steps // 2)
    rows = tokens[np.linspace(0, len(tokens) - 1, arguments.positions // (SEQUENCE_TOKENS - 1)).astype(int)]
    points, entropy = _measure(teacher, student, rows, arguments)
    table = Table(title=f"{len(rows) * (SEQUENCE_TOKENS - 1):,} positions, teacher's mean entropy {entropy:.2f} nats")
    headers = ("target", "bytes/position", f"angle, {arguments.group} positions", f"angle, {arguments.group // 8}")
    for header in headers:
        table.add_column(header, justify="left" if header == "target" else "right")
    for point in points:
        values = (f"{point.bytes_per_position:.1f}", f"{point.degrees:.2f}°", f"{point.degrees_small:.2f}°")
        table.add_row(point.label, *values)
    Console(width=120).print(table)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "bench_cache.json").write_text(json.dumps([vars(point) for point in points], indent=1))
        _plot(points, entropy, arguments.out / "bench_cache.png")


def _tokenised(files: list[Path], vocabulary: int) -> np.ndarray:
    """Train a BPE on the texts and cut them to [rows, SEQUENCE_TOKENS]."""
    from cache_builder.models import train_tokenizer

    texts = [text for file in files for text in _strings(file)]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(texts, vocabulary, Path(folder))
    stream = np.concatenate([np.array([*tokenizer(text)["input_ids"], 0]) for text in texts])
    return stream[: len(stream) // SEQUENCE_TOKENS * SEQUENCE_TOKENS].reshape(-1, SEQUENCE_TOKENS)


def _strings(file: Path) -> Iterator[str]:
    """The longer texts in a JSON file, or the paragraphs of any other."""
    content = file.read_text(encoding="utf-8")
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


def _trained(tokens: np.ndarray, arguments: argparse.Namespace, *, hidden_size: int, layers: int, steps: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=SEQUENCE_TOKENS,
    )
    model = LlamaForCausalLM(config).to(arguments.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    rng = np.random.default_rng(0)
    for step in range(steps):
        batch = torch.from_numpy(tokens[rng.integers(0, len(tokens), arguments.batch)]).to(arguments.device)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 49 or step == steps - 1:
            print(f"hidden {hidden_size}: step {step + 1}/{steps}, loss {loss.item():.3f}", file=sys.stderr)
    return model.eval()


def _measure(teacher: Any, student: Any, rows: np.ndarray, arguments: argparse.Namespace) -> tuple[list[Point], float]:
    import torch

    from cache_builder.audit import dense_target
    from cache_builder.batches import collate
    from cache_builder.capture import capture
    from cache_builder.format import TargetOptions
    from cache_builder.head import hidden_states_at, project
    from cache_builder.records import RecordLayout, Targets, decode_records, encode_records
    from cache_builder.shards import ArraySpec, encode_shard
    from cache_builder.targets import SparseTargets, tail_uniforms

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
                targets = Targets(
                    captured.ids, captured.logp, captured.samples, captured.log_tail, captured.gold, captured.entropy
                )
                layout = RecordLayout(k, samples, steps)
                decoded = SparseTargets.from_numpy(decode_records(layout, encode_records(layout, targets), size))
                dense = dense_target(decoded.to(logp.device), whole, logq)
                errors.setdefault(number, []).append((logp.exp() - dense).T @ hidden_q)
                spread_out = Targets(
                    spread[targets.ids],
                    targets.logp,
                    spread[targets.samples],
                    targets.log_tail,
                    targets.gold,
                    targets.entropy,
                )
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
    import torch

    cosine = torch.nn.functional.cosine_similarity(full.flatten().double(), (full + error).flatten().double(), 0)
    return float(torch.rad2deg(torch.acos(cosine.clamp(-1, 1))))


def _plot(points: list[Point], entropy: float, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for point in points:
        kind = "s" if "peer" in point.label else "o" if "samples" in point.label else "^"
        axes.plot(point.bytes_per_position, point.degrees, kind, color="tab:red" if kind == "s" else "tab:blue")
        axes.annotate(
            point.label,
            (point.bytes_per_position, point.degrees),
            fontsize=6,
            xytext=(3, 3),
            textcoords="offset points",
        )
    axes.axvline(80, color="grey", linewidth=0.5)
    axes.set(xlabel="bytes per position", ylabel="angle to the full gradient, degrees", yscale="log")
    axes.set_title(f"What a position costs and keeps (teacher's mean entropy {entropy:.2f} nats)")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def rates(arguments: argparse.Namespace) -> None:
    """Print write and read rates on one core."""
    from cache_builder.reader import open_cache
    from cache_builder.records import RecordLayout, decode_records, encode_records, records_spec
    from cache_builder.shards import encode_shard
    from cache_builder.store import LocalStore
    from tools.synthetic_cache import Synthetic, write_synthetic_cache
    from trainer.order import epoch_order

    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        synthetic = Synthetic(arguments.sequences)
        write_synthetic_cache(LocalStore(folder / "cache"), synthetic)
        cache = open_cache(str(folder / "cache"))
        spec, layout = records_spec(cache.manifest), RecordLayout.of(cache.manifest.targets)
        positions, offsets = cache.corpus.n_positions, cache.corpus.position_offsets
        shard = synthetic.targets(0, 0, min(positions, spec.shard))
        store = LocalStore(folder / "written")
        seconds = _seconds(
            lambda: [store.commit(str(n), encode_shard(spec, encode_records(layout, shard)).data) for n in range(4)]
        )
        table = Table(title=f"{positions:,} positions, {len(cache.corpus):,} sequences; best of three, one thread")
        for header in ("what", "positions/s", "of the memmap"):
            table.add_column(header, justify="left" if header == "what" else "right")
        raw = np.memmap(folder / "raw", np.uint8, "w+", shape=(positions, layout.n_planes))
        for start in range(0, positions, spec.shard):
            raw[start : start + spec.shard] = encode_records(
                layout, synthetic.targets(0, start, min(positions, start + spec.shard))
            ).T
        names = cache.checkpoints[0]
        order = epoch_order(offsets, spec.chunk, arguments.window, 0, 0)
        batches = [order[at : at + 8] for at in range(0, len(order) - 8, 8)]
        vocabulary = cache.manifest.tokenizer.size

        def from_memmap(rows: np.ndarray) -> None:
            planes = np.concatenate([raw[offsets[row] : offsets[row + 1]] for row in rows]).T
            decode_records(layout, planes, vocabulary)

        def batch_of_everything(rows: np.ndarray) -> None:
            cache.read(names, rows)
            cache.corpus.sequences(rows)

        whole = open_cache(str(folder / "cache"))
        read = {
            "memmap, sequential, decoded": lambda: [
                decode_records(layout, np.ascontiguousarray(raw[at : at + spec.chunk].T), vocabulary)
                for at in range(0, positions, spec.chunk)
            ],
            "cache, sequential, decoded": lambda: list(whole.shard_targets(names)),
            "memmap, shuffled, batches of 8, decoded": lambda: [from_memmap(rows) for rows in batches],
            "cache, shuffled, batches of 8, decoded": lambda: [cache.read(names, rows) for rows in batches],
            "… with their tokens and masks": lambda: [batch_of_everything(rows) for rows in batches],
        }
        table.add_row("write: encode, compress, commit", f"{4 * len(shard) / seconds:,.0f}", "")
        limit = 1.0
        for label, action in read.items():
            rate = positions / _seconds(action)
            if label.startswith("memmap"):
                limit = rate
            table.add_row(label, f"{rate:,.0f}", f"{rate / limit:.2f}")
        Console(width=120).print(table)
        total = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
        print(f"all files of the cache: {total / positions:.1f} bytes/position (made-up ids, which hardly compress)")


def memory(arguments: argparse.Namespace) -> None:
    """Print the peak memory of fresh processes that write, and that read, caches of growing size."""
    table = Table(title="peak resident memory, MiB")
    for header in ("sequences", "write", "read an epoch, memory_bytes = 64 MiB"):
        table.add_column(header, justify="right")
    for sequences in (10_000, 100_000, 1_000_000):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            peaks = [_child(action, folder, sequences) for action in ("write", "read")]
        table.add_row(f"{sequences:,}", *(f"{peak:,.0f}" for peak in peaks))
    Console(width=120).print(table)


def _child(action: str, folder: str, sequences: int) -> float:
    command = [sys.executable, "-m", "tools.bench_cache", "memory-child", action, folder, str(sequences)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory_child(arguments: argparse.Namespace) -> None:
    """Write or read one cache and print this process's peak memory in MiB."""
    from cache_builder.reader import open_cache
    from cache_builder.store import LocalStore
    from tools.synthetic_cache import Synthetic, write_synthetic_cache
    from trainer.order import epoch_order

    if arguments.action == "write":
        write_synthetic_cache(LocalStore(arguments.folder), Synthetic(arguments.sequences, mean_positions=8))
    else:
        cache = open_cache(str(arguments.folder), memory_bytes=64 << 20)
        order = epoch_order(cache.corpus.position_offsets, cache.manifest.layout.chunk_positions, 64, 0, 0)
        for start in range(0, len(order), 8):
            cache.read("step-1", order[start : start + 8])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _seconds(action: Any) -> float:
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - started)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function in (("curve", curve), ("rates", rates), ("memory", memory), ("memory-child", memory_child)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        if name == "curve":
            command.add_argument(
                "--texts", type=Path, nargs="+", required=True, help="JSON or text files to learn from"
            )
            command.add_argument("--vocabulary", type=int, default=8192)
            command.add_argument("--steps", type=int, default=1500, help="training steps of the teacher")
            command.add_argument("--batch", type=int, default=32, help="sequences of a training step")
            command.add_argument("--positions", type=int, default=33_000)
            command.add_argument("--group", type=int, default=4096, help="positions of one gradient")
            command.add_argument("--device", default="cpu")
            command.add_argument("--out", type=Path, help="folder for bench_cache.png and bench_cache.json")
        elif name == "rates":
            command.add_argument("--sequences", type=int, default=25_000)
            command.add_argument("--window", type=int, default=256, help="chunks of a shuffle window")
            command.add_argument(
                "--folder", type=Path, help="where to write; the system's temporary folder unless given"
            )
        elif name == "memory":
            command.add_argument("--folder", type=Path)
        else:
            command.add_argument("action", choices=["write", "read"])
            command.add_argument("folder", type=Path)
            command.add_argument("sequences", type=int)
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    main()
