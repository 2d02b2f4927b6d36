"""Hidden states of a teacher and of students at the same positions, made once and kept.

    python -m tools.cache_curve.pairs pubmed FOLDER --model SMOLLM2 --data ori_pqal.json
    python -m tools.cache_curve.pairs snips  FOLDER --model SMOLLM2 --data snips [--fine-tune-steps 24]
    python -m tools.cache_curve.pairs small  FOLDER --texts FILE… --batch 8

    FOLDER/<pair>/teacher.safetensors        hidden [N, D], head [V, D], label [N]
    FOLDER/<pair>/<student>.safetensors      hidden [N, D], and head [V, D] where it is not the teacher's

Students of a real model: its last hidden states with noise, the model without some of its layers, and that trained on
other sequences. `small` trains a teacher of 192 dimensions on the texts and a student of 96, whose distance is as large
as students from random weights have it; then it fine-tunes the teacher on the sequences that are measured.
A file that is there is not made again. One thread needs about half an hour for all three.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from cache_builder.data.batching import collate
from cache_builder.models.lm_head import hidden_states_at
from tools.cache_curve import texts

NOISE = 0.14
KEPT_LAYERS = {
    "29 of 30 layers": [n for n in range(30) if n != 22],
    "27 of 30 layers": [n for n in range(30) if n not in (18, 22, 26)],
    "22 of 30 layers": [n for n in range(30) if n not in range(10, 26, 2)],
    "6 of 30 layers": [0, 1, 2, 3, 28, 29],
}
TRAINED = ("22 of 30 layers", "6 of 30 layers")


def real(folder: Path, name: str, args: argparse.Namespace) -> None:
    """Make the pairs of a pretrained model and its damaged copies."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = LlamaForCausalLM.from_pretrained(args.model).eval()
    sequences = (texts.answers if args.command == "snips" else texts.abstracts)(args.data, tokenizer)
    measured, others = _divide(sequences, args.positions)
    base = model
    if args.fine_tune_steps:
        model = trained(copy.deepcopy(model), others, args.fine_tune_steps, args.batch, 5e-5)
    pad = int(tokenizer.pad_token_id or 0)
    hidden, label, head = _states(model, measured, args.positions, pad)
    _keep(folder / name / "teacher.safetensors", lambda: {"hidden": hidden, "head": head, "label": label})
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    _keep(folder / name / "noise.safetensors", lambda: {"hidden": hidden + NOISE * hidden.std() * noise})
    if args.fine_tune_steps:
        _keep_student(folder / name, "the model before fine-tuning", base, head, measured, args.positions, pad)
    for student, layers in KEPT_LAYERS.items():
        _keep_student(folder / name, student, _without(model, layers), head, measured, args.positions, pad)
        if student in TRAINED and args.train_steps and not args.fine_tune_steps:
            path = folder / name / f"{student}, trained.safetensors"
            if not path.is_file():
                healed = trained(_without(model, layers), others, args.train_steps, args.batch, 2e-4)
                _keep_student(folder / name, f"{student}, trained", healed, head, measured, args.positions, pad)


