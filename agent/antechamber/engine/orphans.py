"""What an engine leaves behind: processes that outlived it become ours, and end."""

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

from antechamber.errors import EngineFailed

_PR_SET_CHILD_SUBREAPER = 36
_TICK_S = 0.005
_REAP_S = 5.0  # after SIGKILL


def adopt_orphans() -> None:
    """What an engine leaves behind becomes our child instead of init's. Source: prctl(2), PR_SET_CHILD_SUBREAPER."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants() -> None:
    """SIGKILL every child that we still have, until their children, which become ours, are gone too.

    Raises EngineFailed `engine.stuck` for one that does not end in time.
    """
    deadline = time.monotonic() + _REAP_S
    while children := _children():
        for pid in children:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > deadline:
            raise EngineFailed("engine.stuck", f"processes {children} outlive SIGKILL", hint="power off")
        time.sleep(_TICK_S)


def _children() -> list[int]:
    """Source: proc(5), /proc/PID/task/TID/children."""
    found = []
    for task in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
            found += [int(pid) for pid in task.read_text().split()]
    return found
