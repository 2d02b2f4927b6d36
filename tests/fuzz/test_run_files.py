"""A run folder's files in any state: what cannot be read is named among what is missing, and the rest is reported."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fuzz import Tally, cases, changed, holding
from tests.support.run_folder import make_run
from trainer.report.results import result_table
from trainer.report.run.run_reader import read_run
from trainer.report.sections.cautions import cautions
from trainer.report.sections.scores import result_rows
from trainer.report.sections.summary import summary
from trainer.report.tables import write_csv, write_tables

FILES = (
    "config.toml",
    "teacher/checkpoints.json",
    "teacher/log.json",
    "distill/td/seed-0/plan.json",
    "distill/td/seed-0/log.json",
    "distill/td/seed-0/losses.safetensors",
    "evaluate/teacher/metrics.json",
    "evaluate/td/seed-0/best/metrics.json",
    "evaluate/td/seed-0/best/predictions.jsonl",
    "losses/student.safetensors",
    "live_teacher.json",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of which nothing is resampled often: how a file is read is what is tested."""
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.report.results.BOOTSTRAP_SAMPLES", 20)
        run = make_run(folder, methods=("td",), seeds=(0,), tasks={"triage": "accuracy"})
        (run / "live_teacher.json").write_text('{"measurements": [{}]}')
        yield run


@cases(250, 3000)
@given(data=st.data())
def test_no_damage_to_a_run_file_is_a_traceback(whole: Path, tally: dict[str, Tally], data: st.DataObject) -> None:
    file = whole / data.draw(st.sampled_from(FILES))

    def read() -> None:
        run = read_run(whole)
        table = result_table(run)
        write_csv(whole / "x.csv", result_rows(table, table))
        write_tables(whole / "x.json", [result_rows(table, table)])
        "\n".join([summary(run, table), *cautions(run, table), *run.missing]).encode()

    with holding(file, changed(data, file)):
        assert tally["run files"].end(read) == "read"
