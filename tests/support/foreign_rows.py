"""Files as DistillKit and axolotl write them, from a model's own distributions; written from the formats' descriptions.

python -m tests.support.foreign_rows SOURCE TOKENIZER CACHE   import, killed at later fsyncs until one finishes
"""

import json
import os
import signal
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from cache_builder.data.tokenizer import load_tokenizer
from cache_builder.format.manifest import Layout
from cache_builder.interchange import importing
from cache_builder.interchange.distillkit import DistillKitSource
from tests.support.builders import die_at_fsync

RECOMMENDED = {
    "d": 304,
    "k": 24,
    "exact_k": 16,
    "exact_dtype": "bfloat16",
    "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"],
    "term_dtype": "float32",
    "residual_bins": [],
    "delta_encoding": False,
    "error_diffusion": False,
}
EXACT = {"d": 304, "k": 8, "exact_k": 8, "exact_dtype": "float32", "residual_bins": [], "delta_encoding": False}
LEGACY = {
    "k": 20,
    "exact_k": 12,
    "polynomial_degree": 3,
    "vocab_size": 304,
    "invert_polynomial": True,
    "with_sqrt_term": True,
}


def dense_logp(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Log-probabilities over the head's whole vocabulary of what follows each token, f64 [T, V]."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(tokens.astype(np.int64))[None]).logits[0].double()
    return torch.log_softmax(logits, -1).numpy()


def top(logp_V: np.ndarray, k: int, tokens: int = 300) -> tuple[list[int], list[float]]:
    """The k likeliest tokens of a tokenizer of 300, and their log-probabilities."""
    ids = np.argsort(-logp_V[:tokens], kind="stable")[:k]
    return ids.tolist(), logp_V[ids].tolist()


def pack(numbers: Sequence[int], bits: int) -> bytes:
    """Write unsigned integers one after another, the highest bit first, as one long number."""
    total = 0
    for number in numbers:
        total = total << bits | number
    padding = -len(numbers) * bits % 8
    return (total << padding).to_bytes((len(numbers) * bits + padding) // 8, "big")


def floats(values: Sequence[float], dtype: str) -> bytes:
    if dtype == "bfloat16":
        return torch.tensor(values, dtype=torch.bfloat16).view(torch.int16).numpy().tobytes()
    return struct.pack("<" + {"float16": "e", "float32": "f", "float64": "d"}[dtype] * len(values), *values)


def distillkit_token(ids: list[int], logp: list[float], codec: dict[str, Any]) -> tuple[bytes, bytes]:
    """One token's (compressed_logprobs, bytepacked_indices)."""
    values = np.diff(logp, prepend=0.0) if codec.get("delta_encoding", True) else np.array(logp)
    exact, rest = codec["exact_k"], values[codec["exact_k"] :]
    data = floats(values[:exact].tolist(), codec.get("exact_dtype", "float32"))
    terms = codec.get("polynomial_terms")
    if terms:
        t = np.linspace(0, 1, len(rest)) if codec.get("normalize_t") else np.arange(len(rest), dtype=float)
        basis = np.stack([{"sqrt": np.sqrt, "exp": np.exp}[e](t) if isinstance(e, str) else t**e for e in terms], 1)
        coefficients = np.linalg.lstsq(basis, rest, rcond=None)[0].astype(codec["term_dtype"])
        data += floats(coefficients.tolist(), codec["term_dtype"])
        rest = rest - basis @ coefficients.astype(float)
    start = 0
    for each in codec["residual_bins"]:
        part, bits = rest[start : start + each["num_elements"]], each["element_bits"]
        start += each["num_elements"]
        scale = float(torch.tensor(np.abs(part).max() / (1 if bits == 1 else 2 ** (bits - 1))).half())
        low = 0 if bits == 1 else -(2 ** (bits - 1))
        high = 1 if bits == 1 else 2 ** (bits - 1) - 1
        codes = (part > 0).astype(int) if bits == 1 else np.clip(np.rint(part / scale), low, high).astype(int) - low
        data += floats([scale], each["scale_dtype"]) + pack(codes.tolist(), bits)
    return data, pack(ids, int(np.ceil(np.log2(codec["d"]))))


def legacy_token(ids: list[int], values: list[float], codec: dict[str, Any]) -> dict[str, list[Any]]:
    bits = int(np.ceil(np.log2(codec["vocab_size"])))
    per_word = 64 // bits
    words = [
        sum(number << bits * place for place, number in enumerate(ids[start : start + per_word]))
        for start in range(0, len(ids), per_word)
    ]
    t = np.arange(1, codec["k"] - codec["exact_k"] + 1, dtype=float)
    terms = [t ** (-e if codec["invert_polynomial"] else e) for e in range(codec["polynomial_degree"] + 1)]
    terms += [np.sqrt(t)] if codec["with_sqrt_term"] else []
    coefficients = np.linalg.lstsq(np.stack(terms, 1), np.array(values[codec["exact_k"] :]), rcond=None)[0]
    exact = np.array(values[: codec["exact_k"]], np.float16)
    return {"packed_indices": words, "exact_values": exact.tolist(), "coeffs": coefficients.astype(np.float32).tolist()}


def distillkit_rows(
    model: Any, sequences: Sequence[tuple[np.ndarray, np.ndarray]], codec: dict[str, Any], *, labels: bool = True
) -> list[dict[str, Any]]:
    """One row per (tokens, completion); of the legacy kind, of centred logits, by a codec with `polynomial_degree`."""
    rows = []
    for tokens, completion in sequences:
        row: dict[str, Any] = {"input_ids": tokens.tolist()}
        logp_TV = dense_logp(model, tokens)[: len(tokens) - 1]
        if "polynomial_degree" in codec:
            centred = logp_TV - logp_TV.mean(1, keepdims=True)
            packed = [legacy_token(*top(logits, codec["k"]), codec) for logits in centred]
            row |= {name: [token[name] for token in packed] for name in packed[0]}
        else:
            pairs = [distillkit_token(*top(logp, codec["k"]), codec) for logp in logp_TV]
            row["compressed_logprobs"] = [list(data) for data, _ in pairs]
            row["bytepacked_indices"] = [list(ids) for _, ids in pairs]
        if labels:
            row["labels"] = np.where(completion, tokens.astype(np.int64), -100).tolist()
        rows.append(row)
    return rows


def write_distillkit(folder: Path, rows: list[dict[str, Any]], codec: dict[str, Any], files: int = 1) -> Path:
    """Write rows as DistillKit's capture does: data_0.parquet, … and the compression config beside them."""
    folder.mkdir(parents=True)
    bytes_ = pa.list_(pa.list_(pa.uint8()))
    types = {"compressed_logprobs": bytes_, "bytepacked_indices": bytes_, "input_ids": pa.list_(pa.uint64())}
    types["packed_indices"] = pa.list_(pa.list_(pa.uint64()))
    per_file = -(-len(rows) // files)
    for number in range(files):
        part = rows[number * per_file : (number + 1) * per_file]
        columns = {name: pa.array([row[name] for row in part], types.get(name)) for name in part[0]}
        pq.write_table(pa.table(columns), folder / f"data_{number}.parquet")
    (folder / "compression_config.yaml").write_text(yaml.safe_dump(codec))
    return folder


def axolotl_prepared(
    model: Any, tokens: np.ndarray, completion: np.ndarray, k: int, *, temperature: float = 1.0, alignment: str = "next"
) -> dict[str, Any]:
    """A row as axolotl's preprocessing leaves it: renormalised over the top k at its temperature, padded, masked."""
    logp_TV = dense_logp(model, tokens)
    row: dict[str, Any] = {
        "input_ids": tokens.tolist(),
        "labels": np.where(completion, tokens.astype(np.int64), -100).tolist(),
        "target_logprobs": [],
        "target_token_ids": [],
        "target_mask": [],
    }
    for j in range(len(tokens)):
        token = j + 1 if alignment == "next" else j
        if 1 <= token < len(tokens):
            ids, logp = top(logp_TV[token - 1], k)
            scaled = torch.log_softmax(torch.tensor(logp, dtype=torch.float32) / temperature, 0).tolist()
        if not 1 <= token < len(tokens) or not completion[token]:
            ids, scaled, mask = [0] * k, [-1e9] * k, [0] * k
        else:
            mask = [1] * k
        row["target_logprobs"].append(scaled)
        row["target_token_ids"].append(ids)
        row["target_mask"].append(mask)
    return row


def axolotl_raw(model: Any, tokens: np.ndarray, completion: np.ndarray, k: int) -> list[list[dict[str, Any]]]:
    """What a server says of the last answer's tokens, the true token added where it is not among the top k."""
    logp_TV = dense_logp(model, tokens)
    rows = []
    for token in np.flatnonzero(completion):
        ids, logp = top(logp_TV[token - 1], k)
        if tokens[token] not in ids:
            ids, logp = [*ids, int(tokens[token])], [*logp, float(logp_TV[token - 1, tokens[token]])]
        pairs = zip(ids, np.array(logp, np.float32).tolist(), strict=True)
        rows.append([{"token": f"token_id:{number}", "logprob": value} for number, value in pairs])
    return rows


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def cut_small(patch: Any) -> None:
    """Make imports write many small shards; `patch` sets an attribute by its dotted name."""
    small = Layout(shard_positions=10, chunk_positions=5)
    patch("cache_builder.interchange.importing.Layout", lambda **_: small)


def main() -> None:
    source, tokenizer_path, cache = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    cut_small(lambda name, value: setattr(importing, name.rpartition(".")[2], value))
    tokenizer = load_tokenizer(str(tokenizer_path))
    killed = 0
    while True:
        child = os.fork()
        if not child:
            status = 1
            try:
                die_at_fsync(2 + 7 * killed)
                importing.import_cache(DistillKitSource(source, tokenizer, None), str(cache), tokenizer)
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        if status == 0:
            break
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"the import failed: {status}"
        killed += 1
    print(killed)


if __name__ == "__main__":
    main()
