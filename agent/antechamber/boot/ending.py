"""How a run ends: who may ask for it, and what must not outlive it."""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from antechamber import log
from antechamber.errors import AgentError

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class Stopped(BaseException):
    """A signal asked us to stop. No Exception: libraries swallow those."""


class Undo:
    """What must not outlive the run, last first. Steps can be repeated, so an interrupted `run` is run again."""

    def __init__(self) -> None:
        self.orderly = False  # asked for, after nothing failed: running answers may end
        self._steps: list[tuple[str, Callable[[], object]]] = []

    def push(self, name: str, step: Callable[[], object]) -> None:
        """Before what it undoes is done."""
        self._steps.append((name, step))

    def run(self) -> None:
        """Every step, whatever became of the others. What fails is logged: it must not hide why the run ended."""
        for name, step in reversed(self._steps):
            try:
                step()
            except AgentError as e:
                log.event("undo.failed", level=logging.ERROR, step=name, code=e.code, detail=e.detail)
            except OSError as e:
                log.event("undo.failed", level=logging.ERROR, step=name, detail=f"{e.filename}: {e.strerror}")


class Stop:
    """Whether a signal came. It raises Stopped in the main thread, once; if that is swallowed, `requested` says so."""

    def __init__(self) -> None:
        self.requested = False

    def ask(self, _signal: int, _frame: FrameType | None) -> None:
        first, self.requested = not self.requested, True
        if first:
            raise Stopped

    def require_none(self) -> None:
        """Raises Stopped."""
        if self.requested:
            raise Stopped


@contextmanager
def ending(undo: Undo) -> Iterator[Stop]:
    """Run, and undo everything afterwards, deaf to signals.

    A signal before that is an orderly end, unless a refusal was already on its way: then the refusal stands. As a
    signal raises only once, one that comes between the end of the run and `_deafen` cannot skip the outer `finally`.
    """
    stop = Stop()
    before = {number: signal.signal(number, stop.ask) for number in _SIGNALS}
    try:
        try:
            yield stop
        finally:
            _deafen()
    except Stopped as stopped:
        if (refusal := _refusal_behind(stopped)) is not None:
            raise refusal from None
        undo.orderly = True
        log.event("stopped", reason="signal")
    finally:
        _deafen()
        undo.run()
        for number, handler in before.items():
            signal.signal(number, handler)


def _deafen() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _refusal_behind(error: BaseException) -> AgentError | None:
    behind = error.__context__
    while behind is not None and not isinstance(behind, AgentError):
        behind = behind.__context__
    return behind