def small(folder: Path, args: argparse.Namespace) -> None:
    """Train a small teacher and a smaller student; measure before and after fine-tuning the teacher."""
    rows = texts.stream(args.texts, args.vocabulary)
    whole = np.ones(texts.SEQUENCE_TOKENS, np.bool_)
    sequences = [(row, whole) for row in rows]
    teacher = trained(small_model(args.vocabulary, 192, 4), sequences, args.steps, args.batch, 2e-3)
    student = trained(small_model(args.vocabulary, 96, 2), sequences, args.steps, args.batch, 2e-3)
    chosen = np.linspace(0, len(rows) - 1, -(-args.positions // (texts.SEQUENCE_TOKENS - 1))).astype(int)
    measured = [sequences[row] for row in chosen]
    for name in ("small LM", "small LM, fine-tuned"):
        if name != "small LM":
            teacher = trained(teacher, measured, args.fine_tune_steps, args.batch, 1e-3)
        hidden, label, head = _states(teacher, measured, args.positions, 0)
        _keep(folder / name / "teacher.safetensors", lambda: {"hidden": hidden, "head": head, "label": label})  # noqa: B023
        _keep_student(folder / name, "half as wide", student, head, measured, args.positions, 0)


def _divide(sequences: Sequence[texts.Sequence], positions: int) -> tuple[list[texts.Sequence], list[texts.Sequence]]:
    """Take as many sequences as have so many positions; the others are there to be trained on."""
    counts = np.cumsum([int(mask[1:].sum()) for _, mask in sequences])
    needed = int(np.searchsorted(counts, positions)) + 1
    return list(sequences[:needed]), list(sequences[needed:])


def _states(model: Any, sequences: list[texts.Sequence], positions: int, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states [N, D], labels [N] and the head [V, D]."""
    hidden, label = [], []
    for start in range(0, len(sequences), 8):
        batch = collate(sequences[start : start + 8], pad)
        with torch.no_grad():
            hidden.append(hidden_states_at(model, batch, model.config.vocab_size)[0])
        label.append(batch["label_M"])
    head = model.get_output_embeddings().weight.detach().clone()
    return torch.cat(hidden)[:positions], torch.cat(label)[:positions], head


def _keep(path: Path, make: Callable[[], dict[str, Tensor]]) -> None:
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        save_file({name: value.contiguous() for name, value in make().items()}, part)
        part.rename(path)
        print(path, flush=True)


def _keep_student(
    folder: Path, name: str, model: Any, teacher_head: Tensor, sequences: list[texts.Sequence], positions: int, pad: int
) -> None:
    def make() -> dict[str, Tensor]:
        hidden, _, head = _states(model, sequences, positions, pad)
        return {"hidden": hidden} if head.equal(teacher_head) else {"hidden": hidden, "head": head}

    _keep(folder / f"{name}.safetensors", make)


def _without(model: Any, kept: list[int]) -> Any:
    whole = model.model.layers
    model.model.layers = torch.nn.ModuleList(whole[n] for n in kept)  # so that no other layer is copied
    shorter = copy.deepcopy(model)
    model.model.layers = whole
    for n, layer in enumerate(shorter.model.layers):
        layer.self_attn.layer_idx = n
    shorter.config.num_hidden_layers = len(kept)
    return shorter


def small_model(vocabulary: int, hidden_size: int, layers: int, seed: int = 0) -> Any:
    """Make a Llama of random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=texts.SEQUENCE_TOKENS,
    )
    return LlamaForCausalLM(config)


def trained(model: Any, sequences: list[texts.Sequence], steps: int, batch: int, learning_rate: float) -> Any:
    """Train a model on the completions of random sequences, in place; return it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    rng = np.random.default_rng(0)
    model.train()
    for step in range(steps):
        chosen = collate([sequences[row] for row in rng.integers(0, len(sequences), batch)], 0)
        ids = chosen["input_ids"]
        labels = torch.full_like(ids, -100)
        labels.view(-1)[chosen["hidden_index_M"] + 1] = chosen["label_M"]
        loss = model(input_ids=ids, attention_mask=chosen["attention_mask"], labels=labels).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 19 or step == steps - 1:
            print(f"{len(model.model.layers)} layers: step {step + 1}/{steps}, loss {loss.item():.3f}", flush=True)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["pubmed", "snips", "small"])
    parser.add_argument("folder", type=Path, help="where the pairs' folders are made")
    parser.add_argument("--model", type=Path, help="of pubmed and snips: the folder that tools.get_smollm2 makes")
    parser.add_argument("--data", type=Path, help="ori_pqal.json of PubMedQA, or the folder of SNIPS")
    parser.add_argument("--texts", type=Path, nargs="+", help="of small: ShareGPT, JSON or text files to learn from")
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=8192, help="of small")
    parser.add_argument("--steps", type=int, default=200, help="of small: training steps of teacher and student")
    parser.add_argument("--fine-tune-steps", type=int, default=0, help="of the teacher")
    parser.add_argument("--train-steps", type=int, default=40, help="of the shortened students")
    parser.add_argument(
        "--batch",
        type=int,
        default=4,
        help="sequences of a training step; more than 4 of a real model need more than 4 GB",
    )
    args = parser.parse_args()
    if args.command == "small":
        small(args.folder, args)
    else:
        real(args.folder, args.command + (", fine-tuned" if args.fine_tune_steps else ""), args)


if __name__ == "__main__":
    main()
