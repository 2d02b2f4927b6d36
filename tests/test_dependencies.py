"""What is imported is declared, in the extra of the room that imports it; what is declared is imported."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.support.paths import ROOT
from trainer.cli import TRAIN_EXTRA

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
READING = ("__init__", "atomic", "cache", "cli", "config", "errors", "format", "positions", "sequences", "sharing")
READING_SIDE = {f"cache_builder.{name}" for name in (*READING, "steps", "storage")} | {"trainer.cli"}
UNIMPORTED = {
    "s3fs": "fsspec opens s3:// with it",
    "tensorboard": "the Trainer writes to it",
    "bitsandbytes": "transformers quantises with it",
}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> dict[str, Requirement]:
    """The requirements of a small install and of `extras`, by name."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {canonical(found.name): found for found in map(Requirement, lines)}


@cache
def imported() -> dict[str, set[str]]:
    """Return which distributions each room of both packages imports, lazy and typing-only imports counted."""
    distributions = packages_distributions()
    found: dict[str, set[str]] = {}
    for path in [*(ROOT / "cache_builder").rglob("*.py"), *(ROOT / "trainer").rglob("*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        room = ".".join(parts if parts[-1].startswith(("ray_", "harness_")) else parts[:2])
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"cache_builder", "trainer"}:
                found.setdefault(room, set()).add(canonical(distributions.get(name, [name])[0]))
    return found


def test_what_the_reading_side_imports_comes_with_a_small_install() -> None:
    allowed = set(declared())
    lacking = {room: names - allowed for room, names in imported().items() if room in READING_SIDE}
    assert {room: names for room, names in lacking.items() if names} == {}


def test_what_other_rooms_import_comes_with_the_train_extra_and_ray_and_the_harness_with_their_own() -> None:
    for room, names in imported().items():
        extras = ("train", *(extra for extra in ("ray", "harness") if f".{extra}_" in room))
        assert names <= set(declared(*extras)), room


def test_what_is_declared_is_imported_or_has_its_reason_here() -> None:
    everything = set(declared("train", "remote", "ray", "tensorboard", "quantised", "harness"))
    assert everything - set().union(*imported().values()) == set(UNIMPORTED)


def pinned(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text().splitlines()
    return {canonical(name): version for name, _, version in (line.partition("==") for line in lines) if version}


def test_each_pinned_version_is_in_its_declared_range() -> None:
    versions = pinned("constraints.txt")
    for name, requirement in declared(*PROJECT["optional-dependencies"]).items():
        assert requirement.specifier.contains(versions[name]), name


def test_the_lowest_version_promised_is_the_one_that_is_tested() -> None:
    versions = {**pinned("constraints.txt"), **pinned("constraints-lowest.txt")}
    for name, requirement in declared("train", "remote").items():
        (lowest,) = (Version(part.version) for part in requirement.specifier if part.operator == ">=")
        assert lowest.release[:2] == Version(versions[name]).release[:2], name


def test_what_a_small_install_lacks_is_known() -> None:
    distributions = packages_distributions()
    assert {canonical(distributions[module][0]) for module in TRAIN_EXTRA} == set(declared("train")) - set(declared())


WITHOUT = """
import sys
for name in {names}:
    sys.modules[name] = None
from trainer.cli import main
main({arguments})
"""


@pytest.mark.parametrize("command", ["sft", "cache build", "distill"])
def test_a_command_that_needs_more_than_a_small_install_says_which_extra(command: str, tmp_path: Path) -> None:
    config = tmp_path / "experiment.toml"
    config.write_text(
        f"[run]\noutput_dir='{tmp_path}/run'\n[data]\nsource='demo'\n[teacher]\nmodel='t'\n[student]\nmodel='s'"
    )
    arguments = [*command.split(), str(config), *(["teacher"] if command == "sft" else [])]
    program = WITHOUT.format(names=sorted(TRAIN_EXTRA), arguments=arguments)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert 'pip install "footsteps[train]"' in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "teacher").exists()


def test_a_small_install_reads_checks_and_describes_a_cache() -> None:
    for command in ("info", "verify"):
        arguments = ["cache", command, str(ROOT / "tests/fixtures/cache_v1")]
        program = WITHOUT.format(names=sorted(TRAIN_EXTRA), arguments=arguments)
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "tests/fixtures/cache_v1" in done.stdout
