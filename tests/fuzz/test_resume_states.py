"""A checkpoint to resume from in any state: gone on from as it was written, or left out by name."""

import copy
import hashlib
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cache_builder.errors import CacheDamagedError, ModelError
from cache_builder.steps import SEAL, read_record
from tests.support.fuzz import Tally, cases, changed, holding, text_of, twisted
from trainer.loop.resume import ResumingTrainer
from trainer.loop.state import TrainState, last_whole_checkpoint


def resumed(run: Path) -> TrainState:
    """Return the state of the newest checkpoint, as the loop asks for it; one that is left out is an error here."""
    said: list[str] = []
    found = last_whole_checkpoint(run, 45, said.append)
    if said:
        raise CacheDamagedError(said[0])
    assert found is not None and found[0].name == "checkpoint-8", "a checkpoint was left out without a word"
    return found[1]


@cases(40, 3000)
@given(data=st.data())
def test_a_damaged_resume_state(
    data: st.DataObject, stopped_run: Path, tmp_path: Path, tally: dict[str, Tally]
) -> None:
    expected = resumed(stopped_run)
    newest = stopped_run / "checkpoint-8"
    path = newest / data.draw(st.sampled_from(sorted(path.name for path in newest.iterdir())))
    whole = Path(shutil.copytree(newest, tmp_path / "whole", dirs_exist_ok=True))
    path.write_bytes(changed(data, path))
    try:
        ended = tally["resume states"].end(lambda: resumed(stopped_run), expected, silent_is_wrong=True)
        assert ended != "refused" or not newest.exists()
    finally:
        shutil.rmtree(newest, ignore_errors=True)
        shutil.move(whole, newest)


@cases(40, 3000)
@given(data=st.data())
def test_a_resume_states_record_whose_seal_agrees(
    data: st.DataObject, stopped_run: Path, tmp_path: Path, tally: dict[str, Tally]
) -> None:
    """It may be read: then each value is of its type, so that what the loop computes with it is a number."""
    folder = Path(shutil.copytree(stopped_run / "checkpoint-8", tmp_path / "run" / "checkpoint-8", dirs_exist_ok=True))
    record = read_record(folder / "train_state.json")
    value = data.draw(twisted(record))
    seal = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    (folder / "train_state.json").write_text(text_of({**value, SEAL: seal}))

    def read() -> None:
        state = resumed(folder.parent)
        state.note(9, 0.5, None)
        assert all(isinstance(stage.stage + stage.first_step, int) for stage in state.plan)
        assert state.taid is None or isinstance(state.taid.t + state.taid.momentum, float)
        assert isinstance(state.seconds + state.peak_memory_mib, float)

    tally["resume states, crafted"].end(read)


@pytest.fixture(scope="module")
def trainer(stopped_run: Path, tmp_path_factory: pytest.TempPathFactory) -> ResumingTrainer:
    """What loads a state, its model that of the stopped run."""
    from transformers import LlamaForCausalLM, TrainingArguments

    model = LlamaForCausalLM.from_pretrained(stopped_run / "checkpoint-8")
    arguments = TrainingArguments(str(tmp_path_factory.mktemp("resumed")), report_to="none", use_cpu=True)
    made = ResumingTrainer(model=model, args=arguments)
    made.create_optimizer_and_scheduler(45)
    return made


@cases(40, 2000)
@given(data=st.data())
def test_a_resume_states_tensors_whose_digests_agree(
    data: st.DataObject, stopped_run: Path, trainer: ResumingTrainer, tally: dict[str, Tally]
) -> None:
    checkpoint = stopped_run / "checkpoint-8"
    path = checkpoint / data.draw(
        st.sampled_from(["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"])
    )
    rng, scheduler = torch.get_rng_state(), copy.deepcopy(trainer.lr_scheduler.state_dict())

    def read() -> None:
        trainer._load_from_checkpoint(str(checkpoint))
        trainer._load_optimizer_and_scheduler(str(checkpoint))
        trainer._load_rng_state(str(checkpoint))

    with holding(path, changed(data, path)):
        try:
            tally["resume states, tensors"].end(read)
        finally:
            torch.set_rng_state(rng)
            trainer.lr_scheduler.load_state_dict(scheduler)


def test_a_random_state_of_numbers_that_none_has_is_refused_by_name(
    stopped_run: Path, trainer: ResumingTrainer
) -> None:
    path, changed_state = stopped_run / "checkpoint-8" / "rng_state.pth", io.BytesIO()
    state = torch.load(path, weights_only=False)  # as this test's own training wrote it
    version, numbers, gauss = state["python"]
    torch.save({**state, "python": (version, (-1, *numbers[1:]), gauss)}, changed_state)
    with holding(path, changed_state.getvalue()), pytest.raises(ModelError, match=r"checkpoint-8 .* cannot be loaded"):
        trainer._load_rng_state(str(path.parent))


@pytest.mark.parametrize("content", [b"J", b"", b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_an_optimizers_state_that_is_none_is_refused_by_name(
    content: bytes, stopped_run: Path, trainer: ResumingTrainer
) -> None:
    path = stopped_run / "checkpoint-8" / "optimizer.pt"
    with holding(path, content), pytest.raises(ModelError, match=r"checkpoint-8 .* cannot be loaded"):
        trainer._load_optimizer_and_scheduler(str(path.parent))
