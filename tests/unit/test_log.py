import io
import json
import logging
import sys

import pytest

from antechamber import log
from antechamber.errors import ConfigError


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    log.setup("json")
    stream = sys.stderr
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    monkeypatch.undo()
    log.setup("text")


def test_stage_logs_begin_and_end_with_duration_when_it_returns(records) -> None:
    assert log.stage("s")(lambda: 7)() == 7
    begin, end = records()
    assert (begin["event"], begin["stage"], end["event"]) == ("stage.begin", "s", "stage.end")
    assert end["ms"] >= 0


def test_stage_logs_no_end_when_it_refuses(records) -> None:
    @log.stage("s")
    def refusing() -> None:
        raise ConfigError("config.value", "seen", hint="do")

    with pytest.raises(ConfigError):
        refusing()
    assert [r["event"] for r in records()] == ["stage.begin"]


def test_failure_logs_code_detail_and_hint(records) -> None:
    log.failure(ConfigError("config.value", "seen", hint="do this"))
    (record,) = records()
    assert (record["level"], record["code"], record["detail"], record["hint"]) == (
        "ERROR",
        "config.value",
        "seen",
        "do this",
    )


def test_event_gives_the_journal_fields_when_it_logs() -> None:
    caught: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = caught.append  # type: ignore[method-assign]
    logger = logging.getLogger("antechamber")
    logger.addHandler(handler)
    log.event("key.released", ms=412)
    logger.removeHandler(handler)
    assert vars(caught[0])["ANTECHAMBER_MS"] == 412
    assert vars(caught[0])["ANTECHAMBER_EVENT"] == "key.released"
