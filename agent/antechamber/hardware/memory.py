"""Keep this process's memory to itself: keys are in it."""

import ctypes
import os
import resource

from antechamber.errors import HardwareUnavailable

_PR_SET_DUMPABLE = 4


def seal_memory() -> None:
    """No core dump, no ptrace and no /proc/PID/{mem,fd} for our own user's other processes.

    Raises HardwareUnavailable `host.dumpable`. Source: prctl(2), PR_SET_DUMPABLE; ptrace(2), access mode checking.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise HardwareUnavailable("host.dumpable", f"PR_SET_DUMPABLE: {reason}", hint="run on a Linux kernel")
