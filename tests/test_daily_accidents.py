"""What happens every day ends in one message and exit code 2: full disks, wrong folders, odd names, two at once."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from cache_builder import atomic, errors
from cache_builder.config import load_experiment
from cache_builder.errors import CacheBusyError, CacheDamagedError, printable
from cache_builder.storage.locks import only_one_in
from tests.support.paths import ROOT
from tests.support.run_folder import make_run
from tests.support.toys import write_toy
from trainer.cli import Commands, main
from trainer.config import Experiment
from trainer.stages.crossfit import write_crossfit_losses
from trainer.stages.distill import distill
from trainer.stages.evaluate_run import evaluate_run
from trainer.stages.sft import sft_student, sft_teacher
from trainer.stages.student_losses import write_student_losses


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_refused(result: Result, *said: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr
    for each in said:
        assert each in result.stderr


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("accidents"))


def a_file(folder: Path) -> str:
    (folder / "run").write_text("")
    return f"run.output_dir='{folder / 'run'}'"


def below_a_file(folder: Path) -> str:
    (folder / "run").write_text("")
    return f"run.output_dir='{folder / 'run' / 'deeper'}'"


def an_empty_model(folder: Path) -> str:
    (folder / "empty").mkdir()
    return f"student.model='{folder / 'empty'}'"


def no_json(folder: Path) -> str:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{")
    return f"student.model='{folder / 'model'}'"


ACCIDENTS: dict[str, tuple[Callable[[Path], str], str]] = {
    "output_dir is a file": (a_file, "run"),
    "output_dir lies below a file": (below_a_file, "run"),
    "a name that is too long": (lambda folder: f"run.output_dir='{folder / ('x' * 300)}'", "File name too long"),
    "an empty model folder": (an_empty_model, "empty"),
    "a config.json that is none": (no_json, "config.json"),
    "a template that raises": (lambda folder: "text.chat_template='{{ 1 // 0 }}'", "template"),
    "a template that is none": (lambda folder: "text.chat_template='{% if %}'", "template"),
    "a NUL in a path": (lambda folder: 'run.output_dir="a\\u0000b"', "run.output_dir holds a NUL"),
    "a setting in sections without end": (lambda folder: ".".join("a" * 5_000) + "=1", "in 5,000 sections"),
    "a setting nested without end": (lambda folder: "run.seed=" + "[" * 5_000, "nested too deep"),
    "a number of thousands of digits": (lambda folder: "run.seed=" + "9" * 5_000, "run.seed"),
    "a vocabulary of billions": (lambda folder: "tokenizer.train_vocab_size=4_000_000_000", "train_vocab_size"),
}


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_an_accident_is_one_message(accident: str, config: Path, tmp_path: Path) -> None:
    setting, said = ACCIDENTS[accident]
    override = setting(tmp_path)
    elsewhere = [] if "output_dir" in override else ["--set", f"run.output_dir='{tmp_path / 'out'}'"]
    assert_refused(call("sft", config, "student", *elsewhere, "--set", override), said)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, where no file can be made")
@pytest.mark.parametrize("place", ["/proc/run", "/proc"])
def test_an_output_where_the_system_makes_no_files_is_one_message(place: str, config: Path) -> None:
    said = "the system makes no files there; choose another place"
    for command in ("sft", "tune"):
        assert_refused(call(command, config, "student", "--set", f"run.output_dir='{place}'"), said, place)
    assert_refused(call("demo", "--output", place), said, place)


def test_a_missing_file_in_a_folder_that_may_only_be_read_is_not_told_to_lie_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(**given: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(errors.tempfile, "TemporaryFile", read_only)
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(tmp_path / "absent.json"))
    assert errors.system_message(missing) is None, "it was to be read, so this is a bug and keeps its traceback"


def test_a_config_that_is_no_file_is_named_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "pipe.toml")
    for name in ("folder.toml", "pipe.toml"):
        assert_refused(call("plan", tmp_path / name), f"{name}: a folder or device, expected a file")


def test_a_config_that_an_editor_began_with_a_byte_order_mark_is_read(config: Path, tmp_path: Path) -> None:
    marked = tmp_path / "config.toml"
    marked.write_text(config.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert load_experiment(Experiment, marked) == load_experiment(Experiment, config)


def test_a_cache_in_an_archive_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    assert_refused(call("cache", "info", f"zip://cache::{tmp_path}/absent.zip"), "absent.zip")


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("sft", errno.ENOSPC),
        ("sft", errno.EACCES),
        ("sft", errno.EROFS),
        ("sft", errno.EDQUOT),
        ("report", errno.ENOSPC),
    ],
)
def test_a_disk_that_is_full_or_may_not_be_written_is_one_message(
    command: str, number: int, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command == "report":
        make_run(tmp_path / "run")

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.os, "fsync", full)
    arguments = ["report", tmp_path / "run"]
    if command == "sft":
        arguments = ["sft", config, "student", "--set", f"run.output_dir='{tmp_path / 'out'}'"]
    assert_refused(call(*arguments), os.strerror(number), "give the same command again to continue")
    assert not [path for path in tmp_path.rglob("*.part") if path.is_file()]


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("Error while serializing: I/O error: File too large (os error 27)", "ulimit -f"),
        ("I/O error: Read-only file system (os error 30)", "choose another place"),
        ("Error while serializing: I/O error: No space left on device (os error 28)", "free some space"),
        (
            "[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/0",
            "free some space",
        ),
    ],
)
def test_what_a_library_says_of_the_system_is_told_with_what_to_do(said: str, advice: str) -> None:
    message = errors.system_message(RuntimeError(said))
    assert message is not None and message.startswith(said) and advice in message
    assert errors.system_message(RuntimeError("I/O error: No such file or directory (os error 2)")) is None


@pytest.mark.parametrize(
    ("damage", "repaired"),
    [
        ("run/cache/checkpoints/a/records/c/0/0 is damaged: the file is missing", True),
        ("run/student/stage.json is damaged: no JSON; remove run/student to make it again", False),
    ],
)
def test_what_is_damaged_in_a_cache_can_be_built_again_and_the_message_says_so(damage: str, repaired: bool) -> None:
    @click.command()
    def read() -> None:
        raise CacheDamagedError(damage)

    result = CliRunner().invoke(Commands(commands=[read]), ["read"])
    assert_refused(result, damage)
    assert ("`footsteps cache build CONFIG --repair`" in result.output) == repaired


def test_a_closed_stdout_is_no_traceback() -> None:
    script = "import sys; from trainer.cli import main; sys.argv = ['footsteps', 'config']; main()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read().decode()
    assert "Traceback" not in said


TWO_AT_ONCE: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "sft teacher": ("teacher", "fine-tuning here", lambda e, c, p: sft_teacher(e, p)),
    "sft student": ("student", "fine-tuning here", lambda e, c, p: sft_student(e, p)),
    "losses": ("losses", "computing these losses", lambda e, c, p: write_student_losses(e, c, 1)),
    "losses of halves": ("crossfit", "cross-fitting here", lambda e, c, p: write_crossfit_losses(e, p, c)),
    "distill": ("distill/sft/seed-0", "training this student", lambda e, c, p: distill(e, "sft", 0, c, p)),
    "evaluate": ("evaluate", "evaluating this run", lambda e, c, p: evaluate_run(e, p, c, Console(quiet=True))),
}


@pytest.mark.parametrize("command", TWO_AT_ONCE)
def test_two_runs_are_not_at_one_thing_at_once(command: str, toy: Any) -> None:
    name, what, work = TWO_AT_ONCE[command]
    experiment, cache, prepared = toy()
    folder = experiment.output_dir / name
    before = set(folder.glob("*"))
    with (
        only_one_in(folder, what),
        pytest.raises(CacheBusyError, match=rf"{folder.name}: .*process {os.getpid()}.* is {what} now; wait for it"),
    ):
        work(experiment, cache, prepared)
    assert set(folder.glob("*")) == before
    with only_one_in(folder, what):
        pass


def test_names_are_shown_as_they_are_and_command_no_terminal(tmp_path: Path) -> None:
    names = ("[v2] run", "[/x]", "[bold]x[/bold]", "a\x1b[2Jb", "=1+1", "*_#`<b>")
    run = tmp_path / "[v2] [bold]"
    make_run(run, tasks=dict.fromkeys(names, "accuracy"))
    result = call("report", run)
    assert result.exit_code == 0, result.output
    assert "[v2] [bold]" in result.output.replace("\n", "") and "\x1b" not in result.output
    for name in names:
        below = name.replace("/", "")
        assert_refused(call("report", tmp_path / below / "nothing"), printable(below))


def test_half_a_character_and_control_characters_are_written_out() -> None:
    assert printable("né [v2]\n\tタ") == "né [v2]\n\tタ"
    assert printable("a\x1b[2J\ud800\x07\x9b\u202e") == "a\\x1b[2J\\ud800\\x07\\x9b\\u202e"


@pytest.fixture(scope="module")
def euc_jp(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with Japanese EUC-JP, made here: few machines have it."""
    folder = tmp_path_factory.mktemp("locales")
    command = ["localedef", "-i", "ja_JP", "-f", "EUC-JP", folder / "ja_JP.eucJP"]
    if shutil.which("localedef") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("localedef or its sources of ja_JP and EUC-JP are not here")
    return str(folder)


