"""A report that follows a run is written when the run has changed, and not otherwise."""

from pathlib import Path

from trainer.report.watch import watch_report


def test_the_page_is_written_again_when_the_run_has_changed_and_once_more_at_the_end(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text('[distill]\nmethods = ["td"]\n')  # a page without figures, which take seconds
    pages: list[str] = []
    looks = iter(["nothing", "change", "nothing", "stop"])

    def sleep(seconds: float) -> None:
        look = next(looks)
        if look == "change":
            (run / "new.json").write_text("{}")
        if look == "stop":
            raise KeyboardInterrupt

    page = watch_report([run], None, 7, told=lambda page: pages.append(page.read_text()), sleep=sleep)
    assert len(pages) == 2
    assert all('<meta http-equiv="refresh" content="7">' in text for text in pages)
    assert "refresh" not in page.read_text().partition("<style>")[0]
