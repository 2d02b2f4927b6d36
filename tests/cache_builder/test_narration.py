"""A command speaks to people, to machines, or not at all."""

import json

import pytest

from cache_builder.narration import VARIABLE, duration, say


def test_text_is_for_people_and_goes_where_it_is_sent(capsys: pytest.CaptureFixture[str]) -> None:
    say("step", "teacher: step 1 of 2", step=1)
    say("probe", "[probe] of a", stderr=True)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("teacher: step 1 of 2\n", "[probe] of a\n")


def test_machines_get_one_object_a_line_on_standard_output(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "json")
    say("step", "two\nlines", name="ü", step=1)
    say("probe", "text", stderr=True, checkpoint="a")
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["event"], first["name"], first["step"]) == ("step", "ü", 1) and first["time"] > 0
    assert second["event"] == "probe"


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "quiet")
    say("step", "text")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("seconds", "said"), [(3.2, "3 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h")])
def test_a_time_is_said_in_the_unit_that_fits(seconds: float, said: str) -> None:
    assert duration(seconds) == said
