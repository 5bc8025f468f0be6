"""What happened: two INFO records a stage, one ERROR a run. Never prompts, keys, tokens, headers."""

import functools
import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Literal, ParamSpec, TypeVar

from antechamber.errors import AgentError

P = ParamSpec("P")
R = TypeVar("R")
Field = str | int | float | bool  # not bytes, not Secret: mypy refuses to log a key

_LOG = logging.getLogger("antechamber")
_SEVERITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}


def event(name: str, /, *, level: int = logging.INFO, **fields: Field) -> None:
    """Log one fact: readable text, and each field as ANTECHAMBER_<NAME>= in the journal."""
    text = " ".join([name, *(f"{k}={v!r}" for k, v in fields.items())])
    journal = {f"ANTECHAMBER_{k.upper()}": v for k, v in fields.items()}
    _LOG.log(level, text, extra={"facts": dict(fields), "event": name} | journal | {"ANTECHAMBER_EVENT": name})


def failure(error: AgentError) -> None:
    """The one ERROR record of a run: code, what was seen, what to do."""
    event("refused", level=logging.ERROR, code=error.code, detail=error.detail, hint=error.hint)


def stage(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Log `stage.begin`, and `stage.end` with its duration in ms; a refusal ends it without the second."""

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            event("stage.begin", stage=name)
            start = time.monotonic()
            result = function(*args, **kwargs)
            event("stage.end", stage=name, ms=round((time.monotonic() - start) * 1000, 1))
            return result

        return timed

    return wrap


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = getattr(record, "facts", {})
        head = {"t": round(time.monotonic(), 4), "level": record.levelname, "event": getattr(record, "event", "log")}
        return (
            json.dumps(head | facts)
            if facts or hasattr(record, "event")
            else json.dumps(head | {"text": record.getMessage()})
        )


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"<{_SEVERITY.get(record.levelno, 6)}>{record.getMessage()}" if self._prefix else self._plain(record)

    def __init__(self, *, prefix: bool) -> None:
        super().__init__()
        self._prefix = prefix

    @staticmethod
    def _plain(record: logging.LogRecord) -> str:
        mark = "" if record.levelno < logging.WARNING else f"{record.levelname}: "
        return f"antechamber: {mark}{record.getMessage()}"


def setup(style: Literal["text", "json", "journal"] = "text") -> None:
    """Send records to stderr as text or JSON lines, or to the journal with their fields."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if style == "journal":
        handler = _journal_handler()
    elif style == "json":
        handler.setFormatter(_Json())
    else:
        handler.setFormatter(_Text(prefix=False))
    _LOG.handlers[:] = [handler]
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False


def _journal_handler() -> logging.Handler:
    try:
        from systemd.journal import JournalHandler  # noqa: PLC0415  # extra `systemd`
    except ImportError:  # stderr of a unit is the journal too: keep the priority, lose the fields
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Text(prefix=True))
        return handler
    journal: logging.Handler = JournalHandler(SYSLOG_IDENTIFIER="antechamber")
    return journal
