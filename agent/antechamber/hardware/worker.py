"""A kernel call that may never return, in a child that can be killed. Forking costs a millisecond; a new Python, 20."""

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable
from typing import NoReturn

from antechamber.errors import HardwareUnavailable

_GRACE_S = 1.0  # for a killed child to go
_CHUNK = 1 << 16  # bytes: what a pipe holds
_DIED = ("tsm.worker", "the worker ended without an answer", "look at the kernel's log: it may be out of memory")


def within(deadline_s: float, late: HardwareUnavailable, work: Callable[[], bytes]) -> bytes:
    """What `work` returns or refuses; at the deadline SIGKILL, and `late` is raised.

    `work` runs after fork: system calls only, no locks, no logging, no threads. What it changes stays in the child.
    Raises HardwareUnavailable: its own, `late`, `tsm.worker`.
    """
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        _run(into, work)
    os.close(into)
    try:
        answer = _drain(out, time.monotonic() + deadline_s)
    finally:
        os.close(out)
        _end(pid)
    if answer is None:
        raise late
    if answer[:1] == b"+":
        return answer[1:]
    code, detail, hint = json.loads(answer[1:]) if answer[:1] == b"-" else _DIED
    raise HardwareUnavailable(code, detail, hint=hint)


def _run(into: int, work: Callable[[], bytes]) -> NoReturn:
    """In the child: never returns, never unwinds into what the parent was doing."""
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.closerange(3, into)  # the parent's sockets and memfds: a child that hangs must not keep them open
        os.closerange(into + 1, 1 << 20)
        _write(into, _outcome(work))
        status = 0
    finally:
        os._exit(status)


def _outcome(work: Callable[[], bytes]) -> bytes:
    """`+` and the bytes, or `-` and the refusal as JSON."""
    try:
        return b"+" + work()
    except HardwareUnavailable as e:
        return b"-" + json.dumps([e.code, e.detail, e.hint]).encode()


def _write(into: int, data: bytes) -> None:
    while data:
        data = data[os.write(into, data) :]


def _drain(out: int, until: float) -> bytes | None:
    """All that the child says before it closes the pipe, None at the deadline."""
    poll, raw = select.poll(), b""
    poll.register(out, select.POLLIN)
    while (left := until - time.monotonic()) > 0:
        if poll.poll(left * 1000):
            chunk = os.read(out, _CHUNK)
            if not chunk:
                return raw
            raw += chunk
    return None


def _end(pid: int) -> None:
    """Kill and reap. One that even SIGKILL does not end hangs in the kernel, and is left to it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + _GRACE_S
    with contextlib.suppress(ChildProcessError):  # reaped by the program's own SIGCHLD handler
        while os.waitpid(pid, os.WNOHANG)[0] == 0 and time.monotonic() < until:
            time.sleep(0.0005)
