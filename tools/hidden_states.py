"""Run a cache's requests through vLLM, or through transformers, and write the last layer's hidden states.

    footsteps cache requests CONFIG --output DIR
    python -m tools.hidden_states DIR --checkpoint NAME --model FOLDER [--engine vllm] [--at-most FILES]
    footsteps cache build CONFIG        with teacher.engine = "hidden-states" and teacher.hidden_states = "DIR"

Requests whose file is there already are left out, so that giving the command again continues it. `--at-most` waits
while so many files lie there, for a build beside it that deletes what it has read (`teacher.hidden_states_delete`).

vLLM: 0.18 or newer, which has `extract_hidden_states`; it is to be installed in an environment of its own, since it
pins torch. Written by its documentation and never run here: no GPU was at hand.
"""

import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from cache_builder.capture.state_files import REQUESTS_FOLDER, RanBy, StateFiles, sequence_key
from cache_builder.config import ModelConfig
from cache_builder.data.batching import Batch, collate, plan_batches
from cache_builder.errors import UserError
from cache_builder.models.last_parts import final_norm
from cache_builder.models.lm_head import base_of, input_device
from cache_builder.models.loading import load_model, weights_fingerprint
from cache_builder.models.placement import local_device

WAVE = 1024
"""Sequences handed to an engine at a time: enough to sort by length, few enough to lose."""


def record(model: Any, norm: nn.Module, batch: Batch) -> list[Tensor]:
    """Return what a model's final norm reads, [T, D] on the CPU for each row of a batch, without padding."""
    read: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda norm, args: read.append(args[0]))
    device = input_device(model)
    try:
        with torch.no_grad():
            base_of(model)(
                input_ids=batch["input_ids"].to(device),
                attention_mask=batch["attention_mask"].to(device),
                use_cache=False,
            )
    finally:
        hook.remove()
    mask = batch["attention_mask"].bool()
    return [states[used] for states, used in zip(read[0].cpu(), mask, strict=True)]


def requests_of(folder: Path) -> Iterator[np.ndarray]:
    """Yield the token ids, u32 [T], of every request."""
    for path in sorted((folder / REQUESTS_FOLDER).glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield np.array(json.loads(line)["token_ids"], np.uint32)


def run_transformers(model: str, dtype: str, tokens: int, waves: Iterable[list[np.ndarray]], files: StateFiles) -> None:
    """Run waves of sequences in transformers, in batches of `tokens` tokens at most."""
    import transformers

    config = ModelConfig.model_validate({"model": model, "dtype": dtype})
    files.begin(_ran_by("transformers", transformers.__version__, dtype, model))
    loaded = load_model(config, 0).to(local_device())  # type: ignore[arg-type]
    norm = final_norm(loaded)
    for wave in waves:
        for members in plan_batches(np.array([len(ids) for ids in wave]), tokens):
            chosen = [wave[row] for row in members]
            batch = collate([(ids, np.ones(len(ids), bool)) for ids in chosen], 0)
            for ids, states_TD in zip(chosen, record(loaded, norm, batch), strict=True):
                files.write(ids, states_TD)


def run_vllm(
    model: str, dtype: str, tensor_parallel: int, waves: Iterable[list[np.ndarray]], files: StateFiles
) -> None:
    """Run waves of sequences through vLLM's extraction of hidden states."""
    import vllm  # type: ignore[import-not-found]
    from safetensors.torch import load_file
    from transformers import AutoConfig

    files.begin(_ran_by("vllm", vllm.__version__, dtype, model))
    last_layer = AutoConfig.from_pretrained(model).get_text_config().num_hidden_layers
    with tempfile.TemporaryDirectory(dir=files.folder, prefix="vllm-") as written:
        engine = vllm.LLM(
            model=model,
            dtype=dtype,
            tensor_parallel_size=tensor_parallel,
            enable_prefix_caching=False,  # a cached prefix has no states to write
            enable_chunked_prefill=False,
            speculative_config={
                "method": "extract_hidden_states",
                "num_speculative_tokens": 1,
                # the layer after the last one: its input is what the final norm reads
                "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": [last_layer]}},
            },
            kv_transfer_config={
                "kv_connector": "ExampleHiddenStatesConnector",
                "kv_role": "kv_producer",
                "kv_connector_extra_config": {"shared_storage_path": written},
            },
        )
        for wave in waves:
            prompts = [{"prompt_token_ids": ids.tolist()} for ids in wave]
            outputs = engine.generate(prompts, vllm.SamplingParams(max_tokens=1, temperature=0.0))
            for ids, output in zip(wave, outputs, strict=True):
                path = Path(output.kv_transfer_params["hidden_states_path"])
                states = load_file(path)["hidden_states"]
                files.write(ids, states[:, -1] if states.ndim == 3 else states)
                path.unlink()


def _ran_by(engine: str, version: str, dtype: str, model: str) -> RanBy:
    return RanBy(engine=engine, version=version, dtype=dtype, weights_fingerprint=weights_fingerprint(model, 0))


def _waves(folder: Path, files: StateFiles, at_most: int | None) -> Iterator[list[np.ndarray]]:
    missing = (ids for ids in requests_of(folder) if not files.has(sequence_key(ids)))
    size = WAVE if at_most is None else min(WAVE, at_most)
    while wave := list(islice(missing, size)):
        while at_most is not None and files.count() + len(wave) > at_most:
            time.sleep(1.0)
        yield wave


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--checkpoint", required=True, metavar="NAME", help="Its name in teacher.checkpoints.")
@click.option("--model", required=True, metavar="FOLDER", help="The checkpoint itself.")
@click.option("--engine", type=click.Choice(["vllm", "transformers"]), default="vllm", show_default=True)
@click.option("--dtype", default="bfloat16", show_default=True)
@click.option("--tensor-parallel", default=1, show_default=True, help="vLLM: GPUs that share the model.")
@click.option("--batch-tokens", default=8192, show_default=True, help="transformers: tokens of a batch, with padding.")
@click.option("--at-most", type=click.IntRange(min=1), help="Wait while so many files lie there.")
def main(
    folder: Path,
    checkpoint: str,
    model: str,
    engine: str,
    dtype: str,
    tensor_parallel: int,
    batch_tokens: int,
    at_most: int | None,
) -> None:
    """Write the hidden states that DIR's requests ask for."""
    try:
        files = StateFiles.of(folder, checkpoint)
        waves = _waves(folder, files, at_most)
        if engine == "vllm":
            run_vllm(model, dtype, tensor_parallel, waves, files)
        else:
            run_transformers(model, dtype, batch_tokens, waves, files)
    except UserError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{files.folder}: {files.count():,} sequences")


if __name__ == "__main__":
    main()
