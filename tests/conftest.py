"""A tiny random Llama and a tiny tokenizer, made in the test process; and where the shared real data is."""

import functools
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run side by side, a core each

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from cache_builder.build.build import build_cache, teacher_checkpoints
from cache_builder.cache.reader import open_cache
from cache_builder.data.prepare import Prepared
from cache_builder.data.tokenizer import train_tokenizer
from tests.support.caches import Teaching, make_teaching
from tests.support.interruption import stops_at
from tests.support.object_store import s3_bucket
from tests.support.toys import DROPOUT, Opened, color_examples, load_toy, open_toy, without_dropout, write_toy
from trainer.stages.distill import distill
from trainer.stages.sft import sft_student, sft_teacher
from trainer.stages.student_losses import write_student_losses

settings.register_profile("footsteps", deadline=None, database=None)  # how long an example takes is no test
settings.load_profile("footsteps")


@pytest.fixture(autouse=True)
def arithmetic() -> Iterator[None]:
    """Hold each test to leave torch's arithmetic as it found it: what stays behind shows in another test's digits."""
    before = _arithmetic()
    yield
    after = _arithmetic()
    torch.set_default_dtype(torch.float32)
    torch.set_autocast_enabled("cpu", False)
    assert after == before


def _arithmetic() -> dict[str, object]:
    return {
        "default dtype": torch.get_default_dtype(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "matmul precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "flush denormals": float(torch.tensor(1e-40) * 1.0) == 0.0,
    }


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """A byte-level BPE of 300 tokens."""
    texts = [message["content"] for example in color_examples(200) for message in example["messages"]]
    return train_tokenizer(texts, 300, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def make_model() -> Callable[..., LlamaForCausalLM]:
    """Build a random Llama: `make_model(seed=0, hidden_size=32, vocab_size=304)`, more rows than tokens."""

    def make(seed: int = 0, hidden_size: int = 32, vocab_size: int = 304, **options: object) -> LlamaForCausalLM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=hidden_size,
                intermediate_size=2 * hidden_size,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                bos_token_id=None,
                eos_token_id=0,
                pad_token_id=1,
                **options,
            )
            return LlamaForCausalLM(config).eval()

    return make


@pytest.fixture(scope="module")
def teaching(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerBase,
    make_model: Callable[..., LlamaForCausalLM],
) -> Teaching:
    """Two checkpoints, and a corpus of the module's SEQUENCES, 60 unless it has any."""
    sequences = getattr(request.module, "SEQUENCES", 60)
    return make_teaching(tmp_path_factory.mktemp("teaching"), tokenizer, make_model, sequences=sequences)


@pytest.fixture(scope="module")
def built(teaching: Teaching, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of an uninterrupted build of the teaching by one process."""
    cache = tmp_path_factory.mktemp("built") / "cache"
    assert teaching.build(cache)
    return cache


@pytest.fixture(scope="session")
def built_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy experiment up to the students' losses, its student with dropout; `toy` opens it."""
    folder = tmp_path_factory.mktemp("toy")
    experiment = load_toy(write_toy(folder, attention_dropout=DROPOUT))
    prepared = Prepared(experiment)
    sft_teacher(experiment, prepared)
    build_cache(experiment, prepared.train, prepared.tokenizer, teacher_checkpoints(experiment), prepared.validation)
    sft_student(experiment, prepared)
    write_student_losses(experiment, open_cache(experiment.cache_url), prepared.tokenizer.pad_token_id)
    return folder


@pytest.fixture(scope="session")
def trained(built_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the folder of a method's student, trained once as the toy says: what others are compared with.

    `trained("td", dropout=False)` is that of a student without dropout. Nothing of it may be changed.
    """

    @functools.cache
    def train(method: str, *, dropout: bool = True) -> Path:
        experiment, *rest = open_toy(built_toy, tmp_path_factory.mktemp("trained"), "distill.logging_steps=1")
        if not dropout:
            without_dropout(experiment)
        return distill(experiment, method, 0, *rest)

    return train


@pytest.fixture(scope="module")
def stopped_run(built_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a student whose training was stopped after step 9, with checkpoints 4 and 8."""
    experiment, cache, prepared = open_toy(built_toy, tmp_path_factory.mktemp("stopped"), "distill.save_steps=4")
    with stops_at(9):
        distill(experiment, "taid", 0, cache, prepared)
    return experiment.output_dir / "distill" / "taid" / "seed-0"


@pytest.fixture
def toy(built_toy: Path, tmp_path: Path) -> Callable[..., Opened]:
    """Open the built experiment with other settings; its students go to a folder of the test's own."""
    return lambda *overrides: open_toy(built_toy, tmp_path / f"run-{len(list(tmp_path.iterdir()))}", *overrides)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a bucket on a fresh S3 server."""
    with s3_bucket() as url:
        yield url


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep models on the CPU, also where there is a GPU, so that they can be compared bit for bit."""
    monkeypatch.setattr("cache_builder.models.placement.local_device", lambda: torch.device("cpu"))


@pytest.fixture(scope="session")
def shared_data() -> Iterator[Path]:
    """The folder of shared real data, also as `$FOOTSTEPS_SHARED` for the configs that name it so; tests that need it
    skip where that variable does not name it and it is not beside the checkout."""
    root = os.environ.get("FOOTSTEPS_SHARED")
    folder = Path(root) if root else Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("the shared data is not here; set FOOTSTEPS_SHARED to its folder")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FOOTSTEPS_SHARED", str(folder))
        yield folder