def test_a_run_folder_whose_name_the_locale_does_not_write_in_utf_8_is_refused(
    euc_jp: str, config: Path, tmp_path: Path
) -> None:
    """The tokenizers library would look for its files under the UTF-8 name."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "PYTHONUTF8"))}
    environment |= {"LC_ALL": "ja_JP.eucJP", "PYTHONUTF8": "0", "LOCPATH": euc_jp}
    (tmp_path / "named.toml").write_text(config.read_text().replace(f"{config.parent}/run", f"{tmp_path}/実行"))
    command = [sys.executable, "-m", "trainer.cli", "sft", str(tmp_path / "named.toml"), "student"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 2, done.stderr[-2000:]
    said = done.stderr.decode("euc_jp")
    assert f"{tmp_path}/実行" in said and "does not write the name in UTF-8" in said and "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["named.toml"]


@pytest.mark.parametrize("locale", ["C", "ja_JP.eucJP"])
def test_files_are_utf_8_whatever_the_locale(locale: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Twice, as what the first writes the second reads; any use of the locale's encoding is an error."""
    make_run(tmp_path / "run", tasks={"タスク é": "accuracy"})
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "PYTHONUTF8"))}
    environment |= {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONWARNDEFAULTENCODING": "1"}
    encoding = "ascii"
    if locale != "C":
        environment["LOCPATH"], encoding = request.getfixturevalue("euc_jp"), "euc_jp"
    script = f"import sys; from trainer.cli import main; assert sys.getfilesystemencoding() in ('{encoding}', 'utf-8')"
    script += "; sys.argv[0] = 'footsteps'; main()"
    command = [sys.executable, "-W", "error::EncodingWarning:cache_builder", "-W", "error::EncodingWarning:trainer"]
    for _ in range(2):
        done = subprocess.run(
            [*command, "-c", script, "report", str(tmp_path / "run")], cwd=ROOT, env=environment, capture_output=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
    tables = [json.loads(path.read_bytes()) for path in (tmp_path / "run" / "report").rglob("*.json")]
    assert "タスク é" in json.dumps(tables, ensure_ascii=False)
